"""What REST answers when it is not well, and what its errors mean: a simulated exchange answers as it is told."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop
from feed_exchange import MB, ScriptedExchange, producing, settings_for, stays_from_fourteen
from simulator_server import Running, run, simulator
from structlog.testing import capture_logs

from cryptopulse import producer
from cryptopulse.errors import (
    ConfigurationError,
    CryptoPulseError,
    Disconnected,
    RateLimited,
    TransientError,
    UnknownProduct,
)
from cryptopulse.feed.rest import RETRY_AFTER_MAX_S, RestClient, page_ids
from cryptopulse.log.sqlite import SqliteLog
from support import orders

WEB_PAGE = b"<!DOCTYPE html><html><title>Attention required</title></html>"
DELISTED = b'{"message":"Not allowed for delisted products"}'


async def order(running: Running, *answers: dict[str, Any]) -> None:
    """Tells the exchange how to answer from now on."""
    told = await running.http.post("/simulator/rest", content=orders(*answers))
    assert told.status_code == 200, told.text


def error_of(answer: dict[str, Any], timeout_s: float = 2) -> CryptoPulseError:
    """What asking for trades raises when the exchange answers so; the next, right answer is one."""
    found: list[CryptoPulseError] = []

    async def talk() -> None:
        async with simulator(products=1, rate=10_000) as running:
            await running.has_traded(100)
            async with RestClient(str(running.http.base_url), per_second=10, timeout_s=timeout_s) as rest:
                await order(running, answer)
                with pytest.raises(CryptoPulseError) as told:
                    await rest.trades("BTC-USD", after=2**60, limit=10)
                found.append(told.value)
                assert len((await rest.trades("BTC-USD", after=2**60, limit=10)).ids) == 10
                assert (rest.requests, rest.failures) == (2, 1)

    run(talk)
    assert "\n" not in str(found[0])
    assert "/products/BTC-USD/trades" in str(found[0])
    return found[0]


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        *(
            (status, WEB_PAGE, f"{status} (a web page)")
            for status in (200, 400, 401, 403, 404, 408, 410, 451, 503, 525)
        ),
        *(
            (status, b"", f"answered {status}")
            for status in (202, 204, 206, 304, 403, 408, 421, 425, 499, 520, 530, 999)
        ),
        (403, b'{"message":"Forbidden"}', "403 (Forbidden)"),
        (404, b"404 page not found", "answered 404"),
        (404, b"no healthy upstream", "answered 404"),
        (500, b'{"message":' + b"[" * 20_000, "answered 500"),
        (200, b"[" * 20_000, "did not answer with trades"),
        (200, b"", "did not answer with trades"),
        (200, b"null", "did not answer with trades"),
        (200, b'{"message":"Service is degraded"}', "(Service is degraded)"),
        (200, '[{"trade_id":1}]'.encode("utf-16"), "did not answer with trades"),
    ],
)
def test_what_somebody_on_the_way_says_may_pass(status: int, body: bytes, told: str) -> None:
    error = error_of({"status": status, "body": body})
    assert type(error) is TransientError
    if status != 200 or "web page" not in told:
        assert told in str(error)
    assert len(str(error)) < 600


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "https://login.example.net/?next=trades",
        "/maintenance.html",
        "javascript:alert(1)",
        "http://[::1",
        "//",
        "https://example.net:99999/",
        "https://example.net/" + "a" * 10_000,
        "\xe9\x01",
    ],
)
def test_a_redirect_is_said_and_not_followed(status: int, location: str) -> None:
    error = error_of({"status": status, "headers": {"location": location}})
    assert isinstance(error, TransientError)
    assert len(str(error)) < 600
    if location.startswith(("https://login", "/")) and location != "//" and status != 300:
        assert f"answered {status} and points to {location}, which is not followed" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"reset": True}, id="reset"),
        pytest.param({"truncated": True}, id="truncated"),
        pytest.param({"headers": {"content-encoding": "gzip"}}, id="no gzip"),
        pytest.param({"headers": {"content-encoding": "deflate"}}, id="no deflate"),
        pytest.param(
            {"headers": {"content-encoding": "gzip"}, "body": gzip.compress(b'[{"trade_id":1}]' * 50)[:30]},
            id="gzip cut short",
        ),
        pytest.param(
            {"headers": {"content-encoding": "gzip"}, "body": gzip.compress(b" " * 20_000_000)}, id="gzip of 20 MB"
        ),
        pytest.param({"headers": {"content-encoding": "zip, base64"}, "body": b"UEsDBA=="}, id="zip in base64"),
        pytest.param({"headers": {"content-length": "many"}}, id="length no number"),
        pytest.param({"headers": {"content-length": "1000000"}}, id="length too long"),
        pytest.param({"headers": {"transfer-encoding": "chunked"}}, id="not chunked"),
        pytest.param({"headers": {"bad name": "x"}}, id="bad header name"),
    ],
)
def test_an_answer_that_cant_be_received_or_unpacked_may_pass(answer: dict[str, Any]) -> None:
    assert isinstance(error_of(answer, timeout_s=0.3), TransientError)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, DELISTED, "answered 400 (Not allowed for delisted products): it refuses BTC-USD"),
        (404, b'{"message":"NotFound"}', "BTC-USD is no product there"),
        (404, b"", "BTC-USD is no product there"),
        (410, b'{"message":"gone"}', "it refuses BTC-USD"),
        (451, b"{}", "it refuses BTC-USD"),
        (401, b'{"message":"Unauthorized."}', "it refuses BTC-USD"),
    ],
)
def test_a_refusal_of_the_exchange_is_the_products_matter(status: int, body: bytes, told: str) -> None:
    error = error_of({"status": status, "body": body})
    assert isinstance(error, UnknownProduct)
    assert told in str(error)


def _date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("3", 3, 3),
        (" 7 ", 7, 7),
        ("0", 0, 0),
        ("86400", RETRY_AFTER_MAX_S, RETRY_AFTER_MAX_S),
        ("9" * 5_000, RETRY_AFTER_MAX_S, RETRY_AFTER_MAX_S),
        (30, 1, 30),
        (-30, 0, 0),
        (10**8, RETRY_AFTER_MAX_S, RETRY_AFTER_MAX_S),
        ("-5", 0, 0),
        ("soon", 0, 0),
        ("1.5", 0, 0),
        ("inf", 0, 0),
        ("٣", 0, 0),
        ("Mon, 99 Foo 2026 99:99:99 GMT", 0, 0),
        ("Sat, 01 Jan 99999999999 00:00:00 GMT", 0, 0),
        ("Sat, 01 Jan 0001 00:00:00 +2359", 0, 0),
        ("", 0, 0),
    ],
    ids=lambda value: str(value)[:20],
)
@pytest.mark.parametrize("status", [429, 503])
def test_the_exchanges_wish_to_be_left_alone_is_heard_within_bounds(
    status: int, header: str | int, least: float, most: float
) -> None:
    text = _date(header) if isinstance(header, int) else header
    error = error_of({"status": status, "headers": {"retry-after": text}})
    assert isinstance(error, RateLimited if status == 429 else TransientError)
    assert least <= error.retry_after_s <= most


def test_an_answer_that_trickles_for_ever_ends() -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)

    async def talk() -> None:
        server = await asyncio.start_server(trickle, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, RestClient(url, per_second=10, timeout_s=0.1) as rest:
            with pytest.raises(Disconnected, match="no whole answer"):
                await rest.trades("BTC-USD", after=None, limit=10)

    run(talk)


def test_products_are_asked_for_until_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run --products ""` on a day on which somebody on the way says no."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(producer, "REPORT_INTERVAL_S", 0.02)
    troubles: list[dict[str, Any]] = [
        {"status": 403, "body": WEB_PAGE},
        {"status": 408},
        {"status": 302, "headers": {"location": "https://sorry.example.net/"}},
        {"status": 400, "body": WEB_PAGE},
        {"status": 404, "body": b"default backend - 404"},
        {"status": 429, "headers": {"retry-after": "0"}},
        {"status": 200, "body": b"[]"},
        {"status": 200, "body": WEB_PAGE},
        {"status": 503},
        {"reset": True},
        {"truncated": True},
    ]
    log = SqliteLog(tmp_path / "log.db", 256 * MB)

    async def scenario() -> None:
        async with ScriptedExchange(stays_from_fourteen).listening() as url, simulator(products=2) as running:
            await order(running, *troubles)
            settings = settings_for(url, products=[], rest_url=str(running.http.base_url))
            async with producing(settings, log) as producing_run:
                await producing_run.until(lambda state: state["trades_total"] > 0)

    with capture_logs() as lines:
        uvloop.run(scenario())
    log.close()
    waiting = [line["error"] for line in lines if line["event"] == "waiting_for_products"]
    assert len(waiting) == len(troubles)
    assert "points to https://sorry.example.net/" in waiting[2]


TRADE = b'{"trade_id":%d,"price":"1","size":"1","side":"buy","time":"2026-01-01T00:00:00Z"}'
NINE, EIGHT, SIX, FIVE = (TRADE % number for number in (9, 8, 6, 5))


@pytest.mark.parametrize(
    "row",
    [
        b"7",
        b"null",
        b"[]",
        b'"trade"',
        b"{}",
        b'{"price":"1"}',
        b'{"trade_id":null,"price":"1"}',
        b'{"trade_id":"seven"}',
        b'{"trade_id":-7}',
        b'{"trade_id":0}',
        b'{"trade_id":7.5}',
        b'{"trade_id":true}',
        b'{"trade_id":{}}',
        b'{"trade_id":' + b"9" * 400 + b"}",
    ],
    ids=lambda row: row.decode()[:30],
)
def test_a_row_without_an_id_has_the_one_that_its_place_leaves(row: bytes) -> None:
    def page(*rows: bytes) -> bytes:
        return b"[" + b",".join(rows) + b"]"

    assert page_ids(page(NINE, EIGHT, row, SIX, FIVE), 10) == [9, 8, 7, 6, 5]
    assert page_ids(page(row, EIGHT), 10) == [9, 8]
    assert page_ids(page(row, EIGHT)) == [9, 8]
    assert page_ids(page(row, row, EIGHT), 10) == [9, 8]
    assert page_ids(page(SIX, row), 10) == [6, 5]
    assert page_ids(page(TRADE % 1, row), 10) == [1]
    assert page_ids(page(NINE, row, SIX), 10) == [9, 8, 7, 6]  # which one is there nobody knows: neither is absent
    assert page_ids(page(NINE, row, row, FIVE), 10) == [9, 8, 7, 6, 5]
    assert len(page_ids(page(TRADE % 10**12, row, FIVE))) == 1002


@pytest.mark.parametrize("text", [b"7", b'"7"', b"7.0"])
def test_an_id_may_be_written_in_many_ways(text: bytes) -> None:
    assert page_ids(b'[{"trade_id":%s,"price":"1"}]' % text, 10) == [7]


def test_a_page_without_any_id_is_one_if_its_rows_are_trades() -> None:
    assert page_ids(b'[{"price":"1"},{"size":"1"}]', 10) == [9, 8]
    assert page_ids(b'[{"price":"1"}]') == []


def test_headers_of_a_page_are_not_needed() -> None:
    async def talk() -> None:
        async with simulator(products=1, rate=10_000) as running:
            await running.has_traded(100)
            for cursor in ("", "0", "-1", "tomorrow", "9" * 400):
                await order(running, {"headers": {"cb-after": cursor, "cb-before": cursor}})
                async with RestClient(str(running.http.base_url), per_second=10) as rest:
                    assert len((await rest.trades("BTC-USD", after=2**60, limit=10)).ids) == 10

    run(talk)


def test_a_name_is_no_part_of_the_path() -> None:
    async def talk() -> None:
        async with (
            simulator(products=1, rate=10_000) as running,
            RestClient(str(running.http.base_url), per_second=10) as rest,
        ):
            for name in ("../products", "BTC-USD?limit=1", "BTC USD", "BTC/USD", "%2e%2e", "é-USD"):
                with pytest.raises(UnknownProduct, match="no product there"):
                    await rest.trades(name, after=None, limit=10)

    run(talk)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://",
        "http://[::1",
        "http://host:port",
        "http://host:99999",
        "ftp://host",
        "coinbase.com",
    ],
)
def test_an_address_that_is_none_is_the_users_mistake(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"feed\.rest_url"):
        RestClient(url, per_second=10)
