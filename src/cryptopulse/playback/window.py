"""The window that is played: its messages in order, its products, and its clock."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.products import is_product_id
from cryptopulse.lake.retention import check_let_go, let_go
from cryptopulse.lake.scan import moment_of
from cryptopulse.lake.tables import BRONZE
from cryptopulse.simulator.wire import frame

_PAGE_ROWS = 50_000  # read at a time: some 15 MB
_KEY = ("received_time", "partition", "offset")
_COLUMNS = ["body", "partition", "offset", "partition_key", "received_time", "source"]


Key = tuple[int, int, int]
"""Of a message: time of receipt (µs UTC), partition, offset. Messages are in this order."""


class Frames(NamedTuple):
    """Messages as WebSocket frames, in order."""

    keys: npt.NDArray[np.int64]
    """Shape (messages, 3): the Key of each."""
    frames: list[bytes]
    read_to: Key
    """The last message that was looked at."""

    def key(self, place: int) -> Key:
        """The key of one message."""
        received_us, partition, offset = self.keys[place].tolist()
        return received_us, partition, offset


@dataclass(frozen=True)
class Wanted:
    """What a connection has subscribed to."""

    trades: frozenset[str]
    """Products, and "" for messages of none, if trades are wanted at all."""
    heartbeats: frozenset[str]
    """The same."""

    @property
    def products(self) -> frozenset[str]:
        """All products."""
        return (self.trades | self.heartbeats) - {""}


class Window:
    """What is played. Its time begins with the first subscription."""

    def __init__(self, lake: Lake, first_us: int, end_us: int, speed: float, products: Iterable[str] | None) -> None:
        """From `first_us` to before `end_us`, times of receipt, µs UTC; the messages inside decide the true edges.

        `speed`: seconds of the past in a second; 0: as fast as they are read. `products`: None for all of the lake.
        Raises ConfigurationError when there is nothing to play.
        """
        held = [row["symbol"] for row in lake.products() if is_product_id(row["symbol"])]  # Coinbase's
        self.products = sorted(set(held) if products is None else set(products))
        if unknown := [name for name in self.products if name not in held]:
            raise ConfigurationError(f"The lake has no trades of {unknown[0]}, or it is no product of Coinbase.")
        if not held:
            raise ConfigurationError("The lake has no trades of Coinbase, whose feed is played.")
        gone = let_go(lake.location, BRONZE)
        is_gone = gone is not None and moment_of(first_us).date() < gone.kept_from
        check_let_go(gone if is_gone else None, "The messages from that time are gone")
        self._messages = lake.table(BRONZE.qualified, None, moment_of(first_us), moment_of(end_us), columns=_COLUMNS)
        edges = [
            rows.limit(1).arrow()["received_time"].cast(pa.int64()).to_pylist()
            for rows in (self._messages, self._messages.reversed())
        ]
        if not edges[0]:
            raise ConfigurationError("The lake has no messages from that time: choose another --from and --to.")
        self.first_us, self.last_us = int(edges[0][0]), int(edges[1][0])
        self.speed = speed
        self._began_s: float | None = None
        self._sent: dict[str, Key] = {}
        """Product → the last message up to which a connection got its messages."""

    def begin(self) -> None:
        """Starts the clock, once."""
        if self._began_s is None:
            self._began_s = time.monotonic()

    def unplayed(self, products: Iterable[str]) -> frozenset[str]:
        """Those of `products` to which nobody has subscribed before."""
        return frozenset(products) - self._sent.keys()

    def start_of(self, products: Iterable[str]) -> Key:
        """The message behind which a new connection begins: the present; at speed 0, where its products were left."""
        if self._began_s is None:
            return self.before_first
        if self.speed == 0:
            return min((self._sent.get(name, self.before_first) for name in products), default=self.before_first)
        return self.now_us, -1, -1

    @property
    def before_first(self) -> Key:
        """A key before all messages."""
        return self.first_us, -1, -1

    @property
    def now_us(self) -> int:
        """The time in the window, µs UTC; at speed 0 that of the newest message sent."""
        if self._began_s is None:
            return self.first_us
        if self.speed == 0:
            return max((key[0] for key in self._sent.values()), default=self.first_us)
        return min(self.first_us + int((time.monotonic() - self._began_s) * self.speed * 1e6), self.last_us)

    def sent(self, products: Iterable[str], key: Key) -> None:
        """Notes that a connection got all messages of `products` up to `key`."""
        for name in products:
            self._sent[name] = max(key, self._sent.get(name, key))

    def messages(self, after: Key, last: Key | None, wanted: Wanted, *, is_advanced: bool) -> Iterator[Frames]:
        """The `wanted` messages of one feed behind the key `after`, up to and with `last` (None: all), in order.

        What the exchange answered to a subscription is left out: it was the recorder's.
        """
        trades, heartbeats = (pa.array(sorted(names), pa.string()) for names in (wanted.trades, wanted.heartbeats))
        rows = self._messages.limit(_PAGE_ROWS)
        while True:
            page = rows.after(moment_of(after[0]), *after[1:]).arrow()
            if page.num_rows == 0:
                return
            keys = np.column_stack([page[name].cast(pa.int64()).to_numpy() for name in _KEY])
            read_to = after = tuple(keys[-1].tolist())
            bodies, of = page["body"], page["partition_key"]
            is_heartbeat = pc.match_substring(bodies, b'"heartbeat')
            has_channel = pc.match_substring(bodies, b'"channel"')
            keep = pc.if_else(is_heartbeat, pc.is_in(of, heartbeats), pc.is_in(of, trades))
            keep = pc.and_(keep, pc.equal(page["source"], "websocket"))
            keep = pc.and_(keep, has_channel if is_advanced else pc.invert(has_channel))
            keep = pc.and_not(keep, pc.match_substring(bodies, b'"subscriptions"'))
            is_kept = keep.to_numpy()
            if last is not None:
                us, partition, offset = keys.T
                is_before = (partition < last[1]) | ((partition == last[1]) & (offset <= last[2]))
                is_kept = is_kept & ((us < last[0]) | ((us == last[0]) & is_before))
            found = bodies.filter(pa.array(is_kept)).to_pylist()
            yield Frames(keys[is_kept], list(map(frame, found)), read_to)
            if last is not None and after >= last:
                return
