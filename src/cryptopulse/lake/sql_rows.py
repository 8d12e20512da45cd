"""Rows of a SQL statement over the tables, asked where nothing else can be read and nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any, Self

import duckdb
import pyarrow as pa

from cryptopulse.errors import ConfigurationError, RowsGone
from cryptopulse.lake.database import Limits, Params, TimeLimit, listed, relation, streamed, telling, tune
from cryptopulse.lake.files import Files
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.newest import Versions
from cryptopulse.lake.rows import BATCH_ROWS, Rows, check_positive
from cryptopulse.lake.tables import TABLES, Table

_READING = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
_MADE_UP_NAMES = ("query(", "query_table(")  # functions by which a statement can name a table in pieces


def check_reads(parser: duckdb.DuckDBPyConnection, text: str) -> None:
    """Raises ConfigurationError, in one line, unless `text` is one statement that only reads. Runs nothing."""
    try:
        statements = parser.extract_statements(text)
    except duckdb.Error as error:
        raise ConfigurationError(f"SQL: {str(error).splitlines()[0]}") from error
    if not statements:
        raise ConfigurationError("SQL: the statement is empty.")
    if any(statement.type not in _READING for statement in statements):
        # DuckDB would let COPY write to the very files that the views may read.
        raise ConfigurationError("SQL: only statements that read are allowed (SELECT, DESCRIBE, EXPLAIN, …).")
    if len(statements) > 1:
        raise ConfigurationError("SQL: write one statement at a time.")


def tables_named(text: str) -> list[Table]:
    """The tables that the statement `text` may read: those that it names, or all."""
    low = text.lower()
    named = [table for table in TABLES if table.name in low]
    return list(TABLES) if not named or any(made in low for made in _MADE_UP_NAMES) else named


def sealed(files: Sequence[Files], limits: Limits) -> duckdb.DuckDBPyConnection:
    """A connection with the views `bronze.…`, `silver.…`, `gold.…` over `files`, through which nothing else can be
    read, and nothing written: file access is shut once the views stand. Times are UTC.
    """
    connection = duckdb.connect(":memory:")
    tune(connection, limits)
    for one in files:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {one.table.schema}")
        connection.execute(f"CREATE VIEW {one.table.qualified} AS {relation(connection, one)}")
    local = [name for one in files if one.lake.folder for name in one.names]
    connection.execute(f"SET allowed_paths = {listed(local)}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


class SealedViews:
    """Gives connections to `sealed` views; the same one again as long as no table has changed. For several threads."""

    def __init__(self, limits: Limits) -> None:
        """`limits`: of all statements together that read the same versions."""
        self.limits = limits
        self._lock = Lock()
        self._held: tuple[list[tuple[str, int]], duckdb.DuckDBPyConnection] | None = None

    def connect(self, files: Sequence[Files]) -> duckdb.DuckDBPyConnection:
        """A connection for the thread that calls."""
        if any(not one.lake.folder for one in files):
            return sealed(files, self.limits)  # a cursor would not see what Arrow reads
        wanted = [(one.table.qualified, one.version) for one in files]
        with self._lock:
            if self._held is None or self._held[0] != wanted:
                self._held = wanted, sealed(files, self.limits)
            return self._held[1].cursor()

    def close(self) -> None:
        """Lets go of the views."""
        with self._lock:
            self._held = None


@dataclass(frozen=True, eq=False, repr=False)
class SqlRows(Rows):
    """What a statement gives. It is asked anew at each reading; its own ORDER BY decides the order."""

    text: str
    params: Params
    lake: LakeLocation
    files: tuple[Files, ...]
    versions: Versions
    views: SealedViews
    timeout_s: float | None
    rows_max: int | None = None

    @property
    def schema(self) -> pa.Schema:
        """The columns and their Arrow types. Raises ConfigurationError for SQL that doesn't run."""
        return self._schema

    def limit(self, rows_max: int) -> Self:
        """The first `rows_max` of these rows."""
        check_positive("rows_max", rows_max)
        return replace(self, rows_max=rows_max if self.rows_max is None else min(self.rows_max, rows_max))

    def within(self, timeout_s: float | None) -> Self:
        """These rows, but each reading of them is stopped after `timeout_s` seconds of work; None: never."""
        return replace(self, timeout_s=timeout_s)

    def count(self) -> int:
        """How many rows there are."""
        found = self._whole(lambda rows: rows.aggregate("count(*) AS rows"))
        return int(found["rows"][0].as_py())

    def batches(self, rows_max: int = BATCH_ROWS) -> pa.RecordBatchReader:
        """A stream of batches of at most `rows_max` rows. Never holds all rows in memory, but for what the statement
        itself needs at once.
        """
        check_positive("rows_max", rows_max)
        found = self._found(rows_max)
        return pa.RecordBatchReader.from_batches(next(found), found)  # asks once: planning takes time

    def stream(self, columns: Sequence[str] | None, rows_max: int) -> Iterator[pa.RecordBatch]:
        """See `Rows`."""
        found = self._found(rows_max)
        names = next(found).names
        # By place: names of a statement's columns may be alike.
        wanted = [place for place, name in enumerate(names) if not columns or name in columns]
        yield from (batch if columns is None else batch.select(wanted) for batch in found)

    def __repr__(self) -> str:
        """What is asked, without asking it."""
        text = " ".join(self.text.split())
        return f"<Rows of SQL {text[:80] + '…' if len(text) > 80 else text!r}, not read yet>"

    @cached_property
    def _schema(self) -> pa.Schema:
        return self._whole(lambda rows: rows.limit(0)).schema

    def _found(self, rows_max: int) -> Iterator[Any]:
        """The schema, and then the batches."""
        limit = TimeLimit(self.timeout_s)
        with self._telling(limit), self.views.connect(self.files) as connection:
            with limit.watching(connection):
                reader = self._asked(connection).to_arrow_reader(rows_max)
            yield reader.schema
            yield from streamed(connection, reader, limit)

    def _whole(self, of: Callable[[duckdb.DuckDBPyRelation], Any]) -> pa.Table:
        limit = TimeLimit(self.timeout_s)
        with self._telling(limit), self.views.connect(self.files) as connection, limit.watching(connection):
            return of(self._asked(connection)).to_arrow_table()

    def _asked(self, connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyRelation:
        found = connection.sql(self.text, params=self.params)
        return found if self.rows_max is None else found.limit(self.rows_max)

    @contextmanager
    def _telling(self, limit: TimeLimit) -> Iterator[None]:
        try:
            with telling(self.lake, None, limit, self.views.limits.memory_max_mb):
                yield
        except RowsGone:
            for one in self.files:
                self.versions.forget(one.table)
            raise
