"""Sets of trade ids as closed intervals: a billion adjacent ids are two numbers.

Everything is numpy, so that a million holes stay fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MASK_IDS = 64
"""Ids per mask."""

_FULL = np.uint64(2**64 - 1)


def _empty() -> Ints:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class IdSet:
    """An immutable set of integers: sorted, disjoint intervals [starts[i], ends[i]] that do not touch each other.

    Made by `of`, `of_arrays` or `of_masks`.
    """

    starts: Ints
    ends: Ints

    @classmethod
    def of(cls, spans: Iterable[tuple[int, int]] = ()) -> IdSet:
        """The union of closed intervals in any order, which may overlap."""
        found = np.array(list(spans), dtype=np.int64).reshape(-1, 2)
        return _united(found[:, 0], found[:, 1])

    @classmethod
    def of_arrays(cls, starts: npt.ArrayLike, ends: npt.ArrayLike) -> IdSet:
        """The union of the intervals [starts[i], ends[i]], in any order."""
        return _united(np.asarray(starts, dtype=np.int64), np.asarray(ends, dtype=np.int64))

    @classmethod
    def of_masks(cls, chunks: Ints, masks: npt.NDArray[np.uint64]) -> IdSet:
        """The ids `chunk` · 64 + n for each set bit n of its mask; each chunk at most once, in order."""
        base = chunks * MASK_IDS
        is_full = masks == _FULL
        # In a partly filled mask every change from 0 to 1 starts an interval, every change back ends one.
        bits = np.unpackbits(masks[~is_full].astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
        edge = np.zeros((len(bits), 1), dtype=np.int8)
        changes = np.diff(np.hstack([edge, bits.astype(np.int8), edge]), axis=1)
        part = base[~is_full]
        first_row, first = np.nonzero(changes == 1)
        last_row, after = np.nonzero(changes == -1)
        starts = np.concatenate([base[is_full], part[first_row] + first])
        ends = np.concatenate([base[is_full] + MASK_IDS - 1, part[last_row] + after - 1])
        return _united(starts, ends)

    def __bool__(self) -> bool:
        """Whether there is any id."""
        return len(self.starts) > 0

    def __len__(self) -> int:
        """Number of intervals."""
        return len(self.starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The intervals, in order, as Python integers."""
        return zip(self.starts.tolist(), self.ends.tolist(), strict=True)

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same ids."""
        return isinstance(other, IdSet) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def count(self) -> int:
        """Number of ids."""
        return int((self.ends - self.starts + 1).sum())

    @property
    def first(self) -> int:
        """Lowest id; there must be one."""
        return int(self.starts[0])

    @property
    def last(self) -> int:
        """Highest id; there must be one."""
        return int(self.ends[-1])

    def __or__(self, other: IdSet) -> IdSet:
        """Ids of either."""
        if not self or not other:
            return self or other
        return _united(np.concatenate([self.starts, other.starts]), np.concatenate([self.ends, other.ends]))

    def __and__(self, other: IdSet) -> IdSet:
        """Ids of both."""
        low = np.searchsorted(other.ends, self.starts, side="left")
        high = np.searchsorted(other.starts, self.ends, side="right")
        meets = np.maximum(high - low, 0)
        mine = np.repeat(np.arange(len(self.starts)), meets)
        # The number of each overlap within its interval of `self`: 0, 1, …
        nth = np.arange(len(mine)) - np.repeat(np.cumsum(meets) - meets, meets)
        theirs = low[mine] + nth
        return _united(
            np.maximum(self.starts[mine], other.starts[theirs]), np.minimum(self.ends[mine], other.ends[theirs])
        )

    def __sub__(self, other: IdSet) -> IdSet:
        """Ids of this one that are not in `other`."""
        if not self or not other:
            return self
        lowest, highest = np.iinfo(np.int64).min + 1, np.iinfo(np.int64).max - 1
        starts = np.concatenate([[lowest], other.ends + 1])
        ends = np.concatenate([other.starts - 1, [highest]])
        return self & IdSet(starts, ends)

    def within(self, first: int, last: int) -> IdSet:
        """Ids from `first` to `last`, both included."""
        return self & IdSet.of([(first, last)]) if first <= last else IdSet.of()

    def counts_up_to(self, ids: npt.ArrayLike) -> Ints:
        """For each of `ids` the number of ids in this set up to it, itself included."""
        wanted = np.asarray(ids, dtype=np.int64)
        if not self:
            return np.zeros(wanted.shape, dtype=np.int64)
        sizes = self.ends - self.starts + 1
        before = np.concatenate([[0], np.cumsum(sizes)])
        place = np.searchsorted(self.starts, wanted, side="right")
        nearest = np.maximum(place - 1, 0)
        inside = np.minimum(wanted, self.ends[nearest]) - self.starts[nearest] + 1
        found: Ints = np.where(place == 0, 0, before[nearest] + inside)
        return found

    def counts_between(self, firsts: npt.ArrayLike, lasts: npt.ArrayLike) -> Ints:
        """For each pair the number of ids in this set from the first to the last, both included."""
        return self.counts_up_to(lasts) - self.counts_up_to(np.asarray(firsts, dtype=np.int64) - 1)

    def touch(self, firsts: npt.ArrayLike, lasts: npt.ArrayLike) -> Bools:
        """For each pair whether this set has any id from the first to the last, both included."""
        found: Bools = self.counts_between(firsts, lasts) > 0
        return found

    def before(self, number: int) -> int | None:
        """The highest id below `number`; None if there is none."""
        place = int(np.searchsorted(self.starts, number, side="left")) - 1
        return None if place < 0 else min(int(self.ends[place]), number - 1)

    def after(self, number: int) -> int | None:
        """The lowest id above `number`; None if there is none."""
        place = int(np.searchsorted(self.ends, number, side="right"))
        return None if place >= len(self.starts) else max(int(self.starts[place]), number + 1)


def _united(starts: Ints, ends: Ints) -> IdSet:
    """Sorts intervals, and joins those that overlap or touch."""
    if len(starts) == 0:
        return IdSet(_empty(), _empty())
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    reach = np.maximum.accumulate(ends)
    is_new: Any = np.concatenate([[True], starts[1:] > reach[:-1] + 1])
    opens = np.flatnonzero(is_new)
    closes = np.concatenate([opens[1:], [len(starts)]]) - 1
    return IdSet(starts[opens], reach[closes])
