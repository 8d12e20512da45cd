"""What the tests of the feed share: a scripted exchange on loopback, a producer that runs, a log that hangs."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import picows
import pyarrow as pa

from cryptopulse import producer
from cryptopulse.log import Log
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.settings import Settings

MB = 1024 * 1024
TEXT, BINARY = picows.WSMsgType.TEXT, picows.WSMsgType.BINARY
CONTINUATION, CLOSE = picows.WSMsgType.CONTINUATION, picows.WSMsgType.CLOSE

Script = Callable[["Peer"], Awaitable[None]]


class Peer(picows.WSListener):
    """The exchange's end of one connection, played by a script."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.products: list[str] = []
        self.gone = asyncio.Event()

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport
        self.task = asyncio.create_task(self._play())

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type is TEXT:
            self.requests.put_nowait(json.loads(frame.get_payload_as_bytes()))
        elif frame.msg_type is CLOSE:
            transport.disconnect()

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        assert transport is self.transport
        self.gone.set()

    async def _play(self) -> None:
        await self._script(self)

    async def answer(self) -> None:
        """Confirms the subscription."""
        request = await self.requests.get()
        self.products = request["product_ids"]
        channels = [{"name": name, "product_ids": self.products} for name in request["channels"]]
        self.send(json.dumps({"type": "subscriptions", "channels": channels}).encode())

    def send(self, body: bytes) -> None:
        self.transport.send(TEXT, body)

    def trade(self, trade_id: int) -> None:
        """A trade of the connection's first product."""
        message = {"type": "match", "trade_id": trade_id, "product_id": self.products[0], "price": "1"}
        self.send(json.dumps(message).encode())


class ScriptedExchange:
    """A WebSocket server whose n-th connection follows the n-th script, later ones the last."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = scripts
        self.peers: list[Peer] = []

    def accept(self, _request: picows.WSUpgradeRequest) -> Peer:
        peer = Peer(self._scripts[min(len(self.peers), len(self._scripts) - 1)])
        self.peers.append(peer)
        return peer

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[str]:
        """The address while it listens."""
        server = await picows.ws_create_server(self.accept, "127.0.0.1", port)
        try:
            yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for peer in self.peers:
                peer.task.cancel()
                peer.transport.disconnect()


class Run:
    """A producer that runs."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.last: dict[str, Any] = {}
        self._reported = asyncio.Event()

    def report(self, state: dict[str, Any]) -> None:
        json.dumps(state)
        self.last = state
        self._reported.set()

    async def until(self, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first report that has `reached` what the test waits for."""
        async with asyncio.timeout(60):
            while not (self.last and reached(self.last)):
                await self.next_report()
        return self.last

    async def next_report(self) -> None:
        self._reported.clear()
        await self._reported.wait()


@asynccontextmanager
async def producing(settings: Settings, log: Log) -> AsyncIterator[Run]:
    run = Run()
    task = asyncio.create_task(producer.produce(settings, log, run.stop, run.report))
    try:
        yield run
    finally:
        run.stop.set()
        await task


def settings_for(url: str, **feed: Any) -> Settings:
    """Settings of a feed that only reports what is missing."""
    given = {"products": ["A-USD"], "websocket_url": url, "backoff_max_s": 0.05} | feed
    return Settings.model_validate({"feed": given, "healing": {"enabled": False}})


async def stays_from_fourteen(peer: Peer) -> None:
    await peer.answer()
    peer.trade(14)


class GatedLog:
    """The real log behind a gate: appending waits until the gate opens, or fails with `error`."""

    def __init__(self, log: SqliteLog, error: Exception | None = None) -> None:
        self._log = log
        self._error = error
        self.loop = asyncio.get_running_loop()
        self.gate = asyncio.Event()

    def append(self, messages: pa.Table) -> None:
        asyncio.run_coroutine_threadsafe(self.gate.wait(), self.loop).result()
        if self._error:
            raise self._error
        self._log.append(messages)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


def logged(log: SqliteLog) -> list[tuple[str, bytes]]:
    """(partition key, body) of everything in the log, which is closed."""
    first, end = log.bounds(0)
    rows: list[tuple[str, bytes]] = []
    while first < end:
        records = log.read(0, first, end - first)
        rows += zip(records["partition_key"].to_pylist(), records["body"].to_pylist(), strict=True)
        first += records.num_rows
    log.close()
    return rows
