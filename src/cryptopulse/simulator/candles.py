"""Candles of the simulated market."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cryptopulse.simulator.messages import decimal_text
from cryptopulse.simulator.venue import SimulatedVenue


class SimulatedCandle(NamedTuple):
    """A span of trading, with prices and the volume as texts."""

    start: int
    """Seconds since 1970 (UTC)."""
    low: str
    high: str
    open: str
    close: str
    volume: str
    trades: int


def candles_between(
    venue: SimulatedVenue, number: int, first: int, last: int, length: int = 60
) -> list[SimulatedCandle]:
    """The candles of a product that start from `first` to `last` (seconds since 1970), in order.

    `length`: of a candle, in seconds. Spans without trades have none.
    """
    trades = venue.history.between(number, 0, venue.history.last_id(number))
    seconds = (trades["time_us"] + venue.writer.start_us) // 1_000_000
    opened = seconds - seconds % length
    inside = slice(*np.searchsorted(opened, [first, last + 1]).tolist())
    if inside.start >= inside.stop:
        return []
    times, starts = np.unique(opened[inside], return_index=True)
    price, size = trades["price"][inside], trades["size"][inside]
    ends = np.append(starts[1:], len(price))
    low, high = np.minimum.reduceat(price, starts), np.maximum.reduceat(price, starts)
    columns = (times, low, high, price[starts], price[ends - 1], np.add.reduceat(size, starts), ends - starts)
    product = venue.products[number]
    found = []
    for second, *prices, volume, count in zip(*(column.tolist() for column in columns), strict=True):
        lowest, highest, opening, closing = (decimal_text(one, product.price_decimals) for one in prices)
        text = decimal_text(volume, product.size_decimals)
        found.append(SimulatedCandle(second, lowest, highest, opening, closing, text, count))
    return found


def filled(candles: list[SimulatedCandle]) -> list[SimulatedCandle]:
    """`candles` of minutes with one for each minute between them: the last price, and nothing traded."""
    found: list[SimulatedCandle] = []
    for candle in candles:
        while found and found[-1].start + 60 < candle.start:
            price = found[-1].close
            found.append(SimulatedCandle(found[-1].start + 60, price, price, price, price, "0", 0))
        found.append(candle)
    return found
