"""Kafka → bronze."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import structlog
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from cryptopulse.engine.spark.checkpoint import Checkpoint, Offsets
from cryptopulse.engine.spark.session import SparkSql
from cryptopulse.engine.spark.tables import BatchId, Guard, SparkTables, shaped
from cryptopulse.lake.tables import BRONZE
from cryptopulse.log import EPOCH_PARTITIONS, Log
from cryptopulse.log.continuity import Continuity, Expired, began_anew, check_follows
from cryptopulse.log.kafka_address import KafkaAddress
from cryptopulse.settings import Settings

logger = structlog.get_logger()


class BronzeStep:
    """Appends records from Kafka to bronze as they are."""

    name = "bronze"

    def __init__(self, tables: SparkTables, address: KafkaAddress, log: Log, settings: Settings) -> None:
        """`log` gives partitions and bounds; Spark itself reads the records from `address`."""
        self._tables = tables
        self._address = address
        self._log = log
        self._first_partition = settings.log.epoch * EPOCH_PARTITIONS
        self._messages_max = settings.spark.messages_per_batch_max
        self._stored: dict[int, int] = {}
        self._is_checked = False
        self._unrecorded: list[Expired] = []
        self.expired = 0
        """How many messages expired before they were read, since the start."""

    def source(self, sql: SparkSql, checkpoint: Checkpoint) -> DataFrame:
        """The topic, from the `checkpoint` on; with a new one, from the end of what bronze holds.

        Raises ConfigurationError when the log ends before the position already read.
        """
        read_to = checkpoint.offsets().get(self._address.topic)
        if read_to is None:  # also in the checkpoint of another topic
            held = self._tables.read(sql.session, BRONZE).groupBy("partition").agg(F.max("offset").alias("last"))
            self._stored = {row["partition"]: row["last"] for row in held.collect()}
            continuity = Continuity(self._log)
            continuity.check_start(lambda partition: self._stored.get(partition, -1))
            self._unrecorded += continuity.unrecorded
            self.expired += continuity.expired
        else:
            # Find partitions where bronze is ahead of the checkpoint, because the embedded engine has worked on the
            # lake since. Reads only the files that may hold such messages.
            known = {int(partition) + self._first_partition: offset for partition, offset in read_to.items()}
            beyond = [f"(`partition` = {partition} AND `offset` >= {offset})" for partition, offset in known.items()]
            new = f"`partition` >= {self._first_partition} AND `partition` NOT IN ({', '.join(map(str, known))})"
            rows = self._tables.read(sql.session, BRONZE).where(" OR ".join([*beyond, f"({new})"]))
            held = rows.groupBy("partition").agg(F.max("offset").alias("last"))
            self._stored = {row["partition"]: row["last"] for row in held.collect()}
        # Only at the first start: while the brokers are away later, the log returns their last known bounds.
        if read_to is not None and not self._is_checked:
            last = {int(partition) + self._first_partition: offset - 1 for partition, offset in read_to.items()}
            check_follows(self._log, lambda partition: last.get(partition, -1))
        self._is_checked = True
        # The offset after the last one held, per partition. Spark uses it for a new checkpoint only.
        starting = "earliest"
        if self._stored:
            starts = {
                str(partition - self._first_partition): max(
                    self._stored.get(partition, -1) + 1, self._log.bounds(partition)[0]
                )
                for partition in self._log.partitions()
            }
            starting = json.dumps({self._address.topic: starts})
        options = {
            **self._address.spark_options(databricks="DATABRICKS_RUNTIME_VERSION" in os.environ),
            "subscribe": self._address.topic,
            "includeHeaders": "true",
            "failOnDataLoss": "false",  # `passed` reports what retention has deleted, and the coverage shows it
            "maxOffsetsPerTrigger": str(self._messages_max),
            "startingOffsets": starting,
        }
        return sql.session.readStream.format("kafka").options(**options).load()

    def take(self, sql: SparkSql, batch: DataFrame, batch_id: BatchId) -> dict[str, int]:
        """Appends one batch. Returns no counts: the query's progress has the number of messages."""
        records = batch.withColumn("partition", F.col("partition") + F.lit(self._first_partition))
        for partition, last in self._stored.items():
            records = records.where(f"`partition` <> {partition} OR `offset` > {last}")
        rows = sql.rows(BRONZE.qualified, {"log.kafka_records": records})
        cut = rows.withColumn("bronze_ingestion_time", F.expr(f"TIMESTAMP_MICROS({time.time_ns() // 1000})"))
        self._tables.append(shaped(cut, BRONZE), BRONZE, batch_id)
        return {}

    def passed(self, sql: SparkSql, start: Offsets | None, end: Offsets | None, rows: int, guard: Guard) -> None:
        """Counts and logs expired messages after a batch from `start` to `end` in which Spark read `rows` messages, and
        records in bronze which they were; when that fails, after a later batch.

        The first batch of a checkpoint has no `start`; `source` has checked it. Raises ConfigurationError when the
        topic's offsets have gone back: Spark only warns, and would go on from there. Raises what `guard` raises.
        """
        for topic, partition, offset in _offsets(start):
            if (behind := (end or {}).get(topic, {}).get(partition, offset)) < offset:
                raise began_anew(f" {topic}", int(partition) + self._first_partition, offset - 1, behind)
        # (Kafka partition, first offset, offset after the last) of the batch.
        spans = [
            (int(partition), start[topic][partition], offset)
            for topic, partition, offset in _offsets(end)
            if start and offset > start.get(topic, {}).get(partition, offset)
        ]
        lost = sum(behind - first for _, first, behind in spans) - rows
        if lost > 0 and rows == 0:  # Spark reads no rows if bronze had the whole batch, from before a kill
            lost -= self._held(sql, spans).count()
        if lost > 0:
            self.expired += lost
            logger.warning("messages_expired", count=lost, first_offsets=start, end_offsets=end)
        if lost > 0 or self._unrecorded:
            guard()
            try:
                self._record(sql, spans if lost > 0 else [])
            except Exception as error:  # noqa: BLE001 - a storage that is away comes as Java's own
                logger.warning("expired_messages_not_recorded", error=str(error).splitlines()[0])

    def _record(self, sql: SparkSql, spans: list[tuple[int, int, int]]) -> None:
        """Records in bronze which messages of `spans` it could not get."""
        for number, first, behind in spans:
            ours = number + self._first_partition
            unread = max(first, self._stored.get(ours, -1) + 1)
            (held,) = self._held(sql, [(number, unread, behind)]).agg(F.min("offset").alias("first")).collect()
            last = (behind if held["first"] is None else held["first"]) - 1
            if last >= unread:
                self._unrecorded.append(Expired(ours, unread, last))
        for one in self._unrecorded:
            self._tables.record(sql.session, BRONZE, one.source, one.last_offset)
        self._unrecorded.clear()

    def _held(self, sql: SparkSql, spans: list[tuple[int, int, int]]) -> DataFrame:
        """The messages of `spans` that bronze has."""
        parts = (
            f"(`partition` = {partition + self._first_partition} AND `offset` BETWEEN {first} AND {behind - 1})"
            for partition, first, behind in spans
        )
        return self._tables.read(sql.session, BRONZE).where(" OR ".join(parts))


def _offsets(offsets: Offsets | None) -> Iterator[tuple[str, str, int]]:
    """Each (topic, Kafka partition, offset)."""
    for topic, partitions in (offsets or {}).items():
        for partition, offset in partitions.items():
            yield topic, partition, offset
