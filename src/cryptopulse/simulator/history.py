"""The market's trades, for REST and the control interface: each product's newest ones, in bounded memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from cryptopulse.simulator.market import RECORD, Ints, Trades
from cryptopulse.simulator.products import SimulatedProduct

PRODUCT_TRADES_MIN = 2000
"""Least number of trades kept per product: two pages of REST."""


class History:
    """Ring buffers of trades, one per product, sized by the product's share of the market.

    Blocks are added as they are generated; a trade is visible once it is published. Ids are dense, so a trade's place
    in the buffer follows from its id.
    """

    def __init__(self, products: Sequence[SimulatedProduct], trades_max: int) -> None:
        """`trades_max`: about how many trades are kept over all products, at least."""
        self._first = np.array([product.first_trade_id for product in products], dtype=np.int64)
        self._next = self._first.copy()
        self.published: Ints = self._first - 1
        """Newest published id of each product; its first id - 1 when there is none."""
        self._skipped: list[list[int]] = [[] for _ in products]
        # An eighth more, because a random stream deviates from the shares.
        self._rings = [
            np.empty(max(int(product.weight * trades_max * 1.125), PRODUCT_TRADES_MIN), dtype=RECORD)
            for product in products
        ]

    def add(self, block: Trades) -> None:
        """Adds a block that will be published in parts."""
        by_product = np.argsort(block["product"], kind="stable")
        ordered = block[by_product]
        numbers, starts = np.unique(ordered["product"], return_index=True)
        for number, rows in zip(numbers.tolist(), np.split(ordered, starts[1:]), strict=True):
            ring = self._rings[number]
            self._next[number] += len(rows)
            newest = rows[-len(ring) :]
            place = (int(newest["trade_id"][0]) - int(self._first[number])) % len(ring)
            head = newest[: len(ring) - place]
            ring[place : place + len(head)] = head
            ring[: len(newest) - len(head)] = newest[len(head) :]

    def shift(self, offset_us: int) -> None:
        """Moves the times of all trades so far by `offset_us`."""
        for ring in self._rings:
            ring["time_us"] += offset_us

    def publish(self, trades: Trades) -> None:
        """Makes the next trades of an added block visible."""
        np.maximum.at(self.published, trades["product"], trades["trade_id"])

    def skip(self, trades: Trades) -> None:
        """Removes the next trades of an added block, as if they never were: call it instead of `publish`."""
        for trade in trades:
            self._skipped[trade["product"]].append(int(trade["trade_id"]))

    def skipped(self, number: int) -> list[int]:
        """The ids up to the newest one that no trade has."""
        ids = self._skipped[number]
        return ids[: bisect_right(ids, self.last_id(number))]

    def first_id(self, number: int) -> int:
        """The product's first id."""
        return int(self._first[number])

    def last_id(self, number: int) -> int:
        """The newest published id; the first id - 1 when nothing is published."""
        return int(self.published[number])

    def first_held_id(self, number: int) -> int:
        """The oldest id of the product that is still kept."""
        return max(int(self._first[number]), int(self._next[number]) - len(self._rings[number]))

    def count(self) -> int:
        """Published trades of all products."""
        skipped = sum(len(self.skipped(number)) for number in range(len(self._rings)))
        return int((self.published - self._first + 1).sum()) - skipped

    def between(self, number: int, low: int, high: int) -> Trades:
        """Published trades of a product with `low` <= id <= `high`, as far as kept, in the order of ids."""
        ring = self._rings[number]
        low = max(low, self.first_held_id(number))
        high = min(high, int(self.published[number]))
        if low > high:
            return np.empty(0, dtype=RECORD)
        found: Trades = ring[(np.arange(low, high + 1) - self._first[number]) % len(ring)]
        if self._skipped[number]:
            found = found[~np.isin(found["trade_id"], self._skipped[number])]
        return found

    def newest(self, number: int, count: int) -> Trades:
        """The last `count` published trades of a product, in the order of ids."""
        return self.below(number, self.last_id(number) + 1, count)

    def below(self, number: int, after: int, count: int) -> Trades:
        """The last `count` published trades with ids below `after`, in the order of ids."""
        high = min(after - 1, self.last_id(number))
        low = high - count + 1
        while len(found := self.between(number, low, high)) < count and low > self.first_held_id(number):
            low -= count - len(found)  # makes up for skipped ids
        return found
