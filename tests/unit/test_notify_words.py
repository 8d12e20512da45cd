"""What a message says: a title that tells what happened, a text with the evidence, fields for machines."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from cryptopulse.lake.alerts import AlertType, measured_text
from cryptopulse.notify.episodes import AlertEpisode, Item, Known, Notification
from cryptopulse.notify.render import (
    LINES_MAX,
    AlertMessage,
    duration_text,
    headline,
    message_of,
    time_text,
)
from cryptopulse.settings.notify import Event
from support import START, at
from support_notify import episode

NOTHING = Known(0, is_closed=False, last_trigger_us=0)
CRASH = episode(rank=1, price_change_pct=-3.2148)


def told(row: AlertEpisode, *events: Event) -> AlertMessage:
    return message_of(Notification((Item(row, events, NOTHING),)))


def test_the_title_tells_what_happened_at_one_look() -> None:
    expected = "FLASH_CRASH BTC-USD −3.21 % in 41 s (100,234.50 → 97,012.10), HIGH, rule price-move"
    assert told(CRASH, "opened").title == headline(CRASH) == expected
    assert told(CRASH, "escalated").title == f"Escalated: {expected}"
    assert told(CRASH, "closed").title == f"Closed: {expected}"


def test_the_text_names_the_evidence_the_delay_and_the_alert_id() -> None:
    body = told(CRASH, "opened").body
    for part in (
        "100,234.50 at 2026-07-07 12:00:00.000 UTC (trade 90) → 97,012.10 at 2026-07-07 12:00:41.000 UTC (trade 105)",
        "Over the threshold (1 % within 120 s) from 2026-07-07 12:00:40.000 UTC (trade 100) to",
        "12:00:42.000 UTC (trade 106)",
        "Detected 0.310 s after the first of these trades",
        "alert_id: price-move:FLASH_CRASH:BTC-USD:100",
    ):
        assert part in body


def test_an_episode_that_became_part_of_another_says_of_which() -> None:
    whole = episode(95)
    assert f"a part of {whole.alert_id}" in told(whole.absorbed(CRASH.alert_id, NOTHING), "closed").body


def test_kinds_follow_the_severity_and_a_close_is_good_news() -> None:
    assert [told(episode(rank=rank), "opened").kind for rank in range(3)] == ["warning", "warning", "failure"]
    assert told(episode(rank=2, is_closed=True), "closed").kind == "success"


def test_machines_get_the_row_as_plain_data_with_exact_prices_and_utc() -> None:
    (fields,) = told(CRASH, "opened").alerts
    assert json.loads(json.dumps(fields)) == fields
    assert (fields["alert_id"], fields["event"], fields["severity"]) == (CRASH.alert_id, "opened", "HIGH")
    assert (fields["start_price"], fields["end_price"]) == ("100234.5", "97012.1")
    assert fields["opened_at"] == "2026-07-07T12:00:40.000000Z"


def test_the_key_is_the_same_for_the_same_news_and_another_for_other_news() -> None:
    grown = replace(CRASH, price_change_pct=-3.9, last_trigger_at=START + timedelta(seconds=60))
    assert told(CRASH, "opened").key == told(grown, "opened").key == f"{CRASH.alert_id}:opened:HIGH"
    others = {told(CRASH, "closed").key, told(episode(rank=2), "escalated").key, told(episode(7), "opened").key}
    assert len(others | {told(CRASH, "opened").key}) == 4


def test_several_episodes_are_one_message_that_shows_the_worst_and_counts_the_rest() -> None:
    rows = [episode(n, rank=n % 2, symbol=f"P{n}-USD", price_change_pct=-1.0 - n / 100) for n in range(12)]
    surge = episode(99, rank=2, symbol="ETH-USD", alert_type="PRICE_SURGE", price_change_pct=5.125)
    items = tuple(Item(row, ("opened", "closed"), NOTHING) for row in (*rows, surge))
    message = message_of(Notification(items))
    assert message.title == "13 more episodes: 12 FLASH_CRASH, 1 PRICE_SURGE; the worst: ETH-USD +5.12 %"
    lines = message.body.splitlines()
    assert lines[0].startswith("Opened and closed: PRICE_SURGE ETH-USD +5.12 % in 41 s")
    assert len(lines) == LINES_MAX + 1
    assert lines[-1] == "and 3 more: cryptopulse alerts list"
    assert len(message.body) < 1900  # Discord takes 2,000
    assert [alert["alert_id"] for alert in message.alerts] == [item.episode.alert_id for item in items]
    assert message.key == message_of(Notification(items)).key != message_of(Notification(items[1:])).key


@pytest.mark.parametrize(
    ("kind", "percent", "text"),
    [
        ("FLASH_CRASH", -3.2, "−3.2 %"),
        ("PRICE_SURGE", 0.75, "+0.75 %"),
        ("FLASH_CRASH", -3.0, "−3 %"),
        ("PRICE_SURGE", 12.345, "+12.35 %"),
        ("PRICE_SURGE", 1250, "+1,250 %"),
        ("SELL_IMBALANCE", -85.5, "−85.5 %"),
        ("VOLATILITY", 1.2, "1.2 %"),
        ("VOLUME_SURGE", 734, "7.3× the usual volume"),
        ("SILENCE", 1234, "12.3× the usual gap"),
        ("DISLOCATION", -0.5, "−0.5 %"),
        ("CUSTOM", -12.5, "−12.5"),
    ],
)
def test_measures_have_their_sign_and_unit_and_no_more_digits_than_needed(
    kind: AlertType, percent: float, text: str
) -> None:
    assert measured_text(kind, percent) == text


def test_a_silence_and_a_dislocation_are_told_by_what_they_compare() -> None:
    silence, apart = (
        message_of(
            Notification((Item(episode(rank=0, alert_type=kind, price_change_pct=900.0), ("opened",), NOTHING),))
        )
        for kind in ("SILENCE", "DISLOCATION")
    )
    assert "No trade after 2026-07-07 12:00:00.000 UTC (trade 90), at 100,234.50" in silence.body
    assert "97,012.10 at 2026-07-07 12:00:41.000 UTC (trade 105); the median of the other venues was 100,234.50" in (
        apart.body
    )


def test_a_surge_of_volume_is_told_with_the_threshold_in_its_unit() -> None:
    surge = episode(rank=0, alert_type="VOLUME_SURGE", price_change_pct=734.0, threshold_pct=Decimal(500))
    message = message_of(Notification((Item(surge, ("opened",), NOTHING),)))
    assert message.title.startswith("VOLUME_SURGE BTC-USD 7.3× the usual volume in ")
    assert "Over the threshold (5× the usual volume within 120 s)" in message.body


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (0.36, "0.4 s"), (9.0, "9 s"), (41.4, "41 s"), (119, "119 s"), (185, "3 min 5 s"), (3600, "60 min")],
)
def test_lengths_of_time_have_their_unit(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_times_are_utc_to_the_millisecond() -> None:
    assert time_text(at(1.2345)) == "2026-07-07 12:00:01.234 UTC"
