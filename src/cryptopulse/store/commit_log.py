"""The Delta log of one table as its writer sees it: the version it knows, and the next one, which one writer can make.

A commit is put under the next version's name if nothing is there; local disks, S3 and Azure each refuse a second one.
A commit file is written once, whole.
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
    """Puts commits, one after the other. Use from one thread at a time."""

    def __init__(self, lake: LakeLocation, table: Table, store: ObjectStore, version: int) -> None:
        """`store`: the table's folder; `version`: the one that is known."""
        self.version = version
        self._lake = lake
        self._table = table
        self._store = store
        self._known_at = time.monotonic()

    def put(self, body: bytes, name: str) -> Commit | None:
        """Makes the next version of `body`, which is a commit called `name`. None: done.

        Else the commit that is there already; `version` is as before. Raises Fenced when others have gone on so far
        that the log was cut behind the version that is known, and what `storage` raises.
        """
        path = commit_path(self.version + 1)
        with storage(self._lake):
            try:
                self._store.put(path, body, mode="create")
            except AlreadyExistsError:
                found = self._read(path)
                # The storage's answer may have got lost; it was asked again, and then found this very commit.
                if found.name != name:
                    return found
            if self._was_cut():
                self._store.delete(path)
                raise fenced(self._table)
        self.version += 1
        self._known_at = time.monotonic()
        return None

    def next(self) -> Commit:
        """The commit of the next version, which is there. Raises FileNotFoundError when it is not."""
        with storage(self._lake):
            return self._read(commit_path(self.version + 1))

    def _read(self, path: str) -> Commit:
        return Commit.of(self._store.get(path).bytes().to_bytes())

    def _was_cut(self) -> bool:
        """Whether the entry of the version that is known has gone. Then the next name was free for that reason only:
        entries are cut off from the oldest on. Elsewhere it is a request, so it is asked only if there was time for it.
        """
        if not self._lake.folder and time.monotonic() - self._known_at < _CUT_AFTER_S:
            return False
        try:
            self._store.head(commit_path(self.version))
        except FileNotFoundError:
            return True
        return False


def commit_path(version: int) -> str:
    """The place of a commit in the table's folder."""
    return f"_delta_log/{version:020d}.json"


def fenced(table: Table) -> Fenced:
    """The error of a writer that must not commit to `table` any more."""
    return Fenced(
        f"Another pipeline has taken over {table.qualified}. This one stops and has written nothing since. "
        "Run one pipeline per lake."
    )
