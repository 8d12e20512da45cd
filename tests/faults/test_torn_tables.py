"""What a power cut leaves of a table is repaired, with the log as the truth; older damage is told with what helps.

Every table is torn here in every way, one at a time and together. `test_crash_points.py` tears at every moment.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
from tally import TALLY
from untouched import copied, filled_in, stream, untouched

from cryptopulse.errors import LakeDamaged
from cryptopulse.lake.tables import BARS, BRONZE, COVERAGE, QUARANTINE, SILVER, TABLES, Table
from cryptopulse.log.sqlite import SqliteLog
from support import Lake, some
from support_processes import Processes

DERIVED = [table for table in TABLES if table is not BRONZE]
TORN = ["empty", "half a line", "zero-filled", "last line missing", "first line only", "missing"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that was filled in three steps; the tests tear copies of it."""
    return filled_in(tmp_path_factory.mktemp("whole"), 15)


@pytest.fixture
def filled(whole: Path, tmp_path: Path) -> Lake:
    return copied(whole, tmp_path)


def _commits(lake: Lake, table: Table) -> list[Path]:
    return sorted((lake.folder(table) / "_delta_log").glob("*.json"))


def _tear(commit: Path, how: str) -> None:
    if how == "missing":
        commit.unlink()
        return
    whole = commit.read_bytes()
    lines = whole.splitlines(keepends=True)
    torn = {
        "empty": b"",
        "half a line": whole[: len(whole) - len(lines[-1]) // 2],
        "zero-filled": b"\0" * len(whole),
        "last line missing": b"".join(lines[:-1]),
        "first line only": lines[0],
    }
    commit.write_bytes(torn[how])


def _newest_parquet(lake: Lake, table: Table) -> Path:
    actions = [json.loads(line) for line in _commits(lake, table)[-1].read_text().splitlines()]
    return lake.folder(table) / next(action["add"]["path"] for action in actions if "add" in action)


def _check(lake: Lake) -> None:
    """Drains, goes on with more, and compares with a lake to which nothing happened."""
    TALLY["torn_lakes"] += 1
    lake.drain()
    assert lake.contents() == untouched(15)
    lake.take_in(stream(16))
    assert lake.contents() == untouched(20)
    offsets = lake.arrow(BRONZE)["offset"].to_pylist()
    assert sorted(offsets) == list(range(lake.log.origin(0), lake.log.bounds(0)[1]))
    lake.close()


@pytest.mark.long
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
@pytest.mark.parametrize("how", TORN)
def test_a_torn_newest_commit_costs_nothing(filled: Lake, table: Table, how: str) -> None:
    _tear(_commits(filled, table)[-1], how)
    _check(filled)


@pytest.mark.parametrize("tables", [TABLES[::2], pytest.param(TABLES[1::2], marks=pytest.mark.long)])
def test_several_torn_commits_cost_nothing(filled: Lake, tables: tuple[Table, ...]) -> None:
    for table in tables:
        for commit, how in zip(_commits(filled, table)[-2:], ("zero-filled", "empty"), strict=True):
            _tear(commit, how)
    _check(filled)


def _short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _zeros(file: Path) -> None:
    file.write_bytes(b"\0" * file.stat().st_size)


@pytest.mark.long
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
@pytest.mark.parametrize("harm", [_short, _zeros, Path.unlink], ids=["short", "zero-filled", "missing"])
def test_a_torn_data_file_costs_nothing(filled: Lake, table: Table, harm: Callable[[Path], None]) -> None:
    harm(_newest_parquet(filled, table))
    _check(filled)


@pytest.mark.parametrize("harm", some(1, [_short, _zeros, Path.unlink]), ids=["short", "zero-filled", "missing"])
def test_torn_data_files_of_all_tables_cost_nothing(filled: Lake, harm: Callable[[Path], None]) -> None:
    for table in TABLES:
        harm(_newest_parquet(filled, table))
    _check(filled)


@pytest.mark.parametrize("how", some(2, TORN))
def test_every_newest_commit_torn_at_once_costs_nothing(filled: Lake, how: str) -> None:
    for table in TABLES:
        _tear(_commits(filled, table)[-1], how)
    _check(filled)


@pytest.mark.parametrize("how", some(2, TORN))
def test_a_compaction_that_was_torn_neither_loses_nor_doubles_rows(filled: Lake, how: str) -> None:
    for table in (BRONZE, SILVER, QUARANTINE):
        filled.delta(table).optimize.compact()
        _tear(_commits(filled, table)[-1], how)
    _check(filled)


@pytest.mark.parametrize("how", some(2, TORN))
def test_tables_torn_at_their_creation_are_made_again(tmp_path: Path, how: str) -> None:
    lake = Lake(tmp_path / "lake")
    lake.drain()
    for table in TABLES:
        created, taken_over = _commits(lake, table)
        taken_over.unlink()
        _tear(created, how)
    lake.take_in(stream(1))
    assert lake.contents() == untouched(5)
    lake.close()


@pytest.mark.parametrize("at_commit", [0, 1, 3], ids=["the first", "a take-over", "one in the middle"])
@pytest.mark.parametrize("turn", some(1, [0, 3]))
def test_every_table_torn_in_a_way_of_its_own_below_sound_commits_costs_nothing(
    filled: Lake, turn: int, at_commit: int
) -> None:
    for number, table in enumerate(TABLES):
        _tear(_commits(filled, table)[at_commit], TORN[(number + turn) % len(TORN)])
    _check(filled)


@pytest.mark.long
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
@pytest.mark.parametrize("at_commit", range(6))
@pytest.mark.parametrize("how", TORN)
def test_a_torn_commit_at_any_place_of_any_table_costs_nothing(
    filled: Lake, table: Table, how: str, at_commit: int
) -> None:
    commits = _commits(filled, table)  # created, and three times taken over and mostly filled
    assert 4 <= len(commits) <= 7
    if at_commit >= len(commits) - 1:
        pytest.skip("the newest commit, which has tests of its own, or none")
    _tear(commits[at_commit], how)
    _check(filled)


@pytest.mark.parametrize("harm", ["empty", "zero-filled", "short"])
def test_torn_checkpoints_cost_nothing(filled: Lake, harm: str) -> None:
    for table in TABLES:
        filled.delta(table).create_checkpoint()
        (checkpoint,) = (filled.folder(table) / "_delta_log").glob("*.checkpoint.parquet")
        size = checkpoint.stat().st_size
        checkpoint.write_bytes({"empty": b"", "zero-filled": b"\0" * size, "short": checkpoint.read_bytes()[:-9]}[harm])
    _check(filled)


@pytest.mark.parametrize("pointer", [b"", b"\0" * 30, b'{"version":'])
def test_a_torn_pointer_to_a_checkpoint_costs_nothing(filled: Lake, pointer: bytes) -> None:
    filled.delta(SILVER).create_checkpoint()
    (filled.folder(SILVER) / "_delta_log" / "_last_checkpoint").write_bytes(pointer)
    _check(filled)


def test_coverage_that_outlived_silver_does_not_hide_trades(filled: Lake) -> None:
    for commit in _commits(filled, SILVER)[-2:]:
        _tear(commit, "zero-filled")
    assert filled.rows(COVERAGE)[0]["last_trade_id"] == 15
    _check(filled)


@pytest.mark.parametrize("table", [SILVER, BARS], ids=lambda table: table.name)
def test_rows_lost_after_the_clock_went_back_are_news_again_downstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    """What is derived again gets new load times: they must lie behind those that the next table has seen."""
    lake = Lake(tmp_path / "lake")
    real = time.time_ns
    for hours, start in enumerate((1, 6, 11)):
        monkeypatch.setattr(time, "time_ns", lambda hours=hours: real() + hours * 3_600 * 10**9)
        lake.take_in(stream(start))
    monkeypatch.setattr(time, "time_ns", real)
    for commit in _commits(lake, table)[-2:]:  # the take-over of the last pipeline, and its rows
        commit.unlink()
    lake.drain()
    assert lake.contents() == untouched(15)


def test_damage_below_what_the_log_still_holds_is_told_and_nothing_is_taken_off(filled: Lake) -> None:
    """Bronze was synced and the log trimmed: an old file that is torn now is the disk's fault, not a power cut's."""
    _trim(filled)
    before = _commits(filled, BRONZE)
    _zeros(_file_of(filled, next(commit for commit in before if '"add"' in commit.read_text())))
    for _ in range(2):
        with pytest.raises(LakeDamaged) as told:
            filled.drain()
        assert "\n" not in str(told.value)
        assert "bronze.coinbase_raw_trades" in str(told.value)
        assert _commits(filled, BRONZE) == before
    filled.close()


def _trim(lake: Lake) -> None:
    small = SqliteLog(lake.settings.log_path, 8)  # so small that no more than the newest batch is kept back
    small.trim(0, small.bounds(0)[1])
    small.close()


def _file_of(lake: Lake, commit: Path) -> Path:
    actions = [json.loads(line) for line in commit.read_text().splitlines()]
    return lake.folder(BRONZE) / next(action["add"]["path"] for action in actions if "add" in action)


def test_a_lake_in_order_is_left_alone_but_for_the_take_over_and_opens_fast(filled: Lake) -> None:
    before = {file: file.stat().st_mtime_ns for file in filled.path.rglob("*.*") if file.parent.name != "_cryptopulse"}
    started = time.process_time()
    filled.drain()
    assert time.process_time() - started < 5
    after = {file: file.stat().st_mtime_ns for file in filled.path.rglob("*.*") if file.parent.name != "_cryptopulse"}
    assert after.items() >= before.items()
    added = after.keys() - before.keys()
    assert len(added) == len(TABLES)
    assert all(":owner" in file.read_text() and '"add"' not in file.read_text() for file in added)
    filled.close()


def test_a_bronze_table_torn_in_its_first_commit_is_left_alone_when_the_log_has_forgotten_messages(
    filled: Lake,
) -> None:
    _trim(filled)
    _tear(_commits(filled, BRONZE)[0], "zero-filled")
    before = _commits(filled, BRONZE)
    with pytest.raises(LakeDamaged, match="nothing was changed"):
        filled.drain()
    assert _commits(filled, BRONZE) == before
    filled.close()


@pytest.fixture(scope="module")
def whole_checkpointed(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with a checkpoint over all that it has, behind which the Delta log is cut; made once."""
    lake = copied(whole, tmp_path_factory.mktemp("checkpointed"))
    lake.take_in(stream(16))
    for table in TABLES:
        lake.delta(table).create_checkpoint()
        for commit in _commits(lake, table)[:-1]:
            commit.unlink()
    lake.close()
    return lake.path


@pytest.fixture
def checkpointed(whole_checkpointed: Path, tmp_path: Path) -> Lake:
    return copied(whole_checkpointed, tmp_path)


def _check_again(lake: Lake) -> None:
    TALLY["torn_lakes"] += 1
    lake.take_in(stream(21))
    assert lake.contents() == untouched(25)
    offsets = sorted(lake.arrow(BRONZE)["offset"].to_pylist())
    assert offsets == list(range(offsets[0], lake.log.bounds(0)[1]))
    lake.close()


def _oldest_live(lake: Lake, table: Table) -> Path:
    files = lake.delta(table).get_add_actions(flatten=True)
    oldest = min(zip(files["modification_time"].to_pylist(), files["path"].to_pylist(), strict=True))
    return lake.folder(table) / unquote(oldest[1])


def _middle(file: Path) -> None:
    """Not what a power cut does, and not to be seen before the file is read."""
    whole = file.read_bytes()
    file.write_bytes(whole[:4] + bytes(len(whole) - 12) + whole[-8:])


def _told(lake: Lake) -> str:
    with pytest.raises(LakeDamaged) as told:
        lake.drain()
    assert "\n" not in str(told.value)
    return str(told.value)


HARMS = {"short": _short, "zero-filled": _zeros, "missing": Path.unlink, "blank inside": _middle}


@pytest.mark.parametrize("table", some(3, DERIVED), ids=lambda table: table.name)
def test_older_damage_of_a_derived_table_is_told_and_a_rebuild_repairs_it(checkpointed: Lake, table: Table) -> None:
    Path.unlink(_oldest_live(checkpointed, table))
    told = _told(checkpointed)
    assert table.qualified in told
    assert f"`cryptopulse rebuild --lake {checkpointed.path}`" in told
    checkpointed.rebuild()
    _check_again(checkpointed)


@pytest.mark.long
@pytest.mark.parametrize("table", DERIVED, ids=lambda table: table.name)
@pytest.mark.parametrize("harm", HARMS)
def test_any_older_damage_of_any_derived_table_is_repaired_by_a_rebuild(
    checkpointed: Lake, table: Table, harm: str
) -> None:
    HARMS[harm](_oldest_live(checkpointed, table))
    checkpointed.rebuild()
    _check_again(checkpointed)


def test_several_derived_tables_damaged_long_ago_are_repaired_by_one_rebuild(
    checkpointed: Lake, tmp_path: Path
) -> None:
    for table, harm in zip(DERIVED, [*HARMS.values(), *HARMS.values()], strict=False):
        harm(_oldest_live(checkpointed, table))
    checkpointed.rebuild()
    _check_again(checkpointed)
    assert len(list(tmp_path.glob("lake/*/*.damaged-*"))) >= 3  # kept, out of the way


def test_a_lost_checkpoint_of_a_derived_table_is_told_and_a_rebuild_repairs_it(checkpointed: Lake) -> None:
    (checkpoint,) = (checkpointed.folder(BARS) / "_delta_log").glob("*.checkpoint.parquet")
    _zeros(checkpoint)
    assert "nothing was changed" in _told(checkpointed)
    assert checkpoint.exists()
    checkpointed.rebuild()
    _check_again(checkpointed)


def test_a_commit_that_is_gone_though_a_checkpoint_has_it_is_told_and_a_rebuild_repairs_it(checkpointed: Lake) -> None:
    """Such a table opens, and takes no commit."""
    (commit,) = _commits(checkpointed, SILVER)
    commit.unlink()
    told = _told(checkpointed)
    assert SILVER.qualified in told
    assert f"`cryptopulse rebuild --lake {checkpointed.path}`" in told
    checkpointed.rebuild()
    _check_again(checkpointed)


@pytest.mark.parametrize("harm", some(2, HARMS))
def test_the_command_that_is_named_repairs_the_lake(checkpointed: Lake, tmp_path: Path, harm: str) -> None:
    """Followed to the letter: each command in backquotes, until one does."""
    HARMS[harm](_oldest_live(checkpointed, SILVER))
    checkpointed.log.close()
    processes = Processes(tmp_path)
    done = processes.call("process", "--once", "--lake", str(checkpointed.path))
    assert done.returncode == 4
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"cryptopulse: Table {SILVER.qualified} ")
    codes = [processes.call(*shlex.split(command)[1:]).returncode for command in re.findall("`([^`]+)`", last)]
    assert codes in ([0], [4, 0])
    _check_again(Lake(checkpointed.path))


def test_a_query_of_a_table_that_a_power_cut_tore_says_what_repairs_it(filled: Lake, tmp_path: Path) -> None:
    trades = len(filled.rows(SILVER))
    for table in TABLES:
        _tear(_commits(filled, table)[-1], "half a line")
    filled.log.close()
    processes = Processes(tmp_path)
    query = ("sql", "SELECT count(*) AS n FROM silver.fact_crypto_trades", "--lake", str(filled.path))
    done = processes.call(*query)
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    repair = re.findall("`([^`]+)`", line)[0]
    assert processes.call(*shlex.split(repair)[1:]).returncode == 0
    done = processes.call(*query)
    assert done.returncode == 0, done.stderr
    assert str(trades) in done.stdout.split()


def test_a_damaged_bronze_table_goes_on_with_a_copy(checkpointed: Lake, tmp_path: Path) -> None:
    _trim(checkpointed)
    shutil.copytree(checkpointed.folder(BRONZE), tmp_path / "copy")
    _zeros(_oldest_live(checkpointed, BRONZE))
    assert f"Restore a copy of {checkpointed.folder(BRONZE)}" in _told(checkpointed)
    shutil.rmtree(checkpointed.folder(BRONZE))
    shutil.copytree(tmp_path / "copy", checkpointed.folder(BRONZE))
    _check_again(checkpointed)


def test_a_damaged_bronze_table_that_is_moved_away_costs_only_what_it_alone_held(
    checkpointed: Lake, tmp_path: Path
) -> None:
    _trim(checkpointed)
    _zeros(_oldest_live(checkpointed, BRONZE))
    assert "or move it away and start again" in _told(checkpointed)
    checkpointed.folder(BRONZE).rename(tmp_path / "away")
    _check_again(checkpointed)
