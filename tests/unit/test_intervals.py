"""Sets of numbers as intervals, against plain sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cryptopulse.intervals import Interval, Intervals, runs
from support import intervals

small = st.integers(0, 40)
spans = st.tuples(small, small).map(lambda pair: (min(pair), max(pair)))


def numbers(parts: list[Interval]) -> set[int]:
    return {number for first, last in parts for number in range(first, last + 1)}


@given(st.lists(st.tuples(st.booleans(), spans), max_size=30), spans)
def test_it_is_the_set_whatever_is_put_in_and_taken_out(steps: list[tuple[bool, Interval]], asked: Interval) -> None:
    made, model = Intervals(), set[int]()
    for puts, (first, last) in steps:
        (made.add if puts else made.remove)(first, last)
        model = model | numbers([(first, last)]) if puts else model - numbers([(first, last)])
        assert list(made) == intervals(model)
    everything = numbers([asked])
    assert made.within(*asked) == intervals(model & everything)
    assert made.gaps(*asked) == intervals(everything - model)
    assert made.count == len(model)
    assert len(made) == len(intervals(model))
    assert [number in made for number in range(42)] == [number in model for number in range(42)]
    if model:
        assert (made.lowest, made.highest) == (min(model), max(model))
        assert made.holes() == intervals(set(range(min(model), max(model))) - model)


@given(st.lists(spans), st.lists(spans))
def test_a_union_and_a_difference_are_those_of_sets(some: list[Interval], others: list[Interval]) -> None:
    assert list(Intervals(some)) == intervals(numbers(some))
    assert Intervals(some).without(Intervals(others)) == Intervals(intervals(numbers(some) - numbers(others)))


@given(st.sets(small))
def test_runs_are_the_stretches_without_a_gap(ids: set[int]) -> None:
    assert runs(sorted(ids)) == intervals(ids)
