"""The traps of Delta on a local disk, each with what keeps us out of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest
from structlog.testing import capture_logs
from untouched import copied, filled_in, stream, untouched

from cryptopulse.errors import Fenced, LakeBusy
from cryptopulse.lake.lock import LakeLock
from cryptopulse.lake.tables import ALERTS, BARS, BRONZE, QUARANTINE, SILVER, TABLES, Table
from cryptopulse.pipeline import Pipeline
from cryptopulse.store.maintenance import Maintenance
from cryptopulse.store.replaced_files import ReplacedFiles
from cryptopulse.store.table_writer import TOMBSTONES, TableWriter
from support import Lake, Trade, at, some


class Killed(BaseException):
    """Stands for the end of the process: nothing of the program catches it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that was filled in two steps; the tests work on copies of it."""
    return filled_in(tmp_path_factory.mktemp("whole"), 10)


@pytest.fixture
def filled(whole: Path, tmp_path: Path) -> Iterator[Lake]:
    lake = copied(whole, tmp_path)
    yield lake
    lake.close()


@pytest.mark.parametrize("table", some(3, TABLES[1:]), ids=lambda t: t.name)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_before_or_after_any_commit_loses_and_doubles_nothing(
    filled: Lake, monkeypatch: pytest.MonkeyPatch, table: Table, when: str
) -> None:
    filled.append(stream(11))
    commit = TableWriter._commit

    def killing(self: TableWriter, *args: object, **more: object) -> bool:
        if self.table is table and when == "before":
            raise Killed
        is_done = commit(self, *args, **more)  # type: ignore[arg-type]
        if self.table is table:
            raise Killed
        return is_done

    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, "_commit", killing)
        with pytest.raises(Killed):
            filled.drain()
    filled.append(stream(16))
    filled.drain()
    assert filled.contents() == untouched(20)


def test_a_zombie_that_wakes_up_after_a_successor_wrote_can_not_commit(lake: Lake) -> None:
    lake.take_in(stream(1))
    zombie, successor = (TableWriter(lake.settings.location, SILVER, {}) for _ in range(2))
    rows = lake.arrow(SILVER).slice(0, 1)
    position = zombie.position("bronze/0")
    assert successor.position("bronze/0") == position
    successor.append(rows, {"bronze/0": position + 1})
    for harm in (zombie.append, zombie.replace):
        with pytest.raises(Fenced, match="Another pipeline"):
            harm(rows, {"bronze/0": position + 1})
    assert lake.arrow(SILVER).num_rows == 11


_ZOMBIE = """
import sys
from cryptopulse.store.table_writer import TOMBSTONES, TableWriter
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import BRONZE
writer = TableWriter(LakeLocation.of(sys.argv[1]), BRONZE, {})
position = writer.position("log/0")
rows = writer.read("*").slice(0, 1)
print("ready", flush=True)
sys.stdin.readline()
try:
    writer.append(rows, {"log/0": position + 1})
except Exception as error:
    print(type(error).__name__, flush=True)
"""


def test_a_stopped_process_that_is_continued_after_a_take_over_is_fenced(lake: Lake) -> None:
    lake.take_in(stream(1))
    command = [sys.executable, "-c", _ZOMBIE, str(lake.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as zombie:
        assert zombie.stdin is not None
        assert zombie.stdout is not None
        assert zombie.stdout.readline() == "ready\n"
        os.kill(zombie.pid, signal.SIGSTOP)
        lake.take_in(stream(6))
        os.kill(zombie.pid, signal.SIGCONT)
        zombie.stdin.write("go\n")
        zombie.stdin.flush()
        assert zombie.stdout.readline() == "Fenced\n"
    assert len(set(lake.arrow(BRONZE)["offset"].to_pylist())) == lake.arrow(BRONZE).num_rows == 14


def test_compaction_beside_a_writer_loses_nothing(lake: Lake) -> None:
    stop, compacted = threading.Event(), []

    def compact() -> None:
        while not stop.is_set():
            for table in (BRONZE, SILVER, QUARANTINE):
                metrics = lake.delta(table).optimize.compact()
                compacted.append(metrics["numFilesRemoved"])
            time.sleep(0.01)

    lake.take_in(stream(1))
    thread = threading.Thread(target=compact)
    thread.start()
    try:
        for start in range(6, 41, 5):
            lake.take_in(stream(start))
    finally:
        stop.set()
        thread.join()
    assert sum(compacted) > 0
    assert lake.contents() == untouched(40)


def test_maintenance_keeps_rows_cuts_the_delta_log_and_never_vacuums_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake(tmp_path / "lake", maintenance={"compact_commits": 8, "checkpoint_commits": 5})
    vacuums: list[dict[str, object]] = []
    from deltalake import DeltaTable

    vacuum = DeltaTable.vacuum
    monkeypatch.setattr(DeltaTable, "vacuum", lambda self, **how: vacuums.append(how) or vacuum(self, **how))
    with Pipeline(lake.settings, lake.log) as pipeline:
        care = Maintenance(lake.settings.maintenance, lake.settings.state_dir, pipeline.engine, lake.log)
        for table in TABLES:
            os.utime(lake.settings.state_dir / "replaced" / table.qualified / "swept", (0, 0))
        for start in range(1, 60, 5):
            lake.append(stream(start))
            pipeline.drain(lambda _done, _total: None)
            care.run_due()
    assert len(vacuums) >= len(TABLES) - 2
    assert all(how["dry_run"] and int(str(how["retention_hours"])) >= 24 for how in vacuums)
    assert list((lake.folder(SILVER) / "_delta_log").glob("*.checkpoint.parquet"))
    assert len(lake.delta(BRONZE).file_uris()) < 12
    assert lake.contents() == untouched(60)
    lake.take_in(stream(61))
    assert lake.arrow(SILVER).num_rows == 130
    lake.close()


_DAYS = """
import ctypes, sys
from contextlib import closing
from pathlib import Path

import crash_scenarios as scenarios
from cryptopulse.pipeline import Pipeline

folder = Path(sys.argv[1])
ctypes.CDLL(None).interposer_record(bytes(folder), b"/dev/null")
scenarios.live(folder)  # two hours pass after each batch
ctypes.CDLL(None).interposer_shift_clock(24 * 3_600)
with closing(scenarios.lake_in(folder)) as lake, Pipeline(lake.settings, lake.log) as pipeline:
    for care in pipeline.maintenance._tables:
        care._checkpoint()
"""


def test_of_replaced_files_none_outlives_its_retention_though_checkpoints_forget_them(
    interposer: Path, tmp_path: Path
) -> None:
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"LD_PRELOAD": str(interposer), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", _DAYS, str(tmp_path)], env=environment, check=False)
    assert done.returncode == 0
    lake = Lake(tmp_path / "lake")
    for table in TABLES:
        on_disk = {file.name for file in lake.folder(table).rglob("*.parquet") if "_delta_log" not in file.parts}
        assert on_disk == {Path(uri).name for uri in lake.delta(table).file_uris()}, table
    lake.close()


def test_a_replaced_file_stays_for_the_retention_and_goes_with_the_first_checkpoint_after_it(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_disk() -> set[str]:
        return {file.name for file in lake.folder(BARS).rglob("part-*.parquet")}

    def live() -> set[str]:
        return {Path(uri).name for uri in lake.delta(BARS).file_uris()}

    for start in (1, 6, 11):
        lake.take_in(stream(start))  # a pipeline each, as after two restarts
    replaced = on_disk() - live()
    assert replaced
    now = time.time()
    for hours, gone in ((0.5, set()), (0.99, set()), (1.2, replaced)):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + hours * 3600)
        before = on_disk()
        with Pipeline(lake.settings, lake.log) as pipeline:
            next(care for care in pipeline.maintenance._tables if care.table is BARS)._checkpoint()
        assert before - on_disk() == gone
    assert on_disk() == live()
    assert lake.contents() == untouched(15)


def test_a_kill_forgets_only_files_that_were_replaced_since_maintenance_ran_last(lake: Lake) -> None:
    notes = ReplacedFiles(lake.settings.state_dir / "replaced" / BARS.qualified, 3_600)
    lake.take_in(stream(1))
    before = {Path(uri).name for uri in lake.delta(BARS).file_uris()}
    lake.append(stream(6))
    with Pipeline(lake.settings, lake.log) as pipeline:
        pipeline.drain(lambda _done, _total: None)
        pipeline.maintenance.run_due()
        replaced = before - {Path(uri).name for uri in lake.delta(BARS).file_uris()}
        assert replaced  # and noted, though the pipeline has not ended
        assert replaced <= {Path(name).name for name in notes.all()}


def test_a_replaced_file_that_an_older_version_made_live_again_is_kept(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.take_in(stream(1))
    version = lake.delta(BARS).version()
    lake.take_in(stream(6))
    lake.delta(BARS).restore(version)
    expected = lake.arrow(BARS)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * 3600)
    with Pipeline(lake.settings, lake.log) as pipeline:
        next(care for care in pipeline.maintenance._tables if care.table is BARS)._checkpoint()
    assert lake.arrow(BARS).equals(expected)


def test_checkpoints_leave_out_notes_on_removed_files_that_are_old(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.take_in(stream(1))
    lake.delta(BARS).alter.set_table_properties({TOMBSTONES: "interval 9000 seconds"})  # of version 0.1
    lake.delta(ALERTS).alter.set_table_properties({TOMBSTONES: "interval 30 days"})  # somebody's wish
    lake.take_in(stream(6))
    lake.close()
    assert lake.delta(BARS).metadata().configuration[TOMBSTONES] == "interval 60 seconds"
    assert lake.delta(ALERTS).metadata().configuration[TOMBSTONES] == "interval 30 days"


def test_a_restored_table_goes_on_without_doubling_and_a_rebuild_completes_it(lake: Lake) -> None:
    versions = []
    for start in (1, 6):
        lake.take_in(stream(start))
        versions.append(lake.delta(SILVER).version())
    lake.delta(SILVER).restore(versions[0])
    lake.take_in(stream(11))
    ids = lake.arrow(SILVER)["trade_id"].to_pylist()
    assert len(ids) == len(set(ids))
    assert set(range(11, 16)) < set(ids)
    lake.rebuild()
    assert lake.contents() == untouched(15)


def test_a_rebuild_gives_the_tables_that_live_work_gave(filled: Lake) -> None:
    before = filled.contents()
    filled.rebuild()
    assert filled.contents() == before == untouched(10)


@pytest.mark.parametrize("kill_at", some(2, [3, 8, 1, 5, 7, 10]))
def test_a_rebuild_that_was_killed_is_completed_by_the_next_start(
    filled: Lake, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    before = filled.contents()
    commit, commits = TableWriter._commit, []

    def killing(self: TableWriter, *args: object, **more: object) -> bool:
        commits.append(self.table)
        if len(commits) > kill_at:
            raise Killed
        return commit(self, *args, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TableWriter, "_commit", killing)
        with pytest.raises(Killed):
            filled.rebuild()
    filled.drain()
    assert filled.contents() == before


def test_a_second_pipeline_is_refused_in_one_line_that_names_the_first(lake: Lake) -> None:
    with LakeLock(lake.settings.state_dir, lake.settings.lake), pytest.raises(LakeBusy) as told:
        lake.drain()
    assert str(os.getpid()) in str(told.value)
    assert "\n" not in str(told.value)
    lake.drain()


def test_maintenance_that_can_not_read_its_own_notes_says_so_and_the_pipeline_goes_on(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", maintenance={"checkpoint_commits": 5})
    with Pipeline(lake.settings, lake.log) as pipeline:
        rmtree(lake.settings.state_dir / "replaced")
        with capture_logs() as lines:
            for part in range(8):
                lake.append([Trade("BTC-USD", part + 1, at(part)).match()])
                pipeline.drain(lambda _done, _total: None)
            pipeline.maintenance.run_due()
    lake.close()
    assert {line["event"] for line in lines if line["log_level"] == "warning"} >= {"maintenance_failed"}
    assert len(lake.rows(SILVER)) == 8
