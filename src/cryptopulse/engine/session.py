"""A DuckDB session: runs a canonical statement over bound Arrow inputs and returns Arrow."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import duckdb
import pyarrow as pa

from cryptopulse.lake.dialect import DUCKDB_MACROS, bound_name, duckdb_sql

_MANY_ROWS = 50_000
warnings.filterwarnings("ignore", message="Arrow output on a DB-API result", category=UserWarning)


class Session:
    """One connection to an in-memory DuckDB. Use each from one thread; `sibling` gives another thread its own."""

    def __init__(self, memory_max_mb: int = 1024, threads: int = 2) -> None:
        """Opens an in-memory database that spills to disk beyond `memory_max_mb`."""
        self._db = duckdb.connect(":memory:")
        self._db.execute(f"SET memory_limit = '{memory_max_mb}MB'")
        self._db.execute(f"SET threads = {threads}")
        self._db.execute("SET preserve_insertion_order = false")
        for macro in DUCKDB_MACROS:
            self._db.execute(macro)
        self._prepare()

    def sibling(self) -> Session:
        """A session on the same database (memory and threads are shared) for another thread."""
        other = object.__new__(Session)
        other._db = self._db.cursor()
        other._prepare()
        return other

    def _prepare(self) -> None:
        self._db.execute("SET TimeZone = 'UTC'")

    def derive(self, name: str, inputs: Mapping[str, pa.Table]) -> pa.Table:
        """The rows of the canonical statement `lake/sql/<name>.sql` over `inputs` (qualified name → rows)."""
        sql = duckdb_sql(name, is_bulk=_are_many(inputs))
        return self.query(sql, {bound_name(table): rows for table, rows in inputs.items()})

    def query(self, sql: str, inputs: Mapping[str, pa.Table]) -> pa.Table:
        """The rows of `sql` (DuckDB's dialect) over `inputs` (name → rows)."""
        for name, rows in inputs.items():
            self._db.register(name, rows)
        try:
            # `sql` plans a statement twice (5 ms more on the parsing of 100 messages), `execute` copies the rows.
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
