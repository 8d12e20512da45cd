"""Keeps tables fast and the log short. Only the processing runs it, in one thread.

Every commit leaves small files, an entry in the Delta log, and messages in the durable log. Maintenance merges small
files (through the writer, which knows them), writes checkpoints and deletes old entries of the Delta log, deletes
replaced files after a while, and trims the durable log below what bronze has committed and synced (nothing else syncs).
The number of commits decides what is due, so an idle table costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import structlog
from deltalake.exceptions import DeltaError
from obstore.exceptions import BaseError

from cryptopulse.errors import CryptoPulseError, Fenced, LogFull, TransientError
from cryptopulse.lake.storage import open_table, storage
from cryptopulse.lake.tables import BRONZE, TABLES
from cryptopulse.log import Log
from cryptopulse.settings import MaintenanceSettings
from cryptopulse.store.compaction import merges
from cryptopulse.store.durability import syncing
from cryptopulse.store.replaced_files import ReplacedFiles
from cryptopulse.store.table_writer import TableWriter

_TRIM_INTERVAL_S = 2.0
_SWEEP_AGE_HOURS = 24  # of a file that no version names: another writer may still commit a younger one
# A checkpoint is always written as a whole: each commit pays for this many of its actions, some 2 µs each.
_ACTIONS_A_COMMIT = 50

logger = structlog.get_logger()


class Engine(Protocol):
    """The engine whose tables are maintained."""

    @property
    def tables(self) -> Mapping[str, TableWriter]:
        """All tables by qualified name."""

    def stored_to(self, partition: int) -> int:
        """Last offset of a log partition that bronze holds."""


class Maintenance:
    """Runs the maintenance that is due. For one thread."""

    def __init__(self, settings: MaintenanceSettings, state_dir: Path, engine: Engine, log: Log) -> None:
        """Reads nothing yet; a table is read when enough commits were made. The names of replaced files are kept in
        `state_dir`.
        """
        self._engine = engine
        self._log = log
        self._tables = [
            _TableMaintenance(settings, state_dir / "replaced" / table.qualified, engine.tables[table.qualified])
            for table in TABLES
        ]
        self._trimmed_at = time.monotonic()

    def run_due(self) -> None:
        """Syncs bronze, maintains the tables that are due, and trims the log below what was synced."""
        stored = {partition: self._engine.stored_to(partition) for partition in self._log.partitions()}
        for care in self._tables:
            care.run_due()
        if time.monotonic() - self._trimmed_at >= _TRIM_INTERVAL_S:
            self._trimmed_at = time.monotonic()
            self._trim_log(stored)

    def trim(self) -> None:
        """Syncs bronze now, and trims the log below what bronze holds."""
        stored = {partition: self._engine.stored_to(partition) for partition in self._log.partitions()}
        bronze = next(care for care in self._tables if care.table is BRONZE)
        bronze.sync()
        self._trim_log(stored)

    def close(self) -> None:
        """Records the files that the last commits replaced."""
        for care in self._tables:
            care.note_replaced()

    def _trim_log(self, stored: dict[int, int]) -> None:
        """Trims the log to what bronze had `stored` (partition → last offset) before it was synced."""
        try:
            for partition, offset in stored.items():
                self._log.trim(partition, offset + 1)
        except (TransientError, LogFull) as error:  # tried again next time: a trim relieves a full disk
            logger.warning("log_trim_deferred", error=str(error))


class _TableMaintenance:
    """The maintenance of one table, by the number of its commits."""

    def __init__(self, settings: MaintenanceSettings, notes: Path, writer: TableWriter) -> None:
        self.table = writer.table
        self._settings = settings
        self._writer = writer
        self._lake = writer.lake
        self._synced = syncing(writer.lake, writer.table)
        self._checkpointed = self._compacted = writer.version
        self._checkpoint_commits = settings.checkpoint_commits
        self._replaced = ReplacedFiles(notes, settings.vacuum_retention_hours * 3_600)
        self._unnoted: list[str] = []

    def sync(self) -> None:
        """Syncs all commits of this process."""
        self._synced.up_to(self._writer.version)

    def run_due(self) -> None:
        """Compacts and checkpoints when enough commits were made. A failure is logged; the next try is as many later.

        Raises Fenced when another pipeline has taken over.
        """
        if self.table is BRONZE:  # the log is trimmed below it; few files at a time, as the log's own syncs wait
            self.sync()
        self.note_replaced()
        version = self._writer.version
        try:
            with storage(self._lake):
                if version - self._compacted >= self._settings.compact_commits:
                    self._compacted = version
                    # Files of another writer may lack bounds; a file made of them would, too (`bounds_of`).
                    files = [file for file in self._writer.files() if file.bounds.keys() >= set(self.table.stats)]
                    for group in merges(files, self._settings.compact_commits, self._writer.grown()):
                        self._writer.merge(group)
                if version - self._checkpointed >= self._checkpoint_commits:
                    self._checkpointed = version
                    self._checkpoint()
        except (DeltaError, BaseError, OSError) as error:
            logger.warning("maintenance_failed", table=self.table.qualified, error=str(error).partition("\n")[0])
        except Fenced:
            raise
        except CryptoPulseError as error:  # of the storage; if it lasts, the writers raise it, too
            logger.warning("maintenance_failed", table=self.table.qualified, error=str(error))

    def note_replaced(self) -> None:
        """Records the files that commits have replaced since the last call."""
        self._unnoted += self._writer.replaced()
        try:
            self._replaced.note(self._unnoted)
            self._unnoted = []
        except OSError as error:  # a full disk, which the writers report; the daily sweep finds files never recorded
            logger.warning("replaced_files_not_noted", table=self.table.qualified, error=str(error))

    def _checkpoint(self) -> None:
        """Writes a checkpoint, then deletes what is no longer needed: replaced files and entries of the Delta log.

        All that it covers is synced first, and the checkpoint itself before anything is deleted. So after a power cut
        a whole checkpoint covers only what is on disk, and with a torn one all commits and their files still exist.
        """
        delta = open_table(self._lake, self.table)
        self._writer.check_owner(delta)
        live = {unquote(path) for path in delta.get_add_actions(flatten=True)["path"].to_pylist()}
        self._synced.snapshot(delta.version(), live)
        delta.create_checkpoint()
        self._synced.checkpoint()
        self._checkpoint_commits = max(
            self._settings.checkpoint_commits, self._writer.checkpoint_size() // _ACTIONS_A_COMMIT
        )
        due = self._replaced.due()
        # A power cut or a restored older version may have made some of them live again.
        self._writer.delete(sorted(set().union(*due.values()) - live))
        self._replaced.forget(due)
        if self._replaced.is_sweep_due():
            # delta-rs only lists the files: if it deleted them, it would make two commits.
            hours = max(self._settings.vacuum_retention_hours, _SWEEP_AGE_HOURS)
            found = delta.vacuum(retention_hours=hours, dry_run=True, enforce_retention_duration=False, full=True)
            self._writer.delete(sorted(set(found) - live - self._replaced.all()))
            self._replaced.swept()
        delta.cleanup_metadata()
