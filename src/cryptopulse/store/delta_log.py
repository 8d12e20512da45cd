"""The format of a commit to a Delta table: its actions, one per line. Other modules decide when to commit.

Our commits hold `commitInfo`, then the files removed (`remove`) and added (`add`), and last the positions (`txn`).
File statistics let readers skip files. They cover the columns in the contract's `stats`, never decimals (readers keep
those as float64, and lose rows).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.tables import Table

POSITIONS = "cryptopulse.positions"
"""Key in the first line of our commits: the number of positions (`txn`), which are the last lines."""

COMMIT = "cryptopulse.commit"
"""Key in the first line of our commits: the commit's name."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS_US = 1_000
_YEAR_1_US, _YEAR_9999_US = -62_135_596_800_000_000, 253_402_300_799_999_000  # range of times as text

Bounds = Mapping[str, tuple[Any, Any]]
"""Column → (lowest, highest value), both included; times as µs UTC, dates as ISO text."""


@dataclass(frozen=True, eq=False)
class DataFile:
    """One Parquet file of a table."""

    path: str
    """Relative to the table's folder."""
    size: int
    rows: int
    partition: Mapping[str, str]
    """Partition column → value, as the Delta log writes it."""
    bounds: Bounds
    """For columns with statistics, which have no NULLs. Other columns may hold anything."""

    def may_hold(self, within: Bounds) -> bool:
        """Whether a row of this file can lie within `within` in every column that it names."""
        for column, (lowest, highest) in within.items():
            if column in self.partition:
                if not lowest <= self.partition[column] <= highest:
                    return False
            elif column in self.bounds:
                low, high = self.bounds[column]
                if high < lowest or low > highest:
                    return False
        return True


@dataclass(frozen=True)
class Commit:
    """A commit read from the log."""

    actions: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, body: bytes) -> Commit:
        """Parses a commit file. Raises ValueError when it is not JSON lines."""
        return cls([json.loads(line) for line in body.splitlines()])

    @property
    def name(self) -> str | None:
        """The name given by our writer; None for other writers' commits."""
        return next((action["commitInfo"].get(COMMIT) for action in self.actions if "commitInfo" in action), None)

    @property
    def transactions(self) -> dict[str, int]:
        """The `txn` actions, by application id."""
        return {a["txn"]["appId"]: int(a["txn"]["version"]) for a in self.actions if "txn" in a}

    @cached_property
    def removed(self) -> set[str]:
        """Paths of the files that it removed."""
        return {action["remove"]["path"] for action in self.actions if "remove" in action}

    def added(self, table: Table) -> list[DataFile]:
        """The files that it added."""
        return [_data_file(table, action["add"]) for action in self.actions if "add" in action]

    @property
    def changes_rows(self) -> bool:
        """Whether it adds or removes rows; False for a compaction, a vacuum, a changed property."""
        files = [action.get("add") or action.get("remove") for action in self.actions]
        return any(file["dataChange"] for file in files if file)


def commit_body(
    table: Table,
    name: str,
    files: tuple[Sequence[DataFile], Sequence[DataFile]],
    transactions: Mapping[str, int],
    *,
    changes_rows: bool = True,
) -> bytes:
    """The text of a commit called `name`. `files`: (removed, added); `transactions`: application id → position.

    `changes_rows`: False when both hold the same rows, as in a compaction.
    """
    now_ms = time.time_ns() // 1_000_000
    removes, adds = files
    info: dict[str, Any] = {"timestamp": now_ms, COMMIT: name, POSITIONS: str(len(transactions))}
    if changes_rows and removes and not adds:
        info |= {"operation": "DELETE", "operationParameters": {}}
    elif changes_rows:
        info |= {"operation": "WRITE", "operationParameters": {"mode": "Overwrite" if removes else "Append"}}
    else:
        metrics = {"numFilesAdded": str(len(adds)), "numFilesRemoved": str(len(removes))}
        info |= {"operation": "OPTIMIZE", "operationParameters": {}, "operationMetrics": metrics}
    lines: list[dict[str, Any]] = [{"commitInfo": info}]
    for file in removes:
        remove = {
            "path": file.path,
            "deletionTimestamp": now_ms,
            "extendedFileMetadata": True,
            "partitionValues": file.partition,
            "size": file.size,
            "dataChange": changes_rows,
        }
        lines.append({"remove": remove})
    lines += [{"add": _add(table, file, now_ms) | {"dataChange": changes_rows}} for file in adds]
    lines += [{"txn": {"appId": app, "version": version}} for app, version in transactions.items()]
    return b"\n".join(msgspec.json.encode(line) for line in lines)


def _add(table: Table, file: DataFile, now_ms: int) -> dict[str, Any]:
    times = _times(table)
    low, high = (
        {name: _text(pair[edge]) if name in times else pair[edge] for name, pair in file.bounds.items()}
        for edge in (0, 1)
    )
    stats = {"numRecords": file.rows, "minValues": low, "maxValues": high, "nullCount": dict.fromkeys(low, 0)}
    return {
        "path": file.path,
        "partitionValues": file.partition,
        "size": file.size,
        "modificationTime": now_ms,
        "stats": msgspec.json.encode(stats).decode(),
    }


def bounds_of(table: Table, rows: pa.Table) -> Bounds:
    """The bounds of `rows`, which is not empty, in all of the contract's columns with statistics.

    Times are widened to whole milliseconds, as Delta's protocol has them: some readers truncate them. No column is
    left out: deltalake loses the rows of a file that lacks bounds which other files have.
    """
    bounds: dict[str, tuple[Any, Any]] = {}
    for name in table.stats:
        column = rows[name]
        is_time = pa.types.is_timestamp(column.type)
        found = pc.min_max(column.cast(pa.int64()) if is_time else column)
        low, high = found["min"].as_py(), found["max"].as_py()
        if is_time:
            low, high = max(low // _MS_US * _MS_US, _YEAR_1_US), min(-(-high // _MS_US) * _MS_US, _YEAR_9999_US)
        bounds[name] = (low, high)
    return bounds


def merged_bounds(files: Sequence[DataFile]) -> Bounds:
    """Bounds of all rows of `files`, in the columns for which every file has bounds."""
    names = set.intersection(*(set(file.bounds) for file in files))
    return {
        name: (min(file.bounds[name][0] for file in files), max(file.bounds[name][1] for file in files))
        for name in names
    }


def comparable(table: Table, within: Mapping[str, tuple[Any, Any]]) -> Bounds:
    """`within` with its values in the form of `Bounds`; datetimes and dates are converted."""
    types = {column.name: column.arrow_field.type for column in table.columns}
    return {name: (_plain(low, types[name]), _plain(high, types[name])) for name, (low, high) in within.items()}


def known_files(table: Table, actions: pa.Table) -> list[DataFile]:
    """The files of a table, from deltalake's `get_add_actions(flatten=True)`."""
    found = []
    times = _times(table)
    # Times as numbers, dates as texts: Python's types lack the year 0, which a broken lake may hold.
    kinds = [
        (f.name, pa.int64() if pa.types.is_timestamp(f.type) else pa.string() if pa.types.is_date(f.type) else f.type)
        for f in actions.schema
    ]
    for row in actions.cast(pa.schema(kinds)).to_pylist():
        edges = {name: (row.get(f"min.{name}"), row.get(f"max.{name}")) for name in table.stats}
        found.append(
            DataFile(
                row["path"],
                row["size_bytes"],
                row["num_records"] or 0,
                {name: str(row[f"partition.{name}"]) for name in table.partition_by},
                {n: _widened(low, high, n in times) for n, (low, high) in edges.items() if None not in (low, high)},
            )
        )
    return found


def _data_file(table: Table, add: Mapping[str, Any]) -> DataFile:
    """The file of any writer's `add` action."""
    stats = json.loads(add.get("stats") or "{}")
    lows, highs = stats.get("minValues", {}), stats.get("maxValues", {})
    times = _times(table)
    bounds = {}
    for name in set(table.stats) & set(lows) & set(highs):
        edges = (lows[name], highs[name])
        if name in times:
            edges = (_micros(datetime.fromisoformat(edges[0])), _micros(datetime.fromisoformat(edges[1])))
        bounds[name] = _widened(*edges, name in times)
    return DataFile(add["path"], add["size"], stats.get("numRecords", 0), add["partitionValues"], bounds)


def _widened(low: Any, high: Any, is_time: bool) -> tuple[Any, Any]:
    """Bounds in which another writer may have truncated times to milliseconds."""
    return (low, high + _MS_US) if is_time else (low, high)


def _times(table: Table) -> set[str]:
    return {column.name for column in table.columns if column.type == "TIMESTAMP"}


def _plain(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_timestamp(kind):
        return _micros(value) if isinstance(value, datetime) else value
    return str(value) if pa.types.is_date(kind) else value


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _text(us: int) -> str:
    """A time (µs UTC) as file statistics write it."""
    return f"{(_EPOCH + timedelta(microseconds=us)).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"
