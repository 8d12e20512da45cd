"""Canonical SQL (Spark's) → an engine's SQL.

The files in `lake/sql` are Spark SQL and run there as they are. SQLGlot translates them for DuckDB; what it can't
know is done here, each by a named rule:

- tables `schema.name` become the names under which a session binds its inputs (`bound_name`);
- `from_json(text, '<DDL>')` becomes DuckDB's `from_json` with its JSON structure, in `TRY`: NULL for malformed text;
- `CAST(body AS STRING)` becomes `decode`, in `TRY`: NULL for bytes that are not UTF-8;
- a WITH that parses JSON is MATERIALIZED: DuckDB would else parse a message again for each field that is named
  (200,000 messages took 770 ms instead of 190 ms). For many rows every WITH is: the bars of 200,000 trades take 90 ms
  instead of 130 ms. For few rows that costs more than it saves (100 messages: 24 ms instead of 15 ms);
- functions that DuckDB spells otherwise are macros (`DUCKDB_MACROS`).
"""

from __future__ import annotations

import json
import re
from functools import cache

import sqlglot
from sqlglot import exp

from cryptopulse.lake.tables import read_sql

DUCKDB_MACROS = ("CREATE OR REPLACE MACRO timestamp_micros(us) AS make_timestamptz(us)",)
"""Statements that give DuckDB the names of Spark that the files use."""

SPARK_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    # Else Spark keeps fewer decimals of a product or a sum than its type has (price * trade_size: 9 of 24).
    "spark.sql.decimalOperations.allowPrecisionLoss": "false",
}
"""Settings of a Spark session without which the statements give other results. Set them before you paste one."""

_QUALIFIED = re.compile(r"\b(?:log|bronze|silver|gold)\.[a-z]\w*")
_BINARY = "body"  # the one column of bytes
_JSON_TYPES = {"STRING": "VARCHAR", "TEXT": "VARCHAR", "BIGINT": "BIGINT"}


def bound_name(qualified: str) -> str:
    """Under which name a session finds the input `schema.name`."""
    return qualified.replace(".", "__")


@cache
def duckdb_sql(name: str, *, is_bulk: bool = False) -> str:
    """The statement of `lake/sql/<name>.sql` for DuckDB; `is_bulk`: planned for many rows rather than for few."""
    tree = sqlglot.parse_one(read_sql(name), read="databricks")
    for part in tree.find_all(exp.CTE):
        part.set("materialized", is_bulk or part.find(exp.FromJson) is not None or None)
    return tree.transform(_for_duckdb).sql(dialect="duckdb", comments=False)


@cache
def duckdb_query(sql: str) -> str:
    """Any canonical statement for DuckDB; its tables stay `schema.name`, as `cryptopulse.lake.reader` has them."""
    return sqlglot.parse_one(sql, read="databricks").sql(dialect="duckdb", comments=False)


@cache
def spark_sql(name: str) -> str:
    """The statement of `lake/sql/<name>.sql` for Spark: word for word, but for the names of its inputs."""
    return _QUALIFIED.sub(lambda found: bound_name(found[0]), read_sql(name))


def _for_duckdb(node: exp.Expression) -> exp.Expression:
    if isinstance(node, exp.Table) and node.db:
        return exp.to_table(bound_name(f"{node.db}.{node.name}"), alias=node.alias or node.name)
    if isinstance(node, exp.Column) and node.args.get("db"):
        raise ValueError(f"{node.sql()}: name columns by table or alias only")
    if isinstance(node, exp.Cast) and node.this.name == _BINARY and node.to.is_type("string"):
        return _attempt(exp.Anonymous(this="decode", expressions=[node.this]))
    if isinstance(node, exp.FromJson):
        arguments = [node.this, _json_structure(node.expression.name)]
        return _attempt(exp.Anonymous(this="from_json", expressions=arguments))
    return node


def _attempt(node: exp.Expression) -> exp.Expression:
    return exp.Anonymous(this="TRY", expressions=[node])


def _json_structure(ddl: str) -> exp.Expression:
    """Spark's DDL of a JSON value → DuckDB's structure of it, as a string literal."""
    is_type = ddl.upper().startswith(("ARRAY<", "STRUCT<"))
    data_type = exp.DataType.build(ddl if is_type else f"STRUCT<{_with_colons(ddl)}>", dialect="databricks")
    return exp.Literal.string(json.dumps(_structure(data_type)))


def _with_colons(ddl: str) -> str:
    """`a STRING, b STRUCT<c: STRING>` → `a: STRING, b: STRUCT<c: STRING>`: only the outermost list is changed."""
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(ddl):
        depth += (letter == "<") - (letter == ">")
        if letter == "," and depth == 0:
            parts.append(ddl[start:place])
            start = place + 1
    parts.append(ddl[start:])
    return ", ".join(": ".join(part.strip().split(" ", 1)) for part in parts)


def _structure(data_type: exp.DataType) -> object:
    if data_type.is_type(exp.DataType.Type.STRUCT):
        return {member.name: _structure(member.args["kind"]) for member in data_type.expressions}
    if data_type.is_type(exp.DataType.Type.ARRAY):
        return [_structure(data_type.expressions[0])]
    return _JSON_TYPES[data_type.this.value]
