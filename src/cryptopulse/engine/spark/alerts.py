"""Silver → alerts: the embedded engine's step over Spark's trades.

One job brings each batch to the driver as Arrow, so batches must be small. Most batches need nothing else: the step
reads silver only for products that are new to it or have a trade over a threshold, and writes only changed episodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from cryptopulse.engine.alerts import AlertStep
from cryptopulse.engine.scopes import columns_for, need_products
from cryptopulse.engine.spark.checkpoint import Checkpoint
from cryptopulse.engine.spark.session import SparkSql, collected
from cryptopulse.engine.spark.silver import intervals_now
from cryptopulse.engine.spark.tables import BatchId, SparkTables, micros_of, shaped
from cryptopulse.lake.tables import ALERTS, SILVER
from cryptopulse.settings import AlertRule

# Bytes of silver's files, about 40 per trade; in Arrow a trade takes 80 bytes.
_BATCH_MAX_BYTES = 64 << 20


class AlertsStep:
    """Judges new trades and keeps the table of episodes."""

    name = "alerts"

    def __init__(self, tables: SparkTables, rules: list[AlertRule], files_max: int) -> None:
        """`files_max`: most files of silver in one batch."""
        self._tables = tables
        self._rules = rules
        self._files_max = files_max
        self._trades: _Trades
        self._episodes: _Episodes
        self._step: AlertStep
        """These three are made when the query starts."""

    def source(self, sql: SparkSql, checkpoint: Checkpoint) -> DataFrame:  # noqa: ARG002 - judging again changes nothing
        """Silver's trades."""
        self._trades = _Trades(sql, self._tables, columns_for(self._rules))
        self._episodes = _Episodes(sql, self._tables)
        products: list[str] = []
        if need_products(self._rules):
            products = pc.unique(intervals_now(sql, self._tables).table["symbol"]).to_pylist()
        self._step = AlertStep(self._episodes, self._trades, self._rules, products)
        self._step.max_delay_s = 0  # Spark counts a batch as done
        return self._tables.stream(sql.session, SILVER, self._files_max, _BATCH_MAX_BYTES)

    def take(self, sql: SparkSql, batch: DataFrame, batch_id: BatchId) -> dict[str, int]:
        """Judges the batch; returns the number of rows written, as `alerts`."""
        self._trades.take_in(sql, batch)
        self._episodes.begin(sql, batch_id)
        commit = self._step.advance()
        return {} if commit is None else {"alerts": commit.rows.num_rows}


class _Trades:
    """Silver's trades, as a `TradeSource`: the current batch, and reads by event time."""

    def __init__(self, sql: SparkSql, tables: SparkTables, columns: Sequence[str]) -> None:
        self._sql, self._tables = sql, tables
        taken = (*columns, "ingestion_time", "load_timestamp")
        self._taken = pa.schema([SILVER.arrow_schema.field(name) for name in taken])
        silver = tables.read(sql.session, SILVER).where("event_time <= CURRENT_TIMESTAMP()")
        self.watermark_us = micros_of(silver, "MAX(event_time)", 0)
        self.kept_from_us = 0
        self._batch: pa.Table | None = None

    def take_in(self, sql: SparkSql, batch: DataFrame) -> None:
        self._sql = sql
        rows = _arrow(batch, self._taken)
        self._batch = rows if rows.num_rows else None
        if rows.num_rows:
            newest = pc.cast(pc.max(rows["event_time"]), pa.int64()).as_py()
            self.watermark_us = max(self.watermark_us, min(newest, time.time_ns() // 1000))

    def since(self, position: int) -> pa.Table | None:  # noqa: ARG002 - Spark keeps it, in its checkpoint
        return self._batch

    def between(self, first_us: int, last_us: int, symbols: Sequence[str] | None = None) -> pa.Table:
        first, last = f"TIMESTAMP_MICROS({first_us})", f"TIMESTAMP_MICROS({last_us})"
        when = (
            f"event_date BETWEEN CAST({first} AS DATE) AND CAST({last} AS DATE) "
            f"AND event_time BETWEEN {first} AND {last}"
        )
        found = self._tables.read(self._sql.session, SILVER).where(when)
        if symbols is not None:
            found = found.where(F.col("symbol").isin(list(symbols)))
        return _arrow(found, SILVER.arrow_schema)


class _Episodes:
    """The table of episodes, as an `EpisodeTable`. A batch's transaction number keeps repeated batches out."""

    def __init__(self, sql: SparkSql, tables: SparkTables) -> None:
        self._sql, self._tables = sql, tables
        self._batch_id: BatchId | None = None
        self._positions = {"load": micros_of(tables.read(sql.session, ALERTS), "MAX(load_timestamp)", 0)}
        self._ids = ALERTS.empty.select(["alert_id"])
        """Ids of all episodes that the table has or had."""

    def begin(self, sql: SparkSql, batch_id: BatchId) -> None:
        self._sql, self._batch_id = sql, batch_id

    def position(self, source: str) -> int:
        return self._positions.get(source, -1)

    def recorded(self, source: str) -> int:  # noqa: ARG002
        """Spark keeps the position in its checkpoint: no commit is needed for it."""
        return 2**62

    def next_load(self) -> int:
        return max(time.time_ns() // 1000, self.position("load") + 1)

    def skip_to(self, source: str, position: int) -> None:
        self._positions[source] = position

    def append(self, rows: pa.Table, positions: Mapping[str, int]) -> None:
        assert self._batch_id is not None
        self._tables.append(shaped(self._sql.local(rows), ALERTS), ALERTS, self._batch_id)
        self._wrote(rows, positions)

    def replace(
        self,
        rows: pa.Table,
        positions: Mapping[str, int],
        *,
        is_replaced: Callable[[pa.Table], pa.Array],
        within: Mapping[str, tuple[Any, Any]],  # noqa: ARG002 - Delta finds the files by the condition
    ) -> None:
        assert self._batch_id is not None
        replaced = self._ids.filter(is_replaced(self._ids))["alert_id"].to_pylist()
        ids = ", ".join(f"'{alert_id}'" for alert_id in {*replaced, *rows["alert_id"].to_pylist()})
        self._tables.replace(shaped(self._sql.local(rows), ALERTS), ALERTS, self._batch_id, f"alert_id IN ({ids})")
        self._wrote(rows, positions)

    def read(self, columns: str, where: str = "true") -> pa.Table:
        rows = _arrow(self._tables.read(self._sql.session, ALERTS).where(where), ALERTS.arrow_schema)
        self._ids = rows.select(["alert_id"])
        return rows.select(columns.split(", "))

    def _wrote(self, rows: pa.Table, positions: Mapping[str, int]) -> None:
        self._positions |= positions
        self._ids = pa.concat_tables([self._ids, rows.select(["alert_id"])])


def _arrow(frame: DataFrame, schema: pa.Schema) -> pa.Table:
    return collected(frame.select(schema.names)).cast(schema)
