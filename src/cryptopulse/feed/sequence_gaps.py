"""Finds the missing trade ids of a product.

Ids are dense: every trade has the previous id plus one. So a skipped id is a trade that has not come, and a heartbeat
with a higher id than any seen is a witness for trades that have not come either.

Late is not lost: an id that comes within the grace after it was skipped closes its gap, and nothing is reported. One
second of grace is long for messages that overtake each other (fractions of a second), and short for healing, which
has to wait some seconds for the exchange's REST pages anyway. A gap that outlives the grace is reported as a hole,
once, and dropped here: from then on it is on the work list (`cryptopulse.healing`), and the lake's ids decide.

Several connections may record the same products at once. They share one `IdWatch`, so an id is missing only if it came
on none of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Literal

import msgspec

from cryptopulse.intervals import Interval

GRACE_NS = 1_000_000_000
NEVER_NS = 2**63 - 1
"""A time that never comes."""

OPEN_GAPS_MAX = 1000
"""Most gaps of one product within their grace. A feed that skips more than this in a second is broken, not reordered:
the oldest gaps are reported early, so that memory stays bounded."""

JUMP_MAX = 100_000_000
"""An id further ahead than this is garbage: the busiest product has about a million trades a day. Accepting it would
make every real trade after it look old."""

UNKNOWN = -1
"""`highest` of a product before any id was seen. Below every id."""

Witness = Literal["trade", "heartbeat", "page", "refused"]
"""What showed that trades are missing: a later trade, a heartbeat, a page of the REST interface, or the missing trade
itself, which came but could not be kept."""


class IdGap(msgspec.Struct, frozen=True):
    """Trades `first_missing` … `last_missing` (both included) are missing."""

    first_missing: int
    last_missing: int
    witness: Witness


class _Gap:
    """Ids `first` … `last` that may still come until `due_ns`."""

    __slots__ = ("due_ns", "first", "last", "witness")

    def __init__(self, first: int, last: int, due_ns: int, witness: Witness) -> None:
        self.first = first
        self.last = last
        self.due_ns = due_ns
        self.witness = witness


class TradeIds:
    """The ids seen and missing of one product. Times are nanoseconds of a clock that never goes back."""

    __slots__ = (
        "_claim",
        "_claim_due_ns",
        "_claimed_by",
        "_early",
        "_open",
        "_wanted_to",
        "first",
        "highest",
        "repeated",
        "unsettled",
    )

    def __init__(self) -> None:
        self.first = UNKNOWN
        """First id that this watch follows; nothing is known of lower ids."""
        self.highest = UNKNOWN
        """Highest id seen, or known to be missing; the next trade should be one above."""
        self.unsettled = UNKNOWN
        """Highest id in an open gap or wanted by the work list. A repeated id above it needs no work. With two
        connections every second trade is such a repetition, so this check keeps them cheap."""
        self.repeated = 0
        """Ids that came again, or came after they were reported missing."""
        # A gap opens above all others and later than all others: this list is in the order of ids AND of due times.
        self._open: list[_Gap] = []
        self._wanted_to = UNKNOWN
        self._early: list[IdGap] = []
        self._claim = UNKNOWN
        self._claim_due_ns = NEVER_NS
        self._claimed_by: Witness = "heartbeat"

    @property
    def due_ns(self) -> int:
        """When `expired` will return a hole if nothing comes before; NEVER_NS if nothing is missing."""
        if self._early:
            return 0
        return min(self._open[0].due_ns if self._open else NEVER_NS, self._claim_due_ns)

    @property
    def open_count(self) -> int:
        """How many ids are missing now and not reported yet."""
        return sum(last - first + 1 for first, last in self.open_gaps)

    @property
    def open_gaps(self) -> list[Interval]:
        """The intervals of these ids."""
        return [(gap.first, gap.last) for gap in self._open]

    @property
    def wanted_to(self) -> int:
        """Highest id that the work list waits for; UNKNOWN for none."""
        return self._wanted_to

    @wanted_to.setter
    def wanted_to(self, trade_id: int) -> None:
        self._wanted_to = trade_id
        self._note_unsettled()

    def believable(self, trade_id: int) -> bool:
        """Whether `trade_id` can be an id of this product: not more than JUMP_MAX ahead."""
        return self.highest == UNKNOWN or trade_id - self.highest <= JUMP_MAX

    def seen(self, trade_id: int, now_ns: int) -> None:
        """A trade came. Nothing below the first trade of a product counts as missing."""
        if self.highest == UNKNOWN:
            self.first = trade_id
            if self._claim < trade_id:
                # A heartbeat came first: trades up to its id are history, those after it count.
                self.highest = self._claim
                self.first = self._claim + 1 if self._claim != UNKNOWN else trade_id
        highest = self.highest
        if trade_id == highest + 1 or highest == UNKNOWN:
            self.highest = trade_id
        elif trade_id > highest:
            self._open_gap(highest + 1, trade_id - 1, now_ns, "trade")
            self.highest = trade_id
        else:
            self._fill(trade_id)

    def lost(self, trade_id: int, now_ns: int) -> None:
        """A trade came but could not be kept: it is missing, and so are the ids that it skipped."""
        highest = self.highest
        if trade_id <= highest:
            return
        if highest == UNKNOWN:
            self.first = trade_id
        newest = self._open[-1] if self._open else None
        if newest is not None and newest.last == highest == trade_id - 1:
            newest.last = self.unsettled = trade_id
        else:
            first = trade_id if highest == UNKNOWN else highest + 1
            self._open_gap(first, trade_id, now_ns, "refused")
        self.highest = trade_id

    def held_to(self, trade_id: int) -> None:
        """The tables hold ids up to this one: the next trade is expected above it."""
        if self.highest == UNKNOWN:
            self.first = trade_id
        self.highest = max(self.highest, trade_id)

    def claimed(self, trade_id: int, now_ns: int, by: Witness = "heartbeat") -> None:
        """A heartbeat, or a page, names `trade_id` as the product's last trade (0: not known, as in 2020).

        It may have overtaken the trade itself, so it counts only after the grace. One claim is checked at a time;
        heartbeats come every second, so the next one continues where this one ends.
        """
        if self.highest < trade_id != 0 and self._claim == UNKNOWN and self.believable(trade_id):
            self._claim = trade_id
            self._claim_due_ns = now_ns + GRACE_NS
            self._claimed_by = by

    def expired(self, now_ns: int) -> list[IdGap]:
        """The holes whose grace is over at `now_ns`; each is returned once."""
        holes, self._early = self._early, []
        count = 0
        for gap in self._open:
            if gap.due_ns > now_ns:
                break
            count += 1
            holes.append(IdGap(gap.first, gap.last, gap.witness))
        del self._open[:count]
        if self._claim_due_ns <= now_ns:
            if self.highest == UNKNOWN:
                self.first = self._claim + 1
            elif self.highest < self._claim:
                holes.append(IdGap(self.highest + 1, self._claim, self._claimed_by))
            self.highest = max(self.highest, self._claim)
            self._claim, self._claim_due_ns = UNKNOWN, NEVER_NS
        self._note_unsettled()
        return holes

    def _note_unsettled(self) -> None:
        self.unsettled = max(self._wanted_to, self._open[-1].last if self._open else UNKNOWN)

    def _fill(self, trade_id: int) -> None:
        """Removes an id from its gap, or counts it as repeated if it is in none."""
        index = bisect_right(self._open, trade_id, key=lambda gap: gap.first) - 1
        if index < 0 or trade_id > self._open[index].last:
            self.repeated += 1
            return
        gap = self._open[index]
        if gap.first == gap.last:
            del self._open[index]
        elif trade_id == gap.first:
            gap.first += 1
        elif trade_id == gap.last:
            gap.last -= 1
        else:
            self._open.insert(index, _Gap(gap.first, trade_id - 1, gap.due_ns, gap.witness))
            gap.first = trade_id + 1
            self._bound()
        self._note_unsettled()

    def _open_gap(self, first: int, last: int, now_ns: int, witness: Witness) -> None:
        self._open.append(_Gap(first, last, now_ns + GRACE_NS, witness))
        self.unsettled = last
        self._bound()

    def _bound(self) -> None:
        """Marks the oldest gap for reporting if there are too many."""
        if len(self._open) > OPEN_GAPS_MAX:
            gap = self._open.pop(0)
            self._early.append(IdGap(gap.first, gap.last, gap.witness))


class IdWatch:
    """The ids of several products, seen by all connections that record them together."""

    def __init__(self, products: Iterable[str] = ()) -> None:
        self.ids: dict[str, TradeIds] = {}
        """By product."""
        self.due_ns = NEVER_NS
        """When `report` will have a hole to report."""
        self.holes = 0
        self.ids_missing = 0
        """Counts of the holes reported, and of the ids in them."""
        # Products with gaps or claims within their grace; nearly always empty.
        self._uncertain: set[str] = set()
        self.follow(products)

    def follow(self, products: Iterable[str]) -> None:
        """Watches `products` as well."""
        for product in products:
            self.ids.setdefault(product, TradeIds())

    @property
    def ids_open(self) -> int:
        """How many skipped ids are within their grace."""
        return sum(self.ids[product].open_count for product in self._uncertain)

    @property
    def repeated(self) -> int:
        """Trades that came more than once, or after they were reported missing."""
        return sum(ids.repeated for ids in self.ids.values())

    def changed(self, product: str) -> None:
        """Must be called when gaps or claims of `product` may have changed."""
        due_ns = self.ids[product].due_ns
        if due_ns == NEVER_NS:
            self._uncertain.discard(product)
            return
        self._uncertain.add(product)
        self.due_ns = min(self.due_ns, due_ns)

    def report(self, now_ns: int) -> list[tuple[str, IdGap]]:
        """The holes (product, ids) whose grace is over now; each is reported once."""
        found: list[tuple[str, IdGap]] = []
        for product in sorted(self._uncertain):
            ids = self.ids[product]
            found += [(product, hole) for hole in ids.expired(now_ns)]
            if ids.due_ns == NEVER_NS:
                self._uncertain.discard(product)
        self.due_ns = min((self.ids[product].due_ns for product in self._uncertain), default=NEVER_NS)
        self.holes += len(found)
        self.ids_missing += sum(hole.last_missing - hole.first_missing + 1 for _, hole in found)
        return found
