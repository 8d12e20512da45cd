"""The window that is played: its messages in order, its products, and its clock."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.scan import moment_of
from cryptopulse.lake.tables import BRONZE
from cryptopulse.simulator.wire import frame

_PAGE_ROWS = 50_000  # read at a time: some 15 MB
_COLUMNS = ["body", "partition", "offset", "partition_key", "received_time", "source"]


class Frames(NamedTuple):
    """Messages as WebSocket frames, in order."""

    received_us: npt.NDArray[np.int64]
    frames: list[bytes]


class Window:
    """What is played. Its time begins with the first subscription."""

    def __init__(self, lake: Lake, first_us: int, end_us: int, speed: float, products: Iterable[str] | None) -> None:
        """From `first_us` to before `end_us`, times of receipt, µs UTC; the messages inside decide the true edges.

        `speed`: seconds of the past in a second; 0: as fast as they are read. `products`: None for all of the lake.
        Raises ConfigurationError when there is nothing to play.
        """
        held = [row["symbol"] for row in lake.products()]
        self.products = sorted(set(held) if products is None else set(products))
        if unknown := [name for name in self.products if name not in held]:
            raise ConfigurationError(f"The lake has no trades of {unknown[0]}.")
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
        self._sent_us = self.first_us
        self._subscribed: set[str] = set()

    def subscribe(self, products: Collection[str]) -> int:
        """From which time of receipt on (µs UTC) a connection that subscribes to `products` gets messages.

        From the present on; but from the first message for a product to which nobody has subscribed before, so that
        clients with several connections miss nothing. The first subscription starts the clock.
        """
        from_us = self.now_us if self._subscribed.issuperset(products) else self.first_us
        self._subscribed.update(products)
        if self._began_s is None:
            self._began_s = time.monotonic()
        return from_us

    @property
    def now_us(self) -> int:
        """The time in the window, µs UTC; at speed 0 that of the newest message sent."""
        if self._began_s is None:
            return self.first_us
        if self.speed == 0:
            return self._sent_us
        return min(self.first_us + int((time.monotonic() - self._began_s) * self.speed * 1e6), self.last_us)

    def sent(self, received_us: int) -> None:
        """Notes that messages up to this time of receipt were sent."""
        self._sent_us = max(self._sent_us, received_us)

    def messages(
        self, from_us: int, products: Iterable[str], kinds: Collection[str], *, is_advanced: bool
    ) -> Iterator[Frames]:
        """The messages of one feed from a time of receipt on, in the order of receipt.

        Of `products`, and those of none; `kinds`: `"heartbeat"` and `"trades"`, which is all others. What the exchange
        answered to a subscription is left out: it was the recorder's.
        """
        wanted = pa.array(["", *products], pa.string())
        rows = self._messages.limit(_PAGE_ROWS)
        key = (moment_of(max(from_us, self.first_us) - 1), 2**31 - 1, 0)
        while True:
            page = rows.after(*key).arrow()
            if page.num_rows == 0:
                return
            key = tuple(page[name][-1].as_py() for name in ("received_time", "partition", "offset"))
            keep = pc.and_(pc.equal(page["source"], "websocket"), pc.is_in(page["partition_key"], wanted))
            bodies = page["body"]
            is_confirmation = pc.match_substring(bodies, b'"subscriptions"')
            has_channel = pc.match_substring(bodies, b'"channel"')
            keep = pc.and_(keep, pc.and_not(has_channel if is_advanced else pc.invert(has_channel), is_confirmation))
            if len(kinds) == 1:
                is_heartbeat = pc.match_substring_regex(bodies, rb'"(type|channel)"\s*:\s*"heartbeats?"')
                keep = pc.and_(keep, is_heartbeat if "heartbeat" in kinds else pc.invert(is_heartbeat))
            page = page.filter(keep)
            yield Frames(page["received_time"].cast(pa.int64()).to_numpy(), list(map(frame, page["body"].to_pylist())))
