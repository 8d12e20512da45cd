"""Trying an alert rule on the stored trades from a form: what is asked, whether it can be meant, how far it is.

The judge is the pipeline's (`cryptopulse.engine.backtest`). One trial runs at a time, in a thread of its own; a few
more wait. One that nobody looks at any more is ended, and so is one that takes too long.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

import pyarrow as pa
import structlog
from pydantic import ValidationError

from cryptopulse.engine.backtest import backtest
from cryptopulse.errors import CryptoPulseError
from cryptopulse.lake.location import LakeLocation
from cryptopulse.settings import AlertRule

EPISODES_MAX: Final = 500
"""So many episodes of a trial are kept, the newest; all of them are counted."""
LONGEST_S: Final = 600.0
"""A trial is ended after this time."""
UNSEEN_S: Final = 20.0
"""A trial is ended when nobody has asked for so long how far it is."""

_WAITING_MAX = 4
_KEPT_MAX = 8
# Products are judged in parts, one after the other: steps to see and to stop at, and memory for one at a time. But each
# part opens the tables for each hour, so there are no more than the trades need (2.8 million in one go took minutes).
_TRADES_A_PART = 200_000
_PARTS_MAX = 24

_log = structlog.get_logger()

_SAID: Final[Mapping[str, str]] = {
    "name": "Name: letters, digits, “.”, “_” and “-”, without spaces.",
    "threshold_pct": "Threshold: a number of percent above 0 and below 100, with at most 4 decimals, as in 0.5.",
    "lookback_s": "Look-back: whole seconds, from 1 to 3600.",
    "cool_down_s": "Cool-down: whole seconds, from 0 to 86400.",
    "min_volume": "Least volume: a number, 0 or more.",
    "min_trades": "Least trades: a whole number, 2 or more.",
    "types": "Types: choose crashes, surges, or both.",
    "products": "Products: ids or patterns, as in BTC-USD, *-EUR.",
    "start": "From: a time, as in 2026-07-07T22:00.",
    "end": "To: a time, as in 2026-07-07T23:00.",
}

State = Literal["waiting", "running", "done", "failed", "cancelled"]


class Refused(Exception):
    """A form that can't be meant; `faults` says by field what to write instead."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        super().__init__(" ".join(faults.values()))
        self.faults = dict(faults)


@dataclass(frozen=True)
class Asked:
    """What a form asks for."""

    rule: AlertRule
    parts: Sequence[Sequence[str]]
    """The products of the lake that the rule is for, in parts to be judged one after the other."""
    start: datetime | None
    end: datetime | None


@dataclass(eq=False)
class Trial:
    """One of them; written by the thread that judges, read by others."""

    asked: Asked
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    state: State = "waiting"
    done: int = 0
    """Steps that are judged, of `steps`; 0 steps: not known yet."""
    steps: int = 0
    said: str | None = None
    """Why it failed or was ended."""
    episodes: pa.Table | None = None
    took_s: float = 0.0
    seen_s: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed", "cancelled")


class _Stopped(Exception):
    """Raised within the judge to end it."""


def read_form(form: Mapping[str, Any], trades: Mapping[str, int]) -> Asked:
    """What the form asks for. `trades`: how many the lake holds, by product. Raises Refused."""
    given = {name: form[name] for name in AlertRule.model_fields if form.get(name) not in (None, "")}
    faults: dict[str, str] = {}
    rule = AlertRule()
    if form.get("types") == []:
        faults["types"] = _SAID["types"]
    if "threshold_pct" not in given:
        faults["threshold_pct"] = _SAID["threshold_pct"]
    try:
        rule = AlertRule(**given)
    except ValidationError as error:
        faults |= {name: _SAID.get(name, one["msg"]) for one in error.errors() for name in [str(one["loc"][0])]}
    times = {name: _time(form.get(name), name, faults) for name in ("start", "end")}
    start, end = times["start"], times["end"]
    if start and end and end <= start:
        faults["end"] = "To: must be later than “From”."
    symbols = [symbol for symbol in trades if rule.applies_to(symbol)]
    if not symbols and "products" not in faults:
        named = ", ".join(rule.products)
        faults["products"] = f"Products: nothing in this lake is named {named}." if trades else "The lake is empty."
    if faults:
        raise Refused(faults)
    return Asked(rule, _parts(symbols, sum(trades[symbol] for symbol in symbols)), start, end)


def _parts(symbols: Sequence[str], trades: int) -> list[Sequence[str]]:
    count = min(max(-(-trades // _TRADES_A_PART), 1), _PARTS_MAX)
    size = -(-len(symbols) // count)
    return [symbols[at : at + size] for at in range(0, len(symbols), size)]


def _time(value: Any, name: str, faults: dict[str, str]) -> datetime | None:
    """A time from ms since 1970."""
    if value in (None, ""):
        return None
    try:
        return datetime.fromtimestamp(float(value) / 1000, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        faults[name] = _SAID[name]
        return None


class Trials:
    """The trials of all visitors, about one lake. Used from any thread."""

    def __init__(self, lake: LakeLocation) -> None:
        """None is running."""
        self._lake = lake
        self._trials: dict[str, Trial] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="trial")

    def start(self, asked: Asked) -> Trial:
        """Begins one, as soon as those before it are over. Raises Refused when too many wait."""
        with self._lock:
            self._forget_old()
            if sum(not trial.is_over for trial in self._trials.values()) > _WAITING_MAX:
                raise Refused({"": "Others are trying rules as well: try again in a moment."})
            trial = Trial(asked)
            self._trials[trial.id] = trial
        self._threads.submit(self._run, trial)
        return trial

    def find(self, name: str) -> Trial | None:
        """The trial with this id, if it is still kept; it counts as looked at."""
        trial = self._trials.get(name)
        if trial is not None:
            trial.seen_s = time.monotonic()
        return trial

    def cancel(self, name: str) -> None:
        """Ends the trial with this id, at its next step."""
        if (trial := self._trials.get(name)) is not None:
            trial.stop.set()

    def close(self) -> None:
        """Ends all."""
        for trial in list(self._trials.values()):
            trial.stop.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _forget_old(self) -> None:
        over = [name for name, trial in self._trials.items() if trial.is_over]
        for name in over[: max(len(self._trials) - _KEPT_MAX, 0)]:
            del self._trials[name]

    def _run(self, trial: Trial) -> None:
        began_s = time.monotonic()
        trial.state = "running"
        try:
            trial.episodes = self._judged(trial, began_s)
        except _Stopped as stopped:
            trial.state, trial.said = "cancelled", str(stopped)
        except CryptoPulseError as error:
            trial.state, trial.said = "failed", str(error)
        except Exception:  # noqa: BLE001 - the form must say so, and the next trial must run
            _log.exception("trial_failed", rule=str(trial.asked.rule))
            trial.state, trial.said = "failed", "The trial failed: see the server's log."
        else:
            trial.took_s = time.monotonic() - began_s
            trial.state = "done"

    def _judged(self, trial: Trial, began_s: float) -> pa.Table:
        """The episodes, the newest first."""
        asked, found = trial.asked, []
        for place, symbols in enumerate(asked.parts):

            def progress(done: int, total: int, place: int = place) -> None:
                trial.done, trial.steps = place * total + done, len(asked.parts) * total
                _check(trial, began_s)

            _check(trial, began_s)
            found.append(backtest(self._lake, [asked.rule], symbols, asked.start, asked.end, progress))
        episodes = pa.concat_tables(found)
        return episodes.sort_by([("opened_at", "descending"), ("alert_id", "ascending")])


def _check(trial: Trial, began_s: float) -> None:
    """Raises _Stopped when the trial should end."""
    now_s = time.monotonic()
    if trial.stop.is_set():
        raise _Stopped("It was ended.")
    if now_s - trial.seen_s > UNSEEN_S:
        raise _Stopped("It was ended, as nobody looked any more.")
    if now_s - began_s > LONGEST_S:
        raise _Stopped(f"It took more than {LONGEST_S / 60:g} minutes: choose a shorter time or fewer products.")
