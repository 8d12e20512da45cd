"""Bronze → silver, quarantine, proofs of absent ids, and the intervals of ids held."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from cryptopulse.engine import StepResult
from cryptopulse.engine.bronze import Bronze
from cryptopulse.engine.coverage import INTERVALS_SCHEMA, Coverage
from cryptopulse.engine.parse import absent_ids, parse, refused_messages, with_other_content
from cryptopulse.engine.rows import shaped, stamped
from cryptopulse.lake.tables import ABSENT, CONFLICT, COVERAGE, QUARANTINE, SILVER, Table
from cryptopulse.store.table_tail import TableTail
from cryptopulse.store.table_writer import LOAD, TableWriter

_COVERAGE_MAX_DELAY_S = 5.0  # rare commits are fine: after a kill, reading silver's newer ids again is cheap
# Commit a position that moved this far without rows: bounds what a restart reads and parses again.
_MARKER_MESSAGES = 10_000
_MARKER_TRADES = 10_000  # a page of REST is one message with a thousand
_PARSED_MAX = 2  # the batch being processed and the next

logger = structlog.get_logger()


@dataclass
class _Batch:
    """A batch of parsed messages."""

    parsed: pa.Table
    is_refused: bool
    """Whether any message was refused."""
    repeated: pa.Table | None = None
    """The trades that silver had already; None: not known."""


class MessageSteps:
    """The steps from messages to silver, quarantine, absent ids and coverage. One thread at a time."""

    def __init__(
        self, tables: Mapping[str, TableWriter], bronze: Bronze, trades: TableTail, coverage: Coverage, absent: pa.Table
    ) -> None:
        """`trades`: silver's newest rows; `absent`: the intervals proved absent so far. Both and `coverage` are updated
        here.
        """
        self._tables = tables
        self._bronze = bronze
        self._trades = trades
        self._coverage = coverage
        self.absent = absent
        """Intervals of ids that pages proved absent; they may overlap, and some of their ids may be held after all."""
        self._batches: dict[tuple[int, int, int], _Batch] = {}
        self._unrecorded: Counter[tuple[str, int]] = Counter()
        """Table and partition → trades parsed since its position was committed."""
        self._coverage_committed = time.monotonic()
        self.conflicts: dict[str, int] = {}
        """Product → how many trades came again with other content, since the start."""
        self.max_delay_s = _COVERAGE_MAX_DELAY_S
        """How long the intervals may wait to be written."""

    def advance_silver(self) -> StepResult | None:
        """Bronze → silver: appends the trades not held yet; None when there are no new messages."""
        for partition in sorted(self._bronze.partitions):
            if (news := self._news(SILVER, partition)) is not None:
                batch = self._parse(news)
                offered = batch.parsed
                if batch.is_refused:
                    offered = offered.filter(pc.is_null(offered["reason"]))
                is_new = self._coverage.new_rows(offered)
                trades = offered.take(is_new)
                skipped = offered.num_rows - trades.num_rows
                batch.repeated = offered.slice(0, 0)
                if skipped:
                    numbers = pa.array(range(offered.num_rows), pa.int64())
                    batch.repeated = offered.filter(pc.invert(pc.is_in(numbers, is_new)))
                trades = trades.append_column("ingestion_time", trades["received_time"])
                trades = trades.append_column("event_date", pc.cast(trades["event_time"], pa.date32()))
                result, position = self._append(SILVER, partition, news, trades, skipped, offered.num_rows)
                if result.rows.num_rows:
                    self._coverage.add(result.rows)
                    self._trades.add(result.rows, position)
                return result
        return None

    def advance_quarantine(self) -> StepResult | None:
        """Bronze → quarantine: refused messages, and those that conflict with a trade in silver."""
        for partition in sorted(self._bronze.partitions):
            if (news := self._news(QUARANTINE, partition)) is not None:
                batch = self._parse(news)
                refused = QUARANTINE.empty
                repeated = batch.repeated
                if repeated is None:  # silver consumed the batch before a restart
                    repeated = batch.parsed.filter(pc.is_null(batch.parsed["reason"]))
                found = repeated if repeated.num_rows == 0 else self._conflicting(repeated)
                if batch.is_refused or found.num_rows:
                    reasons = pa.concat_tables([batch.parsed.filter(pc.is_valid(batch.parsed["reason"])), found])
                    refused = self._not_held(QUARANTINE, refused_messages(reasons, news))
                return self._append(QUARANTINE, partition, news, refused, parsed=batch.parsed.num_rows)[0]
        return None

    def _conflicting(self, repeated: pa.Table) -> pa.Table:
        """The `repeated` trades that silver holds with other content, with the reason. The first copy stays."""
        found = with_other_content(repeated, self._trades.matching(repeated.select(["symbol", "trade_id"])))
        for symbol, trade_id in zip(found["symbol"].to_pylist(), found["trade_id"].to_pylist(), strict=True):
            if symbol not in self.conflicts:
                logger.warning("trade_conflict", symbol=symbol, trade_id=trade_id, kept="the first copy")
            self.conflicts[symbol] = self.conflicts.get(symbol, 0) + 1
        column = found.schema.get_field_index("reason")
        return found.set_column(column, "reason", pa.array([CONFLICT] * found.num_rows, pa.string()))

    def advance_absent(self) -> StepResult | None:
        """Bronze → the ids that pages of REST prove absent. Batches without a page are not parsed."""
        for partition in sorted(self._bronze.partitions):
            if (news := self._news(ABSENT, partition)) is not None:
                proofs, parsed = ABSENT.empty, 0
                if pc.index(news["source"], "rest").as_py() >= 0:
                    trades = self._parse(news).parsed
                    proofs, parsed = self._not_held(ABSENT, absent_ids(trades)), trades.num_rows
                result, _ = self._append(ABSENT, partition, news, proofs, parsed=parsed)
                if result.rows.num_rows:
                    added = result.rows.select(INTERVALS_SCHEMA.names).cast(INTERVALS_SCHEMA)
                    both = pa.concat_tables([self.absent, added])
                    self.absent = both.group_by(INTERVALS_SCHEMA.names).aggregate([])
                    self._coverage.holes_changed += 1
                return result
        return None

    def advance_coverage(self) -> StepResult | None:
        """Writes the intervals of ids every few seconds; in memory they are up to date with each commit of silver."""
        table, position = self._tables[COVERAGE.qualified], self._trades.position
        if table.position("silver") >= position or time.monotonic() - self._coverage_committed < self.max_delay_s:
            return None
        rows = shaped(stamped(self._coverage.table, position), COVERAGE)
        table.replace(rows, {"silver": position})
        self._coverage_committed = time.monotonic()
        return StepResult(COVERAGE, rows, rows.num_rows)

    def _not_held(self, table: Table, found: pa.Table) -> pa.Table:
        """`found`, of one partition, without rows that the table holds. Spark may have stored them under positions of
        its own, but only for messages that were in bronze at the start.
        """
        if found.num_rows == 0:
            return found
        partition, ends = found["partition"][0].as_py(), pc.min_max(found["offset"]).as_py()
        if ends["min"] > self._bronze.held_at_start(partition):
            return found
        columns = ", ".join(f'"{name}"' for name in table.key)
        where = f'"partition" = {partition} AND "offset" BETWEEN {ends["min"]} AND {ends["max"]}'
        stored = self._tables[table.qualified].read(columns, where)
        known = set(zip(*(column.to_pylist() for column in stored.columns), strict=True))
        keys = zip(*(found[name].to_pylist() for name in table.key), strict=True)
        return found.filter(pa.array([key not in known for key in keys], pa.bool_()))

    def _append(
        self, table: Table, partition: int, news: pa.Table, found: pa.Table, skipped: int = 0, parsed: int = 0
    ) -> tuple[StepResult, int]:
        """Commits the rows `found` in the messages `news`; returns the step's result and the rows' load_timestamp.

        `parsed`: how many trades the messages held.
        """
        writer, source, last = self._tables[table.qualified], f"bronze/{partition}", news["offset"][-1].as_py()
        if found.num_rows == 0:
            empty, load = table.empty, writer.position(LOAD)
            self._unrecorded[table.qualified, partition] += parsed
            is_far = self._unrecorded[table.qualified, partition] >= _MARKER_TRADES
            if is_far or last - writer.recorded(source) > _MARKER_MESSAGES:
                writer.append(empty, {source: last})
                del self._unrecorded[table.qualified, partition]
            writer.skip_to(source, last)
            return StepResult(table, empty, news.num_rows, skipped), load
        load = writer.next_load()
        rows = shaped(stamped(found, load), table)
        writer.append(rows, {source: last, LOAD: load})
        del self._unrecorded[table.qualified, partition]
        return StepResult(table, rows, news.num_rows, skipped), load

    def _news(self, table: Table, partition: int) -> pa.Table | None:
        return self._bronze.after(partition, self._tables[table.qualified].position(f"bronze/{partition}"))

    def parse_ahead(self, messages: pa.Table) -> None:
        """Parses `messages` in advance. The only method that another thread may call meanwhile."""
        self._parse(messages)

    def _parse(self, messages: pa.Table) -> _Batch:
        """The parsed messages; cached, because three tables are made from them."""
        offsets = messages["offset"]
        key = (messages["partition"][0].as_py(), offsets[0].as_py(), offsets[-1].as_py())
        batch = self._batches.get(key)
        if batch is None:
            parsed = parse(messages)
            batch = _Batch(parsed, parsed["reason"].null_count < parsed.num_rows)
            kept = list(self._batches.items())[1 - _PARSED_MAX :]
            self._batches = {**dict(kept), key: batch}
        return batch
