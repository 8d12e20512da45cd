"""Intervals of ids are sets of numbers: every operation gives what a set of Python's gives."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptopulse.audit.id_set import MASK_IDS, IdSet

IDS = st.integers(0, 2**300 - 1).map(lambda bits: {one for one in range(300) if bits >> one & 1})
"""Sets of any density; drawn as one number, which is quick."""
patient = settings(deadline=None)
"""Two busy cores are slow."""
NEAR = st.integers(-5, 305)


def made(ids: set[int]) -> IdSet:
    return IdSet.of((one, one) for one in ids)


def ids_of(intervals: IdSet) -> set[int]:
    return {one for first, last in intervals for one in range(first, last + 1)}


def assert_tidy(intervals: IdSet) -> None:
    """In order, not empty, and no two of them touch."""
    edges = [edge for pair in intervals for edge in pair]
    assert edges == sorted(edges)
    assert all(after > before + 1 for (_, before), (after, _) in zip(intervals, list(intervals)[1:], strict=False))


@patient
@given(IDS, IDS)
def test_union_meet_and_difference_are_those_of_sets(one: set[int], other: set[int]) -> None:
    a, b = made(one), made(other)
    for found, expected in ((a | b, one | other), (a & b, one & other), (a - b, one - other)):
        assert ids_of(found) == expected
        assert found.count == len(expected)
        assert_tidy(found)


@patient
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 20)), max_size=20))
def test_overlapping_spans_in_any_order_are_united(spans: list[tuple[int, int]]) -> None:
    found = IdSet.of((first, first + length) for first, length in spans)
    assert ids_of(found) == {one for first, length in spans for one in range(first, first + length + 1)}
    assert_tidy(found)


@patient
@given(IDS, st.integers(0, 3))
def test_masks_hold_the_same_ids(ids: set[int], shift: int) -> None:
    ids = {one + shift * MASK_IDS * 1000 for one in ids} | set(range(128, 192))  # with a full mask
    chunks: dict[int, int] = {}
    for one in ids:
        chunks[one // MASK_IDS] = chunks.get(one // MASK_IDS, 0) | 1 << one % MASK_IDS
    ordered = sorted(chunks)
    masks = np.array([chunks[chunk] for chunk in ordered], dtype=np.uint64)
    found = IdSet.of_masks(np.array(ordered, dtype=np.int64), masks)
    assert ids_of(found) == ids
    assert_tidy(found)


@patient
@given(IDS, st.lists(st.tuples(NEAR, NEAR), max_size=10))
def test_counts_and_questions_about_spans_are_those_of_sets(ids: set[int], pairs: list[tuple[int, int]]) -> None:
    spans = [(min(pair), max(pair)) for pair in pairs]
    firsts, lasts = [first for first, _ in spans], [last for _, last in spans]
    held = made(ids)
    inside = [sum(first <= one <= last for one in ids) for first, last in spans]
    assert held.counts_between(firsts, lasts).tolist() == inside
    assert held.touch(firsts, lasts).tolist() == [n > 0 for n in inside]
    for first, last in spans:
        assert ids_of(held.within(first, last)) == {one for one in ids if first <= one <= last}


@patient
@given(IDS, NEAR)
def test_neighbours_are_the_nearest_ids_held(ids: set[int], number: int) -> None:
    held = made(ids)
    assert held.before(number) == max((one for one in ids if one < number), default=None)
    assert held.after(number) == min((one for one in ids if one > number), default=None)


def test_a_set_as_long_as_a_record_is_as_small_as_a_short_one() -> None:
    record = IdSet.of([(1, 10**12), (10**12 + 2, 2 * 10**12)])
    assert (len(record), record.count) == (2, 2 * 10**12 - 1)
    assert list(IdSet.of([(1, 2 * 10**12)]) - record) == [(10**12 + 1, 10**12 + 1)]


def test_no_ids_are_no_trouble() -> None:
    none = IdSet.of()
    some = IdSet.of([(1, 2)])
    assert not none
    assert (none | some, none & some, some - none, none - some) == (some, none, some, none)
    assert (none.before(1), none.after(1), none.counts_up_to([1]).tolist()) == (None, None, [0])
