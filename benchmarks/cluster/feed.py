"""Live trades into a log at a given rate, without sockets and parsers: what loads the machine least."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.messages import PRODUCTS, table_of
from cryptopulse.log import Log
from cryptopulse.simulator.episodes import StagedEpisode
from cryptopulse.simulator.market import SimulatedMarket
from cryptopulse.simulator.messages import Writer
from cryptopulse.simulator.products import catalogue

_DEPTH_PCT = 3.0
_CRASH_S = 2.0


class PacedFeed:
    """A market of 20 products whose messages are appended when they are due.

    A message counts as received at the moment at which it is due: when appending takes long, or this process gets no
    processor, the ones that wait meanwhile have the delay in their latency.
    """

    def __init__(self, log: Log, rate: float, crashes_at_s: Sequence[float] = (), seed: int = 7) -> None:
        """Trading begins now, at `rate` trades/s; one product after the other falls by 3 % at `crashes_at_s`."""
        products = catalogue(PRODUCTS, seed)
        self.crashing = {products[i].product_id for i in range(len(crashes_at_s))}
        episodes = [
            StagedEpisode(products[i].product_id, at_s, "crash", _DEPTH_PCT, _CRASH_S)
            for i, at_s in enumerate(crashes_at_s)
        ]
        self._log = log
        self._names = np.array([product.product_id for product in products], dtype=object)
        self._blocks = SimulatedMarket(products, rate, seed, episodes).blocks()
        self.started_us = time.time_ns() // 1000
        self._writer = Writer(products, self.started_us)
        self._waiting = self._next_block()
        self.sent = 0
        """Trades in the log."""

    @property
    def age_s(self) -> float:
        """Seconds since trading began."""
        return (time.time_ns() // 1000 - self.started_us) / 1e6

    def step(self) -> int:
        """Appends what is due; returns how many messages. Call it every few milliseconds."""
        now_us = time.time_ns() // 1000
        while _received_us(self._waiting)[-1] <= now_us:
            self._waiting = pa.concat_tables([self._waiting, self._next_block()])
        due = int(np.searchsorted(_received_us(self._waiting), now_us, side="right"))
        if due:
            self._log.append(self._waiting.slice(0, due).combine_chunks())
            self._waiting = self._waiting.slice(due)
            self.sent += due
        return due

    def _next_block(self) -> pa.Table:
        return table_of(next(self._blocks), self._writer, self._names)


def _received_us(messages: pa.Table) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    values: np.ndarray[tuple[int], np.dtype[np.int64]] = pc.cast(messages["received_time"], pa.int64()).to_numpy()
    return values
