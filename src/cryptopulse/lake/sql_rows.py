"""Rows of a SQL statement over the tables. The statement can read nothing else, and write nothing.

Two barriers, each sufficient alone:

- `check_reads` checks what a statement does at every depth, by DuckDB's own parse tree, not by its first word:
  `WITH x AS (COPY … TO …) SELECT 1` is a SELECT that writes, and so is `EXPLAIN ANALYZE COPY …`.
- Each statement gets a database of its own, with nothing but the tables' files, behind a read-only file system
  (`sandbox`). No later statement sees a change made there. This costs some 25 ms. DuckDB can write to one folder only,
  to which it spills: it is new, and deleted with the database.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import duckdb
import pyarrow as pa

from cryptopulse.errors import ConfigurationError, RowsGone
from cryptopulse.lake.as_of import view_sql
from cryptopulse.lake.database import (
    Limits,
    Params,
    TimeLimit,
    listed,
    relation,
    spill_folder,
    streamed,
    translated_errors,
    tune,
)
from cryptopulse.lake.files import Files
from cryptopulse.lake.follower import Versions
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.result import BATCH_ROWS, Rows, check_positive
from cryptopulse.lake.tables import ALERTS, TABLES, Table

_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
# Others read or write files (enable_logging), run a text as SQL (query), or read a memory address (arrow_scan).
_TABLE_FUNCTIONS = frozenset(
    {
        *("generate_series", "histogram", "histogram_values", "json_each", "json_tree", "query_table", "range"),
        *("repeat", "repeat_row", "test_all_types", "unnest", "icu_calendar_names", "pg_timezone_names"),
        *("duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_schemas", "duckdb_settings"),
        *("duckdb_tables", "duckdb_types", "duckdb_views", "pragma_show", "pragma_table_info", "pragma_version"),
    }
)
# DuckDB serializes only SELECTs. What follows this prefix must be one.
_EXPLAIN = re.compile(r"\s*EXPLAIN(\s+ANALYZE\b)?(\s*\(\s*(ANALYZE|FORMAT)\b[^()]*\))?", re.IGNORECASE)
_TREE = "SELECT json_serialize_sql(?, skip_null := true, skip_empty := true, skip_default := true)"


def check_reads(parser: duckdb.DuckDBPyConnection, text: str) -> None:
    """Raises ConfigurationError, in one line, unless `text` is one statement that only reads. Runs nothing."""
    try:
        text.encode()
        statements = parser.extract_statements(text)
    except UnicodeEncodeError:
        raise ConfigurationError(
            "SQL: there are bytes in it that are not UTF-8 (with LC_ALL=C, set PYTHONUTF8=1)."
        ) from None
    except duckdb.Error as error:
        raise ConfigurationError(f"SQL: {str(error).splitlines()[0]}") from error
    if not statements:
        raise ConfigurationError("SQL: the statement is empty.")
    if len(statements) > 1:
        raise ConfigurationError("SQL: write one statement at a time.")
    query = statements[0].query
    with suppress(ValueError):  # DuckDB's Python has no name for UPDATE EXTENSIONS, CONNECT and DISCONNECT
        if statements[0].type == duckdb.StatementType.EXPLAIN:
            query = _EXPLAIN.sub("", query, count=1)
    found = parser.execute(_TREE, [query]).fetchone()
    assert found is not None
    # All objects of the tree, the outermost first.
    nodes: list[dict[str, Any]] = []
    try:
        left: list[Any] = [json.loads(found[0])]
    except RecursionError:
        raise ConfigurationError("SQL: the statement is nested too deeply.") from None
    while left:
        value = left.pop()
        if isinstance(value, dict):
            nodes.append(value)
            left += value.values()
        elif isinstance(value, list):
            left += value
    kinds = {str(node["type"]) for node in nodes if "type" in node}
    if nodes[0]["error"] or not {kind for kind in kinds if kind.endswith("_NODE")} <= _NODES:
        raise ConfigurationError("SQL: only statements that read are allowed (SELECT, DESCRIBE, EXPLAIN, …).")
    called = {str(node["function"]["function_name"]).lower() for node in nodes if node.get("type") == "TABLE_FUNCTION"}
    if refused := called - _TABLE_FUNCTIONS:
        raise ConfigurationError(f"SQL: {min(refused)}() is not allowed: only the lake's tables can be read.")


def tables_named(text: str) -> list[Table]:
    """The tables that the statement `text` can read: those that it names, or all."""
    low = text.lower()
    named = [table for table in TABLES if table.name in low]
    return list(TABLES) if not named or "query_table" in low else named  # its arguments may be put together


@dataclass(frozen=True)
class Past:
    """The moment as of which tables are read."""

    us: int
    """µs UTC."""
    tables: Sequence[Table]
    """The tables to show; files must be those of their `as_of.sources_of`."""
    episodes: pa.Table | None
    """The rows of gold.dm_market_alerts, if it is one of `tables`."""


@contextmanager
def sandbox(
    lake: LakeLocation, files: Sequence[Files], limits: Limits, past: Past | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the views `bronze.…`, `silver.…`, `gold.…` over `files` of `lake`, as they are or as `past` says.
    It can access only the tables' files, read-only, and its spill folder, which is removed with it. Times are UTC.
    """
    from cryptopulse.lake.table_files import PROTOCOL, TableFiles  # noqa: PLC0415 - 80 ms, for those who ask in SQL

    spill = spill_folder(lake)
    paths: dict[str, str] = {}
    views: dict[Table, str] = {}
    try:
        with duckdb.connect(":memory:") as connection:
            tune(connection, limits, spill)
            connection.register_filesystem(TableFiles(paths))
            for one in files:
                root = f"{PROTOCOL}://{one.table.qualified}/" if one.lake.folder else ""
                names = [root + path for path in one.paths]
                if root:
                    paths.update(zip(names, one.names, strict=True))
                views[one.table] = relation(connection, one, names)
            if past is not None:
                views = {table: view_sql(table, past.us, views) for table in past.tables if table is not ALERTS}
                if past.episodes is not None:
                    connection.register("episodes", past.episodes)
                    views[ALERTS] = "SELECT * FROM episodes"
            for table, view in views.items():
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {table.schema}")
                connection.execute(f"CREATE VIEW {table.qualified} AS {view}")
            connection.execute(f"SET allowed_paths = {listed(paths)}")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            yield connection
    finally:
        shutil.rmtree(spill, ignore_errors=True)


@dataclass(frozen=True, eq=False, repr=False)
class SqlRows(Rows):
    """The rows of a statement, which runs again for each read; its own ORDER BY decides the order."""

    text: str
    params: Params
    lake: LakeLocation
    files: tuple[Files, ...]
    versions: Versions
    limits: Limits
    timeout_s: float | None
    rows_max: int | None = None
    past: Past | None = None

    @property
    def schema(self) -> pa.Schema:
        """The columns and their Arrow types. Raises ConfigurationError for SQL that doesn't run."""
        return self._schema

    def limit(self, rows_max: int) -> Self:
        """The first `rows_max` of these rows."""
        check_positive("rows_max", rows_max)
        return replace(self, rows_max=rows_max if self.rows_max is None else min(self.rows_max, rows_max))

    def within(self, timeout_s: float | None) -> Self:
        """See `Rows`."""
        return replace(self, timeout_s=timeout_s)

    def count(self) -> int:
        """How many rows there are."""
        found = self._whole(lambda rows: rows.aggregate("count(*) AS rows"))
        return int(found["rows"][0].as_py())

    def batches(self, rows_max: int = BATCH_ROWS) -> pa.RecordBatchReader:
        """A stream of batches of at most `rows_max` rows. Never holds all rows in memory, unless the statement itself
        needs them at once.
        """
        check_positive("rows_max", rows_max)
        found = self._found(rows_max)
        return pa.RecordBatchReader.from_batches(next(found), found)  # one run for both: planning takes time

    def stream(self, columns: Sequence[str] | None, rows_max: int) -> Iterator[pa.RecordBatch]:
        """See `Rows`."""
        found = self._found(rows_max)
        names = next(found).names
        # By index: a statement's column names may repeat.
        wanted = [place for place, name in enumerate(names) if not columns or name in columns]
        yield from (batch if columns is None else batch.select(wanted) for batch in found)

    def __repr__(self) -> str:
        """The statement, without running it."""
        text = " ".join(self.text.split())
        return f"<Rows of SQL {text[:80] + '…' if len(text) > 80 else text!r}, not read yet>"

    @cached_property
    def _schema(self) -> pa.Schema:
        return self._whole(lambda rows: rows.limit(0)).schema

    def _found(self, rows_max: int) -> Iterator[Any]:
        """The schema, and then the batches."""
        limit = TimeLimit(self.timeout_s)
        with self._translated_errors(limit), sandbox(self.lake, self.files, self.limits, self.past) as connection:
            with limit.watching(connection):
                reader = self._relation(connection).to_arrow_reader(rows_max)
            yield reader.schema
            yield from streamed(connection, reader, limit)

    def _whole(self, of: Callable[[duckdb.DuckDBPyRelation], Any]) -> pa.Table:
        limit = TimeLimit(self.timeout_s)
        with (
            self._translated_errors(limit),
            sandbox(self.lake, self.files, self.limits, self.past) as connection,
            limit.watching(connection),
        ):
            return of(self._relation(connection)).to_arrow_table()

    def _relation(self, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        found = connection.sql(self.text, params=self.params)
        return found if self.rows_max is None else found.limit(self.rows_max)

    @contextmanager
    def _translated_errors(self, limit: TimeLimit) -> Iterator[None]:
        try:
            with translated_errors(self.lake, None, limit, self.limits.memory_max_mb):
                yield
        except RowsGone:
            for one in self.files:
                self.versions.forget(one.table)
            raise
