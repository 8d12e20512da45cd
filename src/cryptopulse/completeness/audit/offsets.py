"""Whether bronze holds every message of the log: offsets are dense, so one that is missing is a message that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow.compute as pc

from cryptopulse.completeness.audit.files import DataFile
from cryptopulse.completeness.audit.ids import BIT
from cryptopulse.completeness.audit.intervals import Intervals
from cryptopulse.completeness.audit.report import Finding
from cryptopulse.completeness.audit.scope import Scope
from cryptopulse.completeness.audit.snapshot import BRONZE, Snapshot

_SLICE_ROWS = 10_000_000
_NEW_LOG_JUMP = 1_000_000
"""An embedded log begins with the time of its making in µs as its first offset, so a new one jumps by a second at
least."""


def check_offsets(snapshot: Snapshot, scope: Scope) -> int:
    """Tells of offsets that are missing or doubled; returns how many there are. Only for an audit of all time: a part
    of the messages has no dense offsets.
    """
    if BRONZE not in snapshot.tables or scope.from_us is not None or scope.to_us is not None:
        return 0
    held: dict[int, Intervals] = {}
    copies: dict[int, int] = {}
    for files in _slices(snapshot.files(BRONZE)):
        rows = snapshot.rows(
            f"""
            SELECT p, o >> 6 AS chunk, count(*) AS copies, bit_or({BIT.format("o")}) AS bits
            FROM (SELECT "partition" AS p, "offset" AS o FROM coinbase_raw_trades)
            GROUP BY p, chunk ORDER BY p, chunk""",
            {BRONZE: files},
        )
        for partition in sorted(set(rows["p"].to_pylist())):
            part = rows.filter(pc.equal(rows["p"], partition))
            found = Intervals.of_masks(part["chunk"].to_numpy(), part["bits"].to_numpy())
            held[partition] = held.get(partition, Intervals.of()) | found
            copies[partition] = copies.get(partition, 0) + pc.sum(part["copies"]).as_py()
    for partition, offsets in sorted(held.items()):
        _tell_doubled(snapshot, partition, copies[partition] - offsets.count)
        _tell_missing(snapshot, partition, offsets)
    return sum(copies.values())


def _slices(files: Sequence[DataFile]) -> Iterator[list[DataFile]]:
    """The files in groups of some ten million rows, whose masks are some megabytes."""
    group: list[DataFile] = []
    for file in files:
        group.append(file)
        if sum(held.rows or 0 for held in group) >= _SLICE_ROWS:
            yield group
            group = []
    if group:
        yield group


def _tell_doubled(snapshot: Snapshot, partition: int, count: int) -> None:
    if count:
        text = f"{BRONZE}: {count:,} messages of partition {partition} are there more than once"
        details = {"partition": partition, "rows": count}
        repair = "no trade counts twice by it; remove the copies by hand if they disturb"
        snapshot.findings.add(Finding("offsets_doubled", BRONZE, text, repair, details=details))


def _tell_missing(snapshot: Snapshot, partition: int, held: Intervals) -> None:
    said = [snapshot.tables[BRONZE].position(f"log/{partition}")]
    said += [table.position(f"bronze/{partition}") for table in snapshot.tables.values()]
    stored_to = max((position for position in said if position is not None), default=held.last)
    known = held | _in_lost_files(snapshot, partition)
    for first, last in Intervals.of([(held.first, max(held.last, stored_to))]) - known:
        if last - first + 1 >= _NEW_LOG_JUMP and _is_new_log(snapshot, partition, first - 1, last + 1):
            continue
        count = last - first + 1
        which = f"offset {first}" if count == 1 else f"offsets {first} to {last} ({count:,})"
        text = f"{BRONZE}: {which} of partition {partition} missing: messages that were stored are gone"
        details = {"partition": partition, "first_offset": first, "last_offset": last, "messages": count}
        repair = snapshot.repairs.table(BRONZE, snapshot.tables[BRONZE].place)
        snapshot.findings.add(Finding("offsets_missing", BRONZE, text, repair, details=details))


def _in_lost_files(snapshot: Snapshot, partition: int) -> Intervals:
    """The offsets of files that can't be read, which are told of as such."""
    lost = [file.stats for file in snapshot.files(BRONZE) if not file.is_sound]
    return Intervals.of(
        stats["offset"]  # type: ignore[misc]
        for stats in lost
        if stats.get("partition") == (partition, partition) and "offset" in stats
    )


def _is_new_log(snapshot: Snapshot, partition: int, before: int, after: int) -> bool:
    """Whether the jump from `before` to `after` is that from one embedded log to a later one."""
    enqueued = {offset: _enqueued_us(snapshot, partition, offset) for offset in (before, after)}
    old_us, new_us = enqueued[before], enqueued[after]
    return old_us is not None and new_us is not None and old_us < after <= new_us


def _enqueued_us(snapshot: Snapshot, partition: int, offset: int) -> int | None:
    files = [file for file in snapshot.files(BRONZE) if file.may_hold("offset", offset, offset)]
    sql = f"""
        SELECT epoch_us(enqueued_time) AS us FROM coinbase_raw_trades
        WHERE "partition" = {partition} AND "offset" = {offset}"""
    found = snapshot.rows(sql, {BRONZE: files})["us"].to_pylist()
    return found[0] if found else None
