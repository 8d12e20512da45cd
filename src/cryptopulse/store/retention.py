"""Lets whole days of a table go when the time is over for which the settings keep them.

Days go from the old end, in order, in one commit of the table's writer, which also records them
(`cryptopulse.lake.retention`). Their files are deleted as replaced files are. A day waits until every table derived
from it has consumed it, and a day of silver also until nothing was added to it for a day: a backfill may be bringing it
in, and windows of gold are not made of a part. Rows that come late for a day that is gone go at the next run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from deltalake.exceptions import DeltaError
from obstore.exceptions import BaseError

from cryptopulse.errors import CryptoPulseError, Fenced
from cryptopulse.intervals import Interval, Intervals, runs
from cryptopulse.lake.retention import (
    DAY_US,
    FIRST,
    KEPT_FROM,
    ROWS,
    SETTINGS,
    day_number,
    of_day,
    positions_of,
    with_runs,
)
from cryptopulse.lake.storage import open_table, storage
from cryptopulse.lake.tables import (
    ABSENT,
    ALERTS,
    BARS,
    BRONZE,
    COVERAGE,
    LOAD_TIMESTAMP,
    QUARANTINE,
    SILVER,
    Table,
)
from cryptopulse.settings import RetentionSettings
from cryptopulse.store.delta_log import DataFile
from cryptopulse.store.table_writer import LOAD, TableWriter

_PATIENCE_US = 60_000_000  # between two looks at days that can't go yet

_RUNS = {
    BRONZE: ("partition", "offset"),
    SILVER: ("symbol", "trade_id"),
    QUARANTINE: ("partition", "offset"),
}
"""Table → the columns by which its rows are recorded one by one, as runs of numbers."""

logger = structlog.get_logger()


def _now_us() -> int:
    return time.time_ns() // 1000


class Retention:
    """Runs at the start and once a day for each table with a setting; every minute while days wait. For one thread."""

    def __init__(
        self, settings: RetentionSettings, tables: Mapping[str, TableWriter], now_us: Callable[[], int] = _now_us
    ) -> None:
        """Reads nothing yet. `tables`: by qualified name; `now_us`: the clock, µs UTC."""
        self._tables = tables
        self._now_us = now_us
        # Bronze before the quarantine, which tells of its messages.
        self._days = {table: days for table, name in SETTINGS.items() if (days := getattr(settings, name)) is not None}
        self._due_us: dict[Table, int] = {}
        """When to look again."""

    def run_due(self) -> None:
        """Lets go what is due. A failure is logged, and tried again a day later. Raises Fenced as a commit does."""
        now_us = self._now_us()
        for table, days in self._days.items():
            if now_us < self._due_us.get(table, 0):
                continue
            writer, is_done = self._tables[table.qualified], True
            try:
                with storage(writer.lake):
                    is_done = self._let_go(writer, days, now_us)
            except (DeltaError, BaseError, OSError, pa.ArrowException) as error:
                logger.warning("maintenance_failed", table=table.qualified, error=str(error).partition("\n")[0])
            except Fenced:
                raise
            except CryptoPulseError as error:  # of the storage; if it lasts, the writers raise it, too
                logger.warning("maintenance_failed", table=table.qualified, error=str(error))
            self._due_us[table] = (now_us // DAY_US + 1) * DAY_US if is_done else now_us + _PATIENCE_US

    def _let_go(self, writer: TableWriter, days: int, now_us: int) -> bool:
        """Removes the days due that may go; returns whether these were all."""
        today = datetime.fromtimestamp(now_us // 1_000_000, UTC).date()
        horizon = min(str(today - timedelta(days=days)), self._explained(writer.table))
        by_day: dict[str, list[DataFile]] = {}
        for file in writer.files():
            (day,) = file.partition.values()
            if day < horizon:
                by_day.setdefault(day, []).append(file)
        is_free = self._condition(writer, now_us)
        going = list(takewhile(lambda day: all(map(is_free, by_day[day])), sorted(by_day)))
        is_gone = not going or self._commit(writer, {day: by_day[day] for day in going}, days, now_us)
        return is_gone and len(going) == len(by_day)

    def _explained(self, table: Table) -> str:
        """The first day that must stay: while bronze has a refused message, the quarantine tells why."""
        held = self._tables[BRONZE.qualified].files() if table is QUARANTINE else []
        return min((day for file in held for day in file.partition.values()), default="9999-12-31")

    def _condition(self, writer: TableWriter, now_us: int) -> Callable[[DataFile], bool]:
        """Whether a file of `writer` may go."""
        if writer.table is BRONZE:
            readers = [self._tables[table.qualified] for table in (SILVER, QUARANTINE, ABSENT)]
            return lambda file: _is_parsed(file, readers)
        if writer.table is SILVER:
            coverage, *others = (self._tables[table.qualified] for table in (COVERAGE, ALERTS, BARS))
            # What coverage has not written yet is read from silver at the next start.
            taken_us = min(coverage.recorded("silver"), *(other.position("silver") for other in others))
            is_all = taken_us >= writer.position(LOAD)
            kept_from, quiet_us = writer.kept_from, now_us - DAY_US

            def is_free(file: DataFile) -> bool:
                _, high_us = file.bounds.get(LOAD_TIMESTAMP, (0, now_us))
                is_late = day_number(file.partition["event_date"]) < kept_from
                return (is_all or high_us <= taken_us) and (is_late or high_us <= quiet_us)

            return is_free
        return lambda _file: True

    def _commit(self, writer: TableWriter, going: Mapping[str, Sequence[DataFile]], days: int, now_us: int) -> bool:
        """Removes the files of the days `going`; returns whether they were still there."""
        table, rows = writer.table, 0
        positions: dict[str, int] = {}
        position = positions_of(open_table(writer.lake, table), table)
        runs_by_name: dict[str, list[Interval]] = {}
        for day, files in going.items():
            count = 0
            for part in (part for file in files for part in writer.parts_of(file, _RUNS[table])):
                count += part.num_rows
                for name, found in _runs(part):
                    runs_by_name.setdefault(name, []).extend(found)
            rows += count
            count += max(position(of_day(day)), 0)  # rows that came late
            positions |= {of_day(day): count, of_day(day, "/at"): now_us, of_day(day, "/setting"): days}
        for name, spans in runs_by_name.items():
            positions |= with_runs(position, name, list(Intervals(spans)))
        known = position(FIRST)
        positions |= {
            FIRST: min([day_number(min(going)), *([known] if known >= 0 else [])]),
            KEPT_FROM: max(day_number(max(going)) + 1, position(KEPT_FROM)),
            ROWS: max(position(ROWS), 0) + rows,
        }
        if not writer.let_go([file for files in going.values() for file in files], positions):
            return False
        setting = f"retention.{SETTINGS[table]} = {days}"
        first, last = min(going), max(going)
        logger.info("days_let_go", table=table.qualified, first=first, last=last, rows=rows, setting=setting)
        return True


def _is_parsed(file: DataFile, readers: Sequence[TableWriter]) -> bool:
    """Whether all `readers` have consumed a file of bronze."""
    if not {"partition", "offset"} <= file.bounds.keys():
        return False
    (low, high), last = file.bounds["partition"], file.bounds["offset"][1]
    return all(
        reader.position(f"bronze/{partition}") >= last for reader in readers for partition in range(low, high + 1)
    )


def _runs(rows: pa.Table) -> Iterator[tuple[str, list[Interval]]]:
    """Product or partition, and its ids or offsets in `rows` (two columns, as in _RUNS) as runs."""
    names, numbers = pc.dictionary_encode(rows[0].combine_chunks()), rows[1].to_numpy()
    places = names.indices.to_numpy()
    for place, name in enumerate(names.dictionary.to_pylist()):
        yield str(name), runs(np.unique(numbers[places == place]).tolist())
