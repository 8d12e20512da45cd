"""Products and trades over REST, against a real HTTP server that also misbehaves."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from simulator_server import run, simulator

from cryptopulse.errors import ConfigurationError, Disconnected, RateLimited, TransientError, UnknownProduct
from cryptopulse.feed.rest import ListedProduct, RestClient, TradePage, online_products
from cryptopulse.token_bucket import RateLimiter

PRODUCTS = [
    {"id": "ETH-USD", "quote_currency": "USD", "status": "online", "quote_increment": "0.01"},
    {"id": "BTC-USD", "quote_currency": "USD", "status": "online"},
    {"id": "OLD-USD", "quote_currency": "USD", "status": "delisted"},
    {"id": "BTC-EUR", "quote_currency": "EUR", "status": "online"},
]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that did not wait for its answer is what some tests are about."""


@contextmanager
def _server(status: int, body: bytes, delay_s: float = 0) -> Iterator[str]:
    """An address that answers every request alike."""

    answer = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer.wait(delay_s)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Says nothing."""

    server = _Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        answer.set()
        server.shutdown()
        server.server_close()


def _products(url: str, timeout_s: float = 5) -> list[ListedProduct]:
    async def ask() -> list[ListedProduct]:
        async with RestClient(url, per_second=10, timeout_s=timeout_s) as rest:
            return await rest.products()

    return asyncio.run(ask())


def test_a_row_that_is_no_product_hides_no_other() -> None:
    rows = [{"id": 1}, None, *PRODUCTS, {"id": "X-USD"}, {"id": "X-USD", "quote_currency": None}]
    with _server(200, json.dumps(rows).encode()) as url:
        assert online_products(_products(url), "USD") == ["BTC-USD", "ETH-USD"]


def test_online_products_of_the_currency_are_chosen_and_sorted() -> None:
    with _server(200, json.dumps(PRODUCTS).encode()) as url:
        products = _products(url + "/")
    assert len(products) == 4
    assert online_products(products, "USD") == ["BTC-USD", "ETH-USD"]
    assert online_products(products, "GBP") == []


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (429, b"{}", RateLimited),
        (500, b"", TransientError),
        (503, b"", TransientError),
        (200, b"<html>Log in to the hotel's network</html>", TransientError),
        (200, b'[{"id": 1}]', TransientError),
        (404, b"", ConfigurationError),
        (301, b"", TransientError),
        (200, b"[]", TransientError),
    ],
)
def test_the_kind_of_the_error_says_whether_to_try_again(status: int, body: bytes, error: type[Exception]) -> None:
    with _server(status, body) as url, pytest.raises(error, match="/products"):
        _products(url)


def test_a_server_that_does_not_answer_in_time_counts_as_disconnected() -> None:
    with _server(200, b"[]", delay_s=5) as url, pytest.raises(Disconnected, match="Timeout"):
        _products(url, timeout_s=0.05)


def test_an_address_where_nobody_listens_counts_as_disconnected() -> None:
    with _server(200, b"[]") as url:
        pass
    with pytest.raises(Disconnected, match="can't be reached"):
        _products(url)


def test_what_is_no_web_address_is_the_users_mistake() -> None:
    with pytest.raises(ConfigurationError, match=r"feed\.rest_url"):
        _products("coinbase.com")


def test_a_page_has_the_ids_below_and_is_kept_exactly_as_it_came() -> None:
    async def talk() -> None:
        async with simulator(products=2, rate=10_000) as running:
            await running.has_traded(500)
            ledger = (await running.stop_trading())["products"]["ETH-USD"]
            last = ledger["last_trade_id"]
            async with RestClient(str(running.http.base_url), per_second=10) as rest:
                page = await rest.trades("ETH-USD", after=last - 4, limit=20)
                assert page.ids == list(range(last - 5, last - 25, -1))
                query = {"after": last - 4, "limit": 20}
                assert page.body == (await running.http.get("/products/ETH-USD/trades", params=query)).content
                assert (await rest.trades("ETH-USD", after=ledger["first_trade_id"], limit=5)).ids == []
                assert (rest.requests, rest.failures) == (2, 0)
                with pytest.raises(UnknownProduct, match="OLD-USD is no product"):
                    await rest.trades("OLD-USD", after=9, limit=5)

    run(talk)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("rest-429=1", RateLimited),
        ("rest-500=1", TransientError),
        ("rest-slow=5s", Disconnected),
        ("rest-truncated=1", Disconnected),
    ],
)
def test_each_fault_of_the_exchange_is_one_that_may_pass(fault: str, error: type[Exception]) -> None:
    async def talk() -> None:
        async with simulator(products=1, rate=10_000) as running:
            await running.has_traded(100)
            async with RestClient(str(running.http.base_url), per_second=10, timeout_s=1) as rest:
                await running.http.post("/simulator/faults", content=fault)
                with pytest.raises(error, match="BTC-USD/trades"):
                    await rest.trades("BTC-USD", after=2**60, limit=10)
                await running.http.post("/simulator/faults", content="")
                assert len((await rest.trades("BTC-USD", after=2**60, limit=10)).ids) == 10
                assert (rest.requests, rest.failures) == (2, 1)

    run(talk)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Log in to the hotel's network</html>",
        b'{"message": "try later"}',
        b'[{"trade_id": "12"}]',
        b"[5, 4]",
        b'[{"error": "try later"}]',
        b'[{"trade_id": 5, "price": "\xff"}]',
        b'[{"trade_id": 5}, {"trade_id": 6}]',
        b'[{"trade_id": 5}, {"trade_id": 5}]',
        b'[{"trade_id": 10}]',
    ],
)
def test_what_is_no_page_of_trades_below_the_id_that_was_asked_for_is_no_answer(body: bytes) -> None:
    async def ask(url: str) -> TradePage:
        async with RestClient(url, per_second=10) as rest:
            return await rest.trades("A-USD", after=10, limit=5)

    with _server(200, body) as url, pytest.raises(TransientError, match="did not answer with trades"):
        asyncio.run(ask(url))


class _Clock:
    """A clock that only sleeping moves; time in nanoseconds."""

    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns

    async def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def test_a_bucket_lets_a_burst_through_and_then_ten_a_second() -> None:
    clock = _Clock()
    start_ns = clock.now_ns
    limiter = RateLimiter(per_second=10, burst=15, clock=clock, sleep=clock.sleep)

    async def take(count: int) -> list[float]:
        times = []
        for _ in range(count):
            await limiter.acquire()
            times.append(round((clock.now_ns - start_ns) / 1e9, 6))
        return times

    assert asyncio.run(take(18)) == [0.0] * 15 + [0.1, 0.2, 0.3]
    clock.now_ns += 10**10
    refilled_s = (clock.now_ns - start_ns) / 1e9
    assert asyncio.run(take(16)) == [pytest.approx(refilled_s)] * 15 + [pytest.approx(refilled_s + 0.1)]


def test_two_processes_share_one_limit(tmp_path: Path) -> None:
    clock = _Clock()
    start_ns = clock.now_ns
    state = tmp_path / "state" / "rest.allowance"
    limiters = [RateLimiter(per_second=10, burst=15, shared=state, clock=clock, sleep=clock.sleep) for _ in range(2)]

    async def take() -> list[float]:
        for number in range(17):
            await limiters[number % 2].acquire()
        return [(clock.now_ns - start_ns) / 1e9]

    assert asyncio.run(take()) == [pytest.approx(0.2)]


def test_an_allowance_of_before_the_last_boot_counts_for_nothing(tmp_path: Path) -> None:
    state = tmp_path / "rest.allowance"
    clock = _Clock()
    state.write_bytes((clock.now_ns + 10**15).to_bytes(8, "little"))
    asyncio.run(RateLimiter(per_second=10, burst=1, shared=state, clock=clock, sleep=clock.sleep).acquire())
    assert clock.now_ns == 10**12


def test_a_folder_that_cant_be_written_leaves_each_process_its_own_limit(tmp_path: Path) -> None:
    clock = _Clock()
    (tmp_path / "file").touch()
    shared = tmp_path / "file" / "state"
    limiter = RateLimiter(per_second=10, burst=1, shared=shared, clock=clock, sleep=clock.sleep)

    async def take() -> None:
        for _ in range(3):
            await limiter.acquire()

    asyncio.run(take())
    assert clock.now_ns == 10**12 + 2 * 10**8


@pytest.mark.parametrize("proxy", ["socks5h://127.0.0.1:9", "http://127.0.0.1:9"])
def test_a_proxy_that_is_away_may_come_back(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(Disconnected):
        _products("https://exchange.invalid")


def test_a_proxy_whose_address_is_none_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "quic://127.0.0.1:9")
    with pytest.raises(ConfigurationError) as told:
        _products("https://exchange.invalid")
    assert "\n" not in str(told.value)
    assert "HTTPS_PROXY or ALL_PROXY: 'quic://127.0.0.1:9' is no proxy" in str(told.value)


def test_what_the_exchange_says_about_a_refusal_is_passed_on() -> None:
    with (
        _server(400, b'{"message":"Not allowed for delisted products"}') as url,
        pytest.raises(ConfigurationError, match="400 \\(Not allowed for delisted products\\)"),
    ):
        _products(url)
