"""What each target has been told, on disk: one small SQLite file beside the log, written with every message.

A message is written down after the target has accepted it, and synced, so that neither a kill nor a power cut forgets
it. Targets are known by a digest of their address, never by the address.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from cryptopulse.errors import ConfigurationError, LakeBusy
from cryptopulse.serve.notify.episodes import Told
from cryptopulse.serve.notify.outbox import forgotten_before
from cryptopulse.settings_notify import NotifyTarget

_log = structlog.get_logger()

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS targets (target TEXT PRIMARY KEY, since_us INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS told (
    target TEXT NOT NULL, alert_id TEXT NOT NULL, severity INTEGER NOT NULL, is_closed INTEGER NOT NULL,
    last_trigger_us INTEGER NOT NULL, PRIMARY KEY (target, alert_id)
) WITHOUT ROWID;
"""


class Ledger:
    """The file `<state_dir>/notify.db`, for one process at a time; from any of its threads."""

    def __init__(self, state_dir: Path) -> None:
        """Opens the file, or begins it. A damaged one is put aside, aloud: episodes of the last minutes may then be
        told again, which is better than to tell nothing.

        Raises LakeBusy when another process has it, ConfigurationError when it can't be written.
        """
        self._path = state_dir / "notify.db"
        self._lock = threading.Lock()
        self._unwritten: dict[tuple[str, str], Told] = {}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch(0o600)
            try:
                self._db = self._opened()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._put_aside(str(error))
                self._db = self._opened()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise LakeBusy(f"Another notifier has {self._path}. Stop it first.") from error
            raise ConfigurationError(f"Can't use {self._path}: {error}.") from error
        except OSError as error:
            raise ConfigurationError(f"Can't write {self._path}: {error.strerror}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def since_us(self, target: str, first_us: int) -> int:
        """From when on episodes are news to `target` (µs UTC): the `first_us` that was given the first time."""
        with self._lock, self._db:
            self._db.execute("INSERT OR IGNORE INTO targets VALUES (?, ?)", (target, first_us))
            found = self._db.execute("SELECT since_us FROM targets WHERE target = ?", (target,)).fetchone()
        return int(found[0])

    def told(self, target: str) -> dict[str, Told]:
        """What `target` has been told, by alert_id."""
        query = "SELECT alert_id, severity, is_closed, last_trigger_us FROM told WHERE target = ?"
        with self._lock:
            rows = self._db.execute(query, (target,)).fetchall()
        return {alert_id: Told(rank, bool(closed), last_us) for alert_id, rank, closed, last_us in rows}

    def record(self, target: str, told: Mapping[str, Told]) -> None:
        """Returns when it is on disk that `target` was told so.

        A disk that takes nothing is no reason to stop telling: it is said, and tried again with the next record. Until
        then a restart would repeat these messages.
        """
        if not told:
            return
        with self._lock:
            self._unwritten |= {(target, alert_id): known for alert_id, known in told.items()}
            rows = [(*key, t.rank, t.is_closed, t.last_trigger_us) for key, t in self._unwritten.items()]
            try:
                with self._db:
                    self._db.executemany("INSERT OR REPLACE INTO told VALUES (?, ?, ?, ?, ?)", rows)
            except sqlite3.Error as error:
                _log.warning("notifications_not_recorded", count=len(rows), error=str(error))
                return
            self._unwritten.clear()

    def forget(self, now_us: int, age_max_us: int) -> None:
        """Drops what can't be news any more; see `Outbox.forget`."""
        query = "DELETE FROM told WHERE last_trigger_us < CASE WHEN is_closed THEN ? ELSE ? END"
        try:
            with self._lock, self._db:
                self._db.execute(query, forgotten_before(now_us, age_max_us))
        except sqlite3.Error as error:  # the file is a little larger until the next time
            _log.warning("ledger_not_trimmed", error=str(error))

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._db.close()

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=1, check_same_thread=False)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.executescript(_SCHEMA)
            db.execute("SELECT count(*) FROM told").fetchone()
            db.execute("BEGIN EXCLUSIVE")  # the lock stays
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _put_aside(self, why: str) -> None:
        aside = self._path.with_name(f"notify.db.damaged-{int(time.time())}")
        self._path.replace(aside)
        for name in ("notify.db-wal", "notify.db-shm"):
            self._path.with_name(name).unlink(missing_ok=True)
        _log.warning("ledger_put_aside", file=str(aside), error=why)


def ledger_names(targets: Sequence[NotifyTarget]) -> list[str]:
    """Under which names the ledger knows `targets`: digests of their addresses, numbered where several have the same,
    so that an entry stays with its address when the list changes."""
    names: list[str] = []
    for target in targets:
        digest = hashlib.sha256(target.url.get_secret_value().encode()).hexdigest()[:16]
        names.append(f"{digest}#{sum(name.startswith(digest) for name in names)}")
    return names
