"""The work list: which ids to fetch, in which order, and what a page of the exchange proves about them.

A state machine without socket, clock or logging. Missing ids go in (`add`), and so do trades that come by other ways
(`arrived`); requests (`next_request`), the time of the next one (`due_ns`) and events (`take_events`) come out. Each
request ends with `answered` or `failed`; `kept` is called when a useful page is safe. All times are integer nanoseconds
of one clock that never goes back.

The exchange takes requests for the ids below X and answers newest first, with at most `PAGE_MAX` of them. A request is
for a range of ids with one neighbour on either side, so that the page also proves which ids the exchange does not have:
those missing between two on the page. One page is not enough, since the exchange's newest pages may be some seconds
old; an id counts as absent when two pages, fetched `PROOF_NS` apart, lack it.

Holes are fetched downwards, page by page, several pages at once, but no id is requested twice at a time. Holes that one
page can close go first, the newest of them first: a page costs the same whether it heals a second or a year, and people
look at the last minutes. Every tenth request goes to the oldest hole, so that none waits for ever.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cryptopulse.intervals import Interval, Intervals, runs

PAGE_MAX = 1000
"""The exchange's limit of rows per page."""

SECOND_NS = 1_000_000_000

PROOF_NS = 5 * SECOND_NS
"""Time between the two pages that prove an absence: more than the age of a cached page (some seconds were seen)."""

FIRST_PAUSE_NS = 2 * SECOND_NS
LONGEST_PAUSE_NS = 300 * SECOND_NS
"""Pauses of ids about which a page says nothing: it was older than they are, or the exchange's history begins above
them. They double from the first to the longest."""

RANGES_MAX = 10_000
"""Most ranges of missing ids on the list: 3 MB, and 4 ms for choosing one, during which no message is received. Further
ones are refused; comparing the tables finds them again later."""

OLDEST_EVERY = 10


class PageRequest(NamedTuple):
    """A request for ids `first` … `last` of `product`: ask the exchange for `limit` ids below `after`."""

    number: int
    product: str
    first: int
    last: int
    after: int

    @property
    def limit(self) -> int:
        """Rows to request: the ids and one neighbour on either side."""
        return self.last - self.first + 3


class HoleClosed(NamedTuple):
    """All ids of the hole found as `first` … `last` have been dealt with: counts of ids `fetched`, received another
    way (`late`), and not at the exchange (`absent`)."""

    product: str
    first: int
    last: int
    fetched: int
    late: int
    absent: int
    took_ns: int


class IdsAbsent(NamedTuple):
    """The exchange has no trades `first` … `last`: two pages prove it."""

    product: str
    first: int
    last: int


class NoRoom(NamedTuple):
    """The list is full; ids `first` … `last` were refused."""

    product: str
    first: int
    last: int


Event = HoleClosed | IdsAbsent | NoRoom


class Hole:
    """Ids found missing at one moment, and counts of how they were dealt with."""

    __slots__ = ("absent", "fetched", "first", "found_ns", "last", "late", "left", "product")

    def __init__(self, product: str, parts: Sequence[Interval], now_ns: int) -> None:
        self.product = product
        self.first = parts[0][0]
        self.last = parts[-1][1]
        self.found_ns = now_ns
        self.left = sum(last - first + 1 for first, last in parts)
        """How many ids are neither safe nor known to be absent."""
        self.fetched = self.late = self.absent = 0


class MissingRange:
    """Ids `first` … `last` of one hole."""

    __slots__ = ("due_ns", "first", "first_lacked_ns", "hole", "last", "pause_ns", "request")

    def __init__(self, hole: Hole, first: int, last: int, due_ns: int, pause_ns: int) -> None:
        self.hole = hole
        self.first = first
        self.last = last
        self.due_ns = due_ns
        """When it may be requested."""
        self.pause_ns = pause_ns
        """Next pause after an answer that says nothing about it."""
        self.request = 0
        """Number of its open request; 0: none."""
        self.first_lacked_ns: int | None = None
        """When a page first lacked it."""

    def part(self, first: int, last: int) -> MissingRange:
        """A copy of this range with other ends."""
        made = MissingRange(self.hole, first, last, self.due_ns, self.pause_ns)
        made.request, made.first_lacked_ns = self.request, self.first_lacked_ns
        return made

    def less(self, taken: Sequence[Interval]) -> list[MissingRange]:
        """The parts of this range outside `taken`."""
        return [self.part(*gap) for gap in Intervals(taken).gaps(self.first, self.last)]


class MissingIds:
    """All missing ranges of one product: disjoint, in the order of ids."""

    __slots__ = ("absent", "put_off_ns", "ranges", "underway")

    def __init__(self) -> None:
        self.ranges: list[MissingRange] = []
        self.underway = Intervals()
        """Ids on pages that are not in the log yet."""
        self.absent = Intervals()
        """Ids that the exchange does not have."""
        self.put_off_ns = 0
        """No requests before this time."""

    def between(self, first: int, last: int) -> tuple[int, int]:
        """The slice (start, end) of `ranges` that overlap `first` … `last`."""
        return (
            bisect_left(self.ranges, first, key=lambda missing: missing.last),
            bisect_right(self.ranges, last, key=lambda missing: missing.first),
        )

    def above(self, missing: MissingRange) -> int:
        """The next id above `missing` that the exchange may have."""
        return self.absent.end_of(missing.last + 1) + 1

    def waiting(self) -> Iterator[MissingRange]:
        """The ranges that may be requested when they are due.

        A page proves an absence by the ids above and below. So of adjacent ranges that a page has lacked only the
        topmost is requested; its page covers those below as well.
        """
        above: MissingRange | None = None
        for missing in reversed(self.ranges):
            lacks_on = above is not None and above.first_lacked_ns is not None and self.above(missing) == above.first
            if not missing.request and not lacks_on:
                yield missing
            above = missing

    def requested_by(self, number: int, first: int, last: int) -> list[MissingRange]:
        """The ranges within `first` … `last` whose open request is `number`."""
        start, end = self.between(first, last)
        return [missing for missing in self.ranges[start:end] if missing.request == number]

    def known(self, first: int, last: int) -> Intervals:
        """The ids of `first` … `last` that need not be added: on the list, on a page under way, or absent."""
        start, end = self.between(first, last)
        listed = [(missing.first, missing.last) for missing in self.ranges[start:end]]
        return Intervals([*listed, *self.underway.within(first, last), *self.absent.within(first, last)])

    def due_ns(self, missing: MissingRange) -> int:
        """When `missing` may be requested."""
        return max(missing.due_ns, self.put_off_ns)


class _OpenRequest:
    """An open request, and after its answer the result of its page."""

    __slots__ = ("at_ns", "found", "lacking", "request")

    def __init__(self, request: PageRequest, at_ns: int) -> None:
        self.request: PageRequest | None = request
        """None after the answer."""
        self.at_ns = at_ns
        self.found: list[tuple[Hole, int, int]] = []
        self.lacking: list[tuple[Hole, int, int]] = []


class WorkList:
    """The missing ids of all products."""

    def __init__(self, page_max: int = PAGE_MAX) -> None:
        """`page_max`: most rows of a page; at least 3."""
        self.holes_open = 0
        self.ids_missing = 0
        """How many ids are neither safe nor known to be absent."""
        self.ids_fetched = 0
        self.ids_late = 0
        """How many ids came by another way."""
        self.ids_absent = 0
        self.requests = 0
        """How many requests `next_request` has returned."""
        self._span_max = page_max - 2  # two neighbours are on the page as well
        self._products: dict[str, MissingIds] = {}
        self._open: dict[int, _OpenRequest] = {}
        self._ranges = 0
        self._events: list[Event] = []

    def take_events(self) -> list[Event]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def highest(self, product: str) -> int | None:
        """The highest missing id of `product`; None if there is none."""
        state = self._products.get(product)
        return state.ranges[-1].last if state and state.ranges else None

    def known(self, product: str, first: int, last: int) -> Intervals:
        """The ids of `first` … `last` that need not be added: on the list, on a page under way, or absent."""
        state = self._products.get(product)
        return state.known(first, last) if state else Intervals()

    @property
    def due_ns(self) -> int | None:
        """When the next request is due if nothing changes before; None: no request."""
        return min((state.due_ns(missing) for state, missing in self._waiting()), default=None)

    def add(self, product: str, first: int, last: int, now_ns: int, due_ns: int) -> list[Interval]:
        """Ids `first` … `last` are missing and may be requested from `due_ns` on. Returns those that are new here."""
        state = self._products.setdefault(product, MissingIds())
        parts = state.known(first, last).gaps(first, last)
        if not parts:
            return []
        if self._ranges + len(parts) > RANGES_MAX:
            self._events.append(NoRoom(product, first, last))
            return []
        hole = Hole(product, parts, now_ns)
        self.holes_open += 1
        self.ids_missing += hole.left
        for part in parts:
            missing = MissingRange(hole, *part, due_ns, FIRST_PAUSE_NS)
            index = state.between(*part)[0]
            self._replace(state, index, index, self._as_requested(missing))
        return parts

    def _as_requested(self, missing: MissingRange) -> list[MissingRange]:
        """`missing`, split where its ids are within open requests; these parts get the request's number."""
        for request in (pending.request for pending in self._open.values()):
            if request is None or request.product != missing.hole.product:
                continue
            inside = Intervals([(request.first, request.last)]).within(missing.first, missing.last)
            if inside:
                mine = missing.part(*inside[0])
                mine.request = request.number
                others = [part for rest in missing.less(inside) for part in self._as_requested(rest)]
                return sorted([mine, *others], key=lambda part: part.first)
        return [missing]

    def arrived(self, product: str, first: int, last: int, now_ns: int) -> None:
        """Trades `first` … `last` came by another way: takes their ids off the list."""
        for hole, count in self._taken_off(product, first, last):
            hole.late += count
            self.ids_late += count
            self._settle(hole, count, now_ns)

    def proved_absent(self, product: str, first: int, last: int, now_ns: int) -> None:
        """Ids `first` … `last` were proved absent before: takes them off the list, and they won't be added again."""
        for hole, count in self._taken_off(product, first, last):
            hole.absent += count
            self._settle(hole, count, now_ns)
        self._products.setdefault(product, MissingIds()).absent.add(first, last)

    def _taken_off(self, product: str, first: int, last: int) -> list[tuple[Hole, int]]:
        """Takes ids off the list; returns (hole, number of ids) for those that were on it."""
        state = self._products.setdefault(product, MissingIds())
        start, end = state.between(first, last)
        left: list[MissingRange] = []
        taken: list[tuple[Hole, int]] = []
        for missing in state.ranges[start:end]:
            part = (max(first, missing.first), min(last, missing.last))
            left += missing.less([part])
            taken.append((missing.hole, part[1] - part[0] + 1))
        self._replace(state, start, end, left)
        return taken

    def next_request(self, now_ns: int) -> PageRequest | None:
        """The request to make now; None if nothing is due."""
        ready = [(state, missing) for state, missing in self._waiting() if state.due_ns(missing) <= now_ns]
        if not ready:
            return None
        self.requests += 1
        by_age = self.requests % OLDEST_EVERY == 0

        def urgency(item: tuple[MissingIds, MissingRange]) -> tuple[int, int, int]:
            missing = item[1]
            pages = -(-(missing.last - missing.first + 1) // self._span_max)
            found_ns = missing.hole.found_ns
            return (0, found_ns, -missing.last) if by_age else (pages, -found_ns, -missing.last)

        state, chosen = min(ready, key=urgency)
        return self._make_request(state, chosen, now_ns)

    def _make_request(self, state: MissingIds, chosen: MissingRange, now_ns: int) -> PageRequest:
        """A request for the top of `chosen`, and for other due ranges that fit the same page."""
        ranges = state.ranges
        top = state.between(chosen.last, chosen.last)[0]
        lowest = chosen.last - self._span_max + 1
        first, start = max(chosen.first, lowest), top
        for index in range(top - 1, -1, -1):
            missing = ranges[index]
            if missing.last < lowest or missing.request:
                break
            if state.due_ns(missing) <= now_ns:
                first, start = max(missing.first, lowest), index
        request = PageRequest(self.requests, chosen.hole.product, first, chosen.last, state.above(chosen) + 1)
        parts: list[MissingRange] = []
        for missing in ranges[start : top + 1]:
            if missing.first < first:
                parts.append(missing.part(missing.first, first - 1))
            mine = missing.part(max(missing.first, first), missing.last)
            mine.request = request.number
            parts.append(mine)
        self._replace(state, start, top + 1, parts)
        self._open[request.number] = _OpenRequest(request, now_ns)
        return request

    def answered(self, request: PageRequest, ids: Sequence[int], now_ns: int) -> bool:
        """The exchange answered with `ids`, newest first: all that it has from the first to the last of them.

        Returns whether the page is useful; if so, store it and then call `kept`. A page also heals other holes that it
        happens to cover.
        """
        pending, state = self._open[request.number], self._products[request.product]
        pending.request = None
        held = Intervals(runs(ids[::-1]))
        low, high = (ids[-1], ids[0]) if ids else (request.last, request.first)
        start, end = state.between(min(low, request.first), max(high, request.last))
        useful = False
        left: list[MissingRange] = []
        for missing in state.ranges[start:end]:
            found = held.within(missing.first, missing.last)
            pending.found += [(missing.hole, *part) for part in found]
            for part in missing.less(found):
                if not low < part.first <= part.last < high:
                    left.append(part)
                elif part.first_lacked_ns is not None and pending.at_ns >= part.first_lacked_ns + PROOF_NS:
                    pending.lacking.append((part.hole, part.first, part.last))
                    state.absent.add(part.first, part.last)
                else:
                    # Request it again when a second page would be a proof.
                    useful = useful or part.first_lacked_ns is None
                    part.first_lacked_ns = now_ns if part.first_lacked_ns is None else part.first_lacked_ns
                    part.request = 0 if part.request == request.number else part.request
                    part.due_ns = max(part.first_lacked_ns + PROOF_NS, now_ns + FIRST_PAUSE_NS)
                    left.append(part)
        self._replace(state, start, end, left)
        useful = useful or bool(pending.found or pending.lacking)
        # The page says nothing about the rest of the request. Request it again: at once if the page was useful, else
        # after a pause.
        for missing in state.requested_by(request.number, request.first, request.last):
            missing.request = 0
            missing.due_ns = now_ns if useful else now_ns + missing.pause_ns
            missing.pause_ns = FIRST_PAUSE_NS if useful else min(2 * missing.pause_ns, LONGEST_PAUSE_NS)
        for _, first, last in pending.found:
            state.underway.add(first, last)
        if not useful:
            del self._open[request.number]
        return useful

    def kept(self, request: PageRequest, now_ns: int) -> list[Interval]:
        """The page of `request` is in the log. Returns the missing ids that it brought."""
        pending, state = self._open.pop(request.number), self._products[request.product]
        for hole, first, last in pending.found:
            state.underway.remove(first, last)
            hole.fetched += last - first + 1
            self.ids_fetched += last - first + 1
        for hole, first, last in pending.lacking:
            hole.absent += last - first + 1
            self.ids_absent += last - first + 1
        absent = Intervals((first, last) for _, first, last in pending.lacking)
        self._events += [IdsAbsent(request.product, first, last) for first, last in absent]
        for hole, first, last in (*pending.found, *pending.lacking):
            self._settle(hole, last - first + 1, now_ns)
        return list(Intervals((first, last) for _, first, last in pending.found))

    def failed(self, request: PageRequest, now_ns: int, pause_ns: int) -> None:
        """There was no answer to `request`: its ids may be requested again after `pause_ns`."""
        del self._open[request.number]
        for missing in self._products[request.product].requested_by(request.number, request.first, request.last):
            missing.request = 0
            missing.due_ns = now_ns + pause_ns

    def put_off(self, product: str, until_ns: int) -> None:
        """Makes no requests for `product` before `until_ns`, because requests for it fail."""
        self._products.setdefault(product, MissingIds()).put_off_ns = until_ns

    def _settle(self, hole: Hole, count: int, now_ns: int) -> None:
        """`count` ids of `hole` have been dealt with."""
        self.ids_missing -= count
        hole.left -= count
        if not hole.left:
            self.holes_open -= 1
            took_ns = now_ns - hole.found_ns
            closed = HoleClosed(hole.product, hole.first, hole.last, hole.fetched, hole.late, hole.absent, took_ns)
            self._events.append(closed)

    def _replace(self, state: MissingIds, start: int, end: int, ranges: list[MissingRange]) -> None:
        self._ranges += len(ranges) - (end - start)
        state.ranges[start:end] = ranges

    def _waiting(self) -> Iterator[tuple[MissingIds, MissingRange]]:
        for state in self._products.values():
            for missing in state.waiting():
                yield state, missing
