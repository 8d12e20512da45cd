"""The traps of Delta on a local disk, each with what keeps us out of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cryptopulse.engine.delta import DeltaHandle
from cryptopulse.errors import Fenced, LakeBusy
from cryptopulse.lake.lock import LakeLock
from cryptopulse.lake.tables import ALERTS, BARS, BRONZE, COVERAGE, QUARANTINE, SILVER, STATS, TABLES, Table
from cryptopulse.maintenance import Maintenance
from cryptopulse.pipeline import Pipeline
from support import Lake, Message, Trade, at, message


def stream(start: int, count: int) -> list[Message]:
    trades = [Trade("BTC-USD", n, at(n * 20.0), str(100 - (n % 3) * 2)) for n in range(start, start + count)]
    return [*(trade.match() for trade in trades), message(f"junk {start}".encode())]


def reference(path: Path, count: int) -> dict[str, list[dict[str, object]]]:
    lake = Lake(path / "reference")
    for start in range(1, count, 5):
        lake.append(stream(start, 5))
    lake.drain()
    lake.close()
    return lake.contents()


class Killed(BaseException):
    """Stands for the end of the process: nothing of the program catches it."""


@pytest.mark.parametrize("table", [SILVER, ALERTS, QUARANTINE, COVERAGE, BARS, STATS], ids=lambda t: t.name)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_before_or_after_any_commit_loses_and_doubles_nothing(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Table, when: str
) -> None:
    lake.take_in(stream(1, 5))
    lake.append(stream(6, 5))
    commit = DeltaHandle._commit

    def killing(self: DeltaHandle, *args: object, **more: object) -> None:
        if self.table is table and when == "before":
            raise Killed
        commit(self, *args, **more)  # type: ignore[arg-type]
        if self.table is table:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(DeltaHandle, "_commit", killing)
        with pytest.raises(Killed):
            lake.drain()
    lake.append(stream(11, 5))
    lake.drain()
    assert lake.contents() == reference(tmp_path, 15)


def test_a_zombie_that_wakes_up_after_a_successor_wrote_can_not_commit(lake: Lake) -> None:
    lake.take_in(stream(1, 5))
    zombie, successor = DeltaHandle(lake.path, SILVER, {}), DeltaHandle(lake.path, SILVER, {})
    rows = lake.arrow(SILVER).slice(0, 1)
    position = zombie.position("bronze/0")
    assert successor.position("bronze/0") == position
    successor.append(rows, {"bronze/0": position + 1})
    for harm in (zombie.append, lambda r, p: zombie.replace(r, None, p)):
        with pytest.raises(Fenced, match="Another pipeline"):
            harm(rows, {"bronze/0": position + 1})
    assert lake.arrow(SILVER).num_rows == 6


_ZOMBIE = """
import sys
from pathlib import Path
from cryptopulse.engine.delta import DeltaHandle
from cryptopulse.lake.tables import BRONZE
handle = DeltaHandle(Path(sys.argv[1]), BRONZE, {})
position = handle.position("log/0")
rows = handle.read("*").slice(0, 1)
print("ready", flush=True)
sys.stdin.readline()
try:
    handle.append(rows, {"log/0": position + 1})
except Exception as error:
    print(type(error).__name__, flush=True)
"""


def test_a_stopped_process_that_is_continued_after_a_take_over_is_fenced(lake: Lake) -> None:
    lake.take_in(stream(1, 5))
    command = [sys.executable, "-c", _ZOMBIE, str(lake.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as zombie:
        assert zombie.stdin is not None
        assert zombie.stdout is not None
        assert zombie.stdout.readline() == "ready\n"
        os.kill(zombie.pid, signal.SIGSTOP)
        lake.take_in(stream(6, 5))
        os.kill(zombie.pid, signal.SIGCONT)
        zombie.stdin.write("go\n")
        zombie.stdin.flush()
        assert zombie.stdout.readline() == "Fenced\n"
    assert len(set(lake.arrow(BRONZE)["offset"].to_pylist())) == lake.arrow(BRONZE).num_rows == 12


def test_compaction_beside_a_writer_loses_nothing(lake: Lake, tmp_path: Path) -> None:
    stop, compacted = threading.Event(), []

    def compact() -> None:
        while not stop.is_set():
            for table in (BRONZE, SILVER, QUARANTINE):
                metrics = lake.delta(table).optimize.compact()
                compacted.append(metrics["numFilesRemoved"])
            time.sleep(0.01)

    lake.take_in(stream(1, 5))
    thread = threading.Thread(target=compact)
    thread.start()
    try:
        for start in range(6, 41, 5):
            lake.take_in(stream(start, 5))
    finally:
        stop.set()
        thread.join()
    assert sum(compacted) > 0
    assert lake.contents() == reference(tmp_path, 40)


def test_a_handle_that_became_slow_is_opened_anew(lake: Lake) -> None:
    opened: list[int] = []
    with Pipeline(lake.settings, lake.log) as pipeline:
        for start in range(1, 140, 5):
            lake.append(stream(start, 5))
            pipeline.step(0)
            opened.append(id(pipeline.engine.handles[SILVER.qualified]._delta))
            assert pipeline.engine.handles[SILVER.qualified]._commits_since_open <= 20
    assert len(set(opened)) > 1


def test_maintenance_keeps_rows_cuts_the_delta_log_and_never_vacuums_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(tmp_path / "lake", maintenance={"compact_commits": 8, "checkpoint_commits": 5})
    vacuums: list[dict[str, object]] = []
    from deltalake import DeltaTable

    vacuum = DeltaTable.vacuum
    monkeypatch.setattr(DeltaTable, "vacuum", lambda self, **how: vacuums.append(how) or vacuum(self, **how))
    with Pipeline(lake.settings, lake.log) as pipeline:
        care = Maintenance(lake.settings.maintenance, pipeline.engine, lake.log)
        for one in care._tables:
            one._vacuumed_at = -1e9
        for start in range(1, 60, 5):
            lake.append(stream(start, 5))
            pipeline.drain(lambda _done, _total: None)
            care.run_due()
    assert len(vacuums) >= len(TABLES) - 2
    assert all(not how.get("full") and int(str(how["retention_hours"])) >= 1 for how in vacuums)
    assert list((lake.folder(SILVER) / "_delta_log").glob("*.checkpoint.parquet"))
    assert len(lake.delta(BRONZE).file_uris()) < 12
    assert lake.contents() == reference(tmp_path, 60)
    lake.take_in(stream(61, 5))
    assert lake.arrow(SILVER).num_rows == 65
    lake.close()


def test_a_restored_table_goes_on_without_doubling_and_a_rebuild_completes_it(lake: Lake, tmp_path: Path) -> None:
    for start in (1, 6):
        lake.take_in(stream(start, 5))
    lake.delta(SILVER).restore(1)
    lake.take_in(stream(11, 5))
    ids = lake.arrow(SILVER)["trade_id"].to_pylist()
    assert len(ids) == len(set(ids))
    assert set(range(11, 16)) < set(ids)
    lake.rebuild()
    assert lake.contents() == reference(tmp_path, 15)


def test_a_rebuild_gives_the_tables_that_live_work_gave(lake: Lake, tmp_path: Path) -> None:
    for start in (1, 6, 11):
        lake.take_in(stream(start, 5))
    before = lake.contents()
    lake.rebuild()
    assert lake.contents() == before == reference(tmp_path, 15)


@pytest.mark.parametrize("kill_at", [1, 3, 5, 6, 8])
def test_a_rebuild_that_was_killed_is_completed_by_the_next_start(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    for start in (1, 6):
        lake.take_in(stream(start, 5))
    before = lake.contents()
    commit, commits = DeltaHandle._commit, []

    def killing(self: DeltaHandle, *args: object, **more: object) -> None:
        commits.append(self.table)
        if len(commits) > kill_at:
            raise Killed
        commit(self, *args, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(DeltaHandle, "_commit", killing)
        with pytest.raises(Killed):
            lake.rebuild()
    lake.drain()
    assert lake.contents() == before


def test_a_second_pipeline_is_refused_in_one_line_that_names_the_first(lake: Lake) -> None:
    with LakeLock(lake.settings.state_dir), pytest.raises(LakeBusy) as told:
        lake.drain()
    assert str(os.getpid()) in str(told.value)
    assert "\n" not in str(told.value)
    lake.drain()
