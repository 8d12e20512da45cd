"""What costs more than a look at new rows: questions that are asked at most once in some seconds, for all who look.

A question is asked while somebody watches its topic, in a thread of its own, and its answer goes to all of them. One
that took long is asked less often, so that looking costs a small part of a core whatever the size of the lake.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import structlog

from cryptopulse.errors import CryptoPulseError
from cryptopulse.serve.live.message import Message

ANSWER: Final = "answers/"
"""`answers/<question>`: the newest answer to it."""

_PAUSE_PER_WORK = 10  # a question that takes a second rests for ten

_log = structlog.get_logger()


@dataclass(frozen=True)
class Question:
    """Something to ask again and again."""

    ask: Callable[[], Mapping[str, Any]]
    """Gives the answer, as JSON can say it. May raise what is wrong with the lake."""
    every_s: float
    """It is asked no more often than this."""
    is_quick: bool = False
    """Whether it takes no more than some milliseconds; such ones don't wait for the others."""


class Answers:
    """The newest answers. From the thread that follows, but for `ready`, which is called from those that ask."""

    def __init__(self, questions: Mapping[str, Question], ready: Callable[[str], None]) -> None:
        """`questions` by name; `ready` is called with a topic when `loaded` has something new of it."""
        self._questions = {f"{ANSWER}{name}": question for name, question in questions.items()}
        self._ready = ready
        self._due_s: dict[str, float] = {}
        self._asked: set[str] = set()
        self._answers: dict[str, Message] = {}
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="answers-quick")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="answers")

    def close(self) -> None:
        """Ends the threads that ask, after the questions that they are at."""
        for threads in (self._quick, self._slow):
            threads.shutdown(wait=True, cancel_futures=True)

    def forget(self) -> None:
        """Lets go of the answers; whoever comes next waits for new ones."""
        self._answers.clear()
        self._due_s.clear()

    def look(self, watched: Collection[str]) -> None:
        """Begins to ask those of the topics `watched` that are due."""
        now_s = time.monotonic()
        for topic in watched:
            if topic in self._questions and topic not in self._asked and now_s >= self._due_s.get(topic, 0.0):
                self._asked.add(topic)
                question = self._questions[topic]
                (self._quick if question.is_quick else self._slow).submit(self._work, topic, question)

    def snapshot(self, topic: str) -> Message | None:
        """The newest answer, even if it is of some time ago; None when there is none yet."""
        return self._answers.get(topic)

    loaded = snapshot

    def _work(self, topic: str, question: Question) -> None:
        began_s, asked_us = time.monotonic(), time.time_ns() // 1000
        try:
            data = {"state": "answered", "said": None, **question.ask()}
        except CryptoPulseError as error:
            data = {"state": "failed", "said": str(error)}
        except Exception:  # noqa: BLE001 - one question must not end the others; that it is a defect is in the log
            _log.exception("question_failed", topic=topic)
            data = {"state": "failed", "said": "This can't be shown: see the server's log."}
        took_s = time.monotonic() - began_s
        self._answers[topic] = Message(
            topic, "snapshot", {"asked_us": asked_us, "took_ms": round(took_s * 1000), **data}
        )
        self._due_s[topic] = began_s + took_s + max(question.every_s - took_s, took_s * _PAUSE_PER_WORK)
        self._asked.discard(topic)
        self._ready(topic)
