"""Bronze → silver, quarantine, proofs of absent ids, and the intervals of ids held."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import structlog
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.pandas.types import from_arrow_schema

from cryptopulse.engine.coverage import Coverage
from cryptopulse.engine.parse import PARSED_SCHEMA, absent_ids, parse, parse_batches, refused_messages
from cryptopulse.engine.spark.checkpoint import Checkpoint
from cryptopulse.engine.spark.session import SparkSql, collected
from cryptopulse.engine.spark.tables import BatchId, SparkTables, micros_of, shaped
from cryptopulse.lake.tables import ABSENT, BRONZE, CONFLICT, COVERAGE, QUARANTINE, SILVER, Table
from cryptopulse.venues.registry import VAGUE_TIMES

_PARSED = "silver.parsed_trades"
logger = structlog.get_logger()

# Bytes of bronze's files, some 80 a message; the product and id of each of its trades come to the driver, 30 bytes.
_BATCH_MAX_BYTES = 256 << 20
_COVERAGE_MAX_DELAY_S = 20.0  # after a kill, reading silver's newer ids again is cheap
_PARSED_TYPE = from_arrow_schema(PARSED_SCHEMA)
_SAME_CONTENT = " AND ".join(  # as in `with_other_content`
    [
        *(f"p.{name} = s.{name}" for name in ("price", "trade_size", "side")),
        f"ABS(UNIX_MICROS(p.event_time) - UNIX_MICROS(s.event_time)) <= IF(symbol RLIKE '{VAGUE_TIMES}', 1, 0)",
    ]
)


class SilverStep:
    """Parses messages, keeps each trade once, and writes which ids are held and which are proved absent."""

    name = "silver"

    def __init__(self, tables: SparkTables, files_max: int) -> None:
        """`files_max`: most files of bronze in one batch."""
        self._tables = tables
        self._files_max = files_max
        self._coverage = Coverage()
        self._unwritten: tuple[BatchId, int] | None = None
        """While the table lacks some of the intervals: the last batch that changed them, and its load_timestamp."""
        self._lock = threading.Lock()
        """Held while a batch is taken: a query that was stopped may still be in one."""
        self._written_at = time.monotonic()
        self._load_us = 0
        self._conflicting: set[str] = set()

    def source(self, sql: SparkSql, checkpoint: Checkpoint) -> DataFrame:  # noqa: ARG002 - a new checkpoint reads all again
        """Bronze. Loads the ids that silver holds from the tables, so a new checkpoint can read all of bronze again.

        The intervals must count as many ids as silver has rows. They don't if rows of silver were deleted or an older
        version restored. Intervals that claim ids which are gone would block them for ever, so all are then rebuilt.
        """
        self._coverage = intervals_now(sql, self._tables)
        silver = self._tables.read(sql.session, SILVER)
        if self._coverage.count != (rows := silver.count()):
            logger.warning("coverage_rebuilt", rows=rows, ids_claimed=self._coverage.count)
            nothing = self._tables.read(sql.session, COVERAGE).limit(0)
            found = sql.derive(COVERAGE.qualified, {SILVER.qualified: silver, COVERAGE.qualified: nothing})
            self._coverage = Coverage()
            self._coverage.add_intervals(found)
        self._load_us = micros_of(silver, "MAX(load_timestamp)", 0)
        written_us = micros_of(self._tables.read(sql.session, COVERAGE), "MAX(load_timestamp)", 0)
        start = BatchId("start", time.time_ns() // 1000)
        self._unwritten = (start, self._load_us) if written_us < self._load_us else None
        return self._tables.stream(sql.session, BRONZE, self._files_max, _BATCH_MAX_BYTES)

    def take(self, sql: SparkSql, batch: DataFrame, batch_id: BatchId) -> dict[str, int]:
        """Messages → new trades, refused messages, intervals, proofs of absent ids; returns counts by name."""
        with self._lock:
            return self._take(sql, batch, batch_id)

    def finish(self, sql: SparkSql) -> None:
        """Writes the intervals of ids, if they changed since they were written."""
        with self._lock:
            self._write_coverage(sql)

    def is_due(self) -> bool:
        """Whether `finish` should be called although the query runs: intervals wait for a batch that does not come."""
        waited_s = time.monotonic() - self._written_at
        return self._unwritten is not None and waited_s >= _COVERAGE_MAX_DELAY_S and not self._lock.locked()

    def _take(self, sql: SparkSql, batch: DataFrame, batch_id: BatchId) -> dict[str, int]:
        parsed = batch.mapInArrow(parse_batches, _PARSED_TYPE).persist()
        try:
            columns = ("symbol", "trade_id", "reason IS NULL AS is_trade", "source = 'rest' AS is_page")
            told = collected(parsed.selectExpr(*columns))
            offered = told.filter(told["is_trade"])
            trades = self._append_new(sql, parsed, offered, batch_id)
            duplicates, refused, conflicts = offered.num_rows - trades, told.num_rows - offered.num_rows, 0
            if refused or duplicates:
                messages, conflicts = self._quarantine(sql, parsed, batch)
                refused += messages
            if pc.any(told["is_page"], min_count=0).as_py():
                self._absent(batch)
            return {"trades": trades, "quarantined": refused, "duplicates": duplicates, "conflicts": conflicts}
        finally:
            parsed.unpersist()

    def _append_new(self, sql: SparkSql, parsed: DataFrame, offered: pa.Table, batch_id: BatchId) -> int:
        """Appends the trades that silver does not hold, of those `offered` (symbol, trade_id); returns how many."""
        is_new = self._coverage.new_rows(offered)
        if len(is_new) == 0:
            return 0
        if len(is_new) == offered.num_rows:  # as nearly always: no statement is needed to tell which
            trades = parsed.where("reason IS NULL").withColumn("ingestion_time", F.col("received_time"))
            trades = trades.withColumn("event_date", F.to_date("event_time"))
        else:
            trades = sql.rows(SILVER.qualified, {_PARSED: parsed, COVERAGE.qualified: self._coverage.table})
        self._load_us = max(time.time_ns() // 1000, self._load_us + 1)
        self._tables.append(shaped(trades, SILVER, self._load_us), SILVER, batch_id)
        self._coverage.add(offered.take(is_new))
        self._unwritten = batch_id, self._load_us
        if time.monotonic() - self._written_at >= _COVERAGE_MAX_DELAY_S:
            self._write_coverage(sql)
        return len(is_new)

    def _write_coverage(self, sql: SparkSql) -> None:
        if self._unwritten is not None:
            self._written_at = time.monotonic()  # if it fails, the next try is as much later
            batch_id, load_us = self._unwritten
            self._tables.replace(shaped(sql.local(self._coverage.table), COVERAGE, load_us), COVERAGE, batch_id)
            self._unwritten = None

    def _quarantine(self, sql: SparkSql, parsed: DataFrame, batch: DataFrame) -> tuple[int, int]:
        """Writes refused messages, and those that conflict with a trade in silver, to the quarantine.

        Returns how many messages conflict, and how many trades in them.
        """
        silver = self._tables.read(sql.session, SILVER)
        told = parsed.where("reason IS NULL").alias("p").join(silver.alias("s"), ["symbol", "trade_id"])
        told = told.where(f"NOT ({_SAME_CONTENT})").select("symbol", "p.partition", "p.offset")
        others = told.groupBy("partition", "offset").agg(F.count("*").alias("n"), F.min("symbol").alias("symbol"))
        others = others.persist()
        try:
            counted = others.agg(F.count("*"), F.sum("n"), F.collect_set("symbol")).first()
            assert counted is not None
            count, trades, symbols = counted
            for symbol in sorted(set(symbols) - self._conflicting):
                logger.warning("trade_conflict", symbol=symbol, kept="the first copy")
            self._conflicting.update(symbols)
            refused = batch.mapInArrow(_refusals, from_arrow_schema(_without_load(QUARANTINE)))
            if count:
                contradicting = batch.join(others.select("partition", "offset"), ["partition", "offset"]).withColumn(
                    "reason", F.lit(CONFLICT)
                )
                refused = refused.unionByName(contradicting.select(refused.columns))
                refused = refused.groupBy("partition", "offset").agg(
                    *(F.max_by(name, F.col("reason") != CONFLICT).alias(name) for name in refused.columns[2:])
                )
            self._tables.add_missing(shaped(refused, QUARANTINE, time.time_ns() // 1000), QUARANTINE)
            return count, trades or 0
        finally:
            others.unpersist()

    def _absent(self, batch: DataFrame) -> None:
        pages = batch.where("source = 'rest'")
        proofs = pages.mapInArrow(_proofs, from_arrow_schema(_without_load(ABSENT))).persist()
        try:
            if proofs.count():
                self._tables.add_missing(shaped(proofs, ABSENT, time.time_ns() // 1000), ABSENT)
        finally:
            proofs.unpersist()


def _refusals(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        messages = pa.Table.from_batches([batch])
        parsed = parse(messages)
        yield from refused_messages(parsed.filter(pc.is_valid(parsed["reason"])), messages).to_batches()


def _proofs(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield from absent_ids(parse(pa.Table.from_batches([batch]))).to_batches()


def _without_load(table: Table) -> pa.Schema:
    return pa.schema([field for field in table.arrow_schema if field.name != "load_timestamp"])


def intervals_now(sql: SparkSql, tables: SparkTables) -> Coverage:
    """The intervals of ids that silver holds now: those in the table, and silver's trades since they were written."""
    session: SparkSession = sql.session
    written = tables.read(session, COVERAGE)
    position = micros_of(written, "MAX(load_timestamp)", -1)
    since = tables.read(session, SILVER).where(f"load_timestamp > TIMESTAMP_MICROS({position})")
    coverage = Coverage()
    coverage.add_intervals(sql.derive(COVERAGE.qualified, {SILVER.qualified: since, COVERAGE.qualified: written}))
    return coverage
