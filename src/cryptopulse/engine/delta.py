"""One Delta table as this process writes and reads it: opened once, committed to with its positions, fenced.

Exactly once is decided here. Every commit carries Delta `txn` actions: for each source of the table (a partition of
the log or of bronze, or the upstream table) the position that the commit consumed. delta-rs records them and rejects
a commit when another handle wrote the same one meanwhile, but it does not enforce their order. So a handle knows the
positions it expects; whenever it looks at the table anew and finds others, another pipeline has taken over, and it
refuses to go on (`Fenced`).

A pipeline that starts takes over every table by a commit without rows, which carries the number of the take-over like
a position, as each commit after it does. So whoever worked on the lake before is fenced from all tables at once, also
from those to which the new one has nothing to write yet.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import pyarrow as pa
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    QueryBuilder,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError

from cryptopulse.engine.repair import POSITIONS
from cryptopulse.errors import Fenced
from cryptopulse.lake.access import is_there, opened, reading, storage
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import Table

_Write = Callable[[DeltaTable, pa.Table, CommitProperties], None]

NOTHING_YET = -1
"""Position of a source of which nothing was consumed."""

LOAD = "load"
"""The source name under which a table's commits carry their own load_timestamp."""

OWNER = "owner"
"""The source name under which a table's commits carry the number of the take-over that they belong to."""

TOMBSTONES = "delta.deletedFileRetentionDuration"
"""Property of a table: checkpoints leave out notes on removed files (tombstones) that are older."""

_INTERVAL_S = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400, "week": 7 * 86_400}
_COMMIT = "cryptopulse.commit"  # in the first line of each commit: its own name
_REOPEN_COMMITS = 20  # a handle kept for ever gets slow: 12 ms a commit after 100 commits, 54 after 400 (measured)
_RETRIES_MAX = 10  # conflicts with compaction; each retry looks at the table anew
_HARDLY_REPEAT = {"BINARY", "BIGINT", "TIMESTAMP"}
_PLAIN = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
# Checkpoints and the clean-up of the log are maintenance's, beside the commits and not within them.
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


def read_table(lake: LakeLocation, table: Table, columns: str, where: str = "true") -> pa.Table:
    """`SELECT columns WHERE where` over the table's newest version, by a handle of its own."""
    return _select(lake, table, opened(lake, table), columns, where)


def _select(lake: LakeLocation, table: Table, delta: DeltaTable, columns: str, where: str) -> pa.Table:
    with reading(lake, table):
        query = QueryBuilder().register("t", delta)
        return _plain(pa.table(query.execute(f"SELECT {columns} FROM t WHERE {where}").read_all()))  # noqa: S608 - ours


def _plain(found: pa.Table) -> pa.Table:
    return found.cast(pa.schema([field.with_type(_PLAIN.get(field.type, field.type)) for field in found.schema]))


def utc_literal(us: int) -> str:
    """A time (µs UTC) in the SQL that `read` takes."""
    return f"arrow_cast({us}, 'Timestamp(Microsecond, Some(\"UTC\"))')"


def writer_properties(table: Table) -> WriterProperties:
    """How the table's files are written. No dictionaries where values hardly repeat: a third faster (measured)."""
    plain = ColumnProperties(dictionary_enabled=False)
    columns = {column.name: plain for column in table.columns if column.type in _HARDLY_REPEAT}
    return WriterProperties(compression="ZSTD", compression_level=1, column_properties=columns)


def owner_id(table: Table) -> str:
    """The application id under which a table's commits carry the number of the take-over, whichever engine made it."""
    return _app_id(table, OWNER)


def _app_id(table: Table, source: str) -> str:
    return f"cryptopulse:{table.qualified}:{source}"


class DeltaHandle:
    """One table of the lake, for the one process that writes it. Use from one thread at a time."""

    def __init__(self, lake: LakeLocation, table: Table, properties: Mapping[str, str]) -> None:
        """Opens the table under `lake`, creating it with `properties` when it isn't there.

        Raises LakeDamaged when it can't be opened; ConfigurationError and LakeUnreachable of a lake elsewhere, as
        every method that reads or writes (`cryptopulse.lake.access.storage`).
        """
        self.table = table
        self.lake = lake
        self._writer = writer_properties(table)
        if not is_there(lake, table):
            with storage(lake):
                DeltaTable.create(
                    lake.table_url(table),
                    table.arrow_schema,
                    name=table.name,
                    description=table.comment,
                    partition_by=list(table.partition_by),
                    configuration={**table.properties, **properties},
                    storage_options=lake.storage_options,
                )
        self._delta = opened(self.lake, self.table)
        self._seen: dict[str, int] = {}
        self._positions: dict[str, int] = {}
        self._owner: dict[str, int] = {}
        self._commits_since_open = 0
        self.commits = 0
        self.rows_written = 0

    @property
    def version(self) -> int:
        """The Delta version last seen."""
        return self._delta.version()

    @property
    def owner(self) -> int:
        """Number of the last take-over of the table that this handle knows of; NOTHING_YET before the first."""
        return self._recorded(OWNER)

    def take_over(self, owner: int) -> None:
        """Fences everybody else from this table: the take-over number `owner` is committed, and goes with each commit
        from now on. To be called before any position is asked for. Raises Fenced when another pipeline was quicker.
        """
        for _ in range(_RETRIES_MAX):
            if self._recorded(OWNER) >= owner:
                break
            name, commit = self._properties({OWNER: owner})
            try:
                self._mark(commit)
            except CommitFailedError:  # another start, or a last commit of the pipeline before
                if not self._is_there(name):
                    self._delta = opened(self.lake, self.table)
                    continue
            with storage(self.lake):
                self._delta.update_incremental()  # a mark does not move the handle, and its first commit would conflict
            if self._recorded(OWNER) != owner:
                break
            self._owner[OWNER] = self._seen[OWNER] = owner
            return
        raise Fenced(f"Another pipeline has just started on {self.lake}. This one ends, and has written nothing.")

    def keep_tombstones(self, seconds: int) -> None:
        """Lets checkpoints keep notes on removed files for at least so long; a longer time that was set stays."""
        held = self._delta.metadata().configuration.get(TOMBSTONES)
        if held is None or _seconds(held) >= seconds:  # unset: a week
            return
        with storage(self.lake), suppress(CommitFailedError):  # whoever came between: the next start does it
            self._delta.alter.set_table_properties({TOMBSTONES: f"interval {seconds} seconds"})

    def check_owner(self, newest: DeltaTable) -> None:
        """Raises Fenced unless the table as `newest` shows it is still this handle's."""
        if newest.transaction_version(self._app_id(OWNER)) != self._owner.get(OWNER):
            raise Fenced(f"Another pipeline has taken over {self.table.qualified}. Run one pipeline per lake.")

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
        """Adds `rows` and moves to `positions` in one commit. Raises Fenced when another pipeline took over."""

        def write(delta: DeltaTable, data: pa.Table, commit: CommitProperties) -> None:
            write_deltalake(
                delta,
                data,
                mode="append",
                writer_properties=self._writer,
                commit_properties=commit,
                post_commithook_properties=_NO_HOOKS,
            )

        self._commit(write, rows, positions)

    def replace(self, rows: pa.Table, predicate: str | None, positions: Mapping[str, int]) -> None:
        """Puts `rows` in the place of those that match `predicate` (None: of all), in one commit, as `append`."""

        def write(delta: DeltaTable, data: pa.Table, commit: CommitProperties) -> None:
            write_deltalake(
                delta,
                data,
                mode="overwrite",
                predicate=predicate,
                writer_properties=self._writer,
                commit_properties=commit,
                post_commithook_properties=_NO_HOOKS,
            )

        self._commit(write, rows, positions)

    def read(self, columns: str, where: str = "true") -> pa.Table:
        """`SELECT columns WHERE where` over the table as this handle sees it; file statistics prune."""
        return _select(self.lake, self.table, self._delta, columns, where)

    def read_parts(self, columns: str, where: str, rows_max: int) -> Iterator[pa.Table]:
        """The same in parts of about `rows_max` rows, for what may be more than memory takes."""
        with reading(self.lake, self.table):
            query = QueryBuilder().register("t", self._delta)
            held: list[pa.RecordBatch] = []
            rows = 0
            for batch in query.execute(f"SELECT {columns} FROM t WHERE {where}"):  # noqa: S608 - all ours
                held.append(pa.record_batch(batch))
                rows += batch.num_rows
                if rows >= rows_max:
                    yield _plain(pa.Table.from_batches(held))
                    held, rows = [], 0
            if held:
                yield _plain(pa.Table.from_batches(held))

    def rows(self) -> int:
        """How many rows the table has as this handle sees it, by its files' own counts: no file is read."""
        counts = self._delta.get_add_actions(flatten=True)["num_records"].to_pylist()
        if None in counts:  # another writer's
            return int(self.read("count(*) AS n")["n"][0].as_py())
        return sum(counts)

    def reopen(self) -> None:
        """Looks at the table anew. Raises Fenced when the positions there are not this handle's."""
        held, self._delta = self._delta, opened(self.lake, self.table)
        recorded = {source: self._recorded(source) for source in self._seen}
        if recorded != self._seen:
            self._delta = held  # stays behind, so that whatever it tries to commit later is refused too
            raise Fenced(
                f"Another pipeline has written to {self.table.qualified} (found {recorded}, left {self._seen}). "
                "This one stops and has written nothing since. Run one pipeline per lake."
            )
        self._commits_since_open = 0

    def _commit(self, write: _Write, rows: pa.Table, positions: Mapping[str, int]) -> None:
        name, commit = self._properties({**positions, **self._owner})
        for attempt in range(_RETRIES_MAX):
            try:
                with storage(self.lake):
                    write(self._delta, rows, commit)
                break
            except CommitFailedError:
                if self._is_there(name):
                    break
                self.reopen()  # raises Fenced when it was no compaction
                if attempt == _RETRIES_MAX - 1:
                    raise
        self._seen |= positions
        self._positions |= positions
        self.commits += 1
        self.rows_written += rows.num_rows
        self._commits_since_open += 1

    def _mark(self, commit: CommitProperties) -> None:
        """Commits without rows."""
        with storage(self.lake):
            self._delta.create_write_transaction(
                [],
                "append",
                self.table.arrow_schema,
                commit_properties=commit,
                post_commithook_properties=_NO_HOOKS,
            )

    def _properties(self, positions: Mapping[str, int]) -> tuple[str, CommitProperties]:
        """A new commit's name, and what it carries."""
        name = uuid.uuid4().hex
        return name, CommitProperties(
            custom_metadata={POSITIONS: str(len(positions)), _COMMIT: name},
            app_transactions=[Transaction(self._app_id(source), position) for source, position in positions.items()],
        )

    def refresh_if_due(self) -> None:
        """Reopens a handle that has become slow. Call it when nobody waits."""
        if self._commits_since_open >= _REOPEN_COMMITS:
            self.reopen()

    def _is_there(self, name: str) -> bool:
        """Whether a commit of ours that was refused is in the table after all: a storage whose answer got lost is asked
        again, and then says that the version exists. If so, the handle goes on from it.
        """
        if self.lake.folder:  # a link is made or not
            return False
        fresh = opened(self.lake, self.table)
        with storage(self.lake):
            found = any(entry.get(_COMMIT) == name for entry in fresh.history(fresh.version() - self.version))
        if found:
            self._delta = fresh
        return found

    def _app_id(self, source: str) -> str:
        return _app_id(self.table, source)

    def _recorded(self, source: str) -> int:
        position = self._delta.transaction_version(self._app_id(source))
        return NOTHING_YET if position is None else position


def _seconds(interval: str) -> float:
    """Length of an interval as Delta's properties write it ("interval 7 days"); infinite for what is none."""
    match interval.split():
        case ["interval", number, unit] if number.isdigit() and (length := _INTERVAL_S.get(unit.removesuffix("s"))):
            return int(number) * length
    return math.inf
