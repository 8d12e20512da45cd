"""Finds the new trades that can be over the threshold of a rule that is not about a price, quickly.

One product's trades of its longest look-back are kept, and for each different look-back the sums over it: a trade adds
itself and takes away what has become too old, however many rules share the look-back. Rules are ordered by threshold,
so those far from theirs cost nothing. Sizes are floats, summed as whole numbers, so that no error builds up; thresholds
are a little lower than the exact ones. The judge decides.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cryptopulse.engine.ordered_trades import RETURN_UNITS, Floats, Ints, OrderedTrades, squared_returns
from cryptopulse.lake.alerts import AlertType
from cryptopulse.settings import AlertRule
from cryptopulse.text import MICROS

_LOWER = 1 - 1e-8  # of exact thresholds; the sums of a window's sizes have relative errors of 1e-10 at most
_DROPPED_AT_ONCE = 10_000  # trades that are too old, before they are dropped


@dataclass(frozen=True)
class _Bound:
    least_pct: float
    rule: AlertRule
    alert_type: AlertType
    least_volume: float


class _Usual:
    """The volumes of windows of one length, and their medians."""

    def __init__(self, lookback_us: int, bounds: Sequence[_Bound], times: Ints, sizes: Floats) -> None:
        self._length_us = lookback_us
        self._bounds: dict[int, list[_Bound]] = {}
        for bound in bounds:
            self._bounds.setdefault(bound.rule.baseline_windows, []).append(bound)
        self._block, self._medians = -1, dict[int, float]()
        blocks = times // lookback_us
        starts = np.flatnonzero(np.append(len(blocks) > 0, blocks[1:] != blocks[:-1]))
        sums = np.add.reduceat(sizes, starts).tolist() if len(starts) else []
        self._volumes: dict[int, float] = dict(zip(blocks[starts].tolist(), sums, strict=True))

    def add(self, at_us: int, size: float) -> None:
        block = at_us // self._length_us
        self._volumes[block] = self._volumes.get(block, 0.0) + size
        if block != self._block:
            self._block, longest = block, max(self._bounds)
            for old in [one for one in self._volumes if one < block - 1 - longest]:
                del self._volumes[old]
            for count in self._bounds:
                volumes = sorted(self._volumes.get(one, 0.0) for one in range(block - 1 - count, block - 1))
                self._medians[count] = (volumes[(count - 1) // 2] + volumes[count // 2]) / 2

    def over(self, volume: int) -> Iterator[_Bound]:
        for count, bounds in self._bounds.items():
            if median := self._medians[count]:
                yield from _reached(bounds, 100 * volume / median)


class _Window:
    """The sums over one look-back."""

    __slots__ = ("buyers", "first", "lookback_us", "net", "sellers", "squares", "usual", "volatility", "volume")

    def __init__(self, lookback_us: int, rules: Sequence[AlertRule], times: Ints, sizes: Floats) -> None:
        self.lookback_us = lookback_us
        self.first = self.volume = self.net = self.squares = 0
        bounds = [
            _Bound(float(rule.threshold_pct) * _LOWER, rule, name, rule.least_volume * _LOWER)
            for rule in sorted(rules, key=lambda rule: rule.threshold_pct)
            for name in dict.fromkeys(rule.types)
        ]
        of_type: dict[AlertType, list[_Bound]] = {}
        for bound in bounds:
            of_type.setdefault(bound.alert_type, []).append(bound)
        self.buyers, self.sellers = of_type.get("BUY_IMBALANCE", []), of_type.get("SELL_IMBALANCE", [])
        self.volatility = of_type.get("VOLATILITY", [])
        surges = of_type.get("VOLUME_SURGE", [])
        self.usual = _Usual(lookback_us, surges, times, sizes) if surges else None


class MeasureWatch:
    """The newest trades of one product, and the rules for it that are not about its price."""

    def __init__(self, rules: Sequence[AlertRule], trades: OrderedTrades, rows: slice, from_us: int) -> None:
        """`rows` of `trades`: all trades of the product since `from_us` (µs UTC)."""
        self._rules, self._complete_from_us = rules, from_us
        self._reach_us = max(rule.reach_s for rule in rules) * MICROS
        times, sizes, prices = trades.at[rows], trades.size[rows].rough(), trades.price[rows].rough()
        signed = np.where(trades.is_buy[rows], sizes, -sizes) if trades.has_side else sizes
        self._price = float(prices[-1]) if len(prices) else 0.0
        lookbacks = sorted({rule.lookback_s for rule in rules}, reverse=True)
        kept = bisect_left(times, times[-1] - lookbacks[0] * MICROS) if len(times) else 0
        self._times, self._sizes = array("q", times[kept:].tolist()), array("d", signed[kept:].tolist())
        self._squares = array("q", squared_returns(prices)[kept:].tolist())
        self._windows = []
        for lookback_s in lookbacks:
            same = [rule for rule in rules if rule.lookback_s == lookback_s]
            window = _Window(lookback_s * MICROS, same, times, sizes)
            window.first = bisect_left(self._times, self._times[-1] - window.lookback_us) if self._times else 0
            self._windows.append(window)
        volume = net = squares = 0
        past = len(self._times)
        for window in reversed(self._windows):  # the shortest first: each adds to it what it has more
            for row in range(window.first, past):
                size = int(self._sizes[row])
                volume, net, squares = volume + abs(size), net + size, squares + self._squares[row]
            window.volume, window.net, window.squares, past = volume, net, squares, window.first

    def add(self, at_us: int, size: float, is_buy: bool, price: float) -> Iterator[tuple[AlertRule, AlertType]]:
        """Takes in a trade that is later than all before it; the rules that it can be over the threshold of.

        `size` and `price` are in the units of silver's columns.
        """
        signed = size if is_buy else -size
        units = (price - self._price) / self._price * RETURN_UNITS if self._price else 0.0
        square = round(min(max(units, -RETURN_UNITS), RETURN_UNITS)) ** 2
        self._price = price
        times, sizes, squares = self._times, self._sizes, self._squares
        times.append(at_us)
        sizes.append(signed)
        squares.append(square)
        whole, net, count = int(size), int(signed), len(times)
        is_unsure = at_us - self._reach_us < self._complete_from_us
        for window in self._windows:
            window.volume += whole
            window.net += net
            window.squares += square
            since, first = at_us - window.lookback_us, window.first
            while times[first] < since:
                old = int(sizes[first])
                window.volume -= abs(old)
                window.net -= old
                window.squares -= squares[first]
                first += 1
            window.first = first
            if window.usual:
                window.usual.add(at_us, size)
            if is_unsure:
                continue
            volume = window.volume
            if window.buyers and window.net > 0:
                yield from _enough(_reached(window.buyers, 100 * window.net / volume), count - first, volume)
            if window.sellers and window.net < 0:
                yield from _enough(_reached(window.sellers, -100 * window.net / volume), count - first, volume)
            if window.volatility:
                # Without the return that leads to the first trade of the look-back.
                measured = (window.squares - squares[first]) ** 0.5 * 100 / RETURN_UNITS
                yield from _enough(_reached(window.volatility, measured), count - first, volume)
            if window.usual:
                yield from _enough(window.usual.over(volume), count - first, volume)
        if is_unsure:
            yield from self.all_rules()
        if self._windows[0].first > _DROPPED_AT_ONCE:
            dropped = self._windows[0].first  # of the longest look-back
            del times[:dropped], sizes[:dropped], squares[:dropped]
            for window in self._windows:
                window.first -= dropped

    def all_rules(self) -> Iterator[tuple[AlertRule, AlertType]]:
        """Every rule and type."""
        return ((rule, name) for rule in self._rules for name in dict.fromkeys(rule.types))


def _reached(bounds: Sequence[_Bound], measured_pct: float) -> Iterator[_Bound]:
    for bound in bounds:
        if measured_pct < bound.least_pct:
            return
        yield bound


def _enough(bounds: Iterator[_Bound], trades: int, volume: int) -> Iterator[tuple[AlertRule, AlertType]]:
    for bound in bounds:
        if trades >= bound.rule.min_trades and volume >= bound.least_volume:
            yield bound.rule, bound.alert_type
