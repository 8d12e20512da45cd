"""The trade ids that silver holds, as closed intervals per product. Trades are deduplicated by id here.

Ids are dense within a product, so all of history is a few intervals. They tell new trades from repeated ones and show
the holes that healing closes. Spark's driver uses them as well. There `silver.fact_crypto_trades.sql` leaves out ids
that repeat, and `silver.trade_id_coverage.sql` makes the intervals at a start; tests compare both with these.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.intervals import Intervals, runs

INTERVALS_SCHEMA = pa.schema([("symbol", pa.string()), ("first_trade_id", pa.int64()), ("last_trade_id", pa.int64())])


class Coverage:
    """The intervals of ids held. One thread changes them, any thread may read them."""

    def __init__(self) -> None:
        """Starts empty."""
        self._held: dict[str, Intervals] = {}
        self._table: pa.Table | None = None
        self._lock = threading.Lock()
        self.holes_changed = 0
        """Grows when a hole appears, changes or closes. Read it before the intervals, so that no change is missed."""

    def new_rows(self, offered: pa.Table) -> pa.Array:
        """Which of the `offered` trades (symbol, trade_id; in the order of arrival) are not held yet.

        Returns their row numbers, sorted by product and id; for several copies of a trade only the first.
        """
        order, starts, symbols, ids = _by_product(offered)
        is_new = np.ones(len(order), dtype=bool)
        is_new[1:] = ids[1:] != ids[:-1]
        is_new[starts[:-1]] = True
        for symbol, start, end in zip(symbols, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            held = self._held.get(symbol)
            if held is None or ids[start] > held.highest:
                continue
            firsts, lasts = held.arrays()
            at = np.searchsorted(firsts, ids[start:end], side="right") - 1
            is_new[start:end] &= (at < 0) | (ids[start:end] > lasts[np.maximum(at, 0)])
        return pa.array(order[is_new])

    def add(self, trades: pa.Table) -> None:
        """Adds the ids of trades (symbol, trade_id), in any order."""
        if trades.num_rows == 0:
            return
        _, starts, symbols, ids = _by_product(trades)
        with self._lock:
            for symbol, start, end in zip(symbols, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
                first, last = int(ids[start]), int(ids[end - 1])
                if last - first == end - start - 1:
                    self._add(symbol, first, last)
                else:
                    for low, high in runs(np.unique(ids[start:end]).tolist()):
                        self._add(symbol, low, high)
            self._table = None

    def add_intervals(self, intervals: pa.Table) -> None:
        """Adds intervals (INTERVALS_SCHEMA), in any order."""
        with self._lock:
            for symbol, first, last in _rows(intervals):
                self._add(symbol, first, last)
            self._table = None

    @property
    def table(self) -> pa.Table:
        """The intervals (INTERVALS_SCHEMA), merged, sorted by product and id."""
        with self._lock:
            if self._table is None:
                found = [(symbol, *interval) for symbol in sorted(self._held) for interval in self._held[symbol]]
                columns = zip(*found, strict=True) if found else ([], [], [])
                arrays = [pa.array(c, f.type) for c, f in zip(columns, INTERVALS_SCHEMA, strict=True)]
                self._table = pa.table(arrays, schema=INTERVALS_SCHEMA)
            return self._table

    @property
    def count(self) -> int:
        """How many ids are held."""
        with self._lock:
            return sum(held.count for held in self._held.values())

    def _add(self, symbol: str, first: int, last: int) -> None:
        held = self._held.get(symbol)
        if held is None:
            self._held[symbol] = Intervals([(first, last)])
            return
        self.holes_changed += first != held.highest + 1  # the next id extends an interval and changes no hole
        held.add(first, last)


def id_spans(trades: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Splits new `trades`: (symbol, first, last) for products without a gap, (symbol, trade_id) for the others."""
    found = trades.group_by("symbol").aggregate([("trade_id", "min"), ("trade_id", "max"), ("trade_id", "count")])
    found = found.select(["symbol", "trade_id_min", "trade_id_max", "trade_id_count"])
    width = pc.add(pc.subtract(found["trade_id_max"], found["trade_id_min"]), 1)
    is_dense = pc.equal(width, found["trade_id_count"])
    dense = found.filter(is_dense).select([0, 1, 2]).rename_columns(["symbol", "first", "last"])
    gappy = found.filter(pc.invert(is_dense))["symbol"]
    ids = trades.select(["symbol", "trade_id"])
    return dense, ids.filter(pc.is_in(ids["symbol"], gappy.combine_chunks())) if len(gappy) else ids.slice(0, 0)


def _by_product(
    trades: pa.Table,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[str], npt.NDArray[np.int64]]:
    """Row numbers sorted by product and id, where each product starts (and the end), the products, the sorted ids."""
    encoded = pc.dictionary_encode(trades["symbol"].combine_chunks())
    names: list[str] = encoded.dictionary.to_pylist()
    ranks = np.empty(len(names), dtype=np.int64)
    ranks[sorted(range(len(names)), key=names.__getitem__)] = np.arange(len(names))
    products = ranks[encoded.indices.to_numpy()] if names else np.empty(0, dtype=np.int64)
    ids = trades["trade_id"].to_numpy()
    order = np.lexsort((ids, products))  # stable: the first copy of an id stays first
    starts = np.searchsorted(products[order], np.arange(len(names) + 1))
    return order, starts, sorted(names), ids[order]


def _rows(intervals: pa.Table) -> Iterator[tuple[str, int, int]]:
    return zip(*(intervals[name].to_pylist() for name in INTERVALS_SCHEMA.names), strict=True)
