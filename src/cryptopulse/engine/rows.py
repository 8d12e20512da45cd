"""Rows on their way into a table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from cryptopulse.lake.tables import Table


def shaped(rows: pa.Table, table: Table) -> pa.Table:
    """`rows` with exactly the table's columns, in its order and types."""
    return rows.select(table.arrow_schema.names).cast(table.arrow_schema)


def stamped(rows: pa.Table, load_us: int) -> pa.Table:
    """`rows` with their load_timestamp (µs UTC)."""
    return rows.append_column("load_timestamp", constant_time(load_us, rows.num_rows))


def constant_time(us: int, rows: int) -> pa.Array:
    """A column of one time, µs UTC."""
    return pa.array(np.full(rows, us, dtype="datetime64[us]"), pa.timestamp("us", tz="UTC"))
