"""The value of a trade as the engine works it out is the one that the statements say."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Context, Decimal

import duckdb
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from cryptopulse.engine.trade_values import VALUE_SQL, rounded_products
from cryptopulse.lake.tables import PRICE, SIZE, TRADE_VALUE_END, arrow_type

_UNIT = Decimal("1e-12")
_EXACT = Context(prec=60, rounding=ROUND_HALF_UP)
_PRICE_TYPE, _SIZE_TYPE = arrow_type(PRICE), arrow_type(SIZE)


def units(digits: int) -> st.SearchStrategy[Decimal]:
    """Numbers above 0 of up to so many digits, in units."""
    return st.integers(1, digits).flatmap(lambda n: st.integers(1, 10**n - 1)).map(lambda n: n * _UNIT)


@given(st.lists(st.tuples(units(24), units(28)).filter(lambda pair: pair[0] * pair[1] < TRADE_VALUE_END)))
def test_a_product_is_rounded_as_the_statement_rounds_it(pairs: list[tuple[Decimal, Decimal]]) -> None:
    prices = pa.array([price for price, _ in pairs], _PRICE_TYPE)
    sizes = pa.array([size for _, size in pairs], _SIZE_TYPE)
    found = rounded_products(prices, sizes)
    assert found.to_pylist() == [_EXACT.multiply(price, size).quantize(_UNIT, context=_EXACT) for price, size in pairs]
    trades = pa.table({"price": prices, "trade_size": sizes})
    stated = duckdb.from_arrow(trades).project(VALUE_SQL)
    assert found.to_pylist() == [value for (value,) in stated.fetchall()]


def test_halves_are_rounded_up_and_slices_keep_their_place() -> None:
    sizes = pa.array([_UNIT, _UNIT, 3 * _UNIT, 999_999_999_999 * _UNIT], _SIZE_TYPE)
    prices = pa.array([Decimal("0.5"), Decimal("0.499999999999"), Decimal("0.5"), Decimal("1e6")], _PRICE_TYPE)
    wanted = [1 * _UNIT, 0 * _UNIT, 2 * _UNIT, Decimal("999999.999999")]
    assert rounded_products(prices, sizes).to_pylist() == wanted
    assert rounded_products(prices[1:3], sizes[1:3]).to_pylist() == wanted[1:3]
    assert len(rounded_products(prices[:0], sizes[:0])) == 0
