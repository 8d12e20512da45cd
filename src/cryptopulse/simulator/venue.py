"""The simulated exchange that all connections share: its market, its clock, and the published trades."""

from __future__ import annotations

import asyncio
import math
import random
import time
from functools import cached_property

import numpy as np
import structlog

from cryptopulse.errors import ConfigurationError
from cryptopulse.simulator.crash_day import CrashDay
from cryptopulse.simulator.faults import Faults, oversized_frame
from cryptopulse.simulator.history import History
from cryptopulse.simulator.market import Ints, SimulatedMarket, Trades
from cryptopulse.simulator.messages import Writer
from cryptopulse.simulator.options import SimulatorOptions
from cryptopulse.simulator.wire import frame

log = structlog.get_logger()


class Batch:
    """Trades that are published together, encoded at most once for all connections."""

    def __init__(self, trades: Trades, writer: Writer) -> None:
        """`trades` are in the order of publication."""
        self.trades = trades
        self._writer = writer

    @cached_property
    def product(self) -> Ints:
        """Product number of each trade."""
        return self.trades["product"]

    @cached_property
    def matches(self) -> list[bytes]:
        """A frame of the Exchange feed for each trade."""
        return [frame(message) for message in self._writer.matches(self.trades)]

    @cached_property
    def matches_joined(self) -> bytes:
        """All frames of `matches` in one piece."""
        return b"".join(self.matches)

    @cached_property
    def advanced(self) -> list[bytes]:
        """Advanced Trade's JSON of each trade."""
        return self._writer.advanced_trades(self.trades)


_PAST = ((7_200.0, 6.0), (math.inf, 0.5))
"""The market before the start, from the newest part to the oldest: seconds, and trades a second of all products."""

_MINUTE_US, _DAY_US = 60_000_000, 86_400_000_000


class SimulatedVenue:
    """Products, published trades, and the market's clock."""

    def __init__(self, options: SimulatorOptions) -> None:
        """Does not start trading: see `start`."""
        self.options = options
        self.products = options.catalogue()
        self.numbers = {product.product_id: number for number, product in enumerate(self.products)}
        self.market = SimulatedMarket(self.products, options.rate, options.seed, options.episodes)
        day_trades = options.crash_day_trades
        self.day = None if day_trades is None else CrashDay(day_trades, options.seed)
        """What is played in the market's place."""
        past = self._past_parts()
        expected = sum(length_s * rate for length_s, _, rate in past)
        self.history = History(self.products, max(options.history, day_trades or 0, int(1.3 * expected)))
        self.sequences = self.history.published * 120
        """Newest published sequence of each product."""
        self.set_faults(options.faults)
        self.started = asyncio.Event()
        self.stopped = False
        self.started_ns = 0
        """When trading started, nanoseconds UTC since 1970."""
        self._started_monotonic = 0.0
        self._published_us = 0
        self._random = random.Random(options.faults_seed)  # noqa: S311  nothing secret
        self.writer = Writer(self.products, self.market_us())  # until the market opens, times count from now
        for part in reversed(past):
            trades = self.market.past(*part)
            self.history.add(trades)
            self.publish(trades)

    def _past_parts(self) -> list[tuple[float, float, float]]:
        """The parts of the past, the newest first: length and end (seconds of market time), trades a second."""
        parts = []
        until_s = 0.0
        for most_s, rate in _PAST:
            length_s = min(most_s, self.options.past_s + until_s)
            if length_s > 0:
                parts.append((length_s, until_s, min(rate, self.options.rate)))
            until_s -= length_s
        return parts

    def start(self) -> None:
        """Starts trading, once."""
        if self.started.is_set() or self.stopped:
            return
        self.started_ns = time.time_ns()
        self._started_monotonic = time.monotonic()
        start_us = self.market_us()
        if self.day is not None:  # its last trade is of now, so none is of the future
            start_us = start_us // _MINUTE_US * _MINUTE_US - _DAY_US
        if self.options.past_s:  # whose times are from now on those before this start
            self.history.shift(self.writer.start_us - start_us)
        self._published_us = 0
        self.writer = Writer(self.products, start_us)
        self.started.set()
        log.info("simulator_trading_started", products=len(self.products), rate=self.options.rate)

    def set_faults(self, faults: Faults) -> None:
        """Sets the faults from now on. Raises ConfigurationError for a product that is not traded here."""
        product, _ = faults.mute
        if product and product not in self.numbers:
            raise ConfigurationError(f"Fault mute: {product} is not traded here.")
        self.faults, self.faults_since = faults, time.monotonic()
        """The faults, and since when (monotonic seconds)."""

    def offset_us(self) -> int:
        """Market time since the start of trading, in microseconds; at speed 0, and of a crash day, the time of the
        newest trade."""
        if not self.started.is_set():
            return self.market_us() - self.writer.start_us
        if self.options.speed == 0 or self.day is not None:
            return self._published_us
        return int((time.monotonic() - self._started_monotonic) * self.options.speed * 1e6)

    def market_us(self) -> int:
        """Market time, microseconds UTC since 1970."""
        if self.started.is_set():
            return self.writer.start_us + self.offset_us()
        start_ns = self.options.start_time_ns
        return (time.time_ns() if start_ns is None else start_ns) // 1000

    def publish(self, trades: Trades) -> Batch:
        """Publishes the next trades of the market."""
        if self.faults.skip:
            there = np.array([self._random.random() >= self.faults.skip for _ in trades])
            self.history.skip(trades[~there])
            trades = trades[there]
        self.history.publish(trades)
        np.maximum.at(self.sequences, trades["product"], trades["sequence"])
        if len(trades):
            self._published_us = max(self._published_us, int(trades["time_us"][-1]))
        return Batch(trades, self.writer)

    @cached_property
    def oversized(self) -> bytes:
        """A frame that is larger than readers of trades expect."""
        return oversized_frame(self.products[0].product_id)
