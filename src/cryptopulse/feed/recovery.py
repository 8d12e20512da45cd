"""How far the producer before this one had come, from the end of the log.

The newest messages of the log say which ids were seen last, so the first message of a new connection shows what was
traded while nobody listened. They also show holes that the producer before found and had not healed when it
ended: for the watch those are over (they were reported), for the work list they are not.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import NamedTuple

import pyarrow as pa
import structlog

from cryptopulse.errors import LogDamaged
from cryptopulse.feed.buffer import REST
from cryptopulse.feed.rest import page_ids
from cryptopulse.feed.sequence_gaps import GRACE_NS, UNKNOWN, IdWatch
from cryptopulse.intervals import Interval, Intervals, runs
from cryptopulse.log import Log
from cryptopulse.venues import FeedMessage, Heartbeat, TradesMessage, Unreadable
from cryptopulse.venues.coinbase_advanced import AdvancedDialect
from cryptopulse.venues.coinbase_exchange import ExchangeDialect

MESSAGES_MAX = 50_000
"""Newest messages of the log that a new producer looks at (0.1 s of work): at 20,000 a second they hold two
heartbeats of each product, and so its last trade id."""

_DIALECTS = (ExchangeDialect(), AdvancedDialect())  # the producer before may have recorded another feed than this one

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
    live: list[tuple[int, int, int, bytes]] = []  # receive time (µs UTC), partition, offset, body
    paged: dict[str, Intervals] = {}
    is_all = True
    partitions = log.partitions()
    try:
        for partition in partitions:
            first, end = log.bounds(partition)
            start = max(first, end - messages_max // len(partitions))
            is_all = is_all and start == first
            while start < end and (records := log.read(partition, start, end - start)).num_rows:
                live += _live_messages(records, paged)
                start = records["offset"][-1].as_py() + 1
    except LogDamaged as error:
        _log.error("holes_before_start_unknown", error=str(error))
        is_all = False
    if len(partitions) > 1:  # within one the order is the log's
        live.sort()
    to_monotonic_ns = time.monotonic_ns() - time.time_ns()
    return LogEnd([(body, at_us * 1000 + to_monotonic_ns) for at_us, _, _, body in live], paged, is_all)


def _live_messages(records: pa.Table, paged: dict[str, Intervals]) -> list[tuple[int, int, int, bytes]]:
    """The messages of `records` that came off a socket.

    What is on pages goes into `paged` at once: a thousand of them would be 150 MB.
    """
    live: list[tuple[int, int, int, bytes]] = []
    for batch in records.to_batches():  # by hand: pyarrow.compute costs 30 ms to import
        names = ("received_time", "partition", "offset", "body", "source", "partition_key")
        columns = [batch[name].view(pa.int64()) if name == "received_time" else batch[name] for name in names]
        for *place, body, source, product in zip(*(column.to_pylist() for column in columns), strict=True):
            if source != REST:
                live.append((*place, body))
                continue
            with suppress(ValueError, RecursionError):  # no page: the parser refuses it
                for first, last in runs(sorted(set(page_ids(body)))):
                    paged.setdefault(product, Intervals()).add(first, last)
    return live


def resume(watch: IdWatch, end: LogEnd) -> Resumed:
    """Lets `watch` go on where the record ends. To be called before any connection of its sessions.

    Holes whose grace still ran when the record ended, or ran out so shortly before that nobody may have said
    so, are left to the watch to report.
    """
    held = {product: Intervals(ids) for product, ids in end.paged.items() if product in watch.ids}
    at_ns = 0
    for body, at_ns in end.live:
        message = _read(body)
        if isinstance(message, TradesMessage):
            for product, trade_id in message.ids:
                ids = watch.ids.get(product)
                if ids is not None and ids.believable(trade_id):
                    ids.seen(trade_id, at_ns)
                    held.setdefault(product, Intervals()).add(trade_id, trade_id)
        elif isinstance(message, Heartbeat) and message.product in watch.ids:
            ids = watch.ids[message.product]
            ids.expired(at_ns - GRACE_NS)
            ids.claimed(message.last_trade_id, at_ns)
    holes: dict[str, list[Interval]] = {}
    for product, ids in watch.ids.items():
        ids.expired(at_ns - GRACE_NS)
        ids.repeated = 0
        watch.changed(product)
        if ids.first != UNKNOWN:
            there = Intervals([*held.get(product, ()), *ids.open_gaps])
            if gaps := there.gaps(ids.first, ids.highest):
                holes[product] = gaps
    return Resumed(held, holes, end.is_all)


def _read(body: bytes) -> FeedMessage:
    """What a message of either feed says."""
    message: FeedMessage = Unreadable("")
    for dialect in _DIALECTS:
        message = dialect.read(body)
        if not isinstance(message, Unreadable):
            break
    return message
