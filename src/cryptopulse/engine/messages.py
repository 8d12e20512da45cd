"""The first steps: log → bronze → silver and quarantine, and the intervals of ids beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import Commit
from cryptopulse.engine.delta import LOAD, NOTHING_YET, DeltaHandle
from cryptopulse.engine.held import Held
from cryptopulse.engine.rows import constant_time, shaped, stamped
from cryptopulse.engine.session import Session
from cryptopulse.lake.tables import BRONZE, COVERAGE, QUARANTINE, SILVER, Table

_PARSED = "silver.parsed_trades"
_COVERAGE_COMMIT_S = 2.0  # silver's ids since the last commit are read again after a kill: cheap, so seldom is fine
_MARKER_MESSAGES = 50_000  # a position that moved so far without rows is committed: bounds what a restart reads again
_BRONZE_COLUMNS = ", ".join(f'"{name}"' for name in BRONZE.arrow_schema.names)


class MessageSteps:
    """Bronze and what is made of messages. One thread at a time."""

    def __init__(self, handles: Mapping[str, DeltaHandle], session: Session, held: Held, batch_max: int) -> None:
        """`batch_max`: how many messages a step takes in at most when it reads them from bronze."""
        self._bronze, self._coverage = handles[BRONZE.qualified], handles[COVERAGE.qualified]
        self._handles = handles
        self._session = session
        self._held = held
        self._batch_max = batch_max
        self._stored: dict[int, int] = {}
        self._handed: pa.Table | None = None
        self._parsed: tuple[tuple[int, int, int], pa.Table] | None = None
        self._coverage_committed = time.monotonic()
        self.partitions = {0, *self._bronze.read('DISTINCT "partition" AS p')["p"].to_pylist()}

    def stored_to(self, partition: int) -> int:
        """Last offset in bronze: by its `txn`, or by its rows when those outlived it in a power cut."""
        if partition not in self._stored:
            recorded = self._bronze.position(f"log/{partition}")
            where = f'"partition" = {partition} AND "offset" > {recorded}'
            last = self._bronze.read('max("offset") AS last', where)["last"][0].as_py()
            self._stored[partition] = max(recorded, NOTHING_YET if last is None else last)
        return self._stored[partition]

    def stored_messages(self) -> int:
        """How many messages bronze holds."""
        return int(self._bronze.read("count(*) AS n")["n"][0].as_py())

    def store(self, records: pa.Table) -> Commit:
        """Log → bronze; see `cryptopulse.engine.Engine.store`."""
        partition, last = records["partition"][0].as_py(), records["offset"][-1].as_py()
        rows = records.append_column(
            "bronze_ingestion_time", constant_time(time.time_ns() // 1000, records.num_rows)
        ).append_column("received_date", pc.cast(records["received_time"], pa.date32()))
        rows = shaped(rows, BRONZE)
        self._bronze.append(rows, {f"log/{partition}": last})
        self.partitions.add(partition)
        self._stored[partition] = last
        self._handed = rows
        return Commit(BRONZE, rows, rows.num_rows)

    def advance_silver(self) -> Commit | None:
        """Bronze → silver: the trades not held yet."""
        for partition in sorted(self.partitions):
            if (news := self._news(SILVER, partition)) is not None:
                parsed = self._parse(partition, news)
                inputs = {_PARSED: parsed, COVERAGE.qualified: self._held.coverage}
                trades = self._session.derive(SILVER.qualified, inputs)
                skipped = parsed["reason"].null_count - trades.num_rows
                commit, position = self._append(SILVER, partition, news, trades, skipped)
                if commit.rows.num_rows:
                    self._held.add(commit.rows, position)
                return commit
        return None

    def advance_quarantine(self) -> Commit | None:
        """Bronze → quarantine: the messages that were refused."""
        for partition in sorted(self.partitions):
            if (news := self._news(QUARANTINE, partition)) is not None:
                parsed = self._parse(partition, news)
                refused = parsed.filter(pc.is_valid(parsed["reason"]))
                if refused.num_rows:
                    refused = self._session.derive(QUARANTINE.qualified, {_PARSED: refused})
                return self._append(QUARANTINE, partition, news, refused)[0]
        return None

    def advance_coverage(self) -> Commit | None:
        """Writes the intervals of ids every few seconds; in memory they are up to date with each commit of silver."""
        if time.monotonic() - self._coverage_committed < _COVERAGE_COMMIT_S:
            return None
        return self.commit_coverage()

    def commit_coverage(self) -> Commit | None:
        """Writes the intervals of ids now, if they changed."""
        position = self._held.position
        if self._coverage.position("silver") >= position:
            return None
        rows = shaped(stamped(self._held.coverage, position), COVERAGE)
        self._coverage.replace(rows, None, {"silver": position})
        self._coverage_committed = time.monotonic()
        return Commit(COVERAGE, rows, rows.num_rows)

    def _append(
        self, table: Table, partition: int, news: pa.Table, found: pa.Table, skipped: int = 0
    ) -> tuple[Commit, int]:
        """Commits the rows `found` in the messages `news`; returns the commit and its load_timestamp."""
        handle, source, last = self._handles[table.qualified], f"bronze/{partition}", news["offset"][-1].as_py()
        if found.num_rows == 0:
            empty = table.arrow_schema.empty_table()
            if last - handle.recorded(source) > _MARKER_MESSAGES:
                handle.append(empty, {source: last})
            handle.skip_to(source, last)
            return Commit(table, empty, news.num_rows, skipped), handle.position(LOAD)
        load = handle.next_load()
        rows = shaped(stamped(found, load), table)
        handle.append(rows, {source: last, LOAD: load})
        return Commit(table, rows, news.num_rows, skipped), load

    def _news(self, table: Table, partition: int) -> pa.Table | None:
        """Bronze's rows that `table` has not taken in: the batch just stored, or else a stretch read from bronze."""
        position, end = self._handles[table.qualified].position(f"bronze/{partition}"), self.stored_to(partition)
        if position >= end:
            return None
        first = self._first_after(partition, position)
        if first is None:
            return None
        handed = self._handed
        if handed is not None and handed["partition"][0].as_py() == partition and handed["offset"][0].as_py() == first:
            return handed
        within = f'"partition" = {partition} AND "offset" >= {first} AND "offset" < {first + self._batch_max}'
        return self._bronze.read(_BRONZE_COLUMNS, within).sort_by("offset")

    def _first_after(self, partition: int, position: int) -> int | None:
        """Bronze's first offset after `position`: the next one, unless the log began anew in between."""
        handed = self._handed
        if handed is not None and handed["partition"][0].as_py() == partition:
            first = handed["offset"][0].as_py()
            if position == first - 1:
                return int(first)
        where = f'"partition" = {partition} AND "offset" > {position}'
        first = self._bronze.read('min("offset") AS first', where)["first"][0].as_py()
        return None if first is None else int(first)

    def _parse(self, partition: int, messages: pa.Table) -> pa.Table:
        """Bronze rows → the parsed view; remembered, as silver and quarantine both need it."""
        key = (partition, messages["offset"][0].as_py(), messages["offset"][-1].as_py())
        if self._parsed is None or self._parsed[0] != key:
            self._parsed = (key, self._session.derive(_PARSED, {BRONZE.qualified: messages}))
        return self._parsed[1]
