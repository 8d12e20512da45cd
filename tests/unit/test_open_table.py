"""A commit that a listing missed is no damage; one that is gone is."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cryptopulse.errors import LakeDamaged
from cryptopulse.lake.storage import open_table
from cryptopulse.lake.tables import SILVER
from support import Lake, Trade, at


@pytest.fixture
def entry(lake: Lake) -> Path:
    """One of the commits in the middle of a table's log."""
    for n in range(1, 6):
        lake.take_in([Trade("BTC-USD", n, at(n)).match()])
    return lake.folder(SILVER) / f"_delta_log/{open_table(lake.settings.location, SILVER).version() - 2:020d}.json"


def test_a_commit_that_shows_up_late_is_waited_for(lake: Lake, entry: Path) -> None:
    hidden = entry.rename(entry.with_suffix(".hidden"))
    threading.Timer(0.03, lambda: hidden.rename(entry)).start()
    assert open_table(lake.settings.location, SILVER).to_pyarrow_table().num_rows == 5


def test_a_commit_that_is_gone_is_damage(lake: Lake, entry: Path) -> None:
    entry.unlink()
    with pytest.raises(LakeDamaged, match="gap"):
        open_table(lake.settings.location, SILVER)
