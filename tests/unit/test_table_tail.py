"""The newest rows of a table: the same from memory and from disk, whatever was asked and however it was written."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import BARS, SILVER
from cryptopulse.store.table_tail import _SMALL_ROWS, TableTail
from cryptopulse.store.table_writer import LOAD, TableWriter
from support import START, micros

KEEP_S = 60


def _trades(load_us: int, trades: Sequence[tuple[int, float]]) -> pa.Table:
    """Silver's rows: (id, seconds after START)."""
    rows = []
    for trade_id, seconds in trades:
        when = START + timedelta(seconds=seconds)
        rows.append(
            {
                "trade_id": trade_id,
                "symbol": "BTC-USD" if trade_id % 2 else "ETH-USD",
                "price": Decimal(100),
                "trade_size": Decimal(1),
                "side": "BUY",
                "event_time": when,
                "ingestion_time": when,
                "load_timestamp": load_us,
                "source": "websocket",
                "event_date": when.date(),
            }
        )
    return pa.Table.from_pylist(rows, schema=SILVER.arrow_schema)


@pytest.fixture
def silver(tmp_path: Path) -> TableWriter:
    return _writer(tmp_path)


def _writer(folder: Path) -> TableWriter:
    writer = TableWriter(LakeLocation.of(folder), SILVER, {})
    writer.take_over(1)
    return writer


def _write(writer: TableWriter, tail: TableTail, trades: Sequence[tuple[int, float]], load_us: int) -> None:
    rows = _trades(load_us, trades)
    writer.append(rows, {LOAD: load_us})
    tail.add(rows, load_us)


def _ids(rows: pa.Table | None) -> list[int]:
    return [] if rows is None else sorted(rows["trade_id"].to_pylist())


SECONDS = st.one_of(st.integers(-100, 100), st.sampled_from([-1_000_000, 86_400, 10_000_000, 100_000_000, 300, 301]))
COMMITS = st.lists(st.lists(SECONDS, min_size=1, max_size=5), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(COMMITS, st.integers(0, 12), st.tuples(SECONDS, SECONDS), st.booleans())
def test_what_memory_answers_is_what_the_table_holds(
    commits: list[list[int]], asked_from: int, stretch: tuple[int, int], is_reopened: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = _writer(Path(folder))
        tail = TableTail(writer, KEEP_S * 1_000_000)
        start_us, written = micros(START), []
        for number, commit in enumerate(commits, 1):
            trades = [(number * 10 + n, seconds) for n, seconds in enumerate(commit)]
            _write(writer, tail, trades, start_us + number)
            written += [(number, *trade) for trade in trades]
            tail.taken_in(start_us + number - 2)
        if is_reopened:
            tail = TableTail(writer, KEEP_S * 1_000_000)
        assert _ids(tail.since(start_us + asked_from)) == [one for number, one, _ in written if number > asked_from]
        first, last = sorted(stretch)
        found = tail.between(start_us + first * 1_000_000, start_us + last * 1_000_000, ["BTC-USD"])
        assert _ids(found) == [one for _, one, at in written if first <= at <= last and one % 2]
        keys = pa.table({"symbol": ["BTC-USD", "ETH-USD"], "trade_id": [11, 20]})
        assert _ids(tail.matching(keys)) == [one for one in (11, 20) if any(one == held for _, held, _ in written)]


def test_what_is_old_and_taken_in_is_forgotten_and_what_is_not_stays(silver: TableWriter) -> None:
    tail = TableTail(silver, KEEP_S * 1_000_000)
    at = micros(START)
    for number in range(100):  # a commit of 500 trades every 10 s
        rows = _trades(at + number * 10_000_000, [(500 * number + n, number * 10.0) for n in range(500)])
        tail.add(rows, at + number * 10_000_000)
    assert _held(tail) == 50_000, "nobody has taken them in"
    tail.taken_in(at + 98 * 10_000_000)
    tail.add(_trades(at + 1_000_000_000, [(50_000, 1000.0)]), at + 1_000_000_000)
    assert 6 * 500 < _held(tail) <= 6 * 500 + 2 * _SMALL_ROWS
    assert len(_ids(tail.since(at + 98 * 10_000_000))) == 501


def test_clocks_that_are_wrong_neither_keep_rows_for_ever_nor_push_others_out(silver: TableWriter) -> None:
    tail = TableTail(silver, KEEP_S * 1_000_000)
    at = micros(START)
    for number in range(200):
        load = at + number * 10_000_000
        right = [(500 * number + n, number * 10.0) for n in range(499)]
        tail.add(_trades(load, [*right, (500 * number + 499, 1e8)]), load)
        tail.taken_in(load)
    assert _held(tail) <= 6 * 500 + 2 * _SMALL_ROWS
    silver.read = _no_reading  # type: ignore[method-assign]
    assert len(_ids(tail.between(at + 1_950_000_000, at + 1_990_000_000))) == 5 * 499


def _no_reading(*_: str) -> pa.Table:
    raise AssertionError("the table was read")


def _held(tail: TableTail) -> int:
    return sum(chunk.rows.num_rows for chunk in (*tail._chunks, *tail._far))


def _bars(load_us: int, *minutes: tuple[int, int]) -> pa.Table:
    """Bars: (minute, trade_count)."""
    columns = {}
    for field in BARS.arrow_schema:
        if field.name == "window_start":
            columns[field.name] = [START + timedelta(minutes=minute) for minute, _ in minutes]
        elif field.name == "window_date":
            columns[field.name] = [START.date() for _ in minutes]
        elif field.name == "trade_count":
            columns[field.name] = [count for _, count in minutes]
        elif field.name == "load_timestamp":
            columns[field.name] = [load_us for _ in minutes]
        else:
            plain = {"string": "BTC-USD", "bool": True, "int64": 1, "double": 1.0}
            columns[field.name] = [plain.get(str(field.type), Decimal(1)) for _ in minutes]
    return pa.table(columns, schema=BARS.arrow_schema)


@pytest.fixture
def bars(tmp_path: Path) -> TableWriter:
    writer = TableWriter(LakeLocation.of(tmp_path), BARS, {})
    writer.take_over(1)
    return writer


def test_of_rows_that_replace_each_other_the_newest_counts(bars: TableWriter) -> None:
    tail = TableTail(bars, 3_600_000_000)
    at = micros(START)
    for load in range(1, 100):
        tail.add(_bars(at + load, (0, load), (load % 7, load)), at + load)
    newest = tail.between(at, at + 60_000_000 * 10)
    counts = dict(zip(newest["window_start"].to_pylist(), newest["trade_count"].to_pylist(), strict=True))
    assert newest.num_rows == 7
    assert counts[START] == 99
    assert tail.since(at + 98).num_rows == 2
