"""The processing loop: brings the tables up to date in order, again and again.

Two lanes share the work. The fast lane moves messages from the log to bronze, silver and alerts, in batches of whatever
has arrived. The slow lane brings bars, statistics and completeness up to date at intervals. When the fast lane is
behind, it takes large batches in stages that run in parallel, so that the input of gold is still in memory.

A step costs a few milliseconds whatever its size, so it waits for a few messages, but never long (`Pace`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

import pyarrow as pa
import structlog

from cryptopulse.engine import StepResult
from cryptopulse.engine.embedded import EmbeddedEngine
from cryptopulse.errors import LakeBusy, LakeDamaged
from cryptopulse.lake.lock import LakeLock
from cryptopulse.lake.retention import check_let_go, let_go, recorded
from cryptopulse.lake.tables import (
    ABSENT,
    ALERTS,
    BARS,
    BRONZE,
    BY_NAME,
    COMPLETENESS,
    COVERAGE,
    QUARANTINE,
    SILVER,
    STATS,
    Table,
)
from cryptopulse.log import Log
from cryptopulse.log.continuity import Continuity
from cryptopulse.settings import ProcessingSettings, Settings
from cryptopulse.store.durability import check_file_system
from cryptopulse.store.maintenance import Maintenance
from cryptopulse.store.repair import put_aside, repair_lake
from cryptopulse.store.retention import Retention
from cryptopulse.store.table_writer import TableWriter
from cryptopulse.telemetry import Telemetry

_FAST = (SILVER, ALERTS, QUARANTINE, ABSENT, COVERAGE)
_SLOW = (BARS, STATS, COMPLETENESS)
_BEHIND_MESSAGES = 20_000  # a batch this large means that the lane is behind: gold then runs along with the batches
_MESSAGES_PER_STEP = 45  # enough to share the fixed cost of a step, and at 1,000 a second a wait of 45 ms
_WITHOUT_GOLD_MAX = 200_000  # trades that gold has not consumed; they stay in memory, and one REST page has a thousand
_RATE_S = 1.0
_REPORT_S = 0.5
_GROWING_S = 0.01
_LAKE_WAIT_S = 300.0

_NO_REBUILD = "A rebuild would lose what was made of the days that are gone"

Report = Callable[[dict[str, object]], None]
ProgressBar = Callable[[int, int], None]

_log = structlog.get_logger()


class Pipeline:
    """One lake's tables, kept up to date from one log. Use as a context manager: it holds the lake's lock."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Takes the lock, repairs what a power cut left, and opens the tables.

        Raises LakeBusy when another pipeline holds the lake, LakeDamaged when it can't be repaired,
        ConfigurationError when the log is not the one that the lake was filled from.
        """
        self._settings = settings
        self._log = log
        with ExitStack() as stack:
            stack.enter_context(LakeLock(settings.state_dir, settings.lake))
            check_file_system(settings.location)
            repair_lake(settings.location, log)
            self.engine = EmbeddedEngine(settings)
            stack.callback(self.engine.close)
            self.telemetry = Telemetry(self.engine)
            self.maintenance = Maintenance(settings.maintenance, settings.state_dir, self.engine, log)
            stack.callback(self.maintenance.close)
            self.retention = Retention(settings.retention, self.engine.tables)
            self._continuity = Continuity(log)
            self._continuity.check_start(self.engine.stored_to)
            self._release = stack.pop_all()
        self._slow_lane = threading.Lock()
        self._trades_without_gold = 0
        self._on_stored = _Counter(0, lambda _done, _total: None)

    def __enter__(self) -> Pipeline:
        """The pipeline itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the engine and releases the lake's lock."""
        self._release.close()

    def step(self, partition: int) -> int:
        """Moves new messages of `partition` through the fast lane; returns how many, or how many trades if these are
        more: a message of some venues has several.
        """
        records = self._read(partition, self.engine.stored_to(partition))
        if records.num_rows >= _BEHIND_MESSAGES:
            return self._catch_up(partition, records)
        self._store(records)
        trades = sum(result.rows.num_rows for result in self._advance_each(_FAST) if result.table is SILVER)
        return int(max(records.num_rows, trades))

    def gold(self) -> None:
        """Brings bars, statistics and completeness up to date."""
        with self._slow_lane:
            self._trades_without_gold = 0
            self._advance_each(_SLOW)

    def maintain(self) -> None:
        """Runs the maintenance that is due, and lets days go whose time is over."""
        self.maintenance.run_due()
        self.retention.run_due()

    def drain(self, progress: ProgressBar, appending: Future[None] | None = None, coming: int = 0) -> None:
        """Processes until every table is up to the log's present end, then trims the log.

        `appending`: another thread that appends meanwhile (`coming` messages, for `progress`); its messages are
        processed as well, and its error is raised.
        """
        self._on_stored = _Counter(self.lag() + coming, progress)
        while True:
            is_last_look = appending is None or appending.done()
            ends = {partition: self._log.bounds(partition)[1] for partition in self._log.partitions()}
            is_idle = True
            for partition, end in ends.items():
                while self.engine.stored_to(partition) < end - 1 and self.step(partition):
                    is_idle = False
                    if self._trades_without_gold >= _WITHOUT_GOLD_MAX:
                        self.gold()
                    self.maintenance.run_due()
            if is_last_look:
                break
            if is_idle:
                time.sleep(_GROWING_S)
        for partition, end in ends.items():
            self._continuity.check_drained(partition, self.engine.stored_to(partition), end)
        if appending is not None:
            appending.result()
        self._finish()
        self.maintenance.trim()  # a process that only drains may end before trimming is due

    def _catch_up(self, partition: int, records: pa.Table) -> int:
        """Processes a long log in parallel stages: a batch is stored and parsed, the previous one goes to silver, and
        the next one is read. Gold runs beside them as fast as it can. Returns the number of messages.
        """
        messages = 0
        with ThreadPoolExecutor(3, thread_name_prefix="catch-up") as pool:
            gold = pool.submit(self.gold)
            while records.num_rows >= _BEHIND_MESSAGES:
                work: list[Future[Any]] = [pool.submit(self._store, records), pool.submit(self._advance_each, _FAST)]
                messages += records.num_rows
                self.engine.parse_ahead(records)
                records = self._read(partition, records["offset"][-1].as_py())
                for stage in work:
                    stage.result()
                if gold.done() or self._trades_without_gold >= _WITHOUT_GOLD_MAX:
                    gold.result()
                    gold = pool.submit(self.gold)
            gold.result()
        self._store(records)
        self._advance_each(_FAST)
        return messages + int(records.num_rows)

    def _read(self, partition: int, after: int) -> pa.Table:
        records = self._log.read(partition, after + 1, self._settings.processing.batch_messages_max)
        self._continuity.check_read(partition, after + 1, records)
        return records

    def _store(self, records: pa.Table) -> None:
        if records.num_rows:
            expired = [*self._continuity.unrecorded]
            # What silver has consumed was read once: bronze lost it since, as by restoring an older copy.
            unread = [one for one in expired if self.engine.parsed_to(one.partition) < one.first_offset]
            self.telemetry.add(self.engine.store(records, {one.source: one.last_offset for one in unread}))
            del self._continuity.unrecorded[: len(expired)]
            self._on_stored(records.num_rows)

    def _finish(self) -> None:
        """Brings every table up to the end of bronze."""
        self.engine.wait_for_news(False)
        while self._advance_each((*_FAST, *_SLOW)):
            pass
        self.engine.wait_for_news(True)

    def _advance_each(self, tables: Sequence[Table]) -> list[StepResult]:
        """One step of each of `tables`, in this order; the results of those that had new input."""
        results = [self._advance(table) for table in tables]
        return [result for result in results if result is not None]

    def _advance(self, table: Table) -> StepResult | None:
        result = self.engine.advance(table)
        if result is not None:
            self.telemetry.add(result)
            if table is SILVER:
                self._trades_without_gold += result.rows.num_rows
        return result

    def rederive(self, progress: ProgressBar) -> None:
        """Derives silver and gold again from bronze.

        Gold and coverage are emptied before silver, so after a kill in between any pipeline can complete the lake.
        Raises ConfigurationError, and changes nothing, when retention has let go of days of bronze or silver.
        """
        for table in (BRONZE, SILVER):
            check_let_go(recorded(table, self.engine.tables[table.qualified].position), _NO_REBUILD)
        self.engine.reset((COMPLETENESS, STATS, BARS, ALERTS, ABSENT, QUARANTINE, COVERAGE, SILVER))
        self.telemetry = Telemetry(self.engine)
        count = _Counter(self.engine.stored_messages(), progress)
        while (result := self._advance(SILVER)) is not None:
            self._advance_each(_FAST[1:])
            self.gold()
            self.maintenance.run_due()
            count(result.consumed)
        self._finish()

    def lag(self) -> int:
        """How many messages of the log are not in bronze."""
        bounds = {partition: self._log.bounds(partition) for partition in self._log.partitions()}
        return sum(max(end - max(self.engine.stored_to(p) + 1, first), 0) for p, (first, end) in bounds.items())

    def state(self) -> dict[str, object]:
        """The state of the processing, ready for JSON; see `cryptopulse.telemetry`."""
        tables = {
            name: {"version": writer.version, "rows_written": writer.rows_written, **_kept_from(writer)}
            for name, writer in self.engine.tables.items()
        }
        expired = {"messages_expired_total": self._continuity.expired}
        return {**self.telemetry.state(self.engine.episodes, self.lag()), **expired, "tables": tables}


def _kept_from(writer: TableWriter) -> dict[str, str]:
    gone = recorded(writer.table, writer.position)
    return {"kept_from": str(gone.kept_from)} if gone else {}


class _Counter:
    """Adds up finished messages and reports them to a progress bar."""

    def __init__(self, total: int, progress: ProgressBar) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, more: int) -> None:
        self._done += more
        self._progress(min(self._done, self._total), self._total)


def process(settings: Settings, log: Log, stop: threading.Event, report: Report) -> None:
    """Keeps the lake up to date until `stop` is set; then processes the log up to its present end and returns.

    Calls `report` with the state every half second. Raises the error that stopped it: LakeBusy, Fenced, LogDamaged, …
    """
    opened = _opened(settings, log, stop)
    if opened is None:  # nothing is lost: the log keeps its messages for the next start
        return
    with opened as pipeline:
        with _BackgroundThreads(pipeline, settings, report) as background:
            pace = Pace(settings.processing)
            last_at = time.monotonic()
            while not stop.is_set():
                background.check()
                started_at = time.monotonic()
                messages = sum(pipeline.step(partition) for partition in log.partitions())
                step_s = pace.step_s(messages, started_at - last_at)
                last_at = started_at
                stop.wait(max(started_at + step_s - time.monotonic(), 0))
        pipeline.drain(lambda _done, _total: None)
        report(pipeline.state())


class Pace:
    """How long to wait for messages, so that about `_MESSAGES_PER_STEP` share the cost of a step, within the bounds of
    the settings. The rate is that of the last step or of about the last second, whichever is higher: messages come in
    groups, and a step without any shows little.
    """

    def __init__(self, settings: ProcessingSettings) -> None:
        """Starts with the shortest wait."""
        self._shortest_s, self._longest_s = settings.step_interval_ms / 1000, settings.step_interval_max_ms / 1000
        self._seconds = _RATE_S
        self._messages = _MESSAGES_PER_STEP * _RATE_S / max(self._shortest_s, 0.001)

    def step_s(self, messages: int, since_last_s: float) -> float:
        """Seconds from the start of this step to the next. It found `messages`, `since_last_s` after the last one."""
        kept = math.exp(-since_last_s / _RATE_S)
        self._messages = self._messages * kept + messages
        self._seconds = self._seconds * kept + since_last_s
        rate = max(self._messages / self._seconds, messages / max(since_last_s, 0.001))
        return max(self._shortest_s, min(self._longest_s, _MESSAGES_PER_STEP / max(rate, 1e-9)))


def _opened(settings: Settings, log: Log, stop: threading.Event) -> Pipeline | None:
    """The lake's pipeline; None if `stop` was set first. Waits up to _LAKE_WAIT_S for another pipeline (of a backfill
    or a replay) to end, then raises LakeBusy: restarting the processing must not end a whole deployment's recording.
    """
    give_up_at = time.monotonic() + _LAKE_WAIT_S
    is_logged = False
    while True:
        try:
            return Pipeline(settings, log)
        except LakeBusy as error:
            if stop.is_set():
                return None
            if time.monotonic() >= give_up_at:
                raise
            if not is_logged:
                _log.warning("waiting_for_lake", error=str(error), at_most_s=_LAKE_WAIT_S)
                is_logged = True
            stop.wait(0.2)


def drain(settings: Settings, log: Log, progress: ProgressBar) -> dict[str, object]:
    """Brings every table up to the log's present end; returns a summary (`Telemetry.summary`)."""
    with Pipeline(settings, log) as pipeline:
        pipeline.drain(progress)
        pipeline.retention.run_due()
        return pipeline.telemetry.summary()


def rebuild(settings: Settings, log: Log, progress: ProgressBar) -> dict[str, object]:
    """Derives silver and gold again from bronze; returns a summary (`Telemetry.summary`).

    Tables of silver or gold that are damaged beyond repair are put aside first. Raises LakeDamaged when bronze is.
    """
    aside: set[str] = set()
    with suppress(LakeDamaged):  # then the pipeline says so, or repairs it
        check_let_go(let_go(settings.location, BRONZE), _NO_REBUILD)
    while True:
        try:
            with Pipeline(settings, log) as pipeline:
                pipeline.rederive(progress)
                return pipeline.telemetry.summary()
        except LakeDamaged as error:
            if error.table in aside:
                raise
            with LakeLock(settings.state_dir, settings.lake):
                if not put_aside(settings.location, BY_NAME[error.table]):
                    raise
            aside.add(error.table)


class _BackgroundThreads:
    """The threads beside the fast lane: gold, maintenance, reports. An error in one stops the pipeline."""

    def __init__(self, pipeline: Pipeline, settings: Settings, report: Report) -> None:
        self._stop = threading.Event()
        self._error: BaseException | None = None
        gold_s = max(settings.processing.gold_interval_ms / 1000, 0.01)
        self._threads = [
            threading.Thread(target=self._run, args=(pipeline.gold, gold_s), name="gold"),
            threading.Thread(target=self._run, args=(pipeline.maintain, 1.0), name="maintenance"),
            threading.Thread(target=self._run, args=(lambda: report(pipeline.state()), _REPORT_S), name="report"),
        ]

    def __enter__(self) -> _BackgroundThreads:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.check()

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self, work: Callable[[], None], interval_s: float) -> None:
        try:
            while not self._stop.wait(interval_s):
                work()
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._error = error
