"""The alert episodes that are kept in memory: counted by the lake's own present, and never more than they need."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from cryptopulse.lake.tables import ALERTS
from cryptopulse.serve.live import episodes as module
from cryptopulse.serve.live.episodes import LiveEpisodes
from support import START, micros

MINUTE = timedelta(minutes=1)
WALL_US = micros(START + timedelta(days=400))
FAR = datetime(2150, 1, 1, tzinfo=UTC)


def row(number: int, opened: datetime, **changes: Any) -> dict[str, Any]:
    """An episode that trade `number` opened."""
    ids = dict.fromkeys(("start_trade_id", "trigger_trade_id", "end_trade_id", "last_trigger_trade_id"), number)
    times = dict.fromkeys(("window_start", "window_end", "opened_at", "last_trigger_at", "detected_at"), opened)
    texts = {
        "alert_id": f"r:FLASH_CRASH:BTC-USD:{number}",
        "symbol": "BTC-USD",
        "alert_type": "FLASH_CRASH",
        "rule": "r",
    }
    numbers = {"threshold_pct": 1, "lookback_s": 120, "cool_down_s": 120, "start_price": 100, "end_price": 98}
    rest = {"severity": "WARNING", "state": "CLOSED", "price_change_pct": -2.0, "load_timestamp": opened}
    return {**texts, **numbers, **rest, **ids, **times, **changes}


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=ALERTS.arrow_schema)


def test_the_last_hour_and_day_end_with_the_newest_trade_of_the_lake_and_not_now() -> None:
    episodes = LiveEpisodes()
    now = START + timedelta(days=1)
    episodes.take_in(
        table(
            row(1, now - timedelta(hours=25), severity="CRITICAL"),
            row(2, now - timedelta(hours=23), severity="CRITICAL", price_change_pct=-9.5),
            row(3, now - MINUTE, price_change_pct=3.0, state="OPEN"),
        ),
        WALL_US,
    )
    assert episodes.totals(micros(now)) == {
        "open_alerts": 1,
        "alerts_1h": 1,
        "alerts_24h": 2,
        "critical_24h": 1,
        "largest_24h": -9.5,
    }
    assert episodes.totals(micros(now + timedelta(days=2)))["alerts_24h"] == 0


def test_totals_follow_each_change() -> None:
    episodes = LiveEpisodes()
    episodes.take_in(table(row(1, START, state="OPEN")), WALL_US)
    assert episodes.totals(micros(START))["open_alerts"] == 1
    episodes.take_in(table(row(1, START)), WALL_US)
    assert episodes.totals(micros(START))["open_alerts"] == 0
    episodes.clear()
    assert episodes.totals(micros(START))["alerts_24h"] == 0


def test_a_day_with_more_episodes_than_are_sent_is_counted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_MAX", 5)
    episodes = LiveEpisodes()
    old = [row(number, START - timedelta(days=2)) for number in range(10)]
    day = [
        row(100 + number, START + number * MINUTE, state="OPEN" if number == 0 else "CLOSED") for number in range(20)
    ]
    episodes.take_in(table(*old, *day), WALL_US)
    assert episodes.totals(micros(START + 20 * MINUTE))["alerts_24h"] == 20
    assert len(episodes.rows) == 20  # of the old ones none is kept
    shown = [one["trigger_trade_id"] for one in episodes.first_shown()]
    assert shown == [119, 118, 117, 116, 115, 100]  # the newest, and the one that is open


def test_what_is_kept_of_a_day_is_bounded_and_what_is_let_go_is_not_told_to_be_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "KEPT_MAX", 5)
    monkeypatch.setattr(module, "DAY_KEPT_MAX", 8)
    episodes = LiveEpisodes()
    for number in range(20):
        changed, gone = episodes.take_in(table(row(number, START + number * MINUTE)), WALL_US)
        assert (len(changed), gone) == (1, [])  # it is in the table all the same
    assert sorted(one["trigger_trade_id"] for one in episodes.rows.values()) == list(range(12, 20))


def test_an_episode_of_the_far_future_takes_nothing_from_the_present(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was: the day that is kept ended with the newest episode, whenever that was."""
    monkeypatch.setattr(module, "KEPT_MAX", 5)
    episodes = LiveEpisodes()
    day = [row(number, START + number * MINUTE) for number in range(20)]
    episodes.take_in(table(*day, row(1000, FAR)), WALL_US)
    assert {one["trigger_trade_id"] for one in episodes.rows.values()} == {*range(20), 1000}
    assert episodes.totals(micros(START + 20 * MINUTE))["alerts_24h"] == 20


def test_an_episode_that_another_covers_now_is_gone() -> None:
    episodes = LiveEpisodes()
    episodes.take_in(table(row(10, START), row(20, START + MINUTE), row(40, START + 2 * MINUTE)), WALL_US)
    other = row(15, START, alert_id="r:FLASH_CRASH:ETH-USD:15", symbol="ETH-USD")
    episodes.take_in(table(other), WALL_US)
    changed, gone = episodes.take_in(table(row(10, START, last_trigger_trade_id=25)), WALL_US)
    assert ([one["alert_id"] for one in changed], gone) == (["r:FLASH_CRASH:BTC-USD:10"], ["r:FLASH_CRASH:BTC-USD:20"])
    assert other["alert_id"] in episodes.rows
