"""The newest trades of silver, in memory.

What live bars and alerts need are the last few minutes, and reading them from hundreds of small files again and
again is what makes a lakehouse slow. `RecentTrades` is a cache of silver and nothing else: it can be dropped and
filled from the table at any time. It knows since when it is complete; older trades are read from the table.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MICROS = 1_000_000
_MINUTE_US = 60 * MICROS
_CHUNKS_MAX = 64  # a minute's rows are put together when they came in more pieces: each costs a scan some 10 µs
_MIDDLES = 3  # commits whose trades stay however far they lie apart: in a catch-up gold follows two behind
_COMMITS_MAX = 4_096  # newest commits remembered as such


class RecentTrades:
    """Trades by minute of event time, and the newest commits as they were. Safe for several threads."""

    def __init__(self, keep_s: int) -> None:
        """Keeps trades at least `keep_s` seconds of event time behind the newest batches' medians."""
        self._keep_us = keep_s * MICROS
        self._minutes: dict[int, list[pa.Table]] = {}
        self._ranges: dict[int, dict[str, tuple[float, float]]] = {}
        self._commits: deque[tuple[int, pa.Table]] = deque(maxlen=_COMMITS_MAX)
        self._middles: deque[int] = deque(maxlen=_MIDDLES)
        self._lock = threading.Lock()
        self._schema: pa.Schema | None = None
        self.complete_from_us = np.iinfo(np.int64).min
        """Every trade of silver with this event time (µs UTC) or a later one is here."""
        self.known_from = 0
        """Every commit with a greater position than this is here."""

    def load(self, trades: pa.Table, complete_from_us: int, position: int) -> None:
        """Starts with silver's `trades` from `complete_from_us` on, as of `position`."""
        with self._lock:
            self._schema = trades.schema
            self._minutes.clear()
            self._ranges.clear()
            self._commits.clear()
            self._insert(trades)
            self.complete_from_us = complete_from_us
            self.known_from = position

    def add(self, trades: pa.Table, position: int) -> None:
        """Adds the `trades` of the commit at `position`, and forgets what is too old."""
        with self._lock:
            if len(self._commits) == _COMMITS_MAX:
                self.known_from = self._commits[0][0]
            self._commits.append((position, trades))
            self._schema = trades.schema
            self._insert(trades)
            self._middles.append(int(np.median(_times(trades))))
            horizon = (min(self._middles) - self._keep_us) // _MINUTE_US * _MINUTE_US
            if horizon > self.complete_from_us:
                self.complete_from_us = horizon
                for minute in [m for m in self._minutes if m * _MINUTE_US < horizon]:
                    del self._minutes[minute], self._ranges[minute]

    def since(self, position: int) -> pa.Table | None:
        """The trades of all commits after `position`; None when not all of them are known here."""
        with self._lock:
            if position < self.known_from:
                return None
            return self._together([trades for at, trades in self._commits if at > position])

    def forget_commits(self, position: int) -> None:
        """Drops the commits up to `position`: nobody will ask for them again."""
        with self._lock:
            while self._commits and self._commits[0][0] <= position:
                self.known_from = self._commits.popleft()[0]

    def price_ranges(self, symbols: Iterable[str], first_us: int) -> dict[str, tuple[float, float]]:
        """Lowest and highest price of each of `symbols` since `first_us` (of the whole minute), as floats."""
        with self._lock:
            minutes = [ranges for minute, ranges in self._ranges.items() if minute >= first_us // _MINUTE_US]
            found = {symbol: [r[symbol] for r in minutes if symbol in r] for symbol in symbols}
        return {
            symbol: (min(low for low, _ in ranges), max(high for _, high in ranges))
            for symbol, ranges in found.items()
            if ranges
        }

    def between(self, first_us: int, last_us: int) -> pa.Table:
        """At least the trades with event times in [first_us, last_us] (whole minutes are given)."""
        with self._lock:
            wanted = range(first_us // _MINUTE_US, last_us // _MINUTE_US + 1)
            minutes = [m for m in self._minutes if m in wanted]
            return self._together([piece for minute in minutes for piece in self._minutes[minute]])

    def _together(self, pieces: list[pa.Table]) -> pa.Table:
        if pieces:
            return pa.concat_tables(pieces)
        return (self._schema or pa.schema([])).empty_table()

    def _insert(self, trades: pa.Table) -> None:
        minute_of = _times(trades) // _MINUTE_US
        if not trades.num_rows:
            return
        if minute_of.min() != minute_of.max():
            order = np.argsort(minute_of, kind="stable")
            trades, minute_of = trades.take(pa.array(order)), minute_of[order]
        minutes, starts = np.unique(minute_of, return_index=True)
        ends = [*starts[1:].tolist(), trades.num_rows]
        for minute, start, end in zip(minutes.tolist(), starts.tolist(), ends, strict=True):
            pieces = self._minutes.setdefault(minute, [])
            pieces.append(trades.slice(start, end - start))
            self._widen(minute, pieces[-1])
            if len(pieces) > _CHUNKS_MAX:
                self._minutes[minute] = [pa.concat_tables(pieces).combine_chunks()]

    def _widen(self, minute: int, piece: pa.Table) -> None:
        """Takes the prices of `piece` into the minute's ranges: a step a product, not a trade."""
        ranges = self._ranges.setdefault(minute, {})
        found = piece.group_by("symbol").aggregate([("price", "min"), ("price", "max")])
        lows, highs = (pc.cast(found[name], pa.float64()).to_pylist() for name in ("price_min", "price_max"))
        for symbol, low, high in zip(found["symbol"].to_pylist(), lows, highs, strict=True):
            known = ranges.get(symbol, (low, high))
            ranges[symbol] = (min(known[0], low), max(known[1], high))


def _times(trades: pa.Table) -> npt.NDArray[np.int64]:
    """Event times in µs UTC."""
    return np.asarray(pc.cast(trades["event_time"], pa.int64()).to_numpy())
