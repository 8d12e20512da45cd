"""Translates canonical SQL (Spark's) to an engine's SQL.

The files in `lake/sql` are Spark SQL and run there as they are. SQLGlot translates them for DuckDB; this module adds
what SQLGlot can't know:

- tables `schema.name` become the names under which a session binds its inputs (`bound_name`);
- for many rows every WITH is MATERIALIZED: the bars of 200,000 trades take 90 ms instead of 130 ms. For few rows that
  costs more than it saves;
- functions with another name in DuckDB are macros (`DUCKDB_MACROS`).

It also makes time literals: `time_literal` for canonical SQL, `delta_time` for delta-rs.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from cryptopulse.lake.tables import read_sql

if TYPE_CHECKING:
    from sqlglot import exp

DUCKDB_MACROS = ("CREATE OR REPLACE MACRO timestamp_micros(us) AS make_timestamptz(us)",)
"""Statements that define in DuckDB the Spark functions that the files use."""

SPARK_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    # Otherwise Spark keeps fewer decimals of a product or sum than its type has (price * trade_size: 9 of 24).
    "spark.sql.decimalOperations.allowPrecisionLoss": "false",
}
"""Spark session settings that the statements need for correct results. Set them before running one by hand."""

_QUALIFIED = re.compile(r"\b(?:log|bronze|silver|gold)\.[a-z]\w*")


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
    import sqlglot  # noqa: PLC0415 - 50 ms, which the first trades after a start need not wait for
    from sqlglot import exp  # noqa: PLC0415

    def for_duckdb(node: exp.Expression) -> exp.Expression:
        if isinstance(node, exp.Table) and node.db:
            return exp.to_table(bound_name(f"{node.db}.{node.name}"), alias=node.alias or node.name)
        if isinstance(node, exp.Column) and node.args.get("db"):
            raise ValueError(f"{node.sql()}: name columns by table or alias only")
        return node

    tree = sqlglot.parse_one(read_sql(name), read="databricks")
    for part in tree.find_all(exp.CTE):
        part.set("materialized", is_bulk or None)
    return tree.transform(for_duckdb).sql(dialect="duckdb", comments=False)


@cache
def duckdb_query(sql: str) -> str:
    """Any canonical statement for DuckDB; tables stay `schema.name`, as in `cryptopulse.lake.dataset`."""
    import sqlglot  # noqa: PLC0415 - as above

    return sqlglot.parse_one(sql, read="databricks").sql(dialect="duckdb", comments=False)


@cache
def spark_sql(name: str) -> str:
    """The statement of `lake/sql/<name>.sql` for Spark: unchanged except for the names of its inputs."""
    return _QUALIFIED.sub(lambda found: bound_name(found[0]), read_sql(name))
