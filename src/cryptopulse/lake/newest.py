"""The newest version of each table of a lake, noticed cheaply, for a reader that lives long. Safe from several threads.

A commit to a local table is a new file in `_delta_log`, so looking for one is two questions to the file system, some
twenty microseconds. Elsewhere the storage is asked for the next version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Protocol

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from cryptopulse.lake.access import opened, storage
from cryptopulse.lake.files import Files
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import TABLES, Table


class Versions(Protocol):
    """Which files a table has."""

    def files(self, table: Table) -> Files:
        """Those of `table`; none of a table that is not there. Raises what `lake.access.opened` raises."""

    def files_of(self, tables: Iterable[Table]) -> dict[Table, Files]:
        """Those of several tables, which fit each other."""

    def forget(self, table: Table) -> None:
        """Looks at `table` from the start the next time: one of its files was not there."""


class Newest:
    """Files by the newest version at each call."""

    def __init__(self, lake: LakeLocation) -> None:
        """Looks at nothing yet; the tables need not be there."""
        self._tables = {table.qualified: _Followed(lake, table) for table in TABLES}

    def files(self, table: Table) -> Files:
        """See `Versions`."""
        return self._tables[table.qualified].newest()

    def files_of(self, tables: Iterable[Table]) -> dict[Table, Files]:
        """See `Versions`. Downstream tables are looked at first: what they were made of is then in the others."""
        wanted = {table.qualified for table in tables}
        return {table: self.files(table) for table in reversed(TABLES) if table.qualified in wanted}

    def forget(self, table: Table) -> None:
        """See `Versions`."""
        self._tables[table.qualified].forget()


class Pinned:
    """Files as they were at one moment."""

    def __init__(self, found: Mapping[Table, Files]) -> None:
        """`found`: all tables."""
        self._found = {table.qualified: files for table, files in found.items()}

    def files(self, table: Table) -> Files:
        """See `Versions`."""
        return self._found[table.qualified]

    def files_of(self, tables: Iterable[Table]) -> dict[Table, Files]:
        """See `Versions`."""
        return {table: self.files(table) for table in tables}

    def forget(self, table: Table) -> None:
        """Nothing: the moment stays the same."""


class _Followed:
    """One table."""

    def __init__(self, lake: LakeLocation, table: Table) -> None:
        self._lake = lake
        self._table = table
        folder = lake.table_folder(table)
        self._log = folder and folder / "_delta_log"
        self._lock = Lock()
        self._delta: DeltaTable | None = None
        self._files = Files.none(lake, table)
        self._seen: tuple[int, int] | None = None

    def newest(self) -> Files:
        with self._lock:
            seen = _look(self._log) if self._log else None
            if self._is_current(seen):
                return self._files
            is_anew = self._seen is not None and (seen is None or seen[0] != self._seen[0])
            held = None if is_anew else self._delta
            self._delta = self._opened(held)
            if self._delta is None:
                self._files = Files.none(self._lake, self._table)
            elif self._delta is not held or held.version() != self._files.version:
                self._files = Files.of(self._lake, self._table, self._delta)
            self._seen = seen
            return self._files

    def forget(self) -> None:
        with self._lock:
            self._delta, self._seen = None, None
            self._files = Files.none(self._lake, self._table)

    def _is_current(self, seen: tuple[int, int] | None) -> bool:
        if self._log is None or self._delta is None or seen != self._seen:
            return False
        # The folder's own time misses a commit within the same tick of the clock.
        return not (self._log / f"{self._files.version + 1:020d}.json").exists()

    def _opened(self, held: DeltaTable | None) -> DeltaTable | None:
        """The table at its newest version: `held` brought there, if that can be done."""
        try:
            if held is not None:
                with storage(self._lake):
                    held.update_incremental()
                return held
        except DeltaError:  # its log was cut meanwhile, or it was made anew
            pass
        try:
            return opened(self._lake, self._table)
        except TableNotFoundError:
            return None


def _look(log: Path) -> tuple[int, int] | None:
    """What changes whenever a file comes to `log` or goes; None when it is not there."""
    try:
        found = log.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
