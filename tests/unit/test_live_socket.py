"""The socket of the pages, on a real server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, WebSocket
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from cryptopulse.serve.live import socket as live_socket
from cryptopulse.serve.live.hub import Live
from support import START, Lake, Trade
from support_processes import wait_until

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    made = Lake(tmp_path_factory.mktemp("socket") / "lake")
    made.take_in([Trade("BTC-USD", 1, START).match(), Trade("ETH-USD", 1, START).match()])
    yield made
    made.close()


@pytest.fixture(scope="module")
def address(lake: Lake) -> Iterator[str]:
    """Of a server in a thread of its own."""
    app, live = FastAPI(), Live(lake.settings.location, poll_s=0.01)

    @app.websocket(live_socket.PATH)
    async def topics(socket: WebSocket) -> None:
        await live_socket.serve_socket(socket, live)

    live.start()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, "the server listens")
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"ws://127.0.0.1:{port}{live_socket.PATH}"
    live.close()
    server.should_exit = True
    thread.join()


def talk(address: str, talking: Callable[[ClientConnection], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), connect(address, max_size=None, **options) as socket:
            await talking(socket)

    asyncio.run(main())


async def heard(socket: ClientConnection, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    while True:
        for message in json.loads(await socket.recv()):
            if wanted(message):
                return message


def test_a_page_gets_the_topics_that_it_wants_and_no_others(address: str) -> None:
    async def talking(socket: ClientConnection) -> None:
        await socket.send('{"topics": ["lake", "products"]}')
        found = await heard(socket, lambda message: message["topic"] == "products" and message["symbols"])
        assert found["symbols"] == ["BTC-USD", "ETH-USD"]
        await socket.send('{"topics": ["market"]}')
        seen = await heard(socket, lambda message: message["topic"] == "market")
        assert seen["kind"] == "snapshot"

    talk(address, talking)


def test_a_quiet_socket_says_that_it_lives(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_socket, "QUIET_S", 0.05)

    async def talking(socket: ClientConnection) -> None:
        assert [await socket.recv() for _ in range(3)] == ["[]"] * 3

    talk(address, talking)


def test_topics_that_there_are_not_give_nothing_and_do_no_harm(address: str) -> None:
    names = [
        "nothing",
        "candles/NOPE-USD/1m",
        "candles/BTC-USD/7h",
        "candles/' OR 1=1/1s",
        "product/NOPE-USD",
        "x" * 999,
    ]

    async def talking(socket: ClientConnection) -> None:
        await socket.send(json.dumps({"topics": [*names, "lake"]}))
        unknown = await heard(socket, lambda message: message["topic"] == "product/NOPE-USD")
        assert unknown["figures"] is None
        await socket.send('{"topics": ["market"]}')  # and it goes on
        await heard(socket, lambda message: message["topic"] == "market")

    talk(address, talking)


@pytest.mark.parametrize("said", ["nonsense", '{"topics": 1}', "[]", '{"topics": [1]}', b"\xff\x00"])
def test_what_is_no_wish_ends_the_socket(address: str, said: str | bytes) -> None:
    async def talking(socket: ClientConnection) -> None:
        await socket.send(said)
        await socket.wait_closed()

    talk(address, talking)


def test_a_page_of_another_site_is_refused(address: str) -> None:
    async def talking(socket: ClientConnection) -> None:
        raise AssertionError("was let in")

    with pytest.raises(InvalidStatus):
        talk(address, talking, origin="https://elsewhere.example")


def test_a_page_of_this_site_is_let_in(address: str) -> None:
    async def talking(socket: ClientConnection) -> None:
        await socket.send('{"topics": ["lake"]}')
        await heard(socket, lambda message: message["topic"] == "lake")

    talk(address, talking, origin=address.replace("ws:", "http:").removesuffix(live_socket.PATH))
