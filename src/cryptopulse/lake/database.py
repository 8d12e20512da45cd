"""DuckDB for readers: streams of Arrow batches, time limits, and one-line errors. Safe from several threads."""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread

import duckdb
import pyarrow as pa

from cryptopulse.errors import ConfigurationError, CryptoPulseError, QueryStopped, RowsGone
from cryptopulse.lake.dialect import DUCKDB_MACROS
from cryptopulse.lake.files import Files
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.products import SYMBOL_MACROS
from cryptopulse.lake.storage import damaged, storage
from cryptopulse.lake.tables import Table

Params = Mapping[str, object] | Sequence[object] | None
"""Values for the `$name` or the `?` of a statement."""

_TYPES = {"BINARY": "BLOB", "STRING": "VARCHAR", "TIMESTAMP": "TIMESTAMPTZ"}
_numbers = itertools.count()
_SPILL_MAX = "16GB"  # on disk, when a query needs more than its memory
_INTERRUPT_S = 0.005
_URL_QUERY = re.compile(r"(?<=://)([^\s?'\"]+)\?[^\s'\"]*")  # of a request to the storage: may hold a token
_NO_FILE = re.compile(r"No such file|No files found|does not exist|HTTP status 404|NotFound|not found", re.IGNORECASE)
_INTERRUPTED = re.compile(r"INTERRUPT Error|Interrupted!")
_TOO_LARGE = re.compile(r"Out of Memory Error|failed to (allocate|pin|offload)", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What all queries of a database together may use."""

    memory_max_mb: int = 1024
    """Beyond it they spill to the disk."""
    threads: int | None = None
    """None: one per core."""


def spill_folder(lake: LakeLocation) -> str:
    """A new folder, private to this user, to which a database over `lake` spills; the caller removes it. "" where none
    can be made, as on a full disk: then the database spills nothing.

    Raises ConfigurationError when it would be in the lake, because a database can write to it.
    """
    try:
        place = Path(tempfile.gettempdir()).resolve()
        if lake.folder and place.is_relative_to(lake.folder.resolve()):
            raise ConfigurationError(f"The folder for temporary files, {place}, is in the lake {lake}: set TMPDIR.")
        return tempfile.mkdtemp(prefix="cryptopulse-spill-", dir=place)
    except OSError:
        return ""


def tune(connection: duckdb.DuckDBPyConnection, limits: Limits, spill: str) -> None:
    """Sets a new database's limits, and what our SQL requires: UTC, and the macros of the dialect.

    `spill`: see `spill_folder`.
    """
    for setting in (
        "GLOBAL TimeZone = 'UTC'",
        f"memory_limit = '{limits.memory_max_mb}MB'",
        f"temp_directory = {text_literal(spill)}",
        f"max_temp_directory_size = '{_SPILL_MAX}'",
        "autoinstall_known_extensions = false",
        "parquet_metadata_cache = true",  # a file of a Delta table never changes
        *([] if limits.threads is None else [f"threads = {limits.threads}"]),
    ):
        connection.execute(f"SET {setting}")
    for macro in DUCKDB_MACROS:
        connection.execute(macro)
    for macro in SYMBOL_MACROS:
        connection.execute(f"CREATE OR REPLACE MACRO {macro}")


class Database:
    """A DuckDB in memory. Use each cursor in one thread; all cursors share its memory and threads."""

    def __init__(self, lake: LakeLocation, limits: Limits) -> None:
        """Starts empty; queries read files of `lake`. Raises what `spill_folder` raises."""
        self.memory_max_mb = limits.memory_max_mb
        self._lock = Lock()
        self._connection = duckdb.connect(":memory:")
        self._used = 0
        self._is_closed = False
        spill = spill_folder(lake)
        self._remove_spill = weakref.finalize(
            self, shutil.rmtree, spill, ignore_errors=True
        )  # also if `close` is not called
        tune(self._connection, limits, spill)

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection of its own to this database."""
        with self._lock:
            cursor = self._connection.cursor()
            self._used += 1
        try:
            with cursor:
                yield cursor
        finally:
            with self._lock:
                self._used -= 1
                self._end()

    def close(self) -> None:
        """Releases its memory and its spill folder once the last cursor is closed."""
        with self._lock:
            self._is_closed = True
            self._end()

    def _end(self) -> None:
        if self._is_closed and not self._used:
            self._connection.close()  # would close the cursors as well
            self._remove_spill()


class TimeLimit:
    """Time limit for the queries of one request. The reader's time between two batches does not count."""

    def __init__(self, seconds: float | None) -> None:
        """None: no limit."""
        self.seconds = seconds
        self._used_s = 0.0
        self.is_over = False

    @contextmanager
    def watching(self, *cursors: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """Interrupts `cursors` if the time runs out inside the `with` block."""
        if self.seconds is None:
            yield
            return
        started, is_done = time.monotonic(), Event()
        left_s = max(self.seconds - self._used_s, 0.001)
        watch = Thread(target=self._watch, args=(cursors, left_s, is_done), name="time limit", daemon=True)
        watch.start()
        try:
            yield
        finally:
            is_done.set()
            watch.join()  # else it might interrupt what comes next
            self._used_s += time.monotonic() - started

    def check(self) -> None:
        """Raises QueryStopped if the time ran out; for work that `watching` can't interrupt."""
        if self.is_over:
            raise self.stopped()

    def stopped(self) -> QueryStopped:
        """The error that says so."""
        return QueryStopped(f"The query was stopped after {self.seconds:g} s: ask for less, or allow more time.")

    def _watch(self, cursors: Sequence[duckdb.DuckDBPyConnection], left_s: float, is_done: Event) -> None:
        if is_done.wait(left_s):
            return
        self.is_over = True
        while True:  # DuckDB forgets an interrupt that comes before the query runs
            for cursor in cursors:
                cursor.interrupt()
            if is_done.wait(_INTERRUPT_S):
                return


def relation(connection: duckdb.DuckDBPyConnection, files: Files, names: Sequence[str] | None = None) -> str:
    """SQL that gives all rows of `files` with the columns of the table's contract; only for this `connection`.

    `names`: the files' names in the connection's file system, None for their paths.
    """
    columns = ", ".join(f'"{column.name}"' for column in files.table.columns)
    if not files.paths:
        nothing = (f'CAST(NULL AS {_TYPES.get(c.type, c.type)}) AS "{c.name}"' for c in files.table.columns)
        return f"SELECT {columns} FROM (SELECT {', '.join(nothing)} WHERE false)"  # noqa: S608 - names of our own tables
    if not files.lake.folder or (names is None and not files.lake.is_plain):
        # On S3 and Azure DuckDB needs an extension that can't be downloaded everywhere, so Arrow reads the files.
        source = f"{files.table.schema}__{files.table.name}_{next(_numbers)}"
        connection.register(source, files.dataset())
        return f"SELECT {columns} FROM {source}"  # noqa: S608 - names of our own tables
    hive = ", ".join(f"'{name}': DATE" for name in files.table.partition_by)
    options = f"hive_partitioning = true, hive_types = {{{hive}}}" if hive else "hive_partitioning = false"
    return f"SELECT {columns} FROM read_parquet({listed(files.names if names is None else names)}, {options})"  # noqa: S608 - names of our own tables


def streamed(
    cursor: duckdb.DuckDBPyConnection, reader: pa.RecordBatchReader, limit: TimeLimit
) -> Iterator[pa.RecordBatch]:
    """The non-empty batches of a query's `reader`. DuckDB computes each on `cursor` when it is requested."""
    while True:
        with limit.watching(cursor):
            batch = next(reader, None)
        if batch is None:
            return
        if batch.num_rows:
            yield batch


@contextmanager
def translated_errors(lake: LakeLocation, table: Table | None, limit: TimeLimit, memory_max_mb: int) -> Iterator[None]:
    """Translates DuckDB's errors to one-line errors of `cryptopulse.errors`. `table`: the one read, None for SQL.

    QueryStopped: `limit` was reached. RowsGone: a file was deleted. LakeDamaged: a file is not as it was written.
    ConfigurationError: SQL that doesn't run, more memory than allowed. Also raises what `storage` raises.
    """
    try:
        with storage(lake):
            yield
    except CryptoPulseError:
        raise
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        text = str(error)
        lines = text.strip().splitlines() or ["no more is known"]
        # For a Python error below DuckDB the traceback's last line names it.
        line = _URL_QUERY.sub(r"\1", lines[-1 if "Traceback" in lines[0] else 0])
        translated: CryptoPulseError
        if limit.is_over or _INTERRUPTED.search(text):
            translated = limit.stopped()
        elif _TOO_LARGE.search(text):
            translated = ConfigurationError(
                f"The query needs more than {memory_max_mb} MB of memory: ask for less, or allow more with "
                "memory_max_mb."
            )
        elif _NO_FILE.search(text) and ("IO Error" in text or "FileNotFoundError" in text or table is not None):
            translated = RowsGone(
                f"A file of {table.qualified if table else 'a table'} is no longer there: these rows are of an older "
                "version, whose files are deleted after maintenance.vacuum_retention_hours. Ask again."
            )
        elif table is None:
            translated = ConfigurationError(f"SQL: {line}")
        else:
            translated = damaged(lake, table, f"has a file that can't be read ({line}).")
        raise translated from (error if lake.folder else None)


def listed(texts: Iterable[str]) -> str:
    """A SQL list of text literals."""
    return "[" + ", ".join(map(text_literal, texts)) + "]"


def text_literal(text: str) -> str:
    """A SQL text literal."""
    return "'" + text.replace("'", "''") + "'"
