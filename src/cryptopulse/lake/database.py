"""DuckDB for readers: streams of Arrow batches, a limit of time, and errors in one line. Safe from several threads."""

from __future__ import annotations

import itertools
import re
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread

import duckdb
import pyarrow as pa

from cryptopulse.errors import ConfigurationError, CryptoPulseError, QueryStopped, RowsGone
from cryptopulse.lake.access import damaged, storage
from cryptopulse.lake.dialect import DUCKDB_MACROS
from cryptopulse.lake.files import Files
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import Table

Params = Mapping[str, object] | Sequence[object] | None
"""Values for the `$name` or the `?` of a statement."""

_TYPES = {"BINARY": "BLOB", "STRING": "VARCHAR", "TIMESTAMP": "TIMESTAMPTZ"}
_numbers = itertools.count()
_SPILL_MAX = "16GB"  # on disk, when a query needs more than its memory
_INTERRUPT_S = 0.005
_URL_QUERY = re.compile(r"(?<=://)([^\s?'\"]+)\?[^\s'\"]*")  # of a request to the storage: may be a token
_NO_FILE = re.compile(r"No such file|No files found|does not exist|HTTP status 404|NotFound|not found", re.IGNORECASE)
_INTERRUPTED = re.compile(r"INTERRUPT Error|Interrupted!")
_TOO_LARGE = re.compile(r"Out of Memory Error|failed to (allocate|pin|offload)", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What all queries of a database together may use."""

    memory_max_mb: int = 1024
    """Beyond it they spill to the disk."""
    threads: int | None = None
    """None: one a core."""


def tune(connection: duckdb.DuckDBPyConnection, limits: Limits) -> None:
    """Gives a new database its limits, and what our SQL takes for granted: UTC, and the macros of the dialect."""
    # DuckDB makes the folder when it is needed, and removes it.
    spill = Path(tempfile.gettempdir()) / f"cryptopulse-{uuid.uuid4().hex}"
    for setting in (
        "GLOBAL TimeZone = 'UTC'",
        f"memory_limit = '{limits.memory_max_mb}MB'",
        f"temp_directory = {quoted(str(spill))}",
        f"max_temp_directory_size = '{_SPILL_MAX}'",
        "autoinstall_known_extensions = false",
        "parquet_metadata_cache = true",  # a file of a Delta table never changes
        *([] if limits.threads is None else [f"threads = {limits.threads}"]),
    ):
        connection.execute(f"SET {setting}")
    for macro in DUCKDB_MACROS:
        connection.execute(macro)


class Database:
    """A DuckDB in memory. A cursor works in one thread, several work side by side and share memory and threads."""

    def __init__(self, limits: Limits) -> None:
        """Empty: it reads files."""
        self.memory_max_mb = limits.memory_max_mb
        self._lock = Lock()
        self._connection = duckdb.connect(":memory:")
        tune(self._connection, limits)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to this database."""
        with self._lock:
            return self._connection.cursor()

    def close(self) -> None:
        """Releases its memory when the last cursor is closed."""
        self._connection.close()


class TimeLimit:
    """How long the queries of one request may work. What their reader does between two batches does not count."""

    def __init__(self, seconds: float | None) -> None:
        """None: for ever."""
        self.seconds = seconds
        self._used_s = 0.0
        self.is_over = False

    @contextmanager
    def watching(self, cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Interrupts what `cursor` does in here when the time is over."""
        if self.seconds is None:
            yield
            return
        started, is_done = time.monotonic(), Event()
        left_s = max(self.seconds - self._used_s, 0.001)
        watch = Thread(target=self._watch, args=(cursor, left_s, is_done), name="time limit", daemon=True)
        watch.start()
        try:
            yield
        finally:
            is_done.set()
            watch.join()  # else it might interrupt what comes next
            self._used_s += time.monotonic() - started

    def _watch(self, cursor: duckdb.DuckDBPyConnection, left_s: float, is_done: Event) -> None:
        if is_done.wait(left_s):
            return
        self.is_over = True
        cursor.interrupt()
        while not is_done.wait(_INTERRUPT_S):  # DuckDB forgets an interrupt that comes before the query runs
            cursor.interrupt()


def relation(connection: duckdb.DuckDBPyConnection, files: Files) -> str:
    """SQL that gives all rows of `files` with the columns of the table's contract, on this `connection` alone."""
    columns = ", ".join(f'"{column.name}"' for column in files.table.columns)
    names = files.names
    if not names:
        nothing = (f'CAST(NULL AS {_TYPES.get(c.type, c.type)}) AS "{c.name}"' for c in files.table.columns)
        return f"SELECT {columns} FROM (SELECT {', '.join(nothing)} WHERE false)"  # noqa: S608 - names of our own tables
    if not files.lake.folder:
        # DuckDB would need an extension there that can't be downloaded everywhere, so it asks Arrow.
        source = f"{files.table.schema}__{files.table.name}_{next(_numbers)}"
        connection.register(source, files.dataset())
        return f"SELECT {columns} FROM {source}"  # noqa: S608 - names of our own tables
    hive = ", ".join(f"'{name}': DATE" for name in files.table.partition_by)
    options = f"hive_partitioning = true, hive_types = {{{hive}}}" if hive else "hive_partitioning = false"
    return f"SELECT {columns} FROM read_parquet({listed(names)}, {options})"  # noqa: S608 - names of our own tables


def streamed(
    cursor: duckdb.DuckDBPyConnection, reader: pa.RecordBatchReader, limit: TimeLimit
) -> Iterator[pa.RecordBatch]:
    """The batches of a query's `reader` as they are found. DuckDB works on `cursor` as they are asked for."""
    while True:
        with limit.watching(cursor):
            batch = next(reader, None)
        if batch is None:
            return
        if batch.num_rows:
            yield batch


@contextmanager
def telling(lake: LakeLocation, table: Table | None, limit: TimeLimit, memory_max_mb: int) -> Iterator[None]:
    """Raises what DuckDB says in here as an error of ours, in one line; `table`: the one that is read, None for SQL.

    QueryStopped: `limit` was reached. RowsGone: a file was cleaned up. LakeDamaged: a file is not what was written.
    ConfigurationError: SQL that doesn't run, more memory than allowed. And what `storage` raises.
    """
    try:
        with storage(lake):
            yield
    except CryptoPulseError:
        raise
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _in_words(lake, table, limit, memory_max_mb, str(error)) from (error if lake.folder else None)


def _in_words(
    lake: LakeLocation, table: Table | None, limit: TimeLimit, memory_max_mb: int, text: str
) -> CryptoPulseError:
    told = _URL_QUERY.sub(r"\1", text.strip().splitlines()[0] if text.strip() else "no more is known")
    if limit.is_over or _INTERRUPTED.search(text):
        return QueryStopped(f"The query was stopped after {limit.seconds:g} s: ask for less, or allow more time.")
    if _TOO_LARGE.search(text):
        return ConfigurationError(
            f"The query needs more than {memory_max_mb} MB of memory: ask for less, or allow more with memory_max_mb."
        )
    if _NO_FILE.search(text) and ("IO Error" in text or table is not None):
        return RowsGone(
            f"A file of {table.qualified if table else 'a table'} is no longer there: these rows are of an older "
            "version, whose files are deleted after maintenance.vacuum_retention_hours. Ask again."
        )
    if table is None:
        return ConfigurationError(f"SQL: {told}")
    return damaged(lake, table, f"has a file that can't be read ({told}).")


def listed(texts: Iterable[str]) -> str:
    """Texts as a list in SQL."""
    return "[" + ", ".join(map(quoted, texts)) + "]"


def quoted(text: str) -> str:
    """A text as SQL."""
    return "'" + text.replace("'", "''") + "'"
