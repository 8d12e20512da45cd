"""What is to be fetched, in which order, and what a page of the exchange says about it.

Everything that decides lives here, and nothing that waits: no socket, no clock, no logging. Missing ids go in
(`add`), so does whatever else brings them (`arrived`); out come requests (`next_request`), the time at which to
ask again (`due_ns`) and events (`take_events`). Each request is answered by `answered` or `failed`; a page that
is of use is `kept` when it is safe. All times are integer nanoseconds of one clock that never goes back.

The exchange is asked for the ids below X and answers newest first, at most `PAGE_MAX` of them. A request asks for
a stretch of ids with one neighbour on either side, so that the page also proves what the exchange does not have:
an id that is not on the page, between two that are. Once is not enough, for the exchange's newest pages may be
some seconds old; an id counts as absent when two pages, fetched `PROOF_NS` apart, lack it.

Holes are walked downwards, page by page, several pages at once, but no id is asked for twice at a time. What one
page can bring goes first, and of that the newest: a page costs the same whether it heals a second or a year, and
it is the last minutes that people look at. Every tenth request goes to the oldest hole, so that none waits for
ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cryptopulse.completeness.stretches import Hole, MissingIds, Stretch
from cryptopulse.intervals import Interval, Intervals, runs

PAGE_MAX = 1000
"""Rows of a page, as the exchange limits them."""

SECOND_NS = 1_000_000_000

PROOF_NS = 5 * SECOND_NS
"""Between the two pages that prove an absence: more than the age of a cached page (some seconds were seen)."""

FIRST_PAUSE_NS = 2 * SECOND_NS
LONGEST_PAUSE_NS = 300 * SECOND_NS
"""Pauses of ids about which a page says nothing: it was older than they are, or the exchange's record ends above
them. They double from the first to the longest."""

STRETCHES_MAX = 10_000
"""Stretches of missing ids on the list: 3 MB, and 4 ms for choosing, in which no message is received. Further ones are
not taken; the tables show them again when there is room."""

OLDEST_EVERY = 10


class Request(NamedTuple):
    """Ids `first` … `last` of `product` are to be fetched. To be asked: `limit` ids below `after`."""

    number: int
    product: str
    first: int
    last: int
    after: int

    @property
    def limit(self) -> int:
        """With one neighbour on either side."""
        return self.last - self.first + 3


class HoleClosed(NamedTuple):
    """All ids of a hole have been dealt with. `first` … `last` is how it was found; of its ids so many were
    `fetched`, came by another way (`late`), or are not there at all (`absent`)."""

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
    """The list is full; ids `first` … `last` were not taken."""

    product: str
    first: int
    last: int


Event = HoleClosed | IdsAbsent | NoRoom


class _Asked:
    """A request that is out, and then what its page brought."""

    __slots__ = ("at_ns", "found", "lacking", "request")

    def __init__(self, request: Request, at_ns: int) -> None:
        self.request: Request | None = request
        """None once it is answered."""
        self.at_ns = at_ns
        self.found: list[tuple[Hole, int, int]] = []
        self.lacking: list[tuple[Hole, int, int]] = []


class WorkList:
    """The missing ids of all products."""

    def __init__(self, page_max: int = PAGE_MAX) -> None:
        """`page_max`: rows of a page, at least 3."""
        self.holes_open = 0
        self.ids_missing = 0
        """Ids that are neither safe nor known to be absent."""
        self.ids_fetched = 0
        self.ids_late = 0
        """Ids that came by another way."""
        self.ids_absent = 0
        self.requests = 0
        """How many have been handed out."""
        self._span_max = page_max - 2  # two neighbours are on the page as well
        self._products: dict[str, MissingIds] = {}
        self._asked: dict[int, _Asked] = {}
        self._stretches = 0
        self._events: list[Event] = []

    def take_events(self) -> list[Event]:
        """What has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def highest(self, product: str) -> int | None:
        """The highest id of `product` that is still waited for, None when there is none."""
        state = self._products.get(product)
        return state.stretches[-1].last if state and state.stretches else None

    def known(self, product: str, first: int, last: int) -> Intervals:
        """What of `first` … `last` nobody needs to add: it is on the list, underway on a page, or absent."""
        state = self._products.get(product)
        return state.known(first, last) if state else Intervals()

    @property
    def due_ns(self) -> int | None:
        """When there is something to ask if nothing happens until then; None: never."""
        return min((state.due_ns(stretch) for state, stretch in self._waiting()), default=None)

    def add(self, product: str, first: int, last: int, now_ns: int, due_ns: int) -> list[Interval]:
        """Ids `first` … `last` are missing, to be asked for from `due_ns` on. Returns those that are new here."""
        state = self._products.setdefault(product, MissingIds())
        parts = state.known(first, last).gaps(first, last)
        if not parts:
            return []
        if self._stretches + len(parts) > STRETCHES_MAX:
            self._events.append(NoRoom(product, first, last))
            return []
        hole = Hole(product, parts, now_ns)
        self.holes_open += 1
        self.ids_missing += hole.left
        for part in parts:
            stretch = Stretch(hole, *part, due_ns, FIRST_PAUSE_NS)
            index = state.between(*part)[0]
            self._replace(state, index, index, self._as_asked(stretch))
        return parts

    def _as_asked(self, stretch: Stretch) -> list[Stretch]:
        """`stretch`, whose ids may lie among those that a request is already out for."""
        for request in (asked.request for asked in self._asked.values()):
            if request is None or request.product != stretch.hole.product:
                continue
            inside = Intervals([(request.first, request.last)]).within(stretch.first, stretch.last)
            if inside:
                mine = stretch.part(*inside[0])
                mine.request = request.number
                others = [part for rest in stretch.less(inside) for part in self._as_asked(rest)]
                return sorted([mine, *others], key=lambda part: part.first)
        return [stretch]

    def arrived(self, product: str, first: int, last: int, now_ns: int) -> None:
        """Trades `first` … `last` came by another way: those that are on the list leave it."""
        for hole, count in self._taken_off(product, first, last):
            hole.late += count
            self.ids_late += count
            self._settle(hole, count, now_ns)

    def proved_absent(self, product: str, first: int, last: int, now_ns: int) -> None:
        """Somebody has proved before that there are no trades `first` … `last`: nobody needs to ask for them."""
        for hole, count in self._taken_off(product, first, last):
            hole.absent += count
            self._settle(hole, count, now_ns)
        self._products.setdefault(product, MissingIds()).absent.add(first, last)

    def _taken_off(self, product: str, first: int, last: int) -> list[tuple[Hole, int]]:
        """Takes ids off the list; to which holes they belonged, and how many."""
        state = self._products.setdefault(product, MissingIds())
        start, end = state.between(first, last)
        left: list[Stretch] = []
        taken: list[tuple[Hole, int]] = []
        for stretch in state.stretches[start:end]:
            part = (max(first, stretch.first), min(last, stretch.last))
            left += stretch.less([part])
            taken.append((stretch.hole, part[1] - part[0] + 1))
        self._replace(state, start, end, left)
        return taken

    def next_request(self, now_ns: int) -> Request | None:
        """What to ask for now; None when nothing is due."""
        ready = [(state, stretch) for state, stretch in self._waiting() if state.due_ns(stretch) <= now_ns]
        if not ready:
            return None
        self.requests += 1
        order = _age if self.requests % OLDEST_EVERY == 0 else self._urgency
        state, chosen = min(ready, key=lambda item: order(item[1]))
        return self._ask(state, chosen, now_ns)

    def _urgency(self, stretch: Stretch) -> tuple[int, int, int]:
        pages = -(-(stretch.last - stretch.first + 1) // self._span_max)
        return pages, -stretch.hole.found_ns, -stretch.last

    def _ask(self, state: MissingIds, chosen: Stretch, now_ns: int) -> Request:
        """A request for the top of `chosen`, and for whatever else lies within the same page."""
        stretches = state.stretches
        top = state.between(chosen.last, chosen.last)[0]
        lowest = chosen.last - self._span_max + 1
        first, start = max(chosen.first, lowest), top
        for index in range(top - 1, -1, -1):
            stretch = stretches[index]
            if stretch.last < lowest or stretch.request:
                break
            if state.due_ns(stretch) <= now_ns:
                first, start = max(stretch.first, lowest), index
        request = Request(self.requests, chosen.hole.product, first, chosen.last, state.above(chosen) + 1)
        asked: list[Stretch] = []
        for stretch in stretches[start : top + 1]:
            if stretch.first < first:
                asked.append(stretch.part(stretch.first, first - 1))
            mine = stretch.part(max(stretch.first, first), stretch.last)
            mine.request = request.number
            asked.append(mine)
        self._replace(state, start, top + 1, asked)
        self._asked[request.number] = _Asked(request, now_ns)
        return request

    def answered(self, request: Request, ids: Sequence[int], now_ns: int) -> bool:
        """The exchange answered with `ids`, newest first: all that it has from the first to the last of them.

        Returns whether the page is of use: then it is to be put where it is safe, and `kept` to be called. Other
        holes that the page happens to cover are healed by it as well.
        """
        asked, state = self._asked[request.number], self._products[request.product]
        asked.request = None
        held = Intervals(runs(ids[::-1]))
        low, high = (ids[-1], ids[0]) if ids else (request.last, request.first)
        start, end = state.between(min(low, request.first), max(high, request.last))
        useful = False
        left: list[Stretch] = []
        for stretch in state.stretches[start:end]:
            found = held.within(stretch.first, stretch.last)
            asked.found += [(stretch.hole, *part) for part in found]
            for part in stretch.less(found):
                if not low < part.first <= part.last < high:
                    left.append(part)
                elif part.lacked_ns is not None and asked.at_ns >= part.lacked_ns + PROOF_NS:
                    asked.lacking.append((part.hole, part.first, part.last))
                    state.absent.add(part.first, part.last)
                else:
                    useful = useful or part.lacked_ns is None
                    left.append(_lacking(part, request, now_ns))
        self._replace(state, start, end, left)
        useful = useful or bool(asked.found or asked.lacking)
        _release(state, request, now_ns, useful)
        for _, first, last in asked.found:
            state.underway.add(first, last)
        if not useful:
            del self._asked[request.number]
        return useful

    def kept(self, request: Request, now_ns: int) -> list[Interval]:
        """The page of `request` is safe. Returns the ids that it brought."""
        asked, state = self._asked.pop(request.number), self._products[request.product]
        for hole, first, last in asked.found:
            state.underway.remove(first, last)
            hole.fetched += last - first + 1
            self.ids_fetched += last - first + 1
        for hole, first, last in asked.lacking:
            hole.absent += last - first + 1
            self.ids_absent += last - first + 1
        absent = Intervals((first, last) for _, first, last in asked.lacking)
        self._events += [IdsAbsent(request.product, first, last) for first, last in absent]
        for hole, first, last in (*asked.found, *asked.lacking):
            self._settle(hole, last - first + 1, now_ns)
        return list(Intervals((first, last) for _, first, last in asked.found))

    def failed(self, request: Request, now_ns: int, pause_ns: int) -> None:
        """There was no answer: its ids may be asked for again after `pause_ns`."""
        del self._asked[request.number]
        for stretch in self._products[request.product].asked_by(request.number, request.first, request.last):
            stretch.request = 0
            stretch.due_ns = now_ns + pause_ns

    def put_off(self, product: str, until_ns: int) -> None:
        """Nothing of `product` is asked for before `until_ns`: the exchange says that it is of no use."""
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

    def _replace(self, state: MissingIds, start: int, end: int, stretches: list[Stretch]) -> None:
        self._stretches += len(stretches) - (end - start)
        state.stretches[start:end] = stretches

    def _waiting(self) -> Iterator[tuple[MissingIds, Stretch]]:
        for state in self._products.values():
            for stretch in state.waiting():
                yield state, stretch


def _age(stretch: Stretch) -> tuple[int, int, int]:
    return stretch.hole.found_ns, -stretch.last, 0


def _lacking(part: Stretch, request: Request, now_ns: int) -> Stretch:
    """`part` after a page that lacked it: to be asked for once more when that would be a proof."""
    if part.lacked_ns is None:
        part.lacked_ns = now_ns
    if part.request == request.number:
        part.request = 0
    part.due_ns = max(part.lacked_ns + PROOF_NS, now_ns + FIRST_PAUSE_NS)
    return part


def _release(state: MissingIds, request: Request, now_ns: int, progress: bool) -> None:
    """The page of `request` says nothing about what is left of it: to be asked for again, at once if the page
    brought anything at all, else after a pause."""
    for stretch in state.asked_by(request.number, request.first, request.last):
        stretch.request = 0
        if progress:
            stretch.due_ns, stretch.pause_ns = now_ns, FIRST_PAUSE_NS
        else:
            stretch.due_ns = now_ns + stretch.pause_ns
            stretch.pause_ns = min(2 * stretch.pause_ns, LONGEST_PAUSE_NS)
