"""What silver accepts, every statement behind it carries: the extremes of every field, alone and together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings

from cryptopulse.engine.session import SqlSession
from support import Trade, at
from support_domains import (
    EXTREME_IDS,
    EXTREME_TIMES,
    EXTREME_VALUES,
    EXTREMES,
    LISTS_OF_TRADES,
    SYMBOLS,
    assert_carried,
)


@pytest.fixture(scope="module")
def session() -> Iterator[SqlSession]:
    made = SqlSession()
    yield made
    made.close()


@pytest.mark.parametrize("examples", [40, pytest.param(3_000, marks=pytest.mark.long)])
def test_the_extremes_together_are_carried_by_every_statement(session: SqlSession, examples: int) -> None:
    run = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    run(given(LISTS_OF_TRADES)(lambda trades: assert_carried(session, trades)))()


def test_the_extremes_alone_are_carried_by_every_statement(session: SqlSession) -> None:
    for number in EXTREME_IDS:
        assert_carried(session, [Trade("BTC-USD", number)])
    for time in EXTREME_TIMES:
        assert_carried(session, [Trade("BTC-USD", 7, time)])
    for price, size in EXTREME_VALUES:
        assert_carried(session, [Trade("BTC-USD", 7, at(0), price, size)])
    for symbol in SYMBOLS:
        assert_carried(session, [Trade(symbol, 7)])


def test_all_extremes_in_one_batch_are_carried_by_every_statement(session: SqlSession) -> None:
    assert_carried(session, EXTREMES)


def test_a_busy_minute_of_the_dearest_trades_is_carried(session: SqlSession) -> None:
    assert_carried(session, [Trade("BTC-USD", n, at(n / 100), *EXTREME_VALUES[n % 7]) for n in range(1, 1_001)])
