"""What there is to fetch between two moments, and that every id of it is asked for."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from itertools import pairwise

import pyarrow as pa
import pytest

from cryptopulse.completeness.history import Plan, fill, plan
from cryptopulse.errors import ConfigurationError, Disconnected, RateLimited
from cryptopulse.feed.rest import Page
from cryptopulse.intervals import Intervals
from support import START, at, text_of


def page_of(trades: list[tuple[int, str]]) -> Page:
    body = json.dumps([{"trade_id": number, "time": time} for number, time in trades]).encode()
    return Page(body, [number for number, _ in trades], 1_000)


class History:
    """An exchange with trades of these ids, one a second; what `TradePages` asks of it."""

    def __init__(self, ids: list[int], page_max: int = 1000) -> None:
        self.ids = ids
        self.page_max = page_max
        self.requests: list[tuple[int | None, int]] = []
        self.troubles: list[Exception] = []

    async def trades(self, product: str, *, after: int | None, limit: int) -> Page:
        assert product == "BTC-USD"
        self.requests.append((after, limit))
        if self.troubles:
            raise self.troubles.pop(0)
        below = [number for number in self.ids if after is None or number < after]
        newest_first = below[::-1][: min(limit, self.page_max)]
        return page_of([(number, text_of(at(number))) for number in newest_first])


def fetched(history: History, wanted: Plan) -> tuple[set[int], list[pa.Table], tuple[int, int]]:
    """Ids on the pages, the messages, and (fetched, absent)."""
    kept: list[pa.Table] = []

    async def keep(messages: pa.Table) -> None:
        kept.append(messages)

    filled = asyncio.run(fill(history, wanted, keep, lambda _done, _total: None))
    pages = [json.loads(body) for messages in kept for body in messages["body"].to_pylist()]
    return {trade["trade_id"] for page in pages for trade in page}, kept, (filled.fetched, filled.absent)


@pytest.mark.parametrize(
    ("start_s", "end_s", "expected"),
    [
        (3, None, (3, 20)),
        (2.5, None, (3, 20)),
        (0, None, (3, 20)),
        (5, 8, (6, 7)),  # 5 is an id that the exchange does not have; the end is not included
        (10, 10.5, (10, 10)),
        (21, None, (21, 20)),
        (4, 500, (4, 20)),
    ],
)
def test_a_time_becomes_the_ids_that_were_traded_then(
    start_s: float, end_s: float | None, expected: tuple[int, int]
) -> None:
    history = History([3, 4, *range(6, 21)])
    found = asyncio.run(plan(history, "BTC-USD", at(start_s), None if end_s is None else at(end_s), Intervals()))
    assert (found.first_trade_id, found.last_trade_id) == expected
    assert found.to_fetch == found.trades == expected[1] - expected[0] + 1


@pytest.mark.parametrize("bent", [1.0, 2.0, 0.25])
def test_a_hundred_million_trades_need_few_questions(bent: float) -> None:
    """Even when a product was traded ever faster, or ever more slowly."""
    newest = 100_000_000

    def time_of(number: int) -> str:
        return text_of(START + timedelta(days=1000 * (number / newest) ** bent))

    class Endless(History):
        async def trades(self, product: str, *, after: int | None, limit: int) -> Page:
            assert product == "BTC-USD"
            self.requests.append((after, limit))
            top = newest if after is None else after - 1
            ids = range(top, max(top - limit, 0), -1)
            return page_of([(number, time_of(number)) for number in ids])

    history = Endless([])
    moment = START + timedelta(days=1000 * (12_345_678 / newest) ** bent, microseconds=-1)
    found = asyncio.run(plan(history, "BTC-USD", moment, None, Intervals()))
    assert abs(found.first_trade_id - 12_345_678) <= 1
    assert len(history.requests) <= 20


def test_a_product_without_trades_is_said() -> None:
    with pytest.raises(ConfigurationError, match="no trades of BTC-USD"):
        asyncio.run(plan(History([]), "BTC-USD", START, None, Intervals()))


@pytest.mark.parametrize("page_max", [1000, 100])
def test_every_missing_trade_is_fetched_and_none_that_is_held(page_max: int) -> None:
    history = History(list(range(1, 5_001)), page_max)
    held = Intervals([(1_500, 3_200), (4_000, 4_000)])
    wanted = Plan("BTC-USD", 1, 4_900, tuple(held.gaps(1, 4_900)))
    ids, kept, counts = fetched(history, wanted)
    expected = {number for number in range(1, 4_901) if not 1_500 <= number <= 3_200 and number != 4_000}
    assert ids >= expected
    assert len(ids - expected) <= 6  # the neighbours, which prove that nothing lies between
    assert counts == (len(expected), 0)
    assert {(*row.values(),) for messages in kept for row in messages.select([0, 2]).to_pylist()} == {
        ("BTC-USD", "rest")
    }


def test_the_newest_comes_first() -> None:
    history = History(list(range(1, 4_001)))
    fetched(history, Plan("BTC-USD", 1, 4_000, ((1, 900), (1_800, 4_000))))
    afters = [after for after, _ in history.requests if after is not None]
    assert afters == sorted(afters, reverse=True)


def test_ids_that_the_exchange_does_not_have_are_counted_and_stand_between_neighbours() -> None:
    missing = {1, 2, 999, 1_000, 1_001, 2_998, 2_999}  # at the beginning, and where pages meet
    history = History([number for number in range(1, 4_001) if number not in missing])
    ids, kept, counts = fetched(history, Plan("BTC-USD", 1, 4_000, ((1, 4_000),)))
    assert ids == set(range(1, 4_001)) - missing
    assert counts == (4_000 - len(missing), len(missing))
    pages = [[t["trade_id"] for t in json.loads(body)] for messages in kept for body in messages["body"].to_pylist()]
    proved = {number for page in pages for above, below in pairwise(page) for number in range(below + 1, above)}
    assert proved == missing - {1, 2}  # nothing is below these


def test_trouble_passes() -> None:
    history = History([1, 2, 3])
    history.troubles = [RateLimited("429"), Disconnected("cut short")]
    ids, _, counts = fetched(history, Plan("BTC-USD", 1, 3, ((1, 3),)))
    assert (ids, counts) == ({1, 2, 3}, (3, 0))
