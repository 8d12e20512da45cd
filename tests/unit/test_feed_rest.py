"""The list of products over REST, against a real HTTP server that also misbehaves."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cryptopulse.errors import ConfigurationError, Disconnected, RateLimited, TransientError
from cryptopulse.feed.rate_limit import TokenBucket
from cryptopulse.feed.rest import Product, RestClient, online_products

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


def _products(url: str, timeout_s: float = 5) -> list[Product]:
    async def ask() -> list[Product]:
        async with RestClient(url, timeout_s=timeout_s) as rest:
            return await rest.products()

    return asyncio.run(ask())


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
        (301, b"", ConfigurationError),
    ],
)
def test_the_kind_of_the_error_says_whether_to_try_again(status: int, body: bytes, error: type[Exception]) -> None:
    with _server(status, body) as url, pytest.raises(error, match="/products"):
        _products(url)


def test_a_server_that_does_not_answer_in_time_counts_as_disconnected() -> None:
    with _server(200, b"[]", delay_s=5) as url, pytest.raises(Disconnected, match="ReadTimeout"):
        _products(url, timeout_s=0.05)


def test_an_address_where_nobody_listens_counts_as_disconnected() -> None:
    with _server(200, b"[]") as url:
        pass
    with pytest.raises(Disconnected, match="can't be reached"):
        _products(url)


def test_what_is_no_web_address_is_the_users_mistake() -> None:
    with pytest.raises(ConfigurationError, match=r"feed\.rest_url"):
        _products("coinbase.com")


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
    bucket = TokenBucket(per_second=10, burst=15, clock=clock, sleep=clock.sleep)

    async def take(count: int) -> list[float]:
        times = []
        for _ in range(count):
            await bucket.take()
            times.append(round((clock.now_ns - start_ns) / 1e9, 6))
        return times

    assert asyncio.run(take(18)) == [0.0] * 15 + [0.1, 0.2, 0.3]
    clock.now_ns += 10**10
    refilled_s = (clock.now_ns - start_ns) / 1e9
    assert asyncio.run(take(16)) == [pytest.approx(refilled_s)] * 15 + [pytest.approx(refilled_s + 0.1)]
