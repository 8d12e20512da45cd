"""Keeps the names of replaced data files until no reader needs the files any more.

Delta keeps such names in its log (tombstones), and every checkpoint writes all of them again: at ten commits a second
an hour of them took 1.6 kB of memory each in delta-rs. So tombstones leave the log after minutes, and the names are
kept here, one per line. Each list covers some minutes, and is read once, when all its files are old enough.

Names lost by a kill or with the disk are found by listing the table's folder once a day.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from cryptopulse.folders import cannot_use, make_folder

_FILES_A_RETENTION = 10
_SWEEP_EVERY_S = 86_400


class ReplacedFiles:
    """The lists of one table, in a folder of its own."""

    def __init__(self, folder: Path, retention_s: float) -> None:
        """Creates `folder`. `retention_s`: how long data files are kept, from the end of the time that a list covers.

        Raises LakeFull on a full disk, ConfigurationError when the folder can't be made.
        """
        self._folder = folder
        self._retention_s = retention_s
        self._swept = folder / "swept"
        try:
            make_folder(folder)
            if not self._swept.exists():
                self._swept.touch()
        except OSError as error:
            raise cannot_use(folder, error) from error

    def note(self, paths: Iterable[str]) -> None:
        """Records files that a commit has just replaced, by their paths in the table. Raises OSError."""
        lines = "".join(f"{path}\n" for path in paths)
        if not lines:
            return
        period_s = self._retention_s / _FILES_A_RETENTION
        with (self._folder / f"{int(time.time() // period_s * period_s)}.txt").open("a", encoding="utf-8") as file:
            file.write(lines)

    def due(self) -> dict[Path, set[str]]:
        """List → data files that may be deleted now: the retention has passed since the end of the list's time."""
        oldest_s = time.time() - self._retention_s * (1 + 1 / _FILES_A_RETENTION)
        return {file: self._read(file) for file in self._files() if int(file.stem) <= oldest_s}

    def all(self) -> set[str]:
        """The names in all lists."""
        return set().union(*map(self._read, self._files()))

    def forget(self, files: Iterable[Path]) -> None:
        """Deletes lists given by `due`. Call it after deleting the files that they name."""
        for file in files:
            file.unlink(missing_ok=True)

    def is_sweep_due(self) -> bool:
        """Whether a day has passed since `swept`, or since this folder was made."""
        return abs(time.time() - self._swept.stat().st_mtime) >= _SWEEP_EVERY_S

    def swept(self) -> None:
        """Records that the table's folder was listed now and its unneeded files were deleted."""
        self._swept.touch()

    def _files(self) -> list[Path]:
        return sorted(file for file in self._folder.glob("*.txt") if file.stem.isdigit())

    @staticmethod
    def _read(file: Path) -> set[str]:
        """Whole names only: a power cut may have cut the last line, or left zeros in its place."""
        lines = file.read_bytes().decode("utf-8", errors="replace").splitlines()
        return {line for line in lines if line.endswith(".parquet") and line.isprintable()}
