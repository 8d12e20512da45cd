"""The embedded log: one SQLite file, one partition.

A row is a batch: the messages of one append as a compressed Arrow record batch, with a checksum. Batches
keep SQLite's cost per message far under a microsecond. WAL with `synchronous=FULL`
syncs every commit before it returns.

The first offset of a new log is the time of its creation (microseconds since 1970). So a recreated log has greater
offsets than the deleted one, and none of its messages is mistaken for one already stored.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from cryptopulse.errors import ConfigurationError, CryptoPulseError, LogBusy, LogDamaged, LogFull, LogUnavailable
from cryptopulse.folders import is_full, make_folder
from cryptopulse.log import MESSAGE_SCHEMA, RECORD_SCHEMA

PARTITION = 0
_BATCH_MESSAGES_MAX = 20_000  # some 7 MB of raw messages: bounds what one read must hold
_READ_BYTES_MAX = 64 << 20  # pages of the REST interface are some 500 times as large as messages of the feed
_COMPRESS_BYTES_MIN = 1_024  # a single message is smaller; four shrink to a third in 15 µs
# A commit writes whole pages, and most commits hold few messages: 11 kB each with their share of checkpoints and trims,
# against 26 kB with pages of 16,384. Large batches take 0.05 µs more per message.
_PAGE_BYTES = 4_096
_CHECKPOINT_PAGES = 512  # 2 MB: largest size of the WAL file, which a start has to read
_FREE_PAGES = 1_024  # kept in the file for the next messages; a trim frees more ...
_VACUUM_PAGES = 256  # ... but at most this many, as an append waits for it some milliseconds
_INCREMENTAL = 2  # what SQLite calls it
_TRIM_BYTES_MIN = 256 << 10  # less is not trimmed yet: each trim is a synced write
_TRIM_SHARE = 64  # but at most 1/64 of the size bound is left untrimmed
_BUSY_TIMEOUT_S = 10.0  # writes take milliseconds; a process that holds it longer hangs
_TAIL_US = 10_000_000  # kept for a new producer: several heartbeats of each product
_TAIL_SHARE = 8  # but at most 1/8 of the size bound, so that a small log does not fill up with its tail
_ANY_CAUSE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)  # SQLite hides the system's error
_PROBE_BYTES = 1 << 16
_CODEC = pa.Codec("zstd", compression_level=1)
_Row = tuple[int, int, int, int, int, bytes]
_SCHEMA_SQL = """
CREATE TABLE IF NOT EXISTS batches (
    first_offset INTEGER PRIMARY KEY,
    messages     INTEGER NOT NULL,
    enqueued_us  INTEGER NOT NULL,
    checksum     INTEGER NOT NULL,
    raw_bytes    INTEGER NOT NULL,  -- size before compression, 0 when not compressed
    body         BLOB    NOT NULL
)
"""


class SqliteLog:
    """Implements `cryptopulse.log.Log` on one file. Threads may share an object; each gets a connection of its own."""

    expires = False  # `trim` deletes only what bronze holds

    def __init__(self, path: Path, size_max_bytes: int) -> None:
        """Opens or creates the log at `path`, which may grow to `size_max_bytes`.

        Raises ConfigurationError when the file can't be made or opened, LogDamaged when it is no log.
        """
        self._path = path
        self._size_max_bytes = size_max_bytes
        self._connections = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._tail_bytes_max = size_max_bytes // _TAIL_SHARE
        self._trim_bytes_min = min(_TRIM_BYTES_MIN, size_max_bytes // _TRIM_SHARE)
        with self._errors("open"):
            if not path.exists():
                make_folder(path.parent)
            with self._transaction():
                self._db.execute(_SCHEMA_SQL)
                self._db.execute("CREATE TABLE IF NOT EXISTS origin (first_offset INTEGER NOT NULL)")
                if self._db.execute("SELECT 1 FROM origin").fetchone() is None:
                    self._db.execute("INSERT INTO origin VALUES (?)", (time.time_ns() // 1000,))

    def append(self, messages: pa.Table) -> None:
        """Stores `messages` (MESSAGE_SCHEMA) in one synced transaction. See `cryptopulse.log.Log.append`."""
        if messages.num_rows == 0:
            return
        bodies = [
            _encode(messages.slice(start, _BATCH_MESSAGES_MAX))
            for start in range(0, messages.num_rows, _BATCH_MESSAGES_MAX)
        ]
        with self._errors("append to"), self._transaction():
            offset = self._end()
            enqueued_us = time.time_ns() // 1000
            for body, raw_bytes, count in bodies:
                checksum = _checksum(offset, count, enqueued_us, raw_bytes, body)
                row = (offset, count, enqueued_us, checksum, raw_bytes, body)
                self._db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", row)
                offset += count

    def partitions(self) -> list[int]:
        """The one partition."""
        return [PARTITION]

    def origin(self, partition: int) -> int:
        """First offset of this file. See `cryptopulse.log.Log.origin`."""
        _check_partition(partition)
        with self._errors("read"):
            return int(self._db.execute("SELECT first_offset FROM origin").fetchone()[0])

    def bounds(self, partition: int) -> tuple[int, int]:
        """First offset held and the next offset to be given. See `cryptopulse.log.Log.bounds`."""
        _check_partition(partition)
        with self._errors("read"):
            end = self._end()
            first = self._db.execute("SELECT MIN(first_offset) FROM batches").fetchone()[0]
        return (end if first is None else first), end

    def read(self, partition: int, offset: int, messages_max: int) -> pa.Table:
        """Messages from `offset` on, in whole batches until `messages_max` or 64 MB. See `cryptopulse.log.Log.read`."""
        _check_partition(partition)
        rows: list[_Row] = []
        messages = size = 0
        with self._errors("read"):
            cursor = self._db.execute(
                "SELECT first_offset, messages, enqueued_us, checksum, raw_bytes, body FROM batches "
                "WHERE first_offset >= coalesce((SELECT max(first_offset) FROM batches WHERE first_offset <= ?1), ?1) "
                "ORDER BY first_offset",
                (offset,),
            )
            for row in cursor:
                if row[0] + row[1] > offset:
                    rows.append(row)
                    messages += row[1]
                    size += row[4] or len(row[5])
                if messages >= messages_max or size >= _READ_BYTES_MAX:
                    break
            cursor.close()
        if not rows:
            return RECORD_SCHEMA.empty_table()
        table = self._decode(rows)
        return table.slice(max(offset - rows[0][0], 0), messages_max)

    def trim(self, partition: int, below: int) -> None:
        """Deletes whole batches under `below`, but not the last seconds. See `cryptopulse.log.Log.trim`."""
        _check_partition(partition)
        with self._errors("trim"):
            # The last seconds stay, and at least the newest batch: it determines the next offset.
            newest_us = tail_start = size = 0
            cursor = self._db.execute(
                "SELECT first_offset, enqueued_us, length(body) FROM batches ORDER BY first_offset DESC"
            )
            for first_offset, enqueued_us, batch_bytes in cursor:
                newest_us = newest_us or enqueued_us
                size += batch_bytes
                if tail_start and (enqueued_us < newest_us - _TAIL_US or size > self._tail_bytes_max):
                    break
                tail_start = first_offset
            cursor.close()
            below = min(below, tail_start)
            # Checks that enough bytes lie below it; reads no more rows than needed.
            size = 0
            cursor = self._db.execute(
                "SELECT length(body) FROM batches WHERE first_offset < ?1 AND first_offset + messages <= ?1 "
                "ORDER BY first_offset",
                (below,),
            )
            for (batch_bytes,) in cursor:
                size += batch_bytes
                if size > self._trim_bytes_min:
                    break
            cursor.close()
            if size <= self._trim_bytes_min:
                return
            while True:  # small transactions: the appending process waits for each
                deleted = self._db.execute(
                    "DELETE FROM batches WHERE first_offset IN (SELECT first_offset FROM batches WHERE "
                    # Without the first condition SQLite would scan the whole rest of the log.
                    "first_offset < ?1 AND first_offset + messages <= ?1 ORDER BY first_offset LIMIT 500)",
                    (below,),
                ).rowcount
                if deleted < 500:
                    break
            if self._db.execute("PRAGMA freelist_count").fetchone()[0] > _FREE_PAGES:
                # The pragma gives an empty row per page; `execute` would stop at the first.
                self._db.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")

    def close(self) -> None:
        """Closes the file."""
        for connection in self._opened:
            connection.close()

    @property
    def _db(self) -> sqlite3.Connection:
        """This thread's connection: one thread's deletes must not delay another's reads."""
        found: sqlite3.Connection | None = getattr(self._connections, "db", None)
        if found is None:
            found = self._connections.db = self._connected()
            self._opened.append(found)
        return found

    def _connected(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        if db.execute("PRAGMA auto_vacuum").fetchone()[0] != _INCREMENTAL:  # setting it again would write
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        # Some systems' SQLite overwrites deleted data: twice the writes, and the data is public.
        db.execute("PRAGMA secure_delete = OFF")
        db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        db.execute("PRAGMA journal_size_limit = 67108864")  # a grown WAL file is cut back to 64 MB
        db.execute(f"PRAGMA max_page_count = {max(self._size_max_bytes // _PAGE_BYTES, 16)}")
        return db

    def _end(self) -> int:
        row = self._db.execute(
            "SELECT first_offset + messages FROM batches ORDER BY first_offset DESC LIMIT 1"
        ).fetchone()
        return int((row or self._db.execute("SELECT first_offset FROM origin").fetchone())[0])

    def _decode(self, rows: list[_Row]) -> pa.Table:
        batches = []
        expected = rows[0][0]
        for first_offset, count, enqueued_us, checksum, raw_bytes, body in rows:
            if first_offset != expected:
                raise LogDamaged(
                    f"The log {self._path} is damaged: messages {expected} to {first_offset - 1} are gone. "
                    "Nothing after them was read. Restore the file from a copy, or move it away to start a new log: "
                    "trades that only it held are then missing."
                )
            expected += count
            if _checksum(first_offset, count, enqueued_us, raw_bytes, body) != checksum:
                raise LogDamaged(
                    f"The log {self._path} is damaged: messages {first_offset} to {first_offset + count - 1} fail "
                    "their checksum. Nothing after them was read. Restore the file from a copy, or move it away to "
                    "start a new log: trades that only it held are then missing."
                )
            raw = _CODEC.decompress(body, raw_bytes) if raw_bytes else pa.py_buffer(body)
            batches.append(pa.ipc.read_record_batch(raw, MESSAGE_SCHEMA))
        messages = pa.Table.from_batches(batches, MESSAGE_SCHEMA)
        counts = np.array([row[1] for row in rows])
        starts = np.array([row[0] for row in rows])
        within = np.arange(messages.num_rows) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = (
            np.full(messages.num_rows, PARTITION, dtype=np.int32),
            np.repeat(starts, counts) + within,
            np.repeat(np.array([row[2] for row in rows], dtype=np.int64), counts),
        )
        placed = [
            pa.Array.from_buffers(field.type, messages.num_rows, [None, pa.py_buffer(column)])
            for field, column in zip(RECORD_SCHEMA, columns, strict=False)
        ]
        return pa.Table.from_arrays([*placed, *messages.columns], schema=RECORD_SCHEMA)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._as_error(doing, error) from error

    def _as_error(self, doing: str, error: sqlite3.Error | OSError) -> CryptoPulseError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        cause: BaseException = error
        if code in _ANY_CAUSE:
            try:  # a test file beside it gives the system's error: full disk, or a quota, which disk figures don't show
                with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix="probe-", buffering=0) as probe:
                    probe.write(bytes(_PROBE_BYTES))
                    os.fsync(probe.fileno())
            except OSError as found:
                cause = found
        if code == sqlite3.SQLITE_FULL or is_full(cause):
            return LogFull(
                f"The log {self._path} is full (its bound log.size_max_mb, or the disk). Start the processing, "
                "which empties it, free some disk, or raise the bound."
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return LogDamaged(
                f"The log {self._path} is damaged ({error}). Restore it from a copy, or move it away to start a "
                "new one: trades that only it held are then missing."
            )
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return LogBusy(
                f"Can't {doing} the log {self._path}: another process has held it for {_BUSY_TIMEOUT_S:g} s. "
                "See `cryptopulse status`: it may stand still."
            )
        if code == sqlite3.SQLITE_IOERR or getattr(cause, "errno", None) == errno.EIO:
            return LogUnavailable(
                f"Can't {doing} the log {self._path}: {error}. It is tried again; if it stays, look at the disk."
            )
        return ConfigurationError(f"Can't {doing} the log {self._path}: {error}.")


def _encode(part: pa.Table) -> tuple[bytes, int, int]:
    """One batch as bytes, their size before compression (0: not compressed), and the number of messages."""
    if part.schema != MESSAGE_SCHEMA:
        part = part.select(MESSAGE_SCHEMA.names).cast(MESSAGE_SCHEMA)
    batches = part.to_batches()
    batch = batches[0] if len(batches) == 1 else part.combine_chunks().to_batches()[0]
    raw = batch.serialize()
    if raw.size < _COMPRESS_BYTES_MIN:
        return raw.to_pybytes(), 0, batch.num_rows
    return _CODEC.compress(raw, asbytes=True), raw.size, batch.num_rows


def _checksum(first_offset: int, count: int, enqueued_us: int, raw_bytes: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(f"{first_offset}/{count}/{enqueued_us}/{raw_bytes}".encode()))


def _check_partition(partition: int) -> None:
    if partition != PARTITION:
        raise ConfigurationError(f"The embedded log has only partition {PARTITION}, not {partition}.")
