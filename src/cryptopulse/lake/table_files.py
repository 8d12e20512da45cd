"""The files of a lake's tables as a file system of DuckDB's own kind, which can open them to read and do nothing else.

DuckDB's settings allow a path to be read and written, or neither. So a statement gets no path at all: the names that it
sees are only of this file system.
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
    """Files by name. Whatever fsspec offers beside reading, this one has not."""

    protocol = PROTOCOL
    cachable = False  # else fsspec keeps each one for ever

    def __init__(self, paths: Mapping[str, str]) -> None:
        """`paths`: where each `lake://<name>` is; what is added to them later is there, too."""
        super().__init__()
        self._paths = paths

    def open(self, path: str, mode: str = "rb", **_options: Any) -> io.FileIO:
        """The file, unbuffered: DuckDB reads a file in large pieces."""
        if mode != "rb":
            raise PermissionError(f"The lake is only read: {path}")
        return io.FileIO(self._paths[path])

    def info(self, path: str, **_options: Any) -> dict[str, Any]:
        """Its size."""
        return {"name": path, "size": Path(self._paths[path]).stat().st_size, "type": "file"}

    def modified(self, path: str) -> datetime:
        """When it was written."""
        return datetime.fromtimestamp(Path(self._paths[path]).stat().st_mtime, UTC)

    def exists(self, path: str, **_options: Any) -> bool:
        """Whether there is such a name."""
        return path in self._paths

    def glob(self, path: str, **_options: Any) -> list[str]:
        """The file of that name; patterns find nothing."""
        return [path] if path in self._paths else []
