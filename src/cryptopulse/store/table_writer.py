"""One Delta table as the process that writes it knows it: committed to with its positions, fenced.

Exactly once is decided here. Every commit carries Delta `txn` actions: for each source of the table (a partition of
the log or of bronze, or the upstream table) the position that the commit consumed. A commit is one small file that is
put under the next version's name if nothing is there. Whoever finds the name taken reads what is there: a compaction
goes first, and the next number is tried; anything else is another pipeline's, which has taken over, and this one
refuses to go on (`Fenced`).

A pipeline that starts takes over every table by a commit without rows, which carries the number of the take-over like
a position, as each commit after it does. So whoever worked on the lake before is fenced from all tables at once, also
from those to which the new one has nothing to write yet.

No handle of delta-rs is kept: what a commit needs is the next version, and for a replacement the table's live files.
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
from cryptopulse.lake.storage import is_there, opened, reading, storage
from cryptopulse.lake.tables import Table
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
"""Position of a source of which nothing was consumed."""

LOAD = "load"
"""The source name under which a table's commits carry their own load_timestamp."""

OWNER = "owner"
"""The source name under which a table's commits carry the number of the take-over that they belong to."""

TOMBSTONES = "delta.deletedFileRetentionDuration"
"""Property of a table: checkpoints leave out notes on removed files (tombstones) that are older."""

_EARLIER_TOMBSTONES_S = 4_500  # for each hour of the retention: what tables have from version 0.1
_INTERVAL_S = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 7 * 86_400}
# Small files that came last stay in memory, 2 MB at most: they are the ones that are merged or replaced soon.
_CACHED_FILES = 128
_CACHED_BYTES = 16 << 10
_DELETED_AT_ONCE = 1_000  # as S3 takes them


def owner_id(table: Table) -> str:
    """The application id under which a table's commits carry the number of the take-over, whichever engine made it."""
    return _app_id(table, OWNER)


def _app_id(table: Table, source: str) -> str:
    return f"cryptopulse:{table.qualified}:{source}"


class TableWriter:
    """One Delta table, for the one process that writes it. One thread appends and replaces; another may `merge`."""

    def __init__(self, lake: LakeLocation, table: Table, properties: Mapping[str, str]) -> None:
        """Opens the table under `lake`, creating it with `properties` when it isn't there.

        One that is there keeps its properties, but tombstones for as long as `properties` say, if it was not a person
        who wanted them for longer. Raises
        LakeDamaged when it can't be opened; ConfigurationError and LakeUnreachable of a lake elsewhere, as every method
        that reads or writes (`cryptopulse.lake.storage.storage`).
        """
        self.table = table
        self.lake = lake
        self.commits = 0
        self.rows_written = 0
        self._schema = table.arrow_schema
        self._lock = threading.Lock()
        """Of the log and the files: held while a commit is made."""
        self._seen: dict[str, int] = {}
        self._positions: dict[str, int] = {}
        self._owner: dict[str, int] = {}
        self._grown: set[Partition] = set()
        self._replaced: list[str] = []
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
        """Looks at the table anew; `made`: it was just made."""
        delta = made or opened(self.lake, self.table)
        self._opened: DeltaTable | None = delta
        """Until the first commit: it knows the positions, and serves the reads of a start."""
        self._log = CommitLog(self.lake, self.table, self._store, delta.version())
        self._files: dict[str, DataFile] | None = None
        """The live ones by their path; None: not asked for yet."""
        self._rows: OrderedDict[str, pa.Table] = OrderedDict()
        """Of small files that came last, by their path."""

    def _keep_tombstones(self, wanted: str | None) -> None:
        """Lets checkpoints keep notes on removed files for so long; a longer time that somebody set stays."""
        delta = self._opened
        assert delta is not None
        held = delta.metadata().configuration.get(TOMBSTONES)
        if held is None or wanted is None or held == wanted:  # unset: a week
            return
        is_earlier = held.endswith("seconds") and _seconds(held) % _EARLIER_TOMBSTONES_S == 0
        if _seconds(held) > _seconds(wanted) and not is_earlier:
            return
        with storage(self.lake), suppress(CommitFailedError):  # whoever came between: the next start does it
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
        """Fences everybody else from this table: the take-over number `owner` is committed, and goes with each commit
        from now on. To be called before any position is asked for. Raises Fenced when another pipeline was quicker.
        """
        while self._recorded(OWNER) < owner:
            name = _new_name()
            if self._log.put(commit_body(self.table, name, ([], []), {owner_id(self.table): owner}), name) is None:
                self._owner[OWNER] = self._seen[OWNER] = owner
                return
            self._open()  # another start, or a last commit of the pipeline before
        raise Fenced(f"Another pipeline has just started on {self.lake}. This one ends, and has written nothing.")

    def check_owner(self, newest: DeltaTable) -> None:
        """Raises Fenced unless the table as `newest` shows it is still this writer's."""
        if newest.transaction_version(owner_id(self.table)) != self._owner.get(OWNER):
            raise fenced(self.table)

    def position(self, source: str) -> int:
        """What was consumed of `source`, included; NOTHING_YET at first."""
        if source not in self._positions:
            self._positions[source] = self._seen[source] = self._recorded(source)
        return self._positions[source]

    def recorded(self, source: str) -> int:
        """The position of `source` that the table itself carries; at most `position`."""
        self.position(source)
        return self._seen[source]

    def next_load(self) -> int:
        """The load time of the next commit, µs UTC: now, but later than the last one's, whatever the clock does."""
        return max(time.time_ns() // 1000, self.position(LOAD) + 1)

    def skip_to(self, source: str, position: int) -> None:
        """Moves on without a commit: what lies between gave no rows, or its rows are there without their `txn`."""
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
        """Puts `rows` in the place of those for which `is_replaced` is true (None: of all), in one commit.

        `is_replaced` is called with all columns of some of the rows and gives a boolean for each. `within` says where
        rows that are replaced can be, by column the lowest and the highest value (included; times as µs UTC or
        datetime): files that lie outside by their statistics are not opened. Raises as `append`.
        """
        bounds = comparable(self.table, within or {})
        with self._lock:
            is_done = False
            while not is_done:
                removed, unreplaced = self._split(is_replaced, bounds)
                is_done = self._commit(self._write([unreplaced, rows]), removed, positions)
        self._count(rows)

    def merge(self, files: Sequence[DataFile]) -> bool:
        """Makes one file of several of one partition, in a commit that changes no row.

        False when one of them was replaced meanwhile: nothing is changed then. Raises Fenced as `append`.
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
        """The live files, in the order in which they came as far as this process knows it."""
        with self._lock:
            return list(self._live_files().values())

    def checkpoint_size(self) -> int:
        """How many actions the newest checkpoint has, notes on removed files among them."""
        with storage(self.lake):
            return int(msgspec.json.decode(self._store.get("_delta_log/_last_checkpoint").bytes().to_bytes())["size"])

    def grown(self) -> set[Partition]:
        """The partitions to which files came since the last call."""
        with self._lock:
            found, self._grown = self._grown, set()
        return found

    def replaced(self) -> list[str]:
        """Paths of the files that commits took away since the last call."""
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
                except FileNotFoundError:  # which left out those after it
                    for path in some:
                        with suppress(FileNotFoundError):
                            self._store.delete(path)

    def read(self, columns: str, where: str = "true") -> pa.Table:
        """`SELECT columns WHERE where` over the table's newest version, see `cryptopulse.lake.reading.read_table`."""
        return read_table(self.lake, self.table, columns, where, self._opened)

    def read_parts(self, columns: str, where: str, rows_max: int) -> Iterator[pa.Table]:
        """The same in parts of about `rows_max` rows, for what may be more than memory takes."""
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
        """How many rows the table has, by its files' own counts: no file is read."""
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
        """Whether the commit was made; False when one of `removed` has gone. Its files are deleted when it was not.

        `written`: the new files, with their rows.
        """
        transactions = {_app_id(self.table, source): at for source, at in {**positions, **self._owner}.items()}
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
        except (Fenced, LakeFull):  # of other errors nobody knows whether the commit was made
            self._discard(paths)
            raise
        self._opened = None
        self._note(written, removed)
        self._seen |= positions
        self._positions |= positions
        return True

    def _follow(self, commit: Commit) -> None:
        """Takes in the commit of the next version, which was made beside this writer's.

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
        """What is live after a commit, and the rows that are worth keeping."""
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
            except FileNotFoundError as error:  # others have gone on so far that it was cut off
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
        """All columns of the rows in `file`."""
        rows = self._rows.get(file.path)
        return self._parquet.read(file.path, file.size, file.partition) if rows is None else iter([rows])

    def _write(self, tables: Sequence[pa.Table]) -> dict[DataFile, pa.Table | None]:
        """Puts each of `tables` as one file for each partition; no rows, no file."""
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
        """Deletes files that no commit names; one that stays costs nothing but room."""
        with suppress(Exception):
            self.delete(paths)

    def _recorded(self, source: str) -> int:
        position = self._newest().transaction_version(_app_id(self.table, source))
        return NOTHING_YET if position is None else position

    def _newest(self) -> DeltaTable:
        return self._opened or opened(self.lake, self.table)


def _new_name() -> str:
    return uuid.uuid4().hex


def _new_path(partition: Mapping[str, str]) -> str:
    folder = "".join(f"{name}={value}/" for name, value in partition.items())
    return f"{folder}part-{uuid.uuid4().hex}.parquet"


def _seconds(interval: str) -> float:
    """Length of an interval as Delta's properties write it ("interval 7 days"); infinite for what is none."""
    match interval.split():
        case ["interval", number, unit] if number.isdigit() and (length := _INTERVAL_S.get(unit.removesuffix("s"))):
            return int(number) * length
    return math.inf
