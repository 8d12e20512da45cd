"""The embedded engine: DuckDB runs the SQL, delta-rs commits.

The tables are worked on in lanes, each by one thread at a time: bronze; silver, quarantine, absent ids, coverage and
alerts; bars, statistics and completeness. They meet in what `Bronze` hands on and in `Held`, the memory of what silver
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from cryptopulse.engine import Commit
from cryptopulse.engine.alerts import AlertJudge, AlertStep
from cryptopulse.engine.bronze import Bronze
from cryptopulse.engine.completeness import CompletenessStep
from cryptopulse.engine.delta import NOTHING_YET, TOMBSTONES, DeltaHandle
from cryptopulse.engine.durability import syncing
from cryptopulse.engine.gold import WindowSteps
from cryptopulse.engine.held import Held
from cryptopulse.engine.messages import MessageSteps
from cryptopulse.engine.session import Session
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

_MARGIN_S = 120  # trades stay in memory this much longer than alerts look back: the open minute and late commits
# Of maintenance.vacuum_retention_hours: an hour, and a while until vacuum has been there.
_TOMBSTONES_S_PER_HOUR = 4_500
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


class EmbeddedEngine:
    """Implements `cryptopulse.engine.Engine` in this process."""

    def __init__(self, settings: Settings) -> None:
        """Opens (or creates) all tables, takes them over, and reads what the state in memory needs from them.

        Raises Fenced when another pipeline starts at the same moment.
        """
        self._settings = settings
        self._tombstones_s = settings.maintenance.vacuum_retention_hours * _TOMBSTONES_S_PER_HOUR
        properties = {
            "delta.logRetentionDuration": f"interval {settings.maintenance.log_retention_s} seconds",
            TOMBSTONES: f"interval {self._tombstones_s} seconds",
        }
        self.handles = {table.qualified: DeltaHandle(settings.location, table, properties) for table in TABLES}
        self._take_over()
        self._fast = Session(settings.processing.memory_max_mb, settings.processing.threads)
        self._slow = self._fast.sibling()
        self._load()

    def _take_over(self) -> None:
        """Fences whoever worked on the lake before. Bronze comes first: of two that start at once it stops one."""
        bronze, *others = self.handles.values()
        owner = max(handle.owner for handle in self.handles.values()) + 1
        bronze.take_over(owner)
        with ThreadPoolExecutor(len(others), thread_name_prefix="take-over") as pool:  # far away each takes 0.1 s
            for done in [pool.submit(handle.take_over, owner) for handle in others]:
                done.result()
        for handle in self.handles.values():
            handle.keep_tombstones(self._tombstones_s)

    def _load(self) -> None:
        settings, handles = self._settings, self.handles
        judge = AlertJudge(self._fast, settings.alerts.rules)
        judge.warm_up()
        seen_to = max(handles[table.qualified].position("silver") for table in (ALERTS, BARS))
        self.held = Held(settings.location, self._fast, handles, seen_to, judge.lookback_max_s + _MARGIN_S)
        batch_max = settings.processing.batch_messages_max
        self._bronze = Bronze(settings.location, handles[BRONZE.qualified], batch_max)
        self._messages = MessageSteps(handles, self._fast, self._bronze, self.held)
        self._alerts = AlertStep(handles[ALERTS.qualified], judge, self.held)
        windows = WindowSteps(handles, self._slow, self.held)
        self._completeness = CompletenessStep(handles, self._slow, self.held)
        self._steps: dict[str, Callable[[], Commit | None]] = {
            SILVER.qualified: self._messages.advance_silver,
            QUARANTINE.qualified: self._messages.advance_quarantine,
            ABSENT.qualified: self._messages.advance_absent,
            COVERAGE.qualified: self._messages.advance_coverage,
            ALERTS.qualified: self._alerts.advance,
            BARS.qualified: windows.advance_bars,
            STATS.qualified: windows.advance_stats,
            COMPLETENESS.qualified: self._completeness.advance,
        }

    def stored_to(self, partition: int) -> int:
        """See `cryptopulse.engine.Engine.stored_to`."""
        return self._bronze.stored_to(partition)

    def stored_messages(self) -> int:
        """How many messages bronze holds."""
        return self._bronze.messages()

    def store(self, records: pa.Table) -> Commit:
        """See `cryptopulse.engine.Engine.store`."""
        return self._bronze.store(records)

    def anticipate(self, records: pa.Table) -> None:
        """See `cryptopulse.engine.Engine.anticipate`."""
        self._messages.anticipate(records)

    def advance(self, table: Table) -> Commit | None:
        """See `cryptopulse.engine.Engine.advance`."""
        commit = self._steps[table.qualified]()
        if commit is not None and table is BARS:
            self._completeness.add(commit.rows)
            # Else a catch-up would keep every trade of it in memory.
            seen_to = min(self.handles[other.qualified].position("silver") for other in (ALERTS, BARS))
            self.held.recent.forget_commits(seen_to)
        return commit

    def refresh(self, tables: Sequence[Table]) -> None:
        """Reopens those of `tables` that have become slow. From their lane, when nobody waits."""
        for table in tables:
            self.handles[table.qualified].refresh_if_due()

    def settle(self) -> None:
        """See `cryptopulse.engine.Engine.settle`."""
        self._alerts.hold_s = self._messages.hold_s = self._completeness.hold_s = 0

    def reset(self, tables: Sequence[Table]) -> None:
        """See `cryptopulse.engine.Engine.reset`."""
        for table in tables:
            handle, source = self.handles[table.qualified], _SOURCES[table.qualified]
            sources = {source.format(partition=partition) for partition in self._bronze.partitions}
            handle.replace(table.arrow_schema.empty_table(), None, dict.fromkeys(sources, NOTHING_YET))
            syncing(handle.lake, table).up_to(handle.version)  # a power cut must not undo it, and spare the next one
        self._load()

    @property
    def episodes(self) -> pa.Table:
        """Alert episodes that are open or not long closed (gold.dm_market_alerts' columns)."""
        return self._alerts.episodes

    def session(self) -> Session:
        """A session of its own for another thread; it shares memory and threads with the engine's."""
        return self._fast.sibling()

    def close(self) -> None:
        """Releases the engine's memory. Writes nothing: it may be closed because another pipeline took over."""
        self._slow.close()
        self._fast.close()
