"""What the tables miss, by reading them now and then.

The feed sees holes while they happen. The tables are the authority afterwards: whatever was lost on the way, by
whatever cause, is a gap between two of their intervals of ids. A gap that two successive comparisons show, and
that nobody works on, is a hole.

The tables are behind the log, sometimes by hours, so a gap may just not have been read yet. What this producer put
into the log it knows: it counts as there until the tables show an id that came after it, for they take in the
messages of a product in their order. What earlier producers put into the log can be seen only near its end
(`feed/recovery.py`), so the gaps of a product count from when the tables have come to where that begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from cryptopulse.intervals import Interval, Intervals

_MARKS_MAX = 60
"""Comparisons whose pages the tables have not reached; older ones are merged. An hour with the usual minute."""


class KnownIds(NamedTuple):
    """What the tables say, by product; no product is without ids."""

    held: dict[str, Intervals]
    absent: dict[str, Intervals]
    """Ids that no trade has."""


class LiveIds(NamedTuple):
    """What this producer knows of a product: every id from `first` to `highest` is in the log, or is on the work
    list, or was dealt with."""

    first: int
    highest: int


class Holes(NamedTuple):
    """Ids of a product that the tables lack."""

    new: list[Interval]
    again: list[Interval]
    """Those that an earlier comparison has shown as well: they were fetched, and the tables may refuse them."""


class _LoggedIds:
    """Ids of one product in the log that the tables need not show yet."""

    __slots__ = ("fresh", "marked")

    def __init__(self) -> None:
        self.fresh = Intervals()
        """Since the last comparison."""
        self.marked: list[tuple[Intervals, int]] = []
        """Ids of earlier comparisons, each with an id that came after all of them."""

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


class Reconciler:
    """Compares successive states of the tables."""

    def __init__(self, log_is_known: bool) -> None:
        """`log_is_known`: whether all that the log held at the start has been seen."""
        self._log_is_known = log_is_known
        self._before: dict[str, Intervals] = {}
        self._highest: dict[str, int] = {}
        self._found: dict[str, Intervals] = {}
        self._logged: dict[str, _LoggedIds] = {}

    def logged(self, product: str, first: int, last: int) -> None:
        """Trades `first` … `last` are in the log, out of the order of their ids."""
        self._logged.setdefault(product, _LoggedIds()).fresh.add(first, last)

    def compare(
        self,
        tables: Mapping[str, Intervals],
        seen: Mapping[str, LiveIds],
        known: Callable[[str, int, int], Intervals],
    ) -> dict[str, Holes]:
        """The holes that this comparison shows like the one before.

        `tables`: ids that are held or proved absent, by product, none of them empty. `known` says which of a
        range of ids nobody needs to hear of. Only products of `seen` are compared.
        """
        before, self._before = self._before, {}
        found: dict[str, Holes] = {}
        for product in seen.keys() & tables.keys():
            held, live = tables[product], seen[product]
            if held.highest < self._highest.get(product, held.highest):  # the tables are being made again
                continue
            self._highest[product] = held.highest
            ranges = held.holes()
            if held.highest < live.first - 1:  # the tables end before that which this producer knows begins
                if not self._log_is_known:
                    continue
                ranges.append((held.highest + 1, live.first - 1))
            gaps = Intervals(ranges)
            logged = self._logged.get(product)
            if logged is not None:
                logged.forget(held.highest)
                logged.mark(live.highest)
                for ids in (logged.fresh, *(ids for ids, _ in logged.marked)):
                    gaps = gaps.without(ids)
            if not gaps:
                continue
            gaps = self._before[product] = gaps.without(known(product, gaps.lowest, gaps.highest))
            shown = Intervals(part for gap in gaps for part in before.get(product, Intervals()).within(*gap))
            if shown:
                earlier = self._found.setdefault(product, Intervals())
                again = [part for gap in shown for part in earlier.within(*gap)]
                found[product] = Holes(list(shown.without(earlier)), again)
                for first, last in found[product].new:
                    earlier.add(first, last)
        return found
