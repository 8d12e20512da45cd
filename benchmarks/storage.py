"""Bytes on disk: what a trade takes in the tables, a message in the log, and what is written in a minute."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import SILVER, TABLES


@dataclass(frozen=True)
class SchemaStorage:
    """One schema's tables together."""

    live_bytes: int
    """Files of the newest versions: what a reader reads, and what stays once old files are deleted."""
    live_files: int
    all_bytes: int
    """Everything in the folders: Delta logs, and files that were replaced and wait for their deletion."""
    all_files: int


@dataclass(frozen=True)
class Storage:
    """A lake's tables."""

    trades: int
    schemas: dict[str, SchemaStorage]

    def live_per_trade(self, schema: str) -> float:
        """Live bytes of `schema` per stored trade."""
        return self.schemas[schema].live_bytes / max(self.trades, 1)

    def all_per_trade(self, schema: str) -> float:
        """All bytes of `schema` on disk per stored trade."""
        return self.schemas[schema].all_bytes / max(self.trades, 1)


@dataclass(frozen=True)
class LogStorage:
    """An embedded log at one moment."""

    messages: int
    batches: int
    bytes_held: int

    @property
    def per_message(self) -> float:
        """Bytes of a message, compressed, with its share of the batch around it."""
        return self.bytes_held / max(self.messages, 1)


def storage_of(lake: Path) -> Storage:
    """The tables under `lake`, which nobody writes to meanwhile."""
    schemas: dict[str, SchemaStorage] = {}
    trades = 0
    for table in TABLES:
        path = Path(LakeLocation.of(lake).table_url(table))
        live = pa.table(DeltaTable(str(path)).get_add_actions(flatten=True))
        if table is SILVER:
            trades = pc.sum(live["num_records"]).as_py() or 0
        live_bytes, (all_bytes, all_files) = pc.sum(live["size_bytes"]).as_py() or 0, disk_use(path)
        before = schemas.get(table.schema, SchemaStorage(0, 0, 0, 0))
        schemas[table.schema] = SchemaStorage(
            before.live_bytes + live_bytes,
            before.live_files + live.num_rows,
            before.all_bytes + all_bytes,
            before.all_files + all_files,
        )
    return Storage(trades, schemas)


class Growth:
    """What is written under a folder: files that appear, and what files grow by.

    It looks now and then: a file that comes and goes between two looks is not seen, and neither is what is written in
    place.
    """

    def __init__(self, folder: Path) -> None:
        """Counts from now on."""
        self._folder = folder
        self._sizes = self._files()
        self.files = 0
        self.bytes_written = 0

    def look(self) -> None:
        """Counts what is new since the last look."""
        now = self._files()
        for file, size in now.items():
            self.files += file not in self._sizes
            self.bytes_written += max(size - self._sizes.get(file, 0), 0)
        self._sizes = now

    def _files(self) -> dict[tuple[str, int], int]:
        """Size of each file by name and inode: one that takes the place of another is another one."""
        found = {}
        for place, _, names in os.walk(self._folder):
            for name in names:
                path = os.path.join(place, name)  # noqa: PTH118 -- many thousand files
                with suppress(FileNotFoundError):
                    stat = os.stat(path)  # noqa: PTH116
                    found[path, stat.st_ino] = stat.st_size
        return found


def disk_use(folder: Path) -> tuple[int, int]:
    """Bytes that the files under `folder` take on disk (whole blocks, as `du` counts), and how many they are."""
    sizes = [
        os.stat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH116, PTH118 -- many thousand files
        for place, _, names in os.walk(folder)
        for name in names
    ]
    return sum(sizes), len(sizes)


def log_storage(path: Path) -> LogStorage:
    """What the embedded log at `path` holds now; its owner may go on working."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        row = database.execute("SELECT sum(messages), count(*), sum(length(body)) FROM batches").fetchone()
    finally:
        database.close()
    return LogStorage(int(row[0] or 0), int(row[1]), int(row[2] or 0))
