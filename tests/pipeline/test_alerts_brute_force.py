"""Alerts against the rule written down plainly: every trade, every look-back, exact decimals."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cryptopulse.engine.as_of import judging_by
from cryptopulse.engine.backtest import backtest
from cryptopulse.lake.dataset import open_lake
from cryptopulse.lake.tables import ALERTS
from cryptopulse.settings import AlertRule
from support import LOADS, Lake, Trade, at, some
from support_alerts import ALL, CRASH, SURGE, expected, venues, walk

_COINBASE = ("AAA-USDC", "AAA-USDT", "AAA-DAI")  # whose messages are written as tests write them


def _lake(path: Path, rules: Sequence[AlertRule]) -> Lake:
    return Lake(path, alerts={"rules": [rule.model_dump() for rule in rules]})


def _found(lake: Lake) -> list[dict[str, Any]]:
    return sorted(lake.rows(ALERTS), key=lambda row: row["alert_id"])


@pytest.mark.parametrize("seed", some(1, range(6)))
def test_alerts_are_those_of_the_brute_force_however_late_trades_come(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    lake = _lake(tmp_path / "lake", ALL)
    trades = walk(chance, 150) + walk(chance, 100, "BBB-USD") + venues(chance, 150, _COINBASE)
    if seed % 2:
        chance.shuffle(trades)  # as late as can be
    else:
        trades.sort(key=lambda t: (t.time + timedelta(seconds=chance.choice([0, 0, 0, 20, 200])), t.trade_id))
    known: list[Trade] = []
    moments: list[tuple[datetime, list[dict[str, Any]]]] = []
    for _ in range(4):
        cut = trades[len(known) : len(known) + chance.randint(20, 100)]
        known += cut
        lake.append(trade.match() for trade in cut)
        lake.drain(chance.choice([7, 40, None]) if seed < 3 else None)
        moments.append((datetime.now(UTC), _found(lake)))
        assert moments[-1][1] == expected(known, ALL), f"seed {seed} after {len(known)} trades"
    location, rules = lake.settings.location, lake.settings.alerts.rules
    lake.close()
    assert _plain(backtest(location, rules)) == moments[-1][1]
    for moment, found in moments:
        with open_lake(
            location, memory_max_mb=256, threads=1, timeout_s=None, judge=judging_by(rules), as_of=moment
        ) as then:
            assert _plain(then.alerts().arrow()) == found


def _plain(episodes: pa.Table) -> list[dict[str, Any]]:
    rows = episodes.drop_columns(sorted(LOADS & set(episodes.column_names))).to_pylist()
    return sorted(rows, key=lambda row: row["alert_id"])


def _one(lake: Lake, trades: list[Trade], kind: str) -> list[dict[str, Any]]:
    found = _found(lake)
    rules = list(lake.settings.alerts.rules)
    assert found == expected(trades, rules)
    return [row for row in found if row["alert_type"] == kind]


def _series(*points: tuple[float, str], first_id: int = 1) -> list[Trade]:
    return [Trade("BTC-USD", first_id + n, at(when), price) for n, (when, price) in enumerate(points)]


def test_a_v_shaped_crash_within_a_batch_is_one_crash_and_one_surge(lake: Lake) -> None:
    trades = _series((0, "100"), (10, "99.5"), (11, "95"), (12, "97"), (13, "100"))
    lake.take_in(trade.match() for trade in trades)
    (crash,) = _one(lake, trades, CRASH)
    (surge,) = _one(lake, trades, SURGE)
    assert (crash["start_trade_id"], crash["trigger_trade_id"], crash["end_trade_id"]) == (1, 3, 3)
    assert (crash["severity"], crash["price_change_pct"]) == ("CRITICAL", pytest.approx(-5))
    assert (surge["start_trade_id"], surge["trigger_trade_id"], surge["end_trade_id"]) == (3, 4, 5)


def test_an_order_that_sweeps_the_book_at_one_instant_is_a_crash_and_no_surge(lake: Lake) -> None:
    trades = _series((0, "100"), (5, "100"), *[(6, f"{100 - step / 2}") for step in range(1, 8)])
    lake.take_in(trade.match() for trade in trades)
    assert len(_one(lake, trades, CRASH)) == 1
    assert _one(lake, trades, SURGE) == []


def test_a_crash_that_spans_batches_is_one_row_that_deepens(lake: Lake) -> None:
    trades = _series(*[(float(second), f"{100 - second / 4}") for second in range(24)])
    for place, trade in enumerate(trades):
        lake.append([trade.match()])
        if place % 6 == 5:
            lake.drain()
            crashes = _one(lake, trades[: place + 1], CRASH)
            assert [row["end_trade_id"] for row in crashes] == [place + 1]
            assert crashes[0]["trigger_trade_id"] == 5
    assert crashes[0]["severity"] == "CRITICAL"


def test_two_crashes_further_apart_than_the_cool_down_are_two_rows(lake: Lake) -> None:
    trades = _series((0, "100"), (1, "98"), (121, "98"), (242, "98"), (243, "96"), (500, "96"))
    lake.take_in(trade.match() for trade in trades)
    assert [row["state"] for row in _one(lake, trades, CRASH)] == ["CLOSED", "CLOSED"]


def test_the_threshold_is_reached_exactly_and_missed_by_a_hair(lake: Lake) -> None:
    hair = "0.990000000001"
    trades = [
        *_series((0, "1"), (1, hair)),
        Trade("ETH-USD", 1, at(0), "1"),
        Trade("ETH-USD", 2, at(1), "0.99"),
        Trade("TINY-USD", 1, at(0), "0.000000000100"),
        Trade("TINY-USD", 2, at(1), "0.000000000099"),
        Trade("HUGE-USD", 1, at(0), "999999999999.999999999999", "0.1"),
        Trade("HUGE-USD", 2, at(1), "989999999999.999999999999", "0.1"),
    ]
    lake.take_in(trade.match() for trade in trades)
    assert [row["symbol"] for row in _one(lake, trades, CRASH)] == ["ETH-USD", "HUGE-USD", "TINY-USD"]


def test_the_look_back_ends_to_the_microsecond(lake: Lake) -> None:
    inside = _series((0, "100"), (120, "99"))
    outside = [Trade("ETH-USD", 1, at(0), "100"), Trade("ETH-USD", 2, at(120.000001), "99")]
    lake.take_in(trade.match() for trade in [*inside, *outside])
    assert [row["symbol"] for row in _one(lake, inside + outside, CRASH)] == ["BTC-USD"]


def test_a_late_trade_at_the_start_price_becomes_the_start(lake: Lake) -> None:
    trades = _series((0, "100"), (5, "100"), (10, "98"))
    lake.take_in([trades[0].match(), trades[2].match()])
    assert _found(lake)[0]["start_trade_id"] == 1
    lake.take_in([trades[1].match()])
    assert [row["start_trade_id"] for row in _one(lake, trades, CRASH)] == [2]


def test_late_trades_of_several_products_do_not_shorten_an_episode_between_them(lake: Lake) -> None:
    falling = [(3000.0, "100"), *[(3001.0 + step * 60, f"{98 - step / 10}") for step in range(12)]]
    crash = [Trade("AAA-USD", 10 + n, at(when), price) for n, (when, price) in enumerate(falling)]
    late = [Trade("AAA-USD", 1, at(0), "100"), Trade("BBB-USD", 1, at(3200), "7")]
    lake.take_in(trade.match() for trade in [*crash, Trade("BBB-USD", 9, at(90_000), "7")])
    before = lake.arrow(ALERTS).to_pylist()
    lake.take_in(trade.match() for trade in late)
    assert lake.arrow(ALERTS).to_pylist() == before
    assert len(_one(lake, crash + late + [Trade("BBB-USD", 9, at(90_000), "7")], CRASH)) == 1


def test_a_late_trade_joins_two_episodes_into_one(lake: Lake) -> None:
    rest = _series((0, "100"), (1, "98"), (100, "98"), (160, "97"), (240, "96"))
    bridge = Trade("BTC-USD", 6, at(119), "97")
    lake.take_in(trade.match() for trade in rest if trade.trade_id != 3)
    lake.take_in([rest[2].match()])
    _one(lake, rest, CRASH)
    lake.take_in([bridge.match()])
    _one(lake, [*rest, bridge], CRASH)


def test_what_was_detected_keeps_its_time_while_the_episode_goes_on(lake: Lake) -> None:
    trades = _series((0, "100"), (1, "98"), (2, "97"), (300, "97"))
    lake.take_in(trade.match() for trade in trades[:2])
    first = lake.arrow(ALERTS)["detected_at"].to_pylist()
    lake.take_in(trade.match() for trade in trades[2:])
    assert lake.arrow(ALERTS)["detected_at"].to_pylist() == first
    assert {"detected_at"} <= LOADS
