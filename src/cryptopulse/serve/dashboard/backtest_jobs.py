"""Backtests of an alert rule on the stored trades, from a form: validation, jobs, progress.

The pipeline's own judge is used (`cryptopulse.engine.backtest`). One job runs at a time, in a thread of its own, and a
few more wait. A job is cancelled when its page was closed or it takes too long.
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
from pydantic import ValidationError

from cryptopulse.engine.backtest import backtest
from cryptopulse.engine.custom_rules import check_custom_rules
from cryptopulse.errors import ConfigurationError, CryptoPulseError
from cryptopulse.lake.alerts import SHARED_KINDS
from cryptopulse.lake.location import LakeLocation
from cryptopulse.serve.http.problems import defect
from cryptopulse.settings import AlertRule

EPISODES_MAX: Final = 500
"""How many episodes of a job are sent, the newest ones; all are counted."""
LONGEST_S: Final = 600.0
"""A job is cancelled after this time."""
UNSEEN_S: Final = 20.0
"""A job is cancelled when its state has not been requested for this long."""

_WAITING_MAX = 4
_KEPT_MAX = 8
# Products are judged in parts, one after the other, so that progress shows, a job can stop, and only one part is in
# memory. Each part opens the tables for each hour, so there are only as many as the trades need (2.8 million trades in
# one part took minutes).
_TRADES_A_PART = 200_000
_PARTS_MAX = 24

_RULES: Final[Mapping[str, str]] = {
    "name": "Name: letters, digits, “.”, “_” and “-”, without spaces.",
    "threshold_pct": "Threshold: a number of percent above 0, with at most 4 decimals, as in 0.5.",
    "lookback_s": "Look-back: whole seconds, from 1 to 3600.",
    "cool_down_s": "Cool-down: whole seconds, from 0 to 86400.",
    "min_volume": "Least volume: a number, 0 or more.",
    "min_trades": "Least trades: a whole number, 2 or more.",
    "baseline_windows": "Usual windows: a whole number from 3 to 200.",
    "types": "Types: choose one or more, all of one kind.",
    "products": "Products: ids or patterns, as in BTC-USD, *-EUR.",
    "sql": "SQL: one SELECT over bars, of at most 20,000 letters.",
    "start": "From: a time, as in 2026-07-07T22:00.",
    "end": "To: a time, as in 2026-07-07T23:00.",
}

State = Literal["waiting", "running", "done", "failed", "cancelled"]


class FormRejected(Exception):
    """The form is invalid. `faults`: by field, what to write instead."""

    def __init__(self, faults: Mapping[str, str]) -> None:
        super().__init__(" ".join(faults.values()))
        self.faults = dict(faults)


@dataclass(frozen=True)
class BacktestRequest:
    """A valid form."""

    rule: AlertRule
    parts: Sequence[Sequence[str]]
    """The lake's products that the rule applies to, in parts that are judged one after the other."""
    start: datetime | None
    end: datetime | None


@dataclass(eq=False)
class BacktestJob:
    """One backtest. Written by the thread that runs it, read by others."""

    request: BacktestRequest
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    state: State = "waiting"
    done: int = 0
    """Steps done, of `steps`; 0 steps: not known yet."""
    steps: int = 0
    message: str | None = None
    """Why it failed or was cancelled."""
    episodes: pa.Table | None = None
    """The newest first."""
    took_s: float = 0.0
    seen_s: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in ("done", "failed", "cancelled")


class _Cancelled(Exception):
    """Raised within the backtest to end it."""


def parse_form(form: Mapping[str, Any], trades: Mapping[str, int]) -> BacktestRequest:
    """The request from a form. `trades`: number of trades in the lake, by product. Raises FormRejected."""
    given = {name: form[name] for name in AlertRule.model_fields if form.get(name) not in (None, "")}
    faults: dict[str, str] = {}
    rule = AlertRule()
    if form.get("types") == []:
        faults["types"] = _RULES["types"]
    if "threshold_pct" not in given:
        faults["threshold_pct"] = _RULES["threshold_pct"]
    try:
        rule = AlertRule(**given)
        check_custom_rules([rule])
    except ConfigurationError as error:
        faults["sql"] = str(error)
    except ValidationError as error:
        for one in error.errors():
            name, why = str(one["loc"][0]), str(one["msg"]).removeprefix("Value error, ")
            label = _RULES.get(name, name).partition(":")[0]
            faults[name] = f"{label}: {why}." if one["type"] == "value_error" else _RULES.get(name, one["msg"])
    times: dict[str, datetime] = {}
    for name in ("start", "end"):
        if form.get(name) not in (None, ""):
            try:
                times[name] = datetime.fromtimestamp(float(form[name]) / 1000, UTC)
            except (TypeError, ValueError, OverflowError, OSError):
                faults[name] = _RULES[name]
    start, end = times.get("start"), times.get("end")
    if start and end and end <= start:
        faults["end"] = "To: must be later than “From”."
    symbols = [symbol for symbol in trades if rule.applies_to(symbol)]
    if not symbols and "products" not in faults:
        patterns = ", ".join(rule.products)
        faults["products"] = f"Products: nothing in this lake matches {patterns}." if trades else "The lake is empty."
    if faults:
        raise FormRejected(faults)
    # A rule that compares products reads them all for each part.
    parts_max = 1 if rule.kind in SHARED_KINDS else _PARTS_MAX
    count = min(max(-(-sum(trades[symbol] for symbol in symbols) // _TRADES_A_PART), 1), parts_max)
    size = -(-len(symbols) // count)
    parts = [symbols[at : at + size] for at in range(0, len(symbols), size)]
    return BacktestRequest(rule, parts, start, end)


class BacktestJobs:
    """The jobs of all visitors, on one lake. Thread-safe."""

    def __init__(self, lake: LakeLocation) -> None:
        """Starts without jobs."""
        self._lake = lake
        self._jobs: dict[str, BacktestJob] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="backtest")

    def start(self, request: BacktestRequest) -> BacktestJob:
        """Queues a job. Raises FormRejected when too many wait."""
        with self._lock:
            over = [job_id for job_id, job in self._jobs.items() if job.is_over]
            for job_id in over[: max(len(self._jobs) - _KEPT_MAX, 0)]:
                del self._jobs[job_id]
            if sum(not job.is_over for job in self._jobs.values()) > _WAITING_MAX:
                raise FormRejected({"": "The backtest queue is full; try again in a moment."})
            job = BacktestJob(request)
            self._jobs[job.id] = job
        self._threads.submit(self._run, job)
        return job

    def find(self, job_id: str) -> BacktestJob | None:
        """The job with this id, None when it is no longer kept. Marks it as seen."""
        job = self._jobs.get(job_id)
        if job is not None:
            job.seen_s = time.monotonic()
        return job

    def cancel(self, job_id: str) -> None:
        """Ends the job with this id, at its next step."""
        if (job := self._jobs.get(job_id)) is not None:
            job.stop.set()

    def close(self) -> None:
        """Cancels all jobs and ends the thread."""
        for job in list(self._jobs.values()):
            job.stop.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: BacktestJob) -> None:
        request, began_s = job.request, time.monotonic()
        job.state = "running"

        def check() -> None:
            now_s = time.monotonic()
            if job.stop.is_set():
                raise _Cancelled("Cancelled.")
            if now_s - job.seen_s > UNSEEN_S:
                raise _Cancelled("Cancelled: the page was closed.")
            if now_s - began_s > LONGEST_S:
                limit = f"{LONGEST_S / 60:g} minutes"
                raise _Cancelled(f"Cancelled after {limit}: choose a shorter time or fewer products.")

        try:
            found = []
            for place, symbols in enumerate(request.parts):

                def progress(done: int, total: int, place: int = place) -> None:
                    job.done, job.steps = place * total + done, len(request.parts) * total
                    check()

                check()
                found.append(backtest(self._lake, [request.rule], symbols, request.start, request.end, progress))
            order = [("opened_at", "descending"), ("alert_id", "ascending")]
            job.episodes = pa.concat_tables(found).sort_by(order)
        except _Cancelled as cancelled:
            job.state, job.message = "cancelled", str(cancelled)
        except CryptoPulseError as error:
            job.state, job.message = "failed", str(error)
        except Exception as error:  # noqa: BLE001 - the form must say so, and the next job must run
            job.state, job.message = "failed", defect(f"backtest of {request.rule}", error).detail
        else:
            job.took_s = time.monotonic() - began_s
            job.state = "done"
