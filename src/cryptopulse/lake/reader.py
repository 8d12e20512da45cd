"""Reading the lake with SQL: DuckDB views over the tables, for people and for scripts. Never writes."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.tables import TABLES, Table

_READING = {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}
_DUCKDB_TYPES = {"BINARY": "BLOB", "STRING": "VARCHAR", "TIMESTAMP": "TIMESTAMPTZ"}


def connect(lake: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with the views `bronze.…`, `silver.…`, `gold.…` over the newest version of each table.

    Times are UTC. The views are of the moment of the call: connect again to see newer rows. Nothing else can be read
    through it, and nothing written: file access is shut once the views stand. Raises ConfigurationError when `lake`
    holds no table.
    """
    present = [(table, lake / table.schema / table.name) for table in TABLES]
    present = [(table, path) for table, path in present if DeltaTable.is_deltatable(str(path))]
    if not present:
        raise ConfigurationError(
            f"There is no lake at {lake}: name it with --lake, or fill one with `cryptopulse demo`."
        )
    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    files: list[str] = []
    for table, path in present:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {table.schema}")
        uris = [unquote(uri) for uri in DeltaTable(str(path)).file_uris()]  # `my lake` comes as `my%20lake`
        files += uris
        connection.execute(f"CREATE VIEW {table.qualified} AS {_select(table, uris)}")
    connection.execute(f"SET allowed_paths = {_listed(files)}")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def _select(table: Table, uris: list[str]) -> str:
    """The statement of a table's view: its columns in the contract's order and types, over its live files."""
    if not uris:
        columns = ", ".join(f'CAST(NULL AS {_duckdb_type(c.type)}) AS "{c.name}"' for c in table.columns)
        return f"SELECT {columns} WHERE false"
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    hive = ", ".join(f"'{name}': DATE" for name in table.partition_by)
    options = f"hive_partitioning = true, hive_types = {{{hive}}}" if hive else "hive_partitioning = false"
    return f"SELECT {columns} FROM read_parquet({_listed(uris)}, {options})"  # noqa: S608 - names of our own tables


def _listed(names: list[str]) -> str:
    return "[" + ", ".join("'" + name.replace("'", "''") + "'" for name in names) + "]"


def _duckdb_type(sql_type: str) -> str:
    return _DUCKDB_TYPES.get(sql_type, sql_type)


def read(lake: Path, sql: str, rows_max: int | None = None) -> pa.Table:
    """The rows of one SQL statement over `lake`, at most `rows_max`.

    Raises ConfigurationError, in one line, for SQL that doesn't run or doesn't only read.
    """
    with connect(lake) as connection:
        try:
            statements = connection.extract_statements(sql)
            if any(statement.type not in _READING for statement in statements):
                # DuckDB would let COPY write to the very files that the views may read.
                raise ConfigurationError("SQL: only statements that read are allowed (SELECT, DESCRIBE, EXPLAIN, …).")
            if not statements:
                raise ConfigurationError("SQL: the statement is empty.")
            found = connection.sql(sql)
            return (found if rows_max is None else found.limit(rows_max)).to_arrow_table()
        except duckdb.Error as error:
            raise ConfigurationError(f"SQL: {str(error).splitlines()[0]}") from error
