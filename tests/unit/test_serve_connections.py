"""The bounds that hold before anybody is asked for a token, before a real server on 127.0.0.1."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from cryptopulse.serve.http import connections
from cryptopulse.serve.http.connections import BODY_BYTES_MAX, HEADERS_BYTES_MAX, MESSAGE_BYTES_MAX, Connections
from cryptopulse.serve.live.socket import PATH
from cryptopulse.settings.serve import ServeSettings
from support_processes import wait_until
from support_serve import TOKEN, Served, serve_topics

MB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("connections") / "lake"


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    served = Served(folder, token=TOKEN)
    serve_topics(served)
    with served:
        yield served


def opened(served: Served, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=60, source_address=(source, 0))


def status(raw: socket.socket) -> str:
    """Of the answer; "" when the connection was cut."""
    with suppress(ConnectionError):
        return raw.recv(4096).partition(b"\r\n")[0].decode()
    return ""


def is_cut(raw: socket.socket) -> bool:
    """Whether it ends, after what was said before."""
    with suppress(ConnectionError):
        while raw.recv(4096):
            pass
    return True


def sent_until_cut(raw: socket.socket, piece: bytes, most: int) -> int:
    """How many bytes went out before the other side had enough."""
    sent = 0
    with suppress(OSError):
        while sent < most:
            sent += raw.send(piece)
    return sent


def memory() -> int:
    return int(psutil.Process().memory_info().rss)


def test_headers_that_are_too_long_are_431_and_cost_no_memory(served: Served) -> None:
    before = memory()
    with opened(served) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        assert sent_until_cut(raw, b"X-Filler: " + b"a" * 8000 + b"\r\n", 120 * MB) < 4 * MB
    assert memory() - before < 20 * MB
    with opened(served) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (HEADERS_BYTES_MAX + 100))
        assert " 431 " in status(raw)


@pytest.mark.parametrize("header", ["X: " + "a" * HEADERS_BYTES_MAX, "\r\n".join(f"X{n}: a" for n in range(5000))])
def test_headers_that_are_whole_and_too_long_are_431_as_well(served: Served, header: str) -> None:
    with opened(served) as raw:
        raw.sendall(f"GET / HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode())
        assert " 431 " in status(raw)


def test_a_cookie_and_a_cursor_of_the_longest_fit(served: Served) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Cookie": "a=" + "b" * 8000}
    assert served.get("/api/products", headers=headers).status_code == 200


def test_bodies_that_are_too_long_are_413_before_they_are_read(served: Served) -> None:
    for path in ("/login", "/pages/evidence", "/api/products", "/healthz"):
        with opened(served) as raw:
            raw.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {400 * MB}\r\n\r\n".encode())
            assert " 413 " in status(raw), path
            assert is_cut(raw)


def test_bodies_that_do_not_say_how_long_they_are_are_bounded_as_well(served: Served) -> None:
    before = memory()
    with opened(served) as raw:
        raw.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert sent_until_cut(raw, b"10000\r\n" + b"a" * 65536 + b"\r\n", 400 * MB) < 8 * MB
    assert memory() - before < 20 * MB


def test_a_body_that_fits_is_read(served: Served) -> None:
    filler = "x" * (BODY_BYTES_MAX - 200)
    assert served.browser().post("/pages/trials", content=filler, headers={"Origin": served.url}).status_code == 401


def test_half_requests_do_not_stay(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.3)
    halves = [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\ntok",
    ]
    for half in halves:
        with opened(served) as raw:
            raw.sendall(half)
            assert is_cut(raw)


def test_a_letter_now_and_then_gains_no_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    with opened(served) as raw:
        sent, slowly = 0, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1000
        with suppress(OSError):
            for letter in slowly:
                raw.sendall(bytes([letter]))
                sent += 1
                time.sleep(0.02)
        assert sent < len(slowly)


def test_streams_and_idle_connections_within_their_time_stay(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with served.browser(headers=headers) as browser, browser.stream("GET", "/api/events") as stream:
        time.sleep(1.0)
        assert next(stream.iter_lines()).startswith("retry")


def test_one_address_has_so_many_connections_and_others_notice_nothing() -> None:
    all_of_them = Connections(ServeSettings(connections_per_address_max=8))
    assert [all_of_them.enter("192.0.2.1") for _ in range(9)] == [True] * 8 + [False]
    assert all_of_them.enter("192.0.2.2")
    all_of_them.leave("192.0.2.1")
    assert all_of_them.enter("192.0.2.1")
    assert [all_of_them.enter(f"2001:db8::{number}") for number in range(9)] == [True] * 8 + [False]


def test_this_machine_and_proxies_may_stand_for_many() -> None:
    all_of_them = Connections(ServeSettings(connections_per_address_max=8, proxies=["192.0.2.0/24"]))
    for address in ("127.0.0.1", "::1", "192.0.2.7"):
        assert all(all_of_them.enter(address) for _ in range(10))


def test_connections_that_wait_make_room_and_those_that_work_stay(folder: Path) -> None:
    with Served(folder, connections_max=16) as small, ExitStack() as stack:
        all_of_them: Connections = small.app.state.connections
        stream = stack.enter_context(small.browser().stream("GET", "/api/events"))
        lines = stream.iter_lines()
        next(lines)
        halves = [stack.enter_context(opened(small)) for _ in range(40)]
        for raw in halves:
            with suppress(OSError):
                raw.sendall(b"GET / HTTP/1.1\r\n")
        wait_until(lambda: all_of_them.count == 16, "they are as many as there may be")
        assert small.browser().get("/healthz").status_code == 200
        assert is_cut(halves[0])
        assert any(line.startswith("event: lake") for line in lines)
    wait_until(lambda: all_of_them.count == 0, "who has gone is not counted any more")


def test_a_websocket_counts_as_the_connection_that_it_was(served: Served) -> None:
    all_of_them: Connections = served.app.state.connections
    served.client.close()
    wait_until(lambda: all_of_them.count == 0, "nobody is there")

    async def talk() -> None:
        async with connect(f"ws://127.0.0.1:{served.port}{PATH}", additional_headers=_bearer(), proxy=None) as ws:
            await ws.recv()
            assert all_of_them.count == 1

    asyncio.run(talk())
    wait_until(lambda: all_of_them.count == 0, "it is gone")
    served.client = served.browser()


def _bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


def test_a_websocket_that_says_too_much_is_not_read_any_further(served: Served) -> None:
    frame = Frame(Opcode.TEXT, b'{"topics":[]}').serialize(mask=True)
    before = memory()

    async def flood() -> int:
        url = f"ws://127.0.0.1:{served.port}{PATH}"
        async with connect(url, additional_headers=_bearer(), proxy=None) as ws:
            sent, end_s = 0, time.monotonic() + 3
            while time.monotonic() < end_s:
                if ws.transport.get_write_buffer_size() < MB:
                    ws.transport.write(frame * 500)
                    sent += len(frame) * 500
                await asyncio.sleep(0.001)
            sent -= ws.transport.get_write_buffer_size()
            ws.transport.abort()
            return sent

    assert asyncio.run(flood()) < 5 * MB  # what the system holds on the way is in it
    assert memory() - before < 20 * MB


def test_pings_without_an_end_are_cut(served: Served) -> None:
    ping = Frame(Opcode.PING, b"").serialize(mask=True)

    async def flood() -> None:
        url = f"ws://127.0.0.1:{served.port}{PATH}"
        async with connect(url, additional_headers=_bearer(), proxy=None) as ws:
            while not ws.transport.is_closing():
                ws.transport.write(ping * 500)
                await asyncio.sleep(0)

    with suppress(ConnectionError):
        asyncio.run(asyncio.wait_for(flood(), 60))


def test_a_message_that_is_too_long_ends_the_websocket(served: Served) -> None:
    async def talk() -> None:
        url = f"ws://127.0.0.1:{served.port}{PATH}"
        async with connect(url, additional_headers=_bearer(), proxy=None) as ws:
            with suppress(ConnectionClosed):
                await ws.send('{"topics": ["' + "a" * (MESSAGE_BYTES_MAX + 1) + '"]}')
            await asyncio.wait_for(ws.wait_closed(), 60)

    asyncio.run(talk())
