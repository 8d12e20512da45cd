"""Silver → bars → statistics and completeness."""

from __future__ import annotations

import time

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # noqa: N812

from cryptopulse.engine.spark.checkpoint import Checkpoint
from cryptopulse.engine.spark.session import SparkSql
from cryptopulse.engine.spark.silver import coverage_now
from cryptopulse.engine.spark.tables import BatchId, SparkTables, micros_of, shaped
from cryptopulse.lake.tables import ABSENT, BARS, COMPLETENESS, COVERAGE, SILVER, STATS, Table
from cryptopulse.text import MICROS

_NEIGHBOURS = "silver.neighbour_ids"


class PricesStep:
    """Derives again every window affected by new trades, their neighbours, or new proofs of absent ids."""

    name = "prices"

    def __init__(self, tables: SparkTables, files_max: int) -> None:
        """`files_max`: most files of silver in one batch."""
        self._tables = tables
        self._files_max = files_max
        self._load_us = 0

    def source(self, sql: SparkSql, checkpoint: Checkpoint) -> DataFrame:  # noqa: ARG002 - deriving again changes nothing
        """Intervals of ids: trades of silver, with event_time, and ids proved absent, with a null event_time."""
        self._load_us = micros_of(self._tables.read(sql.session, STATS), "MAX(load_timestamp)", 0)
        trades = self._tables.stream(sql.session, SILVER, self._files_max)
        absent = self._tables.stream(sql.session, ABSENT, self._files_max)
        news = trades.selectExpr("symbol", "trade_id AS first_trade_id", "trade_id AS last_trade_id", "event_time")
        return news.unionByName(
            absent.selectExpr("symbol", "first_trade_id", "last_trade_id", "CAST(NULL AS TIMESTAMP) AS event_time")
        )

    def take(self, sql: SparkSql, batch: DataFrame, batch_id: BatchId) -> dict[str, int]:  # noqa: ARG002 - see below
        """Replaces the touched bars, statistics and hours of completeness; returns how many minutes, as `bars`.

        No batch id is needed: the rows are derived from silver, so writing them again changes nothing. When two drivers
        write at once, Delta refuses one of them, as both replace rows of the same windows.
        """
        self._load_us = max(time.time_ns() // 1000, self._load_us + 1)
        coverage = coverage_now(sql, self._tables).persist()
        touched = self._touched(sql, batch.where("event_time IS NOT NULL"), coverage).persist()
        try:
            bars = self._replace(sql, SILVER, BARS, touched, {COVERAGE.qualified: coverage})
            if bars:
                self._replace(sql, BARS, STATS, _windows(touched, "window_start", STATS), {})
            hours = self._hours(sql, batch, touched).persist()
            try:
                absent = self._tables.read(sql.session, ABSENT)
                self._replace(sql, BARS, COMPLETENESS, hours, {COVERAGE.qualified: coverage, ABSENT.qualified: absent})
            finally:
                hours.unpersist()
            return {"bars": bars}
        finally:
            touched.unpersist()
            coverage.unpersist()

    def _touched(self, sql: SparkSql, batch: DataFrame, coverage: DataFrame) -> DataFrame:
        """(symbol, window_start) of the minutes that the batch and its neighbours lie in."""
        ids = batch.selectExpr("symbol", "first_trade_id AS trade_id")
        inputs = {SILVER.qualified: ids, COVERAGE.qualified: coverage}
        next_to = sql.rows(_NEIGHBOURS, inputs)
        edges = [row["trade_id"] for row in next_to.select("trade_id").distinct().collect()]
        is_edge = F.col("first_trade_id").isin(edges) | F.col("last_trade_id").isin(edges)
        bars = self._tables.read(sql.session, BARS).where(is_edge)
        both = F.explode(F.array("first_trade_id", "last_trade_id")).alias("trade_id")
        neighbours = bars.select("symbol", "window_start", both).join(next_to, ["symbol", "trade_id"])
        minutes = _windows(batch, "event_time", BARS)
        return minutes.unionByName(neighbours.select("symbol", "window_start")).distinct()

    def _hours(self, sql: SparkSql, batch: DataFrame, touched: DataFrame) -> DataFrame:
        """(symbol, window_start) of the hours of the `touched` minutes, of those with holes among the batch's ids, and
        of each product's first hour so far if the batch has older ids.
        """
        known = self._tables.read(sql.session, COMPLETENESS)
        begin = known.groupBy("symbol").agg(F.min("first_trade_id").alias("begin"))
        news = batch.groupBy("symbol").agg(F.min("first_trade_id").alias("low"), F.max("last_trade_id").alias("high"))
        concerned = (
            known.join(news, "symbol")
            .join(begin, "symbol")
            .where(
                "(missing_ids > 0 OR absent_ids > 0) AND first_trade_id <= high AND last_trade_id >= low "
                "OR first_trade_id = begin AND low < begin"
            )
        )
        hours = _windows(touched, "window_start", COMPLETENESS)
        return hours.unionByName(concerned.select("symbol", "window_start")).distinct()

    def _replace(
        self, sql: SparkSql, upstream: Table, table: Table, touched: DataFrame, beside: dict[str, DataFrame]
    ) -> int:
        """Derives the `touched` windows of `table` from `upstream`; returns how many windows."""
        ends = touched.selectExpr(
            "COUNT(*) AS windows", "UNIX_MICROS(MIN(window_start)) AS first", "UNIX_MICROS(MAX(window_start)) AS last"
        ).first()
        assert ends is not None
        if ends["windows"] == 0:
            return 0
        first = f"TIMESTAMP_MICROS({ends['first']})"
        last = f"TIMESTAMP_MICROS({ends['last'] + table.window_seconds * MICROS - 1})"
        near = self._tables.read(sql.session, upstream).where(
            f"{upstream.partition_by[0]} BETWEEN CAST({first} AS DATE) AND CAST({last} AS DATE) "
            f"AND {upstream.time} BETWEEN {first} AND {last}"
        )
        start = _start(upstream.time or "", table)
        wanted = touched.select(F.col("symbol"), F.col("window_start").alias("touched_start"))
        rows = near.withColumn("touched_start", start).join(wanted, ["symbol", "touched_start"], "left_semi")
        derived = sql.rows(table.qualified, {upstream.qualified: rows.drop("touched_start"), **beside})
        prune = f"t.window_date BETWEEN CAST({first} AS DATE) AND CAST({last} AS DATE)"
        self._tables.upsert(shaped(derived, table, self._load_us), table, prune)
        return int(ends["windows"])


def _windows(rows: DataFrame, time: str, table: Table) -> DataFrame:
    """The distinct (symbol, window_start) of `table` that `rows` lie in."""
    return rows.select(F.col("symbol"), _start(time, table).alias("window_start")).distinct()


def _start(time: str, table: Table) -> Column:
    length = table.window_seconds * MICROS
    return F.expr(f"TIMESTAMP_MICROS(UNIX_MICROS({time}) - UNIX_MICROS({time}) % {length})")
