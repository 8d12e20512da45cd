"""Bytes on disk: what a trade takes in the tables, and a message in the log."""

from __future__ import annotations

import os
import sqlite3
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
