"""Reads rows of a table by SQL over its newest version, for the processes that write the lake."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from cryptopulse.lake.dialect import delta_time
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.storage import open_table, reading
from cryptopulse.lake.tables import Table

_PLAIN = {"string_view": pa.string(), "binary_view": pa.binary()}  # by name: pyarrow 15 has no such functions


def read_table(
    lake: LakeLocation, table: Table, columns: str, where: str = "true", delta: DeltaTable | None = None
) -> pa.Table:
    """`SELECT columns WHERE where` over the open table `delta` (None: the newest version); file statistics prune.

    Raises what `cryptopulse.lake.storage.open_table` and `reading` raise.
    """
    with reading(lake, table):
        query = QueryBuilder().register("t", delta or open_table(lake, table))
        return plain(pa.table(query.execute(statement(columns, where)).read_all()))


def statement(columns: str, where: str) -> str:
    """The query of `read_table`, over a table named t."""
    return f"SELECT {columns} FROM t WHERE {where}"  # noqa: S608 - ours


def plain(found: pa.Table) -> pa.Table:
    """`found` with the types of our contracts instead of DataFusion's view types."""
    return found.cast(pa.schema([field.with_type(_PLAIN.get(str(field.type), field.type)) for field in found.schema]))


def quoted(names: Iterable[str]) -> str:
    """Column names as a list in the SQL that `read_table` takes."""
    return ", ".join(f'"{name}"' for name in names)


def between_us(time: str, day: str, first_us: int, last_us: int) -> str:
    """SQL condition: `time` in [first_us, last_us], µs UTC, and its `day`, which prunes partitions."""
    first, last = f"to_timestamp_micros({first_us})", f"to_timestamp_micros({last_us})"
    return (
        f"{day} >= CAST({first} AS DATE) AND {day} <= CAST({last} AS DATE) "
        f"AND {time} >= {delta_time(first_us)} AND {time} <= {delta_time(last_us)}"
    )


def row_count(delta: DeltaTable) -> int | None:
    """How many rows a table has, by the Delta log's counts: reads no file. None if another writer left some out."""
    counts = delta.get_add_actions(flatten=True)["num_records"].to_pylist()
    return None if None in counts else sum(counts)
