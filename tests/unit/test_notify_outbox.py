"""What a target is told and what not, decided without any I/O: rows and times in, letters out."""

from __future__ import annotations

from collections import Counter, defaultdict
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptopulse.notify.delivery import TOGETHER_MAX, WAITING_MAX, Outbox
from cryptopulse.notify.episodes import AlertEpisode, Known, Notification
from cryptopulse.token_bucket import TokenBucket
from support import START, micros
from support_notify import episode, target

NOW_US = micros(START + timedelta(minutes=5))
DAY_US = 86_400_000_000
MINUTE_US = 60_000_000


def outbox(told: dict[str, Known] | None = None, since_us: int = 0, **settings: object) -> Outbox:
    return Outbox(target(**settings), told or {}, since_us, DAY_US)


def sent(box: Outbox, *rows: AlertEpisode, now_s: float = 0.0) -> list[tuple[str, ...]]:
    """Everything that goes out at once, when all of it is accepted."""
    box.take_in(rows, NOW_US)
    events = []
    while letter := box.next_notification(now_s):
        events += [item.events for item in letter.items]
        box.accepted(letter)
    return events


def test_an_episode_opens_escalates_and_closes_once_each_however_often_its_row_is_seen() -> None:
    box = outbox()
    rows = [episode(rank=rank) for rank in (0, 0, 1, 1, 2, 2)] + [episode(rank=2, is_closed=True)] * 2
    said = [sent(box, row, now_s=n * 100) for n, row in enumerate(rows)]
    assert said == [[("opened",)], [], [("escalated",)], [], [("escalated",)], [], [("closed",)], []]


def test_an_episode_that_was_over_before_it_was_seen_is_opened_and_closed() -> None:
    assert sent(outbox(), episode(rank=2, is_closed=True)) == [("opened",), ("closed",)]


def test_a_severity_that_was_never_seen_needs_no_message() -> None:
    box = outbox()
    sent(box, episode(rank=0))
    assert sent(box, episode(rank=2), now_s=100) == [("escalated",)]


def test_an_episode_that_is_refused_again_and_again_lets_the_others_go_first() -> None:
    box = outbox()
    box.take_in([episode(100), episode(200), episode(300)], NOW_US)
    accepted: list[int] = []
    for attempt in range(20):
        letter = box.next_notification(attempt * 100.0)
        if letter is None:
            break
        (item,) = letter.items
        if item.episode.trigger_trade_id == 100:
            box.refused(letter)
        else:
            accepted.append(item.episode.trigger_trade_id)
            box.accepted(letter)
    assert accepted == [200, 300]
    assert box.waiting == 1


def test_a_target_that_is_away_for_a_moment_changes_no_order() -> None:
    box = outbox()
    box.take_in([episode(100), episode(200)], NOW_US)
    for attempt in range(2):
        letter = box.next_notification(attempt * 100.0)
        assert letter is not None
        box.refused(letter)
    letter = box.next_notification(1000.0)
    assert letter is not None
    assert letter.items[0].episode.trigger_trade_id == 100


def test_an_escalation_after_the_close_is_told_and_so_is_the_second_close() -> None:
    box = outbox()
    assert sent(box, episode(rank=0, is_closed=True)) == [("opened",), ("closed",)]
    assert sent(box, episode(rank=0), now_s=100) == []
    assert sent(box, episode(rank=1), now_s=200) == [("escalated",)]
    assert sent(box, episode(rank=1, is_closed=True), now_s=300) == [("closed",)]


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        (["opened"], ["opened"]),
        (["closed"], ["closed"]),
        (["escalated"], ["escalated", "escalated"]),
        (["opened", "closed"], ["opened", "closed"]),
        ([], []),
    ],
)
def test_a_target_hears_only_of_what_it_wants_to_hear(on: list[str], expected: list[str]) -> None:
    box = outbox(on=on)
    rows = [episode(rank=0), episode(rank=1), episode(rank=2), episode(rank=2, is_closed=True)]
    assert [events for n, row in enumerate(rows) for (events,) in sent(box, row, now_s=n * 100)] == expected


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        (["opened", "escalated", "closed"], [[], ["opened"], ["escalated"], ["closed"]]),
        (["escalated", "closed"], [[], ["escalated"], ["escalated"], ["closed"]]),
    ],
)
def test_a_target_that_wants_severe_episodes_hears_of_one_from_when_it_is_severe(
    on: list[str], expected: list[list[str]]
) -> None:
    box = outbox(severity="HIGH", on=on)
    rows = [episode(rank=0), episode(rank=1), episode(rank=2), episode(rank=2, is_closed=True)]
    assert [[e for (e,) in sent(box, row, now_s=n * 100)] for n, row in enumerate(rows)] == expected
    assert sent(box, episode(200, rank=0, is_closed=True), now_s=900) == []


def test_a_target_hears_only_of_its_rules_and_products() -> None:
    box = outbox(rules=["price-*"], products=["btc-*", "ETH-EUR"])
    assert sent(box, episode()) == [("opened",)]
    assert sent(box, episode(symbol="ETH-USD"), episode(200, rule="slow-slide"), now_s=100) == []


def test_what_lies_before_the_first_start_is_no_news() -> None:
    since_us = micros(START + timedelta(seconds=42))
    assert sent(outbox(since_us=since_us), episode()) == [("opened",)]
    assert sent(outbox(since_us=since_us + 1), episode()) == []
    still_going_on = episode(last_trigger_at=START + timedelta(seconds=50))
    assert sent(outbox(since_us=since_us + 1), still_going_on) == [("opened",)]


def test_history_that_is_fetched_or_judged_again_is_no_news() -> None:
    long_ago = episode(last_trigger_at=START - timedelta(days=30), is_closed=True)
    assert sent(outbox(), long_ago) == []


def test_the_end_of_an_episode_that_was_told_is_told_however_late() -> None:
    box = outbox()
    sent(box, episode())
    box.take_in([episode(is_closed=True)], NOW_US + 3 * DAY_US)
    letter = box.next_notification(100)
    assert letter is not None
    assert letter.items[0].events == ("closed",)


def test_a_letter_that_was_not_accepted_is_sent_again_as_things_are_then() -> None:
    box = outbox()
    box.take_in([episode(rank=0)], NOW_US)
    first = box.next_notification(0)
    box.take_in([episode(rank=2)], NOW_US)
    second = box.next_notification(1)
    assert first is not None
    assert second is not None
    assert [item.events for item in second.items] == [("opened",)]
    assert second.items[0].episode.severity == "CRITICAL"
    box.accepted(second)
    assert box.waiting == 0


def test_what_changes_while_a_letter_is_under_way_is_told_after_it() -> None:
    box = outbox()
    box.take_in([episode(rank=0)], NOW_US)
    letter = box.next_notification(0)
    box.take_in([episode(rank=1)], NOW_US)
    assert letter is not None
    box.accepted(letter)
    assert sent(box) == [("escalated",)]


def test_an_episode_that_late_trades_made_part_of_another_is_closed() -> None:
    box = outbox()
    sent(box, episode(100))
    box.take_in([episode(95, last_trigger_trade_id=120)], NOW_US)
    closing, opening = (item for _ in range(2) for item in accept(box, 100).items)
    assert (closing.events, closing.episode.alert_id) == (("closed",), episode(100).alert_id)
    assert closing.episode.continued_as == opening.episode.alert_id == episode(95).alert_id
    assert opening.events == ("opened",)
    assert box.waiting == 0


def test_an_episode_that_became_part_of_another_before_it_was_told_is_never_told() -> None:
    box = outbox()
    box.take_in([episode(100)], NOW_US)
    assert sent(box, episode(95, last_trigger_trade_id=120)) == [("opened",)]


def test_an_episode_that_late_trades_took_back_is_closed_if_it_was_told_and_else_never_told() -> None:
    box = outbox()
    sent(box, episode(100))
    withdrawn = [replace(episode(number, is_closed=True), is_withdrawn=True) for number in (100, 200)]
    box.take_in([episode(200)], NOW_US)
    assert sent(box, *withdrawn) == [("closed",)]
    assert box.waiting == 0


def test_an_episode_that_is_a_part_of_another_is_not_told_to_be_withdrawn() -> None:
    box = outbox()
    sent(box, episode(100))
    withdrawn = replace(episode(100, is_closed=True), is_withdrawn=True)
    box.take_in([episode(95, last_trigger_trade_id=120), withdrawn], NOW_US)
    assert not accept(box, 100).items[0].episode.is_withdrawn


def accept(box: Outbox, now_s: float) -> Notification:
    letter = box.next_notification(now_s)
    assert letter is not None
    box.accepted(letter)
    return letter


def test_a_burst_is_told_one_by_one_as_far_as_the_pace_allows_and_the_rest_together() -> None:
    box = outbox(messages_per_minute_max=20)
    box.take_in([episode(n * 100, symbol=f"P{n}-USD") for n in range(200)], NOW_US)
    letters = []
    while letter := box.next_notification(0):
        letters.append(letter)
        box.accepted(letter)
    assert [len(letter.items) for letter in letters] == [1] * 9 + [191]
    assert len({item.episode.alert_id for letter in letters for item in letter.items}) == 200
    assert box.waiting == 0
    box.take_in([episode(symbol="NEXT-USD")], NOW_US)
    assert box.next_notification(0) is None
    wait_s = box.wait_s(0)
    assert wait_s is not None
    assert wait_s == pytest.approx(6)
    assert accept(box, wait_s).items[0].episode.symbol == "NEXT-USD"


def test_a_letter_has_a_bound_and_what_is_over_goes_with_the_next() -> None:
    box = outbox(messages_per_minute_max=2)
    box.take_in([episode(n * 100, symbol=f"P{n}-USD") for n in range(TOGETHER_MAX + 50)], NOW_US)
    assert [len(accept(box, now_s).items) for now_s in (0, 60)] == [TOGETHER_MAX, 50]


def test_an_episode_that_opened_and_closed_is_one_item_of_a_letter_of_several() -> None:
    box = outbox(messages_per_minute_max=2)
    box.take_in([episode(100, is_closed=True), episode(200, symbol="ETH-USD")], NOW_US)
    assert [item.events for item in accept(box, 0).items] == [("opened", "closed"), ("opened",)]
    assert box.waiting == 0


def test_what_a_dead_target_was_to_be_told_is_bounded_by_number_and_by_age() -> None:
    box = outbox()
    opened_at = [START + timedelta(milliseconds=n) for n in range(WAITING_MAX + 5)]
    rows = [episode(100, symbol=f"P{n}-USD", opened_at=at) for n, at in enumerate(opened_at)]
    box.take_in(rows, NOW_US)
    assert box.drop_excess(NOW_US) == 5
    assert accept(box, 0).items[0].episode.symbol == "P5-USD"  # the oldest are given up
    assert box.drop_excess(NOW_US + DAY_US) == WAITING_MAX - 1
    assert box.waiting == 0


def test_what_was_told_is_forgotten_when_it_can_be_no_news_any_more() -> None:
    box = outbox()
    rows = [episode(100, is_closed=True), episode(200, symbol="ETH-USD")]
    sent(box, *rows)
    later_us = NOW_US + DAY_US + 2 * 3600 * 1_000_000
    box.prune(later_us)
    assert box.take_in(rows, later_us) == {}
    assert box.waiting == 0
    assert box.oldest_us(later_us) == rows[1].last_trigger_us  # still open: its close is awaited
    box.prune(later_us + 30 * DAY_US)
    assert box.oldest_us(later_us + 30 * DAY_US) == later_us + 29 * DAY_US


@given(st.integers(2, 60), st.lists(st.floats(0, 30), max_size=200))
def test_in_no_minute_more_is_sent_than_allowed(per_minute: int, pauses: list[float]) -> None:
    allowance = TokenBucket(per_minute // 2, 60 / (per_minute - per_minute // 2))
    now_s, sent_at = 0.0, []
    for pause in pauses:
        now_s += pause
        if allowance.left(now_s):
            allowance.take(now_s)
            sent_at.append(now_s)
        else:
            assert 0 < allowance.wait_s(now_s) < 60.01  # as below: sums of pauses are rounded
            assert copy(allowance).left(now_s + allowance.wait_s(now_s)) >= 1
    for first in sent_at:
        assert sum(first <= at < first + 59.99 for at in sent_at) <= per_minute


SYMBOLS = ("BTC-USD", "ETH-USD", "SOL-USD")
ROWS = st.tuples(st.sampled_from(SYMBOLS), st.integers(0, 2), st.booleans())
SEND = st.sampled_from(["accepted", "refused", "killed before", "killed after"])
STEPS = st.lists(st.one_of(st.lists(ROWS, min_size=1, max_size=4), SEND, st.floats(0, 20)), max_size=60)


@dataclass
class World:
    """A table, a notifier that may be killed at any moment, and a receiver."""

    rows: dict[str, AlertEpisode] = field(default_factory=dict)
    recorded: dict[str, Known] = field(default_factory=dict)
    received: list[tuple[Notification, bool]] = field(default_factory=list)
    """With whether it was the last thing of a notifier that had no time to write it down."""
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.box = outbox(dict(self.recorded), messages_per_minute_max=6)
        self.recorded |= self.box.take_in(self.rows.values(), NOW_US)

    def change(self, symbol: str, rank: int, is_closed: bool) -> AlertEpisode:
        """Rows get more severe and never less; they may close and, by late trades, open again."""
        before = self.rows.get(symbol)
        rank = max(rank, before.rank) if before else rank
        self.rows[symbol] = episode(100, rank, is_closed, symbol)
        return self.rows[symbol]

    def send(self, how: str) -> bool:
        letter = self.box.next_notification(self.now_s)
        if letter is None:
            return False
        if how in ("accepted", "killed after"):
            self.received.append((letter, how == "killed after"))
        if how == "accepted":
            self.recorded |= self.box.accepted(letter)
        if how.startswith("killed"):
            self.restart()
        return True


@given(STEPS)
def test_whenever_it_is_killed_nothing_is_left_out_and_only_the_letter_under_way_is_repeated(
    steps: list[list[tuple[str, int, bool]] | str | float],
) -> None:
    world = World()
    for step in steps:
        if isinstance(step, list):
            world.recorded |= world.box.take_in([world.change(*row) for row in step], NOW_US)
        elif isinstance(step, str):
            world.send(step)
        else:
            world.now_s += step
    while world.box.waiting:
        world.now_s += 60
        assert world.send("accepted")

    heard: dict[str, list[tuple[str, int]]] = defaultdict(list)
    repeats: Counter[str] = Counter()
    for letter, is_unrecorded in world.received:
        for item in letter.items:
            alert_id = item.episode.alert_id
            heard[alert_id] += [(event, item.after.rank) for event in item.events]
            repeats[alert_id] += is_unrecorded
    assert heard.keys() == {row.alert_id for row in world.rows.values()}
    for row in world.rows.values():
        story = heard[row.alert_id]
        events = [event for event, _ in story]
        assert events[0] == "opened"
        assert events.count("opened") <= 1 + repeats[row.alert_id]
        told = world.recorded[row.alert_id]
        assert told.rank == row.rank == max(rank for _, rank in story)
        assert told.is_closed or not row.is_closed
        if not repeats[row.alert_id]:
            assert "opened" not in events[1:]
            rises = [rank for event, rank in story if event in ("opened", "escalated")]
            assert all(lower < higher for lower, higher in pairwise(rises))
            assert ("closed", "closed") not in set(pairwise(events))
