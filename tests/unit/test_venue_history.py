"""How missing trades are asked for at Kraken, Binance and OKX, on exchanges that are plain lists, and what they say."""

from __future__ import annotations

import asyncio
import json
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_server import run, simulator

from cryptopulse.errors import NotFetched, RateLimited, TransientError, UnknownProduct
from cryptopulse.feed.rest import TradePage
from cryptopulse.feed.venue_rest import VenueRestClient, venue_page_ids
from cryptopulse.healing import backfill, work_list
from cryptopulse.healing.backfill import Plan, fill, plan
from cryptopulse.intervals import Intervals
from cryptopulse.venues import Venue
from cryptopulse.venues.registry import VENUES

MS, S = 1_000_000, 1_000_000_000
START_NS = 1_780_000_000 * S
START = datetime.fromtimestamp(START_NS // S, UTC)
SYMBOLS = {"kraken": "BTC/USD", "binance": "BTCUSDT", "okx": "BTC-USDT"}
REQUESTS_MAX = 30
VENUE = pytest.mark.parametrize("venue", sorted(VENUES))

Trades = Sequence[tuple[int, int]]
"""(id, time in ns UTC) of each, in order."""


class Exchange:
    """The pages of all three venues, from one list of trades."""

    def __init__(self, trades: Trades, *, is_since_included: bool = False) -> None:
        """`is_since_included`: whether Kraken's pages begin at the time asked for, not after it."""
        self.trades = list(trades)
        self.ids = [number for number, _ in trades]
        self._times = [at_ns for _, at_ns in trades]
        self._find = bisect_left if is_since_included else bisect_right
        self.requests = 0

    def page(self, path: str, query: Mapping[str, int | str]) -> Trades:
        """The trades of one answer, the oldest first."""
        self.requests += 1
        if path == "/0/public/Trades":
            count = min(int(query["count"]), 1000)
            start = self._find(self._times, int(query["since"])) if "since" in query else max(len(self.ids) - count, 0)
            return self.trades[start : start + count]
        limit = int(query["limit"])
        if path == "/api/v3/historicalTrades":
            assert limit <= 1000
            start = bisect_left(self.ids, int(query["fromId"]))
            return self.trades[start : start + limit]
        if path == "/api/v5/market/history-trades":
            assert limit <= 100
            end = bisect_left(self.ids, int(query["after"]))
            return self.trades[max(end - limit, 0) : end]
        assert path in ("/api/v3/trades", "/api/v5/market/trades")
        return self.trades[-limit:]


def asked(exchange: Exchange, venue: Venue, after: int | None, limit: int) -> Trades:
    """The last page that `venue` asks for, with times as its rows have them."""
    requests = venue.history(SYMBOLS[venue.venue], after, limit)
    path, query = next(requests)
    while True:
        page = [(number, int(float(f"{at_ns / S:.6f}") * S)) for number, at_ns in exchange.page(path, query)]
        assert exchange.requests <= REQUESTS_MAX * 10
        try:
            path, query = requests.send(page)
        except StopIteration:
            return page


class Wanted(NamedTuple):
    """Ids that a lake lacks, between two that exist as far as there are any: see `work_list.PageRequest`."""

    first: int
    last: int
    after: int

    @property
    def limit(self) -> int:
        return self.last - self.first + 3


def says_all(page: Trades, wanted: Wanted, ids: Sequence[int]) -> bool:
    """Whether the page has each wanted id that exists, and the neighbours of each that does not."""
    there, shown = set(ids), {number for number, _ in page}
    for number in range(wanted.first, wanted.last + 1):
        if number in there:
            if number not in shown:
                return False
        elif ids[0] < number < ids[-1] and not (page and page[0][0] < number < page[-1][0]):
            return False
    return True


class Block(NamedTuple):
    """Trades of one pace: `together` of them in each moment, after `skipped` ids that no trade has."""

    count: int
    pace_ns: int
    together: int = 1
    skipped: int = 0


def market(*blocks: Block) -> Trades:
    number, at_ns, found = 0, START_NS, []
    for block in blocks:
        number += block.skipped
        for place in range(block.count):
            number += 1
            at_ns += block.pace_ns if place % block.together == 0 else 0
            found.append((number, at_ns))
    return found


def blocks(paces: Sequence[int], skipped_max: int = 0) -> st.SearchStrategy[list[Block]]:
    skips = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, skipped_max))
    one = st.builds(Block, st.integers(1, 4_000), st.sampled_from(paces), st.sampled_from([1, 3, 50]), skips)
    return st.lists(one, min_size=1, max_size=4)


@st.composite
def requests_of(draw: st.DrawFn, ids: Sequence[int], page_max: int, *, is_beside_absent: bool = False) -> Wanted:
    """A request as the work list makes it: its neighbour above exists. Often there are ids that do not exist in it.

    `is_beside_absent`: some ids between it and the neighbour above are known not to exist.
    """
    edges = [place for place in range(1, len(ids)) if ids[place] - ids[place - 1] > 1] or [0]
    beside = 0 if is_beside_absent else draw(st.integers(0, 600))
    place = min(draw(st.sampled_from(edges)) + beside, len(ids) - 1)
    above, below = ids[place], ids[place - 1] if place else 1
    last = draw(st.integers(below, above - 1)) if is_beside_absent and below < above else max(above - 1, 1)
    span = draw(st.integers(1, 20) | st.integers(page_max // 2, page_max - 2))
    return Wanted(max(last - span + 1, 1), last, above + 1)


EVEN = [S, 2 * S]
UNEVEN = [MS // 10, 10 * MS, S, 60 * S, 3_600 * S]


class TestPages:
    @VENUE
    @given(data=st.data(), made=blocks(EVEN, 700))
    def test_a_page_has_all_that_exists_of_the_ids_and_the_neighbours_of_the_others(
        self, venue: str, data: st.DataObject, made: list[Block]
    ) -> None:
        exchange, asking = Exchange(market(*made)), VENUES[venue]()
        for _ in range(3):  # Kraken's remembers what it saw
            wanted = data.draw(requests_of(exchange.ids, asking.page_max))
            exchange.requests = 0
            page = asked(exchange, asking, wanted.after, wanted.limit)
            assert says_all(page, wanted, exchange.ids)
            assert exchange.requests <= REQUESTS_MAX

    @VENUE
    @given(data=st.data(), made=blocks(UNEVEN))
    def test_so_it_has_however_unevenly_trades_come(self, venue: str, data: st.DataObject, made: list[Block]) -> None:
        exchange, asking = Exchange(market(*made)), VENUES[venue]()
        wanted = data.draw(requests_of(exchange.ids, asking.page_max))
        assert says_all(asked(exchange, asking, wanted.after, wanted.limit), wanted, exchange.ids)
        assert exchange.requests <= REQUESTS_MAX

    @VENUE
    @given(data=st.data(), made=blocks(EVEN, 700))
    def test_so_it_has_below_ids_that_are_known_not_to_exist(
        self, venue: str, data: st.DataObject, made: list[Block]
    ) -> None:
        exchange, asking = Exchange(market(*made)), VENUES[venue]()
        wanted = data.draw(requests_of(exchange.ids, asking.page_max, is_beside_absent=True))
        assert says_all(asked(exchange, asking, wanted.after, wanted.limit), wanted, exchange.ids)
        assert exchange.requests <= REQUESTS_MAX

    @given(data=st.data(), made=blocks(EVEN), is_included=st.booleans())
    def test_kraken_may_begin_at_the_time_or_after_it(
        self, data: st.DataObject, made: list[Block], is_included: bool
    ) -> None:
        exchange, kraken = Exchange(market(*made), is_since_included=is_included), VENUES["kraken"]()
        wanted = data.draw(requests_of(exchange.ids, kraken.page_max))
        assert says_all(asked(exchange, kraken, wanted.after, wanted.limit), wanted, exchange.ids)

    @pytest.mark.parametrize("span", [500, 900, 998])
    def test_two_ids_that_binance_lost_hide_no_others(self, span: int) -> None:
        exchange = Exchange(market(Block(3_000, S), Block(3_000, S, skipped=2)))
        wanted = Wanted(3_400 - span, 3_399, 3_401)
        assert says_all(asked(exchange, VENUES["binance"](), wanted.after, wanted.limit), wanted, exchange.ids)

    def test_two_thousand_ids_that_binance_lost_are_proved(self) -> None:
        """As its ids 1684952 to 1687081 were in 2021."""
        exchange = Exchange(market(Block(5_000, S), Block(5_000, S, skipped=2_130)))
        wanted = Wanted(6_133, 7_130, 7_132)
        assert says_all(asked(exchange, VENUES["binance"](), wanted.after, wanted.limit), wanted, exchange.ids)

    def test_a_rush_of_five_seconds_between_quiet_hours_is_found(self) -> None:
        exchange = Exchange(market(Block(5_000, 60 * S), Block(5_000, MS), Block(5_000, 60 * S)))
        for last in range(4_000, 11_000, 500):
            wanted = Wanted(last - 40, last, last + 2)
            page = asked(exchange, VENUES["kraken"](), wanted.after, wanted.limit)
            assert says_all(page, wanted, exchange.ids), last

    def test_the_end_of_a_rush_before_quiet_minutes_is_found(self) -> None:
        exchange = Exchange(market(Block(3_000, MS), Block(3_000, 60 * S)))
        wanted = Wanted(2_990, 2_990, 2_992)
        page = asked(exchange, VENUES["kraken"](), wanted.after, wanted.limit)
        assert says_all(page, wanted, exchange.ids)

    @VENUE
    @given(made=blocks(UNEVEN, 700), limit=st.integers(1, 100))
    def test_the_newest_trades_are_asked_for_at_once(self, venue: str, made: list[Block], limit: int) -> None:
        exchange = Exchange(market(*made))
        page = asked(exchange, VENUES[venue](), None, limit)
        assert exchange.requests == 1
        assert page[-1][0] == exchange.ids[-1]
        assert len(page) >= min(limit, len(exchange.ids))

    @VENUE
    def test_of_ids_above_all_others_nothing_is_said(self, venue: str) -> None:
        exchange = Exchange(market(Block(2_000, S)))
        page = asked(exchange, VENUES[venue](), 2_500, 100)
        assert not any(number > 2_000 for number, _ in page)
        assert exchange.requests <= REQUESTS_MAX

    @VENUE
    def test_ids_below_all_others_end_the_search(self, venue: str) -> None:
        """No venue has trades of all times."""
        exchange = Exchange(market(Block(3_000, S, skipped=10_000)))
        for after in (10_005, 10_001, 5_000, 2):
            exchange.requests = 0
            page = asked(exchange, VENUES[venue](), after, 50)
            assert {number for number, _ in page} >= {number for number in exchange.ids if number < after}
            assert exchange.requests <= REQUESTS_MAX

    @VENUE
    def test_an_exchange_without_trades_ends_the_search(self, venue: str) -> None:
        for after in (None, 100):
            exchange = Exchange([])
            assert asked(exchange, VENUES[venue](), after, 50) == []
            assert exchange.requests <= 1

    def test_kraken_remembers_where_it_was(self) -> None:
        exchange, kraken = Exchange(market(Block(200_000, 700 * MS, 3))), VENUES["kraken"]()
        for after in range(150_000, 100_000, -498):
            asked(exchange, kraken, after, 500)
        assert exchange.requests <= 101 * 2


class Rest:
    """What `TradePages` asks of a venue whose exchange is a list."""

    def __init__(self, venue: str, exchange: Exchange) -> None:
        self._venue, self._exchange = VENUES[venue](), exchange
        self.page_max = self._venue.page_max

    async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
        assert product.endswith(f"@{self._venue.venue}")
        page = asked(self._exchange, self._venue, after, limit)[::-1]
        body = body_of(self._venue.venue, [])  # of no use to a plan with times
        return TradePage(body, [number for number, _ in page], START_NS, [at_ns for _, at_ns in page])


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_list, "PROOF_NS", 20_000_000)
    monkeypatch.setattr(work_list, "FIRST_PAUSE_NS", 10_000_000)
    monkeypatch.setattr(backfill, "UNANSWERED_MAX_S", 0.1)


def product_of(venue: str) -> str:
    return f"{SYMBOLS[venue]}@{venue}"


class TestBackfill:
    @VENUE
    @pytest.mark.parametrize(
        "made",
        [
            [Block(20_000, S, 3)],
            [Block(3_000, S), Block(3_000, S, skipped=5), Block(3_000, S, skipped=600)],
            [Block(8_000, 60 * S), Block(5_000, MS), Block(8_000, 60 * S)],
        ],
        ids=["even", "with holes", "a rush"],
    )
    def test_a_time_becomes_the_ids_that_were_traded_then(self, venue: str, made: list[Block]) -> None:
        trades = market(*made)
        for place in (1, len(trades) // 3, len(trades) // 2, len(trades) - 1):
            rest, (number, at_ns) = Rest(venue, Exchange(trades)), trades[place]
            # The first of that moment; a millisecond is more than a time loses as a float.
            first = next(one for one, when_ns in trades if when_ns > at_ns - MS // 2)
            moment = START + timedelta(microseconds=(at_ns - START_NS) // 1000 - 500)
            found = asyncio.run(plan(rest, product_of(venue), moment, None, Intervals(), rest.page_max))
            assert (found.first_trade_id, found.last_trade_id) == (first, trades[-1][0]), number

    @pytest.mark.usefixtures("_short_pauses")
    @VENUE
    def test_each_id_is_fetched_or_proved_to_be_none(self, venue: str) -> None:
        trades = market(Block(2_000, S, 3), Block(1_500, S, 3, skipped=1), Block(1_500, S, 3, skipped=90))
        rest = Rest(venue, Exchange(trades))
        pages: list[int] = []

        async def keep(messages: pa.Table) -> None:
            pages.append(messages.num_rows)

        last = trades[-1][0]
        wanted = Plan(product_of(venue), 1, last, ((1, last),))
        filled = asyncio.run(fill(rest, wanted, keep, lambda _done, _total: None, rest.page_max))
        assert (filled.fetched, filled.absent) == (5_000, 91)
        assert sum(pages) > 0

    @pytest.mark.usefixtures("_short_pauses")
    @VENUE
    def test_thousands_of_ids_that_the_exchange_lost_are_proved_to_be_none(self, venue: str) -> None:
        trades = market(Block(2_500, S), Block(2_500, S, skipped=2_130))
        rest = Rest(venue, Exchange(trades))

        async def keep(messages: pa.Table) -> None:
            assert messages.num_rows

        wanted = Plan(product_of(venue), 2_400, 4_700, ((2_400, 4_700),))
        filled = asyncio.run(fill(rest, wanted, keep, lambda _done, _total: None, rest.page_max))
        assert (filled.fetched, filled.absent) == (171, 2_130)


# Over a socket


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that did not wait for its answer is no matter of these tests."""


Answer = Callable[[str, Mapping[str, str]], tuple[int, bytes]]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """An address where `answer` makes status and body of a path and a query."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            status, body = answer(parts.path, dict(parse_qsl(parts.query)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Says nothing."""

    listening = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


def client(venue: str, url: str) -> VenueRestClient:
    return VenueRestClient(VENUES[venue](), url, f"{venue}.rest_url", per_second=1000)


def page_of(venue: str, body: bytes, status: int = 200) -> TradePage:
    """What a client makes of an exchange that always answers the same."""

    async def ask(url: str) -> TradePage:
        async with client(venue, url) as rest:
            return await rest.trades(product_of(venue), after=None, limit=10)

    with server(lambda _path, _query: (status, body)) as url:
        return asyncio.run(ask(url))


def rows_of(venue: str, trades: Trades) -> list[Any]:
    """Rows in the venue's order."""
    if venue == "kraken":
        return [["2.5", "1.0", at_ns / S, "b", "l", "", number] for number, at_ns in trades]
    if venue == "binance":
        return [
            {"id": number, "price": "2.5", "qty": "1", "time": at_ns // MS, "isBuyerMaker": True}
            for number, at_ns in trades
        ]
    return [
        {"instId": "BTC-USDT", "tradeId": str(number), "px": "2.5", "sz": "1", "side": "buy", "ts": str(at_ns // MS)}
        for number, at_ns in reversed(trades)
    ]


def body_of(venue: str, rows: Sequence[Any]) -> bytes:
    whole: dict[str, Any] = {
        "kraken": {"error": [], "result": {"XXBTZUSD": rows, "last": "1"}},
        "binance": rows,
        "okx": {"code": "0", "msg": "", "data": rows},
    }
    return json.dumps(whole[venue]).encode()


THREE = market(Block(3, S))


class TestClient:
    @VENUE
    def test_a_page_is_kept_as_it_came_with_its_ids_newest_first(self, venue: str) -> None:
        body = body_of(venue, rows_of(venue, THREE))
        page = page_of(venue, body)
        assert (page.body, page.ids) == (body, [3, 2, 1])
        times = zip(page.times_ns or (), THREE[::-1], strict=True)
        assert all(at_ns is not None and abs(at_ns - when_ns) < MS for at_ns, (_, when_ns) in times)
        assert venue_page_ids(body, product_of(venue)) == [1, 2, 3]

    @VENUE
    def test_a_page_without_trades_is_one(self, venue: str) -> None:
        assert page_of(venue, body_of(venue, [])).ids == []

    @pytest.mark.parametrize(
        ("venue", "status", "body", "error"),
        [
            ("kraken", 200, b'{"error":["EGeneral:Too many requests"]}', RateLimited),
            ("kraken", 200, b'{"error":["EAPI:Rate limit exceeded"]}', RateLimited),
            ("kraken", 200, b'{"error":["EQuery:Unknown asset pair"]}', UnknownProduct),
            ("kraken", 200, b'{"error":["EService:Unavailable"]}', TransientError),
            ("kraken", 429, b"slow down", RateLimited),
            ("binance", 400, b'{"code":-1121,"msg":"Invalid symbol."}', UnknownProduct),
            ("binance", 429, b'{"code":-1003,"msg":"Too much request weight used"}', RateLimited),
            ("binance", 418, b'{"code":-1003,"msg":"Way too much request weight used; IP banned"}', RateLimited),
            ("binance", 451, b'{"code":0,"msg":"Service unavailable from a restricted location"}', UnknownProduct),
            ("binance", 403, b"<html>Forbidden</html>", TransientError),
            ("okx", 200, b'{"code":"51001","data":[],"msg":"Instrument ID doesn\'t exist"}', UnknownProduct),
            ("okx", 200, b'{"code":"50011","data":[],"msg":"Too Many Requests"}', RateLimited),
            ("okx", 429, b'{"code":"50011","data":[],"msg":"Too Many Requests"}', RateLimited),
            ("okx", 200, b'{"code":"50001","data":[],"msg":"Service temporarily unavailable"}', TransientError),
        ],
    )
    def test_an_error_is_of_the_kind_that_says_what_to_do(
        self, venue: str, status: int, body: bytes, error: type[Exception]
    ) -> None:
        with pytest.raises(error) as told:
            page_of(venue, body, status)
        if error is TransientError:
            assert not isinstance(told.value, RateLimited)

    @VENUE
    @pytest.mark.parametrize(
        "body",
        [b"", b"{}", b"[1]", b"null", b"<html>Log in to the hotel's network</html>", b'{"code":"0"}', b'{"result":[]}'],
    )
    def test_what_is_no_page_may_pass(self, venue: str, body: bytes) -> None:
        with pytest.raises(TransientError):
            page_of(venue, body)

    @VENUE
    @pytest.mark.parametrize("number", ["x", "", None, -7, 7.5, [], True, "7_0", "\u0667"])
    def test_a_page_with_an_id_that_is_none_may_pass(self, venue: str, number: Any) -> None:
        rows = rows_of(venue, THREE)
        rows[1][6 if venue == "kraken" else "id" if venue == "binance" else "tradeId"] = number
        with pytest.raises(TransientError):
            page_of(venue, body_of(venue, rows))

    @VENUE
    @pytest.mark.parametrize("broken", [None, 7, [], {}, "x"])
    def test_a_page_with_a_row_that_is_none_may_pass(self, venue: str, broken: Any) -> None:
        with pytest.raises(TransientError):
            page_of(venue, body_of(venue, [*rows_of(venue, THREE), broken]))

    @VENUE
    def test_the_order_of_a_page_does_not_matter_but_no_trade_is_there_twice(self, venue: str) -> None:
        rows = rows_of(venue, THREE)
        assert page_of(venue, body_of(venue, rows[::-1])).ids == [3, 2, 1]
        with pytest.raises(TransientError, match="twice"):
            page_of(venue, body_of(venue, [*rows, rows[-1]]))

    @VENUE
    @pytest.mark.parametrize("broken", ["x", None, [], 1e300, -1, 10**40, "1e400", True])
    def test_a_time_that_cannot_be_read_harms_no_page(self, venue: str, broken: Any) -> None:
        """The parser refuses the trade; here it exists."""
        rows = rows_of(venue, THREE)
        rows[1][2 if venue == "kraken" else "time" if venue == "binance" else "ts"] = broken
        assert page_of(venue, body_of(venue, rows)).ids == [3, 2, 1]

    @VENUE
    def test_the_simulator_answers_as_the_venue_does(self, venue: str) -> None:
        async def talk() -> None:
            async with simulator(products=2, rate=10_000) as running:
                await running.has_traded(5_000)
                ledger = (await running.stop_trading())["products"]["BTC-USD"]
                product = {"kraken": "BTC/USD@kraken", "binance": "BTCUSD@binance", "okx": "BTC-USD@okx"}[venue]
                last, first = ledger["last_trade_id"], ledger["first_trade_id"]
                async with client(venue, str(running.http.base_url)) as rest:
                    newest = await rest.trades(product, after=None, limit=10)
                    assert newest.ids[:10] == list(range(last, last - 10, -1))
                    for after in (last - 4, (first + last) // 2, first + 1):
                        page = await rest.trades(product, after=after, limit=20)
                        assert set(page.ids) >= set(range(max(after - 20, first), after))
                    assert min((await rest.trades(product, after=first, limit=5)).ids, default=first) == first
                    with pytest.raises(UnknownProduct):
                        await rest.trades(f"NO-SUCH@{venue}", after=9, limit=5)

        run(talk)


def answering(venue: str, exchange: Exchange) -> Answer:
    return lambda path, query: (200, body_of(venue, rows_of(venue, exchange.page(path, query))))


def planned(venue: str, answer: Answer, start: datetime) -> Plan:
    async def ask(url: str) -> Plan:
        async with client(venue, url) as rest:
            return await plan(rest, product_of(venue), start, None, Intervals(), rest.page_max)

    with server(answer) as url:
        return asyncio.run(ask(url))


class TestPlans:
    @VENUE
    def test_a_product_without_trades_is_said(self, venue: str) -> None:
        with pytest.raises(UnknownProduct, match="no trades of"):
            planned(venue, answering(venue, Exchange([])), START)

    @VENUE
    def test_of_a_time_before_the_exchanges_memory_all_is_wanted_that_it_has(self, venue: str) -> None:
        """OKX keeps three months."""
        trades = market(Block(3_000, 60 * S, skipped=50_000))
        found = planned(venue, answering(venue, Exchange(trades)), START - timedelta(days=900))
        assert found.first_trade_id <= 50_001
        assert found.last_trade_id == 53_000

    @VENUE
    @pytest.mark.parametrize("broken", [None, 1e15])
    @pytest.mark.parametrize("place", [-1, -30, 1_500])
    def test_a_time_that_cannot_be_read_moves_no_plan(self, venue: str, broken: Any, place: int) -> None:
        trades = market(Block(3_000, 60 * S))
        name: Any = {"kraken": 2, "binance": "time", "okx": "ts"}[venue]
        number: Any = {"kraken": 6, "binance": "id", "okx": "tradeId"}[venue]

        def answer(path: str, query: Mapping[str, str]) -> tuple[int, bytes]:
            rows = rows_of(venue, exchange.page(path, query))
            for row in rows:
                if int(row[number]) == trades[place][0]:
                    row[name] = broken
            return 200, body_of(venue, rows)

        exchange = Exchange(trades)
        found = planned(venue, answer, START + timedelta(minutes=1_200, seconds=-1))
        assert (found.first_trade_id, found.last_trade_id) == (1_200, 3_000)

    @VENUE
    def test_where_every_page_is_an_error_nothing_is_planned(self, venue: str) -> None:
        with pytest.raises((TransientError, NotFetched)):
            planned(venue, lambda _path, _query: (500, b""), START)


@pytest.mark.parametrize("venue", VENUES)
def test_a_page_below_an_id_that_does_not_exist_yet_is_the_newest_one(venue: str) -> None:
    asking = VENUES[venue]()
    exchange = Exchange(market(Block(5_000, S)))
    page = asked(exchange, asking, 5_600, asking.page_max)
    assert page[-1][0] == 5_000
    assert exchange.requests <= 2
