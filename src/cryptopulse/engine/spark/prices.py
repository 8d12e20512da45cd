"""Silver → bars → statistics and completeness."""

from __future__ import annotations

import time
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from cryptopulse.engine.coverage import Coverage
from cryptopulse.engine.gold import TouchedMinutes
from cryptopulse.engine.rows import distinct_windows, newest_load_us, touched_windows, window_starts
from cryptopulse.engine.spark.checkpoint import Checkpoint
from cryptopulse.engine.spark.session import Input, SparkSql, collected
from cryptopulse.engine.spark.silver import intervals_now
from cryptopulse.engine.spark.tables import BatchId, SparkTables, micros_of, shaped
from cryptopulse.lake.tables import ABSENT, BARS, COMPLETENESS, COVERAGE, SILVER, STATS, Table
from cryptopulse.text import MICROS

# Bytes of silver's files, about 40 a trade; product, id and times of each trade come to the driver, 40 bytes.
_BATCH_MAX_BYTES = 64 << 20
_TRADE = ["symbol", "trade_id", "last_trade_id", "event_time", "load_timestamp"]
_NO_WINDOWS = pa.schema([("symbol", pa.string()), ("window_us", pa.int64())]).empty_table()


class PricesStep:
    """Derives again every window affected by new trades, their neighbours, or new proofs of absent ids.

    The driver finds which windows these are, by the ids and times of a batch. Their rows stay where they are.
    """

    name = "prices"

    def __init__(self, tables: SparkTables, files_max: int) -> None:
        """`files_max`: most files of silver in one batch."""
        self._tables = tables
        self._files_max = files_max
        self._load_us = 0
        self._taken_us = 0
        """Trades loaded until then (µs UTC) are in the intervals; later ones wait for their own batch."""
        self._coverage: Coverage
        self._minutes: TouchedMinutes
        """Both are made when the query starts."""

    def source(self, sql: SparkSql, checkpoint: Checkpoint) -> DataFrame:  # noqa: ARG002 - deriving again changes nothing
        """Intervals of ids: trades of silver, and ids proved absent, whose times are null."""
        self._load_us = micros_of(self._tables.read(sql.session, STATS), "MAX(load_timestamp)", 0)
        self._taken_us = micros_of(self._tables.read(sql.session, SILVER), "MAX(load_timestamp)", 0)
        self._coverage = intervals_now(sql, self._tables)
        self._minutes = TouchedMinutes(lambda columns, where: self._read(sql, BARS, columns, where))
        trades = self._tables.stream(sql.session, SILVER, self._files_max, _BATCH_MAX_BYTES)
        absent = self._tables.stream(sql.session, ABSENT, self._files_max)
        nothing = ("CAST(NULL AS TIMESTAMP) AS event_time", "CAST(NULL AS TIMESTAMP) AS load_timestamp")
        news = trades.selectExpr(
            "symbol", "trade_id AS first_trade_id", "trade_id AS last_trade_id", "event_time", "load_timestamp"
        )
        return news.unionByName(absent.selectExpr("symbol", "first_trade_id", "last_trade_id", *nothing))

    def take(self, sql: SparkSql, batch: DataFrame, batch_id: BatchId) -> dict[str, int]:  # noqa: ARG002 - see below
        """Replaces the touched bars, statistics and hours of completeness; returns how many minutes, as `bars`.

        No batch id is needed: the rows are derived from silver, so writing them again changes nothing. When two drivers
        write at once, Delta refuses one of them, as both replace rows of the same windows.
        """
        self._load_us = max(time.time_ns() // 1000, self._load_us + 1)
        news = collected(batch)
        trades = news.filter(pc.is_valid(news["event_time"])).rename_columns(_TRADE)
        before = self._coverage.table
        if trades.num_rows:
            self._coverage.add(trades)
            self._taken_us = max(self._taken_us, newest_load_us(trades))
        coverage = self._coverage.table
        minutes = self._minutes.of(trades, coverage, sql.derive)
        self._replace(sql, SILVER, BARS, minutes, {COVERAGE.qualified: coverage})
        self._note_newest(trades)
        self._replace(sql, BARS, STATS, touched_windows(minutes, "window_us", STATS.window_seconds), {})
        hours = [
            touched_windows(minutes, "window_us", COMPLETENESS.window_seconds),
            self._hours_with_holes(sql, news, before, coverage),
        ]
        absent = self._tables.read(sql.session, ABSENT)
        beside = {COVERAGE.qualified: coverage, ABSENT.qualified: absent}
        self._replace(sql, BARS, COMPLETENESS, distinct_windows(pa.concat_tables(hours)), beside)
        return {"bars": int(minutes.num_rows)}

    def _note_newest(self, trades: pa.Table) -> None:
        starts = window_starts(trades["event_time"], BARS.window_seconds)
        minutes = pa.table({"symbol": trades["symbol"], "window_start": starts, "last_trade_id": trades["trade_id"]})
        newest = minutes.group_by(["symbol", "window_start"]).aggregate([("last_trade_id", "max")])
        self._minutes.note(newest.rename_columns(["symbol", "window_start", "last_trade_id"]))

    def _hours_with_holes(self, sql: SparkSql, news: pa.Table, before: pa.Table, after: pa.Table) -> pa.Table:
        """(symbol, window_us) of the hours with holes among the ids of `news`, and of each product's first hour so far
        if `news` has older ids. `before` and `after`: the intervals of ids without and with them.
        """
        intervals = [Counter(held["symbol"].to_pylist()) for held in (before, after)]
        lowest = before.group_by("symbol").aggregate([("first_trade_id", "min")])
        begins = dict(zip(lowest["symbol"].to_pylist(), lowest["first_trade_id_min"].to_pylist(), strict=True))
        concerned = []
        ends = news.group_by("symbol").aggregate([("first_trade_id", "min"), ("last_trade_id", "max")])
        for symbol, low, high in zip(*(column.to_pylist() for column in ends.columns), strict=True):
            if any(counted[symbol] > 1 for counted in intervals):
                concerned.append(
                    f"symbol = '{symbol}' AND (missing_ids > 0 OR absent_ids > 0) "
                    f"AND first_trade_id <= {high} AND last_trade_id >= {low}"
                )
            if low < (begin := begins.get(symbol, low)):
                concerned.append(f"symbol = '{symbol}' AND first_trade_id = {begin}")
        if not concerned:
            return _NO_WINDOWS
        found = self._read(sql, COMPLETENESS, "symbol, window_start", " OR ".join(f"({each})" for each in concerned))
        return touched_windows(found, "window_start", COMPLETENESS.window_seconds)

    def _replace(
        self, sql: SparkSql, upstream: Table, table: Table, windows: pa.Table, beside: dict[str, Input]
    ) -> None:
        """Derives the `windows` (symbol, window_us) of `table` from `upstream` and `beside`."""
        if windows.num_rows == 0:
            return
        length_us = table.window_seconds * MICROS
        ends = pc.min_max(windows["window_us"])
        first, last = (f"TIMESTAMP_MICROS({us})" for us in (ends["min"].as_py(), ends["max"].as_py() + length_us - 1))
        near = self._tables.read(sql.session, upstream).where(
            f"{upstream.partition_by[0]} BETWEEN CAST({first} AS DATE) AND CAST({last} AS DATE) "
            f"AND {upstream.time} BETWEEN {first} AND {last}"
        )
        if upstream is SILVER:
            near = near.where(f"load_timestamp <= TIMESTAMP_MICROS({self._taken_us})")
        start = F.expr(f"UNIX_MICROS({upstream.time}) - UNIX_MICROS({upstream.time}) % {length_us}")
        rows = near.withColumn("window_us", start).join(
            F.broadcast(sql.local(windows)), ["symbol", "window_us"], "left_semi"
        )
        derived = sql.rows(table.qualified, {upstream.qualified: rows.drop("window_us"), **beside})
        prune = f"t.window_date BETWEEN CAST({first} AS DATE) AND CAST({last} AS DATE)"
        self._tables.upsert(shaped(derived, table, self._load_us), table, prune)

    def _read(self, sql: SparkSql, table: Table, columns: str, where: str) -> pa.Table:
        return collected(sql.session.sql(f"SELECT {columns} FROM {self._tables.name(table)} WHERE {where}"))  # noqa: S608
