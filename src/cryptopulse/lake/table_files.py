"""A read-only file system for DuckDB, with the files of a lake's tables.

DuckDB's settings allow a path to be both read and written, or neither. So a statement gets no real path: the names
that it sees exist only in this file system.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import get_ident
from typing import Any, Final

from fsspec import AbstractFileSystem

PROTOCOL: Final = "lake"


class _TableFile(io.FileIO):
    """A file with a position for each thread: DuckDB's threads share an open file, and each seeks before it reads.
    Unbuffered, as they read large pieces.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._at: dict[int, int] = {}  # by thread; a thread of DuckDB's keeps no `threading.local` between calls

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: os.fstat(self.fileno()).st_size}
        self._at[get_ident()] = base[whence] + offset
        return self.tell()

    def tell(self) -> int:
        return self._at.get(get_ident(), 0)

    def read(self, size: int | None = -1, /) -> bytes:
        at = self.tell()
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - at
        found = b""
        while len(found) < size and (more := os.pread(self.fileno(), size - len(found), at + len(found))):
            found += more
        self._at[get_ident()] = at + len(found)
        return found


class TableFiles(AbstractFileSystem):  # type: ignore[misc]
    """Files by name. Of fsspec's operations it supports only reading."""

    protocol = PROTOCOL
    cachable = False  # else fsspec keeps each one for ever

    def __init__(self, paths: Mapping[str, str]) -> None:
        """`paths`: `lake://<name>` → path; entries added later count as well."""
        super().__init__()
        self._paths = paths

    def open(self, path: str, mode: str = "rb", **_options: Any) -> io.FileIO:
        """The file."""
        if mode != "rb":
            raise PermissionError(f"The lake is only read: {path}")
        return _TableFile(self._paths[path])

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        """Name, size and type of a file."""
        return {"name": path, "size": Path(self._paths[path]).stat().st_size, "type": "file"}

    def modified(self, path: str) -> datetime:
        """When a file was written (UTC)."""
        return datetime.fromtimestamp(Path(self._paths[path]).stat().st_mtime, UTC)

    def exists(self, path: str, **_options: Any) -> bool:
        """Whether a file of this name exists."""
        return path in self._paths

    def glob(self, path: str, **_options: Any) -> list[str]:
        """The file of that name; patterns find nothing."""
        return [path] if path in self._paths else []
