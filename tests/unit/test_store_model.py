"""A table after any commits, merges and restarts is what a plain list says, and no reader's filter loses a row."""

from __future__ import annotations

import operator
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import hypothesis
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from cryptopulse.lake.dialect import delta_time
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import SILVER
from cryptopulse.store.table_writer import TableWriter
from support import some

DAY = datetime(2026, 7, 7, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
NAMES = SILVER.arrow_schema.names

_ids = st.integers(1, 40) | st.just(2**62)
_times = st.integers(-2, 2).map(lambda days: DAY + days * timedelta(days=1)) | st.builds(
    lambda us: DAY + us * MICROSECOND, st.integers(0, 10**12)
)
_far = st.sampled_from([datetime(1970, 1, 1, tzinfo=UTC), datetime(2199, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)])


@st.composite
def _trades(draw: st.DrawFn) -> dict[str, Any]:
    moment = draw(_times | _far)
    return {
        "trade_id": draw(_ids),
        "symbol": draw(st.sampled_from(["BTC-USD", "ETH-USD", "ÉTH-USD", "A" * 100])),
        "price": Decimal(draw(st.integers(1, 10**24 - 1))).scaleb(-12),
        "trade_size": Decimal(draw(st.integers(1, 10**28 - 1))).scaleb(-12),
        "side": draw(st.sampled_from(["BUY", "SELL"])),
        "event_time": moment,
        "ingestion_time": moment,
        "load_timestamp": draw(_times),
        "source": "websocket",
        "event_date": moment.date(),
    }


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SILVER.arrow_schema)


def _sorted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: [str(row[name]) for name in NAMES])


class TableMachine(RuleBasedStateMachine):
    """Commits to a table, and the same to a list."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self.lake = LakeLocation.of(Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / "lake")
        self.writer = TableWriter(self.lake, SILVER, {})
        self.expected: list[dict[str, Any]] = []
        self.position = -1

    @rule(rows=st.lists(_trades(), max_size=6))
    def append(self, rows: list[dict[str, Any]]) -> None:
        self.position += 1
        self.writer.append(_table(rows), {"bronze/0": self.position})
        self.expected += rows

    @rule(rows=st.lists(_trades(), max_size=4), gone=st.sets(_ids, max_size=20))
    def replace_ids(self, rows: list[dict[str, Any]], gone: set[int]) -> None:
        self.position += 1
        wanted = pa.array(sorted(gone), pa.int64())
        self.writer.replace(
            _table(rows),
            {"bronze/0": self.position},
            is_replaced=lambda held: pc.is_in(held["trade_id"], wanted),
            within={"trade_id": (min(gone), max(gone))} if gone else None,
        )
        self.expected = [row for row in self.expected if row["trade_id"] not in gone] + rows

    @rule(rows=st.lists(_trades(), max_size=4), first=_times, length=st.timedeltas(timedelta(0), timedelta(days=1)))
    def replace_times(self, rows: list[dict[str, Any]], first: datetime, length: timedelta) -> None:
        self.position += 1
        last = first + length

        def lies_within(held: pa.Table) -> pa.Array:
            times = held["event_time"]
            bounds = [pa.scalar(bound, times.type) for bound in (first, last)]
            return pc.and_(pc.greater_equal(times, bounds[0]), pc.less_equal(times, bounds[1]))

        within = {"event_time": (first, last), "event_date": (first.date(), last.date())}
        self.writer.replace(_table(rows), {"bronze/0": self.position}, is_replaced=lies_within, within=within)
        self.expected = [row for row in self.expected if not first <= row["event_time"] <= last] + rows

    @rule(rows=st.lists(_trades(), max_size=4))
    def replace_all(self, rows: list[dict[str, Any]]) -> None:
        self.position += 1
        self.writer.replace(_table(rows), {"bronze/0": self.position})
        self.expected = rows

    @rule(data=st.data())
    def merge(self, data: st.DataObject) -> None:
        files = self.writer.files()
        partitions = sorted({file.partition["event_date"] for file in files})
        if partitions:
            day = data.draw(st.sampled_from(partitions))
            assert self.writer.merge([file for file in files if file.partition["event_date"] == day])

    @rule()
    def compact_by_another_program(self) -> None:
        self._delta().optimize.compact()

    @rule()
    def checkpoint(self) -> None:
        self._delta().create_checkpoint()

    @rule()
    def restart(self) -> None:
        self.writer = TableWriter(self.lake, SILVER, {})
        self.writer.take_over(self.writer.owner + 1)

    @precondition(lambda self: self.position >= 0)
    @invariant()
    def is_what_the_list_says(self) -> None:
        delta = self._delta()
        found = delta.to_pyarrow_table().select(NAMES).cast(SILVER.arrow_schema).to_pylist()
        assert _sorted(found) == _sorted(self.expected)
        assert delta.transaction_version("cryptopulse:silver.fact_crypto_trades:bronze/0") == self.position
        assert self.writer.rows() == len(self.expected)

    def teardown(self) -> None:
        if self.position >= 0 and self.expected:
            found = pl.read_delta(self.lake.table_url(SILVER)).select(NAMES).to_dicts()
            assert _sorted(found) == _sorted(self.expected)
        self._stack.close()

    def _delta(self) -> DeltaTable:
        return DeltaTable(self.lake.table_url(SILVER))


@pytest.mark.parametrize("examples", some(1, [8, 100]))
def test_any_commits_in_any_order_leave_what_a_list_would_hold(examples: int) -> None:
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=12,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(TableMachine, settings=settings)


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _literal(column: str, value: Any) -> str:
    if column in ("price", "trade_size"):
        return f"CAST('{value:f}' AS {'DECIMAL(24,12)' if column == 'price' else 'DECIMAL(28,12)'})"
    if isinstance(value, datetime):
        return delta_time((value - datetime(1970, 1, 1, tzinfo=UTC)) // MICROSECOND)
    return f"DATE '{value}'" if column == "event_date" else str(value) if isinstance(value, int) else f"'{value}'"


@hypothesis.settings(max_examples=5, deadline=None)
@hypothesis.given(st.lists(st.lists(_trades(), min_size=1, max_size=3), min_size=1, max_size=6), st.data())
def test_a_filter_by_any_column_and_operator_loses_no_row(commits: list[list[dict[str, Any]]], data: Any) -> None:
    """Readers pass over files by the statistics in their commits: with exact values and their neighbours as limits."""
    rows = [row for commit in commits for row in commit]
    with tempfile.TemporaryDirectory() as folder:
        writer = TableWriter(LakeLocation.of(Path(folder) / "lake"), SILVER, {})
        for number, commit in enumerate(commits):
            writer.append(_table(commit), {"bronze/0": number})
        delta = DeltaTable(writer.lake.table_url(SILVER))
        for column in NAMES:
            value = data.draw(st.sampled_from([row[column] for row in rows]), label=column)
            if isinstance(value, datetime):
                value += data.draw(st.sampled_from([-1, 0, 1, 999, 1000])) * MICROSECOND
            for sign, holds in _OPERATORS.items():
                expected = sum(holds(row[column], value) for row in rows)
                told = f"{column} {sign} {value!r}"
                assert (
                    writer.read("count(*) AS n", f"{column} {sign} {_literal(column, value)}")["n"][0].as_py()
                    == expected
                ), told
                if column not in ("price", "trade_size"):  # pyarrow's filters compare decimals of one width only
                    sign_there = {"=": "==", "<>": "!="}.get(sign, sign)
                    found = delta.to_pyarrow_table(columns=["trade_id"], filters=[(column, sign_there, value)])
                    assert found.num_rows == expected, told
