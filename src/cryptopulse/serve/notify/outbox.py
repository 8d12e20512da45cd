"""What one target is to be told next. Plain code: episodes, answers and times go in, letters come out.

The outbox holds no messages. It holds the newest row of each episode of which the target does not know all, and works
out the next message when it can be sent. Killed, it loses nothing: the rows are in the table, and what was told is in
the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptopulse.serve.notify.allowance import Allowance
from cryptopulse.serve.notify.episodes import Episode, Told, family_of, next_step, trigger_of
from cryptopulse.settings_notify import Event, NotifyTarget

WAITING_MAX = 10_000
"""Episodes that may wait for a target that accepts nothing: some 10 MB. Beyond it the oldest are given up, aloud."""

TOGETHER_MAX = 500
"""Episodes in one message: 250 kB of JSON for a webhook. Others see the first few of them and a count."""

OPEN_KEPT_US = 30 * 86_400_000_000
"""How long an episode that never closed is remembered: rules that changed, or a rebuild, can take its row away."""

_REFUSALS_MAX = 3
_HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Item:
    """One episode in a letter."""

    episode: Episode
    events: tuple[Event, ...]
    """What is told of it, in order; more than one only in a letter of several episodes."""
    after: Told
    """What the target knows of it when it has accepted the letter."""


@dataclass(frozen=True, slots=True)
class Letter:
    """What is to be sent as one message: one event of one episode, or several episodes together."""

    items: tuple[Item, ...]


class Outbox:
    """What a target knows and what it is to be told. Times: µs since 1970 (UTC) for what is in the world, seconds of
    one clock that never goes back for the pace."""

    def __init__(self, target: NotifyTarget, told: Mapping[str, Told], since_us: int, age_max_us: int) -> None:
        """`told`: what the ledger says. Of other episodes only those are news that were over the threshold after
        `since_us`, and within `age_max_us` of now."""
        self._target = target
        self._since_us, self._age_max_us = since_us, age_max_us
        self._told = dict(told)
        self._waiting: dict[str, Episode] = {}
        self._live: dict[str, set[str]] = {}  # by family: what waits, and what was told as open
        for alert_id in told:
            self._index(alert_id)
        self._allowance = Allowance(target.messages_per_minute_max)
        self._refused, self._refusals = "", 0

    @property
    def waiting(self) -> int:
        """How many episodes are to be told of."""
        return len(self._waiting)

    def oldest_us(self, now_us: int) -> int:
        """Rows that were last over the threshold before this time can't be news."""
        still_open = (told.last_trigger_us for told in self._told.values() if not told.is_closed)
        return min(max(self._since_us, now_us - self._age_max_us), *still_open, now_us)

    def take_in(self, episodes: Iterable[Episode], now_us: int) -> dict[str, Told]:
        """Takes rows that are new or have changed, in any order; returns what is to be recorded without being sent."""
        noted: dict[str, Told] = {}
        for episode in sorted(episodes, key=lambda episode: (episode.opened_at, episode.alert_id)):
            if self._target.watches(episode.rule, episode.symbol):
                self._take_absorbed(episode, noted)
                if episode.alert_id in self._told or self._is_news(episode, now_us):
                    self._settle(episode, noted)
        return noted

    def give_up(self, now_us: int) -> int:
        """Forgets what is too much or too old to be told; returns how many episodes those are."""
        old_us = now_us - self._age_max_us
        gone = [i for i, e in self._waiting.items() if i not in self._told and e.last_trigger_us < old_us]
        for alert_id in gone:
            self._drop(alert_id)
        too_much = list(self._waiting)[: max(len(self._waiting) - WAITING_MAX, 0)]
        for alert_id in too_much:
            self._drop(alert_id)
        return len(gone) + len(too_much)

    def next_letter(self, now_s: float) -> Letter | None:
        """What to send now, None when there is nothing or when it must wait (`wait_s`). The same again until it is
        `accepted` or often `refused`, or rows have changed; each attempt counts against the pace."""
        left = self._allowance.left(now_s)
        if not (self._waiting and left):
            return None
        self._allowance.take(now_s)
        if left > 1 or len(self._waiting) == 1:
            return Letter((self._next_of(next(iter(self._waiting.values()))),))
        together = list(self._waiting.values())[:TOGETHER_MAX]
        return Letter(tuple(self._all_of(episode) for episode in together))

    def wait_s(self, now_s: float) -> float | None:
        """Seconds until there may be a letter; None: not before other rows come."""
        return self._allowance.wait_s(now_s) if self._waiting else None

    def accepted(self, letter: Letter) -> dict[str, Told]:
        """The target has taken `letter`; returns what it knows now, to be recorded, by alert_id."""
        noted = {item.episode.alert_id: item.after for item in letter.items}
        self._told |= noted
        for alert_id in list(noted):
            if alert_id in self._waiting:
                self._settle(self._waiting[alert_id], noted)
            else:
                self._index(alert_id)
        return noted

    def refused(self, letter: Letter) -> None:
        """The target did not take `letter`. It gets the same again, but an episode that it refuses again and again lets
        the others go first."""
        alert_id = letter.items[0].episode.alert_id
        self._refusals = self._refusals + 1 if alert_id == self._refused else 1
        self._refused = alert_id
        if self._refusals >= _REFUSALS_MAX and alert_id in self._waiting:
            self._waiting[alert_id] = self._waiting.pop(alert_id)

    def forget(self, now_us: int) -> None:
        """Drops what was told of episodes that can't be news any more (`forgotten_before`)."""
        closed_us, open_us = forgotten_before(now_us, self._age_max_us)
        for alert_id, told in list(self._told.items()):
            is_old = told.last_trigger_us < (closed_us if told.is_closed else open_us)
            if is_old and alert_id not in self._waiting:
                del self._told[alert_id]
                self._index(alert_id)

    def _settle(self, episode: Episode, noted: dict[str, Told]) -> None:
        """Notes what the target need not hear of; the episode waits when there is more."""
        alert_id = episode.alert_id
        while (step := next_step(episode, self._told.get(alert_id), self._target)) and step.event is None:
            self._told[alert_id] = noted[alert_id] = step.after
        if step:
            self._waiting[alert_id] = episode
        else:
            self._waiting.pop(alert_id, None)
        self._index(alert_id)

    def _is_news(self, episode: Episode, now_us: int) -> bool:
        return episode.last_trigger_us >= max(self._since_us, now_us - self._age_max_us)

    def _take_absorbed(self, episode: Episode, noted: dict[str, Told]) -> None:
        """Closes what has become part of `episode`: of one family, no episode begins within another."""
        begins_within = range(episode.trigger_trade_id + 1, episode.last_trigger_trade_id + 1)
        live = self._live.get(family_of(episode.alert_id), ())
        for alert_id in sorted(i for i in live if trigger_of(i) in begins_within):
            told = self._told.get(alert_id)
            if told is None or told.is_closed:
                self._drop(alert_id)
            else:
                self._settle(episode.absorbed(alert_id, told), noted)

    def _drop(self, alert_id: str) -> None:
        self._waiting.pop(alert_id, None)
        self._index(alert_id)

    def _index(self, alert_id: str) -> None:
        family = family_of(alert_id)
        told = self._told.get(alert_id)
        if alert_id in self._waiting or (told is not None and not told.is_closed):
            self._live.setdefault(family, set()).add(alert_id)
        elif family in self._live:
            self._live[family].discard(alert_id)
            if not self._live[family]:
                del self._live[family]

    def _next_of(self, episode: Episode) -> Item:
        step = next_step(episode, self._told.get(episode.alert_id), self._target)
        assert step is not None  # else it would not be waiting
        assert step.event is not None
        return Item(episode, (step.event,), step.after)

    def _all_of(self, episode: Episode) -> Item:
        told = self._told.get(episode.alert_id)
        events: list[Event] = []
        while step := next_step(episode, told, self._target):
            told = step.after
            events += [step.event] if step.event else []
        assert told is not None
        return Item(episode, tuple(events), told)


def forgotten_before(now_us: int, age_max_us: int) -> tuple[int, int]:
    """Episodes closed, and those still open, whose last trigger is older than these times need not be remembered: a row
    of them that came again would be no news."""
    return now_us - age_max_us - _HOUR_US, now_us - age_max_us - OPEN_KEPT_US
