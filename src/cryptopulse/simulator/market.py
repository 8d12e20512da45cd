"""The simulated market: an endless, seeded stream of trades over market time.

The same seed and parameters give the same trades, independent of clock and clients. Trades come in blocks of columns,
since making them one by one would be far slower.

Prices are calm by construction. A product's price is its level times 1 + a sum of random functions of time, each
bounded in height and slope (`_WAVES`). So the widest range within any two minutes is known: under 0.25 %, plus 0.17 %
for ticks and sweeps of the coarsest product. The default alert rule needs 1 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryptopulse.simulator.episodes import StagedEpisode, check_products
from cryptopulse.simulator.products import SimulatedProduct

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_WAVES = (
    # (seconds between two random heights, largest height as a share of the price)
    (1.5, 0.00012),
    (7.0, 0.0002),
    (40.0, 0.0003),
    (200.0, 0.0004),
    (1_200.0, 0.0015),
    (7_200.0, 0.008),
    (43_200.0, 0.02),
)

# Fills of one taker order: three quarters have one, a few sweep dozens of levels (32 at one instant were recorded in a
# quiet minute). Shares of orders with 1, 1 + geometric(0.35) and 20..60 fills, and the mean number of fills.
_SINGLE, _SEVERAL, _SWEEP = 0.75, 0.24, 0.01
_FILLS_MEAN = _SINGLE + _SEVERAL * (1 + 1 / 0.35) + _SWEEP * 40

_BREATH_S = 7.0
"""Period in which the market gets busier and quieter; the mean over a period is the rate."""

_EPISODE_TRADES_PER_S = 20.0
"""Least additional trades of a product per second during its episode, because people react to a crash."""

_SWEEP_RANGE = 0.0003
"""A sweep moves at most this share of the price through the book."""

_SIZE_UNITS_MAX = 9e11
"""Sizes stay under 1e12 units of the base currency, beyond what is seen on the exchange."""

RECORD = np.dtype(
    [
        ("time_us", np.int64),
        ("product", np.int32),
        ("trade_id", np.int64),
        ("price", np.int64),
        ("size", np.int64),
        ("maker_sell", np.bool_),
        ("sequence", np.int64),
        ("taker", np.int64),
    ]
)
"""A trade: `time_us` microseconds since the start of trading, negative before; `product` index in the catalogue;
`price` and `size` integers in the product's smallest steps; `maker_sell` whether the maker sold (the taker bought);
`taker` the id of the first fill of the same taker order."""

Trades = np.ndarray[tuple[int], np.dtype[np.void]]


@dataclass(slots=True)
class PlayedEpisode:
    """An episode with the ids of the product's first and last trade during it, None before there is one."""

    episode: StagedEpisode
    first_trade_id: int | None = None
    last_trade_id: int | None = None


class SimulatedMarket:
    """A seeded market; iterate `blocks()` once."""

    def __init__(
        self, products: Sequence[SimulatedProduct], rate: float, seed: int, episodes: Sequence[StagedEpisode] = ()
    ) -> None:
        """`rate`: mean trades per second of market time, all products together.

        Raises ConfigurationError when the product of an episode is not traded.
        """
        check_products(episodes, (product.product_id for product in products))
        self.products = tuple(products)
        self.played = [PlayedEpisode(episode) for episode in episodes]
        self._index = {product.product_id: i for i, product in enumerate(products)}
        self._rate = rate
        self._rng = np.random.default_rng([seed, 1])
        self._weights = np.cumsum([product.weight for product in products])
        self._weights[-1] = 1.0
        self._keys = np.array([product.key for product in products], dtype=np.uint64)
        self._levels = np.array([product.price_ticks for product in products], dtype=np.float64)
        self._tick = np.array([product.tick for product in products])
        self._units = np.array([10.0**product.size_decimals for product in products])
        # Order books have about one level per 0.1 basis points, at least one tick apart.
        self._level_step = np.maximum(np.round(self._levels * 1e-5), 1).astype(np.int64)
        self._sweep_max = np.maximum(self._levels * _SWEEP_RANGE, 1).astype(np.int64)
        self._made = 0.0  # trades since the start, without those of episodes
        self._next_id = np.array([product.first_trade_id for product in products], dtype=np.int64)
        self._sequence = self._next_id * 120  # about the relation seen on BTC-USD

    def blocks(self) -> Iterator[Trades]:
        """Trades in the order of time, and of `trade_id` within a product, without end."""
        # About a thousand trades per block: enough for NumPy to pay off, few enough to be made in 2 ms.
        length_s = min(max(1000 / self._rate, 0.05), 10.0)
        number = 0
        while True:
            block = self._next_block(number * length_s, length_s)
            if len(block):
                yield block
            number += 1

    def past(self, seconds: float, until_s: float, rate: float) -> Trades:
        """The trades of `seconds` up to `until_s` (at most 0), at a mean `rate`; call it before `blocks`."""
        usual, self._rate, self._made = self._rate, rate, self._due(rate, until_s - seconds)
        trades = self._next_block(until_s - seconds, seconds)
        self._rate, self._made = usual, 0.0
        return trades

    @staticmethod
    def _due(rate: float, until_s: float) -> float:
        """How many trades the market has made by then: the rate varies by a fifth."""
        breath = 2 * np.pi / _BREATH_S
        return float(rate * (until_s - 0.2 * np.sin(breath * until_s) / breath))

    def _next_block(self, start_s: float, length_s: float) -> Trades:
        rng = self._rng
        time_us, product, maker_sell, scripted = self._orders(start_s, length_s)
        kind = rng.random(len(time_us))
        several = 1 + rng.geometric(0.35, len(time_us))
        sweep = rng.integers(20, 61, len(time_us))
        fills = np.where(kind < _SINGLE, 1, np.where(kind < _SINGLE + _SEVERAL, several, sweep)).astype(np.int64)
        self._made += int(fills[~scripted].sum())
        order = np.repeat(np.arange(len(time_us)), fills)
        first_fill = np.repeat(np.cumsum(fills) - fills, fills)
        trades = np.zeros(len(order), dtype=RECORD)
        trades["time_us"] = time_us[order]
        trades["product"] = product[order]
        trades["maker_sell"] = maker_sell[order]
        best = self._best_prices(time_us, product, maker_sell)
        trades["price"] = self._swept(best[order], trades, first_fill)
        trades["size"] = self._sizes(trades)
        self._number(trades)
        trades["taker"] = trades["trade_id"][first_fill] if len(trades) else 0
        for played in self.played:
            episode = played.episode
            inside = (trades["time_us"] >= episode.at_s * 1e6) & (trades["time_us"] <= episode.end_s * 1e6)
            ids = trades["trade_id"][inside & (trades["product"] == self._index[episode.product])]
            if len(ids):
                played.first_trade_id = played.first_trade_id or int(ids[0])
                played.last_trade_id = int(ids[-1])
        return trades

    def _orders(self, start_s: float, length_s: float) -> tuple[Ints, Ints, Flags, Flags]:
        """Taker orders of a block in the order of time: time, product, whether the maker sells, whether scripted."""
        rng = self._rng
        end_s = start_s + length_s
        count = int(rng.poisson(max(self._due(self._rate, end_s) - self._made, 0) / _FILLS_MEAN))
        # Most orders are spread evenly, three in ten come in bursts of a few milliseconds.
        time_s = rng.uniform(start_s, end_s, count)
        centres = rng.uniform(start_s, end_s, count // 40 + 1)
        burst = centres[rng.integers(0, len(centres), count)] + rng.exponential(0.002, count)
        time_s = np.where((rng.random(count) < 0.3) & (burst < end_s), burst, time_s)
        product = np.searchsorted(self._weights, rng.random(count), side="right").astype(np.int64)
        maker_sell = rng.random(count) < 0.5
        for played in self.played:
            low, high = max(start_s, played.episode.at_s), min(end_s, played.episode.end_s)
            if low >= high:
                continue
            rate = max(_EPISODE_TRADES_PER_S, 0.1 * self._rate)
            extra = rng.uniform(low, high, int(rng.poisson(rate * (high - low) / _FILLS_MEAN)))
            time_s = np.concatenate([time_s, extra])
            product = np.concatenate([product, np.full(len(extra), self._index[played.episode.product])])
            buying = 0.85 if played.episode.kind == "surge" else 0.15
            maker_sell = np.concatenate([maker_sell, rng.random(len(extra)) < buying])
        time_us = (time_s * 1e6).astype(np.int64)
        order = np.argsort(time_us, kind="stable")
        return time_us[order], product[order], maker_sell[order], order >= count

    def _best_prices(self, time_us: Ints, product: Ints, maker_sell: Flags) -> Ints:
        """The price at which each order starts: the best offer when the maker sells, else the best bid."""
        time_s = time_us / 1e6
        move = np.zeros(len(time_s))
        for number, (spacing_s, height) in enumerate(_WAVES):
            move += height * _wave(self._keys[product], number, time_s, spacing_s)
        middle = self._levels[product] * (1 + move)
        for played in self.played:
            concerned = product == self._index[played.episode.product]
            middle[concerned] *= played.episode.factor(time_s[concerned])
        best: Ints = np.floor(middle).astype(np.int64) + maker_sell
        return best

    def _swept(self, best: Ints, trades: Trades, first_fill: Ints) -> Ints:
        """Prices of fills: each order moves monotonically away from the best price, level by level."""
        deeper = np.cumsum(self._rng.random(len(best)) < 0.4)
        level = deeper - deeper[first_fill] if len(best) else deeper
        product = trades["product"]
        away = np.minimum(level * self._level_step[product], self._sweep_max[product])
        price: Ints = np.maximum(best + np.where(trades["maker_sell"], away, -away), 1)
        return price

    def _sizes(self, trades: Trades) -> Ints:
        """Sizes whose values in quote currency are heavy-tailed: median 120, one in a thousand over 30,000."""
        product = trades["product"]
        value = self._rng.lognormal(np.log(120), 1.8, len(trades))
        units = np.minimum(value / (trades["price"] * self._tick[product]), _SIZE_UNITS_MAX)
        size: Ints = np.maximum(np.round(units * self._units[product]), 1).astype(np.int64)
        return size

    def _number(self, trades: Trades) -> None:
        """Gives trades their ids (dense) and sequences (jumping) per product."""
        by_product = np.argsort(trades["product"], kind="stable")
        product = trades["product"][by_product]
        counts = np.bincount(product, minlength=len(self.products))
        before = np.repeat(np.cumsum(counts) - counts, counts)
        trades["trade_id"][by_product] = self._next_id[product] + np.arange(len(trades)) - before
        steps = np.cumsum(self._rng.integers(1, 240, len(trades)))
        start = np.concatenate([[0], steps])[before]
        trades["sequence"][by_product] = self._sequence[product] + steps - start
        self._next_id += counts
        np.maximum.at(self._sequence, trades["product"], trades["sequence"])


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hashes 64-bit values (the finaliser of SplitMix64), so that neighbours become unrelated."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _wave(keys: npt.NDArray[np.uint64], number: int, time_s: Floats, spacing_s: float) -> Floats:
    """A random function of time within ±1: linear between random heights every `spacing_s` seconds."""
    place = time_s / spacing_s
    node = np.floor(place)
    salt = np.uint64((number + 1) * 0xD1B54A32D192ED03 % 2**64)

    def height(at: Floats) -> Floats:
        steps = at.astype(np.int64).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return mix(mix(keys + salt) + steps).astype(np.float64) / 2.0**63 - 1.0

    left, right = height(node), height(node + 1)
    return left + (right - left) * (place - node)
