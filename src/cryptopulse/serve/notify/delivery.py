"""One target's thread: sends what its outbox says, and writes down what was accepted.

Targets know nothing of each other: one that is dead or slow keeps only its own thread waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from cryptopulse.retry import Backoff
from cryptopulse.serve.notify.channel import Channel
from cryptopulse.serve.notify.episodes import Episode, Told
from cryptopulse.serve.notify.ledger import Ledger
from cryptopulse.serve.notify.outbox import Letter, Outbox
from cryptopulse.serve.notify.words import message_of

_log = structlog.get_logger()

_PAUSE_MAX_S = 60.0


@dataclass
class Figures:
    """What became of one target's messages since the start."""

    target: str
    sent: int = 0
    """Messages that it accepted."""
    failed: int = 0
    """Attempts that it did not."""
    given_up: int = 0
    """Episodes that were too many or too old by the time it would have accepted."""
    last_sent_at: str | None = None
    is_failing: bool = False
    """Whether the last attempt failed."""
    last_error: str | None = None
    last_error_at: str | None = None


class Delivery:
    """Sends to one target, in a thread of its own, from `start` on."""

    def __init__(self, channel: Channel, outbox: Outbox, ledger: Ledger, ledger_name: str) -> None:
        """`ledger_name`: under which the ledger knows the target."""
        self._channel, self._outbox = channel, outbox
        self._ledger, self._ledger_name = ledger, ledger_name
        self._figures = Figures(channel.name)
        self._news = threading.Condition()
        self._is_ending = False
        self._error: BaseException | None = None
        # Not waited for at the end of the process: a service may take a minute to answer.
        self._thread = threading.Thread(target=self._run, name=f"notify-{channel.name}", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def take_in(self, episodes: Iterable[Episode]) -> None:
        """Hands over what has changed; returns at once."""
        with self._news:
            self._record(self._outbox.take_in(episodes, _now_us()))
            self._news.notify()

    def oldest_us(self) -> int:
        """See `Outbox.oldest_us`."""
        with self._news:
            return self._outbox.oldest_us(_now_us())

    def forget(self) -> None:
        """See `Outbox.forget`."""
        with self._news:
            self._outbox.forget(_now_us())

    def check(self) -> None:
        """Raises what ended the thread, if something did: a fault of ours."""
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """From now on nothing is tried again; the thread ends when nothing is left to send at once."""
        with self._news:
            self._is_ending = True
            self._news.notify()

    def join(self, timeout_s: float) -> None:
        """Waits for the thread's end after `end`, for so long. What it had no time for is told at the next start."""
        self._thread.join(timeout_s)

    def state(self) -> dict[str, object]:
        """Its figures, ready for JSON."""
        with self._news:
            return {**vars(self._figures), "waiting": self._outbox.waiting}

    def _run(self) -> None:
        try:
            backoff = Backoff(longest_s=_PAUSE_MAX_S)
            while (letter := self._next_letter()) is not None:
                error = self._channel.send(message_of(letter))
                if error is None:
                    self._accepted(letter)
                    backoff.reset()
                elif not self._may_try_again(letter, error, backoff.next_pause()):
                    return
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._error = error

    def _next_letter(self) -> Letter | None:
        """Waits for something that may be sent now; None at the end."""
        with self._news:
            while True:
                self._give_up()
                now_s = time.monotonic()
                letter = self._outbox.next_letter(now_s)
                if letter is not None:
                    return letter
                if self._is_ending:
                    return None
                self._news.wait(self._outbox.wait_s(now_s))

    def _give_up(self) -> None:
        if count := self._outbox.give_up(_now_us()):
            self._figures.given_up += count
            _log.warning("notifications_given_up", target=self._channel.name, episodes=count)

    def _accepted(self, letter: Letter) -> None:
        with self._news:
            self._record(self._outbox.accepted(letter))
            self._figures.sent += 1
            self._figures.last_sent_at = _iso_now()
            self._figures.is_failing = False
        first = letter.items[0].episode.alert_id
        _log.info("notification_sent", target=self._channel.name, episodes=len(letter.items), alert_id=first)

    def _record(self, told: Mapping[str, Told]) -> None:
        # While the lock is held: two records of one episode must not change places.
        self._ledger.record(self._ledger_name, told)

    def _may_try_again(self, letter: Letter, error: str, pause_s: float) -> bool:
        """Says what failed and lets the pause go by; False when the end comes first."""
        _log.warning("notification_failed", target=self._channel.name, error=error, retry_in_s=round(pause_s, 2))
        again_at_s = time.monotonic() + pause_s
        with self._news:
            self._outbox.refused(letter)
            self._figures.failed += 1
            self._figures.is_failing = True
            self._figures.last_error, self._figures.last_error_at = error, _iso_now()
            while not self._is_ending and (left_s := again_at_s - time.monotonic()) > 0:
                self._news.wait(left_s)
            return not self._is_ending


def _now_us() -> int:
    return time.time_ns() // 1000


def _iso_now() -> str:
    return datetime.now(UTC).isoformat()
