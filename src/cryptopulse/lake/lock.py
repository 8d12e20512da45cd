"""One pipeline per lake: an advisory lock that the system releases when its process dies, however it dies.

It works on one machine. Pipelines on other machines, possible with a lake on S3 or Azure, are excluded by the fencing
of tables (`cryptopulse.store.table_writer`).
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from cryptopulse.errors import LakeBusy
from cryptopulse.folders import cannot_use


class LakeLock:
    """Holds `<state_dir>/pipeline.lock` while in use as a context manager."""

    def __init__(self, state_dir: Path, lake: str, *, is_shared: bool = False) -> None:
        """The lock of `lake`, not taken yet. `is_shared`: shared with other shared locks, as the drivers of Spark's
        steps do; it excludes only exclusive ones."""
        self._lake = lake
        self._how = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        self._path = state_dir / "pipeline.lock"

    def __enter__(self) -> LakeLock:
        """Takes the lock. Raises LakeBusy, naming the process that holds it; ConfigurationError and LakeFull."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise cannot_use(self._path.parent, error) from error
        try:
            fcntl.flock(self._file, self._how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._file, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise LakeBusy(
                f"Another pipeline (process {holder}) works on the lake {self._lake}. "
                "Stop it first, or use another --lake."
            ) from error
        with suppress(OSError):  # on a full disk the refused process reports an unknown holder
            os.ftruncate(self._file, 0)
            os.write(self._file, str(os.getpid()).encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases the lock."""
        os.close(self._file)
