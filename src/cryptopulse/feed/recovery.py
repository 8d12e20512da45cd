"""Finds where the previous producer stopped, from the end of the log.

The newest messages of the log have the ids seen last, so the first message of a new connection shows which trades were
missed in between. They also show holes that the previous producer had found but not healed: the watch has reported
them already, the work list still needs them.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import NamedTuple

import pyarrow as pa
import structlog

from cryptopulse.errors import LogDamaged
from cryptopulse.feed.buffer import REST, WEBSOCKET
from cryptopulse.feed.rest import page_ids
from cryptopulse.feed.sequence_gaps import GRACE_NS, UNKNOWN, IdWatch
from cryptopulse.feed.venue_rest import venue_page_ids
from cryptopulse.intervals import Interval, Intervals, runs
from cryptopulse.lake.products import venue_of
from cryptopulse.log import Log
from cryptopulse.venues import Dialect, FeedMessage, Heartbeat, TradesMessage, Unreadable
from cryptopulse.venues.coinbase_advanced import AdvancedDialect
from cryptopulse.venues.coinbase_exchange import ExchangeDialect
from cryptopulse.venues.registry import VENUES

MESSAGES_MAX = 50_000
"""Newest messages of the log that a new producer reads (0.1 s of work): at 20,000 a second they have two heartbeats of
each product, and so its last trade id."""

_DIALECTS: dict[str, tuple[Dialect, ...]] = {
    "": (ExchangeDialect(), AdvancedDialect()),  # the previous producer may have recorded the other feed
    **{name: (venue(),) for name, venue in VENUES.items()},
}

_log = structlog.get_logger()


class LogEnd(NamedTuple):
    """The newest messages of a log."""

    live: list[tuple[bytes, int, str]]
    """(body, receive time in ns of the monotonic clock, venue) of messages from a WebSocket, oldest first."""
    paged: dict[str, Intervals]
    """Product → ids on pages of the REST interface."""
    is_all: bool
    """Whether these are all messages of the log."""


class Resumed(NamedTuple):
    """What the end of the log shows, by product."""

    held: dict[str, Intervals]
    """Ids in the log."""
    holes: dict[str, list[Interval]]
    """Ids missing between them that the watch will not report any more."""
    is_all: bool
    """Whether these are all messages of the log."""


def log_end(log: Log, messages_max: int = MESSAGES_MAX) -> LogEnd:
    """Reads the last `messages_max` messages of `log`. Stops at damage and logs it, so that recording can go on."""
    live: list[tuple[int, int, int, bytes, str]] = []  # receive time (µs UTC), partition, offset, body, venue
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
    if len(partitions) > 1:  # one partition is in order already
        live.sort()
    to_monotonic_ns = time.monotonic_ns() - time.time_ns()
    found = [(body, at_us * 1000 + to_monotonic_ns, venue) for at_us, _, _, body, venue in live]
    return LogEnd(found, paged, is_all)


def _live_messages(records: pa.Table, paged: dict[str, Intervals]) -> list[tuple[int, int, int, bytes, str]]:
    """The messages of `records` from a WebSocket, as (receive time in µs UTC, partition, offset, body, venue).

    Ids on pages are added to `paged` at once: keeping a thousand pages would take 150 MB.
    """
    live: list[tuple[int, int, int, bytes, str]] = []
    for batch in records.to_batches():  # by hand: pyarrow.compute costs 30 ms to import
        names = ("received_time", "partition", "offset", "body", "source", "partition_key")
        columns = [batch[name].view(pa.int64()) if name == "received_time" else batch[name] for name in names]
        for *place, body, source, key in zip(*(column.to_pylist() for column in columns), strict=True):
            if source != REST:
                if source == WEBSOCKET:  # what was imported is none of a connection's
                    live.append((*place, body, venue_of(key)))
                continue
            with suppress(ValueError, RecursionError):  # not a page: the parser refuses it
                ids = venue_page_ids(body, key) if venue_of(key) else page_ids(body)
                for first, last in runs(sorted(set(ids))):
                    paged.setdefault(key, Intervals()).add(first, last)
    return live


def resume(watch: IdWatch, end: LogEnd) -> Resumed:
    """Sets `watch` to the end of the log. Must be called before any of its sessions connects.

    The watch still reports holes whose grace was running when the log ended, or had ended so shortly before that they
    may not have been reported.
    """
    held = {product: Intervals(ids) for product, ids in end.paged.items() if product in watch.ids}
    at_ns = 0
    for body, at_ns, venue in end.live:
        message = _read(body, venue)
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


def _read(body: bytes, venue: str) -> FeedMessage:
    """Reads a message of a feed of `venue`."""
    message: FeedMessage = Unreadable("")
    for dialect in _DIALECTS.get(venue, ()):
        message = dialect.read(body)
        if not isinstance(message, Unreadable):
            break
    return message
