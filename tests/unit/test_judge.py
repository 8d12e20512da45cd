"""Judging trades by rules, against the rule written down plainly."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptopulse.engine.episodes import SCHEMA
from cryptopulse.engine.judge import judge
from cryptopulse.engine.rows import shaped, stamped
from cryptopulse.engine.scopes import JudgeScope, scopes_of, whole_episodes
from cryptopulse.lake.tables import ALERTS
from cryptopulse.settings import AlertRule
from support import EPOCH, Trade, at
from support_alerts import CRASH, MEASURES, RULES, SURGE, expected, trades_table, walk

ALL = [*RULES, *MEASURES]
NONE = ALERTS.arrow_schema.empty_table()


def micros(moment: datetime) -> int:
    return round((moment - EPOCH).total_seconds() * 1_000_000)


def judged(held: Sequence[Trade], news: Iterable[Trade], rules: Sequence[AlertRule], known: pa.Table) -> pa.Table:
    """The episodes after `news` (they are in `held`) came, when `known` were those before."""
    newest = max(micros(trade.time) for trade in held)
    scopes = whole_episodes(scopes_of(trades_table(news), rules), known)
    found = judge(trades_table(held), scopes, known, newest)
    if found is None:
        return known
    kept = known.filter(pa.array([one not in found.replaced for one in known["alert_id"].to_pylist()], pa.bool_()))
    return pa.concat_tables([kept, shaped(stamped(found.episodes, newest), ALERTS)])


def rows(episodes: pa.Table) -> list[dict[str, Any]]:
    columns = [name for name in SCHEMA.names if name != "detected_at"]
    return sorted(episodes.select(columns).to_pylist(), key=lambda row: row["alert_id"])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), unit=st.sampled_from(["1", "1e-11", "0.0001", "1e7", "98765432"]))
def test_everything_at_once_and_in_any_parts_is_what_the_brute_force_finds(seed: int, unit: str) -> None:
    """At any size of prices: 64 bits hold those of up to nine million."""
    chance = random.Random(seed)
    market = walk(chance, chance.choice([3, 40, 150])) + walk(chance, 60, "BBB-USD")
    market = [replace(trade, price=f"{Decimal(trade.price) * Decimal(unit):f}") for trade in market]
    assert rows(judged(market, market, ALL, NONE)) == expected(market, ALL)
    chance.shuffle(market)
    known, done = NONE, 0
    while done < len(market):
        news = market[done : done + chance.choice([1, 7, 50])]
        done += len(news)
        known = judged(market[:done], news, ALL, known)
    assert rows(known) == expected(market, ALL)


def test_only_what_is_in_scope_is_judged_with_what_looks_back_at_it() -> None:
    rule = AlertRule(lookback_s=10, cool_down_s=0)
    times = (0, 1, 9, 12, 20, 23, 24)
    trades = [Trade("BTC-USD", n, at(when), f"{100 * 0.98**n:.6f}") for n, when in enumerate(times, 1)]
    found = judge(trades_table(trades), [JudgeScope("BTC-USD", rule, micros(at(9)), micros(at(13)))], NONE, 0)
    assert found is not None
    assert found.episodes["trigger_trade_id"].to_pylist() == [3, 4, 5, 6]


@pytest.mark.parametrize("size", ["0.000000000001", "4876543210123456.000000000003"])
def test_the_least_volume_is_reached_exactly_and_missed_by_a_hair(size: str) -> None:
    """Also where a sum of sizes has more than 64 bits."""
    trades = [Trade("BTC-USD", 1, at(0), "100", size), Trade("BTC-USD", 2, at(1), "99", size)]
    both = 2 * Decimal(size)
    for least, count in ((both, 1), (both + Decimal("1e-12"), 0)):
        assert judged(trades, trades, [AlertRule(min_volume=least)], NONE).num_rows == count


def test_a_least_volume_that_no_market_has_is_never_reached() -> None:
    trades = [Trade("BTC-USD", 1, at(0), "100"), Trade("BTC-USD", 2, at(1), "50")]
    assert judged(trades, trades, [AlertRule(min_volume=Decimal("1e60"))], NONE).num_rows == 0


@pytest.mark.parametrize("kind", [CRASH, SURGE])
def test_of_changes_that_are_alike_as_floats_the_deeper_one_decides(kind: str) -> None:
    """Three times 1e11 and one unit more or less: the quotients differ in the 24th digit."""
    high, low = ("300000000000", "100000000000") if kind == CRASH else ("100000000000", "300000000000")
    unit = Decimal("1e-12") * (-1 if kind == CRASH else 1)
    prices = [high, low, str(Decimal(low) + unit), low]
    trades = [Trade("BTC-USD", n, at(n), price) for n, price in enumerate(prices, 1)]
    (row,) = rows(judged(trades, trades, [AlertRule(types=[kind])], NONE))
    assert row["end_trade_id"] == 3


def test_judging_again_changes_nothing_and_says_so() -> None:
    trades = walk(random.Random(3), 150)
    known = judged(trades, trades, RULES, NONE)
    newest = max(micros(trade.time) for trade in trades)
    assert judge(trades_table(trades), scopes_of(trades_table(trades), RULES), known, newest) is None


def test_an_episode_keeps_the_rule_under_which_it_opened() -> None:
    trades = [Trade("BTC-USD", n, at(n), str(100 - n)) for n in range(1, 9)]
    known = judged(trades[:4], trades[:4], [AlertRule(threshold_pct=Decimal(2))], NONE)
    assert known["trigger_trade_id"].to_pylist() == [3]
    known = judged(trades, trades[4:], [AlertRule(threshold_pct=Decimal(1), lookback_s=60)], known)
    (row,) = rows(known)
    assert (row["trigger_trade_id"], row["threshold_pct"], row["lookback_s"]) == (3, 2, 120)
    assert (row["start_trade_id"], row["end_trade_id"], row["severity"]) == (1, 8, "HIGH")


def test_what_nobody_trades_any_more_closes_by_the_time_of_the_others() -> None:
    trades = [Trade("BTC-USD", 1, at(0), "100"), Trade("BTC-USD", 2, at(1), "98")]
    known = judged(trades, trades, [AlertRule()], NONE)
    for seconds, state in ((121, None), (121.000001, "CLOSED")):
        found = judge(trades_table([]), [], known, micros(at(seconds)))
        assert (found.episodes["state"].to_pylist() if found else [None]) == [state]


def test_late_news_are_judged_apart_from_the_newest() -> None:
    rules = [AlertRule(lookback_s=10), AlertRule(name="long", products=["BTC-USD"], lookback_s=60)]
    news = [Trade("BTC-USD", 1, at(0)), Trade("BTC-USD", 2, at(100)), Trade("BTC-USD", 3, at(221)), Trade("ETH-USD", 1)]
    found = {
        (scope.symbol, scope.rule.name, scope.first_us, scope.last_us) for scope in scopes_of(trades_table(news), rules)
    }
    spans = [("BTC-USD", 0, 100), ("BTC-USD", 221, 221), ("ETH-USD", 0, 0)]
    assert found == {
        (symbol, name, micros(at(first)), micros(at(last)))
        for symbol, first, last in spans
        for name in ("price-move", "long")
        if (symbol, name) != ("ETH-USD", "long")
    }
