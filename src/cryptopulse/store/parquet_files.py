"""Writes and reads the Parquet files of a table.

At ten commits a second most files hold a handful of rows, and are read once, when they are merged. So they are written
small and fast, without dictionaries and statistics, which only help in large files. Merged files have both.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.store import ObjectStore

from cryptopulse.lake.tables import Table

if TYPE_CHECKING:  # names for types only
    from obstore import ReadableFile, WritableFile

_SMALL_BYTES = 2_000  # these fit a disk block uncompressed: compressing them would cost 0.1 ms for nothing
_LARGE_ROWS = 10_000  # below, dictionaries and statistics make a file slower, and larger or hardly smaller
_ROW_GROUP_ROWS = 256 * 1024
_ROW_GROUP_BYTES = 32 << 20  # in memory; a merge holds this much at once
_READ_ROWS = 16 * 1024
_WHOLE_BYTES = 4 << 20  # larger files are read piece by piece
_HARDLY_REPEAT = {"BINARY", "BIGINT", "TIMESTAMP"}


class ParquetFiles:
    """The files of one table in its folder `store`. Safe from several threads."""

    def __init__(self, store: ObjectStore, table: Table) -> None:
        """Reads and writes nothing yet."""
        self._store = store
        self._schema = table.arrow_schema
        self._names = [name for name in self._schema.names if name not in table.partition_by]
        types = {column.name: column.type for column in table.columns}
        self._dictionaries = [name for name in self._names if types[name] not in _HARDLY_REPEAT]
        self._with_statistics = [name for name in self._names if types[name] != "BINARY"]

    def write(self, path: str, rows: pa.Table) -> int:
        """Writes `rows` (the contract's columns and types) to one file; returns its size in bytes."""
        sink = pa.BufferOutputStream()
        pq.write_table(rows.select(self._names), sink, **self._options(rows.num_rows, rows.nbytes))
        body = memoryview(sink.getvalue()).cast("B")
        self._store.put(path, body)
        return len(body)

    def merge(self, path: str, parts: Iterable[pa.Table]) -> int:
        """Writes `parts` to one file, with one row group in memory at a time; returns its size in bytes."""
        schema = pa.schema([self._schema.field(name) for name in self._names])
        options = self._options(_LARGE_ROWS, _ROW_GROUP_BYTES)
        with _Sink(obstore.open_writer(self._store, path)) as sink:
            with pq.ParquetWriter(sink, schema, **options) as writer:
                for group in _grouped(parts):
                    writer.write_table(group.select(self._names), row_group_size=_ROW_GROUP_ROWS)
            return sink.size

    def read(
        self, path: str, size: int, partition: Mapping[str, str], columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """The rows of a file of `size` bytes, in parts with all of the contract's columns. `partition`: the file's.
        `columns`: only these, in their order, none of them a partition's.
        """
        names = None if columns is None else list(columns)
        if size <= _WHOLE_BYTES:
            with pq.ParquetFile(pa.BufferReader(self._store.get(path).bytes().to_bytes())) as file:
                rows = file.read(names, use_threads=False)
                yield self._whole(rows, partition) if names is None else rows.select(names)
            return
        with pq.ParquetFile(_Source(obstore.open_reader(self._store, path))) as file:
            for batch in file.iter_batches(_READ_ROWS, columns=names, use_threads=False):
                rows = pa.Table.from_batches([batch])
                yield self._whole(rows, partition) if names is None else rows.select(names)

    def _whole(self, rows: pa.Table, partition: Mapping[str, str]) -> pa.Table:
        for name, value in partition.items():
            kind = self._schema.field(name).type
            rows = rows.append_column(name, pa.repeat(pa.scalar(value).cast(kind), rows.num_rows))
        return rows.select(self._schema.names).cast(self._schema)

    def _options(self, rows: int, size: int) -> dict[str, Any]:
        is_small, is_large = size <= _SMALL_BYTES, rows >= _LARGE_ROWS
        return {
            "compression": "none" if is_small else "zstd",
            "compression_level": None if is_small else 1,
            "use_dictionary": self._dictionaries if is_large else False,
            "write_statistics": self._with_statistics if is_large else False,
            "store_schema": False,  # Parquet's types suffice; saves 1 kB
        }


def _grouped(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """`parts` concatenated to row groups."""
    held: list[pa.Table] = []
    rows = size = 0
    for part in parts:
        held.append(part)
        rows += part.num_rows
        size += part.nbytes
        if rows >= _ROW_GROUP_ROWS or size >= _ROW_GROUP_BYTES:
            yield pa.concat_tables(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.concat_tables(held)


class _Sink(io.RawIOBase):
    """Lets pyarrow write to a file of the object store."""

    def __init__(self, put: WritableFile) -> None:
        self._put = put
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._put.write(bytes(data))
        self.size += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._put.close()
        super().close()


class _Source(io.RawIOBase):
    """Lets pyarrow read a file of the object store."""

    def __init__(self, there: ReadableFile) -> None:
        self._there = there

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._there.seek(offset, whence)

    def tell(self) -> int:
        return self._there.tell()

    def read(self, size: int = -1) -> bytes:
        return self._there.read(None if size < 0 else size).to_bytes()
