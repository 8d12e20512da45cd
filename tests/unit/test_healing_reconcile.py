"""What successive comparisons with the tables show: what is lost is found, what is merely on its way is not."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cryptopulse.healing.reconcile import Holes, LiveIds, Reconciler
from cryptopulse.intervals import Interval, Intervals

A = "A-USD"
FROM_THE_START = LiveIds(1, 1000)


def nobody_knows(_product: str, _first: int, _last: int) -> Intervals:
    return Intervals()


def compare(
    reconciler: Reconciler, *held: Interval, seen: LiveIds = FROM_THE_START, known: Intervals | None = None
) -> list[Interval]:
    """The holes of one product, new or not."""
    new, again = compare_closely(reconciler, *held, seen=seen, known=known)
    return sorted([*new, *again])


def compare_closely(
    reconciler: Reconciler, *held: Interval, seen: LiveIds = FROM_THE_START, known: Intervals | None = None
) -> Holes:
    works_on = known or Intervals()
    shown = reconciler.compare(
        {A: Intervals(held)}, {A: seen}, lambda _, first, last: Intervals(works_on.within(first, last))
    )
    return shown.get(A, Holes([], []))


def test_a_gap_that_two_successive_comparisons_show_is_a_hole() -> None:
    reconciler = Reconciler(log_is_known=True)
    assert compare(reconciler, (1, 10), (14, 20)) == []
    assert compare(reconciler, (1, 10), (13, 17), (19, 20)) == [(11, 12)]
    assert compare(reconciler, (1, 20)) == []
    assert compare(reconciler, (1, 10), (13, 17), (19, 20)) == []


def test_a_gap_that_somebody_works_on_is_no_news_and_must_be_shown_twice_afterwards() -> None:
    reconciler = Reconciler(log_is_known=True)
    works_on = Intervals([(11, 13)])
    for _ in range(3):
        assert compare(reconciler, (1, 10), (14, 20), known=works_on) == []
    assert compare(reconciler, (1, 10), (14, 20)) == []
    assert compare(reconciler, (1, 10), (14, 20)) == [(11, 13)]


def test_fetched_ids_count_as_there_until_the_tables_show_what_came_after_them() -> None:
    reconciler = Reconciler(log_is_known=True)
    reconciler.logged(A, 11, 13)
    behind = LiveIds(1, 500)
    for highest in (20, 300, 500):  # the processing is behind: what it shows was written before the page
        assert compare(reconciler, (1, 10), (14, highest), seen=behind) == []
    assert compare(reconciler, (1, 10), (14, 501), seen=behind) == []
    assert compare(reconciler, (1, 10), (14, 502), seen=behind) == [(11, 13)]  # the page must have been lost


def test_what_is_shown_again_although_it_was_fetched_is_told_apart() -> None:
    """A trade that the tables refuse stays a gap, however often it is fetched."""
    reconciler = Reconciler(log_is_known=True)
    shown = [compare_closely(reconciler, (1, 10), (13, 20)) for _ in range(2)]
    assert shown == [([], []), ([(11, 12)], [])]
    shown = [compare_closely(reconciler, (1, 10), (14, 18), (20, 30)) for _ in range(2)]
    assert shown == [([], [(11, 12)]), ([(13, 13), (19, 19)], [(11, 12)])]


def test_pages_of_later_looks_wait_for_their_own_trades() -> None:
    reconciler = Reconciler(log_is_known=True)
    reconciler.logged(A, 11, 11)
    compare(reconciler, (1, 10), (12, 14), (16, 20), seen=LiveIds(1, 100))
    reconciler.logged(A, 15, 15)
    assert compare(reconciler, (1, 10), (12, 14), (16, 90), seen=LiveIds(1, 200)) == []
    assert compare(reconciler, (1, 10), (12, 14), (16, 150), seen=LiveIds(1, 300)) == []
    assert compare(reconciler, (1, 10), (12, 14), (16, 160), seen=LiveIds(1, 300)) == [(11, 11)]


def test_what_was_missed_while_nobody_recorded_is_a_hole_when_all_of_the_log_is_known() -> None:
    reconciler = Reconciler(log_is_known=True)
    for expected in ([], [(21, 99)]):
        assert compare(reconciler, (1, 20), seen=LiveIds(100, 120)) == expected


def test_what_an_unread_log_may_hold_is_no_hole_until_the_tables_have_come_that_far() -> None:
    reconciler = Reconciler(log_is_known=False)
    for highest in (20, 50, 98):
        assert compare(reconciler, (1, 10), (14, highest), seen=LiveIds(100, 120)) == []
    assert compare(reconciler, (1, 10), (14, 90), (96, 101), seen=LiveIds(100, 120)) == []
    assert compare(reconciler, (1, 10), (14, 90), (96, 105), seen=LiveIds(100, 120)) == [(11, 13), (91, 95)]


def test_tables_that_are_made_again_miss_nothing_until_they_are_back_where_they_were() -> None:
    reconciler = Reconciler(log_is_known=True)
    compare(reconciler, (1, 500))
    for highest in (20, 300, 499):
        assert compare(reconciler, (1, 10), (14, highest)) == []
    assert compare(reconciler, (1, 10), (14, 500)) == []
    assert compare(reconciler, (1, 10), (14, 500)) == [(11, 13)]


def test_products_that_are_not_recorded_or_not_in_the_tables_are_left_alone() -> None:
    reconciler = Reconciler(log_is_known=True)
    gaps = Intervals([(1, 10), (14, 20)])
    for _ in range(2):
        assert reconciler.compare({"B-USD": gaps}, {A: LiveIds(1, 5)}, nobody_knows) == {}


def test_a_processing_that_stands_still_for_days_costs_no_memory_for_each_look() -> None:
    reconciler = Reconciler(log_is_known=True)
    for number in range(2000):
        reconciler.logged(A, 1000 + number, 1000 + number)
        assert (
            compare(reconciler, (1, 10), (4000, 4010), seen=LiveIds(1, 5000 + number), known=Intervals([(11, 3999)]))
            == []
        )
    assert len(reconciler._logged[A].marked) <= 60
    shown = [compare(reconciler, (1, 10), (4000, 9000), seen=LiveIds(1, 9000)) for _ in range(2)]
    assert shown == [[], [(11, 3999)]]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["live", "lost", "healed", "processed", "look"]), st.integers(1, 8)), max_size=60
    )
)
def test_a_healed_id_is_never_taken_for_lost_however_far_the_tables_are_behind(steps: list[tuple[str, int]]) -> None:
    """The log is a list of ids; the tables hold a prefix of it."""
    reconciler = Reconciler(log_is_known=True)
    log: list[int] = [1]
    newest, read = 1, 1
    lost: list[int] = []
    for kind, count in steps:
        if kind == "live":
            log += range(newest + 1, newest + count + 1)
            newest += count
        elif kind == "lost":
            lost += range(newest + 1, newest + count + 1)
            newest += count + 1
            log.append(newest)
        elif kind == "healed":
            for healed in lost[:count]:
                log.append(healed)
                reconciler.logged(A, healed, healed)
            del lost[:count]
        elif kind == "processed":
            read = min(read + count, len(log))
        else:
            held = [(one, one) for one in log[:read]]
            assert compare(reconciler, *held, seen=LiveIds(1, newest), known=Intervals((i, i) for i in lost)) == []
