"""What a power cut leaves of the newest commits is repaired, for each table, with the log as the truth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptopulse.errors import LakeDamaged
from cryptopulse.lake.tables import BRONZE, COVERAGE, QUARANTINE, SILVER, TABLES, Table
from cryptopulse.log.sqlite import SqliteLog
from support import Lake, Message, Trade, at, message

TORN = ["empty", "half a line", "zero-filled", "last line missing", "first line only"]


def _stream(start: int, count: int) -> list[Message]:
    trades = [
        Trade("BTC-USD", n, at(n * 20.0), str(100 - (n % 3) * 2), side="BUY" if n % 2 else "SELL")
        for n in range(start, start + count)
    ]
    return [*(trade.match() for trade in trades), message(f"junk {start}".encode())]


@pytest.fixture
def filled(tmp_path: Path) -> Lake:
    lake = Lake(tmp_path / "lake")
    for start in (1, 6, 11):
        lake.take_in(_stream(start, 5))
    return lake


def _commits(lake: Lake, table: Table) -> list[Path]:
    return sorted((lake.folder(table) / "_delta_log").glob("*.json"))


def _tear(commit: Path, how: str) -> None:
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
    (added,) = [action["add"]["path"] for action in actions if "add" in action]
    return lake.folder(table) / added


def _reference(tmp_path: Path, streams: list[list[Message]]) -> dict[str, list[dict[str, object]]]:
    lake = Lake(tmp_path / "reference")
    for stream in streams:
        lake.append(stream)
    lake.drain()
    lake.close()
    return lake.contents()


def _check(lake: Lake, tmp_path: Path) -> None:
    """Drains, goes on with more, and compares with a lake to which nothing happened."""
    lake.drain()
    streams = [_stream(1, 5), _stream(6, 5), _stream(11, 5)]
    expected = _reference(tmp_path / "before", streams)
    assert lake.contents() == expected
    lake.take_in(_stream(16, 5))
    assert lake.contents() == _reference(tmp_path / "after", [*streams, _stream(16, 5)])
    offsets = lake.arrow(BRONZE)["offset"].to_pylist()
    assert sorted(offsets) == list(range(*lake.log.bounds(0)))
    lake.close()


@pytest.mark.long
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
@pytest.mark.parametrize("how", TORN)
def test_a_torn_newest_commit_costs_nothing(filled: Lake, tmp_path: Path, table: Table, how: str) -> None:
    _tear(_commits(filled, table)[-1], how)
    _check(filled, tmp_path)


@pytest.mark.parametrize("tables", [TABLES[::2], TABLES[1::2]], ids=["even", "odd"])
def test_several_torn_commits_cost_nothing(filled: Lake, tmp_path: Path, tables: tuple[Table, ...]) -> None:
    for table in tables:
        for commit, how in zip(_commits(filled, table)[-2:], ("zero-filled", "empty"), strict=True):
            _tear(commit, how)
    _check(filled, tmp_path)


def _short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _zeros(file: Path) -> None:
    file.write_bytes(b"\0" * file.stat().st_size)


@pytest.mark.long
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
@pytest.mark.parametrize("harm", [_short, _zeros, Path.unlink], ids=["short", "zero-filled", "missing"])
def test_a_torn_data_file_costs_nothing(
    filled: Lake, tmp_path: Path, table: Table, harm: Callable[[Path], None]
) -> None:
    harm(_newest_parquet(filled, table))
    _check(filled, tmp_path)


@pytest.mark.parametrize("harm", [_short, _zeros, Path.unlink], ids=["short", "zero-filled", "missing"])
def test_torn_data_files_of_all_tables_cost_nothing(filled: Lake, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    for table in TABLES:
        harm(_newest_parquet(filled, table))
    _check(filled, tmp_path)


@pytest.mark.parametrize("how", TORN)
def test_every_newest_commit_torn_at_once_costs_nothing(filled: Lake, tmp_path: Path, how: str) -> None:
    for table in TABLES:
        _tear(_commits(filled, table)[-1], how)
    _check(filled, tmp_path)


@pytest.mark.parametrize("how", TORN)
def test_a_compaction_that_was_torn_neither_loses_nor_doubles_rows(filled: Lake, tmp_path: Path, how: str) -> None:
    for table in (BRONZE, SILVER, QUARANTINE):
        filled.delta(table).optimize.compact()
        _tear(_commits(filled, table)[-1], how)
    _check(filled, tmp_path)


def test_tables_torn_at_their_creation_are_made_again(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.drain()
    for table in TABLES:
        _tear(_commits(lake, table)[-1], "zero-filled")
    lake.take_in(_stream(1, 5))
    assert lake.contents() == _reference(tmp_path, [_stream(1, 5)])
    lake.close()


@pytest.mark.parametrize("harm", ["empty", "zero-filled", "short"])
def test_torn_checkpoints_cost_nothing(filled: Lake, tmp_path: Path, harm: str) -> None:
    for table in TABLES:
        filled.delta(table).create_checkpoint()
        (checkpoint,) = (filled.folder(table) / "_delta_log").glob("*.checkpoint.parquet")
        size = checkpoint.stat().st_size
        checkpoint.write_bytes({"empty": b"", "zero-filled": b"\0" * size, "short": checkpoint.read_bytes()[:-9]}[harm])
    _check(filled, tmp_path)


@pytest.mark.parametrize("pointer", [b"", b"\0" * 30, b'{"version":'])
def test_a_torn_pointer_to_a_checkpoint_costs_nothing(filled: Lake, tmp_path: Path, pointer: bytes) -> None:
    filled.delta(SILVER).create_checkpoint()
    (filled.folder(SILVER) / "_delta_log" / "_last_checkpoint").write_bytes(pointer)
    _check(filled, tmp_path)


def test_coverage_that_outlived_silver_does_not_hide_trades(filled: Lake, tmp_path: Path) -> None:
    for commit in _commits(filled, SILVER)[-2:]:
        _tear(commit, "zero-filled")
    assert filled.delta(COVERAGE).to_pyarrow_table()["last_trade_id"].to_pylist() == [15]
    _check(filled, tmp_path)


def test_damage_below_what_the_log_still_holds_is_told_and_nothing_is_taken_off(filled: Lake) -> None:
    """Bronze was synced and the log trimmed: an old file that is torn now is the disk's fault, not a power cut's."""
    small = SqliteLog(filled.settings.log_path, 8)  # so small that no more than the newest batch is kept back
    small.trim(0, small.bounds(0)[1])
    small.close()
    before = _commits(filled, BRONZE)
    _zeros(_newest_of(filled, before[1]))
    for _ in range(2):
        with pytest.raises(LakeDamaged) as told:
            filled.drain()
        assert "\n" not in str(told.value)
        assert "bronze.coinbase_raw_trades" in str(told.value)
        assert _commits(filled, BRONZE) == before
    filled.close()


def _newest_of(lake: Lake, commit: Path) -> Path:
    actions = [json.loads(line) for line in commit.read_text().splitlines()]
    return lake.folder(BRONZE) / next(action["add"]["path"] for action in actions if "add" in action)


def test_a_lake_in_order_is_left_alone_and_opens_fast(filled: Lake) -> None:
    before = {file: file.stat().st_mtime_ns for file in filled.path.rglob("*.json")}
    started = time.monotonic()
    filled.drain()
    assert time.monotonic() - started < 5
    assert {file: file.stat().st_mtime_ns for file in filled.path.rglob("*.json")} == before
    filled.close()
