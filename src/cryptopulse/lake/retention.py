"""What retention has let go: whole days (UTC) at the old end of a table, recorded in the table's own commits.

A commit that removes days carries, as positions (Delta `txn` actions), which days went, how many rows each had, when
and by which setting, and exactly which trades or messages. So removal and record are one, checkpoints keep the record
for ever, and every reader of the table finds it. The sources of these positions (`cryptopulse:<table>:<source>`) are:

- `retention`: the first day kept, in days since 1970-01-01. Of earlier days the table holds at most late rows.
- `retention/first`: the earliest day that went, in the same form. `retention/rows`: how many rows went.
- `retention/day/2026-10-31`: rows of that day; `…/at`: when they went (µs UTC); `…/setting`: days to keep, by setting.
- `retention/runs/BTC-USD`: the number of runs of trade ids that went; `…/0`, `…/1`: the first id of each, `…/0/last`:
  its last. For bronze the same with a partition of the log and offsets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

from deltalake import DeltaTable

from cryptopulse.errors import ConfigurationError
from cryptopulse.intervals import Interval
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.storage import is_there, open_table
from cryptopulse.lake.tables import BRONZE, QUARANTINE, SILVER, Table, app_id

KEPT_FROM = "retention"
FIRST = "retention/first"
ROWS = "retention/rows"

SETTINGS = {BRONZE: "bronze_days", SILVER: "silver_days", QUARANTINE: "quarantine_days"}
"""Table → its setting in the section `retention`. All other tables are kept for ever."""

DAY_US = 86_400_000_000

_EPOCH = date(1970, 1, 1)

Position = Callable[[str], int]
"""The position of a source in a table's commits; below 0 for none."""


@dataclass(frozen=True)
class LetGo:
    """The days of one table that retention has let go."""

    table: Table
    first_day: date
    """The earliest one."""
    kept_from: date
    """The first day (UTC) that is kept."""
    rows: int

    @property
    def last_day(self) -> date:
        """The newest one."""
        return self.kept_from - timedelta(days=1)

    def __str__(self) -> str:
        setting = f"retention.{SETTINGS[self.table]}"
        return f"{self.table.qualified} let go of its days until {self.last_day} on purpose ({setting})"


def day_number(day: str) -> int:
    """Days since 1970-01-01, of a day in ISO form; 0 for earlier ones, which no trade has."""
    return max((date.fromisoformat(day) - _EPOCH).days, 0)


def of_day(day: str, part: str = "") -> str:
    """The source of the rows of a day in ISO form; `part`: `/at` or `/setting`."""
    return f"retention/day/{day}{part}"


def runs_of(position: Position, name: str) -> list[Interval]:
    """The runs of ids or offsets that went, in the order in which they did; `name`: a product or partition."""
    base = f"retention/runs/{name}"
    return [(position(f"{base}/{n}"), position(f"{base}/{n}/last")) for n in range(position(base))]


def with_runs(position: Position, name: str, more: list[Interval]) -> dict[str, int]:
    """The positions to record `more` runs. One that follows the run recorded last extends it, so days without a hole
    take one run for ever.
    """
    base = f"retention/runs/{name}"
    count, found = max(position(base), 0), {}
    for first, last in more:
        if count == 0 or position(f"{base}/{count - 1}/last") != first - 1:
            found[f"{base}/{count}"] = first
            count += 1
        found[f"{base}/{count - 1}/last"] = last
    return {**found, base: count}


def recorded(table: Table, position: Position) -> LetGo | None:
    """What `table` has let go; None for nothing."""
    kept_from = position(KEPT_FROM)
    if kept_from < 0:
        return None
    first, kept = (_EPOCH + timedelta(days=number) for number in (position(FIRST), kept_from))
    return LetGo(table, first, kept, position(ROWS))


def let_go(lake: LakeLocation, table: Table) -> LetGo | None:
    """What the newest version of `table` has let go; None for nothing, or without the table.

    Raises what `cryptopulse.lake.storage.open_table` raises.
    """
    if not is_there(lake, table):
        return None
    return recorded(table, positions_of(open_table(lake, table), table))


def positions_of(delta: DeltaTable, table: Table) -> Position:
    """The positions in the commits of the open `table`."""

    def position(source: str) -> int:
        found = delta.transaction_version(app_id(table, source))
        return -1 if found is None else found

    return position


def check_let_go(gone: LetGo | None, what: str) -> None:
    """Raises ConfigurationError, `what` and why, if days are `gone` that are needed."""
    if gone is not None:
        raise ConfigurationError(f"{what}: {gone}.")
