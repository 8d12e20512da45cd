"""A served lake for tests: uvicorn in a thread of this process, on a port of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn
from fastapi import FastAPI, WebSocket

from cryptopulse.serve.app import create_app
from cryptopulse.serve.live.hub import Live
from cryptopulse.serve.live.socket import PATH, serve_socket
from cryptopulse.serve.server import configured
from cryptopulse.settings import Settings, load_settings
from support import Lake

TOKEN = "correct horse battery"


class Served:
    """`with Served(lake) as served`: the API of a lake. `options`: settings of the section `serve`."""

    def __init__(self, lake: Any, **options: Any) -> None:
        self.settings: Settings = load_settings(lake=lake, serve=options)
        self.app = create_app(self.settings)
        self._server = uvicorn.Server(configured(self.app, self.settings.serve, port=0))
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve()

        asyncio.run(serve())

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = self.browser()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join()

    def end_events(self) -> None:
        """Tells all who listen that the server ends."""
        self._loop.call_soon_threadsafe(self.app.state.events.end)

    def browser(self, **options: Any) -> httpx.Client:
        """A client with cookies of its own."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=30, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)


def serve_topics(served: Served) -> None:
    """Lets `served` answer WebSockets as the dashboard does, without its pages. To be called before it starts."""
    pages = FastAPI()

    @pages.websocket(PATH)
    async def topics(ws: WebSocket) -> None:
        await serve_socket(ws, served.app.state.live)

    served.app.mount("/", pages)


@asynccontextmanager
async def following(lake: Lake) -> AsyncIterator[Live]:
    """What live pages are fed by, of a lake that a test fills."""
    live = Live(lake.settings.location, poll_s=0.01)
    live.start()
    try:
        yield live
    finally:
        await asyncio.to_thread(live.close)
