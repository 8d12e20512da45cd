"""Bronze → silver, quarantine, proofs of absent ids, and the intervals of ids held."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import structlog
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.pandas.types import from_arrow_schema

from cryptopulse.engine.parse import PARSED_SCHEMA, absent_ids, parse, parse_batches, refused_messages
from cryptopulse.engine.spark.checkpoint import Checkpoint
from cryptopulse.engine.spark.session import SparkSql, collected
from cryptopulse.engine.spark.tables import BatchId, SparkTables, micros_of, shaped
from cryptopulse.lake.tables import ABSENT, BRONZE, CONFLICT, COVERAGE, QUARANTINE, SILVER, Table

_PARSED = "silver.parsed_trades"
logger = structlog.get_logger()

_INTERVAL = ("symbol", "first_trade_id", "last_trade_id")
_PARSED_TYPE = from_arrow_schema(PARSED_SCHEMA)
_SAME_CONTENT = " AND ".join(f"p.{name} = s.{name}" for name in ("price", "trade_size", "side", "event_time"))


class SilverStep:
    """Parses messages, keeps each trade once, and writes which ids are held and which are proved absent."""

    name = "silver"

    def __init__(self, tables: SparkTables, files_max: int) -> None:
        """`files_max`: most files of bronze in one batch."""
        self._tables = tables
        self._files_max = files_max
        self._coverage: pa.Table | None = None
        self._load_us = 0
        self._conflicting: set[str] = set()

    def source(self, sql: SparkSql, checkpoint: Checkpoint) -> DataFrame:  # noqa: ARG002 - a new checkpoint reads all again
        """Bronze. Loads the ids that silver holds from the tables, so a new checkpoint can read all of bronze again.

        The intervals must count as many ids as silver has rows. They don't if rows of silver were deleted or an older
        version restored. Intervals that claim ids which are gone would block them for ever, so all are then rebuilt.
        """
        self._coverage = collected(coverage_now(sql, self._tables))
        silver = self._tables.read(sql.session, SILVER)
        if _held(self._coverage) != (rows := silver.count()):
            logger.warning("coverage_rebuilt", rows=rows, ids_claimed=_held(self._coverage))
            nothing = self._tables.read(sql.session, COVERAGE).limit(0)
            self._coverage = sql.derive(COVERAGE.qualified, {SILVER.qualified: silver, COVERAGE.qualified: nothing})
            self._coverage = self._coverage.select(list(_INTERVAL))
        self._load_us = micros_of(self._tables.read(sql.session, SILVER), "MAX(load_timestamp)", 0)
        return self._tables.stream(sql.session, BRONZE, self._files_max)

    def take(self, sql: SparkSql, batch: DataFrame, batch_id: BatchId) -> dict[str, int]:
        """Messages → new trades, refused messages, intervals, proofs of absent ids; returns counts by name."""
        assert self._coverage is not None
        parsed = batch.mapInArrow(parse_batches, _PARSED_TYPE).persist()
        try:
            has_pages = F.max(F.expr("source = 'rest'")).alias("has_pages")
            counted = parsed.agg(F.count("*").alias("rows"), F.count("reason").alias("refused"), has_pages).first()
            assert counted is not None
            trades = self._silver(sql, parsed, batch_id) if counted["rows"] > counted["refused"] else 0
            duplicates = counted["rows"] - counted["refused"] - trades
            refused, conflicts = counted["refused"], 0
            if refused or duplicates:
                messages, conflicts = self._quarantine(sql, parsed, batch)
                refused += messages
            if counted["has_pages"]:
                self._absent(batch)
            return {"trades": trades, "quarantined": refused, "duplicates": duplicates, "conflicts": conflicts}
        finally:
            parsed.unpersist()

    def _silver(self, sql: SparkSql, parsed: DataFrame, batch_id: BatchId) -> int:
        self._load_us = max(time.time_ns() // 1000, self._load_us + 1)
        inputs = {_PARSED: parsed, COVERAGE.qualified: self._coverage}
        trades = shaped(sql.rows(SILVER.qualified, inputs), SILVER, self._load_us).persist()
        try:
            grown = sql.derive(COVERAGE.qualified, {SILVER.qualified: trades, COVERAGE.qualified: self._coverage})
            before, after = _held(self._coverage), _held(grown)
            if after > before:
                self._tables.append(trades, SILVER, batch_id)
                self._coverage = grown.select(list(_INTERVAL))
                rows = shaped(sql.local(self._coverage), COVERAGE, self._load_us)
                self._tables.replace(rows, COVERAGE, batch_id)
            return after - before
        finally:
            trades.unpersist()

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


def coverage_now(sql: SparkSql, tables: SparkTables) -> DataFrame:
    """The intervals of ids that silver holds now: those in the table, and silver's trades since they were written."""
    session: SparkSession = sql.session
    written = tables.read(session, COVERAGE)
    position = micros_of(written, "MAX(load_timestamp)", -1)
    since = tables.read(session, SILVER).where(f"load_timestamp > TIMESTAMP_MICROS({position})")
    return sql.rows(COVERAGE.qualified, {SILVER.qualified: since, COVERAGE.qualified: written})


def _held(intervals: pa.Table | None) -> int:
    """How many ids the intervals hold."""
    assert intervals is not None
    spans = zip(intervals["first_trade_id"].to_pylist(), intervals["last_trade_id"].to_pylist(), strict=True)
    return sum(last - first + 1 for first, last in spans)
