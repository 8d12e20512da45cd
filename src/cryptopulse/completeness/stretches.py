"""The missing ids of one product, in stretches that share their fate so far."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from cryptopulse.intervals import Interval, Intervals


class Hole:
    """What was found missing at one moment, and what became of it."""

    __slots__ = ("absent", "fetched", "first", "found_ns", "last", "late", "left", "product")

    def __init__(self, product: str, parts: Sequence[Interval], now_ns: int) -> None:
        self.product = product
        self.first = parts[0][0]
        self.last = parts[-1][1]
        self.found_ns = now_ns
        self.left = sum(last - first + 1 for first, last in parts)
        """Ids that are neither safe nor known to be absent."""
        self.fetched = self.late = self.absent = 0


class Stretch:
    """Ids `first` … `last` of one hole."""

    __slots__ = ("due_ns", "first", "hole", "lacked_ns", "last", "pause_ns", "request")

    def __init__(self, hole: Hole, first: int, last: int, due_ns: int, pause_ns: int) -> None:
        self.hole = hole
        self.first = first
        self.last = last
        self.due_ns = due_ns
        """When it may be asked for."""
        self.pause_ns = pause_ns
        """How long to wait after an answer that says nothing about it."""
        self.request = 0
        """Number of the request that is out for it, 0: none."""
        self.lacked_ns: int | None = None
        """When a page first lacked it."""

    def part(self, first: int, last: int) -> Stretch:
        """A stretch like this with other ends."""
        made = Stretch(self.hole, first, last, self.due_ns, self.pause_ns)
        made.request, made.lacked_ns = self.request, self.lacked_ns
        return made

    def less(self, taken: Sequence[Interval]) -> list[Stretch]:
        """What is left without `taken`."""
        return [self.part(*gap) for gap in Intervals(taken).gaps(self.first, self.last)]


class MissingIds:
    """All stretches of one product: disjoint, in the order of ids."""

    __slots__ = ("absent", "put_off_ns", "stretches", "underway")

    def __init__(self) -> None:
        self.stretches: list[Stretch] = []
        self.underway = Intervals()
        """Ids on pages that are not safe yet."""
        self.absent = Intervals()
        """Ids that the exchange does not have."""
        self.put_off_ns = 0
        """Nothing is asked for before."""

    def between(self, first: int, last: int) -> tuple[int, int]:
        """The stretches (from, to) that have an id of `first` … `last`."""
        return (
            bisect_left(self.stretches, first, key=lambda stretch: stretch.last),
            bisect_right(self.stretches, last, key=lambda stretch: stretch.first),
        )

    def above(self, stretch: Stretch) -> int:
        """The next id above `stretch` that the exchange may have."""
        return self.absent.end_of(stretch.last + 1) + 1

    def waiting(self) -> Iterator[Stretch]:
        """The stretches that may be asked for when they are due.

        A page proves an absence by what lies above and below. So of ids in a row that were lacking once only the
        topmost are asked for; their page shows what is below as well.
        """
        above: Stretch | None = None
        for stretch in reversed(self.stretches):
            lacks_on = above is not None and above.lacked_ns is not None and self.above(stretch) == above.first
            if not stretch.request and not lacks_on:
                yield stretch
            above = stretch

    def asked_by(self, number: int, first: int, last: int) -> list[Stretch]:
        """The stretches that request `number` for `first` … `last` is out for."""
        start, end = self.between(first, last)
        return [stretch for stretch in self.stretches[start:end] if stretch.request == number]

    def known(self, first: int, last: int) -> Intervals:
        """What of `first` … `last` nobody needs to add: it is missing, underway, or absent."""
        start, end = self.between(first, last)
        missing = [(stretch.first, stretch.last) for stretch in self.stretches[start:end]]
        return Intervals([*missing, *self.underway.within(first, last), *self.absent.within(first, last)])

    def due_ns(self, stretch: Stretch) -> int:
        """When `stretch` may be asked for."""
        return max(stretch.due_ns, self.put_off_ns)
