"""Figures of the tables that cost next to nothing: what the Delta log says, without opening a file."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.files import Files

_MILLION = 1_000_000
_THOUSAND = 1_000


@dataclass(frozen=True)
class TableFigures:
    """One table at its newest version."""

    version: int
    """-1: it is not there."""
    files: int
    rows: int
    size_bytes: int
    loaded_at_s: float | None
    """When its newest rows were loaded, seconds since 1970; None of an empty table. Of tables whose Delta log does not
    say: when the newest file was written."""
    happened_at_s: float | None
    """Time of the newest event or window, seconds since 1970; None where the Delta log does not say."""

    @classmethod
    def of(cls, files: Files) -> TableFigures:
        """Those of a table that consists of `files`."""
        actions, time = files.actions, files.table.time
        loaded_us = _largest(actions, "max.load_timestamp")
        written_ms = _largest(actions, "modification_time")
        happened_us = _largest(actions, f"max.{time}") if time else None
        loaded_at_s = loaded_us / _MILLION if loaded_us is not None else None
        if loaded_at_s is None and written_ms is not None:
            loaded_at_s = written_ms / _THOUSAND
        return cls(
            version=files.version,
            files=actions.num_rows,
            rows=max(0, int(files.counts.sum())),
            size_bytes=_sum(actions, "size_bytes"),
            loaded_at_s=loaded_at_s,
            happened_at_s=None if happened_us is None else happened_us / _MILLION,
        )


def _largest(actions: pa.Table, name: str) -> int | None:
    if name not in actions.column_names:
        return None
    found: int | None = pc.max(actions[name].cast(pa.int64())).as_py()
    return found


def _sum(actions: pa.Table, name: str) -> int:
    if name not in actions.column_names:
        return 0
    return int(pc.sum(actions[name]).as_py() or 0)
