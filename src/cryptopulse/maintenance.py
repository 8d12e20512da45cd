"""Keeps tables fast and the log short. One owner: the processing, in one thread.

Every commit leaves small files, an entry in the Delta log, and a message stretch in the durable log. Here small files
are merged, the Delta log gets checkpoints and is cut, replaced files are deleted after a while, and the durable log is
trimmed below what bronze has committed and synced (delta-rs itself syncs nothing).
"""

from __future__ import annotations

import math
import time

import structlog
from deltalake import DeltaTable, PostCommitHookProperties
from deltalake.exceptions import CommitFailedError, DeltaError

from cryptopulse.engine.delta import DeltaHandle, writer_properties
from cryptopulse.engine.durability import syncing
from cryptopulse.engine.embedded import EmbeddedEngine
from cryptopulse.errors import CryptoPulseError, Fenced, LogFull, TransientError
from cryptopulse.lake.access import opened, storage
from cryptopulse.lake.tables import BRONZE, TABLES
from cryptopulse.log import Log
from cryptopulse.settings import MaintenanceSettings

_MB = 1 << 20
# Two tiers, so that a trade is not written again with every merge: fresh files into middling ones, often, and those
# into large ones, seldom.
_TIERS = ((1, 4 * _MB), (16, 128 * _MB))
_TRIM_INTERVAL_S = 2.0
# Of the retention; notes on removed files are kept for a quarter longer than it (engine/embedded.py).
_VACUUM_EVERY = 0.1
_NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)

logger = structlog.get_logger()


class Maintenance:
    """Runs what is due. From one thread."""

    def __init__(self, settings: MaintenanceSettings, engine: EmbeddedEngine, log: Log) -> None:
        """Reads nothing yet; each table is looked at when enough commits have gone by."""
        self._engine = engine
        self._log = log
        self._tables = [_TableCare(settings, engine.handles[table.qualified]) for table in TABLES]
        self._trimmed_at = time.monotonic()

    def run_due(self) -> None:
        """Syncs what the tables' commits wrote, does what they ask for, and trims the log below what is safe."""
        stored = {partition: self._engine.stored_to(partition) for partition in self._log.partitions()}
        for care in self._tables:
            care.run_due()
        if time.monotonic() - self._trimmed_at >= _TRIM_INTERVAL_S:
            self._trimmed_at = time.monotonic()
            self._trim_log(stored)

    def trim(self) -> None:
        """Syncs bronze now, and trims the log below what it holds."""
        stored = {partition: self._engine.stored_to(partition) for partition in self._log.partitions()}
        bronze = next(care for care in self._tables if care.table is BRONZE)
        bronze.sync()
        self._trim_log(stored)

    def _trim_log(self, stored: dict[int, int]) -> None:
        """Lets the log forget what bronze had `stored` before it was synced."""
        try:
            for partition, offset in stored.items():
                self._log.trim(partition, offset + 1)
        except (TransientError, LogFull) as error:  # the log is longer until the next time; a full disk needs that
            logger.warning("trim_put_off", error=str(error))


class _TableCare:
    """The maintenance of one table, by the number of its commits."""

    def __init__(self, settings: MaintenanceSettings, handle: DeltaHandle) -> None:
        self.table = handle.table
        self._settings = settings
        self._handle = handle
        self._lake = handle.lake
        self._synced = syncing(handle.lake, handle.table)
        self._checkpointed = self._compacted = handle.version
        self._compactions = 0
        self._vacuumed_at = -math.inf

    def sync(self) -> None:
        """Brings all commits of this process onto the disk."""
        self._synced.up_to(self._handle.version)

    def run_due(self) -> None:
        """Does what the commits so far ask for. What fails is said, and tried again after as many commits.

        Raises Fenced when another pipeline has taken over.
        """
        version = self._handle.version
        self._synced.up_to(version)  # a few files each second: the log's own syncs would wait for many at once
        try:
            with storage(self._lake):
                self._care(version)
        except CommitFailedError as error:
            # The writer replaced rows of files that were being merged: no harm, next time.
            logger.debug("maintenance_put_off", table=self.table.qualified, error=str(error))
        except DeltaError as error:
            logger.warning("maintenance_failed", table=self.table.qualified, error=str(error).splitlines()[0])
        except Fenced:
            raise
        except CryptoPulseError as error:  # the storage's, which the writers will say too if it stays so
            logger.warning("maintenance_failed", table=self.table.qualified, error=str(error))

    def _care(self, version: int) -> None:
        if version - self._compacted >= self._settings.compact_commits:
            self._compacted = version
            self._compact()
        if version - self._checkpointed >= self._settings.checkpoint_commits:
            self._checkpointed = version
            self._cut_log()
            self._vacuum()
            self._checkpoint()

    def _opened(self) -> DeltaTable:
        """The newest version, which must still be ours."""
        delta = opened(self._lake, self.table)
        self._handle.check_owner(delta)
        return delta

    def _compact(self) -> None:
        """Merges small files into middling ones, and those, less often, into large ones."""
        self._compactions += 1
        for every, target_size in _TIERS:
            if self._compactions % every == 0:
                self._opened().optimize.compact(
                    target_size=target_size,
                    max_concurrent_tasks=1,
                    writer_properties=writer_properties(self.table),
                    post_commithook_properties=_NO_HOOKS,
                )

    def _cut_log(self) -> None:
        """Removes old entries of the Delta log behind the last checkpoint.

        The writer is past that one: it has committed since. It may be behind the next, for maintenance commits too, and
        then needs the entries between, however old a clock that was set forward makes them.
        """
        self._opened().cleanup_metadata()

    def _checkpoint(self) -> None:
        """Syncs what a checkpoint will cover, writes it, and syncs it.

        So a checkpoint that is whole covers only what is on disk, and a torn one leaves all commits before it.
        """
        delta = self._opened()
        self._synced.up_to(delta.version())
        delta.create_checkpoint()
        self._synced.checkpoint()

    def _vacuum(self) -> None:
        """Deletes files that a compaction or a replacement left behind, after the retention, some ten times in it.

        It knows them by the notes on removed files in the Delta log (tombstones), which a checkpoint leaves out when
        they are old: the file is then never deleted. So vacuum comes before a checkpoint, also before the first after
        a start, and the notes are kept for longer than the retention and the time between two of its runs.
        """
        hours = self._settings.vacuum_retention_hours
        if time.monotonic() - self._vacuumed_at < hours * 3_600 * _VACUUM_EVERY:
            return
        self._vacuumed_at = time.monotonic()
        # Never `full`: that also deletes files which another writer is about to commit. The retention is below Delta's
        # usual week because ten commits a second leave millions of small files in a week.
        self._opened().vacuum(
            retention_hours=hours,
            dry_run=False,
            enforce_retention_duration=False,
            post_commithook_properties=_NO_HOOKS,
        )
