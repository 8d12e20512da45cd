"""The Delta log of one table, as its writer sees it: the last known version, and put-if-absent of the next one.

Of several writers only one can create a version: local disks, S3 and Azure refuse a second file of the same name. A
commit file is written once, whole.
"""

from __future__ import annotations

import time

from obstore.exceptions import AlreadyExistsError
from obstore.store import ObjectStore

from cryptopulse.errors import Fenced
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.storage import storage
from cryptopulse.lake.tables import Table
from cryptopulse.store.delta_log import Commit

_CUT_AFTER_S = 5.0  # entries are kept for at least 10 s (maintenance.log_retention_s)


class CommitLog:
    """Writes commits, one after the other. Use from one thread at a time."""

    def __init__(self, lake: LakeLocation, table: Table, store: ObjectStore, version: int) -> None:
        """`store`: the table's folder; `version`: the last known one."""
        self.version = version
        self._lake = lake
        self._table = table
        self._store = store
        self._known_at = time.monotonic()

    def put(self, body: bytes, name: str) -> Commit | None:
        """Writes `body`, a commit called `name`, as the next version. Returns None when done.

        If that version exists already, returns its commit and leaves `version` unchanged. Raises Fenced when others
        have made so many commits that the entry of `version` was deleted, and what `storage` raises.
        """
        path = commit_path(self.version + 1)
        with storage(self._lake):
            try:
                self._store.put(path, body, mode="create")
            except AlreadyExistsError:
                found = self._read(path)
                # The storage's first answer may have been lost: the retry then finds this very commit.
                if found.name != name:
                    return found
            if self._was_cut():
                self._store.delete(path)
                raise fenced(self._table)
        self.version += 1
        self._known_at = time.monotonic()
        return None

    def next(self) -> Commit:
        """Reads the commit of the next version. Raises FileNotFoundError when there is none."""
        with storage(self._lake):
            return self._read(commit_path(self.version + 1))

    def _read(self, path: str) -> Commit:
        return Commit.of(self._store.get(path).bytes().to_bytes())

    def _was_cut(self) -> bool:
        """Whether the entry of the known version was deleted. Then the next name was free only because its entry was
        deleted, too: the oldest go first. On S3 and Azure this is a request, made only if a deletion is possible yet.
        """
        if not self._lake.folder and time.monotonic() - self._known_at < _CUT_AFTER_S:
            return False
        try:
            self._store.head(commit_path(self.version))
        except FileNotFoundError:
            return True
        return False


def commit_path(version: int) -> str:
    """Path of a commit, relative to the table's folder."""
    return f"_delta_log/{version:020d}.json"


def fenced(table: Table) -> Fenced:
    """The error of a writer that must not commit to `table` any more."""
    return Fenced(
        f"Another pipeline has taken over {table.qualified}. This one stops and has written nothing since. "
        "Run one pipeline per lake."
    )
