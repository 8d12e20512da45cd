"""Which trades are new, and which ids are held: the short way in front of the statements says what they say."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptopulse.engine.coverage import INTERVALS_SCHEMA, Coverage
from cryptopulse.engine.parse import PARSED_SCHEMA
from cryptopulse.engine.session import SqlSession
from cryptopulse.lake.tables import COVERAGE, SILVER
from support import some

ID_MAX = 2**62
IDS = st.one_of(st.integers(1, 12), st.integers(ID_MAX - 6, ID_MAX))
TRADES = st.lists(st.tuples(st.sampled_from(["BTC-USD", "ETH-USD", "A-B"]), IDS), max_size=30)
SESSION = SqlSession(256, 1)


def _offered(trades: list[tuple[str, int]], first_offset: int) -> pa.Table:
    """Trades in the order of arrival, each in a message of its own; the price tells the copy."""
    rows = [
        {"partition": 0, "offset": first_offset + n, "symbol": symbol, "trade_id": one, "source": "websocket"}
        for n, (symbol, one) in enumerate(trades)
    ]
    schema = pa.schema([field.with_nullable(True) for field in PARSED_SCHEMA])
    return pa.Table.from_pylist(rows, schema=schema)


def _by_statement(offered: pa.Table, coverage: pa.Table) -> list[tuple[str, int]]:
    found = SESSION.derive(SILVER.qualified, {"silver.parsed_trades": offered, COVERAGE.qualified: coverage})
    return sorted(zip(found["symbol"].to_pylist(), found["trade_id"].to_pylist(), strict=True))


@pytest.mark.parametrize("examples", some(1, [30, 500]))
def test_new_trades_and_intervals_are_those_of_the_statements(examples: int) -> None:
    settings(max_examples=examples, deadline=None)(given(st.lists(TRADES, max_size=5))(_assert_as_stated))()


def _assert_as_stated(batches: list[list[tuple[str, int]]]) -> None:
    coverage, stated = Coverage(), INTERVALS_SCHEMA.empty_table()
    for number, trades in enumerate(batches):
        offered = _offered(trades, 100 * number)
        new = offered.take(coverage.new_rows(offered))
        keys = list(zip(new["symbol"].to_pylist(), new["trade_id"].to_pylist(), strict=True))
        assert keys == _by_statement(offered, stated)
        firsts = {key: 100 * number + at for at, key in reversed(list(enumerate(trades)))}
        assert new["offset"].to_pylist() == [firsts[key] for key in keys], "not the first copy"
        coverage.add(new)
        inputs = {SILVER.qualified: new.select(["symbol", "trade_id"]), COVERAGE.qualified: stated}
        stated = SESSION.derive(COVERAGE.qualified, inputs).cast(INTERVALS_SCHEMA)
        assert (
            coverage.table.to_pylist()
            == stated.sort_by([("symbol", "ascending"), ("first_trade_id", "ascending")]).to_pylist()
        )
        assert coverage.count == sum(i["last_trade_id"] - i["first_trade_id"] + 1 for i in stated.to_pylist())


def test_a_hole_that_comes_goes_or_changes_is_counted_and_order_is_not() -> None:
    def after(coverage: Coverage, *ids: int) -> int:
        before = coverage.holes_changed
        coverage.add(pa.table({"symbol": ["BTC-USD"] * len(ids), "trade_id": pa.array(ids, pa.int64())}))
        return coverage.holes_changed - before

    coverage = Coverage()
    assert after(coverage, 10, 11) == 0
    assert after(coverage, 12) == 0
    assert after(coverage, 15) == 1, "a hole came"
    assert after(coverage, 13) == 1, "a hole changed"
    assert after(coverage, 14) == 1, "a hole went"
    assert after(coverage, 5) == 1, "the record begins lower"
    assert after(coverage, 16, 17) == 0
