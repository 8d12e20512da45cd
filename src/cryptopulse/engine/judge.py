"""Which trades are over a rule's threshold: the same code for live trades, catch-up, late trades, history and Spark.

A trade is over the threshold when the price has fallen (risen) by `threshold_pct` or more from the highest (lowest)
price of its look-back: the trades of the last `lookback_s` seconds of exchange time up to itself, trades of one time
in the order of their ids. Every trade is judged, so a V-shaped move is caught, and the result does not depend on how
the stream was split into batches.

Time is cut into blocks as long as the look-back, so that a look-back is the end of one block and the start of the next.
Most blocks are skipped by their lowest and highest price, as floats with a margin. In the others the best price of
each look-back is found with two running maxima (van Herk, 1992; Gil and Werman, 1993) over ranks of the exact prices,
and the few trades near the threshold are compared as integers. A surge is a crash of ranks counted from the top.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import chain, groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine.custom_rules import custom_parts
from cryptopulse.engine.episodes import EpisodePart, Judgement, Series, judgement
from cryptopulse.engine.measures import measured_parts
from cryptopulse.engine.ordered_trades import SCALE, Flags, Floats, Ints, OrderedTrades, RunningSums
from cryptopulse.engine.scopes import JudgeScope
from cryptopulse.lake.alerts import AlertType
from cryptopulse.settings import AlertRule
from cryptopulse.text import MICROS

MARGIN = 1e-9  # for comparing floats; their relative error is 1e-10 at a threshold of 99.9999 %, 1e-15 at 1 %


def judge(trades: pa.Table, scopes: Iterable[JudgeScope], known: pa.Table, watermark_us: int) -> Judgement | None:
    """How judging `trades` (`columns_for` the rules, distinct, in any order) by `scopes` changes the episodes `known`.

    `trades` must hold all trades of each scope from `needs_from_us` to `needs_to_us`; more do no harm. `known` (rows of
    gold.dm_market_alerts) must hold the open episodes and those that a scope could touch. `watermark_us` (µs UTC) is
    the newest event time of all products: episodes without a trigger for a cool-down before it close. None: no change.

    The price's extremes can only grow by late trades; the other measures can also shrink. So an episode of those
    that begins in a scope is replaced by what is found, and must end in it: see `whole_episodes`.
    """
    todo = sorted(scopes, key=lambda scope: id(scope.rule))
    ordered = OrderedTrades(trades)
    found: list[Iterable[EpisodePart]] = []
    judged: defaultdict[Series, list[tuple[int, int]]] = defaultdict(list)
    for _, same_rule in groupby(todo, key=lambda scope: id(scope.rule)):
        of_rule = list(same_rule)
        if of_rule[0].rule.kind == "price":
            found.append(_by_rule(ordered, of_rule))
            continue
        if of_rule[0].rule.kind == "custom":
            found.append(custom_parts(trades, of_rule, watermark_us))
        for scope in of_rule:
            if scope.rule.kind != "custom":
                found.append(measured_parts(ordered, scope, watermark_us))
            for alert_type in scope.rule.types:
                judged[scope.symbol, scope.rule.name, alert_type].append((scope.first_us, scope.needs_to_us))
    return judgement(chain.from_iterable(found), _near(known, todo), watermark_us, judged)


def _near(known: pa.Table, scopes: Sequence[JudgeScope]) -> pa.Table:
    """The episodes of `known` that a scope could touch, and all open ones, which may close."""
    near = pc.equal(known["state"], "OPEN")
    if scopes:
        quiet_us = pc.multiply(pc.cast(known["cool_down_s"], pa.int64()), MICROS)
        until_us = pc.add(pc.cast(known["last_trigger_at"], pa.int64()), quiet_us)
        is_late_enough = pc.greater_equal(until_us, pa.scalar(min(scope.first_us for scope in scopes), pa.int64()))
        is_judged = pc.is_in(known["symbol"], pa.array(sorted({scope.symbol for scope in scopes})))
        near = pc.or_(near, pc.and_(is_judged, is_late_enough))
    return known.filter(near)


def _by_rule(trades: OrderedTrades, scopes: Sequence[JudgeScope]) -> Iterator[EpisodePart]:
    """The parts of episodes in `scopes`, all with the same rule."""
    rule = scopes[0].rule
    # The rows that judging needs, and which of them are judged.
    begins = np.zeros((2, len(trades.at) + 1), np.int32)
    for scope in scopes:
        of = trades.rows_of(scope.symbol)
        times = (scope.needs_from_us, scope.first_us, scope.needs_to_us + 1)
        seen, judged, past = of.start + np.searchsorted(trades.at[of], times)
        begins[0, seen] += 1
        begins[1, judged] += 1
        begins[:, past] -= 1
    is_seen, is_judged = np.cumsum(begins[:, :-1], axis=1) > 0
    rows: slice | Ints = slice(None)
    if not is_seen.all():
        rows = np.flatnonzero(is_seen)
        is_judged = is_judged[rows]
    places, number = _suspects(trades.at[rows], trades.product[rows], trades.price[rows].rough(), rule)
    if len(places):
        rows = places if isinstance(rows, slice) else rows[places]
        back = _PriceLookBacks(trades, rows, number, rule)
        for alert_type in dict.fromkeys(rule.types):
            yield from back.episodes(alert_type, is_judged[places])


def _suspects(at: Ints, product: Ints, rough: Floats, rule: AlertRule) -> tuple[Ints, Ints]:
    """The trades of blocks in which a trade can be over the threshold, and of the blocks directly before those.

    Returns their row numbers, and the block number of each; only adjacent blocks have consecutive numbers.
    """
    lookback_us = rule.lookback_s * MICROS
    block = at // lookback_us
    first = np.flatnonzero(np.append(len(at) > 0, (block[1:] != block[:-1]) | (product[1:] != product[:-1])))
    if len(first) == 0:
        return first, first
    block, product = block[first], product[first]
    follows = np.append(False, (block[1:] == block[:-1] + 1) & (product[1:] == product[:-1]))
    lowest, highest = np.minimum.reduceat(rough, first), np.maximum.reduceat(rough, first)
    is_suspect = np.zeros(len(first), np.bool_)
    if "FLASH_CRASH" in rule.types:
        since = np.where(follows, np.maximum(highest, np.roll(highest, 1)), highest)
        is_suspect |= lowest <= since * price_ratio_at_threshold("FLASH_CRASH", rule) * (1 + MARGIN)
    if "PRICE_SURGE" in rule.types:
        since = np.where(follows, np.minimum(lowest, np.roll(lowest, 1)), lowest)
        is_suspect |= since <= highest * price_ratio_at_threshold("PRICE_SURGE", rule) * (1 + MARGIN)
    seen = np.flatnonzero(is_suspect | np.append(is_suspect[1:] & follows[1:], False))
    sizes = np.diff(np.append(first, len(at)))[seen]
    places = np.repeat(first[seen] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    number = np.cumsum(np.where(follows[seen] & (np.diff(seen, prepend=-2) == 1), 1, 2))
    return places, np.repeat(number, sizes)


class _PriceLookBacks:
    """The look-backs of the trades that `_suspects` found for one rule, in order."""

    def __init__(self, trades: OrderedTrades, rows: Ints, number: Ints, rule: AlertRule) -> None:
        """`rows` of `trades` and `number`, the block of each, are from `_suspects`."""
        self._rule, self._number = rule, number
        self._symbols, self._size = trades.symbols, trades.size[rows]
        self._at, self._ids, self._product = trades.at[rows], trades.ids[rows], trades.product[rows]
        price = trades.price[rows]
        self._rank, places = price.ranks()
        self._price = price[places]
        """The distinct prices, by rank."""
        lookback_us = rule.lookback_s * MICROS
        clock = number * lookback_us + self._at % lookback_us
        self._start = np.searchsorted(clock, clock - lookback_us)
        """The row at which each look-back begins."""

    def episodes(self, alert_type: AlertType, is_judged: Flags) -> Iterator[EpisodePart]:
        """Parts of episodes: judged trades over the threshold whose look-back has enough trades and volume."""
        # The rank of each look-back's highest price; for a surge, of the lowest.
        top = len(self._price) - 1
        is_crash = alert_type == "FLASH_CRASH"
        best = self._highest(self._rank) if is_crash else top - self._highest(top - self._rank)
        # Of the trade's price and the best one: the lower as a share of the higher.
        rough, bound = self._price.rough(), price_ratio_at_threshold(alert_type, self._rule)
        left = rough[self._rank] / rough[best] if is_crash else rough[best] / rough[self._rank]
        over = np.flatnonzero(is_judged & (left <= bound * (1 + MARGIN)))
        is_over = left[over] <= bound * (1 - MARGIN)
        doubtful = over[~is_over]
        pairs, pair_of = np.unique(self._pairs(doubtful, best), return_inverse=True)
        exact = [self._is_over(alert_type, *divmod(pair, len(self._price))) for pair in pairs.tolist()]
        is_over[~is_over] = np.array(exact, np.bool_)[pair_of]
        over = over[is_over]
        over = over[over - self._start[over] + 1 >= self._rule.min_trades]
        if self._rule.min_volume:
            volumes = RunningSums(self._size).between(self._start[over], over + 1)  # exact
            over = over[volumes.reaches(self._rule.least_volume)]
        at, product = self._at[over], self._product[over]
        is_next = (product[1:] == product[:-1]) & (np.diff(at) <= self._rule.cool_down_s * MICROS)
        for rows in np.split(over, np.flatnonzero(~is_next) + 1):
            if len(rows):
                near = rows[left[rows] <= left[rows].min() * (1 + MARGIN)]
                yield self._episode(alert_type, rows, near, best)

    def _highest(self, rank: Ints) -> Ints:
        """The highest rank in each look-back: in the end of one block or the beginning of the next."""
        base = self._number * len(self._price)  # lifts each block above those before: restarts the running maximum
        so_far = np.maximum.accumulate(rank + base) - base
        to_end = np.maximum.accumulate((rank - base)[::-1])[::-1] + base
        starts_before = self._number[self._start] != self._number
        return np.where(starts_before, np.maximum(so_far, to_end[self._start]), so_far)

    def _pairs(self, rows: Ints, best: Ints) -> Ints:
        """The ranks of each trade's price and of the best price in its look-back, as one number."""
        return self._rank[rows] * len(self._price) + best[rows]

    def _is_over(self, alert_type: AlertType, rank: int, best: int) -> bool:
        """Whether the move from the price of rank `best` to that of `rank` reaches the threshold; exact."""
        direction = 1 if alert_type == "FLASH_CRASH" else -1
        percent, parts = self._rule.threshold_pct.as_integer_ratio()
        here, there = self._price.value(rank), self._price.value(best)
        return direction * here * 100 * parts <= direction * there * (100 * parts - direction * percent)

    def _episode(self, alert_type: AlertType, rows: Ints, near: Ints, best: Ints) -> EpisodePart:
        """The episode of the trades in `rows`; those in `near` have the deepest changes, equal up to rounding."""

        def left(row: int) -> Fraction:
            ends = (self._price.value(self._rank[row]), self._price.value(best[row]))
            return Fraction(min(ends), max(ends))

        _, firsts = np.unique(self._pairs(near, best), return_index=True)
        deepest: int = min(sorted(near[firsts].tolist()), key=left)  # exact; the first of equal ones
        back = np.arange(self._start[deepest], deepest + 1)
        starts = back[self._rank[back] == best[deepest]]
        start = starts[np.argmax(self._ids[starts])]
        start_price, end_price = (
            Decimal(self._price.value(rank)).scaleb(-SCALE) for rank in (best[deepest], self._rank[deepest])
        )
        change = (float(end_price) / float(start_price) - 1) * 100
        trades = [start, deepest, rows[0], rows[-1]]
        times, ids = (column[trades].tolist() for column in (self._at, self._ids))
        symbol = self._symbols[self._product[deepest]]
        return EpisodePart.found(symbol, alert_type, self._rule, (start_price, end_price, change), (times, ids))


def price_ratio_at_threshold(alert_type: AlertType, rule: AlertRule) -> float:
    """For a move of exactly the threshold: the lower price as a share of the higher one."""
    share = float(rule.threshold_pct) / 100
    return 1 - share if alert_type == "FLASH_CRASH" else 1 / (1 + share)
