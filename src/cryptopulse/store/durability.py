"""Syncs the files of a local lake to disk; the tables are written without fsync.

After a power cut the newest commits can be torn in every way: a commit or Parquet file that is missing, empty,
zero-filled or cut short, an empty checkpoint. Nothing is lost, because the log is trimmed only below what was synced
here, and silver and gold are derived. `cryptopulse.store.repair` then repairs the tables.

Bronze is synced commit by commit, so that the log can be trimmed. Derived tables are synced when a checkpoint is made:
most files of their commits were merged by then, and need no sync.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from cryptopulse.errors import ConfigurationError
from cryptopulse.folders import is_full, sync
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.storage import full
from cryptopulse.lake.tables import Table


class Synced:
    """Syncs the files of a table's commits, each once."""

    def __init__(self, path: Path) -> None:
        """Nothing of the table at `path` counts as synced yet; the first call syncs all of it."""
        self._path = path
        self._log = path / "_delta_log"
        self._version = -1
        self._files: set[str] = set()
        """Data files that were synced for the last checkpoint, by their paths in the table."""
        self._named: set[Path] = set()
        """Folders whose directory entries, and those of their parents, are on disk."""

    def up_to(self, version: int) -> None:
        """Returns when every file of the commits up to `version` is on disk, with its directory entry."""
        first = self._version + 1
        if self._version < 0:
            numbers = (int(file.stem) for file in self._log.glob("*.json") if file.stem.isdigit())
            first = min((number for number in numbers if number <= version), default=version + 1)
        commits = [self._log / f"{at:020d}.json" for at in range(first, version + 1)]
        self._sync([*(self._path / name for commit in commits for name in _added(commit)), *commits])
        self._version = max(self._version, version)

    def snapshot(self, version: int, files: Iterable[str]) -> None:
        """Returns when all that a checkpoint of `version` will name is on disk: the commit, and its data `files`."""
        names = {unquote(file) for file in files}
        self._sync([*(self._path / name for name in names - self._files), self._log / f"{version:020d}.json"])
        self._files = names
        self._version = max(self._version, version)

    def _sync(self, files: Iterable[Path]) -> None:
        folders = {self._log}
        for file in files:
            folders.add(file.parent)
            _sync_if_there(file)
        # The entry of a new folder is in its parent, which may be new as well, up to the lake.
        lake, unnamed = self._path.parent.parent, folders - self._named
        above = {parent for folder in unnamed for parent in folder.parents if parent.is_relative_to(lake)}
        for folder in folders | above:
            _sync_if_there(folder)
        self._named |= folders

    def checkpoint(self) -> None:
        """Returns when the newest checkpoint and the pointer to it are on disk."""
        pointer = self._log / "_last_checkpoint"
        version = json.loads(pointer.read_bytes())["version"]
        for file in (self._log / f"{version:020d}.checkpoint.parquet", pointer, self._log):
            _sync_if_there(file)


class Stored:
    """Replaces `Synced` on S3 and Azure, where a commit is durable once the storage has answered."""

    def up_to(self, version: int) -> None:
        """Nothing to do."""

    def snapshot(self, version: int, files: Iterable[str]) -> None:
        """Nothing to do."""

    def checkpoint(self) -> None:
        """Nothing to do."""


def syncing(lake: LakeLocation, table: Table) -> Synced | Stored:
    """The object that makes the commits to `table` durable."""
    folder = lake.table_folder(table)
    return Synced(folder) if folder else Stored()


def check_file_system(lake: LakeLocation) -> None:
    """Raises ConfigurationError where two writers could both believe that their commit won, LakeFull on a full disk.

    A commit to a local folder is a hard link, which fails when the name is taken. FUSE and blobfuse mounts
    have none, and the rename used instead overwrites. S3 and Azure refuse to overwrite an object.
    """
    folder = lake.folder
    if not folder:
        if lake.kind == "s3" and lake.option("aws_s3_allow_unsafe_rename"):
            raise ConfigurationError(
                "AWS_S3_ALLOW_UNSAFE_RENAME lets a commit overwrite another's: unset it. S3 does not need it any more."
            )
        return
    probe, link = folder / f".probe-{os.getpid()}", folder / f".probe-{os.getpid()}-link"
    try:
        probe.touch()
        os.link(probe, link)
    except OSError as error:
        if is_full(error):
            raise full(lake) from error
        raise ConfigurationError(
            f"The file system of {folder} can't make hard links ({error.strerror}), so commits would not be safe there "
            "(a FUSE or blobfuse mount?). Use a folder on a local disk, or the storage's own address: abfss://… or s3://…"
        ) from error
    finally:
        probe.unlink(missing_ok=True)
        link.unlink(missing_ok=True)


def _added(commit: Path) -> Iterator[str]:
    try:
        lines = commit.read_bytes().splitlines()
    except FileNotFoundError:  # deleted because of a checkpoint, which was synced before
        return
    for line in lines:
        action = json.loads(line)
        if "add" in action:
            yield unquote(action["add"]["path"])


def _sync_if_there(file: Path) -> None:
    try:
        sync(file)
    except FileNotFoundError:  # replaced by a compaction, whose files are synced later
        return
