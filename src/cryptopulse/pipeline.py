"""The loop that walks the tables in order, again and again.

Two lanes share the work. The fast lane moves messages from the log to bronze, silver and alerts, as small a batch as
has arrived. The slow lane brings bars, statistics and completeness up to date every so often. When the fast
lane is behind it takes large batches, in stages that run at once, so that what gold needs is still in memory.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pyarrow as pa
import structlog

from cryptopulse.engine import Commit
from cryptopulse.engine.durability import check_file_system
from cryptopulse.engine.embedded import EmbeddedEngine
from cryptopulse.engine.repair import put_aside, repair_lake
from cryptopulse.errors import LakeBusy, LakeDamaged
from cryptopulse.lake.lock import LakeLock
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
from cryptopulse.maintenance import Maintenance
from cryptopulse.settings import Settings
from cryptopulse.telemetry import Telemetry

_FAST = (SILVER, ALERTS, QUARANTINE, ABSENT, COVERAGE)
_SLOW = (BARS, STATS, COMPLETENESS)
_BEHIND_MESSAGES = 20_000  # a batch as large as this is no live batch: gold goes in step with it
_WITHOUT_GOLD_MAX = 200_000  # trades; what gold has not taken in stays in memory, and a page alone has a thousand
_REPORT_S = 0.5
_LAKE_WAIT_S = 300.0

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
            self.telemetry = Telemetry(self.engine.session(), self.engine.held)
            self.maintenance = Maintenance(settings.maintenance, self.engine, log)
            self._continuity = Continuity(log)
            self._continuity.check_start(self.engine.stored_to)
            self._storing = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="store"))
            self._release = stack.pop_all()
        self._slow_lane = threading.Lock()
        self._trades_without_gold = 0
        self._on_stored = _Counter(0, lambda _done, _total: None)

    def __enter__(self) -> Pipeline:
        """The pipeline itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Lets go of the lake."""
        self._release.close()

    def step(self, partition: int) -> int:
        """Moves what has arrived in `partition` through the fast lane; returns its number of messages."""
        records = self._read(partition, self.engine.stored_to(partition))
        storing = self._storing.submit(self._store, records)
        if records.num_rows:
            self.engine.anticipate(records)  # parsing takes as long as bronze's commit, and need not wait for it
        storing.result()
        self._round(_FAST)
        if records.num_rows >= _BEHIND_MESSAGES:
            self._catch_up(partition)
        return int(records.num_rows)

    def gold(self) -> None:
        """Brings bars, statistics and completeness up to date."""
        with self._slow_lane:
            self._trades_without_gold = 0
            self._round(_SLOW)

    def drain(self, progress: ProgressBar) -> None:
        """Works until every table holds what the log holds now, and trims the log."""
        ends = {partition: self._log.bounds(partition)[1] for partition in self._log.partitions()}
        self._on_stored = _Counter(self.lag(), progress)
        for partition, end in ends.items():
            while self.engine.stored_to(partition) < end - 1 and self.step(partition):
                if self._trades_without_gold >= _WITHOUT_GOLD_MAX:
                    self.gold()
                self.maintenance.run_due()
            self._continuity.check_drained(partition, self.engine.stored_to(partition), end)
        self._finish()
        self.maintenance.trim()  # whoever drains again and again may never live until trimming is due

    def _catch_up(self, partition: int) -> None:
        """Works off a long log in stages: a batch is stored and parsed, the one before goes to silver, the one before
        that to gold, and the one after is read.
        """
        records = self._read(partition, self.engine.stored_to(partition))
        with ThreadPoolExecutor(3, thread_name_prefix="catch-up") as pool:
            while records.num_rows >= _BEHIND_MESSAGES:
                work: list[Future[object]] = [
                    pool.submit(self._store, records),
                    pool.submit(self._round, _FAST),
                    pool.submit(self.gold),
                ]
                self.engine.anticipate(records)
                records = self._read(partition, records["offset"][-1].as_py())
                for stage in work:
                    stage.result()
        self._store(records)

    def _read(self, partition: int, after: int) -> pa.Table:
        records = self._log.read(partition, after + 1, self._settings.processing.batch_messages_max)
        self._continuity.check_read(partition, after + 1, records)
        return records

    def _store(self, records: pa.Table) -> int:
        if records.num_rows:
            self.telemetry.committed(self.engine.store(records))
            self.engine.refresh((BRONZE,))
            self._on_stored(records.num_rows)
        return int(records.num_rows)

    def _finish(self) -> None:
        """Brings every table up to what bronze holds, with nothing held back."""
        self.engine.settle()
        while self._round((*_FAST, *_SLOW)):
            pass

    def _round(self, tables: Sequence[Table]) -> bool:
        """One step of each of `tables`, upstream first; whether any had news."""
        commits = [commit for table in tables if (commit := self._advance(table)) is not None]
        self.engine.refresh(tables)
        return bool(commits)

    def _advance(self, table: Table) -> Commit | None:
        commit = self.engine.advance(table)
        if commit is not None:
            self.telemetry.committed(commit)
            if table is SILVER:
                self._trades_without_gold += commit.rows.num_rows
        return commit

    def rederive(self, progress: ProgressBar) -> None:
        """Makes silver and gold again from bronze.

        Gold and coverage are emptied before silver, so a kill in between leaves a lake that any pipeline completes.
        """
        self.engine.reset((COMPLETENESS, STATS, BARS, ALERTS, ABSENT, QUARANTINE, COVERAGE, SILVER))
        self.telemetry = Telemetry(self.engine.session(), self.engine.held)
        count = _Counter(self.engine.stored_messages(), progress)
        while (commit := self._advance(SILVER)) is not None:
            self._round(_FAST[1:])
            self.gold()
            self.maintenance.run_due()
            count(commit.consumed)
        self._finish()

    def lag(self) -> int:
        """How many messages of the log are not in bronze."""
        bounds = {partition: self._log.bounds(partition) for partition in self._log.partitions()}
        return sum(max(end - max(self.engine.stored_to(p) + 1, first), 0) for p, (first, end) in bounds.items())

    def state(self) -> dict[str, object]:
        """What the processing says of itself, ready for JSON; see `cryptopulse.telemetry`."""
        tables = {
            name: {"version": handle.version, "rows_written": handle.rows_written}
            for name, handle in self.engine.handles.items()
        }
        expired = {"messages_expired_total": self._continuity.expired}
        return {**self.telemetry.state(self.engine.episodes, self.lag()), **expired, "tables": tables}


class _Counter:
    """Adds up what is done and tells a progress bar."""

    def __init__(self, total: int, progress: ProgressBar) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def __call__(self, more: int) -> None:
        self._done += more
        self._progress(min(self._done, self._total), self._total)


def process(settings: Settings, log: Log, stop: threading.Event, report: Report) -> None:
    """Keeps the lake up to date until `stop` is set; then works off what the log holds at that moment and returns.

    Calls `report` with the state every half second. Raises what stopped it: LakeBusy, Fenced, LogDamaged, …
    """
    opened = _opened(settings, log, stop)
    if opened is None:  # nothing is lost: the log keeps what there is for the next start
        return
    with opened as pipeline:
        with _Background(pipeline, settings, report) as background:
            while not stop.is_set():
                background.check()
                next_step_at = time.monotonic() + settings.processing.step_interval_ms / 1000
                if not sum(pipeline.step(partition) for partition in log.partitions()):
                    stop.wait(settings.processing.poll_ms / 1000)
                stop.wait(max(next_step_at - time.monotonic(), 0))
        pipeline.drain(lambda _done, _total: None)
        report(pipeline.state())


def _opened(settings: Settings, log: Log, stop: threading.Event) -> Pipeline | None:
    """The lake's pipeline. One that works on it for a moment (a backfill, a replay) is waited for: a processing that is
    started again must not end the recording of a whole deployment. LakeBusy when it takes longer, None at `stop`.
    """
    give_up_at = time.monotonic() + _LAKE_WAIT_S
    said = False
    while True:
        try:
            return Pipeline(settings, log)
        except LakeBusy as error:
            if stop.is_set():
                return None
            if time.monotonic() >= give_up_at:
                raise
            if not said:
                _log.warning("waiting_for_lake", error=str(error), at_most_s=_LAKE_WAIT_S)
                said = True
            stop.wait(0.2)


def drain(settings: Settings, log: Log, progress: ProgressBar) -> dict[str, object]:
    """Brings every table up to what the log holds now; returns a summary (`Telemetry.summary`)."""
    with Pipeline(settings, log) as pipeline:
        pipeline.drain(progress)
        return pipeline.telemetry.summary()


def rebuild(settings: Settings, log: Log, progress: ProgressBar) -> dict[str, object]:
    """Makes silver and gold again from bronze; returns a summary (`Telemetry.summary`).

    A table of them that is damaged beyond repair is put aside first. Raises LakeDamaged when bronze is.
    """
    aside: set[str] = set()
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


class _Background:
    """The threads beside the fast lane: gold, maintenance, reports. An error in one stops the pipeline."""

    def __init__(self, pipeline: Pipeline, settings: Settings, report: Report) -> None:
        self._pipeline = pipeline
        self._stop = threading.Event()
        self._error: BaseException | None = None
        gold_s = max(settings.processing.gold_interval_ms / 1000, 0.01)
        self._threads = [
            threading.Thread(target=self._run, args=(pipeline.gold, gold_s), name="gold"),
            threading.Thread(target=self._run, args=(pipeline.maintenance.run_due, 1.0), name="maintenance"),
            threading.Thread(target=self._run, args=(lambda: self._report(report), _REPORT_S), name="report"),
        ]

    def __enter__(self) -> _Background:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.check()

    def _report(self, report: Report) -> None:
        report(self._pipeline.state())

    def _run(self, work: Callable[[], None], interval_s: float) -> None:
        try:
            while not self._stop.wait(interval_s):
                work()
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._error = error
