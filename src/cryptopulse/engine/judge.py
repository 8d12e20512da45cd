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

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import chain, groupby
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine.episodes import EpisodePart, Judgement, judgement
from cryptopulse.lake.tables import SILVER
from cryptopulse.settings import AlertRule, AlertType
from cryptopulse.text import MICROS

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Words: TypeAlias = npt.NDArray[np.uint64]
Flags: TypeAlias = npt.NDArray[np.bool_]

COLUMNS = ("symbol", "trade_id", "event_time", "price", "trade_size")
"""The columns of silver that judging reads."""

SCALE = 12
assert all(SILVER.arrow_schema.field(name).type.scale == SCALE for name in ("price", "trade_size"))
MARGIN = 1e-9  # for comparing floats; their relative error is 1e-10 at a threshold of 99.9999 %, 1e-15 at 1 %
_LIMB = 2**32 - 1


@dataclass(frozen=True)
class JudgeScope:
    """The trades of one product from `first_us` to `last_us` (event time, µs UTC, included) must be judged by `rule`.

    Trades up to one look-back later are judged too, since their look-backs include these. Later ones are not: their
    episodes may not be among the known ones.
    """

    symbol: str
    rule: AlertRule
    first_us: int
    last_us: int

    @property
    def needs_from_us(self) -> int:
        """Time (µs UTC) of the earliest trade that judging needs."""
        return self.first_us - self.rule.lookback_s * MICROS

    @property
    def needs_to_us(self) -> int:
        """Time (µs UTC) of the latest trade that judging needs."""
        return self.last_us + self.rule.lookback_s * MICROS


def judge(trades: pa.Table, scopes: Iterable[JudgeScope], known: pa.Table, watermark_us: int) -> Judgement | None:
    """How judging `trades` (silver's COLUMNS, distinct, in any order) by `scopes` changes the episodes `known`.

    `trades` must hold all trades of each scope from `needs_from_us` to `needs_to_us`; more do no harm. `known` (rows of
    gold.dm_market_alerts) must hold the open episodes and those that a scope could touch. `watermark_us` (µs UTC) is
    the newest event time of all products: episodes without a trigger for a cool-down before it close. None: no change.
    """
    todo = sorted(scopes, key=lambda scope: id(scope.rule))
    ordered = OrderedTrades(trades)
    found = (_by_rule(ordered, list(same_rule)) for _, same_rule in groupby(todo, key=lambda scope: id(scope.rule)))
    return judgement(chain.from_iterable(found), _near(known, todo), watermark_us)


def rules_for(symbol: str, rules: Sequence[AlertRule]) -> list[AlertRule]:
    """The rules for a product: for each rule name the first that applies."""
    chosen: dict[str, AlertRule] = {}
    for rule in rules:
        if rule.applies_to(symbol):
            chosen.setdefault(rule.name, rule)
    return list(chosen.values())


def lookback_max_s(rules: Sequence[AlertRule]) -> int:
    """The longest look-back, in seconds; 0 without rules."""
    return max((rule.lookback_s for rule in rules), default=0)


def needed_spans(scopes: Iterable[JudgeScope]) -> list[tuple[int, int, list[str]]]:
    """The disjoint spans of time that judging needs, as (first, last, products); times are µs UTC, both included."""
    found: list[tuple[int, int, set[str]]] = []
    for scope in sorted(scopes, key=lambda scope: scope.needs_from_us):
        if found and scope.needs_from_us <= found[-1][1]:
            first, last, symbols = found[-1]
            found[-1] = (first, max(last, scope.needs_to_us), symbols | {scope.symbol})
        else:
            found.append((scope.needs_from_us, scope.needs_to_us, {scope.symbol}))
    return [(first, last, sorted(symbols)) for first, last, symbols in found]


def scopes_of(news: pa.Table, rules: Sequence[AlertRule]) -> list[JudgeScope]:
    """What must be judged for the new trades `news` (symbol, event_time); late trades get scopes of their own."""
    if news.num_rows == 0:
        return []
    symbols = news["symbol"].combine_chunks().dictionary_encode()
    product, at = symbols.indices.to_numpy(), pc.cast(news["event_time"], pa.int64()).to_numpy()
    order = np.lexsort((at, product))
    product, at = product[order], at[order]
    apart_us = 2 * MICROS * lookback_max_s(rules)
    ends = np.flatnonzero(np.append((np.diff(product) > 0) | (np.diff(at) > apart_us), True))
    spans = zip(product[ends].tolist(), at[np.append(0, ends[:-1] + 1)].tolist(), at[ends].tolist(), strict=True)
    names = symbols.dictionary.to_pylist()
    chosen = [rules_for(name, rules) for name in names]
    return [JudgeScope(names[of], rule, first, last) for of, first, last in spans for rule in chosen[of]]


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


class OrderedTrades:
    """Trades as columns, sorted by product, time and id."""

    def __init__(self, trades: pa.Table) -> None:
        symbols = trades["symbol"].combine_chunks().dictionary_encode()
        codes = symbols.indices.to_numpy()
        ids, at = trades["trade_id"].to_numpy(), pc.cast(trades["event_time"], pa.int64()).to_numpy()
        order = np.lexsort((ids, at, codes))
        self.symbols: list[str] = symbols.dictionary.to_pylist()
        self.product, self.ids, self.at = codes[order], ids[order], at[order]
        self._starts = np.searchsorted(self.product, np.arange(len(self.symbols) + 1))
        self.price, self.size = (_ExactDecimals.of(trades[name])[order] for name in ("price", "trade_size"))

    def rows_of(self, symbol: str) -> slice:
        """The rows of one product."""
        if symbol not in self.symbols:
            return slice(0, 0)
        product = self.symbols.index(symbol)
        return slice(*self._starts[product : product + 2].tolist())


class _ExactDecimals:
    """Non-negative decimals with SCALE places, as integers of 128 bits."""

    def __init__(self, low: Words, high: Ints) -> None:
        self.low, self.high = low, high

    @classmethod
    def of(cls, decimals: pa.ChunkedArray) -> _ExactDecimals:
        plain = decimals.combine_chunks()
        if len(plain) == 0:
            return cls(np.empty(0, np.uint64), np.empty(0, np.int64))
        words = np.frombuffer(plain.buffers()[1], np.int64)[2 * plain.offset : 2 * (plain.offset + len(plain))]
        return cls(words[::2].view(np.uint64), words[1::2])

    def __getitem__(self, rows: slice | Ints) -> _ExactDecimals:
        return _ExactDecimals(self.low[rows], self.high[rows])

    def __len__(self) -> int:
        return len(self.low)

    def value(self, row: int) -> int:
        """The number in one row."""
        return (int(self.high[row]) << 64) + int(self.low[row])

    def rough(self) -> Floats:
        """As floats, each with a relative error of about 1e-16."""
        return self.low + self.high * 2.0**64 if self.high.any() else self.low.astype(np.float64)

    def ranks(self) -> tuple[Ints, Ints]:
        """The dense rank of each number, from 0; and for each rank the row of one number that has it."""
        order = np.lexsort((self.low, self.high)) if self.high.any() else np.argsort(self.low, kind="stable")
        low, high = self.low[order], self.high[order]
        is_other = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.cumsum(is_other) - 1
        return ranks, order[is_other]


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
        back = _LookBacks(trades, rows, number, rule)
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


class _LookBacks:
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
            over = over[self._has_volume(over)]
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

    def _has_volume(self, rows: Ints) -> Flags:
        """Whether each look-back has the rule's minimum volume; exact, by sums of 32-bit limbs."""
        limbs = (self._size.low & np.uint64(_LIMB), self._size.low >> np.uint64(32), self._size.high)
        sums = [np.append(np.int64(0), np.cumsum(limb, dtype=np.int64)) for limb in limbs]
        low, middle, high = (upto[rows + 1] - upto[self._start[rows]] for upto in sums)
        middle += low >> 32
        high += middle >> 32
        least = math.ceil(Fraction(self._rule.min_volume) * 10**SCALE)
        short = np.zeros(len(rows), np.bool_)
        for have, need in ((low & _LIMB, least & _LIMB), (middle & _LIMB, least >> 32 & _LIMB), (high, least >> 64)):
            short = (have < need) | ((have == need) & short)
        return ~short

    def _episode(self, alert_type: AlertType, rows: Ints, near: Ints, best: Ints) -> EpisodePart:
        """The episode of the trades in `rows`; those in `near` have the deepest changes, equal up to rounding."""

        def left(row: int) -> Fraction:
            ends = (self._price.value(self._rank[row]), self._price.value(best[row]))
            return Fraction(min(ends), max(ends))

        _, firsts = np.unique(self._pairs(near, best), return_index=True)
        deepest: int = min(sorted(near[firsts].tolist()), key=left)  # exact; the first of equal ones
        rule, first, last = self._rule, rows[0], rows[-1]
        back = np.arange(self._start[deepest], deepest + 1)
        starts = back[self._rank[back] == best[deepest]]
        start = starts[np.argmax(self._ids[starts])]
        start_price, end_price = (
            Decimal(self._price.value(rank)).scaleb(-SCALE) for rank in (best[deepest], self._rank[deepest])
        )
        return EpisodePart(
            symbol=self._symbols[self._product[first]],
            alert_type=alert_type,
            rule=rule.name,
            threshold_pct=rule.threshold_pct,
            lookback_s=rule.lookback_s,
            cool_down_s=rule.cool_down_s,
            start_price=start_price,
            end_price=end_price,
            window_start=int(self._at[start]),
            window_end=int(self._at[deepest]),
            opened_at=int(self._at[first]),
            last_trigger_at=int(self._at[last]),
            start_trade_id=int(self._ids[start]),
            trigger_trade_id=int(self._ids[first]),
            end_trade_id=int(self._ids[deepest]),
            last_trigger_trade_id=int(self._ids[last]),
        )


def price_ratio_at_threshold(alert_type: AlertType, rule: AlertRule) -> float:
    """For a move of exactly the threshold: the lower price as a share of the higher one."""
    share = float(rule.threshold_pct) / 100
    return 1 - share if alert_type == "FLASH_CRASH" else 1 / (1 + share)
