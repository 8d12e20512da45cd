"""One pipeline a lake: an advisory lock that the system lets go when its process dies, however it dies.

It guards one machine. Against pipelines on other machines, which a lake on S3 or Azure can have, tables guard
themselves: who commits second is fenced (`cryptopulse.store.table_writer`).
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
        """Names the lock of `lake`; nothing is taken yet. `is_shared`: with others that share it, as the drivers of
        Spark's steps do; it keeps only those out that want the lake for themselves."""
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
        with suppress(OSError):  # on a full disk the one who is refused is told of an unknown process
            os.ftruncate(self._file, 0)
            os.write(self._file, str(os.getpid()).encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets go."""
        os.close(self._file)
