"""A read-only file system for DuckDB, with the files of a lake's tables.

DuckDB's settings allow a path to be both read and written, or neither. So a statement gets no real path: the names
that it sees exist only in this file system.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from fsspec import AbstractFileSystem

PROTOCOL: Final = "lake"


class TableFiles(AbstractFileSystem):  # type: ignore[misc]
    """Files by name. Of fsspec's operations it supports only reading."""

    protocol = PROTOCOL
    cachable = False  # else fsspec keeps each one for ever

    def __init__(self, paths: Mapping[str, str]) -> None:
        """`paths`: `lake://<name>` → path; entries added later count as well."""
        super().__init__()
        self._paths = paths

    def open(self, path: str, mode: str = "rb", **_options: Any) -> io.FileIO:
        """The file, unbuffered: DuckDB reads a file in large pieces."""
        if mode != "rb":
            raise PermissionError(f"The lake is only read: {path}")
        return io.FileIO(self._paths[path])

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
