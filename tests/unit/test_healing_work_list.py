"""The work list: every missing id is fetched or proved absent, in a sensible order, none twice at a time."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cryptopulse.healing.work_list import (
    FIRST_PAUSE_NS,
    LONGEST_PAUSE_NS,
    OLDEST_EVERY,
    PAGE_MAX,
    PROOF_NS,
    RANGES_MAX,
    HoleClosed,
    IdsAbsent,
    NoRoom,
    PageRequest,
    WorkList,
)
from cryptopulse.intervals import Intervals

S = 1_000_000_000
A = "A-USD"


class Exchange:
    """What the exchange has, and how it answers."""

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = sorted(ids, reverse=True)

    def page(self, request: PageRequest, newest: int = 2**60) -> list[int]:
        """The answer to `request` of a server that knows no ids above `newest` yet."""
        return [i for i in self.ids if i < request.after and i <= newest][: request.limit]


def asked(work: WorkList, now_ns: int) -> PageRequest:
    request = work.next_request(now_ns)
    assert request is not None
    return request


def fetch(work: WorkList, exchange: Exchange, now_ns: int, newest: int = 2**60) -> tuple[int, int]:
    """One request from planning to the log; the ids that it was for."""
    request = asked(work, now_ns)
    if work.answered(request, exchange.page(request, newest), now_ns):
        work.kept(request, now_ns)
    return request.first, request.last


def test_a_hole_is_asked_for_with_its_neighbours_and_healed_when_its_page_is_safe() -> None:
    work = WorkList()
    assert work.add(A, 11, 13, 0, 3 * S) == [(11, 13)]
    assert (work.due_ns, work.next_request(3 * S - 1)) == (3 * S, None)
    request = asked(work, 3 * S)
    assert (request.product, request.after, request.limit) == (A, 15, 5)
    assert work.next_request(99 * S) is None
    assert work.answered(request, [14, 13, 12, 11, 10], 4 * S)
    assert (work.holes_open, work.ids_missing, work.take_events()) == (1, 3, [])
    assert work.kept(request, 5 * S) == [(11, 13)]
    assert work.take_events() == [HoleClosed(A, 11, 13, fetched=3, late=0, absent=0, took_ns=5 * S)]
    assert (work.holes_open, work.ids_missing, work.ids_fetched, work.due_ns) == (0, 0, 3, None)


def test_ids_that_come_by_another_way_leave_the_list() -> None:
    work = WorkList()
    work.add(A, 11, 15, 0, 0)
    work.arrived(A, 13, 13, S)
    work.arrived(A, 1, 11, S)
    assert (work.ids_missing, work.ids_late, work.highest(A)) == (3, 2, 15)
    work.arrived(A, 12, 99, 2 * S)
    assert work.take_events() == [HoleClosed(A, 11, 15, fetched=0, late=5, absent=0, took_ns=2 * S)]
    assert (work.next_request(9 * S), work.highest(A)) == (None, None)


def test_ids_that_come_while_they_are_asked_for_are_not_counted_twice() -> None:
    work = WorkList()
    work.add(A, 11, 13, 0, 0)
    request = asked(work, 0)
    work.arrived(A, 12, 12, 1)
    assert work.answered(request, [14, 13, 12, 11, 10], 2)
    work.arrived(A, 11, 11, 3)
    work.kept(request, 4)
    assert work.take_events() == [HoleClosed(A, 11, 13, fetched=2, late=1, absent=0, took_ns=4)]


def test_what_is_on_the_list_or_underway_or_absent_is_not_taken_again() -> None:
    work, exchange = WorkList(), Exchange([9, 10, 14, 15])
    assert work.add(A, 11, 13, 0, 0) == [(11, 13)]
    assert work.add(A, 10, 14, 0, 0) == [(10, 10), (14, 14)]
    request = asked(work, 0)
    work.answered(request, exchange.page(request), 0)
    assert work.add(A, 10, 14, 0, 0) == []
    work.kept(request, 0)
    fetch(work, exchange, 2 * PROOF_NS)
    assert work.ids_absent == 3
    assert work.add(A, 10, 14, 0, 0) == [(10, 10), (14, 14)]
    assert work.known(A, 0, 99) == Intervals([(10, 14)])


def test_an_id_between_two_of_a_page_is_absent_when_a_second_page_some_seconds_later_lacks_it_too() -> None:
    work, exchange = WorkList(), Exchange([9, 10, 12, 13, 15])
    work.add(A, 11, 11, 0, 0)
    request = asked(work, S)
    assert work.answered(request, exchange.page(request), S)  # the first page of the proof is kept as well
    assert work.kept(request, S) == []
    assert (work.take_events(), work.ids_missing) == ([], 1)
    assert work.due_ns == S + PROOF_NS
    fetch(work, exchange, S + PROOF_NS)
    assert work.take_events() == [
        IdsAbsent(A, 11, 11),
        HoleClosed(A, 11, 11, fetched=0, late=0, absent=1, took_ns=S + PROOF_NS),
    ]
    assert (work.ids_missing, work.ids_absent, work.due_ns) == (0, 1, None)


def test_an_absence_is_not_proved_before_its_page_is_safe() -> None:
    work, exchange = WorkList(), Exchange([10, 12])
    work.add(A, 11, 11, 0, 0)
    fetch(work, exchange, 0)
    request = asked(work, PROOF_NS)
    assert work.answered(request, exchange.page(request), PROOF_NS)
    assert (work.take_events(), work.ids_missing) == ([], 1)


def test_a_page_that_is_older_than_the_hole_says_nothing_and_is_not_kept() -> None:
    work, exchange = WorkList(), Exchange(range(100))
    work.add(A, 50, 52, 0, 0)
    request = asked(work, 0)
    assert not work.answered(request, exchange.page(request, newest=47), 0)
    assert work.due_ns == FIRST_PAUSE_NS
    assert fetch(work, exchange, FIRST_PAUSE_NS, newest=51) == (50, 52)
    assert (work.ids_fetched, work.ids_missing, work.due_ns) == (2, 1, FIRST_PAUSE_NS)
    assert fetch(work, exchange, FIRST_PAUSE_NS) == (52, 52)
    assert work.ids_fetched == 3


def test_ids_below_the_exchanges_record_are_asked_for_less_and_less_often() -> None:
    work, exchange = WorkList(), Exchange(range(100, 200))
    work.add(A, 90, 105, 0, 0)
    now_ns, times = 0, []
    for _ in range(12):
        fetch(work, exchange, now_ns)
        due_ns = work.due_ns
        assert due_ns is not None
        times.append(due_ns - now_ns)
        now_ns = due_ns
    assert times[:4] == [0, FIRST_PAUSE_NS, 2 * FIRST_PAUSE_NS, 4 * FIRST_PAUSE_NS]
    assert times[-1] == LONGEST_PAUSE_NS
    assert (work.ids_fetched, work.ids_missing, work.ids_absent) == (6, 10, 0)


def test_an_empty_page_proves_nothing() -> None:
    work = WorkList()
    work.add(A, 10, 20, 0, 0)
    assert not work.answered(asked(work, 0), [], 0)
    assert not work.answered(asked(work, 9 * S), [], 9 * S)
    assert (work.ids_missing, work.ids_absent) == (11, 0)


def test_a_hole_of_many_pages_is_walked_downwards_by_several_requests_at_once() -> None:
    work = WorkList()
    work.add(A, 1001, 4000, 0, 0)
    requests = [asked(work, 0) for _ in range(3)]
    assert [(r.first, r.last, r.limit) for r in requests] == [
        (3003, 4000, PAGE_MAX),
        (2005, 3002, PAGE_MAX),
        (1007, 2004, PAGE_MAX),
    ]
    assert asked(work, 0)[2:4] == (1001, 1006)
    assert work.next_request(0) is None


def test_holes_that_lie_within_a_page_are_fetched_by_one_request() -> None:
    work = WorkList()
    for first in (5000, 5100, 5990, 4003, 4002):
        work.add(A, first, first, first, 0)
    assert asked(work, 9999)[2:4] == (5000, 5990)
    assert asked(work, 9999)[2:4] == (4002, 4003)


def test_a_fresh_hole_between_two_others_is_not_asked_for_twice() -> None:
    work = WorkList()
    work.add(A, 10, 10, 0, 0)
    work.add(A, 30, 30, 0, 0)
    work.add(A, 20, 20, 0, 5 * S)
    assert asked(work, 0)[2:4] == (10, 30)
    assert work.next_request(5 * S) is None


def test_a_hole_within_a_page_that_is_already_asked_for_waits_for_its_answer() -> None:
    work, exchange = WorkList(), Exchange(range(100))
    work.add(A, 10, 10, 0, 0)
    work.add(A, 30, 30, 0, 0)
    request = asked(work, 0)
    work.add(A, 25, 40, 0, 0)
    assert asked(work, 0)[2:4] == (31, 40)
    work.answered(request, exchange.page(request), 0)
    assert work.kept(request, 0) == [(10, 10), (25, 31)]


def test_newest_and_smallest_holes_go_first() -> None:
    work = WorkList()
    work.add("OLD", 10, 10, 1, 0)
    work.add("HUGE", 10, 9999, 5, 0)
    work.add("BIG", 10, 2500, 4, 0)
    work.add("NEW", 10, 10, 3, 0)
    work.add("PAGE", 10, 1007, 2, 0)
    order = [asked(work, 9).product for _ in range(6)]
    assert order == ["NEW", "PAGE", "OLD", "BIG", "BIG", "BIG"]
    assert asked(work, 9).product == "HUGE"


def test_an_old_hole_is_not_put_off_for_ever_by_new_ones() -> None:
    work = WorkList()
    work.add("HUGE", 10, 9999, 0, 0)
    products = []
    for number in range(OLDEST_EVERY):
        work.add("NEW", 10_000 * number, 10_000 * number, number + 1, 0)
        products.append(asked(work, 99).product)
    assert products == ["NEW"] * (OLDEST_EVERY - 1) + ["HUGE"]


def test_a_request_that_failed_is_made_again_after_its_pause_and_others_go_on() -> None:
    work = WorkList()
    work.add(A, 10, 12, 0, 0)
    work.add("B-USD", 10, 12, 0, 0)
    first = asked(work, 0)
    work.failed(first, 0, 4 * S)
    assert asked(work, 0).product != first.product
    assert work.next_request(4 * S - 1) is None
    assert asked(work, 4 * S)[1:] == first[1:]


def test_a_product_that_the_exchange_does_not_know_is_left_alone_for_long() -> None:
    work = WorkList()
    work.add(A, 10, 12, 0, 0)
    work.put_off(A, 600 * S)
    work.add(A, 20, 22, 0, 0)
    assert (work.next_request(599 * S), work.due_ns) == (None, 600 * S)
    assert asked(work, 600 * S)[2:4] == (10, 22)


def test_an_absence_longer_than_a_page_is_proved_by_two_pages() -> None:
    """The ids around it are the only ones that can show it, and requests for its middle say nothing."""
    work, exchange = WorkList(), Exchange([*range(1000), *range(6000, 7000)])
    work.add(A, 900, 6100, 0, 0)
    now_ns, count = 0, 0
    while work.ids_missing:
        requests = []
        while (request := work.next_request(now_ns)) and len(requests) < 4:
            requests.append(request)
        for request in requests:
            count += 1
            if work.answered(request, exchange.page(request), now_ns):
                work.kept(request, now_ns)
        now_ns += S
        assert now_ns < 60 * S
    assert (work.ids_fetched, work.ids_absent) == (201, 5000)
    assert count < 20
    assert sum(e.last - e.first + 1 for e in work.take_events() if isinstance(e, IdsAbsent)) == 5000


def test_an_id_beside_absent_ones_is_asked_for_from_above_them() -> None:
    """Else its page would have nothing above it, and prove nothing."""
    work, exchange = WorkList(), Exchange([9, 20])
    work.proved_absent(A, 11, 19, 0)
    assert work.add(A, 10, 15, 0, 0) == [(10, 10)]
    assert asked(work, 0)[2:] == (10, 10, 21)
    work = WorkList()
    work.add(A, 10, 12, 0, 0)
    work.proved_absent(A, 11, 19, 0)
    fetch(work, exchange, 0)
    fetch(work, exchange, PROOF_NS)
    assert (work.ids_absent, work.ids_missing) == (1, 0)
    assert work.take_events()[-1] == HoleClosed(A, 10, 12, fetched=0, late=0, absent=3, took_ns=PROOF_NS)


def test_the_list_is_bounded_and_says_what_it_did_not_take() -> None:
    work = WorkList()
    for number in range(RANGES_MAX):
        work.add(A, 2 * number, 2 * number, 0, 0)
    assert work.add("B-USD", 1, 1, 0, 0) == []
    assert work.take_events() == [NoRoom("B-USD", 1, 1)]
    work.arrived(A, 0, 0, 0)
    assert work.add("B-USD", 1, 1, 0, 0) == [(1, 1)]


LAST = 60
ids_in = st.integers(2, LAST - 2)


class _AnyCourse(RuleBasedStateMachine):
    """Holes, answers that are stale, wrong or none, trades that come late, in any order and with any timing."""

    def __init__(self) -> None:
        super().__init__()
        self.work = WorkList(page_max=8)
        self.now_ns = 0
        # The ids around the holes exist: somebody held them when he found the hole.
        self.exchange: dict[str, set[int]] = {A: set(range(LAST)), "B-USD": set(range(LAST))}
        self.missing: dict[str, set[int]] = {A: set(), "B-USD": set()}
        self.fetched: set[tuple[str, int]] = set()
        self.late: set[tuple[str, int]] = set()
        self.absent: set[tuple[str, int]] = set()
        self.out: list[PageRequest] = []
        self.to_keep: list[PageRequest] = []
        self.underway: dict[int, set[int]] = {}

    products = st.sampled_from([A, "B-USD"])

    @rule(product=products, first=ids_in, count=st.integers(1, 20), exists=st.booleans(), wait_s=st.integers(0, 3))
    def a_hole(self, product: str, first: int, count: int, exists: bool, wait_s: int) -> None:
        last = min(first + count - 1, LAST - 2)
        known = self.missing[product] | {i for p, i in self.fetched | self.late | self.absent if p == product}
        new = set(range(first, last + 1)) - known
        if not exists:
            self.exchange[product] -= new
        for i in sorted(new):
            self.work.add(product, i, i, self.now_ns, self.now_ns + wait_s * S)
        self.missing[product] |= new

    @rule(product=products, trade_id=ids_in)
    def a_trade_comes_late(self, product: str, trade_id: int) -> None:
        if trade_id in self.exchange[product]:
            self.work.arrived(product, trade_id, trade_id, self.now_ns)
            if trade_id in self.missing[product] and not self.is_underway(product, trade_id):
                self.missing[product].discard(trade_id)
                self.late.add((product, trade_id))

    def is_underway(self, product: str, trade_id: int) -> bool:
        return any(r.product == product and trade_id in self.underway[r.number] for r in self.to_keep)

    @rule(seconds=st.floats(0, 8))
    def time_passes(self, seconds: float) -> None:
        self.now_ns += int(seconds * S)

    @precondition(lambda self: len(self.out) < 4)
    @rule()
    def ask(self) -> None:
        request = self.work.next_request(self.now_ns)
        if request is None:
            due_ns = self.work.due_ns
            assert due_ns is None or due_ns > self.now_ns
            return
        assert 3 <= request.limit <= 8
        assert set(range(request.first, request.last + 1)) & self.missing[request.product]
        for other in self.out:
            assert other.product != request.product or other.last < request.first or request.last < other.first
        self.out.append(request)

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 3), newest=st.integers(0, LAST) | st.just(2**60))
    def answer(self, which: int, newest: int) -> None:
        request = self.out.pop(which % len(self.out))
        page = Exchange(self.exchange[request.product]).page(request, newest)
        if self.work.answered(request, page, self.now_ns):
            self.to_keep.append(request)
            self.underway[request.number] = set(page) & self.missing[request.product]

    @precondition(lambda self: self.out)
    @rule(which=st.integers(0, 3), pause_s=st.integers(0, 5))
    def no_answer(self, which: int, pause_s: int) -> None:
        self.work.failed(self.out.pop(which % len(self.out)), self.now_ns, pause_s * S)

    @precondition(lambda self: self.to_keep)
    @rule(which=st.integers(0, 3))
    def the_log_took_a_page(self, which: int) -> None:
        request = self.to_keep.pop(which % len(self.to_keep))
        for first, last in self.work.kept(request, self.now_ns):
            for i in range(first, last + 1):
                assert i in self.missing[request.product]
                self.missing[request.product].discard(i)
                self.fetched.add((request.product, i))
        self.events()

    def events(self) -> None:
        for event in self.work.take_events():
            if isinstance(event, IdsAbsent):
                for i in range(event.first, event.last + 1):
                    assert i in self.missing[event.product]
                    assert i not in self.exchange[event.product]
                    self.missing[event.product].discard(i)
                    self.absent.add((event.product, i))

    @invariant()
    def the_figures_are_right(self) -> None:
        self.events()
        assert self.work.ids_missing == sum(map(len, self.missing.values()))
        assert self.work.ids_fetched == len(self.fetched)
        assert self.work.ids_late == len(self.late)
        assert self.work.ids_absent == len(self.absent)
        assert (self.work.holes_open == 0) == (self.work.ids_missing == 0)

    def teardown(self) -> None:
        """From here on the exchange answers well: everything is fetched or proved absent."""
        for request in self.out:
            self.work.failed(request, self.now_ns, 0)
        while self.to_keep:
            self.the_log_took_a_page(0)
        for _ in range(500):
            self.events()
            if not self.work.ids_missing:
                break
            due_ns = self.work.due_ns
            assert due_ns is not None
            self.now_ns = max(self.now_ns, due_ns)
            request = asked(self.work, self.now_ns)
            if self.work.answered(request, Exchange(self.exchange[request.product]).page(request), self.now_ns):
                self.to_keep.append(request)
                self.the_log_took_a_page(0)
        assert self.work.ids_missing == 0
        assert not any(self.missing.values())
        for product, i in self.absent:
            assert i not in self.exchange[product]
        for product, i in self.fetched | self.late:
            assert i in self.exchange[product]


TestAnyCourse = _AnyCourse.TestCase
TestAnyCourse.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_two_pages_of_one_moment_prove_no_absence() -> None:
    """Both may be as old: the second page of a proof is asked for `PROOF_NS` after the first one came."""
    work, exchange = WorkList(), Exchange(set(range(30)) - {12, 15})
    work.add(A, 12, 12, 0, 0)
    fetch(work, exchange, 0)
    work.add(A, 14, 16, S, S)
    request = asked(work, S)
    page = exchange.page(request)
    assert page == [17, 16, 14, 13, 11]  # it lacks 12 as well
    work.answered(request, page, S)
    work.kept(request, S)
    assert (work.ids_fetched, work.ids_absent, work.ids_missing) == (2, 0, 2)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9900), st.integers(1, 2500)), min_size=1, max_size=12),
    st.sets(st.integers(1, 9990), max_size=30),
)
@pytest.mark.parametrize("parallel", [1, 4])
def test_no_more_pages_are_asked_for_than_the_holes_are_long(
    parallel: int, holes: list[tuple[int, int]], absent: set[int]
) -> None:
    """A thousand ids a page, one more where holes meet, and two for each absence."""
    work = WorkList()
    for first, count in holes:
        work.add(A, first, min(first + count - 1, 9999), 0, 0)
    wanted = work.known(A, 0, 10_000)
    absent = {i for i in absent if i in wanted}  # what is not missing is held: the exchange has had it
    exchange = Exchange(set(range(10_001)) - absent)
    budget = sum(-(-(last - first + 1) // 998) for first, last in wanted) + len(holes) + 2 * len(absent)
    now_ns, made = 0, 0
    while work.ids_missing and made <= budget:
        out = []
        while len(out) < parallel and (request := work.next_request(now_ns)):
            out.append(request)
        made += len(out)
        for request in out:
            if work.answered(request, exchange.page(request), now_ns):
                work.kept(request, now_ns)
        now_ns = max(now_ns, work.due_ns or 0)
    assert made <= budget
    gone = Intervals((i, i) for i in absent)
    assert work.ids_fetched == wanted.without(gone).count
    assert work.ids_absent == sum(i in wanted for i in absent)
