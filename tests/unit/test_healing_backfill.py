"""What there is to fetch between two moments, and that every id of it is asked for."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest

from cryptopulse.errors import NotFetched, UnknownProduct
from cryptopulse.feed.rest import TradePage, page_ids
from cryptopulse.healing import backfill, work_list
from cryptopulse.healing.backfill import Plan, fill, plan
from cryptopulse.intervals import Intervals
from support import START, at, text_of


def page_of(trades: list[tuple[int, str]]) -> TradePage:
    body = json.dumps([{"trade_id": number, "time": time} for number, time in trades]).encode()
    return TradePage(body, [number for number, _ in trades], 1_000)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_list, "PROOF_NS", 20_000_000)
    monkeypatch.setattr(work_list, "FIRST_PAUSE_NS", 10_000_000)
    monkeypatch.setattr(backfill, "UNANSWERED_MAX_S", 0.1)


class History:
    """An exchange with trades of these ids, one a second; what `TradePages` asks of it."""

    def __init__(self, ids: list[int], page_max: int = 1000) -> None:
        self.ids = ids
        self.page_max = page_max
        self.requests: list[tuple[int | None, int]] = []

    async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
        assert product == "BTC-USD"
        self.requests.append((after, limit))
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
    shown = {number for page in pages for number in page_ids(json.dumps(page).encode())}
    return shown, kept, (filled.fetched, filled.absent)


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
        async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
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
    with pytest.raises(UnknownProduct, match="no trades of BTC-USD"):
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
    missing = {999, 1_000, 1_001, 1_998, 2_998, 2_999, 3_003}  # in the middle, and where pages meet
    history = History([number for number in range(1, 4_001) if number not in missing])
    ids, kept, counts = fetched(history, Plan("BTC-USD", 1, 4_000, ((1, 4_000),)))
    assert ids == set(range(1, 4_001)) - missing
    assert counts == (4_000 - len(missing), len(missing))
    pages = [[t["trade_id"] for t in json.loads(body)] for messages in kept for body in messages["body"].to_pylist()]
    proofs = Counter(number for page in pages for above, below in pairwise(page) for number in range(below + 1, above))
    assert set(proofs) == missing
    assert min(proofs.values()) >= 2


def test_ids_of_which_the_exchange_shows_no_end_are_not_called_absent() -> None:
    """Nothing is below the first two: a page that ends above them may be one that is cut short."""
    kept: list[int] = []

    async def keep(messages: pa.Table) -> None:
        kept.extend(trade["trade_id"] for body in messages["body"].to_pylist() for trade in json.loads(body))

    wanted = Plan("BTC-USD", 1, 1_500, ((1, 1_500),))
    with pytest.raises(NotFetched, match="BTC-USD: the exchange's pages say nothing about 2 trades, the highest 2"):
        asyncio.run(fill(History(list(range(3, 1_501))), wanted, keep, lambda _done, _total: None))
    assert set(kept) == set(range(3, 1_501))


def test_pages_that_lose_sight_of_trades_for_a_while_do_not_make_them_absent() -> None:
    class Cached(History):
        async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
            page = await super().trades(product, after=after, limit=limit)
            return page_of([]) if len(self.requests) <= 3 else page

    history = Cached(list(range(1, 2_001)))
    ids, _, counts = fetched(history, Plan("BTC-USD", 1, 2_000, ((1, 2_000),)))
    assert (ids, counts) == (set(range(1, 2_001)), (2_000, 0))


def test_a_product_that_fails_keeps_what_came_beside_it() -> None:
    class Failing(History):
        async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
            if after is not None and after < 2_000:
                raise NotFetched("no more")
            return await super().trades(product, after=after, limit=limit)

    kept: list[int] = []

    async def keep(messages: pa.Table) -> None:
        kept.extend(trade["trade_id"] for body in messages["body"].to_pylist() for trade in json.loads(body))

    history = Failing(list(range(1, 4_001)))
    wanted = Plan("BTC-USD", 1, 4_000, ((1, 4_000),))
    with pytest.raises(NotFetched, match="no more"):
        asyncio.run(fill(history, wanted, keep, lambda _done, _total: None))
    assert set(kept) == set(range(1_006, 4_001))


BAD_ROWS: list[Any] = [
    {"time": None},
    {"time": "2026-07-07T12:00:60Z"},
    {"time": "2026-07-07T12:00:05"},
    {"time": "yesterday"},
    {"time": 1783425600},
    {"time": "2026-07-07T25:00:00Z"},
    {"time": ""},
    {"trade_id": None},
    {"trade_id": "x", "time": None},
    None,
    7,
    "trade",
    [],
]


@pytest.mark.parametrize("bad", BAD_ROWS, ids=str)
@pytest.mark.parametrize("places", [{3}, {4}, {20}, {10}, {11}, {3, 4, 5}, {18, 19, 20}, {9, 10, 11, 12}], ids=str)
def test_a_row_that_cant_be_read_is_stepped_over(bad: Any, places: set[int]) -> None:
    class Broken(History):
        async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
            page = await super().trades(product, after=after, limit=limit)
            rows = [self._row(row) for row in json.loads(page.body)]
            return TradePage(json.dumps(rows).encode(), page_ids(json.dumps(rows).encode(), after), 1_000)

        def _row(self, row: dict[str, Any]) -> Any:
            if row["trade_id"] not in places:
                return row
            return row | bad if isinstance(bad, dict) else bad

    history = Broken(list(range(3, 21)))
    found = asyncio.run(plan(history, "BTC-USD", at(0), None, Intervals()))
    newest = max(set(range(3, 21)) - places)
    assert found.first_trade_id in {3, min(set(range(3, 21)) - places)}
    assert newest <= found.last_trade_id <= 20
    counts = fetched(history, found)[2]
    assert counts == (found.to_fetch, 0)
    part = asyncio.run(plan(history, "BTC-USD", at(8.5), at(13.5), Intervals()))
    assert part.first_trade_id <= min({9, 10, 11, 12, 13} - places)
    assert part.last_trade_id >= max({9, 10, 11, 12, 13} - places)


def test_a_product_of_which_no_time_can_be_read_is_said() -> None:
    class Timeless(History):
        async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
            page = await super().trades(product, after=after, limit=limit)
            return page._replace(body=page.body.replace(b"time", b"when"))

    with pytest.raises(NotFetched, match="BTC-USD: none of its newest 100 trades has a time"):
        asyncio.run(plan(Timeless([4, 5]), "BTC-USD", START, None, Intervals()))


def test_a_page_that_is_too_short_is_no_end_of_history() -> None:
    history = History(list(range(1, 3_001)), page_max=100)
    found = asyncio.run(plan(history, "BTC-USD", at(0), None, Intervals()))
    assert (found.first_trade_id, found.last_trade_id) == (1, 3_000)
