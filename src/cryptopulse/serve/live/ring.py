"""The newest time slots of many products, as numpy columns of shape (products, slots).

A slot is a minute or a second, counted since 1970. New slots push the oldest out. The arrays are wider than the slots
kept, so that any range of slots is one slice; when they are full, the kept slots are moved to the beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SPARE = 0.25  # extra width: slots are moved each time a quarter of their span has passed


class Ring:
    """Columns of two kinds: gauges are NaN where nothing is known, sums are 0."""

    def __init__(self, slots: int, gauges: Sequence[str], sums: Sequence[str]) -> None:
        """`slots`: how many are kept. Starts without products."""
        self._slots = slots
        self._width = slots + max(int(slots * _SPARE), 1)
        self._empty = dict.fromkeys(gauges, np.nan) | dict.fromkeys(sums, 0.0)
        self._data = {name: np.full((0, self._width), empty) for name, empty in self._empty.items()}
        self._products = 0
        self._begin = 0
        self.head = 0
        """The newest slot; 0 before the first."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self._data)

    @property
    def first(self) -> int:
        """The oldest slot kept."""
        return max(self.head - self._slots + 1, self._begin)

    def resize(self, products: int) -> None:
        """Makes room for this many products. The arrays double, so that adding one at a time costs little."""
        for name, empty in self._empty.items():
            data = self._data[name]
            if products > len(data):
                more = np.full((max(products - len(data), len(data), 8), self._width), empty)
                self._data[name] = np.concatenate([data, more])
        self._products = products

    def clear(self) -> None:
        """Forgets everything but the products."""
        for name, empty in self._empty.items():
            self._data[name][:] = empty
        self._begin = self.head = 0

    def reach(self, slot: int) -> None:
        """Makes `slot` the newest slot, if it is newer."""
        if not self.head:
            self._begin = slot - self._slots + 1
        if slot <= self.head:
            return
        self.head = slot
        if slot - self._begin >= self._width:  # the arrays are full: the kept slots move to the beginning
            begin = slot - self._slots + 1
            by = begin - self._begin
            for name, empty in self._empty.items():
                data = self._data[name]
                if by < self._width:
                    data[:, : self._width - by] = data[:, by:].copy()
                data[:, max(self._width - by, 0) :] = empty
            self._begin = begin

    def put(self, products: Ints, slots: Ints, columns: Mapping[str, Floats | Ints]) -> None:
        """Sets values; for the same product and slot the last one counts. Slots before `first` are left out."""
        if not len(slots):
            return
        self.reach(int(slots.max()))
        kept = slots >= self.first
        places = slots[kept] - self._begin
        for name, values in columns.items():
            self._data[name][products[kept], places] = values[kept]

    def get(self, name: str, products: Ints, slots: Ints) -> Floats:
        """Values; infinite for slots before `first`."""
        kept = slots >= self.first
        return np.where(kept, self._data[name][products, np.where(kept, slots - self._begin, 0)], np.inf)

    def last(self, name: str, slot: int) -> Floats:
        """The newest value of each product at or before `slot`; NaN without one."""
        data = self.window(self.first, slot).columns[name]
        if not data.shape[1]:
            return np.full(len(data), np.nan)
        known = ~np.isnan(data[:, ::-1])
        back = known.argmax(axis=1)
        rows = np.arange(len(data))
        return np.where(known[rows, back], data[rows, data.shape[1] - 1 - back], np.nan)

    def running(self, name: str, product: int) -> Floats:
        """Cumulative sums of a product: 0, then the sum up to each slot from `first` on."""
        row = self._data[name][product, self.first - self._begin : self.head - self._begin + 1]
        return np.concatenate([[0.0], np.cumsum(row)])

    def row(self, product: int, first: int) -> tuple[dict[str, Floats], int]:
        """All columns of one product from slot `first` on, as far as kept, and the slot that they begin with."""
        begin = max(first, self.first)
        cut = slice(begin - self._begin, max(self.head + 1, begin) - self._begin)
        return {name: data[product, cut] for name, data in self._data.items()}, begin

    def window(self, first: int, last: int) -> RingWindow:
        """The slots from `first` to `last`, as far as kept."""
        begin, end = max(first, self.first) - self._begin, min(last, self.head) - self._begin + 1
        cut = slice(begin, max(end, begin))
        return RingWindow({name: data[: self._products, cut] for name, data in self._data.items()}, last - first + 1)


@dataclass(frozen=True)
class RingWindow:
    """A range of slots of all products."""

    columns: Mapping[str, Floats]
    slots: int
    """How many slots were requested. Slots that are not kept, or not reached yet, are missing in `columns`."""

    def sum(self, name: str) -> Floats:
        """The sum of each product."""
        return np.asarray(self.columns[name].sum(axis=1))

    def highest(self, name: str) -> Floats:
        """The highest value of each product; NaN without one."""
        return np.asarray(np.fmax.reduce(self.columns[name], axis=1, initial=np.nan))

    def lowest(self, name: str) -> Floats:
        """The lowest value of each product; NaN without one."""
        return np.asarray(np.fmin.reduce(self.columns[name], axis=1, initial=np.nan))

    def filled(self, name: str) -> Floats:
        """Shape (products, `slots`): missing values take the one before; NaN before the first."""
        data = self.columns[name]
        known = np.where(np.isnan(data), -1, np.arange(data.shape[1]))
        last = np.maximum.accumulate(known, axis=1)
        found = np.where(last >= 0, np.take_along_axis(data, np.maximum(last, 0), axis=1), np.nan)
        missing = self.slots - found.shape[1]
        ends = found[:, -1:] if found.shape[1] else np.full((len(data), 1), np.nan)
        return np.concatenate([found, np.repeat(ends, missing, axis=1)], axis=1)
