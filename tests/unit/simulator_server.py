"""Runs a simulator inside a test, and talks to it over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from cryptopulse.simulator import SimulatorOptions, serve

START_NS = 1_780_000_000_700_000_000  # 2026-05-28T20:26:40.7Z: the first heartbeat comes after 0.3 s
PATIENCE_S = 60.0  # a busy machine is slow, and only a failure waits for it


class Running:
    """A simulator that runs in this event loop."""

    def __init__(self, port: int) -> None:
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}")
        self._url = f"ws://127.0.0.1:{port}"

    def connect(self, path: str = "/exchange", **options: Any) -> connect:
        options = {"max_size": None, "max_queue": None, "compression": None} | options
        return connect(self._url + path, **options)

    async def ledger(self) -> dict[str, Any]:
        return (await self.http.get("/simulator/ledger")).json()

    async def ledger_when(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first ledger that is wanted."""
        while not wanted(ledger := await self.ledger()):  # noqa: ASYNC110  it tells only when asked
            await asyncio.sleep(0.02)
        return ledger

    async def has_traded(self, count: int) -> None:
        await self.ledger_when(lambda ledger: ledger["trades"] >= count)

    async def stop_trading(self) -> dict[str, Any]:
        return (await self.http.post("/simulator/stop_trading")).json()

    async def trades(self, product: str) -> list[dict[str, Any]]:
        return (await self.http.get(f"/simulator/trades/{product}")).json()


@asynccontextmanager
async def simulator(**options: Any) -> AsyncIterator[Running]:
    """A simulator on a free port, stopped at the end."""
    options = {
        "port": 0,
        "products": 2,
        "rate": 1000,
        "start_time_ns": START_NS,
        "rest_limit": False,
    } | options
    async with listening(lambda ready, stop: serve(SimulatorOptions(**options), ready, stop)) as running:
        yield running


@asynccontextmanager
async def listening(
    serve: Callable[[Callable[[int], None], asyncio.Event], Coroutine[Any, Any, None]],
) -> AsyncIterator[Running]:
    """What `serve(on_ready, stop)` serves, stopped at the end."""
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(ready.set_result, stop))
    await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        serving.result()
    running = Running(ready.result())
    try:
        yield running
    finally:
        stop.set()
        await running.http.aclose()
        await serving


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Runs an asynchronous test with an end to its patience."""

    async def patient() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    asyncio.run(patient())


def subscribe(*products: str, channels: Iterable[str] = ("matches", "heartbeat")) -> str:
    return json.dumps({"type": "subscribe", "product_ids": products, "channels": list(channels)})


async def receive_all(client: ClientConnection) -> None:
    """Reads until the connection ends."""
    while True:
        await client.recv()


async def receive(client: ClientConnection) -> dict[str, Any]:
    return json.loads(await client.recv())


async def receive_until(client: ClientConnection, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Messages up to and with the first that is wanted."""
    messages = [await receive(client)]
    while not wanted(messages[-1]):
        messages.append(await receive(client))
    return messages


def is_type(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda message: message.get("type") == name
