"""A simulated exchange in this process, whose trades are all past: for what only reads them over REST."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from datetime import datetime, timedelta

import httpx

from cryptopulse.simulator import SimulatorOptions, serve
from support_processes import Exchange, wait_until


class Past(Exchange):
    """A simulated exchange in this process that has stopped trading, and allows any number of requests."""

    def __init__(self, trades: int) -> None:
        self._stop = asyncio.Event()
        self._ready: Future[tuple[asyncio.AbstractEventLoop, int]] = Future()
        self._trades = trades
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        self._loop, port = self._ready.result(timeout=60)
        self.url = f"http://127.0.0.1:{port}"
        self._client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        wait_until(lambda: self.ledger()["trades"] >= trades, "the exchange has traded")
        self.products = sorted(self.ledger()["products"])

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        options = SimulatorOptions(port=0, products=2, rate=20_000, trades_max=self._trades, rest_limit=False)
        await serve(options, lambda port: self._ready.set_result((loop, port)), self._stop)

    @property
    def start(self) -> datetime:
        """Shortly before the first trade."""
        return datetime.fromisoformat(self.ledger()["started_at"]) - timedelta(seconds=1)

    def close(self) -> None:
        self._client.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
