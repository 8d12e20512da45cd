"""What must be judged again when trades come or time passes.

A trade changes what is found at itself, at the trades that look back at it, and at those of other products that are
compared with it. Nothing else is judged again, so each rule says how far it reaches (`AlertRule.reach_s`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine.ordered_trades import Ints
from cryptopulse.lake.alerts import KINDS, SHARED_KINDS, TIMED_KINDS, Kind
from cryptopulse.lake.products import market_of
from cryptopulse.settings import AlertRule
from cryptopulse.text import MICROS

MINUTE_US = 60 * MICROS
"""Custom rules are judged by minutes."""

_COLUMNS = ("symbol", "trade_id", "event_time", "price", "trade_size")

Span: TypeAlias = tuple[str, int, int]
"""(product, first, last): times in µs UTC, both included."""


@dataclass(slots=True)
class JudgeScope:
    """What `rule` finds of one product from `first_us` to `last_us` (event time, µs UTC, included) must be judged.

    What it finds up to the rule's reach later is judged too, since it looks back at these. Later is not: its episodes
    may not be among the known ones. Custom rules are judged by whole minutes.
    """

    symbol: str
    rule: AlertRule
    first_us: int
    last_us: int
    products: frozenset[str] = frozenset()
    """Whose trades judging needs; only its own when not given."""

    def __post_init__(self) -> None:
        self.products = self.products or frozenset([self.symbol])
        if self.rule.kind == "custom":
            self.first_us -= self.first_us % MINUTE_US
            self.last_us += MINUTE_US - 1 - self.last_us % MINUTE_US

    @property
    def needs_from_us(self) -> int:
        """Time (µs UTC) of the earliest trade that judging needs."""
        return self.first_us - self.rule.reach_s * MICROS

    @property
    def needs_to_us(self) -> int:
        """Time (µs UTC) of the latest trade that judging needs."""
        return self.last_us + self.rule.reach_s * MICROS


def rules_for(symbol: str, rules: Sequence[AlertRule]) -> list[AlertRule]:
    """The rules for a product: for each rule name the first that applies."""
    chosen: dict[str, AlertRule] = {}
    for rule in rules:
        if rule.applies_to(symbol):
            chosen.setdefault(rule.name, rule)
    return list(chosen.values())


def need_products(rules: Iterable[AlertRule]) -> bool:
    """Whether judging by `rules` needs to know which products there are."""
    return any(rule.kind in SHARED_KINDS | TIMED_KINDS for rule in rules)


def reach_max_s(rules: Sequence[AlertRule]) -> int:
    """The longest time that a rule reaches back from a trade, in seconds; 0 without rules."""
    return max((rule.reach_s for rule in rules), default=0)


def columns_for(rules: Iterable[AlertRule]) -> tuple[str, ...]:
    """The columns of silver that judging by `rules` reads."""
    kinds = {rule.kind for rule in rules}
    more = ("side", "source") if "custom" in kinds else ("side",) if "imbalance" in kinds else ()
    return (*_COLUMNS, *more)


def needed_spans(scopes: Iterable[JudgeScope]) -> list[tuple[int, int, list[str]]]:
    """The disjoint spans of time that judging needs, as (first, last, products); times are µs UTC, both included."""
    found: list[tuple[int, int, set[str]]] = []
    for scope in sorted(scopes, key=lambda scope: scope.needs_from_us):
        if found and scope.needs_from_us <= found[-1][1]:
            first, last, others = found[-1]
            found[-1] = (first, max(last, scope.needs_to_us), others | scope.products)
        else:
            found.append((scope.needs_from_us, scope.needs_to_us, set(scope.products)))
    return [(first, last, sorted(symbols)) for first, last, symbols in found]


def spans_of(news: pa.Table, rules: Sequence[AlertRule]) -> list[Span]:
    """When the trades `news` (symbol, event_time) were, so that late ones have spans of their own."""
    apart_us = 2 * MICROS * reach_max_s(rules)
    return [
        (symbol, first, last) for symbol, times in _times_of(news).items() for first, last in _runs(times, apart_us)
    ]


def scopes_of(news: pa.Table, rules: Sequence[AlertRule]) -> list[JudgeScope]:
    """What the trades `news` (symbol, event_time) let judge by the rules of which a product's own trades decide."""
    own = RulesByProduct(rules, ())
    return [
        JudgeScope(symbol, rule, first, last)
        for symbol, first, last in spans_of(news, rules)
        for kind, of_kind in own.of(symbol).items()
        if kind not in SHARED_KINDS | TIMED_KINDS
        for rule in of_kind
    ]


class RulesByProduct:
    """The rules of each product, and which products are judged together."""

    def __init__(self, rules: Sequence[AlertRule], products: Iterable[str]) -> None:
        """`products`: all that have trades."""
        self._rules = rules
        self._chosen: dict[str, Mapping[Kind, Sequence[AlertRule]]] = {}
        self._groups: defaultdict[int | str, set[str]] = defaultdict(set)
        """Market, or id of a custom rule → its products."""
        for symbol in products:
            self.of(symbol)

    def of(self, symbol: str) -> Mapping[Kind, Sequence[AlertRule]]:
        """The rules for a product, by what they measure."""
        if (chosen := self._chosen.get(symbol)) is None:
            by_kind: defaultdict[Kind, list[AlertRule]] = defaultdict(list)
            for rule in rules_for(symbol, self._rules):
                by_kind[rule.kind].append(rule)
            chosen = self._chosen[symbol] = dict(by_kind)
            self._groups[market_of(symbol)].add(symbol)
            for rule in by_kind["custom"]:
                self._groups[id(rule)].add(symbol)
        return chosen

    def shared_scopes(self, spans: Sequence[Span]) -> Iterator[JudgeScope]:
        """What must be judged by rules about several products when the trades of `spans` have changed."""
        runs: defaultdict[int | str, list[tuple[int, int]]] = defaultdict(list)
        for symbol, first, last in spans:
            runs[market_of(symbol)].append((first, last))
            for rule in self.of(symbol).get("custom", ()):
                runs[id(rule)].append((first, last))
        for key, of_key in runs.items():
            group = frozenset(self._groups[key])
            if key == "" or (isinstance(key, str) and len(group) == 1):
                continue
            for first, last in _joined(of_key):
                for symbol in sorted(group):
                    chosen = self._chosen[symbol]
                    if isinstance(key, str):
                        rules = chosen.get("dislocation", ())
                    else:
                        rules = [rule for rule in chosen.get("custom", ()) if id(rule) == key]
                    for rule in rules:
                        yield JudgeScope(symbol, rule, first, last, group)


def whole_episodes(scopes: Sequence[JudgeScope], known: pa.Table) -> list[JudgeScope]:
    """`scopes`, those of measures that can shrink with all of each episode of `known` that late trades could change.

    In the order of time nothing is late: then the scopes stay as they are.
    """
    measured = [scope for scope in scopes if scope.rule.kind != "price"]
    if not measured or not known.num_rows:
        return list(scopes)
    is_measured = pc.is_in(known["alert_type"], pa.array([name for name, kind in KINDS.items() if kind != "price"]))
    ends = pc.cast(known["last_trigger_at"], pa.int64())
    is_late_enough = pc.greater_equal(ends, pa.scalar(min(scope.first_us for scope in measured), pa.int64()))
    near = known.filter(pc.and_(is_measured, is_late_enough))
    spans: defaultdict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    times = (pc.cast(near[name], pa.int64()) for name in ("opened_at", "last_trigger_at"))
    for symbol, rule, *span in zip(
        *(column.to_pylist() for column in (near["symbol"], near["rule"], *times)), strict=True
    ):
        spans[symbol, rule].append((span[0], span[1]))

    def whole(scope: JudgeScope) -> JudgeScope:
        if scope.rule.kind == "price":
            return scope
        touched = [
            (opened_us, last_us)
            for opened_us, last_us in spans.get((scope.symbol, scope.rule.name), ())
            if opened_us <= scope.needs_to_us and last_us >= scope.first_us
        ]
        first_us = min([scope.first_us, *(opened_us for opened_us, _ in touched)])
        reach_us = scope.rule.reach_s * MICROS
        last_us = max([scope.last_us, *(last_us - reach_us for _, last_us in touched)])
        return replace(scope, first_us=first_us, last_us=last_us)

    return [whole(scope) for scope in scopes]


class ScopeWatch:
    """Finds what must be judged by rules of which a product's own trades do not decide alone.

    They compare products, or wait for a time to pass. Fed with all trades in any cuts, it finds the same for live
    trades, a catch-up and history.
    """

    def __init__(self, rules: Sequence[AlertRule], newest: Mapping[str, int | None], watermark_us: int) -> None:
        """`newest`: all products that have trades, and the time (µs UTC) of each one's newest trade; None when it is
        not known, or too old to be followed by silence. `watermark_us`: the newest event time until now.
        """
        self._rules = rules
        self._is_needed = need_products(rules)
        self._by_product = RulesByProduct(rules, newest if self._is_needed else ())
        self._newest = dict(newest)
        self._silent: dict[tuple[str, str], int] = {}
        """(product, rule name) → the trade after which silence was judged, if it is still the newest."""
        self._due_us = 0
        """Before this time no other product is silent."""
        self._minutes_to_us = watermark_us - watermark_us % MINUTE_US
        """Minutes are judged up to then."""

    def take_in(self, news: pa.Table | None, watermark_us: int) -> list[JudgeScope]:
        """What `news` (symbol, event_time: the trades that came) and the time `watermark_us` (µs UTC) let judge."""
        if not self._is_needed:
            return []
        times = {} if news is None else _times_of(news)
        found = list(self._silences(times, watermark_us))
        for symbol in times:
            self._newest.setdefault(symbol)
        spans = [] if news is None else spans_of(news, self._rules)
        found += [
            scope
            for scope in self._by_product.shared_scopes(spans)
            # A custom rule judges a minute when it is over.
            if scope.rule.kind == "dislocation" or scope.first_us < self._minutes_to_us
        ]
        minutes_to_us = watermark_us - watermark_us % MINUTE_US
        if not self._minutes_to_us:  # of a new lake
            self._minutes_to_us = min((first - first % MINUTE_US for _, first, _ in spans), default=0)
        if minutes_to_us > self._minutes_to_us:
            over = [(symbol, self._minutes_to_us, minutes_to_us - 1) for symbol in self._newest]
            found += [scope for scope in self._by_product.shared_scopes(over) if scope.rule.kind == "custom"]
            self._minutes_to_us = minutes_to_us
        return found

    def _silences(self, times: Mapping[str, Ints], watermark_us: int) -> Iterator[JudgeScope]:
        points: defaultdict[tuple[str, str], list[Ints]] = defaultdict(list)
        rules: dict[tuple[str, str], AlertRule] = {}
        for symbol, at in times.items():
            newest = self._newest.get(symbol)
            past = at[at <= watermark_us]  # later ones come of a wrong clock; they must not make all others late
            now_newest = max([newest or 0, *past[-1:].tolist()])
            for rule in self._by_product.of(symbol).get("silence", ()):
                key, length_us = (symbol, rule.name), rule.lookback_s * MICROS
                rules[key] = rule
                late, row = at, at
                if newest is not None:
                    late, row = at[at < newest], np.append(newest, past[past >= newest])
                    if len(row) > 1 and self._silent.get(key) == newest and row[1] < newest + length_us:
                        points[key].append(row[:1] + length_us)  # it was not silent: this trade came late
                points[key] += [late, row[:-1][np.diff(row) >= length_us] + length_us]
                self._due_us = min(self._due_us, now_newest + length_us)
            self._newest[symbol] = now_newest or None
        if watermark_us >= self._due_us:
            self._due_us = watermark_us + 3600 * MICROS
            for symbol, newest in self._newest.items():
                for rule in self._by_product.of(symbol).get("silence", ()):
                    key = symbol, rule.name
                    if newest is None or self._silent.get(key) == newest:
                        continue
                    due_us = newest + rule.lookback_s * MICROS
                    if due_us <= watermark_us:
                        self._silent[key], rules[key] = newest, rule
                        points[key].append(np.array([due_us]))
                    else:
                        self._due_us = min(self._due_us, due_us)
        for key, parts in points.items():
            for first, last in _runs(np.sort(np.concatenate(parts)), 2 * MICROS * rules[key].reach_s):
                yield JudgeScope(key[0], rules[key], first, last)


def _times_of(news: pa.Table) -> dict[str, Ints]:
    """The times (µs UTC, sorted) of each product's trades."""
    if news.num_rows == 0:
        return {}
    symbols = news["symbol"].combine_chunks().dictionary_encode()
    product, at = symbols.indices.to_numpy(), pc.cast(news["event_time"], pa.int64()).to_numpy()
    order = np.lexsort((at, product))
    starts = np.searchsorted(product[order], np.arange(1, len(symbols.dictionary)))
    return dict(zip(symbols.dictionary.to_pylist(), np.split(at[order], starts), strict=True))


def _runs(times: Ints, apart_us: int) -> list[tuple[int, int]]:
    """The first and last of sorted `times` that follow each other within `apart_us`."""
    if len(times) == 0:
        return []
    ends = np.flatnonzero(np.append(np.diff(times) > apart_us, True))
    firsts, lasts = times[np.append(0, ends[:-1] + 1)], times[ends]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of time that overlap, as one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found
