"""Which trades are over the threshold of a rule about volume, imbalance or volatility.

Each measures the trades of one product, at every trade as prices are judged, by exact sums over its look-back:

- VOLUME_SURGE: the volume of the look-back as a percentage of the usual one. Time is cut into windows as long as the
  look-back, which begin at multiples of it. The usual volume is the median of the last `baseline_windows` of them that
  ended before the look-back began. Where it is 0, nothing is a surge.
- BUY_IMBALANCE, SELL_IMBALANCE: the volume that takers bought less that they sold, as a percentage of the volume.
- VOLATILITY: the root of the summed squared returns between the look-back's consecutive trades, each return rounded to
  a billionth and at most 1 (realised volatility: Andersen and Bollerslev, 1998).

What is measured is a float made of exact sums by a few operations, so it is the same in every batch and on every
machine. Whether the threshold is reached is decided by exact numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np

from cryptopulse.engine.episodes import EpisodePart
from cryptopulse.engine.ordered_trades import RETURN_UNITS, SCALE, ExactSums, Floats, Ints, OrderedTrades
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
        self._sign = sign
        self._volume = backs.trades.volumes.between(backs.first, backs.last + 1)
        self._bought = backs.trades.bought.between(backs.first, backs.last + 1)
        volume = self._volume.rough()
        self.rough = sign * 100 * (2 * self._bought.rough() - volume) / volume

    def reaches(self, place: int, threshold_pct: Fraction) -> bool:
        bought, volume = self._bought.value(place), self._volume.value(place)
        return self._sign * 100 * (2 * bought - volume) >= threshold_pct * volume


class _Volatility(_Measure):
    def __init__(self, backs: _LookBacks) -> None:
        self._squares = backs.trades.squares.between(backs.first + 1, backs.last + 1)
        self.rough = np.sqrt(self._squares.rough()) / (RETURN_UNITS / 100)

    def reaches(self, place: int, threshold_pct: Fraction) -> bool:
        return self._squares.value(place) >= (threshold_pct * RETURN_UNITS / 100) ** 2


def measured_parts(
    trades: OrderedTrades, symbol: str, rule: AlertRule, first_us: int, last_us: int
) -> Iterator[EpisodePart]:
    """The parts of episodes that `rule` finds at the trades of `symbol` from `first_us` to `last_us` (µs UTC, both in).

    `trades` must hold all trades of the product from `rule.reach_s` before `first_us` on.
    """
    of = trades.rows_of(symbol)
    at = trades.at[of]
    begin, past = np.searchsorted(at, (first_us, last_us + 1))
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
        measure = _measure(alert_type, backs, rule)
        over = np.flatnonzero(measure.rough >= float(threshold) * (1 - _MARGIN))
        is_over = measure.rough[over] > float(threshold) * (1 + _MARGIN)
        is_over[~is_over] = [measure.reaches(place, threshold) for place in over[~is_over].tolist()]
        over = over[is_over]
        breaks = np.flatnonzero(np.diff(trades.at[backs.last[over]]) > rule.cool_down_s * MICROS) + 1
        for places in np.split(over, breaks):
            if len(places):
                yield _part(backs, places, symbol, alert_type, rule, measure)


def _measure(alert_type: AlertType, backs: _LookBacks, rule: AlertRule) -> _Measure:
    if alert_type == "VOLUME_SURGE":
        return _Volume(backs, rule)
    if alert_type == "VOLATILITY":
        return _Volatility(backs)
    return _Imbalance(backs, 1 if alert_type == "BUY_IMBALANCE" else -1)


def _usual_volumes_twice(backs: _LookBacks, rule: AlertRule) -> ExactSums:
    """For each look-back the two middle volumes (the middle one twice) of the windows before it, added."""
    trades, of, count = backs.trades, backs.of, rule.baseline_windows
    at, length_us = trades.at[of], rule.lookback_s * MICROS
    # A look-back reaches into the window before that of its trade; the baseline ends before that one.
    blocks, block_of = np.unique(trades.at[backs.last] // length_us, return_inverse=True)
    found = []
    for some in np.split(blocks, np.arange(_BLOCKS_AT_ONCE, len(blocks), _BLOCKS_AT_ONCE)):
        edges = (some[:, None] - 1 - count + np.arange(count + 1)) * length_us
        rows = np.searchsorted(at, edges) + of.start
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
    measured = float(measure.rough[peak]) * (-1 if alert_type == "SELL_IMBALANCE" else 1)
    times, ids = trades.at[rows].tolist(), trades.ids[rows].tolist()
    return EpisodePart.found(symbol, alert_type, rule, (start_price, end_price, measured), (times, ids))
