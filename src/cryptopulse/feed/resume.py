"""How far the producer before this one had come, from the end of the log.

The newest messages of the log say which ids were seen last, so the first message of a new connection shows what was
traded while nobody listened. They also show holes that the producer before found and had not healed when it
ended: for the watch those are over (they were reported), for the work list they are not.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from cryptopulse.errors import LogDamaged
from cryptopulse.feed.advanced import Advanced
from cryptopulse.feed.buffer import REST
from cryptopulse.feed.exchange import Exchange
from cryptopulse.feed.gaps import GRACE_NS, UNKNOWN, IdWatch
from cryptopulse.feed.protocol import Heartbeat, Message, Trades, Unreadable
from cryptopulse.feed.rest import page_ids
from cryptopulse.intervals import Interval, Intervals, runs
from cryptopulse.log import Log

MESSAGES_MAX = 50_000
"""Newest messages of the log that a new producer looks at (0.1 s of work): at 20,000 a second they hold two
heartbeats of each product, and so its last trade id."""

_DIALECTS = (Exchange(), Advanced())  # the producer before may have recorded another feed than this one

_log = structlog.get_logger()


class LogEnd(NamedTuple):
    """The newest messages of a log."""

    live: list[tuple[bytes, int]]
    """Those that came off a socket, oldest first, and when they came by the monotonic clock (ns)."""
    paged: dict[str, Intervals]
    """Ids of each product on pages of the REST interface."""
    is_all: bool
    """Whether the log holds no others."""


class Resumed(NamedTuple):
    """What the end of the log says, by product."""

    held: dict[str, Intervals]
    """Ids that are in the log."""
    holes: dict[str, list[Interval]]
    """Ids between them that are not, and that nobody will report any more."""
    is_all: bool
    """Whether the log holds nothing else."""


def log_end(log: Log, messages_max: int = MESSAGES_MAX) -> LogEnd:
    """Reads the end of `log`. A damaged one counts as not known: recording goes on, it is what can still be saved."""
    live: list[pa.Table] = []
    paged: dict[str, Intervals] = {}
    is_all = True
    try:
        partitions = log.partitions()
        for partition in partitions:
            first, end = log.bounds(partition)
            start = max(first, end - messages_max // len(partitions))
            is_all = is_all and start == first
            for records in _records(log, partition, start, end):
                is_page = pc.equal(records["source"], REST)
                _take_pages(paged, records.filter(is_page))  # at once: a thousand of them would be 150 MB
                live.append(records.filter(pc.invert(is_page)))
    except LogDamaged as error:
        _log.error("holes_before_start_unknown", error=str(error))
        is_all = False
    if not live:
        return LogEnd([], paged, is_all)
    records = pa.concat_tables(live)
    if len(partitions) > 1:  # within one the order is the log's
        records = records.sort_by([("received_time", "ascending"), ("partition", "ascending"), ("offset", "ascending")])
    to_monotonic_ns = time.monotonic_ns() - time.time_ns()
    times_us = pc.cast(records["received_time"], pa.int64()).to_pylist()
    times_ns = (at_us * 1000 + to_monotonic_ns for at_us in times_us)
    return LogEnd(list(zip(records["body"].to_pylist(), times_ns, strict=True)), paged, is_all)


def _take_pages(paged: dict[str, Intervals], records: pa.Table) -> None:
    for product, body in zip(records["partition_key"].to_pylist(), records["body"].to_pylist(), strict=True):
        for first, last in runs(sorted(set(page_ids(body)))):
            paged.setdefault(product, Intervals()).add(first, last)


def resume(watch: IdWatch, end: LogEnd) -> Resumed:
    """Lets `watch` go on where the record ends. To be called before any connection of its sessions.

    Holes whose grace still ran when the record ended, or ran out so shortly before that nobody may have said
    so, are left to the watch to report.
    """
    held = {product: Intervals(ids) for product, ids in end.paged.items() if product in watch.ids}
    at_ns = 0
    for body, at_ns in end.live:
        _take(watch, held, _read(body), at_ns)
    for product, ids in watch.ids.items():
        ids.expired(at_ns - GRACE_NS)
        ids.repeated = 0
        watch.changed(product)
    return Resumed(held, _holes(watch, held), end.is_all)


def _take(watch: IdWatch, held: dict[str, Intervals], message: Message, at_ns: int) -> None:
    if isinstance(message, Trades):
        for product, trade_id in message.ids:
            ids = watch.ids.get(product)
            if ids is not None and ids.believable(trade_id):
                ids.seen(trade_id, at_ns)
                held.setdefault(product, Intervals()).add(trade_id, trade_id)
    elif isinstance(message, Heartbeat) and message.product in watch.ids:
        ids = watch.ids[message.product]
        ids.expired(at_ns - GRACE_NS)
        ids.claimed(message.last_trade_id, at_ns)


def _holes(watch: IdWatch, held: dict[str, Intervals]) -> dict[str, list[Interval]]:
    found: dict[str, list[Interval]] = {}
    for product, ids in watch.ids.items():
        if ids.first == UNKNOWN:
            continue
        there = Intervals([*held.get(product, ()), *ids.open_gaps])
        holes = there.gaps(ids.first, ids.highest)
        if holes:
            found[product] = holes
    return found


def _read(body: bytes) -> Message:
    """What a message of either feed says."""
    message: Message = Unreadable("")
    for dialect in _DIALECTS:
        message = dialect.read(body)
        if not isinstance(message, Unreadable):
            break
    return message


def _records(log: Log, partition: int, start: int, end: int) -> Iterable[pa.Table]:
    """The messages of a partition from `start` to before `end`, as they come."""
    while start < end and (records := log.read(partition, start, end - start)).num_rows:
        yield records
        start = records["offset"][-1].as_py() + 1
