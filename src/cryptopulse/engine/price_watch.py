"""Finds the new trades that can be over a threshold, quickly and with little memory.

Live steps run many times a second, and nearly all change no episode. So the highest and lowest price of each product
since any time of the longest look-back are kept in monotonic queues (a trade leaves when a later one is higher, or
lower): a look-up costs the same however many trades a look-back holds. Prices are floats, and thresholds a little
wider than the exact ones: every trade over a threshold is found, and very few others. The judge decides. What a
product's trades measure beside prices, `measure_watch` finds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine.judge import MARGIN, price_ratio_at_threshold
from cryptopulse.engine.measure_watch import MeasureWatch
from cryptopulse.engine.ordered_trades import ExactDecimals, Floats, Ints, OrderedTrades
from cryptopulse.engine.scopes import reach_max_s, rules_for
from cryptopulse.lake.alerts import AlertType
from cryptopulse.settings import AlertRule
from cryptopulse.text import MICROS

_PRICE_TYPES: tuple[AlertType, ...] = ("FLASH_CRASH", "PRICE_SURGE")
_MEASURED = ("volume", "imbalance", "volatility")  # kinds that `measure_watch` finds


class Suspect(NamedTuple):
    """A trade that a rule must judge."""

    symbol: str
    rule: AlertRule
    alert_type: AlertType
    at_us: int


class _Bounds(NamedTuple):
    """The bounds of all rules with the same look-back."""

    lookback_us: int
    crash: float
    """Highest price × this: at or below it a price may be a crash. 0: no rule has crashes."""
    crashes: list[tuple[float, AlertRule]]
    """The same for each rule, the highest first."""
    surge: float
    """Price × this: from a lowest price at or below it, the price may be a surge. 0: no rule has surges."""
    surges: list[tuple[float, AlertRule]]


class _SlidingMaximum:
    """The highest level since a given time. Levels are added in the order of their times, or late."""

    __slots__ = ("_keep_us", "_levels", "_times")

    def __init__(self, times: Ints, levels: Floats, keep_us: int) -> None:
        latest_first = levels[::-1]
        highest = np.maximum.accumulate(latest_first)
        is_higher = np.append(len(levels) > 0, latest_first[1:] > highest[:-1])[: len(levels)][::-1]
        self._times: list[int] = times[is_higher].tolist()
        self._levels: list[float] = levels[is_higher].tolist()
        self._keep_us = keep_us

    def add(self, at_us: int, level: float) -> None:
        times, levels = self._times, self._levels
        end = bisect_right(times, at_us)
        if end < len(times) and levels[end] >= level:
            return
        start = end
        while start and levels[start - 1] <= level:
            start -= 1
        times[start:end] = (at_us,)
        levels[start:end] = (level,)
        if at_us - times[0] > 2 * self._keep_us:
            old = bisect_left(times, at_us - self._keep_us)
            del times[:old], levels[:old]

    def since(self, at_us: int) -> float:
        return self._levels[bisect_left(self._times, at_us)]


@dataclass
class _Product:
    bounds: list[_Bounds]
    newest: tuple[int, int]
    """Time and id of the newest trade."""
    complete_from_us: int
    highest: _SlidingMaximum
    lowest: _SlidingMaximum
    """The highest of the negated prices."""
    measures: MeasureWatch | None
    """None: all rules for it are about its price."""


class PriceWatch:
    """The products' highest and lowest prices and what else is measured, and the rules."""

    def __init__(self, rules: Sequence[AlertRule]) -> None:
        """Starts without products."""
        self._rules = rules
        self._lookback_us = max((rule.lookback_s for rule in rules if rule.kind == "price"), default=0) * MICROS
        self._has_measures = any(rule.kind in _MEASURED for rule in rules)
        self.reach_us = reach_max_s(rules) * MICROS
        self._products: dict[str, _Product] = {}

    def unknown(self, symbols: Iterable[str]) -> list[str]:
        """The products of `symbols` that are not loaded."""
        return [symbol for symbol in symbols if symbol not in self._products]

    def load(self, symbols: Iterable[str], trades: pa.Table, from_us: int) -> None:
        """Starts watching products; `trades`: all their trades (silver's columns) since `from_us` (µs UTC)."""
        ordered = OrderedTrades(trades)
        prices = ordered.price.rough()
        for symbol in symbols:
            rows = ordered.rows_of(symbol)
            at, ids, levels = ordered.at[rows], ordered.ids[rows], prices[rows]
            rules = rules_for(symbol, self._rules)
            measured = [rule for rule in rules if rule.kind in _MEASURED]
            self._products[symbol] = _Product(
                _bounds([rule for rule in rules if rule.kind == "price"]),
                (int(at[-1]), int(ids[-1])) if len(at) else (from_us, 0),
                from_us,
                _SlidingMaximum(at, levels, self._lookback_us),
                _SlidingMaximum(at, -levels, self._lookback_us),
                MeasureWatch(measured, ordered, rows, from_us) if measured else None,
            )

    def forget(self) -> None:
        """Unloads all products; needed when trades were judged that the watch did not see."""
        self._products.clear()

    def take_in(self, news: pa.Table) -> Iterator[Suspect]:
        """The new trades of silver that can be over a threshold. All must be of loaded products.

        A late trade is always returned: newer trades look back at it, and its own look-back may be dropped already.
        Where more than prices is watched it unloads its product.
        """
        prices, sizes, buys = ExactDecimals.of(news["price"]).rough().tolist(), repeat(0.0), repeat(True)
        if self._has_measures:
            sizes = ExactDecimals.of(news["trade_size"]).rough().tolist()
            buys = pc.equal(news["side"], "BUY").to_pylist() if "side" in news.column_names else buys
        columns = (news["symbol"], pc.cast(news["event_time"], pa.int64()), news["trade_id"])
        plain = (column.to_numpy().tolist() for column in columns)
        late: set[str] = set()
        for symbol, at, trade_id, price, size, is_buy in zip(*plain, prices, sizes, buys, strict=False):
            product = self._products[symbol]
            product.highest.add(at, price)
            product.lowest.add(at, -price)
            is_late = (at, trade_id) < product.newest
            if not is_late:
                product.newest = (at, trade_id)
            for lookback_us, crash, crashes, surge, surges in product.bounds:
                since = at - lookback_us
                is_unsure = is_late or since < product.complete_from_us
                if crash and (is_unsure or price <= (highest := product.highest.since(since)) * crash):
                    for bound, rule in crashes:
                        if not is_unsure and price > highest * bound:
                            break
                        yield Suspect(symbol, rule, "FLASH_CRASH", at)
                if surge and (is_unsure or (lowest := -product.lowest.since(since)) <= price * surge):
                    for bound, rule in surges:
                        if not is_unsure and lowest > price * bound:
                            break
                        yield Suspect(symbol, rule, "PRICE_SURGE", at)
            if product.measures is None:
                continue
            if is_late:
                late.add(symbol)
            found = product.measures.all_rules() if symbol in late else product.measures.add(at, size, is_buy, price)
            for rule, alert_type in found:
                yield Suspect(symbol, rule, alert_type, at)
        for symbol in late:
            del self._products[symbol]


def _bounds(rules: Sequence[AlertRule]) -> list[_Bounds]:
    found = []
    for lookback_s in dict.fromkeys(rule.lookback_s for rule in rules):
        crashes, surges = (
            sorted(
                (
                    (price_ratio_at_threshold(kind, rule) * (1 + MARGIN), rule)
                    for rule in rules
                    if rule.lookback_s == lookback_s and kind in rule.types
                ),
                key=lambda bound: -bound[0],
            )
            for kind in _PRICE_TYPES
        )
        crash, surge = (bounds[0][0] if bounds else 0.0 for bounds in (crashes, surges))
        found.append(_Bounds(lookback_s * MICROS, crash, crashes, surge, surges))
    return found
