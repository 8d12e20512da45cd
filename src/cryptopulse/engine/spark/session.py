"""A Spark session for the steps: canonical statements over named inputs, small tables in and out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyspark
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.dialect import SPARK_SETTINGS, bound_name, spark_sql
from cryptopulse.settings import Settings

Input: TypeAlias = DataFrame | pa.Table

_DELTA = {
    "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
    "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
}
_PACKAGES = {
    # Spark's major and minor version → Scala, the matching Delta Lake, the Hadoop that Spark ships with.
    "3.5": ("2.12", "io.delta:delta-spark_2.12:3.3.2", "3.3.4"),
    "4.0": ("2.13", "io.delta:delta-spark_2.13:4.0.1", "3.4.1"),
}
_SMALL = {
    # Micro-batches are small: many partitions or a look-up of statistics cost more than they save.
    "spark.sql.shuffle.partitions": "4",
    # Adaptive plans run each stage as a job of its own. Every commit with a `txn` reads the table's state anew: with
    # both settings it costs one job instead of three, half of the time of a small append.
    "spark.sql.adaptive.enabled": "false",
    "spark.databricks.delta.snapshotPartitions": "1",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.streaming.metricsEnabled": "false",
    # The default collector marks in threads of its own, which compete for the cores, and takes more beside the heap.
    "spark.driver.extraJavaOptions": "-XX:+UseParallelGC",
}
_LOCAL = {
    # Hadoop's default ways to put a local file in its place start a process for each file's mode and each link that
    # might be there, some 50 a second in all. These rename as well, and refuse a name that exists as well.
    "spark.sql.streaming.checkpointFileManagerClass": "org.apache.spark.sql.execution.streaming."
    "FileSystemBasedCheckpointFileManager",
    "spark.delta.logStore.file.impl": "io.delta.storage.LocalLogStore",
}
_SQL_TYPES = {
    pa.string(): "STRING",
    pa.int32(): "INT",
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
}


def spark_session(settings: Settings) -> SparkSession:
    """On Databricks the runtime's session; elsewhere the running session (spark-submit) or a new one.

    Without `spark.jars` or `spark.jars.packages` in `spark.conf` a new session gets Delta Lake and the Kafka source
    from Maven. Raises ConfigurationError when Spark can't start.
    """
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:  # our settings would replace its Delta Lake and its catalog
        session = SparkSession.builder.getOrCreate()
    else:
        session = SparkSession.getActiveSession() or _new_session(settings)
        session.conf.set("spark.databricks.delta.autoCompact.enabled", "true")
    for name, value in SPARK_SETTINGS.items():  # the meaning of the statements depends on them
        session.conf.set(name, value)
    if settings.spark.catalog is None and (hadoop := settings.location.hadoop_options):
        # Passed to the builder they would be arguments of the Java process, which everybody on the machine can read.
        configuration = session.sparkContext._jsc.hadoopConfiguration()
        for name, value in hadoop.items():
            configuration.set(name, value)
    return session


def _new_session(settings: Settings) -> SparkSession:
    conf = {**_DELTA, **_SMALL, **(_LOCAL if settings.location.kind == "local" else {}), **settings.spark.conf}
    if not {"spark.jars", "spark.jars.packages"} & set(settings.spark.conf):
        minor = ".".join(pyspark.__version__.split(".")[:2])
        if minor not in _PACKAGES:
            raise ConfigurationError(
                f"Spark {pyspark.__version__} has not been tried; install one of {', '.join(_PACKAGES)}, or name its "
                "jars in spark.conf."
            )
        scala, delta, hadoop = _PACKAGES[minor]
        packages = [delta, f"org.apache.spark:spark-sql-kafka-0-10_{scala}:{pyspark.__version__}"]
        if module := {"s3": "hadoop-aws", "azure": "hadoop-azure"}.get(settings.location.kind):
            packages.append(f"org.apache.hadoop:{module}:{hadoop}")
        conf["spark.jars.packages"] = ",".join(packages)
    # The parser runs in Spark's Python workers, which by default use the first python3 on the path.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("cryptopulse")
    for name, value in conf.items():
        builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except Exception as error:
        raise ConfigurationError(
            f"Spark can't start: {str(error).strip().splitlines()[0]}. It needs Java 17 or newer (JAVA_HOME) and its "
            "jars (spark.conf: spark.jars or spark.jars.packages)."
        ) from error


def generate_code(session: SparkSession, *, wanted: bool) -> None:
    """Whether Spark compiles code for the next statements, or interprets them; where the settings say it, they decide.

    Nearly every statement of a small batch is compiled anew, as its times are part of the code: some 20 a second for
    four queries, which takes more than the rows do. On Databricks the session stays as it is.
    """
    if "DATABRICKS_RUNTIME_VERSION" not in os.environ:
        given = session.sparkContext.getConf()
        for name, value in (
            ("wholeStage", str(wanted).lower()),
            ("factoryMode", "FALLBACK" if wanted else "NO_CODEGEN"),
        ):
            if not given.contains(f"spark.sql.codegen.{name}"):
                session.conf.set(f"spark.sql.codegen.{name}", value)


class SparkSql:
    """Runs canonical statements in one session. Each streaming query has its own session, so names don't collide."""

    def __init__(self, session: SparkSession) -> None:
        """`session`: where inputs are bound to names."""
        self.session = session

    def rows(self, name: str, inputs: Mapping[str, Input]) -> DataFrame:
        """The rows of `lake/sql/<name>.sql` over `inputs` (qualified name → rows). Nothing runs yet."""
        for qualified, given in inputs.items():
            bound = self.local(given) if isinstance(given, pa.Table) else given
            bound.createOrReplaceTempView(bound_name(qualified))
        return self.session.sql(spark_sql(name))

    def derive(self, name: str, inputs: Mapping[str, Input]) -> pa.Table:
        """Like `rows`, but computed and collected: for results of few rows."""
        return collected(self.rows(name, inputs))

    def local(self, rows: pa.Table) -> DataFrame:
        """A few rows as a data frame, exact in every type. Spark reads them from JSON, without Python workers."""
        columns = [(field.name, _sent(field.type), _received(field.name, field.type)) for field in rows.schema]
        record = ", ".join(f"`{name}`: {sent}" for name, sent, _ in columns)
        selected = ", ".join(expression for *_, expression in columns)
        plain = [pc.cast(c, pa.int64()) if pa.types.is_timestamp(c.type) else c for c in rows.columns]  # times as µs
        found = pa.table(plain, names=rows.schema.names).to_pylist()
        text = json.dumps([{k: _plain(v) for k, v in row.items()} for row in found])
        return self.session.sql(
            f"SELECT {selected} FROM (SELECT INLINE(FROM_JSON(:rows, 'ARRAY<STRUCT<{record}>>')))",  # noqa: S608
            args={"rows": text},
        )


def collected(frame: DataFrame) -> pa.Table:
    """A data frame's rows, collected to this process; times are µs UTC."""
    if hasattr(frame, "toArrow"):  # from Spark 4.0 on
        return frame.toArrow()
    batches = frame._collect_as_arrow()
    return pa.Table.from_batches(batches) if batches else to_arrow_schema(frame.schema).empty_table()


def _sent(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return "BIGINT"
    return "STRING" if pa.types.is_decimal(kind) else _SQL_TYPES[kind]


def _received(name: str, kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return f"TIMESTAMP_MICROS(`{name}`) AS `{name}`"
    if pa.types.is_decimal(kind):
        return f"CAST(`{name}` AS DECIMAL({kind.precision},{kind.scale})) AS `{name}`"
    return f"`{name}`"


def _plain(value: object) -> object:
    assert not isinstance(value, datetime | bytes)
    return f"{value:f}" if isinstance(value, Decimal) else value
