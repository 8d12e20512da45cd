"""The lake's tables as Spark sees them: by path, or by name in a catalog."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyspark.sql import DataFrame, DataFrameWriterV2, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - the name that everybody knows it by
from pyspark.sql.pandas.types import to_arrow_schema

from cryptopulse.errors import ConfigurationError, Fenced
from cryptopulse.lake.ddl import create_table
from cryptopulse.lake.storage import open_table, storage
from cryptopulse.lake.tables import BRONZE, TABLES, Table, app_id, other_columns
from cryptopulse.settings import Settings
from cryptopulse.store.table_writer import owner_id

_PROPERTIES = {
    # Streams read a table's log, so it must be kept longer than any pause of a stream.
    "delta.logRetentionDuration": "interval 30 days",
    # A checkpoint takes two seconds. Reading 50 commits costs less than writing one after every ten.
    "delta.checkpointInterval": "50",
}


Guard = Callable[[], None]
"""Raises Fenced when another pipeline has taken the tables over."""


@dataclass(frozen=True)
class BatchId:
    """The batch and the streaming query that write."""

    query_id: str
    """Belongs to the checkpoint: a new checkpoint counts its batches from 0, under another id."""
    batch: int

    def app_id(self, table: Table) -> str:
        """The `txnAppId` under which Delta counts the query's batches in `table`."""
        return f"cryptopulse:{table.qualified}:spark/{self.query_id}"


class SparkTables:
    """Reads and writes the tables of one lake."""

    def __init__(self, settings: Settings) -> None:
        """Tables are found by name if `spark.catalog` is set, else by path under the lake."""
        self._location = settings.location
        self._catalog = settings.spark.catalog

    def name(self, table: Table) -> str:
        """The table's name in SQL."""
        if self._catalog:
            return f"`{self._catalog}`.`{table.schema}`.`{table.name}`"
        return "delta.`{}`".format(self._location.spark_table_url(table).replace("`", "``"))

    def create(self, session: SparkSession) -> None:
        """Creates missing tables. Raises ConfigurationError for a table of another version of CryptoPulse."""
        if self._catalog:
            for schema in dict.fromkeys(table.schema for table in TABLES):
                session.sql(f"CREATE SCHEMA IF NOT EXISTS `{self._catalog}`.`{schema}`")
        for table in TABLES:
            session.sql(create_table(table, self.name(table), _PROPERTIES))
            differs = other_columns(table, to_arrow_schema(self.read(session, table).schema))
            if not differs:
                continue
            derived = "all tables of silver and gold" if table.schema == "silver" else "it"
            remedy = (
                "Use the version that made it, or name another lake."
                if table is BRONZE
                else f"Stop all steps, delete {derived} and the checkpoints (spark.checkpoints), and start again: the "
                "steps then look at everything once."
            )
            raise ConfigurationError(
                f"Table {self.name(table)} was made by another version of CryptoPulse ({differs}). {remedy}"
            )

    def take_over(self, session: SparkSession, tables: Sequence[Table]) -> Guard:
        """Fences an embedded engine on another machine from `tables` (one that starts there fences this driver).

        A commit without rows carries the number of the take-over (see `cryptopulse.store.table_writer`). Returns the
        guard to call before each batch; it raises Fenced once another pipeline has taken over a table. Only Spark
        writes tables of a catalog, so they need no guard. On S3 Spark's commits are not exclusive.
        """
        if self._catalog:
            return lambda: None
        owner = time.time_ns() // 1000  # more than any number before; the embedded engine counts on from it
        for table in tables:
            nothing = self.read(session, table).limit(0)
            self._writer(nothing, table, owner_id(table), owner).append()

        # Kept open: opening a table of some hundred commits takes six times as long as reading only the new ones.
        kept = [(table, open_table(self._location, table)) for table in tables]

        def check() -> None:
            for table, delta in kept:
                with storage(self._location):
                    delta.update_incremental()
                if delta.transaction_version(owner_id(table)) != owner:
                    raise Fenced(f"Another pipeline has taken over {table.qualified}. Run one pipeline per lake.")

        return check

    def read(self, session: SparkSession, table: Table) -> DataFrame:
        """The table as it is now."""
        return session.table(self.name(table))

    def stream(self, session: SparkSession, table: Table, files_max: int, bytes_max: int | None = None) -> DataFrame:
        """A stream of the rows appended to the table, from its beginning. A batch has at most `files_max` files, and no
        further file once they have `bytes_max` bytes."""
        reader = session.readStream.option("maxFilesPerTrigger", files_max).option("skipChangeCommits", "true")
        if bytes_max is not None:
            reader = reader.option("maxBytesPerTrigger", bytes_max)
        if self._catalog:
            return reader.table(self.name(table))
        return reader.format("delta").load(self._location.spark_table_url(table))

    def append(self, rows: DataFrame, table: Table, batch_id: BatchId) -> None:
        """Appends `rows`, once per batch."""
        self._writer(rows, table, batch_id.app_id(table), batch_id.batch).append()

    def record(self, session: SparkSession, table: Table, source: str, position: int) -> None:
        """Writes the position of `source` into the table's log, in a commit without rows."""
        self._writer(self.read(session, table).limit(0), table, app_id(table, source), position).append()

    def replace(self, rows: DataFrame, table: Table, batch_id: BatchId, predicate: str = "true") -> None:
        """Replaces the rows that match `predicate` by `rows`, in one commit, once per batch."""
        self._writer(rows, table, batch_id.app_id(table), batch_id.batch).overwrite(F.expr(predicate))

    def upsert(self, rows: DataFrame, table: Table, prune: str) -> None:
        """Replaces rows with the same key and adds the others. `prune`: SQL that holds for all old and new rows."""
        rows.createOrReplaceTempView("upserted")
        same = " AND ".join(f"t.`{name}` = s.`{name}`" for name in table.key)
        rows.sparkSession.sql(
            f"MERGE INTO {self.name(table)} AS t USING upserted AS s ON {same} AND {prune} "
            "WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
        )

    def add_missing(self, rows: DataFrame, table: Table) -> None:
        """Adds the rows whose key the table does not have."""
        rows.createOrReplaceTempView("offered")
        same = " AND ".join(f"t.`{name}` = s.`{name}`" for name in table.key)
        rows.sparkSession.sql(
            f"MERGE INTO {self.name(table)} AS t USING offered AS s ON {same} WHEN NOT MATCHED THEN INSERT *"
        )

    def _writer(self, rows: DataFrame, table: Table, app_id: str, version: int) -> DataFrameWriterV2:
        # Not `saveAsTable`: with `replaceWhere` Spark 3.5.6 and later refuse it for tables of a catalog.
        return rows.writeTo(self.name(table)).option("txnAppId", app_id).option("txnVersion", str(version))


def shaped(rows: DataFrame, table: Table, load_us: int | None = None) -> DataFrame:
    """`rows` with exactly the table's columns and types; with their load_timestamp (µs UTC) when it is given."""
    if load_us is not None:
        rows = rows.withColumn("load_timestamp", F.expr(f"TIMESTAMP_MICROS({load_us})"))
    return rows.select([F.col(column.name).cast(column.type.lower()).alias(column.name) for column in table.columns])


def micros_of(frame: DataFrame, expression: str, default: int) -> int:
    """A time from a table in µs UTC (`expression`: an aggregate), `default` if it is null."""
    row = frame.select(F.expr(f"UNIX_MICROS({expression}) AS us")).first()
    return default if row is None or row["us"] is None else int(row["us"])


_TAKEN_OVER = (
    "ConcurrentTransactionException",  # Delta: the batch was written by another, with the same txnAppId
    "DELTA_CONCURRENT_TRANSACTION",
    "Multiple streaming jobs detected",  # Spark: the batch was planned by another, in the same checkpoint
)


def is_taken_over(error: Exception) -> bool:
    """Whether another driver works on this query's checkpoint.

    Delta's error is a Java exception wrapped by Py4J: pyspark has no class for it.
    """
    return any(sign in str(error) for sign in _TAKEN_OVER)
