"""What the pipeline let go on purpose, as the tables' own commits record it: which days, and exactly which rows.

A commit that removes days has their record in its `txn` actions, so a table that lost rows in any other way has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from cryptopulse.audit.id_set import IdSet
from cryptopulse.audit.report import utc
from cryptopulse.audit.scope import day_start_us
from cryptopulse.audit.snapshot import LakeSnapshot

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class DaysLetGo:
    """The days that one table has let go."""

    table: str
    rows: int
    kept_from: date
    """The first day that is kept (UTC)."""
    days: list[dict[str, Any]]
    """Each day with rows: `day`, `rows`, when they went (`let_go_at`, UTC), and by which `setting` (days to keep)."""

    def as_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        return {**vars(self), "last_day": self.last_day}

    @property
    def last_day(self) -> date:
        """The newest day that went."""
        return self.kept_from - timedelta(days=1)


def days_let_go(snapshot: LakeSnapshot) -> list[DaysLetGo]:
    """What each table has let go, upstream first; none for those that have not."""
    found = []
    for table in reversed(list(snapshot.tables.values())):
        if (kept := table.position("retention")) is None:
            continue
        days = []
        for day in (_EPOCH + timedelta(days=number) for number in range(table.position("retention/first") or 0, kept)):
            base = f"retention/day/{day}"
            if (rows := table.position(base)) is not None:
                at, setting = table.position(f"{base}/at"), table.position(f"{base}/setting")
                days.append({"day": day, "rows": rows, "let_go_at": utc(at or 0), "setting": setting})
        let_go = table.position("retention/rows") or 0
        found.append(DaysLetGo(table.name, let_go, _EPOCH + timedelta(days=kept), days))
    return found


def kept_from(snapshot: LakeSnapshot, name: str) -> date:
    """The first day (UTC) that a table keeps; 1970-01-01 if it has let go of none."""
    table = snapshot.tables.get(name)
    return _EPOCH + timedelta(days=(table and table.position("retention")) or 0)


def kept_from_us(snapshot: LakeSnapshot, name: str) -> int:
    """The same as µs UTC."""
    return day_start_us(kept_from(snapshot, name))


def numbers_let_go(snapshot: LakeSnapshot, name: str, of: str | int) -> IdSet:
    """The trade ids of a product, or the offsets of a partition, in rows that a table has let go."""
    if (table := snapshot.tables.get(name)) is None:
        return IdSet.of()
    base = f"retention/runs/{of}"
    runs = [f"{base}/{number}" for number in range(table.position(base) or 0)]
    ends = [(table.position(run), table.position(f"{run}/last")) for run in runs]
    return IdSet.of((first, last) for first, last in ends if first is not None and last is not None)
