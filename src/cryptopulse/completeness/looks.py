"""What the tables miss, by looking at them now and then.

The feed sees holes while they happen. The tables are the authority afterwards: whatever was lost on the way, by
whatever cause, is a gap between two of their intervals of ids. A gap that two successive looks show, and that
nobody works on, is a hole.

The tables are behind the log, sometimes by hours, so a gap may just not have been read yet. What this producer put
into the log it knows: it counts as there until the tables show an id that came after it, for they take in the
messages of a product in their order. What earlier producers put into the log can be seen only near its end
(`feed/resume.py`), so the gaps of a product count from when the tables have come to where that begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from cryptopulse.intervals import Interval, Intervals

_MARKS_MAX = 60
"""Looks whose pages the tables have not reached; older ones are put together. An hour with the usual minute."""


class KnownIds(NamedTuple):
    """What the tables say, by product; no product is without ids."""

    held: dict[str, Intervals]
    absent: dict[str, Intervals]
    """Ids that no trade has."""


class Seen(NamedTuple):
    """What this producer knows of a product: every id from `first` to `highest` is in the log, or is on the work
    list, or was dealt with."""

    first: int
    highest: int


class Holes(NamedTuple):
    """Ids of a product that the tables lack."""

    new: list[Interval]
    again: list[Interval]
    """Those that an earlier look has shown as well: they were fetched, and the tables may refuse them."""


class _Logged:
    """Ids of one product in the log that the tables need not show yet."""

    __slots__ = ("fresh", "marked")

    def __init__(self) -> None:
        self.fresh = Intervals()
        """Since the last look."""
        self.marked: list[tuple[Intervals, int]] = []
        """Ids of earlier looks, each with an id that came after all of them."""

    def forget(self, highest: int) -> None:
        """The tables hold `highest`: they have taken in what came before."""
        self.marked = [(ids, mark) for ids, mark in self.marked if mark > highest]

    def mark(self, highest: int) -> None:
        """The newest id that came so far is `highest`."""
        if self.fresh:
            self.marked.append((self.fresh, max(highest, self.fresh.highest) + 1))
            self.fresh = Intervals()
        if len(self.marked) > _MARKS_MAX:
            (older, _), (newer, mark) = self.marked[:2]
            self.marked[:2] = [(Intervals([*older, *newer]), mark)]

    def without(self, gaps: Intervals) -> Intervals:
        """The `gaps` that are gaps of the log as well."""
        for ids in (self.fresh, *(ids for ids, _ in self.marked)):
            gaps = gaps.without(ids)
        return gaps


class Looks:
    """Compares successive looks at the tables."""

    def __init__(self, log_is_known: bool) -> None:
        """`log_is_known`: whether all that the log held at the start has been seen."""
        self._log_is_known = log_is_known
        self._before: dict[str, Intervals] = {}
        self._highest: dict[str, int] = {}
        self._found: dict[str, Intervals] = {}
        self._logged: dict[str, _Logged] = {}

    def logged(self, product: str, first: int, last: int) -> None:
        """Trades `first` … `last` are in the log, out of the order of their ids."""
        self._logged.setdefault(product, _Logged()).fresh.add(first, last)

    def look(
        self,
        tables: Mapping[str, Intervals],
        seen: Mapping[str, Seen],
        known: Callable[[str, int, int], Intervals],
    ) -> dict[str, Holes]:
        """The holes that this look shows like the one before.

        `tables`: ids that are held or proved absent, by product, none of them empty. `known` says which of a
        stretch of ids nobody needs to hear of. Only products of `seen` are looked at.
        """
        before, self._before = self._before, {}
        found: dict[str, Holes] = {}
        for product in seen.keys() & tables.keys():
            gaps = self._gaps(product, tables[product], seen[product])
            if not gaps:
                continue
            gaps = self._before[product] = gaps.without(known(product, gaps.lowest, gaps.highest))
            shown = Intervals(part for gap in gaps for part in before.get(product, Intervals()).within(*gap))
            if shown:
                found[product] = self._told_apart(product, shown)
        return found

    def _told_apart(self, product: str, shown: Intervals) -> Holes:
        earlier = self._found.setdefault(product, Intervals())
        holes = Holes(list(shown.without(earlier)), [part for gap in shown for part in earlier.within(*gap)])
        for first, last in holes.new:
            earlier.add(first, last)
        return holes

    def _gaps(self, product: str, held: Intervals, seen: Seen) -> Intervals:
        if held.highest < self._highest.get(product, held.highest):  # the tables are being made again
            return Intervals()
        self._highest[product] = held.highest
        gaps = held.holes()
        if held.highest < seen.first - 1:  # the tables end before that which this producer knows begins
            if not self._log_is_known:
                return Intervals()
            gaps.append((held.highest + 1, seen.first - 1))
        logged = self._logged.get(product)
        if logged is None:
            return Intervals(gaps)
        logged.forget(held.highest)
        logged.mark(seen.highest)
        return logged.without(Intervals(gaps))
