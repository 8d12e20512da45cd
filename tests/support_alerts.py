"""The alert rule written down plainly: every trade, every look-back, exact decimals; and markets to try it on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from cryptopulse.lake.tables import SILVER
from cryptopulse.settings import AlertRule
from support import Trade, at

CRASH, SURGE = "FLASH_CRASH", "PRICE_SURGE"


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
                over = [hit for place in range(len(mine)) if (hit := _judged(mine, place, rule, kind))]
                found += [_row(episode, rule, kind, newest) for episode in _episodes(over, rule)]
    return sorted(found, key=lambda row: row["alert_id"])


def _judged(mine: list[Trade], place: int, rule: AlertRule, kind: str) -> tuple[Trade, Trade] | None:
    """(the trade looked back to, the trade) when the trade is over the threshold."""
    trade = mine[place]
    oldest = trade.time - timedelta(seconds=rule.lookback_s)
    back = [t for t in mine[: place + 1] if t.time >= oldest]
    if len(back) < rule.min_trades or sum(Decimal(t.size) for t in back) < rule.min_volume:
        return None
    prices = [Decimal(t.price) for t in back]
    best = max(prices) if kind == CRASH else min(prices)
    change = (Decimal(trade.price) - best) * 100
    is_over = change <= -rule.threshold_pct * best if kind == CRASH else change >= rule.threshold_pct * best
    start = max((t for t in back if Decimal(t.price) == best), key=lambda t: t.trade_id)
    return (start, trade) if is_over else None


def _episodes(over: list[tuple[Trade, Trade]], rule: AlertRule) -> list[list[tuple[Trade, Trade]]]:
    episodes: list[list[tuple[Trade, Trade]]] = []
    for hit in over:
        if episodes and hit[1].time - episodes[-1][-1][1].time <= timedelta(seconds=rule.cool_down_s):
            episodes[-1].append(hit)
        else:
            episodes.append([hit])
    return episodes


def _row(episode: list[tuple[Trade, Trade]], rule: AlertRule, kind: str, newest: Any) -> dict[str, Any]:
    first, last = episode[0][1], episode[-1][1]
    sign = 1 if kind == CRASH else -1

    def depth(hit: tuple[Trade, Trade]) -> Decimal:
        return sign * Decimal(hit[1].price) / Decimal(hit[0].price)

    start, end = min(episode, key=lambda hit: (depth(hit), hit[1].time, hit[1].trade_id))
    change = abs(Decimal(end.price) / Decimal(start.price) - 1) * 100
    severe = (
        "CRITICAL" if change >= 4 * rule.threshold_pct else "HIGH" if change >= 2 * rule.threshold_pct else "WARNING"
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
        "price_change_pct": pytest.approx(float((Decimal(end.price) / Decimal(start.price) - 1) * 100), rel=1e-9),
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
    }
    return pa.table(columns, schema=pa.schema([SILVER.arrow_schema.field(name) for name in columns]))
