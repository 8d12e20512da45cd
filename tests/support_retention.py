"""Five days of trades, and what retention does with them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from cryptopulse.pipeline import Pipeline
from cryptopulse.settings import RetentionSettings
from cryptopulse.store.retention import Retention
from support import Lake, Message, Trade, at, message, micros

DAY_S = 86_400
DAYS = 5
COUNT = 40
LATER = datetime.now(UTC) + timedelta(days=2)
"""A clock two days after everything was loaded."""


def day(number: int) -> date:
    return at(number * DAY_S).date()


def trades_of(number: int) -> list[Trade]:
    """Trades of one day, the first and last a second from midnight, with a crash in the middle."""
    times = [-43_199 + n * (DAY_S - 2) / (COUNT - 1) for n in range(COUNT)]  # the tests' days begin at noon
    return [
        Trade("BTC-USD", number * COUNT + n + 1, at(number * DAY_S + time), str(100 + n % 3), side="SELL")
        for n, time in enumerate(times)
    ]


ALL = [trade for number in range(DAYS) for trade in trades_of(number)]
MISSING = ALL[COUNT + 5]
"""A trade of the second day that never comes by itself."""


def messages_of(number: int) -> list[Message]:
    junk = message(b"junk", received=at(number * DAY_S))
    return [*(trade.match() for trade in trades_of(number) if trade != MISSING), junk]


def keeping(**first_days: int) -> RetentionSettings:
    """Settings that keep each table, by its setting, from a day number on when the clock is LATER."""
    return RetentionSettings(**{name: (LATER.date() - day(number)).days for name, number in first_days.items()})


def run(lake: Lake, settings: RetentionSettings, clock: datetime = LATER) -> None:
    with Pipeline(lake.settings, lake.log) as pipeline:
        pipeline.drain(lambda _done, _all: None)
        retention = Retention(settings, pipeline.engine.tables, lambda: micros(clock))
        retention.run_due()
        versions = {name: writer.version for name, writer in pipeline.engine.tables.items()}
        retention.run_due()
        assert versions == {name: writer.version for name, writer in pipeline.engine.tables.items()}
