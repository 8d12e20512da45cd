"""Repairs the tables of a local lake after a power cut, so that they open again and catch up from the log.

A power cut can tear only what `cryptopulse.store.durability` had not synced yet: commits at the end of a table, after
its newest checkpoint. They are removed. The table is then some commits back, with the matching positions, and catches
up. Older damage comes from the disk: the error names the command that helps.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import structlog
from deltalake import DeltaTable

from cryptopulse.folders import sync
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.storage import damaged, open_table
from cryptopulse.lake.tables import BRONZE, TABLES, Table
from cryptopulse.log import Log
from cryptopulse.store.delta_log import POSITIONS

_FILES_OF_COMPACTION = (("numFilesAdded", "numFilesRemoved"), ("numAddedFiles", "numRemovedFiles"))
"""The names of delta-rs and of Spark for the number of files that a compaction has added and removed."""

_CHECKPOINT = re.compile(r"\d{20}\.checkpoint\.(.+\.)?(parquet|json)")
_PARQUET_MAGIC = b"PAR1"

logger = structlog.get_logger()


def repair_lake(lake: LakeLocation, log: Log) -> None:
    """Repairs every table of a local `lake` that exists; see `repair_table`. On S3 and Azure nothing can be torn."""
    for table in TABLES:
        repair_table(lake, table, log)


def put_aside(lake: LakeLocation, table: Table) -> bool:
    """Renames the folder of a derived table to `<table>.damaged-<µs since 1970>`, so that a rebuild can recreate it.

    Returns False, and does nothing, for bronze and for a lake on S3 or Azure.
    """
    folder = lake.table_folder(table)
    if table is BRONZE or folder is None:
        return False
    aside = folder.with_name(f"{folder.name}.damaged-{time.time_ns() // 1000}")
    folder.rename(aside)
    sync(folder.parent)
    logger.warning("damaged_table_moved", table=table.qualified, folder=str(aside))
    return True


def repair_table(lake: LakeLocation, table: Table, log: Log) -> None:
    """Removes torn commits from the end of a local `table`, so that it opens at its last sound version.

    They stay in `_delta_log` with the suffix `.torn`. A table without a checkpoint that is torn from its first commit
    on is recreated. Raises LakeDamaged when older files are damaged; and, before any change, when commits were deleted
    after a checkpoint that is torn, or when the table is bronze and `log` no longer holds the messages.
    """
    path = lake.table_folder(table)
    if path is None or not (path / "_delta_log").is_dir():
        return
    found = _Examined(path)
    if found.first_torn is None:
        found.drop_torn_checkpoints()
    else:
        if found.is_cut_behind_torn_checkpoint:
            raise damaged(lake, table, "has lost its checkpoint, and what it covers; nothing was changed.")
        if table is BRONZE:
            _check_log_reaches(lake, found, log)
        found.remove_torn_commits()
        logger.warning("torn_commits_removed", table=table.qualified, first=found.first_torn, last=found.last)
    if found.checkpoint >= 0:
        _check_files(lake, table)


class _Examined:
    """A table's commits and checkpoints, as they are on disk."""

    def __init__(self, path: Path) -> None:
        """Reads the Delta log of the table at `path`, and checks the end of every file that was added after the newest
        checkpoint.
        """
        self.path = path
        self.log = path / "_delta_log"
        checkpoints = [file for file in self.log.glob("*.checkpoint.*") if _CHECKPOINT.fullmatch(file.name)]
        self._torn_checkpoints = [
            # Spark can write one in several files, which can't be checked by their ends: it counts as whole.
            file
            for file in checkpoints
            if file.name.endswith(".checkpoint.parquet") and not _is_whole_parquet(file, None)
        ]
        self._checkpoints = {_version(file) for file in checkpoints if file not in self._torn_checkpoints}
        self.checkpoint = max(self._checkpoints, default=-1)
        """Version of the newest whole checkpoint; -1: none."""
        numbers = sorted(int(file.stem) for file in self.log.glob("*.json") if file.stem.isdigit())
        # Older commits serve time travel, or are left from a deletion that a power cut undid.
        self.commits = {number: _actions(self._commit(number)) for number in numbers if number > self.checkpoint}
        self.last = max(self.commits, default=self.checkpoint)
        self.first_torn = self._first_torn()
        """Version of the first commit that is torn or missing; None: all are sound."""

    @property
    def is_cut_behind_torn_checkpoint(self) -> bool:
        """Whether the first missing commit was deleted because of a checkpoint that is torn now. No power cut does
        that: a checkpoint is synced before.
        """
        return self.first_torn not in self.commits and any(
            _version(file) >= (self.first_torn or 0) for file in self._torn_checkpoints
        )

    def position(self, app_id: str) -> int | None:
        """The position of `app_id` before the first torn commit; None for none."""
        before = [actions or [] for number, actions in self.commits.items() if number < (self.first_torn or 0)]
        transactions = [action["txn"] for actions in before for action in actions if "txn" in action]
        found = [int(transaction["version"]) for transaction in transactions if transaction["appId"] == app_id]
        if found or self.checkpoint < 0:
            return found[-1] if found else None
        return DeltaTable(str(self.path), version=self.checkpoint).transaction_version(app_id)

    def removed_commits(self) -> list[list[dict[str, Any]] | None]:
        """The actions of each commit to be removed; None for one that can't be read."""
        assert self.first_torn is not None
        return [self.commits.get(number) for number in range(self.first_torn, self.last + 1)]

    def remove_torn_commits(self) -> None:
        """Renames these commits, newest first: if interrupted, the table is as torn as before, or sound."""
        assert self.first_torn is not None
        for number in sorted(self.commits, reverse=True):
            if number >= self.first_torn:
                commit = self._commit(number)
                commit.rename(commit.with_suffix(".json.torn"))
                sync(self.log)
        self.drop_torn_checkpoints()

    def drop_torn_checkpoints(self) -> None:
        """Deletes torn checkpoints, and a pointer that names no whole one: their commits still exist."""
        for checkpoint in self._torn_checkpoints:
            checkpoint.unlink()
            logger.warning("torn_checkpoint_removed", file=str(checkpoint))
        pointer = self.log / "_last_checkpoint"
        if pointer.exists():
            try:
                version = int(json.loads(pointer.read_bytes())["version"])
            except (ValueError, KeyError, TypeError):
                version = None
            if version not in self._checkpoints:
                pointer.unlink()

    def _first_torn(self) -> int | None:
        """A bad file does not count if a later sound commit removed it: it may be unsynced, or deleted. It counts when
        that later commit must be removed, too; so after each finding the commits before it are checked again.
        """
        found: int | None = None
        while (earlier := self._first_torn_before(self.last + 1 if found is None else found)) is not None:
            found = earlier
        if found is None and self.checkpoint < 0 and not self.commits and self._torn_checkpoints:
            return 0
        return found

    def _first_torn_before(self, end: int) -> int | None:
        numbers = range(self.checkpoint + 1, end)
        kept = [action for number in numbers for action in self.commits.get(number) or ()]
        removed = {action["remove"]["path"] for action in kept if "remove" in action}
        for number in numbers:
            actions = self.commits.get(number)
            if not actions or _lacks_lines(actions):
                return number
            adds = [action["add"] for action in actions if "add" in action and action["add"]["path"] not in removed]
            if not all(_is_whole_parquet(self.path / unquote(add["path"]), add["size"]) for add in adds):
                return number
        return None

    def _commit(self, number: int) -> Path:
        return self.log / f"{number:020d}.json"


def _check_log_reaches(lake: LakeLocation, found: _Examined, log: Log) -> None:
    """Raises LakeDamaged unless `log` holds every message that bronze loses with the removed commits."""
    removed = found.removed_commits()
    adds = [json.loads(action["add"]["stats"]) for actions in removed for action in actions or () if "add" in action]
    for partition in log.partitions():
        start, origin = log.bounds(partition)[0], log.origin(partition)
        stored = found.position(f"cryptopulse:{BRONZE.qualified}:log/{partition}")
        offsets = [add["minValues"]["offset"] for add in adds if add["minValues"]["partition"] == partition]
        if stored is not None:
            needed = stored + 1
        elif None in removed:  # bronze's first offset is unknown: the log must hold all
            needed = origin
        else:
            needed = min(offsets, default=start)
        if needed < start:
            raise damaged(
                lake,
                BRONZE,
                f"is damaged at version {found.first_torn}, and the log does not hold its messages any more (it starts "
                f"at offset {start}, not {needed}); nothing was changed.",
            )


def _check_files(lake: LakeLocation, table: Table) -> None:
    """Raises LakeDamaged unless the newest version's commit is there, and all its data files are whole."""
    folder = lake.table_folder(table)
    assert folder is not None
    delta = open_table(lake, table)
    if not (folder / "_delta_log" / f"{delta.version():020d}.json").exists():  # it would open, but accept no commit
        raise damaged(lake, table, f"is damaged: the commit of version {delta.version()} is not in its Delta log.")
    files = delta.get_add_actions(flatten=True)
    for name, size in zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True):
        if not _is_whole_parquet(folder / unquote(name), size):
            raise damaged(lake, table, f"is damaged: its file {name} is not there as it was written.")


def _version(checkpoint: Path) -> int:
    return int(checkpoint.name.split(".")[0])


def _actions(commit: Path) -> list[dict[str, Any]] | None:
    """The lines of a commit; None when it is not whole JSON."""
    try:
        actions = [json.loads(line) for line in commit.read_bytes().splitlines()]
    except ValueError:
        return None
    return actions if all(isinstance(action, dict) and action for action in actions) else None


def _lacks_lines(actions: list[dict[str, Any]]) -> bool:
    """Whether a commit was cut off between two lines. Our commits count their positions, compactions their files, and
    a table's first commit must have a `protocol` and a `metaData` line.
    """
    info = actions[0].get("commitInfo", {})
    counted = {name: sum(name in action for action in actions) for name in ("txn", "add", "remove")}
    if POSITIONS in info:
        return counted["txn"] != int(info[POSITIONS])
    if info.get("operation") == "CREATE TABLE":
        return not all(any(name in action for action in actions) for name in ("protocol", "metaData"))
    if info.get("operation") != "OPTIMIZE":
        return False
    metrics = info.get("operationMetrics", {})
    for names in _FILES_OF_COMPACTION:
        if all(name in metrics for name in names):
            return [counted["add"], counted["remove"]] != [int(metrics[name]) for name in names]
    return False


def _is_whole_parquet(file: Path, size: int | None) -> bool:
    try:
        with file.open("rb") as opened_file:
            length = opened_file.seek(0, os.SEEK_END)
            if length < 12 or (size is not None and length != size):
                return False
            opened_file.seek(-4, os.SEEK_END)
            return opened_file.read(4) == _PARQUET_MAGIC
    except FileNotFoundError:
        return False
