"""The alert rule written down plainly: every trade, every look-back, exact decimals; and markets to try it on."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from cryptopulse.lake.products import market_of
from cryptopulse.lake.tables import SILVER
from cryptopulse.settings import AlertRule
from support import EPOCH, Trade, at

CRASH, SURGE = "FLASH_CRASH", "PRICE_SURGE"
BUYERS, SELLERS = "BUY_IMBALANCE", "SELL_IMBALANCE"


def expected(trades: Iterable[Trade], rules: Sequence[AlertRule]) -> list[dict[str, Any]]:
    """The episodes of `trades` (distinct), by brute force."""
    everything = list(trades)
    newest = max(trade.time for trade in everything)
    found = []
    for symbol in sorted({trade.symbol for trade in everything}):
        mine = sorted((t for t in everything if t.symbol == symbol), key=lambda t: (t.time, t.trade_id))
        names = dict.fromkeys(rule.name for rule in rules)
        for name in names:
            rule = next((r for r in rules if r.name == name and r.applies_to(symbol)), None)
            if rule is None:
                continue
            for kind in rule.types:
                if kind == "CUSTOM":
                    over = list(
                        _by_minute(mine, [t for t in everything if _is_of(rule, t.symbol, rules)], rule, newest)
                    )
                else:
                    hits = (_hit(mine, place, rule, kind, everything, newest) for place in range(len(mine)))
                    over = [hit for hit in hits if hit]
                found += [_row(episode, rule, kind, newest) for episode in _episodes(over, rule)]
    return sorted(found, key=lambda row: row["alert_id"])


class Hit(NamedTuple):
    """A trade over the threshold."""

    start: Trade
    """The trade looked back to."""
    trade: Trade
    measured: float
    """In percent, signed."""
    depth: Fraction | float
    """Of two hits the higher one is the worse."""


def _is_of(rule: AlertRule, symbol: str, rules: Sequence[AlertRule]) -> bool:
    return next((r for r in rules if r.name == rule.name and r.applies_to(symbol)), None) is rule


def _hit(mine: list[Trade], place: int, rule: AlertRule, kind: str, everything: list[Trade], newest: Any) -> Hit | None:
    if kind == "SILENCE":
        return _silent(mine, place, rule, newest)
    if kind == "DISLOCATION":
        return _dislocated(mine, place, rule, everything)
    return _judged(mine, place, rule, kind)


def _silent(mine: list[Trade], place: int, rule: AlertRule, newest: Any) -> Hit | None:
    """The trade, when none came for the length of a look-back, where many usually do."""
    trade, length = mine[place], timedelta(seconds=rule.lookback_s)
    until = trade.time + length
    if until > newest or (place + 1 < len(mine) and mine[place + 1].time < until):
        return None
    last = (trade.time - EPOCH) // length - 2
    windows = dict.fromkeys((last - n for n in range(rule.baseline_windows)), 0)
    for other in mine:
        if (window := (other.time - EPOCH) // length) in windows:
            windows[window] += 1
    usual = statistics.median(windows.values())
    if 100 * usual < rule.threshold_pct:
        return None
    return Hit(trade, replace(trade, time=until), 100.0 * usual, 100.0 * usual)


def _dislocated(mine: list[Trade], place: int, rule: AlertRule, everything: list[Trade]) -> Hit | None:
    """The trade, when the price was away from that of the other venues all the time of its look-back."""
    trade, length = mine[place], timedelta(seconds=rule.lookback_s)
    back = [t for t in mine[: place + 1] if t.time >= trade.time - length]
    before = mine[place - len(back)] if len(back) <= place else None
    if before is None or before.time < trade.time - 2 * length or len(back) < rule.min_trades:
        return None
    if _volume(back) < rule.min_volume * 10**12:
        return None
    sides = set()
    for one in [before, *back]:
        twice = _median_twice(one, rule, everything)
        away = 2 * _units(one.price) - twice if twice else 0
        sides.add((away > 0) - (away < 0) if twice and 100 * abs(away) >= rule.threshold_pct * twice else 0)
    if len(sides) > 1 or 0 in sides:
        return None
    median = twice / 2
    measured = (float(_units(trade.price)) - median) / median * 100
    start = replace(back[0], price=f"{Decimal(twice // 2).scaleb(-12):f}")
    return Hit(start, trade, measured, abs(measured))


def _median_twice(trade: Trade, rule: AlertRule, everything: list[Trade]) -> int:
    last: dict[str, Trade] = {}
    oldest = trade.time - timedelta(seconds=rule.lookback_s)
    near = [t for t in everything if oldest <= t.time <= trade.time and t.symbol != trade.symbol]
    for other in sorted(near, key=lambda t: (t.time, t.trade_id)):
        if market_of(other.symbol) == market_of(trade.symbol):
            last[other.symbol] = other
    prices = sorted(_units(other.price) for other in last.values())
    return prices[(len(prices) - 1) // 2] + prices[len(prices) // 2] if prices else 0


def _by_minute(mine: list[Trade], group: list[Trade], rule: AlertRule, newest: Any) -> Iterator[Hit]:
    """What SHARE finds: a product's part of the trades of some minutes."""

    def minute_of(trade: Trade) -> int:
        return (trade.time - EPOCH) // timedelta(minutes=1)

    for minute in sorted({minute_of(trade) for trade in mine}):
        first = minute + 1 + -rule.lookback_s // 60
        own = [t for t in mine if first <= minute_of(t) <= minute]
        value = len(own) * 100 // sum(first <= minute_of(t) <= minute for t in group)
        if value >= rule.threshold_pct and newest >= EPOCH + timedelta(minutes=minute + 1):
            start = min((t for t in own if minute_of(t) == minute_of(own[0])), key=lambda t: t.trade_id)
            end = max((t for t in own if minute_of(t) == minute), key=lambda t: t.trade_id)
            yield Hit(start, end, float(value), float(value))


def _judged(mine: list[Trade], place: int, rule: AlertRule, kind: str) -> Hit | None:
    """The trade, when it is over the threshold."""
    trade = mine[place]
    oldest = trade.time - timedelta(seconds=rule.lookback_s)
    back = [t for t in mine[: place + 1] if t.time >= oldest]
    if len(back) < rule.min_trades or _volume(back) < rule.min_volume * 10**12:
        return None
    if kind not in (CRASH, SURGE):
        measured, is_over = _measured(mine, back, rule, kind)
        return Hit(back[0], trade, -measured if kind == SELLERS else measured, measured) if is_over else None
    prices = [Decimal(t.price) for t in back]
    best = max(prices) if kind == CRASH else min(prices)
    change = (Decimal(trade.price) - best) * 100
    is_over = change <= -rule.threshold_pct * best if kind == CRASH else change >= rule.threshold_pct * best
    start = max((t for t in back if Decimal(t.price) == best), key=lambda t: t.trade_id)
    share = Fraction(trade.price) / Fraction(start.price)
    measured = (float(Decimal(trade.price)) / float(Decimal(start.price)) - 1) * 100
    return Hit(start, trade, measured, -share if kind == CRASH else share) if is_over else None


def _measured(mine: list[Trade], back: list[Trade], rule: AlertRule, kind: str) -> tuple[float, bool]:
    """What is measured in a look-back, in percent; and whether it is over the threshold."""
    threshold = Fraction(rule.threshold_pct)
    if kind == "VOLATILITY":
        squares = sum(_return(before.price, after.price) ** 2 for before, after in pairwise(back))
        return math.sqrt(squares) / 10**7, squares >= (threshold * 10**7) ** 2
    if kind == "VOLUME_SURGE":
        length = timedelta(seconds=rule.lookback_s)
        last = (back[-1].time - EPOCH) // length - 2
        windows = dict.fromkeys((last - n for n in range(rule.baseline_windows)), 0)
        for trade in mine:
            if (window := (trade.time - EPOCH) // length) in windows:
                windows[window] += _units(trade.size)
        twice = statistics.median_low(windows.values()) + statistics.median_high(windows.values())
        share = Fraction(200 * _volume(back), twice) if twice else Fraction(0)
    else:
        bought = _volume(t for t in back if t.side == "BUY")
        share = Fraction(100 * (2 * bought - _volume(back)), _volume(back)) * (-1 if kind == SELLERS else 1)
    return float(share), share >= threshold


def _return(before: str, after: str) -> int:
    """In billionths, in double precision over prices as whole numbers."""
    there, here = float(_units(before)), float(_units(after))
    return round(max(min((here - there) / there * 1e9, 1e9), -1e9))


def _volume(trades: Iterable[Trade]) -> int:
    return sum(_units(trade.size) for trade in trades)


@cache
def _units(number: str) -> int:
    return int(Decimal(number).scaleb(12))


def _episodes(over: list[Hit], rule: AlertRule) -> list[list[Hit]]:
    episodes: list[list[Hit]] = []
    for hit in over:
        if episodes and hit.trade.time - episodes[-1][-1].trade.time <= timedelta(seconds=rule.cool_down_s):
            episodes[-1].append(hit)
        else:
            episodes.append([hit])
    return episodes


def _row(episode: list[Hit], rule: AlertRule, kind: str, newest: Any) -> dict[str, Any]:
    first, last = episode[0].trade, episode[-1].trade
    worst = min(episode, key=lambda hit: (-hit.depth, hit.trade.time, hit.trade.trade_id))
    start, end = worst.start, worst.trade
    is_price = kind in (CRASH, SURGE)
    exact = (Fraction(end.price) / Fraction(start.price) - 1) * 100 if is_price else Fraction(worst.measured)
    severe = (
        "CRITICAL"
        if abs(exact) >= 4 * rule.threshold_pct
        else "HIGH"
        if abs(exact) >= 2 * rule.threshold_pct
        else "WARNING"
    )
    return {
        "alert_id": f"{rule.name}:{kind}:{first.symbol}:{first.trade_id}",
        "symbol": first.symbol,
        "alert_type": kind,
        "rule": rule.name,
        "threshold_pct": rule.threshold_pct,
        "lookback_s": rule.lookback_s,
        "cool_down_s": rule.cool_down_s,
        "severity": severe,
        "state": "CLOSED" if newest - last.time > timedelta(seconds=rule.cool_down_s) else "OPEN",
        "price_change_pct": pytest.approx(worst.measured, rel=1e-9) if is_price else worst.measured,
        "start_price": Decimal(start.price),
        "end_price": Decimal(end.price),
        "window_start": start.time,
        "window_end": end.time,
        "opened_at": first.time,
        "last_trigger_at": last.time,
        "start_trade_id": start.trade_id,
        "trigger_trade_id": first.trade_id,
        "end_trade_id": end.trade_id,
        "last_trigger_trade_id": last.trade_id,
    }


RULES = [
    AlertRule(name="fast", products=["AAA-USD"], threshold_pct=Decimal("0.7"), lookback_s=7, cool_down_s=5),
    AlertRule(name="fast", products=["*"], threshold_pct=Decimal("1.0"), lookback_s=10, cool_down_s=20),
    AlertRule(name="slow", threshold_pct=Decimal("3.0"), lookback_s=60, cool_down_s=0, min_trades=6),
    AlertRule(name="heavy", types=[SURGE], threshold_pct=Decimal("0.5"), lookback_s=30, min_volume=Decimal("12.5")),
]

MEASURES = [
    AlertRule(
        name="volume",
        types=["VOLUME_SURGE"],
        threshold_pct=Decimal(200),
        lookback_s=5,
        baseline_windows=4,
        cool_down_s=9,
    ),
    AlertRule(
        name="volume7",
        types=["VOLUME_SURGE"],
        threshold_pct=Decimal(150),
        lookback_s=7,
        baseline_windows=3,
        min_trades=4,
    ),
    AlertRule(
        name="flow", types=[BUYERS, SELLERS], threshold_pct=Decimal(60), lookback_s=12, min_trades=6, cool_down_s=15
    ),
    AlertRule(name="flow", products=["AAA-USD"], types=[SELLERS], threshold_pct=Decimal(10), min_volume=Decimal(9)),
    AlertRule(
        name="sellers", products=["AAA-USD"], types=[SELLERS], threshold_pct=Decimal(25), lookback_s=8, cool_down_s=0
    ),
    AlertRule(name="swings", types=["VOLATILITY"], threshold_pct=Decimal("0.9"), lookback_s=10, cool_down_s=6),
]

SHARE = """
    SELECT symbol, sum(trade_count) * 100 // (SELECT sum(trade_count) FROM bars) AS value FROM bars GROUP BY symbol
"""

ACROSS = [
    AlertRule(
        name="apart",
        types=["DISLOCATION"],
        products=["*@*", "*-USDC"],
        threshold_pct=Decimal("0.5"),
        lookback_s=6,
        cool_down_s=9,
    ),
    AlertRule(name="apart", types=["DISLOCATION"], threshold_pct=Decimal("0.8"), lookback_s=10, min_trades=3),
    AlertRule(
        name="quiet", types=["SILENCE"], threshold_pct=Decimal(150), lookback_s=5, baseline_windows=4, cool_down_s=9
    ),
    AlertRule(name="share", products=["AAA*"], types=["CUSTOM"], threshold_pct=Decimal(40), lookback_s=130, sql=SHARE),
]
"""Rules about several products, or about time that passes."""

ALL = [*RULES, *MEASURES, *ACROSS]


VENUES = ("AAA/USD@kraken", "AAAUSDT@binance", "AAA-USDT@okx")


def venues(chance: random.Random, count: int, symbols: Sequence[str] = VENUES) -> list[Trade]:
    """The market of AAA-USD in three other products; now and then one of them goes its own way for a while."""
    ids, away, ticks, seconds = Counter[str](), Counter[str](), 1000, 0.0
    trades = []
    for _ in range(count):
        seconds += chance.choice([0, 0, 0.5, 1, 1, 2]) if chance.random() < 0.97 else chance.choice([20, 61, 300])
        ticks += chance.choice([-1, 0, 0, 1])
        symbol = chance.choice(symbols)
        ids[symbol] += 1
        if chance.random() < 0.1:
            away[symbol] = chance.choice([-12, -8, 0, 0, 5, 9])
        price = f"{(ticks + away[symbol]) / 10:.1f}"
        trades.append(Trade(symbol, ids[symbol], at(seconds), price, "1", chance.choice(["BUY", "SELL"])))
    return trades


def walk(chance: random.Random, count: int, symbol: str = "AAA-USD") -> list[Trade]:
    """A random walk on a coarse grid of prices and times, so that ties are common; now and then it falls or jumps."""
    ticks, seconds, trades = 1000, 0.0, []
    for trade_id in range(1, count + 1):
        seconds += (
            chance.choice([0, 0, 0, 0.5, 1, 1, 3, 10]) if chance.random() < 0.97 else chance.choice([61, 130, 300])
        )
        ticks += chance.choice([-3, -1, 0, 0, 0, 1, 3])
        if chance.random() < 0.05:
            ticks += chance.choice([-60, -25, -10, 10, 25, 60])
        price = f"{ticks / 10:.1f}"
        size = chance.choice(["0.5", "1", "2.25"])
        trades.append(Trade(symbol, trade_id, at(seconds), price, size, chance.choice(["BUY", "SELL"])))
    return trades


def trades_table(trades: Iterable[Trade]) -> pa.Table:
    """Trades as silver has them, as far as judging reads them."""
    rows = list(trades)
    columns = {
        "symbol": [trade.symbol for trade in rows],
        "trade_id": [trade.trade_id for trade in rows],
        "event_time": [trade.time for trade in rows],
        "price": [Decimal(trade.price) for trade in rows],
        "trade_size": [Decimal(trade.size) for trade in rows],
        "side": [trade.side for trade in rows],
    }
    return pa.table(columns, schema=pa.schema([SILVER.arrow_schema.field(name) for name in columns]))
