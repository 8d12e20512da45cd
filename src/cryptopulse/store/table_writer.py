"""The writer of one Delta table: commits rows with positions, and is fenced when another pipeline takes over.

Exactly-once is decided here. Every commit carries Delta `txn` actions: for each source of the table (a partition of
the log or of bronze, or the upstream table) the position that the commit consumed. A commit is one small file, put
under the next version's name if that is free. If it is taken, the writer reads the commit found there. After one that
changes no rows (a compaction) it tries the next version. Any other is from a pipeline that has taken over: the writer
raises `Fenced`.

A starting pipeline takes over every table with a commit without rows. This commit and all later ones carry the number
of the take-over, like a position. So the previous pipeline is fenced from all tables at once, also from those to which
the new one has nothing to write yet.

After the first commit no handle of delta-rs is kept: a commit needs the next version, a replacement the live files.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import CommitFailedError

from cryptopulse.errors import Fenced, LakeFull
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.reading import plain, read_table, row_count, statement
from cryptopulse.lake.retention import KEPT_FROM
from cryptopulse.lake.storage import is_there, open_table, reading, storage
from cryptopulse.lake.tables import Table, app_id
from cryptopulse.store.commit_log import CommitLog, fenced
from cryptopulse.store.compaction import Partition, partition_of
from cryptopulse.store.delta_log import (
    Bounds,
    Commit,
    DataFile,
    bounds_of,
    commit_body,
    comparable,
    known_files,
    merged_bounds,
)
from cryptopulse.store.object_store import table_store
from cryptopulse.store.parquet_files import ParquetFiles

NOTHING_YET = -1
"""Position of a source before anything was consumed."""

LOAD = "load"
"""The source name under which a table's commits carry their own load_timestamp."""

OWNER = "owner"
"""The source name under which a table's commits carry the number of the take-over that they belong to."""

TOMBSTONES = "delta.deletedFileRetentionDuration"
"""Table property: checkpoints leave out older tombstones (entries of removed files)."""

_EARLIER_TOMBSTONES_S = 4_500  # per hour of the retention, as version 0.1 set it
_INTERVAL_S = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 7 * 86_400}
# The newest small files stay in memory, 2 MB at most: they are merged or replaced soon.
_CACHED_FILES = 128
_CACHED_BYTES = 16 << 10
_DELETED_AT_ONCE = 1_000  # S3's limit


def owner_id(table: Table) -> str:
    """The application id under which a table's commits carry the number of the take-over, with either engine."""
    return app_id(table, OWNER)


class TableWriter:
    """One Delta table, for the one process that writes it. One thread appends and replaces; another may `merge`."""

    def __init__(self, lake: LakeLocation, table: Table, properties: Mapping[str, str]) -> None:
        """Opens the table under `lake`, or creates it with `properties`.

        An existing table keeps its properties, except that TOMBSTONES is set from `properties` unless a user has set a
        longer time. Raises LakeDamaged when it can't be opened. For a lake on S3 or Azure every method that reads or
        writes can raise ConfigurationError and LakeUnreachable (`cryptopulse.lake.storage.storage`).
        """
        self.table = table
        self.lake = lake
        self.commits = 0
        self.rows_written = 0
        self._schema = table.arrow_schema
        self._lock = threading.Lock()
        """Guards the log and the files; held during a commit."""
        self._seen: dict[str, int] = {}
        self._positions: dict[str, int] = {}
        self._owner: dict[str, int] = {}
        self._grown: set[Partition] = set()
        self._replaced: list[str] = []
        self._kept_from = NOTHING_YET
        made = None
        if not is_there(lake, table):
            with storage(lake):
                made = DeltaTable.create(
                    lake.table_url(table),
                    self._schema,
                    name=table.name,
                    description=table.comment,
                    partition_by=list(table.partition_by),
                    configuration={**table.properties, **properties},
                    storage_options=lake.storage_options,
                )
        with storage(lake):
            self._store = table_store(lake, table)
        self._parquet = ParquetFiles(self._store, table)
        self._open(made)
        self._keep_tombstones(properties.get(TOMBSTONES))

    def _open(self, made: DeltaTable | None = None) -> None:
        """Opens the table again; `made`: its handle, if it was just created."""
        delta = made or open_table(self.lake, self.table)
        self._opened: DeltaTable | None = delta
        """Handle until the first commit: it knows the positions, and serves the reads of a start."""
        self._log = CommitLog(self.lake, self.table, self._store, delta.version())
        self._files: dict[str, DataFile] | None = None
        """Live files by path; None: not loaded yet."""
        self._rows: OrderedDict[str, pa.Table] = OrderedDict()
        """Rows of the newest small files, by path."""

    def _keep_tombstones(self, wanted: str | None) -> None:
        """Sets how long checkpoints keep tombstones; a longer time set by a user stays."""
        delta = self._opened
        assert delta is not None
        held = delta.metadata().configuration.get(TOMBSTONES)
        if held is None or wanted is None or held == wanted:  # unset: Delta's default, a week
            return
        is_earlier = held.endswith("seconds") and _seconds(held) % _EARLIER_TOMBSTONES_S == 0
        if _seconds(held) > _seconds(wanted) and not is_earlier:
            return
        with storage(self.lake), suppress(CommitFailedError):  # another commit came between: next start
            delta.alter.set_table_properties({TOMBSTONES: wanted})
        self._open()

    @property
    def version(self) -> int:
        """The Delta version last known."""
        return self._log.version

    @property
    def owner(self) -> int:
        """Number of the last take-over of the table that this writer knows of; NOTHING_YET before the first."""
        return self._owner.get(OWNER, self._recorded(OWNER))

    def take_over(self, owner: int) -> None:
        """Fences all other writers of this table: commits the take-over number `owner`, which each later commit carries
        as well. Call it before `position`. Raises Fenced when another pipeline was quicker.
        """
        while self._recorded(OWNER) < owner:
            name = _new_name()
            if self._log.put(commit_body(self.table, name, ([], []), {owner_id(self.table): owner}), name) is None:
                self._owner[OWNER] = self._seen[OWNER] = owner
                return
            self._open()  # another start, or the last commit of the previous pipeline
        raise Fenced(f"Another pipeline has just started on {self.lake}. This one ends, and has written nothing.")

    def check_owner(self, newest: DeltaTable) -> None:
        """Raises Fenced unless the table as `newest` shows it is still this writer's."""
        if newest.transaction_version(owner_id(self.table)) != self._owner.get(OWNER):
            raise fenced(self.table)

    def position(self, source: str) -> int:
        """The last position consumed of `source`; NOTHING_YET before the first."""
        if source not in self._positions:
            self._positions[source] = self._seen[source] = self._recorded(source)
        return self._positions[source]

    def recorded(self, source: str) -> int:
        """The position of `source` in the table's commits; at most `position`."""
        self.position(source)
        return self._seen[source]

    def next_load(self) -> int:
        """The load time of the next commit, µs UTC: now, but later than the last one's, whatever the clock does."""
        return max(time.time_ns() // 1000, self.position(LOAD) + 1)

    def skip_to(self, source: str, position: int) -> None:
        """Moves on without a commit: the skipped part gave no rows, or its rows are stored without their `txn`."""
        self._positions[source] = position

    def append(self, rows: pa.Table, positions: Mapping[str, int]) -> None:
        """Adds `rows` (the contract's columns and types) and moves to `positions` in one commit.

        Raises Fenced when another pipeline took over; nothing was written then.
        """
        written = self._write([rows])
        with self._lock:
            self._commit(written, [], positions)
        self._count(rows)

    def replace(
        self,
        rows: pa.Table,
        positions: Mapping[str, int],
        *,
        is_replaced: Callable[[pa.Table], pa.Array] | None = None,
        within: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> None:
        """Replaces the rows for which `is_replaced` is true (None: all) with `rows`, in one commit.

        `is_replaced` gets some of the rows, with all columns, and returns a boolean for each. `within` bounds the
        replaced rows: column → (lowest, highest value), both included, times as µs UTC or datetime. Files outside by
        their statistics are not opened. Raises as `append`.
        """
        bounds = comparable(self.table, within or {})
        with self._lock:
            is_done = False
            while not is_done:
                removed, unreplaced = self._split(is_replaced, bounds)
                is_done = self._commit(self._write([unreplaced, rows]), removed, positions)
        self._count(rows)

    @property
    def kept_from(self) -> int:
        """The first day that retention keeps, in days since 1970-01-01; NOTHING_YET before it has let any day go."""
        return max(self._kept_from, self.position(KEPT_FROM))

    def let_go(self, files: Sequence[DataFile], positions: Mapping[str, int]) -> bool:
        """Removes whole `files` in one commit, which moves to `positions`; one of them is KEPT_FROM.

        `kept_from` grows before the commit: who reads rows and then finds it unchanged has read all of them. Returns
        False, and removes nothing, when one of the files was replaced meanwhile. Raises Fenced as `append`.
        """
        self._kept_from = positions[KEPT_FROM]
        try:
            with self._lock:
                return self._commit({}, files, positions)
        finally:
            self._kept_from = NOTHING_YET  # from here on it is a position, if the commit was made

    def parts_of(self, file: DataFile, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of `file` with `columns`, in parts."""
        with reading(self.lake, self.table):
            yield from self._parquet.read(file.path, file.size, file.partition, columns)

    def merge(self, files: Sequence[DataFile]) -> bool:
        """Merges several files of one partition into one, in a commit that changes no row.

        Returns False, and changes nothing, when one of them was replaced meanwhile. Raises Fenced as `append`.
        """
        partition = files[0].partition
        path = _new_path(partition)
        try:
            with reading(self.lake, self.table):
                size = self._parquet.merge(path, (part for file in files for part in self._parts_of(file)))
        except Exception:
            self._discard([path])
            raise
        merged = DataFile(path, size, sum(file.rows for file in files), partition, merged_bounds(files))
        with self._lock:
            return self._commit({merged: None}, files, {}, changes_rows=False)

    def files(self) -> list[DataFile]:
        """The live files, oldest first as far as this process knows."""
        with self._lock:
            return list(self._live_files().values())

    def checkpoint_size(self) -> int:
        """How many actions the newest checkpoint has, tombstones included."""
        with storage(self.lake):
            return int(msgspec.json.decode(self._store.get("_delta_log/_last_checkpoint").bytes().to_bytes())["size"])

    def grown(self) -> set[Partition]:
        """The partitions that got files since the last call."""
        with self._lock:
            found, self._grown = self._grown, set()
        return found

    def replaced(self) -> list[str]:
        """Paths of the files that commits removed since the last call."""
        with self._lock:
            found, self._replaced = self._replaced, []
        return found

    def delete(self, paths: Sequence[str]) -> None:
        """Deletes files that no version needs; some may be gone already. Raises what `storage` raises."""
        with storage(self.lake):
            for start in range(0, len(paths), _DELETED_AT_ONCE):
                some = paths[start : start + _DELETED_AT_ONCE]
                try:
                    self._store.delete(some)
                except FileNotFoundError:  # those after it were left out
                    for path in some:
                        with suppress(FileNotFoundError):
                            self._store.delete(path)

    def read(self, columns: str, where: str = "true") -> pa.Table:
        """`SELECT columns WHERE where` over the table's newest version, see `cryptopulse.lake.reading.read_table`."""
        return read_table(self.lake, self.table, columns, where, self._opened)

    def read_parts(self, columns: str, where: str, rows_max: int) -> Iterator[pa.Table]:
        """The same in parts of about `rows_max` rows, for results that may not fit into memory."""
        with reading(self.lake, self.table):
            query = QueryBuilder().register("t", self._newest())
            held: list[pa.RecordBatch] = []
            rows = 0
            for batch in query.execute(statement(columns, where)):
                held.append(pa.record_batch(batch))
                rows += batch.num_rows
                if rows >= rows_max:
                    yield plain(pa.Table.from_batches(held))
                    held, rows = [], 0
            if held:
                yield plain(pa.Table.from_batches(held))

    def rows(self) -> int:
        """How many rows the table has, by the Delta log's counts; by a query if another writer left some out."""
        count = row_count(self._newest())
        return int(self.read("count(*) AS n")["n"][0].as_py()) if count is None else count

    def _count(self, rows: pa.Table) -> None:
        self.commits += 1
        self.rows_written += rows.num_rows

    def _commit(
        self,
        written: Mapping[DataFile, pa.Table | None],
        removed: Sequence[DataFile],
        positions: Mapping[str, int],
        *,
        changes_rows: bool = True,
    ) -> bool:
        """Commits. Returns False when one of `removed` is no longer live; the new files are deleted then.

        `written`: new file → its rows, None for a merged one.
        """
        transactions = {app_id(self.table, source): at for source, at in {**positions, **self._owner}.items()}
        name = _new_name()
        body = commit_body(self.table, name, (removed, list(written)), transactions, changes_rows=changes_rows)
        paths = [file.path for file in written]
        try:
            while True:
                if removed and not all(file.path in self._live_files() for file in removed):
                    self._discard(paths)
                    return False
                found = self._log.put(body, name)
                if found is None:
                    break
                self._follow(found)
        except (Fenced, LakeFull):  # after others it is unknown whether the commit was made
            self._discard(paths)
            raise
        self._opened = None
        self._note(written, removed)
        self._seen |= positions
        self._positions |= positions
        return True

    def _follow(self, commit: Commit) -> None:
        """Accepts the commit of the next version, which another writer made.

        Raises Fenced unless it leaves all rows and positions as they were: a compaction, a vacuum, a property.
        """
        if commit.changes_rows or commit.transactions.items() - {(owner_id(self.table), self._owner.get(OWNER))}:
            raise fenced(self.table)
        self._log.version += 1
        self._replaced += map(unquote, commit.removed)
        if self._files is not None:
            for path in commit.removed:
                self._files.pop(path, None)
            self._files |= {file.path: file for file in commit.added(self.table)}

    def _note(self, written: Mapping[DataFile, pa.Table | None], removed: Sequence[DataFile]) -> None:
        """Updates the live files after a commit, and caches the rows of small ones."""
        self._grown |= {partition_of(file) for file in written}
        self._replaced += (file.path for file in removed)
        if self._files is None:
            return
        for file in removed:
            del self._files[file.path]
            self._rows.pop(file.path, None)
        for file, rows in written.items():
            self._files[file.path] = file
            if rows is not None and rows.get_total_buffer_size() <= _CACHED_BYTES:
                self._rows[file.path] = rows
                if len(self._rows) > _CACHED_FILES:
                    self._rows.popitem(last=False)

    def _live_files(self) -> dict[str, DataFile]:
        if self._files is None:
            delta = self._newest()
            try:
                while self._log.version < delta.version():
                    self._follow(self._log.next())
            except FileNotFoundError as error:  # others made so many commits that it was deleted
                raise fenced(self.table) from error
            actions = pa.table(delta.get_add_actions(flatten=True))
            self._files = {file.path: file for file in known_files(self.table, actions)}
        return self._files

    def _split(
        self, is_replaced: Callable[[pa.Table], pa.Array] | None, within: Bounds
    ) -> tuple[list[DataFile], pa.Table]:
        """The files that hold replaced rows, and the other rows in them."""
        files = list(self._live_files().values())
        if is_replaced is None:
            return files, self._schema.empty_table()
        removed, unreplaced = [], [self._schema.empty_table()]
        for file in files:
            if not file.may_hold(within):
                continue
            with reading(self.lake, self.table):
                rows = pa.concat_tables(self._parts_of(file))
            mask = pc.fill_null(is_replaced(rows), False)
            if pc.any(mask, min_count=0).as_py():
                removed.append(file)
                unreplaced.append(rows.filter(pc.invert(mask)))
        return removed, pa.concat_tables(unreplaced)

    def _parts_of(self, file: DataFile) -> Iterator[pa.Table]:
        """The rows of `file` with all columns, in parts."""
        rows = self._rows.get(file.path)
        return self._parquet.read(file.path, file.size, file.partition) if rows is None else iter([rows])

    def _write(self, tables: Sequence[pa.Table]) -> dict[DataFile, pa.Table | None]:
        """Writes each of `tables` as one file per partition; no file for no rows."""
        written: dict[DataFile, pa.Table | None] = {}
        try:
            with storage(self.lake):
                for partition, rows in (part for table in tables for part in self._partitions(table)):
                    path = _new_path(partition)
                    size = self._parquet.write(path, rows)
                    file = DataFile(path, size, rows.num_rows, partition, bounds_of(self.table, rows))
                    written[file] = rows
        except Exception:
            self._discard([file.path for file in written])
            raise
        return written

    def _partitions(self, rows: pa.Table) -> Iterator[tuple[dict[str, str], pa.Table]]:
        if rows.schema != self._schema:
            rows = rows.select(self._schema.names).cast(self._schema)
        if rows.num_rows == 0 or not self.table.partition_by:
            if rows.num_rows:
                yield {}, rows
            return
        (name,) = self.table.partition_by
        days = pc.unique(rows[name])
        for day in days:
            yield {name: str(day)}, rows if len(days) == 1 else rows.filter(pc.equal(rows[name], day))

    def _discard(self, paths: Sequence[str]) -> None:
        """Deletes files that no commit names; a leftover costs only space."""
        with suppress(Exception):
            self.delete(paths)

    def _recorded(self, source: str) -> int:
        position = self._newest().transaction_version(app_id(self.table, source))
        return NOTHING_YET if position is None else position

    def _newest(self) -> DeltaTable:
        return self._opened or open_table(self.lake, self.table)


def _new_name() -> str:
    return uuid.uuid4().hex


def _new_path(partition: Mapping[str, str]) -> str:
    folder = "".join(f"{name}={value}/" for name, value in partition.items())
    return f"{folder}part-{uuid.uuid4().hex}.parquet"


def _seconds(interval: str) -> float:
    """Length of an interval as Delta's properties write it ("interval 7 days"); infinity for anything else."""
    match interval.split():
        case ["interval", number, unit] if number.isdigit() and (length := _INTERVAL_S.get(unit.removesuffix("s"))):
            return int(number) * length
    return math.inf
