"""Bronze → silver, quarantine and proofs of absent ids, and the intervals of ids beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import Commit
from cryptopulse.engine.bronze import Bronze
from cryptopulse.engine.delta import LOAD, DeltaHandle
from cryptopulse.engine.held import Held
from cryptopulse.engine.rows import shaped, stamped
from cryptopulse.engine.session import Session
from cryptopulse.lake.tables import ABSENT, BRONZE, COVERAGE, QUARANTINE, SILVER, Table

_PARSED = "silver.parsed_trades"
_COVERAGE_HOLD_S = 2.0  # silver's ids since the last commit are read again after a kill: cheap, so seldom is fine
_MARKER_MESSAGES = 50_000  # a position that moved so far without rows is committed: bounds what a restart reads again


class MessageSteps:
    """What is made of messages. One thread at a time."""

    def __init__(self, handles: Mapping[str, DeltaHandle], session: Session, bronze: Bronze, held: Held) -> None:
        """`session` belongs to this lane alone."""
        self._ahead = session.sibling()
        self._coverage = handles[COVERAGE.qualified]
        self._handles = handles
        self._session = session
        self._bronze = bronze
        self._held = held
        self._parsed: dict[tuple[int, int, int], pa.Table] = {}
        self._coverage_committed = time.monotonic()
        self.hold_s = _COVERAGE_HOLD_S
        """How long the intervals may wait to be written."""

    def advance_silver(self) -> Commit | None:
        """Bronze → silver: the trades not held yet."""
        for partition in sorted(self._bronze.partitions):
            if (news := self._news(SILVER, partition)) is not None:
                parsed = self._parse(news)
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
        for partition in sorted(self._bronze.partitions):
            if (news := self._news(QUARANTINE, partition)) is not None:
                parsed = self._parse(news)
                refused = parsed.filter(pc.is_valid(parsed["reason"]))
                if refused.num_rows:
                    inputs = {_PARSED: refused, BRONZE.qualified: news}
                    refused = self._not_held(QUARANTINE, self._session.derive(QUARANTINE.qualified, inputs))
                return self._append(QUARANTINE, partition, news, refused)[0]
        return None

    def advance_absent(self) -> Commit | None:
        """Bronze → the ids that pages of REST prove absent. Batches without a page are passed over at a glance."""
        for partition in sorted(self._bronze.partitions):
            if (news := self._news(ABSENT, partition)) is not None:
                proofs = ABSENT.arrow_schema.empty_table()
                if pc.index(news["source"], "rest").as_py() >= 0:
                    parsed = self._parse(news)
                    pages = parsed.filter(pc.equal(parsed["source"], "rest"))
                    proofs = self._not_held(ABSENT, self._session.derive(ABSENT.qualified, {_PARSED: pages}))
                commit, _ = self._append(ABSENT, partition, news, proofs)
                if commit.rows.num_rows:
                    self._held.add_absent(commit.rows)
                return commit
        return None

    def advance_coverage(self) -> Commit | None:
        """Writes the intervals of ids every few seconds; in memory they are up to date with each commit of silver."""
        position = self._held.position
        if self._coverage.position("silver") >= position:
            return None
        if time.monotonic() - self._coverage_committed < self.hold_s:
            return None
        rows = shaped(stamped(self._held.coverage, position), COVERAGE)
        self._coverage.replace(rows, None, {"silver": position})
        self._coverage_committed = time.monotonic()
        return Commit(COVERAGE, rows, rows.num_rows)

    def _not_held(self, table: Table, found: pa.Table) -> pa.Table:
        """`found`, of one partition, without rows that the table holds. The other engine may have stored them, under
        positions of its own; but only those of messages that were in bronze at the start.
        """
        if found.num_rows == 0:
            return found
        partition, ends = found["partition"][0].as_py(), pc.min_max(found["offset"]).as_py()
        if ends["min"] > self._bronze.held_at_start(partition):
            return found
        columns = ", ".join(f'"{name}"' for name in table.key)
        where = f'"partition" = {partition} AND "offset" BETWEEN {ends["min"]} AND {ends["max"]}'
        held = self._handles[table.qualified].read(columns, where)
        known = set(zip(*(column.to_pylist() for column in held.columns), strict=True))
        keys = zip(*(found[name].to_pylist() for name in table.key), strict=True)
        return found.filter(pa.array([key not in known for key in keys], pa.bool_()))

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
        return self._bronze.after(partition, self._handles[table.qualified].position(f"bronze/{partition}"))

    def anticipate(self, messages: pa.Table) -> None:
        """Parses `messages` before their turn. The one method that another thread may call meanwhile."""
        self._remember(_key(messages), self._ahead.derive(_PARSED, {BRONZE.qualified: messages}))

    def _parse(self, messages: pa.Table) -> pa.Table:
        """Messages → the parsed view; remembered, as silver and quarantine both need it."""
        key = _key(messages)
        parsed = self._parsed.get(key)
        if parsed is None:
            parsed = self._session.derive(_PARSED, {BRONZE.qualified: messages})
            self._remember(key, parsed)
        return parsed

    def _remember(self, key: tuple[int, int, int], parsed: pa.Table) -> None:
        newest = list(self._parsed.items())[-1:]  # the batch in work; this one is the next
        self._parsed = {**dict(newest), key: parsed}


def _key(messages: pa.Table) -> tuple[int, int, int]:
    """Partition, first and last offset."""
    offsets = messages["offset"]
    return messages["partition"][0].as_py(), offsets[0].as_py(), offsets[-1].as_py()
