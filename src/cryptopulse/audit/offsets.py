"""Checks that bronze holds every message of the log: offsets are dense, so a missing offset is a missing message."""

from __future__ import annotations

import pyarrow.compute as pc

from cryptopulse.audit.files import TableFile
from cryptopulse.audit.id_set import IdSet
from cryptopulse.audit.ids import BIT
from cryptopulse.audit.report import AuditCheck
from cryptopulse.audit.retention import numbers_let_go
from cryptopulse.audit.scope import AuditScope
from cryptopulse.audit.snapshot import BRONZE, LakeSnapshot

_SLICE_ROWS = 10_000_000
_NEW_LOG_JUMP = 1_000_000
"""The first offset of an embedded log is the time of its creation in µs, so a new log's offsets jump by at least a
second."""


def check_offsets(snapshot: LakeSnapshot, scope: AuditScope) -> list[AuditCheck]:
    """Reports missing and doubled offsets; returns the numbers of messages, and of those that expired in the log before
    they were read: no one stored them, and the ids of their trades show as holes. Does nothing in an audit of a limited
    time, whose messages have no dense offsets.
    """
    if BRONZE not in snapshot.tables or scope.from_us is not None or scope.to_us is not None:
        return [AuditCheck("offsets", 0)]
    held: dict[int, IdSet] = {}
    copies: dict[int, int] = {}
    expired = 0
    group: list[TableFile] = []
    files = snapshot.files(BRONZE)
    for file in files:
        # Some ten million rows at a time; their masks take some megabytes.
        group.append(file)
        if file is not files[-1] and sum(part.rows or 0 for part in group) < _SLICE_ROWS:
            continue
        rows = snapshot.rows(
            f"""
            SELECT p, o >> 6 AS chunk, count(*) AS copies, bit_or({BIT.format("o")}) AS bits
            FROM (SELECT "partition" AS p, "offset" AS o FROM coinbase_raw_trades)
            GROUP BY p, chunk ORDER BY p, chunk""",
            {BRONZE: group},
        )
        group = []
        for partition in sorted(set(rows["p"].to_pylist())):
            part = rows.filter(pc.equal(rows["p"], partition))
            found = IdSet.of_masks(part["chunk"].to_numpy(), part["bits"].to_numpy())
            held[partition] = held.get(partition, IdSet.of()) | found
            copies[partition] = copies.get(partition, 0) + pc.sum(part["copies"]).as_py()
    for partition, offsets in sorted(held.items()):
        if doubled := copies[partition] - offsets.count:
            text = f"{BRONZE}: {doubled:,} messages of partition {partition} are there more than once"
            repair = "no trade counts twice by it; remove the copies by hand if they disturb"
            details = {"partition": partition, "rows": doubled}
            snapshot.report("offsets_doubled", BRONZE, text, repair, details=details)
        expired += _report_missing(snapshot, partition, offsets)
    checks = [AuditCheck("offsets", sum(copies.values()))]
    return [*checks, AuditCheck("messages expired unread", expired)] if expired else checks


def _report_missing(snapshot: LakeSnapshot, partition: int, held: IdSet) -> int:
    """Returns how many messages expired unread, by the positions that bronze's commits recorded of them."""
    positions = [snapshot.tables[BRONZE].position(f"log/{partition}")]
    positions += [table.position(f"bronze/{partition}") for table in snapshot.tables.values()]
    stored_to = max((position for position in positions if position is not None), default=held.last)
    # The offsets in unreadable files are reported with those files.
    lost = [file.stats for file in snapshot.files(BRONZE) if not file.is_sound]
    let_go = numbers_let_go(snapshot, BRONZE, partition)
    known = (
        held
        | let_go
        | IdSet.of(
            stats["offset"]  # type: ignore[misc]
            for stats in lost
            if stats.get("partition") == (partition, partition) and "offset" in stats
        )
    )
    expired = 0
    for start, last in IdSet.of([(held.first, max(held.last, stored_to))]) - known:
        first = start
        while first <= last and (to := snapshot.tables[BRONZE].position(f"expired/{partition}/{first}")) is not None:
            first = max(first, min(to, last)) + 1
        expired += first - start
        if first > last:
            continue
        count = last - first + 1
        was_let_go = bool(let_go.touch([first - 1], [first - 1])[0])
        if count >= _NEW_LOG_JUMP and _is_new_log(snapshot, partition, first - 1, last + 1, was_let_go):
            continue
        which = f"offset {first}" if count == 1 else f"offsets {first} to {last} ({count:,})"
        text = f"{BRONZE}: {which} of partition {partition} missing: messages that were stored are gone"
        details = {"partition": partition, "first_offset": first, "last_offset": last, "messages": count}
        repair = snapshot.repairs.table(BRONZE, snapshot.tables[BRONZE].place)
        snapshot.report("offsets_missing", BRONZE, text, repair, details=details)
    return expired


def _is_new_log(snapshot: LakeSnapshot, partition: int, before: int, after: int, was_let_go: bool) -> bool:
    """Whether the jump from offset `before` to `after` is from one embedded log to a later one. `was_let_go`: when the
    message `before` was logged is not known any more.
    """
    enqueued_us = {}
    for offset in (before, after):
        files = [file for file in snapshot.files(BRONZE) if file.may_hold("offset", offset, offset)]
        sql = f"""
            SELECT epoch_us(enqueued_time) AS us FROM coinbase_raw_trades
            WHERE "partition" = {partition} AND "offset" = {offset}"""
        enqueued_us[offset] = next(iter(snapshot.rows(sql, {BRONZE: files})["us"].to_pylist()), None)
    old_us, new_us = enqueued_us[before], enqueued_us[after]
    if new_us is None or (old_us is None and not was_let_go):
        return False
    return bool((old_us or 0) < after <= new_us)
