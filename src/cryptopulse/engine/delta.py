"""One Delta table as this process writes and reads it: opened once, committed to with its positions, fenced.

Exactly once is decided here. Every commit carries Delta `txn` actions: for each source of the table (a partition of
the log or of bronze, or the upstream table) the position that the commit consumed. delta-rs records them and rejects
a commit when another handle wrote the same one meanwhile, but it does not enforce their order. So a handle knows the
positions it expects; whenever it looks at the table anew and finds others, another pipeline has taken over, and it
refuses to go on (`Fenced`).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

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
from deltalake.exceptions import CommitFailedError, DeltaError

from cryptopulse.engine.durability import POSITIONS
from cryptopulse.errors import Fenced, LakeDamaged, LakeFull
from cryptopulse.lake.tables import Table

_Write = Callable[[DeltaTable, pa.Table, CommitProperties], None]

NOTHING_YET = -1
"""Position of a source of which nothing was consumed."""

LOAD = "load"
"""The source name under which a table's commits carry their own load_timestamp."""

_REOPEN_COMMITS = 20  # a handle kept for ever gets slow: 12 ms a commit after 100 commits, 54 after 400 (measured)
_RETRIES_MAX = 10  # conflicts with compaction; each retry looks at the table anew
_HARDLY_REPEAT = {"BINARY", "BIGINT", "TIMESTAMP"}
_PLAIN = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
# Checkpoints and the clean-up of the log are maintenance's, beside the commits and not within them.
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


def table_path(lake: Path, table: Table) -> Path:
    """`<lake>/<schema>/<table>`."""
    return lake / table.schema / table.name


def read_table(lake: Path, table: Table, columns: str, where: str = "true") -> pa.Table:
    """`SELECT columns WHERE where` over the table's newest version, by a handle of its own."""
    return _select(DeltaTable(str(table_path(lake, table))), columns, where)


def _select(delta: DeltaTable, columns: str, where: str) -> pa.Table:
    query = QueryBuilder().register("t", delta)
    found = pa.table(query.execute(f"SELECT {columns} FROM t WHERE {where}").read_all())  # noqa: S608 - all ours
    return found.cast(pa.schema([field.with_type(_PLAIN.get(field.type, field.type)) for field in found.schema]))


def utc_literal(us: int) -> str:
    """A time (µs UTC) in the SQL that `read` takes."""
    return f"arrow_cast({us}, 'Timestamp(Microsecond, Some(\"UTC\"))')"


def writer_properties(table: Table) -> WriterProperties:
    """How the table's files are written. No dictionaries where values hardly repeat: a third faster (measured)."""
    plain = ColumnProperties(dictionary_enabled=False)
    columns = {column.name: plain for column in table.columns if column.type in _HARDLY_REPEAT}
    return WriterProperties(compression="ZSTD", compression_level=1, column_properties=columns)


class DeltaHandle:
    """One table of the lake, for the one process that writes it. Use from one thread at a time."""

    def __init__(self, lake: Path, table: Table, properties: Mapping[str, str]) -> None:
        """Opens the table under `lake`, creating it with `properties` when it isn't there.

        Raises LakeDamaged when it can't be opened.
        """
        self.table = table
        self.path = table_path(lake, table)
        self._writer = writer_properties(table)
        if not DeltaTable.is_deltatable(str(self.path)):
            DeltaTable.create(
                str(self.path),
                table.arrow_schema,
                name=table.name,
                description=table.comment,
                partition_by=list(table.partition_by),
                configuration={**table.properties, **properties},
            )
        self._delta = self._opened()
        self._seen: dict[str, int] = {}
        self._positions: dict[str, int] = {}
        self._commits_since_open = 0
        self.commits = 0
        self.rows_written = 0

    @property
    def version(self) -> int:
        """The Delta version last seen."""
        return self._delta.version()

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
        return _select(self._delta, columns, where)

    def reopen(self) -> None:
        """Looks at the table anew. Raises Fenced when the positions there are not this handle's."""
        held, self._delta = self._delta, self._opened()
        recorded = {source: self._recorded(source) for source in self._seen}
        if recorded != self._seen:
            self._delta = held  # stays behind, so that whatever it tries to commit later is refused too
            raise Fenced(
                f"Another pipeline has written to {self.table.qualified} (found {recorded}, left {self._seen}). "
                "This one stops and has written nothing since. Run one pipeline per lake."
            )
        self._commits_since_open = 0

    def _commit(self, write: _Write, rows: pa.Table, positions: Mapping[str, int]) -> None:
        transactions = [Transaction(self._app_id(source), position) for source, position in positions.items()]
        commit = CommitProperties(custom_metadata={POSITIONS: str(len(transactions))}, app_transactions=transactions)
        for attempt in range(_RETRIES_MAX):
            try:
                write(self._delta, rows, commit)
                break
            except CommitFailedError:
                self.reopen()  # raises Fenced when it was no compaction
                if attempt == _RETRIES_MAX - 1:
                    raise
            except DeltaError as error:
                if os.strerror(errno.ENOSPC) not in str(error):  # delta-rs has no type for it
                    raise
                raise LakeFull(
                    f"The disk under {self.path} is full. Free some space and start again: nothing is lost, the log "
                    "keeps what has arrived."
                ) from error
        self._seen |= positions
        self._positions |= positions
        self.commits += 1
        self.rows_written += rows.num_rows
        self._commits_since_open += 1

    def refresh_if_due(self) -> None:
        """Reopens a handle that has become slow. Call it when nobody waits."""
        if self._commits_since_open >= _REOPEN_COMMITS:
            self.reopen()

    def _opened(self) -> DeltaTable:
        try:
            return DeltaTable(str(self.path))
        except DeltaError as error:
            raise LakeDamaged(
                f"Table {self.table.qualified} at {self.path} can't be opened: {str(error).splitlines()[0]}. "
                "If bronze is sound, `cryptopulse rebuild` makes silver and gold again."
            ) from error

    def _app_id(self, source: str) -> str:
        return f"cryptopulse:{self.table.qualified}:{source}"

    def _recorded(self, source: str) -> int:
        position = self._delta.transaction_version(self._app_id(source))
        return NOTHING_YET if position is None else position
