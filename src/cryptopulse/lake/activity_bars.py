"""Bars that end by what was traded instead of by the clock: by trades, volume, value, imbalance, or range of the price.

A bar ends with the trade that reaches its size; the next trade begins the next bar (M. López de Prado, "Advances in
Financial Machine Learning", 2018, chapter 2). The first trade of a UTC day begins a bar as well, so bars depend on the
trades of their day alone. Trades are taken in the order of their ids. Amounts are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Context, Decimal, InvalidOperation
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.files import DAY_US
from cryptopulse.lake.grains import COLUMNS as TIME_BAR_COLUMNS
from cryptopulse.lake.tables import BARS, Column, Table

Measure = Literal["trades", "volume", "notional", "trade_imbalance", "volume_imbalance", "range"]
"""trades: their number. volume, notional: what they sum to. trade_imbalance, volume_imbalance: by how many trades, and
by what volume, buying and selling takers differ. range: highest minus lowest price."""

MEASURES: tuple[Measure, ...] = get_args(Measure)
_COUNTED = ("trades", "trade_imbalance")
_SCALE = 12  # of all decimals here
_LOW = 2**64 - 1
_SIZE_END = Decimal(10) ** 24
_CHECKED_BARS = 1_000  # some 10 ms
_EXACT = Context(prec=60)

_OWN = (
    Column("window_start", "TIMESTAMP", "Time of the first trade (UTC)."),
    Column("window_end", "TIMESTAMP", "Time of the last trade (UTC), included."),
    Column("is_closed", "BOOLEAN", "False for a day's last bar if it has not reached its size."),
    Column("is_complete", "BOOLEAN", "True when closed and every id of the day so far, and the one before, is held."),
)
_OTHERS = tuple(
    column
    for column in BARS.columns
    if column.name in TIME_BAR_COLUMNS and column.name not in {own.name for own in _OWN}
)
ACTIVITY_BARS = Table(
    schema="gold",
    name="activity_bars",
    comment="One bar of one product; made when it is read.",
    columns=(_OTHERS[0], *_OWN[:2], *_OTHERS[1:], *_OWN[2:]),
    key=("symbol", "first_trade_id"),
    time="window_start",
)
"""What a bar has; there is no stored table of this name."""

TRADE_COLUMNS = ("symbol", "trade_id", "price", "trade_size", "side", "event_time", "source")

_Units = npt.NDArray[Any]
"""Amounts in units of 1e-12: int64 if they fit, else Python's integers."""


@dataclass(frozen=True)
class BarSize:
    """When a bar ends: once `measure` reaches `size`."""

    measure: Measure
    size: Decimal

    @classmethod
    def of(cls, measure: object, size: object) -> BarSize:
        """Raises ConfigurationError for an unknown measure, and for a size that it can't have."""
        if measure not in MEASURES:
            raise ConfigurationError(f"by={measure!r}: write one of {', '.join(MEASURES)}.")
        try:
            number = Decimal(str(size))
        except InvalidOperation:
            number = Decimal(0)
        places = 0 if measure in _COUNTED else _SCALE
        is_in_bounds = number.is_finite() and 0 < number < _SIZE_END
        if not is_in_bounds or (units := _EXACT.scaleb(number, places)) != units.to_integral_value():
            kind = "a whole number" if measure in _COUNTED else f"a number with at most {_SCALE} decimals"
            raise ConfigurationError(f"size={size!r}: bars by {measure} take {kind} above 0.")
        return cls(measure, number)


def streamed_activity_bars(
    batches: Iterable[pa.RecordBatch],
    coverage: pa.Table,
    size: BarSize,
    check_time: Callable[[], None] = lambda: None,
) -> Iterator[pa.Table]:
    """`activity_bars` of trades in `batches`, which may cut days and bars. Holds a batch and the trades of one bar."""
    rest = None  # the trades of a bar that may go on
    day: tuple[str, int] | None = None
    day_first_id = 0
    for batch in filter(len, batches):
        trades = pa.Table.from_batches([batch])
        trades = trades if rest is None else pa.concat_tables([rest, trades])
        bars = activity_bars(trades, coverage, size, check_time, day_first_id if _day(trades, 0) == day else None)
        is_closed, length = bars["is_closed"][-1].as_py(), bars["trade_count"][-1].as_py()
        rest = None if is_closed else trades.slice(trades.num_rows - length)
        if (last := _day(trades, -1)) != day:
            day = last
            is_of_day = pc.and_(
                pc.equal(trades["symbol"], day[0]),
                pc.greater_equal(trades["event_time"].cast(pa.int64()), day[1] * DAY_US),
            )
            day_first_id = trades["trade_id"][pc.index(is_of_day, True).as_py()].as_py()
        yield bars if is_closed else bars.slice(0, bars.num_rows - 1)
    if rest is not None:
        yield activity_bars(rest, coverage, size, check_time, day_first_id)


def _day(trades: pa.Table, place: int) -> tuple[str, int]:
    """Product of a trade, and its UTC day since 1970."""
    return trades["symbol"][place].as_py(), trades["event_time"][place].cast(pa.int64()).as_py() // DAY_US


def activity_bars(
    trades: pa.Table,
    coverage: pa.Table,
    size: BarSize,
    check_time: Callable[[], None] = lambda: None,
    day_first_id: int | None = None,
) -> pa.Table:
    """Trades → bars (the columns of ACTIVITY_BARS), in the order of the trades.

    `trades`: TRADE_COLUMNS and `notional`, price times size as DECIMAL(38, 12); all trades of each product and UTC day,
    ordered by product, day and id. `coverage`: silver.trade_id_coverage of these products. `check_time` is called now
    and then, and may raise. `day_first_id`: if the trades begin within a day, the first id of that day.
    """
    if trades.num_rows == 0:
        return ACTIVITY_BARS.empty
    symbols = pc.dictionary_encode(trades["symbol"].combine_chunks())
    us, ids = trades["event_time"].cast(pa.int64()).to_numpy(), trades["trade_id"].to_numpy()
    is_buy = pc.equal(trades["side"], "BUY").to_numpy()
    prices, sizes, notionals = (_units(trades[name]) for name in ("price", "trade_size", "notional"))
    products = symbols.indices.to_numpy()
    days = np.concatenate([[0], np.flatnonzero(np.diff(products) | np.diff(us // DAY_US)) + 1, [len(us)]])

    amounts: _Units = np.ones(len(us), np.int64)
    if size.measure in ("volume", "volume_imbalance"):
        amounts = sizes
    elif size.measure == "notional":
        amounts = notionals
    if size.measure.endswith("imbalance"):
        amounts = np.where(is_buy, amounts, -amounts)
    reached = int(size.size if size.measure in _COUNTED else _EXACT.scaleb(size.size, _SCALE))
    held = _intervals(coverage)

    starts: list[npt.NDArray[np.int64]] = []
    is_closed: list[npt.NDArray[np.bool_]] = []
    held_to: list[npt.NDArray[np.int64]] = []
    for first, end in zip(days[:-1].tolist(), days[1:].tolist(), strict=True):
        measured = _spans(prices[first:end]) if size.measure == "range" else _sums(amounts[first:end])
        ends = _ends(end - first, reached, measured, check_time)
        is_open = not ends or ends[-1] < end - first
        bars = np.array([0, *ends][: len(ends) + is_open], np.int64)
        starts.append(first + bars)
        is_closed.append(np.arange(len(bars)) < len(ends))
        first_id = int(ids[first]) if first or day_first_id is None else day_first_id
        # Up to which id all are held from the one before the day's first on; -1 if that is not held itself.
        of_product = held.get(symbols.dictionary[products[first]].as_py(), ())
        reach = max((end_id for begin_id, end_id in of_product if begin_id < first_id <= end_id + 1), default=-1)
        held_to.append(np.full(len(bars), reach))
    at, closed = np.concatenate(starts), np.concatenate(is_closed)
    last = np.concatenate([at[1:], [len(us)]]) - 1

    volumes, values = _summed(sizes, at), _summed(notionals, at)
    bought = _summed(np.where(is_buy, sizes, 0), at)
    found = {
        "symbol": pc.take(trades["symbol"], pa.array(at)),
        "window_start": _times(us[at]),
        "window_end": _times(us[last]),
        "open": prices[at],
        "high": np.maximum.reduceat(prices, at),
        "low": np.minimum.reduceat(prices, at),
        "close": prices[last],
        "volume": volumes,
        "notional": values,
        "vwap": pa.array(values.astype(float) / volumes.astype(float)),
        "buy_volume": bought,
        "sell_volume": volumes - bought,
        "trade_count": pa.array(last - at + 1),
        "buy_count": pa.array(np.add.reduceat(is_buy.astype(np.int64), at)),
        "rest_count": pa.array(np.add.reduceat(pc.equal(trades["source"], "rest").to_numpy().astype(np.int64), at)),
        "price_sum": _summed(prices, at),
        "first_trade_id": pa.array(ids[at]),
        "last_trade_id": pa.array(ids[last]),
        "is_closed": pa.array(closed),
        "is_complete": pa.array(closed & (ids[last] <= np.concatenate(held_to))),
    }
    schema = ACTIVITY_BARS.arrow_schema
    columns = [
        _decimals(found[field.name], field.type) if pa.types.is_decimal(field.type) else found[field.name]
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _ends(count: int, size: int, measured: Callable[[int, int], _Units], check_time: Callable[[], None]) -> list[int]:
    """Where bars of a day with `count` trades end (not included). `measured(start, stop)`: how far a bar that begins at
    `start` has got with each of its trades before `stop`.
    """
    ends: list[int] = []
    start, width = 0, 256
    while start < count:
        if len(ends) % _CHECKED_BARS == 0:
            check_time()
        stop = min(start + width, count)
        is_reached = measured(start, stop) >= size
        place = int(is_reached.argmax())
        if is_reached[place]:
            start += place + 1
            ends.append(start)
            width = 2 * place + 16
        elif stop == count:
            break
        else:
            width *= 4
    return ends


def _sums(amounts: _Units) -> Callable[[int, int], _Units]:
    is_small = amounts.dtype != object and np.abs(amounts).sum(dtype=float) < 2.0**62
    totals = np.cumsum(amounts if is_small else amounts.astype(object))
    return lambda start, stop: np.abs(totals[start:stop] - (totals[start - 1] if start else 0))


def _spans(prices: _Units) -> Callable[[int, int], _Units]:
    def measured(start: int, stop: int) -> _Units:
        part = prices[start:stop]
        spans: _Units = np.maximum.accumulate(part) - np.minimum.accumulate(part)
        return spans

    return measured


def _intervals(coverage: pa.Table) -> dict[str, list[tuple[int, int]]]:
    """Product → its intervals of ids held."""
    found: dict[str, list[tuple[int, int]]] = {}
    names = ("symbol", "first_trade_id", "last_trade_id")
    for symbol, first, last in zip(*(coverage[name].to_pylist() for name in names), strict=True):
        found.setdefault(symbol, []).append((first, last))
    return found


def _units(column: pa.ChunkedArray) -> _Units:
    array = column.combine_chunks()
    halves = np.frombuffer(array.buffers()[1], np.int64).reshape(-1, 2)[array.offset : array.offset + len(array)]
    low, high = halves[:, 0], halves[:, 1]
    if not high.any() and (low >= 0).all():
        return low
    wide: _Units = low.view(np.uint64).astype(object) + (high.astype(object) << 64)
    return wide


def _summed(units: _Units, at: npt.NDArray[np.int64]) -> _Units:
    """The exact sums, as Python's integers, of the parts that begin `at`."""
    if units.dtype == object:
        found: _Units = np.add.reduceat(units, at)
    else:  # halves, whose sums fit 64 bits
        found = np.add.reduceat(units >> 32, at).astype(object) << 32
        found += np.add.reduceat(units & (2**32 - 1), at)
    return found


def _decimals(units: _Units, kind: pa.DataType) -> pa.Array:
    halves = np.empty((len(units), 2), np.int64)
    if units.dtype == object:
        halves[:, 0] = (units & _LOW).astype(np.uint64).view(np.int64)
        halves[:, 1] = (units >> 64).astype(np.int64)
    else:
        halves[:, 0], halves[:, 1] = units, units >> 63
    return pa.Array.from_buffers(kind, len(units), [None, pa.py_buffer(halves)])


def _times(us: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(us).cast(ACTIVITY_BARS.arrow_schema.field("window_start").type)
