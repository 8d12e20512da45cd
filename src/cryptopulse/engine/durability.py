"""Getting a local Delta table through a power cut: what is synced, and how a torn end is repaired.

delta-rs writes local files without fsync, so after a power cut the newest commits can be torn in every way: a commit
file that is empty, zero-filled or cut short, a Parquet file that is missing, short or zero-filled, an empty
checkpoint. Nothing is lost by that, because the log is trimmed only below what was synced here, and silver and gold
are derived. What is left is to make the table open again: `repair_table` takes the torn commits off its end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import structlog
from deltalake import DeltaTable

from cryptopulse.errors import ConfigurationError, LakeDamaged
from cryptopulse.lake.tables import BRONZE, TABLES, Table

_PARQUET_MAGIC = b"PAR1"

POSITIONS = "cryptopulse.positions"
"""In the first line of each commit of ours: how many positions (`txn`, its last lines) it ends with."""

logger = structlog.get_logger()


class Synced:
    """Syncs what a table's commits wrote, each once."""

    def __init__(self, path: Path) -> None:
        """Nothing of the table at `path` counts as synced yet, but all of it is when first asked."""
        self._path = path
        self._log = path / "_delta_log"
        self._version = -1

    def up_to(self, version: int) -> None:
        """Returns when every file of the commits up to `version` is on disk, with its name."""
        folders = {self._log}
        for at in range(self._oldest_unsynced(version), version + 1):
            commit = self._log / f"{at:020d}.json"
            for name in _added(commit):
                file = self._path / name
                folders.add(file.parent)
                _sync(file)
            _sync(commit)
        for folder in folders:
            _sync(folder)
        self._version = max(self._version, version)

    def checkpoint(self) -> None:
        """Returns when the newest checkpoint and the pointer to it are on disk."""
        pointer = self._log / "_last_checkpoint"
        version = json.loads(pointer.read_bytes())["version"]
        for file in (self._log / f"{version:020d}.checkpoint.parquet", pointer, self._log):
            _sync(file)

    def _oldest_unsynced(self, version: int) -> int:
        if self._version >= 0:
            return self._version + 1
        commits = [number for number in _commit_numbers(self._log) if number <= version]
        return min(commits, default=version + 1)


def check_file_system(folder: Path) -> None:
    """Raises ConfigurationError where two writers could both believe that their commit won.

    delta-rs commits to a local folder by a hard link, which fails when the name is taken. FUSE and blobfuse mounts
    have none, and the rename used in its place overwrites.
    """
    probe, link = folder / f".probe-{os.getpid()}", folder / f".probe-{os.getpid()}-link"
    try:
        probe.touch()
        os.link(probe, link)
    except OSError as error:
        raise ConfigurationError(
            f"The file system of {folder} can't make hard links ({error.strerror}), so commits would not be safe there "
            "(a FUSE or blobfuse mount?). Use a folder on a local disk."
        ) from error
    finally:
        probe.unlink(missing_ok=True)
        link.unlink(missing_ok=True)


def repair_lake(lake: Path, log_starts: Mapping[int, int]) -> None:
    """Repairs every table of `lake` that exists; see `repair_table`.

    `log_starts`: by partition the first offset that the log still holds. Bronze is not repaired when that would take
    off messages which the log has forgotten.
    """
    for table in TABLES:
        path = lake / table.schema / table.name
        if (path / "_delta_log").is_dir():
            repair_table(path, table, log_starts if table is BRONZE else {})


def repair_table(path: Path, table: Table, log_starts: Mapping[int, int]) -> None:
    """Takes torn commits off the end of the table at `path`, so that it opens at its last sound version.

    The files taken off are kept beside the log with the ending `.torn`. A table that was only just created, and holds
    nothing yet, is made anew. Raises LakeDamaged when what is torn is not at the end: then only a rebuild, or a copy,
    helps.
    """
    log = path / "_delta_log"
    _drop_torn_checkpoints(log)
    numbers = _commit_numbers(log)
    base = _newest_checkpoint(log)
    commits = {number: _actions(log / f"{number:020d}.json") for number in numbers}
    removed = {a["remove"]["path"] for actions in commits.values() for a in actions or () if "remove" in a}
    torn = [n for n, actions in commits.items() if not actions or not _is_sound(path, actions, removed, old=n <= base)]
    if not torn:
        return
    first = min(torn)
    if base >= first or (base < 0 and first == 0 and numbers != [0]):
        raise LakeDamaged(
            f"Table {table.qualified} is damaged at version {first}, which later versions build on. "
            "If bronze is sound, delete the table's folder and run `cryptopulse rebuild`; otherwise restore a copy."
        )
    if log_starts and first > 0:
        taken_off = [action for number in numbers if number >= first for action in commits[number] or ()]
        _check_log_reaches(path, table, first - 1, taken_off, log_starts)
    for number in numbers:
        if number >= first:
            commit = log / f"{number:020d}.json"
            commit.rename(commit.with_suffix(".json.torn"))
    _sync(log)
    logger.warning("torn_commits_taken_off", table=table.qualified, first=first, last=numbers[-1])


def _drop_torn_checkpoints(log: Path) -> None:
    """Removes checkpoints that are no whole Parquet file, and a pointer to one: the commits before them still stand."""
    for checkpoint in log.glob("*.checkpoint.parquet"):
        if not _is_whole_parquet(checkpoint, None):
            checkpoint.unlink()
            logger.warning("torn_checkpoint_removed", file=str(checkpoint))
    pointer = log / "_last_checkpoint"
    if pointer.exists():
        try:
            version = json.loads(pointer.read_bytes())["version"]
        except (ValueError, KeyError, TypeError):
            version = None
        if version is None or not (log / f"{version:020d}.checkpoint.parquet").exists():
            pointer.unlink()


def _check_log_reaches(
    path: Path, table: Table, version: int, taken_off: list[dict[str, Any]], log_starts: Mapping[int, int]
) -> None:
    """Raises LakeDamaged unless the log holds what came after `version` of bronze: the actions `taken_off`."""
    delta = DeltaTable(str(path), version=version)
    stats = [json.loads(action["add"]["stats"])["minValues"] for action in taken_off if "add" in action]
    for partition, start in log_starts.items():
        stored = delta.transaction_version(f"cryptopulse:{table.qualified}:log/{partition}")
        offsets = [values["offset"] for values in stats if values["partition"] == partition]
        needed = min(offsets, default=start) if stored is None else stored + 1
        if needed < start:
            raise LakeDamaged(
                f"Table {table.qualified} is damaged after version {version}, and the log no longer holds its "
                f"messages: it starts at offset {start}, not {needed}. Nothing was changed. Restore a copy of {path}, "
                "or move that folder away to go on without them."
            )


def _actions(commit: Path) -> list[dict[str, Any]] | None:
    """The lines of a commit; None when it is not whole JSON."""
    try:
        actions = [json.loads(line) for line in commit.read_bytes().splitlines()]
    except ValueError:
        return None
    return actions if all(isinstance(action, dict) and action for action in actions) else None


def _is_sound(path: Path, actions: list[dict[str, Any]], removed: set[str], *, old: bool) -> bool:
    """Whether a commit is complete and every file that it added is there, whole.

    A file may be gone when a later commit `removed` it, or when the commit is `old` (a checkpoint covers it): it was
    compacted and vacuumed.
    """
    if _lacks_lines(actions):
        return False
    adds = [action["add"] for action in actions if "add" in action]
    return all(
        _is_whole_parquet(path / unquote(add["path"]), add["size"], gone=old or add["path"] in removed) for add in adds
    )


def _lacks_lines(actions: list[dict[str, Any]]) -> bool:
    """Whether a commit was cut off between two lines. Ours end with their positions, a compaction counts its files."""
    info = actions[0].get("commitInfo", {})
    counted = {name: sum(name in action for action in actions) for name in ("txn", "add", "remove")}
    if POSITIONS in info:
        return counted["txn"] != int(info[POSITIONS])
    if info.get("operation") != "OPTIMIZE":
        return False
    metrics = info["operationMetrics"]
    return (counted["add"], counted["remove"]) != (metrics["numFilesAdded"], metrics["numFilesRemoved"])


def _is_whole_parquet(file: Path, size: int | None, *, gone: bool = False) -> bool:
    try:
        with file.open("rb") as opened:
            length = opened.seek(0, os.SEEK_END)
            if length < 12 or (size is not None and length != size):
                return False
            opened.seek(-4, os.SEEK_END)
            return opened.read(4) == _PARQUET_MAGIC
    except FileNotFoundError:
        return gone


def _commit_numbers(log: Path) -> list[int]:
    return sorted(int(file.stem) for file in log.glob("*.json") if file.stem.isdigit())


def _newest_checkpoint(log: Path) -> int:
    return max((int(file.name.split(".")[0]) for file in log.glob("*.checkpoint.parquet")), default=-1)


def _added(commit: Path) -> Iterator[str]:
    try:
        lines = commit.read_bytes().splitlines()
    except FileNotFoundError:  # cut off behind a checkpoint, which was synced before
        return
    for line in lines:
        action = json.loads(line)
        if "add" in action:
            yield unquote(action["add"]["path"])


def _sync(file: Path) -> None:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:  # replaced by a compaction meanwhile, whose own files are synced in their turn
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
