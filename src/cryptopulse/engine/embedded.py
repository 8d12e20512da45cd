"""The embedded engine: the steps in this process, over Arrow in memory, committed by the store's own writer.

One thread at a time works on each of three groups of tables: bronze; silver, quarantine, absent ids, coverage and
alerts; bars, statistics and completeness. The groups share the tails of silver and of bars, and `Coverage`, the ids
that silver holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from cryptopulse.engine import StepResult
from cryptopulse.engine.alerts import AlertStep
from cryptopulse.engine.bronze import Bronze
from cryptopulse.engine.completeness import CompletenessStep
from cryptopulse.engine.coverage import INTERVALS_SCHEMA, Coverage
from cryptopulse.engine.gold import WindowSteps
from cryptopulse.engine.messages import MessageSteps
from cryptopulse.engine.rows import shaped, stamped
from cryptopulse.engine.scopes import reach_max_s
from cryptopulse.engine.session import SqlSession
from cryptopulse.lake.dialect import delta_time
from cryptopulse.lake.reading import quoted
from cryptopulse.lake.retention import KEPT_FROM, ROWS, runs_of
from cryptopulse.lake.tables import (
    ABSENT,
    ALERTS,
    BARS,
    BRONZE,
    COMPLETENESS,
    COVERAGE,
    QUARANTINE,
    SILVER,
    STATS,
    TABLES,
    Table,
)
from cryptopulse.settings import Settings
from cryptopulse.store.durability import syncing
from cryptopulse.store.table_tail import TableTail
from cryptopulse.store.table_writer import LOAD, NOTHING_YET, TOMBSTONES, TableWriter
from cryptopulse.text import MICROS

_REACH_KEPT_S = 3600  # how far back trades stay in memory for alerts; rules over a longer history read the table
_MARGIN_S = 120  # trades stay in memory this much longer than alerts look back: the open minute and late commits
_BARS_KEPT_S = 2 * COMPLETENESS.window_seconds  # late trades are of the open hour or the one before
_COVER_ROWS = 1_000_000  # some 40 MB
_TOMBSTONES_S = 60  # how long the Delta log lists removed files; store/replaced_files.py keeps their names longer
_SOURCES = {
    SILVER.qualified: "bronze/{partition}",
    QUARANTINE.qualified: "bronze/{partition}",
    COVERAGE.qualified: "silver",
    ABSENT.qualified: "bronze/{partition}",
    ALERTS.qualified: "silver",
    BARS.qualified: "silver",
    STATS.qualified: "bars",
    COMPLETENESS.qualified: "bars",
}

logger = structlog.get_logger()


class EmbeddedEngine:
    """Keeps the tables of one lake up to date in this process."""

    def __init__(self, settings: Settings) -> None:
        """Opens (or creates) all tables, takes them over, and loads the state in memory from them.

        Raises Fenced when another pipeline starts at the same moment.
        """
        self._settings = settings
        properties = {
            "delta.logRetentionDuration": f"interval {settings.maintenance.log_retention_s} seconds",
            TOMBSTONES: f"interval {_TOMBSTONES_S} seconds",
        }
        with ThreadPoolExecutor(4, thread_name_prefix="open") as pool:
            opened = pool.map(lambda table: TableWriter(settings.location, table, properties), TABLES)
            self.tables: Mapping[str, TableWriter] = {writer.table.qualified: writer for writer in opened}
            # Fence the previous pipeline. Bronze comes first, so that it stops one of two pipelines starting at once.
            bronze, *others = self.tables.values()
            owner = max(writer.owner for writer in self.tables.values()) + 1
            bronze.take_over(owner)
            list(pool.map(lambda writer: writer.take_over(owner), others))
        self._session = SqlSession(settings.processing.memory_max_mb, settings.processing.threads)
        self._load()

    def _load(self) -> None:
        settings, tables = self._settings, self.tables
        for writer in tables.values():
            writer.position(KEPT_FROM)  # now, while the table is open: maintenance and steps ask for it all the time
        silver = tables[SILVER.qualified]
        rules = settings.alerts.rules
        self.trades = TableTail(silver, (min(reach_max_s(rules), _REACH_KEPT_S) + _MARGIN_S) * MICROS)
        # Gold may have consumed rows that silver lost: new rows need later positions, even if the clock went back.
        seen_to = max(tables[table.qualified].position("silver") for table in (ALERTS, BARS))
        self.trades.position = max(self.trades.position, seen_to)
        silver.skip_to(LOAD, self.trades.position)
        bars = self._bars = TableTail(tables[BARS.qualified], _BARS_KEPT_S * MICROS)
        seen_to = max(tables[table.qualified].position("bars") for table in (STATS, COMPLETENESS))
        bars.position = max(bars.position, seen_to)  # the same for lost bars
        tables[BARS.qualified].skip_to(LOAD, bars.position)
        self._load_coverage()
        absent = tables[ABSENT.qualified].read(f"DISTINCT {quoted(INTERVALS_SCHEMA.names)}").cast(INTERVALS_SCHEMA)
        self._bronze = Bronze(tables[BRONZE.qualified], settings.processing.batch_messages_max)
        self._messages = MessageSteps(tables, self._bronze, self.trades, self.coverage, absent)
        self._alerts = AlertStep(
            tables[ALERTS.qualified], self.trades, rules, pc.unique(self.coverage.table["symbol"]).to_pylist()
        )
        windows = WindowSteps(tables, self._session, self.trades, bars, self.coverage)
        self._completeness = CompletenessStep(tables, self._session, bars, self.coverage, lambda: self._messages.absent)
        steps = self._alerts, self._messages, self._completeness
        self._delays_s = {step: step.max_delay_s for step in steps}
        self._steps: dict[str, Callable[[], StepResult | None]] = {
            SILVER.qualified: self._messages.advance_silver,
            QUARANTINE.qualified: self._messages.advance_quarantine,
            ABSENT.qualified: self._messages.advance_absent,
            COVERAGE.qualified: self._messages.advance_coverage,
            ALERTS.qualified: self._alerts.advance,
            BARS.qualified: windows.advance_bars,
            STATS.qualified: windows.advance_stats,
            COMPLETENESS.qualified: self._completeness.advance,
        }

    def _load_coverage(self) -> None:
        """Reads the intervals of ids, and adds the ids that silver took in since they were written.

        They must count as many ids as silver has rows, with those that retention let go. They don't if a power cut, a
        restore or a deletion removed rows of silver and left the intervals. These would claim ids that are gone and
        block them for ever, so all intervals are then rebuilt from silver, and from the record of what was let go.
        (The intervals never lack an id: newer rows are read from silver.)
        """
        silver, table = self.tables[SILVER.qualified], self.tables[COVERAGE.qualified]
        self.coverage = Coverage()
        written = table.read(quoted(INTERVALS_SCHEMA.names)).cast(INTERVALS_SCHEMA)
        self.coverage.add_intervals(written)
        written_to = table.position("silver")
        if written_to < self.trades.position:
            for ids in silver.read_parts("symbol, trade_id", f"load_timestamp > {delta_time(written_to)}", _COVER_ROWS):
                self.coverage.add(ids)
        rows = silver.rows() + max(silver.position(ROWS), 0)
        if self.coverage.count != rows:
            logger.warning("coverage_rebuilt", rows=rows, ids_claimed=self.coverage.count)
            position = self.tables[SILVER.qualified].position
            let_go = [
                {"symbol": symbol, "first_trade_id": first, "last_trade_id": last}
                for symbol in pc.unique(written["symbol"]).to_pylist()
                for first, last in runs_of(position, symbol)
            ]
            gone = pa.Table.from_pylist(let_go, INTERVALS_SCHEMA)
            table.replace(shaped(stamped(gone, 0), COVERAGE), {"silver": NOTHING_YET})
            self.coverage = Coverage()
            self.coverage.add_intervals(gone)
            for ids in silver.read_parts("symbol, trade_id", "true", _COVER_ROWS):
                self.coverage.add(ids)

    def stored_to(self, partition: int) -> int:
        """Last offset of a log partition that bronze holds; -1 for none."""
        return self._bronze.stored_to(partition)

    def stored_messages(self) -> int:
        """How many messages bronze holds."""
        return self._bronze.messages()

    def parsed_to(self, partition: int) -> int:
        """Last offset of a log partition that silver has consumed; -1 for none."""
        return self.tables[SILVER.qualified].position(f"bronze/{partition}")

    def store(self, records: pa.Table, positions: Mapping[str, int]) -> StepResult:
        """Appends `records` of the log (RECORD_SCHEMA, one partition, in order) to bronze, with further `positions`."""
        return self._bronze.store(records, positions)

    def parse_ahead(self, records: pa.Table) -> None:
        """Parses `records` of the log before they are stored, so that both can run in parallel."""
        self._messages.parse_ahead(records)

    def advance(self, table: Table) -> StepResult | None:
        """One step of `table` over what is new upstream; None when there is nothing new."""
        result = self._steps[table.qualified]()
        if result is not None and table in (BARS, STATS, COMPLETENESS):
            # Without this a catch-up would keep all its trades in memory.
            positions = {other: self.tables[other.qualified].position for other in (ALERTS, BARS, STATS, COMPLETENESS)}
            self.trades.taken_in(min(positions[ALERTS]("silver"), positions[BARS]("silver")))
            self._bars.taken_in(min(positions[STATS]("bars"), positions[COMPLETENESS]("bars")))
        return result

    def wait_for_news(self, is_wanted: bool) -> None:
        """Sets whether steps may wait for more news before they run. At first they may."""
        for step, delay_s in self._delays_s.items():
            step.max_delay_s = delay_s if is_wanted else 0

    def reset(self, tables: Sequence[Table]) -> None:
        """Empties derived `tables` in this order and forgets their positions: they are derived again from the start."""
        for table in tables:
            writer, source = self.tables[table.qualified], _SOURCES[table.qualified]
            sources = {source.format(partition=partition) for partition in self._bronze.partitions}
            writer.replace(table.empty, dict.fromkeys(sources, NOTHING_YET))
            syncing(writer.lake, table).up_to(writer.version)  # a power cut must not undo this one and keep the next
        self._load()

    @property
    def episodes(self) -> pa.Table:
        """Open and recently closed alert episodes (gold.dm_market_alerts' columns)."""
        return self._alerts.episodes

    @property
    def conflicts(self) -> dict[str, int]:
        """Product → how many trades came again with other content, since the start."""
        return self._messages.conflicts

    def close(self) -> None:
        """Releases the engine's memory. Writes nothing: it may be closed because another pipeline took over."""
        self._session.close()
