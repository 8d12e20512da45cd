"""Bronze → silver, quarantine, proofs of absent ids, and the intervals of ids."""

from __future__ import annotations

import time

import pyarrow as pa
import structlog
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from cryptopulse.engine.spark.checkpoint import Checkpoint
from cryptopulse.engine.spark.session import SparkSql, collected
from cryptopulse.engine.spark.tables import SparkTables, Turn, micros_of, shaped
from cryptopulse.lake.tables import ABSENT, BRONZE, COVERAGE, QUARANTINE, SILVER

_PARSED = "silver.parsed_trades"
logger = structlog.get_logger()

_INTERVAL = ("symbol", "first_trade_id", "last_trade_id")


class SilverStep:
    """Parses messages, keeps each trade once, and says which ids are held and which are proved absent."""

    name = "silver"

    def __init__(self, tables: SparkTables, files_max: int) -> None:
        """`files_max`: how many files of bronze make a batch at most."""
        self._tables = tables
        self._files_max = files_max
        self._coverage: pa.Table | None = None
        self._load_us = 0

    def source(self, sql: SparkSql, checkpoint: Checkpoint) -> DataFrame:  # noqa: ARG002 - a new checkpoint reads all again
        """Bronze. Reads from the tables which ids silver holds; what a new checkpoint reads again is known by them.

        The intervals must count as many ids as silver has rows. They don't when rows of silver were deleted or an older
        version restored: intervals that claim ids which are gone would keep them out for ever, so all are made again.
        """
        self._coverage = collected(coverage_now(sql, self._tables))
        silver = self._tables.read(sql.session, SILVER)
        if _held(self._coverage) != (rows := silver.count()):
            logger.warning("coverage_made_again", rows=rows, ids_claimed=_held(self._coverage))
            nothing = self._tables.read(sql.session, COVERAGE).limit(0)
            self._coverage = sql.derive(COVERAGE.qualified, {SILVER.qualified: silver, COVERAGE.qualified: nothing})
            self._coverage = self._coverage.select(list(_INTERVAL))
        self._load_us = micros_of(self._tables.read(sql.session, SILVER), "MAX(load_timestamp)", 0)
        return self._tables.stream(sql.session, BRONZE, self._files_max)

    def take(self, sql: SparkSql, batch: DataFrame, turn: Turn) -> dict[str, int]:
        """Messages → new trades, refused messages, intervals; returns how many of each."""
        assert self._coverage is not None
        parsed = sql.rows(_PARSED, {BRONZE.qualified: batch}).persist()
        try:
            has_pages = F.max(F.expr("source = 'rest'")).alias("has_pages")
            counted = parsed.agg(F.count("*").alias("rows"), F.count("reason").alias("refused"), has_pages).first()
            assert counted is not None
            trades = self._silver(sql, parsed, turn) if counted["rows"] > counted["refused"] else 0
            if counted["refused"]:
                self._quarantine(sql, parsed, batch)
            if counted["has_pages"]:
                self._absent(sql, parsed)
            duplicates = counted["rows"] - counted["refused"] - trades
            return {"trades": trades, "quarantined": counted["refused"], "duplicates": duplicates}
        finally:
            parsed.unpersist()

    def _silver(self, sql: SparkSql, parsed: DataFrame, turn: Turn) -> int:
        self._load_us = max(time.time_ns() // 1000, self._load_us + 1)
        inputs = {_PARSED: parsed, COVERAGE.qualified: self._coverage}
        trades = shaped(sql.rows(SILVER.qualified, inputs), SILVER, self._load_us).persist()
        try:
            grown = sql.derive(COVERAGE.qualified, {SILVER.qualified: trades, COVERAGE.qualified: self._coverage})
            before, after = _held(self._coverage), _held(grown)
            if after > before:
                self._tables.append(trades, SILVER, turn)
                self._coverage = grown.select(list(_INTERVAL))
                rows = shaped(sql.local(self._coverage), COVERAGE, self._load_us)
                self._tables.replace(rows, COVERAGE, turn)
            return after - before
        finally:
            trades.unpersist()

    def _quarantine(self, sql: SparkSql, parsed: DataFrame, batch: DataFrame) -> None:
        inputs = {_PARSED: parsed.where("reason IS NOT NULL"), BRONZE.qualified: batch}
        refused = shaped(sql.rows(QUARANTINE.qualified, inputs), QUARANTINE, time.time_ns() // 1000)
        self._tables.add_missing(refused, QUARANTINE)

    def _absent(self, sql: SparkSql, parsed: DataFrame) -> None:
        proofs = sql.rows(ABSENT.qualified, {_PARSED: parsed.where("source = 'rest'")}).persist()
        try:
            if proofs.count():
                self._tables.add_missing(shaped(proofs, ABSENT, time.time_ns() // 1000), ABSENT)
        finally:
            proofs.unpersist()


def coverage_now(sql: SparkSql, tables: SparkTables) -> DataFrame:
    """The intervals of ids that silver holds at this moment: those written, and silver's trades since then."""
    session: SparkSession = sql.session
    written = tables.read(session, COVERAGE)
    position = micros_of(written, "MAX(load_timestamp)", -1)
    since = tables.read(session, SILVER).where(f"load_timestamp > TIMESTAMP_MICROS({position})")
    return sql.rows(COVERAGE.qualified, {SILVER.qualified: since, COVERAGE.qualified: written})


def _held(intervals: pa.Table | None) -> int:
    """How many ids intervals hold."""
    assert intervals is not None
    spans = zip(intervals["first_trade_id"].to_pylist(), intervals["last_trade_id"].to_pylist(), strict=True)
    return sum(last - first + 1 for first, last in spans)
