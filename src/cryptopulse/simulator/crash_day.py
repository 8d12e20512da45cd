"""A day on which the market crashed: as a recording that `replay` reads, or played by the simulator.

It is modelled on recordings of 2025-10-10: twenty products whose rates differ by up to a factor of a thousand; a quiet
day; more and more trades from 20:50 UTC on; at 21:15 a crash with a thousand trades in some seconds, an order with nine
hundred fills at one microsecond, and delays of seconds. Now and then the recorder is cut off for one to three seconds,
so that ids are missing in all products at once. What the recording holds is known by construction (`Summary`), so tests
can compare with it. The simulator plays the same day as an exchange, which cuts its connections at these moments.

The same number of trades and seed give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cryptopulse.errors import ConfigurationError
from cryptopulse.simulator.market import RECORD, Flags, Floats, Ints, Trades
from cryptopulse.simulator.messages import Writer, exchange_subscriptions
from cryptopulse.simulator.products import SimulatedProduct

TRADES = 1_600_000
TRADES_MIN, TRADES_MAX = 20_000, 20_000_000

PLAYED_S = 60.0
"""How long a day takes when it is played, if nothing else is wanted."""

START_US = 1_760_054_400_000_000
"""2025-10-10T00:00:00Z, when the recorder connected; microseconds since 1970."""

_SECONDS = np.arange(86_400)
_CHUNK_TRADES = 20_000

# Price at midnight, decimals of price and size, and the share of the price by which it falls.
_PRODUCTS = (
    ("BTC-USD", 119_705.58, 2, 8, 0.13),
    ("ETH-USD", 4_362.17, 2, 8, 0.20),
    ("SOL-USD", 220.84, 2, 8, 0.25),
    ("XRP-USD", 2.8061, 4, 6, 0.55),
    ("DOGE-USD", 0.24716, 5, 1, 0.50),
    ("SUI-USD", 3.4318, 4, 2, 0.70),
    ("LINK-USD", 22.093, 3, 2, 0.55),
    ("ADA-USD", 0.8124, 4, 8, 0.55),
    ("AAVE-USD", 271.02, 2, 3, 0.50),
    ("LTC-USD", 130.45, 2, 8, 0.45),
    ("AVAX-USD", 28.113, 3, 8, 0.60),
    ("HBAR-USD", 0.21387, 5, 1, 0.55),
    ("PEPE-USD", 0.0000092514, 10, 0, 0.60),
    ("SHIB-USD", 0.00001206, 8, 0, 0.45),
    ("UNI-USD", 7.841, 3, 6, 0.60),
    ("BONK-USD", 0.0000184702, 10, 0, 0.55),
    ("CRV-USD", 0.7119, 4, 2, 0.60),
    ("MOG-USD", 0.000000821406, 12, 0, 0.70),
    ("ZILCH-USD", 0.000000015643, 12, 0, 0.60),
    ("NMR-USD", 15.62, 2, 4, 0.40),
)
_RATIO = 1.44  # trades of a product to those of the next one: the first has 490,000 of 1.6 million, the last 480


def _at(hours: int, minutes: int, seconds: int = 0) -> int:
    return hours * 3600 + minutes * 60 + seconds


_STRESS = (
    (_at(20, 50), 0.0),
    (_at(21, 12), 0.3),
    (_at(21, 15), 1.0),
    (_at(21, 25), 1.0),
    (_at(21, 45), 0.45),
    (_at(22, 30), 0.22),
    (_at(24, 0), 0.12),
)
"""Second of the day → stress from 0 to 1, which drives rates and volatility."""
_FALL = (
    (_at(21, 10), 0.0),
    (_at(21, 16), 0.35),
    (_at(21, 20), 1.0),
    (_at(21, 24), 0.7),
    (_at(21, 45), 0.45),
    (_at(24, 0), 0.4),
)
"""Second of the day → the part of a product's fall that has happened."""
_PEAK_S = (_at(21, 14), _at(21, 26))

_CRASH_TRADES = 25  # rate at stress 1, added to the quiet day's mean rate of 1
_CALM = 7.3e-5  # standard deviation of a price within a second, as a share of it: 2 % in a day, 0.2 % in two minutes
_WILD = 15.5  # added to the factor 1 of _CALM at stress 1: makes some 500 moves of 1 % within two minutes

_BURSTS = 8  # number of bursts, each within a second
_BURST_SHARE = 850 / TRADES  # share of all trades that a burst adds to its second
_SWEPT, _SWEEP_S, _SWEEP_FILLS = 5, _at(21, 16), 900  # product, time and trades of one order
_FILLS_MAX = 300  # of any other order
_IMPACT = 5e-6  # mean share of the price by which a fill moves it

_DUST = 0.004  # share of trades whose size is a few of the smallest steps
_SIZE_UNITS_MAX = 9e11

_CUTS, _CUTS_IN_CRASH = 18, 5  # how often the recorder lost its connection
_HELLO_US = 100  # the answer to subscribing and the last_match messages come this long before a connection begins
_QUEUES = 10  # how often a product's messages are delayed in a queue during the crash
_DELAY_MAX_S = 12.0
_CLOCK_BEHIND_S = 0.06  # for two hours the recorder's clock is this late: messages come before their time


@dataclass(frozen=True, slots=True)
class ProductSummary:
    """What a recording holds of one product."""

    trades: int
    """Ids held, each once."""
    first_trade_id: int
    last_trade_id: int
    missing_ids: int
    holes: int
    """Runs of missing ids."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a recording holds, and so what a lake must hold after its replay."""

    messages: int
    """Lines of the file."""
    trades: int
    repeated: int
    """Messages with a trade that an earlier message had."""
    missing_ids: int
    holes: int
    connections: int
    products: dict[str, ProductSummary]


class RecordedMessages(NamedTuple):
    """Messages in the order in which they were received."""

    received_us: list[int]
    """Microseconds since 1970; never decreases within a recording."""
    products: list[str]
    """"" for a message without a product."""
    bodies: list[bytes]


def crash_day_products(trades: int, seed: int) -> tuple[SimulatedProduct, ...]:
    """The products of a crash day, the most traded first.

    Raises ConfigurationError when `trades` or `seed` is out of range.
    """
    if not TRADES_MIN <= trades <= TRADES_MAX:
        raise ConfigurationError(f"A crash day has {TRADES_MIN:,} to {TRADES_MAX:,} trades, not {trades:,}.")
    if seed < 0:
        raise ConfigurationError("A seed can't be negative.")
    weights = _RATIO ** -np.arange(len(_PRODUCTS))
    weights /= weights.sum()
    rng = np.random.default_rng([seed, len(_PRODUCTS)])
    return tuple(
        SimulatedProduct(
            product_id=name,
            price_decimals=price_decimals,
            size_decimals=size_decimals,
            price_ticks=round(price * 10**price_decimals),
            first_trade_id=int(10 ** rng.uniform(6, 9)),
            weight=float(weight),
            key=int(rng.integers(2**63)),
        )
        for (name, price, price_decimals, size_decimals, _), weight in zip(_PRODUCTS, weights, strict=True)
    )


class CrashDay:
    """The trades of one day, and when its recorder received them."""

    def __init__(self, trades: int = TRADES, seed: int = 1) -> None:
        """`trades`: number made on the exchange; the recorder misses a few.

        Raises ConfigurationError when `trades` or `seed` is out of range.
        """
        self.products = crash_day_products(trades, seed)
        day = _Day(trades, seed, self.products)
        made = [day.trades_of(number) for number in range(len(self.products))]
        received_us = np.concatenate([received for _, received in made])
        order = np.argsort(received_us, kind="stable")
        self.trades: Trades = np.concatenate([trades for trades, _ in made])[order]
        """All trades that were made, in the order of receipt, including those that the recorder missed."""
        self.received_us: Ints = received_us[order]
        """When each trade was received, or would have been; microseconds since the day began."""
        self._connections = [self._connection(begin, end) for begin, end in day.connections()]
        self.summary = self._summary()

    def _connection(self, begin_us: int, end_us: int) -> _Connection:
        """The trades of a connection that was open from `begin_us` to before `end_us`."""
        first, end = np.searchsorted(self.received_us, [begin_us, end_us])
        newest = np.empty(len(self.products), dtype=np.int64)
        newest[self.trades["product"][:first]] = np.arange(first)  # of repeated products the last value counts
        return _Connection(begin_us, int(first), int(end), newest)

    def _summary(self) -> Summary:
        held = np.zeros(len(self.trades), dtype=np.bool_)
        repeated = 0
        for connection in self._connections:
            repeated += int(held[connection.newest].sum())
            held[connection.newest] = True
            held[connection.first : connection.end] = True
        products = {}
        for number, product in enumerate(self.products):
            own = self.trades["product"] == number
            there = held[own]
            ids = self.trades["trade_id"][own][there]
            products[product.product_id] = ProductSummary(
                trades=len(ids),
                first_trade_id=int(ids[0]),
                last_trade_id=int(ids[-1]),
                missing_ids=int((~there).sum()),
                holes=int((there[:-1] & ~there[1:]).sum()),
            )
        trades = sum(product.trades for product in products.values())
        return Summary(
            messages=trades + repeated + len(self._connections),
            trades=trades,
            repeated=repeated,
            missing_ids=sum(product.missing_ids for product in products.values()),
            holes=sum(product.holes for product in products.values()),
            connections=len(self._connections),
            products=products,
        )

    def parts(self) -> Iterator[tuple[Trades, Trades]]:
        """All trades, by the recorder's connections: those that it missed before each, and those while it was open."""
        end = 0
        for connection in self._connections:
            yield self.trades[end : connection.first], self.trades[connection.first : connection.end]
            end = connection.end

    def messages(self) -> Iterator[RecordedMessages]:
        """All messages, some thousand at a time."""
        writer = Writer(self.products, START_US)
        names = [product.product_id for product in self.products]
        hello = exchange_subscriptions({"matches": names})
        for connection in self._connections:
            last = writer.matches(self.trades[connection.newest], "last_match")
            at_us = START_US + connection.begin_us - _HELLO_US
            yield RecordedMessages(list(range(at_us, at_us + 1 + len(last))), ["", *names], [hello, *last])
            for start in range(connection.first, connection.end, _CHUNK_TRADES):
                chunk = slice(start, min(start + _CHUNK_TRADES, connection.end))
                trades = self.trades[chunk]
                yield RecordedMessages(
                    (self.received_us[chunk] + START_US).tolist(),
                    [names[number] for number in trades["product"].tolist()],
                    writer.matches(trades),
                )

    def write(self, path: Path) -> Summary:
        """Writes the recording, 750 MB for 1.6 million trades. Raises OSError."""
        with path.open("wb") as file:
            for received_us, _, bodies in self.messages():
                file.writelines(
                    b'{"recv": %d.%06d, "raw": "%s"}\n' % (*divmod(us, 1_000_000), body.replace(b'"', b'\\"'))
                    for us, body in zip(received_us, bodies, strict=True)
                )
        return self.summary


class _Connection(NamedTuple):
    begin_us: int
    first: int
    """Index of its first trade in `CrashDay.trades`."""
    end: int
    newest: Ints
    """Product → index of its newest trade when the connection began, which is sent as `last_match`."""


class _Day:
    """What all products have in common, and the trades of each. Times are microseconds since the start."""

    def __init__(self, trades: int, seed: int, products: tuple[SimulatedProduct, ...]) -> None:
        self._seed = seed
        self._products = products
        counts = np.array([max(int(trades * product.weight), 2) for product in products])
        counts[0] += trades - counts.sum()
        self._counts = counts
        rng = np.random.default_rng([seed, len(products) + 1])
        self._stress = _curve(_STRESS)
        self._fall = _curve(_FALL)
        self._sigma = _CALM * (1 + _WILD * np.sqrt(self._stress))
        self._market = rng.normal(size=len(_SECONDS))
        self._bursts = rng.choice(np.arange(*_PEAK_S), _BURSTS, replace=False)
        self._clock_back_s = int(rng.integers(_at(1, 0), _at(18, 0)))
        self._cuts_s = np.sort(
            np.concatenate(
                [rng.uniform(_at(0, 10), _at(20, 0), _CUTS), rng.uniform(_at(21, 0), _at(23, 50), _CUTS_IN_CRASH)]
            )
        )
        self._cut_lengths_s = rng.uniform(1, 3, len(self._cuts_s))

    def connections(self) -> list[tuple[int, int]]:
        """[start, end) of each connection of the recorder; the first begins with the day, the last has no end."""
        cuts = np.stack([self._cuts_s, self._cuts_s + self._cut_lengths_s], axis=1) * 1e6
        moments = [0, *cuts.astype(np.int64).ravel().tolist(), np.iinfo(np.int64).max]
        return list(pairwise(moments))[::2]

    def trades_of(self, number: int) -> tuple[Trades, Ints]:
        """A product's trades in the order of ids, and when a connected recorder would receive each."""
        rng = np.random.default_rng([self._seed, number])
        product = self._products[number]
        order_us, fills = self._orders(rng, number, int(self._counts[number]))
        first = np.repeat(np.cumsum(fills) - fills, fills)
        trades = np.zeros(len(first), dtype=RECORD)
        trades["product"] = number
        trades["trade_id"] = product.first_trade_id + np.arange(len(trades))
        trades["taker"] = product.first_trade_id + first
        trades["sequence"] = product.first_trade_id * 120 + np.cumsum(rng.integers(1, 240, len(trades)))
        trades["time_us"] = np.repeat(order_us, fills)
        # The logarithm of the price at each second, relative to the price at midnight.
        steps = self._sigma * (0.6 * self._market + 0.8 * rng.normal(size=len(_SECONDS)))
        path: Floats = np.cumsum(steps) + np.log(1 - _PRODUCTS[number][-1] * self._fall)
        second = np.clip(order_us / 1e6, 0, len(path) - 1)
        is_falling = np.diff(path, append=path[-1])[second.astype(np.int64)] < 0
        maker_sell = rng.random(len(fills)) < np.where(is_falling, 0.35, 0.65)
        trades["maker_sell"] = np.repeat(maker_sell, fills)
        best = np.floor(product.price_ticks * np.exp(np.interp(second, _SECONDS, path))) + maker_sell
        trades["price"] = _swept(rng, np.repeat(best, fills), trades["maker_sell"], first)
        trades["size"] = _sizes(rng, trades["price"], product)
        received_us = np.repeat(order_us + self._delays_us(rng, order_us), fills) + 4 * (np.arange(len(first)) - first)
        return trades, np.maximum.accumulate(received_us)

    def _orders(self, rng: np.random.Generator, number: int, trades: int) -> tuple[Ints, Ints]:
        """Times of taker orders, and the number of fills of each; the first order is before the recorder connected."""
        sweep = _SWEEP_FILLS if number == _SWEPT else 0
        fills = np.minimum(rng.zipf(2.2, trades), min(max(trades // 100, 5), _FILLS_MAX))
        fills[0] = 1
        upto = np.cumsum(fills)
        orders = int(np.searchsorted(upto, trades - sweep)) + 1
        fills = fills[:orders]
        fills[-1] -= upto[orders - 1] - (trades - sweep)

        daily = 1 + 0.35 * np.sin(2 * np.pi * (_SECONDS / 86_400 - 0.4))
        rate = daily * np.repeat(rng.gamma(2, 0.5, 1440), 60) + _CRASH_TRADES * self._stress
        rate *= (1 - _BURSTS * _BURST_SHARE) / rate.sum()
        rate[self._bursts] += _BURST_SHARE
        upto_second = np.cumsum(rate)
        second = np.searchsorted(upto_second / upto_second[-1], rng.random(orders - 1))
        # In the second of a burst, two fifths of the orders come within a tenth of it.
        in_burst = np.minimum(rng.exponential(0.18, orders - 1), 0.999)
        within = np.where(np.isin(second, self._bursts), in_burst, rng.random(orders - 1))
        times_us = np.sort(((second + within) * 1e6).astype(np.int64))
        times_us = np.concatenate([[-int(rng.integers(61_000_000, 120_000_000))], times_us])
        if sweep:
            at_us = _SWEEP_S * 1_000_000 + 250_000
            place = int(np.searchsorted(times_us, at_us))
            return np.insert(times_us, place, at_us), np.insert(fills, place, sweep)
        return times_us, fills

    def _delays_us(self, rng: np.random.Generator, order_us: Ints) -> Ints:
        """Delay of each order's messages; may be negative while the recorder's clock is behind."""
        second = order_us / 1e6
        delay_s = 0.03 + rng.lognormal(np.log(0.01), 0.9, len(second))
        # A queue appears at once with its longest wait, and drains in three times that wait.
        begins = rng.uniform(*_PEAK_S, _QUEUES)
        longest_s = np.minimum(rng.lognormal(np.log(2.5), 0.8, _QUEUES), _DELAY_MAX_S - 0.5)
        longest_s[0] = max(longest_s[0], rng.uniform(4, _DELAY_MAX_S - 0.5))
        for begin, wait_s in zip(begins.tolist(), longest_s.tolist(), strict=True):
            since = second - begin
            queued = (since >= 0) & (since < 3 * wait_s)
            delay_s = np.where(queued, np.maximum(delay_s, wait_s - since / 3), delay_s)
        behind = (second >= self._clock_back_s) & (second < self._clock_back_s + 7200)
        delays: Ints = ((delay_s - _CLOCK_BEHIND_S * behind) * 1e6).astype(np.int64)
        return delays


def _curve(knots: Sequence[tuple[int, float]]) -> Floats:
    """Linear interpolation through (second, value), at each second of the day."""
    seconds, values = zip(*knots, strict=True)
    curve: Floats = np.interp(_SECONDS, np.array(seconds), np.array(values))
    return curve


def _swept(rng: np.random.Generator, best: Floats, maker_sell: Flags, first: Ints) -> Ints:
    """Prices of fills: each order walks away from the best price, further with each fill."""
    walked = np.cumsum(rng.exponential(_IMPACT, len(best)))
    away = np.floor((walked - walked[first]) * best)
    price: Ints = np.maximum(best + np.where(maker_sell, away, -away), 1).astype(np.int64)
    return price


def _sizes(rng: np.random.Generator, price: Ints, product: SimulatedProduct) -> Ints:
    """Sizes whose values in quote currency are heavy-tailed, and a few tiny ones."""
    value = rng.lognormal(np.log(120), 1.8, len(price))
    units = np.minimum(value / (price * product.tick), _SIZE_UNITS_MAX)
    steps = np.maximum(np.round(units * 10.0**product.size_decimals), 1).astype(np.int64)
    is_dust = rng.random(len(price)) < _DUST
    size: Ints = np.where(is_dust, rng.integers(1, 20, len(price)), steps)
    return size
