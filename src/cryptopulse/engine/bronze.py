"""Log → bronze, and the messages that a derived table has not consumed yet."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import StepResult
from cryptopulse.engine.rows import constant_time, shaped
from cryptopulse.lake.reading import quoted
from cryptopulse.lake.tables import BRONZE
from cryptopulse.store.table_writer import NOTHING_YET, TableWriter

_RECENT_MAX = 2  # stored batches kept in memory: the one being processed, and the one stored meanwhile
_PAGES_MAX = 500  # each up to 1,000 trades and 150 kB: together as much work as half a million messages
_COLUMNS = quoted(BRONZE.arrow_schema.names)


class Bronze:
    """The table of raw messages. One thread stores; another may read what is new.

    Readers get batches as they were stored, because parsed batches are cached by their first and last offset. A
    `TableTail` works by rows and can't do that.
    """

    def __init__(self, table: TableWriter, batch_max: int) -> None:
        """`batch_max`: how many messages are read from the table at once."""
        self._table = table
        self._batch_max = batch_max
        self._recent: deque[pa.Table] = deque(maxlen=_RECENT_MAX)
        self._read_last: pa.Table | None = None
        """The part of the table that was read last."""
        self.partitions: set[int] = {0, *table.read('DISTINCT "partition" AS p')["p"].to_pylist()}
        """Partition 0, and the partitions of the log with messages in bronze."""
        self._stored: dict[int, int] = {}
        for partition in self.partitions:
            # From the table's `txn`, or from its rows if they survived a power cut that the `txn` did not.
            recorded = table.position(f"log/{partition}")
            where = f'"partition" = {partition} AND "offset" > {recorded}'
            last = table.read('max("offset") AS last', where)["last"][0].as_py()
            self._stored[partition] = max(recorded, NOTHING_YET if last is None else int(last))
        self._at_start = dict(self._stored)
        self._first: dict[int, int] = {}
        """First offset of each partition that was empty when this process opened the table."""

    def held_at_start(self, partition: int) -> int:
        """Last offset of `partition` that was in bronze when this process opened it; -1 for none."""
        return self._at_start.get(partition, NOTHING_YET)

    def stored_to(self, partition: int) -> int:
        """Last offset of `partition` that is in bronze, or was until retention let it go; -1 for none."""
        if partition not in self._stored:
            self._stored[partition] = self._table.position(f"log/{partition}")
        return self._stored[partition]

    def messages(self) -> int:
        """How many messages bronze holds."""
        return self._table.rows()

    def store(self, records: pa.Table, positions: Mapping[str, int]) -> StepResult:
        """Appends `records` of the log (RECORD_SCHEMA, one partition, in order), with further `positions`."""
        partition, last = records["partition"][0].as_py(), records["offset"][-1].as_py()
        now = constant_time(time.time_ns() // 1000, records.num_rows)
        day = pc.cast(records["received_time"], pa.date32())
        rows = shaped(records.append_column("bronze_ingestion_time", now).append_column("received_date", day), BRONZE)
        self._table.append(rows, {f"log/{partition}": last, **positions})
        if self.stored_to(partition) == NOTHING_YET:
            self._first[partition] = records["offset"][0].as_py()
        self.partitions |= {partition}
        self._recent.append(rows)
        self._stored[partition] = last
        return StepResult(BRONZE, rows, rows.num_rows)

    def after(self, partition: int, position: int) -> pa.Table | None:
        """The messages after offset `position`: a batch just stored, or a part of the table; None if there are none."""
        if position >= self.stored_to(partition):
            return None
        position = max(position, self._first.get(partition, 0) - 1)
        handed = {t["offset"][0].as_py(): t for t in tuple(self._recent) if t["partition"][0].as_py() == partition}
        if position + 1 in handed:
            self._read_last = None
            return handed[position + 1]
        # Not a batch in memory: after a restart, or the log was recreated with a jump in its offsets.
        read = self._read_last
        if read is not None and (read["partition"][0].as_py(), read["offset"][0].as_py()) == (partition, position + 1):
            return read  # several tables are at the same position then
        found = self._read(partition, position + 1)
        if found.num_rows == 0:
            within = f'"partition" = {partition} AND "offset" > {position}'
            first = self._table.read('min("offset") AS first', within)["first"][0].as_py()
            if first is None:
                return None
            if first in handed:
                return handed[first]
            found = self._read(partition, first)
        self._read_last = found
        return found

    def _read(self, partition: int, first: int) -> pa.Table:
        """The messages from offset `first` on, at most one batch and `_PAGES_MAX` pages of the REST interface. A page
        takes as much work as a thousand messages.
        """
        end = first + self._batch_max
        within = f'"partition" = {partition} AND "offset" >= {first}'
        pages = sorted(
            self._table.read('"offset"', f"{within} AND \"offset\" < {end} AND source = 'rest'")["offset"].to_pylist()
        )
        end = pages[_PAGES_MAX] if len(pages) > _PAGES_MAX else end
        return self._table.read(_COLUMNS, f'{within} AND "offset" < {end}').sort_by("offset")
