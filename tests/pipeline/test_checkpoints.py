"""What a checkpoint of the Delta log costs is shared by the commits since the last one."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptopulse.lake.tables import BRONZE
from cryptopulse.pipeline import Pipeline
from cryptopulse.store import maintenance
from support import Lake, Trade


@pytest.mark.parametrize(("actions_a_commit", "checkpoints"), [(1000, 6), (1, 2)])
def test_a_large_checkpoint_is_written_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, actions_a_commit: int, checkpoints: int
) -> None:
    monkeypatch.setattr(maintenance, "_ACTIONS_A_COMMIT", actions_a_commit)
    lake = Lake(tmp_path / "lake", maintenance={"compact_commits": 1000, "checkpoint_commits": 5})
    with Pipeline(lake.settings, lake.log) as pipeline:
        found = set()
        for number in range(1, 31):
            lake.append([Trade("BTC-USD", number).match()])
            pipeline.step(0)
            pipeline.maintenance.run_due()
            found |= {file.name for file in (lake.folder(BRONZE) / "_delta_log").glob("*.checkpoint.parquet")}
    assert len(found) == checkpoints
    lake.close()
