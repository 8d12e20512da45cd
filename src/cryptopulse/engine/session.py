"""A DuckDB session: runs a canonical statement over bound Arrow inputs and returns Arrow."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType

import duckdb
import pyarrow as pa

from cryptopulse.lake.dialect import DUCKDB_MACROS, bound_name, duckdb_sql

_MANY_ROWS = 50_000
warnings.filterwarnings("ignore", message="Arrow output on a DB-API result", category=UserWarning)


class SqlSession:
    """One connection to an in-memory DuckDB. Use it from one thread."""

    def __init__(self, memory_max_mb: int = 1024, threads: int = 2) -> None:
        """Opens an in-memory database that spills to disk beyond `memory_max_mb`."""
        self._db = duckdb.connect(":memory:")
        self._db.execute(f"SET memory_limit = '{memory_max_mb}MB'")
        self._db.execute(f"SET threads = {threads}")
        self._db.execute("SET preserve_insertion_order = false")
        for macro in DUCKDB_MACROS:
            self._db.execute(macro)
        self._db.execute("SET TimeZone = 'UTC'")

    def derive(
        self, name: str, inputs: Mapping[str, pa.Table], given: Mapping[str, str] = MappingProxyType({})
    ) -> pa.Table:
        """The rows of the canonical statement `lake/sql/<name>.sql` over `inputs` (qualified name → rows).

        `given`: expression of the statement (in DuckDB's dialect) → the input column that has its value already and
        replaces it.
        """
        sql = duckdb_sql(name, is_bulk=_are_many(inputs))
        for expression, column in given.items():
            assert expression in sql, f"{name} has no {expression}"
            sql = sql.replace(expression, column)
        return self.query(sql, {bound_name(table): rows for table, rows in inputs.items()})

    def query(self, sql: str, inputs: Mapping[str, pa.Table]) -> pa.Table:
        """The rows of `sql` (DuckDB's dialect) over `inputs` (name → rows)."""
        for name, rows in inputs.items():
            self._db.register(name, rows)
        try:
            # `sql` plans a statement twice (5 ms more for parsing 100 messages), `execute` copies the rows.
            if _are_many(inputs):
                return self._db.sql(sql).to_arrow_table()
            return self._db.execute(sql).to_arrow_table()
        finally:
            for name in inputs:
                self._db.unregister(name)

    def close(self) -> None:
        """Closes the connection."""
        self._db.close()


def _are_many(inputs: Mapping[str, pa.Table]) -> bool:
    return sum(int(rows.num_rows) for rows in inputs.values()) >= _MANY_ROWS
