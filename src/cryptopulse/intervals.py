"""Sets of integers as closed intervals: a million trade ids without a gap take two numbers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

Interval = tuple[int, int]
"""First and last number, both included."""


class Intervals:
    """A set of integers: sorted, disjoint, closed intervals that don't touch."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, intervals: Iterable[Interval] = ()) -> None:
        """The union of `intervals`, in any order."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in sorted(intervals):
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(self._lasts[-1], last)
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    def __iter__(self) -> Iterator[Interval]:
        return zip(self._firsts, self._lasts, strict=True)

    def __len__(self) -> int:
        """How many intervals there are."""
        return len(self._firsts)

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._firsts, number) - 1
        return index >= 0 and number <= self._lasts[index]

    def end_of(self, number: int) -> int:
        """The last number of the interval with `number`; `number` - 1 when it is not in the set."""
        index = bisect_right(self._firsts, number) - 1
        return self._lasts[index] if index >= 0 and number <= self._lasts[index] else number - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it is mutable

    def __repr__(self) -> str:
        return f"Intervals({list(self)})"

    @property
    def lowest(self) -> int:
        """The lowest number. Raises IndexError when the set is empty."""
        return self._firsts[0]

    @property
    def highest(self) -> int:
        """The highest number. Raises IndexError when the set is empty."""
        return self._lasts[-1]

    @property
    def count(self) -> int:
        """How many numbers the set has."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First and last numbers of the intervals, as two arrays."""
        return np.array(self._firsts, dtype=np.int64), np.array(self._lasts, dtype=np.int64)

    def add(self, first: int, last: int) -> None:
        """Adds `first` … `last`."""
        lasts = self._lasts
        if lasts and first == lasts[-1] + 1:  # numbers that come in order need no search
            lasts[-1] = last
            return
        start, end = self._touching(first - 1, last + 1)
        if start < end:
            first, last = min(first, self._firsts[start]), max(last, lasts[end - 1])
        self._firsts[start:end] = [first]
        lasts[start:end] = [last]

    def remove(self, first: int, last: int) -> None:
        """Removes `first` … `last`."""
        start, end = self._touching(first, last)
        if start == end:
            return
        left, right = self._firsts[start], self._lasts[end - 1]
        kept = [part for part in ((left, first - 1), (last + 1, right)) if part[0] <= part[1]]
        self._firsts[start:end] = [part[0] for part in kept]
        self._lasts[start:end] = [part[1] for part in kept]

    def within(self, first: int, last: int) -> list[Interval]:
        """The parts of `first` … `last` that are in the set."""
        start, end = self._touching(first, last)
        parts = zip(self._firsts[start:end], self._lasts[start:end], strict=True)
        return [(max(low, first), min(high, last)) for low, high in parts]

    def gaps(self, first: int, last: int) -> list[Interval]:
        """The parts of `first` … `last` that are not in the set."""
        found, position = [], first
        for low, high in self.within(first, last):
            if position < low:
                found.append((position, low - 1))
            position = high + 1
        if position <= last:
            found.append((position, last))
        return found

    def holes(self) -> list[Interval]:
        """The gaps between the intervals."""
        return [(last + 1, first - 1) for last, first in zip(self._lasts, self._firsts[1:], strict=False)]

    def without(self, other: Intervals) -> Intervals:
        """The numbers that are in this set and not in `other`."""
        return Intervals(part for first, last in self for part in other.gaps(first, last))

    def _touching(self, first: int, last: int) -> tuple[int, int]:
        """Range of indexes [start, end) of the intervals that overlap `first` … `last`."""
        return bisect_left(self._lasts, first), bisect_right(self._firsts, last)


def runs(numbers: Sequence[int]) -> list[Interval]:
    """Distinct, ascending numbers as closed intervals."""
    found: list[Interval] = []
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            found.append((numbers[start], numbers[index - 1]))
            start = index
    return found
