"""At-least-once delivery: the notifications due for one target, the record of what it accepted, and the sending thread.

`Outbox` is a state machine without I/O: episodes, answers and times go in, notifications come out. It holds no
messages, only the newest row of each episode with news for the target, and makes the next notification when it can be
sent. `NotificationLedger` has on disk what each target has accepted: it is written and synced after each acceptance and
before the next message, so that neither a kill nor a power cut loses it. `Delivery` is the thread of one target. A kill
loses nothing: the rows are in the table, and a kill between acceptance and record repeats that one message.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from cryptopulse.errors import ConfigurationError, LakeBusy
from cryptopulse.lake.alerts import family_of, trigger_of
from cryptopulse.notify.channel import Channel
from cryptopulse.notify.episodes import AlertEpisode, Item, Known, Notification, next_step
from cryptopulse.notify.render import message_of
from cryptopulse.retry import Backoff
from cryptopulse.settings.notify import Event, NotifyTarget
from cryptopulse.token_bucket import TokenBucket

_log = structlog.get_logger()

WAITING_MAX = 10_000
"""Most episodes that wait for a target that accepts nothing: some 10 MB. Beyond it the oldest are dropped, with a log
event."""

TOGETHER_MAX = 500
"""Most episodes in one message: 250 kB of JSON for a webhook. Other services get the worst few and a count."""

OPEN_KEPT_US = 30 * 86_400_000_000
"""How long an episode that never closed is remembered: its row may disappear after a change of rules or a rebuild."""

_REFUSALS_MAX = 3
_HOUR_US = 3_600_000_000
_PAUSE_MAX_S = 60.0
_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS targets (target TEXT PRIMARY KEY, since_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS told (
    target TEXT NOT NULL, alert_id TEXT NOT NULL, severity INTEGER NOT NULL, is_closed INTEGER NOT NULL,
    last_trigger_us INTEGER NOT NULL, PRIMARY KEY (target, alert_id)
) WITHOUT ROWID;
"""


class Outbox:
    """What a target has accepted, and the episodes waiting for it.

    Times: µs since 1970 (UTC) for episodes and ages; seconds of one clock that never goes back for the pace.
    """

    def __init__(self, target: NotifyTarget, known: Mapping[str, Known], since_us: int, age_max_us: int) -> None:
        """`known`: the ledger's entries. Other episodes are news only if they were last over the threshold at
        `since_us` or later, and at most `age_max_us` ago."""
        self._target = target
        self._since_us, self._age_max_us = since_us, age_max_us
        self._known = dict(known)
        self._waiting: dict[str, AlertEpisode] = {}
        self._live: dict[str, set[str]] = {}  # family → episodes that wait or are known as open
        for alert_id in known:
            self._index(alert_id)
        # Half of a minute's messages at once: a burst is sent immediately, and the next one waits only seconds.
        at_once = target.messages_per_minute_max // 2
        self._bucket = TokenBucket(at_once, 60 / (target.messages_per_minute_max - at_once))
        self._refused, self._refusals = "", 0

    @property
    def waiting(self) -> int:
        """How many episodes wait."""
        return len(self._waiting)

    def oldest_us(self, now_us: int) -> int:
        """Time (µs UTC); episodes last over the threshold before it can't be news."""
        still_open = (known.last_trigger_us for known in self._known.values() if not known.is_closed)
        return min(max(self._since_us, now_us - self._age_max_us), *still_open, now_us)

    def take_in(self, episodes: Iterable[AlertEpisode], now_us: int) -> dict[str, Known]:
        """Takes new and changed rows, in any order; returns what must be recorded without being sent, by alert_id."""
        recorded: dict[str, Known] = {}
        oldest_news_us = max(self._since_us, now_us - self._age_max_us)
        for episode in sorted(episodes, key=lambda episode: (episode.opened_at, episode.alert_id)):
            if not self._target.watches(episode.rule, episode.symbol):
                continue
            if episode.is_withdrawn:  # of interest if the target knows of it, and not as part of another
                waiting, known = self._waiting.get(episode.alert_id), self._known.get(episode.alert_id)
                if known is None:
                    self._drop(episode.alert_id)
                if known is None or known.is_closed or (waiting and waiting.continued_as):
                    continue
            # In one family no episode begins within another: one that does has become part of this one, and is closed.
            begins_within = range(episode.trigger_trade_id + 1, episode.last_trigger_trade_id + 1)
            live = self._live.get(family_of(episode.alert_id), ())
            for alert_id in sorted(one for one in live if trigger_of(one) in begins_within):
                known = self._known.get(alert_id)
                if known is None or known.is_closed:
                    self._drop(alert_id)
                else:
                    self._update(episode.absorbed(alert_id, known), recorded)
            if episode.alert_id in self._known or episode.last_trigger_us >= oldest_news_us:
                self._update(episode, recorded)
        return recorded

    def drop_excess(self, now_us: int) -> int:
        """Drops waiting episodes that are too many or too old; returns how many."""
        old_us = now_us - self._age_max_us
        gone = [i for i, e in self._waiting.items() if i not in self._known and e.last_trigger_us < old_us]
        for alert_id in gone:
            self._drop(alert_id)
        too_much = list(self._waiting)[: max(len(self._waiting) - WAITING_MAX, 0)]
        for alert_id in too_much:
            self._drop(alert_id)
        return len(gone) + len(too_much)

    def next_notification(self, now_s: float) -> Notification | None:
        """What to send now; None if there is nothing or it must wait (`wait_s`). Returns the same again until it is
        `accepted`, was `refused` several times, or rows have changed; each attempt counts against the pace."""
        left = self._bucket.left(now_s)
        if not (self._waiting and left):
            return None
        self._bucket.take(now_s)
        is_single = left > 1 or len(self._waiting) == 1
        items = []
        for episode in list(self._waiting.values())[: 1 if is_single else TOGETHER_MAX]:
            known = self._known.get(episode.alert_id)
            events: list[Event] = []
            while step := next_step(episode, known, self._target):
                known = step.after
                events += [step.event] if step.event else []
                if is_single:
                    break
            assert known is not None  # else it would not be waiting
            items.append(Item(episode, tuple(events), known))
        return Notification(tuple(items))

    def wait_s(self, now_s: float) -> float | None:
        """Seconds until there may be a notification; None: not before new rows come."""
        return self._bucket.wait_s(now_s) if self._waiting else None

    def accepted(self, notification: Notification) -> dict[str, Known]:
        """The target has accepted `notification`; returns what must be recorded, by alert_id."""
        recorded = {item.episode.alert_id: item.after for item in notification.items}
        self._known |= recorded
        for alert_id in list(recorded):
            if alert_id in self._waiting:
                self._update(self._waiting[alert_id], recorded)
            else:
                self._index(alert_id)
        return recorded

    def refused(self, notification: Notification) -> None:
        """The target did not accept `notification`. It gets the same again, but after _REFUSALS_MAX refusals in a row
        the episode moves behind the others.
        """
        alert_id = notification.items[0].episode.alert_id
        self._refusals = self._refusals + 1 if alert_id == self._refused else 1
        self._refused = alert_id
        if self._refusals >= _REFUSALS_MAX and alert_id in self._waiting:
            self._waiting[alert_id] = self._waiting.pop(alert_id)

    def prune(self, now_us: int) -> None:
        """Forgets episodes that can't be news any more (`retention_limits`)."""
        closed_us, open_us = retention_limits(now_us, self._age_max_us)
        for alert_id, known in list(self._known.items()):
            is_old = known.last_trigger_us < (closed_us if known.is_closed else open_us)
            if is_old and alert_id not in self._waiting:
                del self._known[alert_id]
                self._index(alert_id)

    def _update(self, episode: AlertEpisode, recorded: dict[str, Known]) -> None:
        """Adds events that the target has not subscribed to to `recorded`; the episode waits if there are others."""
        alert_id = episode.alert_id
        while (step := next_step(episode, self._known.get(alert_id), self._target)) and step.event is None:
            self._known[alert_id] = recorded[alert_id] = step.after
        if step:
            self._waiting[alert_id] = episode
        else:
            self._waiting.pop(alert_id, None)
        self._index(alert_id)

    def _drop(self, alert_id: str) -> None:
        self._waiting.pop(alert_id, None)
        self._index(alert_id)

    def _index(self, alert_id: str) -> None:
        family = family_of(alert_id)
        known = self._known.get(alert_id)
        if alert_id in self._waiting or (known is not None and not known.is_closed):
            self._live.setdefault(family, set()).add(alert_id)
        elif family in self._live:
            self._live[family].discard(alert_id)
            if not self._live[family]:
                del self._live[family]


def retention_limits(now_us: int, age_max_us: int) -> tuple[int, int]:
    """Two times (µs UTC), for closed and for open episodes. Episodes with an older last trigger need not be remembered:
    their rows would not be news if they came again."""
    return now_us - age_max_us - _HOUR_US, now_us - age_max_us - OPEN_KEPT_US


class NotificationLedger:
    """The file `<state_dir>/notify.db`. One process at a time, any of its threads."""

    def __init__(self, state_dir: Path) -> None:
        """Opens or creates the file. A damaged file is put aside and logged: episodes of the last minutes may then be
        sent again, which is better than sending nothing.

        Raises LakeBusy when another process has the file open, ConfigurationError when it can't be written.
        """
        self._path = state_dir / "notify.db"
        self._lock = threading.Lock()
        self._unwritten: dict[tuple[str, str], Known] = {}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(0o600)
            try:
                self._db = self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                aside = self._path.with_name(f"notify.db.damaged-{int(time.time())}")
                self._path.replace(aside)
                for name in ("notify.db-wal", "notify.db-shm"):
                    self._path.with_name(name).unlink(missing_ok=True)
                _log.warning("ledger_put_aside", file=str(aside), error=str(error))
                self._db = self._open()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise LakeBusy(f"Another notifier has {self._path}. Stop it first.") from error
            raise ConfigurationError(f"Can't use {self._path}: {error}.") from error
        except OSError as error:
            raise ConfigurationError(f"Can't write {self._path}: {error.strerror}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def since_us(self, target: str, first_us: int) -> int:
        """The time (µs UTC) from which episodes are news to `target`: the `first_us` of the first call for it."""
        with self._lock, self._db:
            self._db.execute("INSERT OR IGNORE INTO targets VALUES (?, ?)", (target, first_us))
            found = self._db.execute("SELECT since_us FROM targets WHERE target = ?", (target,)).fetchone()
        return int(found[0])

    def known(self, target: str) -> dict[str, Known]:
        """What `target` has accepted, by alert_id."""
        query = "SELECT alert_id, severity, is_closed, last_trigger_us FROM told WHERE target = ?"
        with self._lock:
            rows = self._db.execute(query, (target,)).fetchall()
        return {alert_id: Known(rank, bool(closed), last_us) for alert_id, rank, closed, last_us in rows}

    def record(self, target: str, known: Mapping[str, Known]) -> None:
        """Records what `target` has accepted; returns when it is on disk.

        A failed write does not stop sending: it is logged, and tried again with the next record. Until then a restart
        would repeat these messages.
        """
        if not known:
            return
        with self._lock:
            self._unwritten |= {(target, alert_id): one for alert_id, one in known.items()}
            rows = [(*key, t.rank, t.is_closed, t.last_trigger_us) for key, t in self._unwritten.items()]
            try:
                with self._db:
                    self._db.executemany("INSERT OR REPLACE INTO told VALUES (?, ?, ?, ?, ?)", rows)
            except sqlite3.Error as error:
                _log.warning("notifications_not_recorded", count=len(rows), error=str(error))
                return
            self._unwritten.clear()

    def prune(self, now_us: int, age_max_us: int) -> None:
        """Deletes entries of episodes that can't be news any more; see `Outbox.prune`."""
        query = "DELETE FROM told WHERE last_trigger_us < CASE WHEN is_closed THEN ? ELSE ? END"
        try:
            with self._lock, self._db:
                self._db.execute(query, retention_limits(now_us, age_max_us))
        except sqlite3.Error as error:  # the file is a little larger until the next time
            _log.warning("ledger_not_trimmed", error=str(error))

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=1, check_same_thread=False)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.executescript(_SCHEMA)
            db.execute("SELECT count(*) FROM told").fetchone()
            db.execute("BEGIN EXCLUSIVE")  # the lock stays
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db


def ledger_names(targets: Sequence[NotifyTarget]) -> list[str]:
    """The names of `targets` in the ledger: digests of their addresses, numbered if several have the same address, so
    that entries stay with their address when the list changes."""
    names: list[str] = []
    for target in targets:
        digest = hashlib.sha256(target.url.get_secret_value().encode()).hexdigest()[:16]
        names.append(f"{digest}#{sum(name.startswith(digest) for name in names)}")
    return names


@dataclass
class Figures:
    """Figures of one target since the start."""

    target: str
    sent: int = 0
    """Messages that it accepted."""
    failed: int = 0
    """Failed attempts."""
    given_up: int = 0
    """Episodes dropped because too many were waiting or they became too old."""
    last_sent_at: str | None = None
    is_failing: bool = False
    """Whether the last attempt failed."""
    last_error: str | None = None
    last_error_at: str | None = None


class Delivery:
    """Sends to one target, in a thread of its own.

    Targets are independent: a dead or slow one blocks only its own thread.
    """

    def __init__(self, channel: Channel, outbox: Outbox, ledger: NotificationLedger, ledger_name: str) -> None:
        """`ledger_name`: the target's name in the ledger."""
        self._channel, self._outbox = channel, outbox
        self._ledger, self._ledger_name = ledger, ledger_name
        self._figures = Figures(channel.name)
        self._news = threading.Condition()
        self._is_ending = False
        self._error: BaseException | None = None
        # A daemon, so that the process can end while a service takes a minute to answer.
        self._thread = threading.Thread(target=self._run, name=f"notify-{channel.name}", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def take_in(self, episodes: Iterable[AlertEpisode]) -> None:
        """Adds new and changed episodes to the outbox; does not wait for sending."""
        with self._news:
            self._record(self._outbox.take_in(episodes, _now_us()))
            self._news.notify()

    def oldest_us(self) -> int:
        """See `Outbox.oldest_us`."""
        with self._news:
            return self._outbox.oldest_us(_now_us())

    def prune(self) -> None:
        """See `Outbox.prune`."""
        with self._news:
            self._outbox.prune(_now_us())

    def check(self) -> None:
        """Raises the unexpected error that ended the thread, if there was one."""
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Stops retrying; the thread ends when nothing can be sent immediately."""
        with self._news:
            self._is_ending = True
            self._news.notify()

    def join(self, timeout_s: float) -> None:
        """Waits up to `timeout_s` for the thread's end after `end`. The rest is sent at the next start."""
        self._thread.join(timeout_s)

    def state(self) -> dict[str, object]:
        """The target's figures, ready for JSON."""
        with self._news:
            return {**vars(self._figures), "waiting": self._outbox.waiting}

    def _run(self) -> None:
        try:
            backoff = Backoff(longest_s=_PAUSE_MAX_S)
            while (notification := self._next()) is not None:
                error = self._channel.send(message_of(notification))
                if error is None:
                    with self._news:
                        self._record(self._outbox.accepted(notification))
                        self._figures.sent += 1
                        self._figures.last_sent_at = _iso_now()
                        self._figures.is_failing = False
                    first = notification.items[0].episode.alert_id
                    count = len(notification.items)
                    _log.info("notification_sent", target=self._channel.name, episodes=count, alert_id=first)
                    backoff.reset()
                    continue
                pause_s = backoff.next_pause()
                retry_in_s = round(pause_s, 2)
                _log.warning("notification_failed", target=self._channel.name, error=error, retry_in_s=retry_in_s)
                again_at_s = time.monotonic() + pause_s
                with self._news:
                    self._outbox.refused(notification)
                    self._figures.failed += 1
                    self._figures.is_failing = True
                    self._figures.last_error, self._figures.last_error_at = error, _iso_now()
                    while not self._is_ending and (left_s := again_at_s - time.monotonic()) > 0:
                        self._news.wait(left_s)
                    if self._is_ending:
                        return
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._error = error

    def _next(self) -> Notification | None:
        """The next notification, when it may be sent; None at the end."""
        with self._news:
            while True:
                if count := self._outbox.drop_excess(_now_us()):
                    self._figures.given_up += count
                    _log.warning("notifications_given_up", target=self._channel.name, episodes=count)
                now_s = time.monotonic()
                notification = self._outbox.next_notification(now_s)
                if notification is not None:
                    return notification
                if self._is_ending:
                    return None
                self._news.wait(self._outbox.wait_s(now_s))

    def _record(self, known: Mapping[str, Known]) -> None:
        # The caller holds the lock, so that two records of one episode can't swap.
        self._ledger.record(self._ledger_name, known)


def _now_us() -> int:
    return time.time_ns() // 1000


def _iso_now() -> str:
    return datetime.now(UTC).isoformat()
