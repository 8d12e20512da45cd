"""The retry policy: pauses double, are shortened at random, start over; only what may pass is retried."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptopulse.errors import ConfigurationError, Disconnected, RateLimited, TransientError
from cryptopulse.retry import Backoff, retrying


def test_pauses_double_up_to_the_longest() -> None:
    backoff = Backoff(first_s=0.25, longest_s=2.0, rng=lambda: 0.0)
    assert [backoff.next_pause() for _ in range(5)] == [0.25, 0.5, 1.0, 2.0, 2.0]


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=30))
def test_jitter_shortens_a_pause_by_at_most_a_half(random_numbers: list[float]) -> None:
    jittered = Backoff(longest_s=8.0, rng=iter(random_numbers).__next__)
    plain = Backoff(longest_s=8.0, rng=lambda: 0.0)
    for _ in random_numbers:
        longest = plain.next_pause()
        assert longest / 2 <= jittered.next_pause() <= longest


def test_a_reset_makes_the_next_pause_short_again() -> None:
    backoff = Backoff(rng=lambda: 0.0)
    first = backoff.next_pause()
    backoff.next_pause()
    backoff.reset()
    assert backoff.next_pause() == first


def test_no_pause_is_longer_than_the_longest_even_the_first() -> None:
    assert Backoff(longest_s=0.01, rng=lambda: 0.0).next_pause() == 0.01


async def _retried(errors: list[Exception]) -> tuple[str, list[tuple[str, float]], list[float]]:
    said: list[tuple[str, float]] = []
    slept: list[float] = []

    async def attempt() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    def waiting(error: TransientError, pause_s: float) -> None:
        said.append((str(error), pause_s))

    async def sleep(pause_s: float) -> None:
        slept.append(pause_s)

    result = await retrying(attempt, Backoff(rng=lambda: 0.0), waiting, sleep=sleep)
    return result, said, slept


def test_what_may_pass_is_tried_again_and_every_pause_is_announced() -> None:
    result, said, slept = asyncio.run(_retried([Disconnected("gone"), RateLimited("slow down")]))
    assert result == "done"
    assert said == [("gone", 0.25), ("slow down", 0.5)]
    assert slept == [0.25, 0.5]


def test_what_cannot_pass_is_raised_at_once() -> None:
    with pytest.raises(ConfigurationError, match="wrong"):
        asyncio.run(_retried([ConfigurationError("wrong")]))


def test_the_other_sides_wish_makes_a_pause_longer() -> None:
    result, said, slept = asyncio.run(_retried([RateLimited("wait", retry_after_s=9.0), RateLimited("again")]))
    assert result == "done"
    assert slept == [pause_s for _, pause_s in said] == [9.0, 0.5]


def test_after_the_last_attempt_its_error_passes_through() -> None:
    errors = [Disconnected(str(number)) for number in range(9)]

    async def attempt() -> None:
        raise errors.pop(0)

    async def sleep(_pause_s: float) -> None:
        """Takes no time."""

    with pytest.raises(Disconnected, match="2"):
        asyncio.run(retrying(attempt, Backoff(), lambda _error, _pause_s: None, attempts_max=3, sleep=sleep))
    assert len(errors) == 6
