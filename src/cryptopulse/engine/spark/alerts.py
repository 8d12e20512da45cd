"""Silver → alerts: the judge is the embedded engine's, the trades are Spark's."""

from __future__ import annotations

import time

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from cryptopulse.engine.alerts import EPISODES_KEPT_US, AlertJudge, stretch_bounds_us
from cryptopulse.engine.recent import MICROS
from cryptopulse.engine.spark.checkpoint import Checkpoint
from cryptopulse.engine.spark.session import SparkSql, collected
from cryptopulse.engine.spark.tables import SparkTables, Turn, micros_of, shaped
from cryptopulse.lake.tables import ALERTS, SILVER
from cryptopulse.settings import AlertRule


class AlertsStep:
    """Judges new trades and keeps the table of episodes."""

    name = "alerts"

    def __init__(self, tables: SparkTables, rules: list[AlertRule], files_max: int) -> None:
        """`files_max`: how many files of silver make a batch at most."""
        self._tables = tables
        self._rules = rules
        self._files_max = files_max
        self._watermark_us = 0
        self._load_us = 0

    def source(self, sql: SparkSql, checkpoint: Checkpoint) -> DataFrame:  # noqa: ARG002 - judging again changes nothing
        """Silver's trades."""
        silver = self._tables.read(sql.session, SILVER).where("event_time <= CURRENT_TIMESTAMP()")
        self._watermark_us = micros_of(silver, "MAX(event_time)", 0)
        self._load_us = micros_of(self._tables.read(sql.session, ALERTS), "MAX(load_timestamp)", 0)
        return self._tables.stream(sql.session, SILVER, self._files_max)

    def take(self, sql: SparkSql, batch: DataFrame, turn: Turn) -> dict[str, int]:
        """Judges the batch's products that moved enough; returns how many episodes changed."""
        now_us = time.time_ns() // 1000
        news = self._spans(batch)
        if news.num_rows == 0:
            return {}
        newest = pc.cast(pc.max(news["event_time"]), pa.int64()).as_py()
        self._watermark_us = max(self._watermark_us, min(newest, now_us))
        judge = AlertJudge(sql, self._rules)
        suspects = self._suspects(sql, news, judge)
        known = self._known(sql, news)
        if not suspects and not self._is_any_open(known):
            return {"alerts": 0}
        moved = news.filter(pc.is_in(news["symbol"], pa.array(sorted(suspects), pa.string())))
        judgement = judge.judge(moved, lambda scoped: self._stretch(sql, scoped), known, self._watermark_us)
        if judgement is None:
            return {"alerts": 0}
        self._load_us = max(now_us, self._load_us + 1)
        ids = ", ".join(f"'{alert_id}'" for alert_id in judgement.replaced)
        rows = shaped(sql.local(judgement.episodes), ALERTS, self._load_us)
        self._tables.replace(rows, ALERTS, turn, f"alert_id IN ({ids})")
        return {"alerts": judgement.episodes.num_rows}

    @staticmethod
    def _spans(batch: DataFrame) -> pa.Table:
        """First and last event time of each product, one row each: all that the judge asks of the news."""
        ends = batch.groupBy("symbol").agg(F.min("event_time").alias("first"), F.max("event_time").alias("last"))
        return collected(ends.selectExpr("symbol", "EXPLODE(ARRAY(first, last)) AS event_time"))

    def _suspects(self, sql: SparkSql, news: pa.Table, judge: AlertJudge) -> set[str]:
        """Products whose prices around the news lie far enough apart for some rule: all that matter, and few more."""
        lookback_us = judge.lookback_max_s * MICROS
        times = pc.cast(news["event_time"], pa.int64())
        around = self._between(sql, news, pc.min(times).as_py() - lookback_us, pc.max(times).as_py() + lookback_us)
        prices = collected(around.groupBy("symbol").agg(F.min("price").alias("low"), F.max("price").alias("high")))
        share = judge.threshold_min_pct / 100
        return {
            row["symbol"]
            for row in prices.to_pylist()
            # Floats stand for exact prices: a hair wider, so that a move of exactly the threshold is not passed over.
            if float(row["low"]) <= float(row["high"]) * (1 - share / (1 + share)) * (1 + 1e-9)
        }

    def _known(self, sql: SparkSql, news: pa.Table) -> pa.Table:
        earliest = pc.cast(pc.min(news["event_time"]), pa.int64()).as_py() - EPISODES_KEPT_US // 2
        near = f"state = 'OPEN' OR last_trigger_at >= TIMESTAMP_MICROS({earliest})"
        found = collected(self._tables.read(sql.session, ALERTS).where(near))
        return found.select(ALERTS.arrow_schema.names).cast(ALERTS.arrow_schema)

    @staticmethod
    def _is_any_open(known: pa.Table) -> bool:
        return bool(pc.any(pc.equal(known["state"], "OPEN")).as_py())

    def _stretch(self, sql: SparkSql, scoped: pa.Table) -> DataFrame | pa.Table:
        """The trades that judging by `scoped` rules must see."""
        if scoped.num_rows == 0:
            return SILVER.arrow_schema.empty_table()
        return self._between(sql, scoped, *stretch_bounds_us(scoped))

    def _between(self, sql: SparkSql, products: pa.Table, first_us: int, last_us: int) -> DataFrame:
        first, last = f"TIMESTAMP_MICROS({first_us})", f"TIMESTAMP_MICROS({last_us})"
        when = (
            f"event_date BETWEEN CAST({first} AS DATE) AND CAST({last} AS DATE) "
            f"AND event_time BETWEEN {first} AND {last}"
        )
        is_one = F.col("symbol").isin(pc.unique(products["symbol"]).to_pylist())
        return self._tables.read(sql.session, SILVER).where(when).where(is_one)
