"""Log → bronze, and what of bronze a derived table has not taken in."""

from __future__ import annotations

import time
from collections import deque

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import Commit
from cryptopulse.engine.delta import NOTHING_YET, DeltaHandle, read_table
from cryptopulse.engine.rows import constant_time, shaped
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import BRONZE

_HANDED_MAX = 2  # batches kept in memory after they were stored: the one in work, and the one stored meanwhile
_PAGES_MAX = 500  # of up to 1,000 trades and 150 kB: as much work as half a million messages
_COLUMNS = ", ".join(f'"{name}"' for name in BRONZE.arrow_schema.names)


class Bronze:
    """The table of raw messages. One thread stores; another may ask for news."""

    def __init__(self, lake: LakeLocation, handle: DeltaHandle, batch_max: int) -> None:
        """`batch_max`: how many messages are read from the table at once."""
        self._lake = lake
        self._handle = handle
        self._batch_max = batch_max
        self._handed: deque[pa.Table] = deque(maxlen=_HANDED_MAX)
        self.partitions: set[int] = {0, *handle.read('DISTINCT "partition" AS p')["p"].to_pylist()}
        """The partitions of the log that bronze knows."""
        self._stored = {partition: self._stored_on_disk(partition) for partition in self.partitions}
        self._at_start = dict(self._stored)

    def held_at_start(self, partition: int) -> int:
        """Last offset of `partition` that was in bronze when this process opened it."""
        return self._at_start.get(partition, NOTHING_YET)

    def stored_to(self, partition: int) -> int:
        """Last offset of `partition` that is in bronze."""
        return self._stored.get(partition, NOTHING_YET)

    def messages(self) -> int:
        """How many messages there are."""
        return int(self._handle.read("count(*) AS n")["n"][0].as_py())

    def store(self, records: pa.Table) -> Commit:
        """Appends records of the log; see `cryptopulse.engine.Engine.store`."""
        partition, last = records["partition"][0].as_py(), records["offset"][-1].as_py()
        now = constant_time(time.time_ns() // 1000, records.num_rows)
        day = pc.cast(records["received_time"], pa.date32())
        rows = shaped(records.append_column("bronze_ingestion_time", now).append_column("received_date", day), BRONZE)
        self._handle.append(rows, {f"log/{partition}": last})
        self.partitions |= {partition}
        self._handed.append(rows)
        self._stored[partition] = last
        return Commit(BRONZE, rows, rows.num_rows)

    def after(self, partition: int, position: int) -> pa.Table | None:
        """The messages that follow offset `position`: a batch just stored, or else a stretch read from the table."""
        if position >= self.stored_to(partition):
            return None
        handed = {t["offset"][0].as_py(): t for t in tuple(self._handed) if t["partition"][0].as_py() == partition}
        if position + 1 in handed:
            return handed[position + 1]
        # Not the next batch: this is a restart, or the log began anew with a jump in its offsets.
        within = f'"partition" = {partition} AND "offset" > {position}'
        first = read_table(self._lake, BRONZE, 'min("offset") AS first', within)["first"][0].as_py()
        if first is None:
            return None
        if first in handed:
            return handed[first]
        within = f'"partition" = {partition} AND "offset" >= {first}'
        end = self._end_of_stretch(within, first)
        return read_table(self._lake, BRONZE, _COLUMNS, f'{within} AND "offset" < {end}').sort_by("offset")

    def _end_of_stretch(self, within: str, first: int) -> int:
        """Where a batch that starts at `first` ends: a page of the REST interface weighs like a thousand messages."""
        end = first + self._batch_max
        pages = read_table(self._lake, BRONZE, '"offset"', f"{within} AND \"offset\" < {end} AND source = 'rest'")
        offsets = sorted(pages["offset"].to_pylist())
        return offsets[_PAGES_MAX] if len(offsets) > _PAGES_MAX else end

    def _stored_on_disk(self, partition: int) -> int:
        """By the table's `txn`, or by its rows when those outlived it in a power cut."""
        recorded = self._handle.position(f"log/{partition}")
        where = f'"partition" = {partition} AND "offset" > {recorded}'
        last = self._handle.read('max("offset") AS last', where)["last"][0].as_py()
        return max(recorded, NOTHING_YET if last is None else int(last))
