"""Finds ids that the tables lack, by comparing their states at intervals.

The feed sees holes while they happen. Afterwards the tables decide: anything lost, for any reason, is a gap between two
of their intervals of ids. A gap that two successive comparisons show, and that is not on the work list, is a hole.

The tables are behind the log, sometimes by hours, so a gap may only not be processed yet. The ids that this producer
put into the log are known: they count as held until the tables show an id that came later, since the tables consume a
product's messages in order. Messages of earlier producers are known only near the log's end (`feed/recovery.py`), so
the gaps of a product count only after the tables have reached that point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from cryptopulse.intervals import Interval, Intervals

_MARKS_MAX = 60
"""Most comparisons whose ids the tables may not show yet; beyond that the oldest are merged. One hour at the usual
interval of a minute."""


class KnownIds(NamedTuple):
    """Ids in the tables, by product; no product has empty intervals."""

    held: dict[str, Intervals]
    absent: dict[str, Intervals]
    """Ids that the exchange does not have."""


class LiveIds(NamedTuple):
    """Range of ids that this producer has followed: each id is in the log, on the work list, or dealt with."""

    first: int
    highest: int


class Holes(NamedTuple):
    """Ids of a product that the tables lack."""

    new: list[Interval]
    again: list[Interval]
    """Holes that an earlier comparison returned too: they were fetched, and the tables may refuse them."""


class _LoggedIds:
    """Ids of one product that are in the log and that the tables may not show yet."""

    __slots__ = ("fresh", "marked")

    def __init__(self) -> None:
        self.fresh = Intervals()
        """Ids logged since the last comparison."""
        self.marked: list[tuple[Intervals, int]] = []
        """Ids logged before, and for each group an id that is logged after all of it."""

    def forget(self, highest: int) -> None:
        """Drops the groups logged before id `highest`, which the tables hold."""
        self.marked = [(ids, mark) for ids, mark in self.marked if mark > highest]

    def mark(self, highest: int) -> None:
        """Closes the fresh group; `highest` is the highest id received so far."""
        if self.fresh:
            self.marked.append((self.fresh, max(highest, self.fresh.highest) + 1))
            self.fresh = Intervals()
        if len(self.marked) > _MARKS_MAX:
            (older, _), (newer, mark) = self.marked[:2]
            self.marked[:2] = [(Intervals([*older, *newer]), mark)]


class Reconciler:
    """Compares successive states of the tables."""

    def __init__(self, log_is_known: bool) -> None:
        """`log_is_known`: whether all messages that the log held at the start were read."""
        self._log_is_known = log_is_known
        self._before: dict[str, Intervals] = {}
        self._highest: dict[str, int] = {}
        self._found: dict[str, Intervals] = {}
        self._logged: dict[str, _LoggedIds] = {}

    def logged(self, product: str, first: int, last: int) -> None:
        """Trades `first` … `last` are in the log, not in the order of their ids."""
        self._logged.setdefault(product, _LoggedIds()).fresh.add(first, last)

    def compare(
        self,
        tables: Mapping[str, Intervals],
        seen: Mapping[str, LiveIds],
        known: Callable[[str, int, int], Intervals],
    ) -> dict[str, Holes]:
        """The holes that both this comparison and the previous one show, by product.

        `tables`: ids held or proved absent, by product, none of them empty. `known` returns the ids of a range that are
        on the work list or dealt with. Only products of `seen` are compared.
        """
        before, self._before = self._before, {}
        found: dict[str, Holes] = {}
        for product in seen.keys() & tables.keys():
            held, live = tables[product], seen[product]
            if held.highest < self._highest.get(product, held.highest):  # the tables are being rebuilt
                continue
            self._highest[product] = held.highest
            ranges = held.holes()
            if held.highest < live.first - 1:  # the tables have not reached this producer's first id
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
