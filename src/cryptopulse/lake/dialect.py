"""Makes an engine's SQL of canonical SQL (Spark's).

The files in `lake/sql` are Spark SQL and run there as they are. They keep to what DuckDB takes as well, so that the
processing needs no translator in memory (SQLGlot: 9 MB, 60 ms at the start); a test compares the result with
SQLGlot's. What differs is replaced here:

- tables `schema.name` become the names under which a session binds its inputs (`bound_name`);
- for many rows every WITH is MATERIALIZED: the bars of 200,000 trades take 90 ms instead of 130 ms. For few rows that
  costs more than it saves;
- functions with another name in DuckDB are macros (`DUCKDB_MACROS`).

Other canonical statements, such as the dashboards' queries, are free to use all of Spark SQL: SQLGlot translates them.
The module also makes time literals: `time_literal` for canonical SQL, `delta_time` for delta-rs.
"""

from __future__ import annotations

import re
from functools import cache

from cryptopulse.lake.tables import read_sql

DUCKDB_MACROS = (
    "CREATE OR REPLACE MACRO timestamp_micros(us) AS make_timestamptz(us)",
    "CREATE OR REPLACE MACRO unix_micros(time) AS epoch_us(time)",
)
"""Statements that define in DuckDB the Spark functions that the files use."""

SPARK_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    # Otherwise Spark keeps fewer decimals of a product or sum than its type has (price * trade_size: 9 of 24).
    "spark.sql.decimalOperations.allowPrecisionLoss": "false",
}
"""Spark session settings that the statements need for correct results. Set them before running one by hand."""

_QUALIFIED = re.compile(r"\b(?:log|bronze|silver|gold)\.[a-z]\w*")
_WITH = re.compile(r"^((?:WITH )?\w+ AS) \($", re.MULTILINE)


def time_literal(us: int | str) -> str:
    """A time (µs UTC, or an expression for it) in canonical SQL, which Spark and our DuckDB databases take."""
    return f"TIMESTAMP_MICROS({us})"


def delta_time(us: int) -> str:
    """A time (µs UTC) in the SQL of delta-rs, with its columns' type, so that file statistics can skip files."""
    return f"arrow_cast({us}, 'Timestamp(Microsecond, Some(\"UTC\"))')"


def bound_name(qualified: str) -> str:
    """The name under which a session binds the input `schema.name`."""
    return qualified.replace(".", "__")


@cache
def duckdb_sql(name: str, *, is_bulk: bool = False) -> str:
    """The statement of `lake/sql/<name>.sql` for DuckDB; `is_bulk`: planned for many rows rather than for few."""
    sql = spark_sql(name).replace("`", '"')
    return _WITH.sub(r"\1 MATERIALIZED (", sql) if is_bulk else sql


@cache
def duckdb_query(sql: str) -> str:
    """Any canonical statement for DuckDB; tables stay `schema.name`, as in `cryptopulse.lake.dataset`."""
    import sqlglot  # noqa: PLC0415 - see above: the processing does without

    return sqlglot.parse_one(sql, read="databricks").sql(dialect="duckdb", comments=False)


@cache
def spark_sql(name: str) -> str:
    """The statement of `lake/sql/<name>.sql` for Spark: unchanged except for the names of its inputs."""
    return _QUALIFIED.sub(lambda found: bound_name(found[0]), read_sql(name))
