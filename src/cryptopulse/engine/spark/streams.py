"""Starts, watches, restarts and stops the streaming queries."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from typing import Protocol

import structlog
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from cryptopulse.engine.spark.bronze import BronzeStep
from cryptopulse.engine.spark.checkpoint import Checkpoint
from cryptopulse.engine.spark.session import SparkSql, generate_code
from cryptopulse.engine.spark.silver import SilverStep
from cryptopulse.engine.spark.tables import BatchId, Guard, is_taken_over
from cryptopulse.errors import Fenced, ProcessFailed, TerminalError
from cryptopulse.retry import Backoff

_FAILURES_MAX = 8  # in a row, without a batch between them: about two minutes with the pauses
_PAUSE_MAX_S = 30.0
_LOOK_S = 0.1
_COMPILED_FROM = 100_000  # rows in the batch before; interpreted, they take a third longer than compiled

logger = structlog.get_logger()


class Step(Protocol):
    """The work of one streaming query."""

    name: str

    def source(self, sql: SparkSql, checkpoint: Checkpoint) -> DataFrame:
        """The streaming input. Also loads the step's state from the tables. `checkpoint`: the query's progress."""

    def take(self, sql: SparkSql, batch: DataFrame, batch_id: BatchId) -> dict[str, int]:
        """Processes one batch; returns counts by name, for the totals."""


class Stream:
    """One step's streaming query."""

    def __init__(self, session: SparkSession, step: Step, checkpoint: str, guard: Guard, interval_s: float = 0) -> None:
        """`checkpoint`: URL of the query's own folder; `guard` is called before each batch; `interval_s`: least time
        between the starts of two batches."""
        self.step = step
        self._interval_s = interval_s
        self._guard = guard
        self.totals: dict[str, int] = {}
        """The step's counts, and `rows`, the input rows."""
        self._session = session
        self._checkpoint = checkpoint
        self._query: StreamingQuery | None = None
        self._raised: Exception | None = None
        self._backoff = Backoff(longest_s=_PAUSE_MAX_S)
        self._failures = 0
        self._retry_at: float | None = None
        self._seen_batch = -1
        self._is_large = True
        """Whether the newest batch had so many rows that compiled code pays; so it is taken before the first."""

    def start(self, *, to_the_end_only: bool) -> None:
        """Starts the query. It runs until it is stopped, or `to_the_end_only` of the present input."""
        self._raised = None
        query_id: Future[str] = Future()
        source = self.step.source(SparkSql(self._session), Checkpoint(self._session, self._checkpoint))
        writer = source.writeStream.queryName(f"cryptopulse-{self.step.name}").option(
            "checkpointLocation", self._checkpoint
        )
        if to_the_end_only:
            writer = writer.trigger(availableNow=True)
        else:
            writer = writer.trigger(processingTime=f"{round(self._interval_s * 1000)} milliseconds")

        def take(batch: DataFrame, number: int) -> None:
            try:
                self._guard()
                generate_code(batch.sparkSession, wanted=self._is_large)
                counted = self.step.take(SparkSql(batch.sparkSession), batch, BatchId(query_id.result(), number))
            except Exception as error:
                self._raised = error  # Spark passes on only its text
                raise
            for name, count in counted.items():
                self.totals[name] = self.totals.get(name, 0) + count

        self._query = writer.foreachBatch(take).start()
        query_id.set_result(str(self._query.id))

    def watch(self) -> bool:
        """Updates the totals, and starts a failed query again after a pause; False if the query has ended by itself.

        Raises Fenced when another driver has taken over, ProcessFailed when the query fails again and again.
        """
        self._look_at_progress()
        if self._retry_at is not None:
            if time.monotonic() >= self._retry_at:
                self._retry_at = None
                try:
                    self.start(to_the_end_only=False)
                except Exception as failure:  # noqa: BLE001 - judged there; a storage that is away comes as Java's own
                    self._failed(failure)
            return True
        assert self._query is not None
        if self._query.isActive:
            if isinstance(self.step, SilverStep) and self.step.is_due():
                self._guard()
                self._try_to_write_rest()
            return True
        error = self._query.exception()
        if error is None:
            return False
        self._failed(error)
        return True

    def finish(self) -> None:
        """Waits for a query that was started `to_the_end_only`; raises what stopped it."""
        assert self._query is not None
        while self._query.isActive:
            self._look_at_progress()
            time.sleep(_LOOK_S)
        self._look_at_progress()
        if (error := self._query.exception()) is not None:
            raise self._judged(error) from error
        self._write_rest()

    def stop(self) -> None:
        """Ends the query. An unfinished batch is repeated at the next start."""
        if self._query is not None and self._query.isActive:
            self._query.stop()
            self._try_to_write_rest()

    def _try_to_write_rest(self) -> None:
        try:
            self._write_rest()
        except Exception as error:  # noqa: BLE001 - it is tried again, by the next start if not before
            logger.warning("coverage_not_written", error=str(self._judged(error)))

    def _write_rest(self) -> None:
        if isinstance(self.step, SilverStep):
            self._guard()
            self.step.finish(SparkSql(self._session))

    @property
    def last_batch_ms(self) -> float | None:
        """Duration of the newest batch with its commits, in ms; None before the first."""
        progress = self._query.lastProgress if self._query is not None else None
        return None if progress is None else float(progress["durationMs"].get("triggerExecution", 0))

    def _failed(self, error: Exception) -> None:
        judged = self._judged(error)
        self._failures += 1
        if not isinstance(judged, ProcessFailed) or self._failures > _FAILURES_MAX:
            raise judged from error
        pause_s = self._backoff.next_pause()
        self._retry_at = time.monotonic() + pause_s
        logger.warning("step_failed", step=self.step.name, error=str(judged), retry_in_s=round(pause_s, 2))

    def _judged(self, error: Exception) -> Exception:
        error = self._raised or error
        if isinstance(error, TerminalError):
            return error
        if is_taken_over(error):
            return Fenced(
                f"Another driver works on the step {self.step.name} with the same checkpoint. This one stops and has "
                "written nothing since. Run each step once."
            )
        # The cause in one line, without the stack traces that Spark puts before it.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        causes = [line for line in lines if line.startswith("Caused by:")]
        cause = causes[-1] if causes else lines[0] if lines else type(error).__name__
        return ProcessFailed(f"Spark's query for the step {self.step.name} failed: {cause[:500]}")

    def _look_at_progress(self) -> None:
        if self._query is None:
            return
        for progress in self._query.recentProgress:
            if progress["batchId"] <= self._seen_batch:
                continue
            # An object with Python strings as members from Spark 4.0 on, a plain dictionary before.
            found = json.loads(progress.json) if hasattr(progress, "json") else progress
            # Skip reports of an idle query; they have the number of the next batch.
            if all(source["startOffset"] == source["endOffset"] for source in found["sources"]):
                continue
            self._seen_batch = found["batchId"]
            self._is_large = found["numInputRows"] >= _COMPILED_FROM
            self._failures = 0
            self._backoff.reset()
            self.totals["rows"] = self.totals.get("rows", 0) + found["numInputRows"]
            if isinstance(self.step, BronzeStep):
                (source,) = found["sources"]
                start, end, rows = source["startOffset"], source["endOffset"], found["numInputRows"]
                self.step.passed(SparkSql(self._session), start, end, rows, self._guard)
                self.totals["messages_expired"] = self.step.expired
