"""Trades of silver as columns of exact integers, sorted by product, time and id; and exact sums over them."""

from __future__ import annotations

from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.tables import SILVER

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Words: TypeAlias = npt.NDArray[np.uint64]
Flags: TypeAlias = npt.NDArray[np.bool_]

SCALE = 12
assert all(SILVER.arrow_schema.field(name).type.scale == SCALE for name in ("price", "trade_size"))
RETURN_UNITS = 10**9
"""Returns are counted in billionths."""
_LIMB = 2**32 - 1


class OrderedTrades:
    """Trades as columns, sorted by product, time and id."""

    def __init__(self, trades: pa.Table) -> None:
        symbols = trades["symbol"].combine_chunks().dictionary_encode()
        codes = symbols.indices.to_numpy()
        ids, at = trades["trade_id"].to_numpy(), pc.cast(trades["event_time"], pa.int64()).to_numpy()
        order = np.lexsort((ids, at, codes))
        self.symbols: list[str] = symbols.dictionary.to_pylist()
        self.product, self.ids, self.at = codes[order], ids[order], at[order]
        self._starts = np.searchsorted(self.product, np.arange(len(self.symbols) + 1))
        self.price, self.size = (ExactDecimals.of(trades[name])[order] for name in ("price", "trade_size"))
        self._side, self._order = trades["side"] if "side" in trades.column_names else None, order

    @cached_property
    def volumes(self) -> RunningSums:
        """Of the sizes."""
        return RunningSums(self.size)

    @property
    def has_side(self) -> bool:
        """Whether it is known who bought."""
        return self._side is not None

    @cached_property
    def is_buy(self) -> Flags:
        """Whether the taker bought. Needs the column `side`."""
        assert self._side is not None
        is_buy: Flags = pc.equal(self._side, "BUY").to_numpy()[self._order]
        return is_buy

    @cached_property
    def bought(self) -> RunningSums:
        """Of the sizes that takers bought. Needs the column `side`."""
        none = np.uint64(0), np.int64(0)
        low, high = (np.where(self.is_buy, *pair) for pair in zip((self.size.low, self.size.high), none, strict=True))
        return RunningSums(ExactDecimals(low, high))

    @cached_property
    def squares(self) -> RunningSums:
        """Of the squared returns from the row before."""
        squared = squared_returns(self.price.rough())
        return RunningSums(ExactDecimals(squared.view(np.uint64), np.zeros(len(squared), np.int64)))

    def rows_of(self, symbol: str) -> slice:
        """The rows of one product."""
        if symbol not in self.symbols:
            return slice(0, 0)
        product = self.symbols.index(symbol)
        return slice(*self._starts[product : product + 2].tolist())


class ExactDecimals:
    """Non-negative decimals with SCALE places, as integers of 128 bits."""

    def __init__(self, low: Words, high: Ints) -> None:
        self.low, self.high = low, high

    @classmethod
    def of(cls, decimals: pa.ChunkedArray) -> ExactDecimals:
        plain = decimals.combine_chunks()
        if len(plain) == 0:
            return cls(np.empty(0, np.uint64), np.empty(0, np.int64))
        words = np.frombuffer(plain.buffers()[1], np.int64)[2 * plain.offset : 2 * (plain.offset + len(plain))]
        return cls(words[::2].view(np.uint64), words[1::2])

    def __getitem__(self, rows: slice | Ints) -> ExactDecimals:
        return ExactDecimals(self.low[rows], self.high[rows])

    def __len__(self) -> int:
        return len(self.low)

    def value(self, row: int) -> int:
        """The number in one row."""
        return (int(self.high[row]) << 64) + int(self.low[row])

    def rough(self) -> Floats:
        """As floats, each with a relative error of about 1e-16."""
        return self.low + self.high * 2.0**64 if self.high.any() else self.low.astype(np.float64)

    def ranks(self) -> tuple[Ints, Ints]:
        """The dense rank of each number, from 0; and for each rank the row of one number that has it."""
        order = np.lexsort((self.low, self.high)) if self.high.any() else np.argsort(self.low, kind="stable")
        low, high = self.low[order], self.high[order]
        is_other = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.cumsum(is_other) - 1
        return ranks, order[is_other]


class ExactSums:
    """Sums of whole numbers, exact, as limbs of 32, 32 and more bits."""

    def __init__(self, low: Ints, middle: Ints, high: Ints) -> None:
        """The limbs may be too large: they are carried over."""
        middle = middle + (low >> 32)
        self.low, self.middle, self.high = low & _LIMB, middle & _LIMB, high + (middle >> 32)

    @property
    def limbs(self) -> tuple[Ints, Ints, Ints]:
        """All of them, the lowest first."""
        return self.low, self.middle, self.high

    def __add__(self, other: ExactSums) -> ExactSums:
        return ExactSums(self.low + other.low, self.middle + other.middle, self.high + other.high)

    def __getitem__(self, places: Ints | Flags) -> ExactSums:
        return ExactSums(self.low[places], self.middle[places], self.high[places])

    def value(self, place: int) -> int:
        """The sum in one place."""
        return (int(self.high[place]) << 64) + (int(self.middle[place]) << 32) + int(self.low[place])

    def rough(self) -> Floats:
        """As floats, each with a relative error of about 1e-16; the same for the same sum."""
        return self.low + self.middle * 2.0**32 + self.high * 2.0**64

    def reaches(self, least: int) -> Flags:
        """Which sums are `least` or more."""
        short = np.zeros(len(self.low), np.bool_)
        parts = ((self.low, least & _LIMB), (self.middle, least >> 32 & _LIMB), (self.high, least >> 64))
        for have, need in parts:
            short = (have < need) | ((have == need) & short)
        return ~short


class RunningSums:
    """Answers the sum of any consecutive rows."""

    def __init__(self, numbers: ExactDecimals) -> None:
        limbs = (numbers.low & np.uint64(_LIMB), numbers.low >> np.uint64(32), numbers.high)
        self._upto = [np.append(np.int64(0), np.cumsum(limb, dtype=np.int64)) for limb in limbs]

    def between(self, first: Ints, past: Ints) -> ExactSums:
        """The sums of the rows from each of `first` to before each of `past`."""
        return ExactSums(*(upto[past] - upto[first] for upto in self._upto))


def squared_returns(prices: Floats) -> Ints:
    """The squared return from each price to the next, in RETURN_UNITS²; at most 1 (100 %); 0 for the first price.

    Only differences and quotients of single floats: the same on every machine.
    """
    returns = np.diff(prices) / prices[:-1] * RETURN_UNITS
    units = np.rint(np.clip(returns, -RETURN_UNITS, RETURN_UNITS)).astype(np.int64)
    return np.append(np.zeros(len(prices[:1]), np.int64), units * units)
