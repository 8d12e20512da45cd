"""The products of the simulated market, with their ticks, price levels and popularity."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.products import is_product_id

PRODUCTS_MAX = 2000
"""More products than Coinbase has; bounds the memory of a simulator."""

PRICE_TICKS_MIN = 2400
"""A price is at least this many ticks, so that one tick is at most 0.042 %. With coarser ticks, a few of them would be
a crash or surge by the default rule."""


# Price level, decimals of the price and first trade id of a run, near Coinbase's in 2026. SHIB has a tick of 1e-8,
# ZILCH a price under 1e-8 with sizes of billions of units.
_KNOWN: dict[str, tuple[float, int, int]] = {
    "BTC-USD": (63_519.28, 2, 1_052_119_288),
    "ETH-USD": (1_919.49, 2, 825_468_236),
    "SOL-USD": (152.37, 2, 412_905_117),
    "XRP-USD": (0.6123, 4, 201_554_903),
    "DOGE-USD": (0.12345, 5, 148_230_761),
    "SHIB-USD": (0.00002435, 8, 96_018_244),
    "ZILCH-USD": (5.643e-09, 12, 3_104_551),
    "LINK-USD": (14.283, 3, 57_334_902),
    "ADA-USD": (0.4567, 4, 88_412_650),
    "AVAX-USD": (27.451, 3, 44_120_098),
    "LTC-USD": (84.21, 2, 121_874_330),
    "PEPE-USD": (0.0000101234, 10, 31_208_477),
}

_SYLLABLES = ("AL", "BO", "CY", "DE", "EX", "FA", "GO", "HY", "IN", "JU", "KA", "LU", "MO", "NE", "OR", "PA", "QI")


@dataclass(frozen=True, slots=True)
class SimulatedProduct:
    """One product; prices are integers of 10^-price_decimals, sizes integers of 10^-size_decimals."""

    product_id: str
    price_decimals: int
    size_decimals: int
    price_ticks: int
    """Price level around which the product trades, in ticks."""
    first_trade_id: int
    """Id of the product's first trade in a run."""
    weight: float
    """Share of the market's trades; the sum over all products is 1."""
    key: int
    """A 64-bit seed of the product, for its random prices and order ids."""

    @property
    def tick(self) -> float:
        """Smallest price step in quote currency."""
        return float(10.0**-self.price_decimals)


def catalogue(products: int | Sequence[str], seed: int) -> tuple[SimulatedProduct, ...]:
    """The products of a market, the popular ones first.

    `products`: a number (well-known names first, then generated ones) or a list of product ids. Ticks and price level
    of a product depend only on its id, its random prices on id and `seed`, its popularity on its rank.

    Raises ConfigurationError for a bad id, a repeated id, or a number out of range.
    """
    ids = _names(products) if isinstance(products, int) else list(products)
    if not 1 <= len(ids) <= PRODUCTS_MAX:
        raise ConfigurationError(f"A simulated market has 1 to {PRODUCTS_MAX} products, not {len(ids)}.")
    if len(set(ids)) != len(ids):
        raise ConfigurationError("A product is named twice: name each product of the simulated market once.")
    # Heavy-tailed popularity: the first ten of 100 products make two thirds of the trades.
    weights = 1.0 / np.arange(1, len(ids) + 1) ** 1.1
    weights /= weights.sum()
    made = []
    for product_id, weight in zip(ids, weights.tolist(), strict=True):
        if not is_product_id(product_id):
            raise ConfigurationError(f"{product_id!r} is not a product id: write it like BTC-USD.")
        name_hash = zlib.crc32(product_id.encode())
        if product_id in _KNOWN:
            price, decimals, first_id = _KNOWN[product_id]
        else:
            rng = np.random.default_rng(name_hash)
            price = float(10.0 ** rng.uniform(-9, 3))
            decimals = min(max(math.ceil(math.log10(2 * PRICE_TICKS_MIN / price)), 2), 12)
            price = max(round(price, decimals), PRICE_TICKS_MIN * 10.0**-decimals)
            first_id = int(10 ** rng.uniform(4, 8.5))
        # The smallest size costs 0.01 to 0.1 cent, as on the exchange: 8 decimals for BTC, none for cheap coins.
        size_decimals = min(max(math.ceil(math.log10(price)) + 4, 0), 8)
        key = int(np.random.SeedSequence([seed, name_hash]).generate_state(1, np.uint64)[0])
        ticks = round(price * 10**decimals)
        made.append(SimulatedProduct(product_id, decimals, size_decimals, ticks, first_id, weight, key))
    return tuple(made)


def _names(count: int) -> list[str]:
    if not 1 <= count <= PRODUCTS_MAX:
        raise ConfigurationError(f"A simulated market has 1 to {PRODUCTS_MAX} products, not {count}.")
    names = list(_KNOWN)[:count]
    base = len(_SYLLABLES)
    for number in range(count - len(names)):
        first, rest = number % base, number // base
        names.append(f"{_SYLLABLES[first]}{_SYLLABLES[rest % base]}{_SYLLABLES[rest // base % base]}-USD")
    return names
