"""Which trades are over the threshold of a rule that is not about moves of the price.

Most measure the trades of one product, at every trade as prices are judged, by exact sums over its look-back:

- VOLUME_SURGE: the volume of the look-back as a percentage of the usual one. Time is cut into windows as long as the
  look-back, which begin at multiples of it. The usual volume is the median of the last `baseline_windows` of them that
  ended before the look-back began. Where it is 0, nothing is a surge.
- BUY_IMBALANCE, SELL_IMBALANCE: the volume that takers bought less that they sold, as a percentage of the volume.
- VOLATILITY: the root of the summed squared returns between the look-back's consecutive trades, each return rounded to
  a billionth and at most 1 (realised volatility: Andersen and Bollerslev, 1998).

Two look at other things:

- DISLOCATION: how far the price is from the median of the last prices of the same market at other venues, none of them
  older than a look-back, as a percentage of it. It must have been over the threshold, and on the same side, at every
  trade of the look-back, and at the trade before it, which is at most a look-back older.
- SILENCE: no trade for as long as a look-back, in which there usually are many: the median of the counts in the windows
  before (as for VOLUME_SURGE), as percent. The episode opens a look-back after the last trade.

What is measured is a float made of exact sums by a few operations, so it is the same in every batch and on every
machine. Whether the threshold is reached is decided by exact numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np

from cryptopulse.engine.episodes import EpisodePart
from cryptopulse.engine.ordered_trades import RETURN_UNITS, SCALE, ExactSums, Floats, Ints, OrderedTrades
from cryptopulse.engine.scopes import JudgeScope
from cryptopulse.lake.alerts import AlertType
from cryptopulse.settings import AlertRule
from cryptopulse.text import MICROS

_MARGIN = 1e-9  # for comparing floats, whose relative error is below 1e-14
_BLOCKS_AT_ONCE = 1000  # whose medians are found in one go; bounds memory


@dataclass(frozen=True)
class _LookBacks:
    """Look-backs of one product, as rows of `trades`: from each of `first` up to and including each of `last`."""

    trades: OrderedTrades
    of: slice
    """The rows of the product."""
    first: Ints
    last: Ints


class _Measure(ABC):
    """What is measured in some look-backs."""

    sign = 1
    """Of what is written as measured."""
    rough: Floats
    """In percent, over 0 where it can be over a threshold. Relative error below 1e-14."""

    @abstractmethod
    def reaches(self, place: int, threshold_pct: Fraction) -> bool:
        """Whether the threshold is reached in one look-back; exact."""


class _Volume(_Measure):
    def __init__(self, backs: _LookBacks, rule: AlertRule) -> None:
        self._volume = backs.trades.volumes.between(backs.first, backs.last + 1)
        self._usual_twice = _usual_volumes_twice(backs, rule)
        usual_twice = self._usual_twice.rough()
        is_usual = usual_twice > 0
        self.rough = np.where(is_usual, 200 * self._volume.rough() / np.where(is_usual, usual_twice, 1), 0)

    def reaches(self, place: int, threshold_pct: Fraction) -> bool:
        return 200 * self._volume.value(place) >= threshold_pct * self._usual_twice.value(place)


class _Imbalance(_Measure):
    def __init__(self, backs: _LookBacks, sign: int) -> None:
        """`sign`: 1 for buyers, -1 for sellers."""
        self.sign = sign
        self._volume = backs.trades.volumes.between(backs.first, backs.last + 1)
        self._bought = backs.trades.bought.between(backs.first, backs.last + 1)
        volume = self._volume.rough()
        self.rough = sign * 100 * (2 * self._bought.rough() - volume) / volume

    def reaches(self, place: int, threshold_pct: Fraction) -> bool:
        bought, volume = self._bought.value(place), self._volume.value(place)
        return self.sign * 100 * (2 * bought - volume) >= threshold_pct * volume


class _Volatility(_Measure):
    def __init__(self, backs: _LookBacks) -> None:
        self._squares = backs.trades.squares.between(backs.first + 1, backs.last + 1)
        self.rough = np.sqrt(self._squares.rough()) / (RETURN_UNITS / 100)

    def reaches(self, place: int, threshold_pct: Fraction) -> bool:
        return self._squares.value(place) >= (threshold_pct * RETURN_UNITS / 100) ** 2


class _Dislocation(_Measure):
    def __init__(self, backs: _LookBacks, rule: AlertRule, others: Collection[str]) -> None:
        """`others`: the products that the prices are compared with."""
        trades, of = backs.trades, backs.of
        # The trades of all look-backs, and the one before each.
        begin = max(int(backs.first[0]) - 1, of.start)
        rows = np.arange(begin, backs.last[-1] + 1)
        at, lookback_us = trades.at[rows], rule.lookback_s * MICROS
        prices = trades.price.rough()
        # The row of each other product's last trade, -1 where there is none or it is too old.
        last_rows = [
            np.where((last >= mine.start) & (trades.at[last] >= at - lookback_us), last, -1)
            for mine in map(trades.rows_of, sorted(others))
            if mine.stop > mine.start
            for last in (np.searchsorted(trades.at[mine], at, "right") - 1 + mine.start,)
        ]
        self._others = np.array(last_rows or [np.full(len(rows), -1)])
        known = np.sort(np.where(self._others < 0, np.inf, prices[self._others]), axis=0)
        count = np.maximum((self._others >= 0).sum(axis=0), 1)
        columns = np.arange(len(rows))
        median = (known[(count - 1) // 2, columns] + known[count // 2, columns]) / 2
        away = np.where(np.isinf(median), 0, (prices[rows] - median) / np.where(np.isinf(median), 1, median) * 100)
        threshold = Fraction(rule.threshold_pct)
        is_over = np.abs(away) >= float(threshold) * (1 + _MARGIN)
        self._price, self._rows = trades.price, rows
        for place in np.flatnonzero(~is_over & (np.abs(away) >= float(threshold) * (1 - _MARGIN))).tolist():
            twice = self._median_twice(place)
            is_over[place] = 100 * abs(2 * trades.price.value(rows[place]) - twice) >= threshold * twice
        side = np.where(is_over, np.sign(away), 0)
        since = np.maximum.accumulate(np.where(np.append(True, side[1:] != side[:-1]), columns, 0))
        before = backs.first - 1 - begin
        place = self._place = backs.last - begin
        is_long = (backs.first > of.start) & (since[place] <= before)
        is_long &= at[np.maximum(before, 0)] >= at[place] - 2 * lookback_us
        self._away = np.where(is_long & (side[place] != 0), away[place], 0)
        self.rough = np.abs(self._away)

    def _median_twice(self, place: int) -> int:
        prices = sorted(self._price.value(row) for row in self._others[:, place].tolist() if row >= 0)
        return prices[(len(prices) - 1) // 2] + prices[len(prices) // 2]

    def reaches(self, place: int, threshold_pct: Fraction) -> bool:  # noqa: ARG002 - decided already
        return bool(self.rough[place])

    def change(self, place: int) -> tuple[Decimal, float]:
        """The median of the others, and how far the price was from it, in percent."""
        median = self._median_twice(int(self._place[place])) // 2
        return Decimal(median).scaleb(-SCALE), float(self._away[place])


def measured_parts(trades: OrderedTrades, scope: JudgeScope, watermark_us: int) -> Iterator[EpisodePart]:
    """The parts of episodes that a rule of `scope` finds.

    `trades` must hold all trades that the scope needs. `watermark_us` (µs UTC): the newest event time of all products.
    """
    symbol, rule = scope.symbol, scope.rule
    of = trades.rows_of(symbol)
    at = trades.at[of]
    if rule.kind == "silence":
        yield from _silent_parts(trades, of, scope, min(scope.needs_to_us, watermark_us))
        return
    begin, past = np.searchsorted(at, (scope.first_us, scope.needs_to_us + 1))
    first = np.searchsorted(at, at[begin:past] - rule.lookback_s * MICROS) + of.start
    last = np.arange(begin, past) + of.start
    is_enough = last - first + 1 >= rule.min_trades
    if rule.min_volume:
        is_enough &= trades.volumes.between(first, last + 1).reaches(rule.least_volume)
    backs = _LookBacks(trades, of, first[is_enough], last[is_enough])
    if not len(backs.last):
        return
    threshold = Fraction(rule.threshold_pct)
    for alert_type in dict.fromkeys(rule.types):
        measure = _measure(alert_type, backs, rule, scope.products - {symbol})
        over = np.flatnonzero(measure.rough >= float(threshold) * (1 - _MARGIN))
        is_over = measure.rough[over] > float(threshold) * (1 + _MARGIN)
        is_over[~is_over] = [measure.reaches(place, threshold) for place in over[~is_over].tolist()]
        over = over[is_over]
        for places in _episodes(over, trades.at[backs.last[over]], rule):
            yield _part(backs, places, symbol, alert_type, rule, measure)


def _episodes(places: Ints, at: Ints, rule: AlertRule) -> Iterator[Ints]:
    """`places`, which are over the threshold at the times `at`, by episode."""
    breaks = np.flatnonzero(np.diff(at) > rule.cool_down_s * MICROS) + 1
    yield from (some for some in np.split(places, breaks) if len(some))


def _measure(alert_type: AlertType, backs: _LookBacks, rule: AlertRule, others: Collection[str]) -> _Measure:
    if alert_type == "VOLUME_SURGE":
        return _Volume(backs, rule)
    if alert_type == "VOLATILITY":
        return _Volatility(backs)
    if alert_type == "DISLOCATION":
        return _Dislocation(backs, rule, others)
    return _Imbalance(backs, 1 if alert_type == "BUY_IMBALANCE" else -1)


def _silent_parts(trades: OrderedTrades, of: slice, scope: JudgeScope, until_us: int) -> Iterator[EpisodePart]:
    """The silences that begin in `scope`, until `until_us` (µs UTC), in which it is known what came."""
    rule, at = scope.rule, trades.at[of]
    length_us = rule.lookback_s * MICROS
    quiet = np.flatnonzero(np.append(np.diff(at) >= length_us, len(at) > 0)[: len(at)])
    quiet = quiet[(at[quiet] + length_us >= scope.first_us) & (at[quiet] + length_us <= until_us)]
    if not len(quiet):
        return
    blocks, block_of = np.unique(at[quiet] // length_us, return_inverse=True)
    counts = np.sort(np.diff(np.searchsorted(at, _edges(blocks, rule)), axis=1), axis=1)
    usual_twice = counts[:, (rule.baseline_windows - 1) // 2] + counts[:, rule.baseline_windows // 2]
    usual_twice = usual_twice[block_of]
    is_over = usual_twice >= math.ceil(Fraction(rule.threshold_pct) / 50)
    for places in _episodes(np.flatnonzero(is_over), at[quiet[is_over]], rule):
        worst = places[np.argmax(usual_twice[places])]  # the first of equal ones
        first, peak, last = (int(quiet[place]) for place in (places[0], worst, places[-1]))
        price = Decimal(trades.price.value(of.start + peak)).scaleb(-SCALE)
        since, *times = (int(at[row]) for row in (peak, peak, first, last))
        ids = [int(trades.ids[of.start + row]) for row in (peak, peak, first, last)]
        yield EpisodePart.found(
            scope.symbol,
            "SILENCE",
            rule,
            (price, price, 50.0 * float(usual_twice[worst])),
            ([since, *(one + length_us for one in times)], ids),
        )


def _edges(blocks: Ints, rule: AlertRule) -> Ints:
    """For trades in windows of the numbers `blocks`, the edges (µs UTC) of the windows that say what is usual.

    A look-back reaches into the window before that of its trade; these end before that one.
    """
    count = rule.baseline_windows
    edges: Ints = (blocks[:, None] - 1 - count + np.arange(count + 1)) * rule.lookback_s * MICROS
    return edges


def _usual_volumes_twice(backs: _LookBacks, rule: AlertRule) -> ExactSums:
    """For each look-back the two middle volumes (the middle one twice) of the windows before it, added."""
    trades, of, count = backs.trades, backs.of, rule.baseline_windows
    at = trades.at[of]
    blocks, block_of = np.unique(trades.at[backs.last] // (rule.lookback_s * MICROS), return_inverse=True)
    found = []
    for some in np.split(blocks, np.arange(_BLOCKS_AT_ONCE, len(blocks), _BLOCKS_AT_ONCE)):
        rows = np.searchsorted(at, _edges(some, rule)) + of.start
        volumes = trades.volumes.between(rows[:, :-1], rows[:, 1:])
        order = np.lexsort((volumes.low, volumes.middle, volumes.high), axis=-1)
        lower, upper = (
            ExactSums(*(np.take_along_axis(limb, order[:, [place]], -1)[:, 0] for limb in volumes.limbs))
            for place in ((count - 1) // 2, count // 2)
        )
        found.append(lower + upper)
    return ExactSums(*(np.concatenate(limbs) for limbs in zip(*(each.limbs for each in found), strict=True)))[block_of]


def _part(
    backs: _LookBacks, places: Ints, symbol: str, alert_type: AlertType, rule: AlertRule, measure: _Measure
) -> EpisodePart:
    """The episode of the look-backs in `places`."""
    trades = backs.trades
    peak = places[np.argmax(measure.rough[places])]  # the first of equal ones
    rows = [backs.first[peak], backs.last[peak], backs.last[places[0]], backs.last[places[-1]]]
    start_price, end_price = (Decimal(trades.price.value(row)).scaleb(-SCALE) for row in rows[:2])
    measured = measure.sign * float(measure.rough[peak])
    if isinstance(measure, _Dislocation):
        start_price, measured = measure.change(peak)
    times, ids = trades.at[rows].tolist(), trades.ids[rows].tolist()
    return EpisodePart.found(symbol, alert_type, rule, (start_price, end_price, measured), (times, ids))
