"""What the tests of healing share: a simulated exchange, producers that record it, and what their log holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feed_exchange import MB, Run, producing
from simulator_server import Running, simulator

from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.settings import Settings
from cryptopulse.venues import TradesMessage
from cryptopulse.venues.coinbase_advanced import AdvancedDialect
from cryptopulse.venues.coinbase_exchange import ExchangeDialect
from support import Lake

PATIENCE_S = 60.0
Ids = dict[str, set[int]]
"""By product."""


@dataclass
class Setup:
    """An exchange, and where producers record it."""

    exchange: Running
    products: list[str]
    folder: Path
    _logged: Ids = field(default_factory=dict)
    _read_to: int = 0
    _end: int = 0

    def url(self, dialect: str) -> str:
        """Where the exchange speaks `dialect`."""
        return f"{self.exchange.http.base_url}/{dialect}".replace("http", "ws")

    def settings(self, dialect: str = "exchange", wait_s: float = 0.3, **feed: Any) -> Settings:
        """Settings with little patience for holes."""
        given = {
            "dialect": dialect,
            "products": [],
            "websocket_url": self.url("advanced" if dialect == "advanced" else "exchange"),
            "advanced_url": self.url("advanced"),
            "rest_url": str(self.exchange.http.base_url),
            "backoff_max_s": 0.3,
        }
        healing = {"wait_s": wait_s, "table_check_interval_s": 1}
        return Settings.model_validate({"lake": str(self.folder / "lake"), "feed": given | feed, "healing": healing})

    @asynccontextmanager
    async def recording(self, dialect: str = "exchange", **feed: Any) -> AsyncIterator[Run]:
        """A producer; all of them write the same log."""
        log = self.log()
        try:
            async with producing(self.settings(dialect, **feed), log) as run:
                yield run
        finally:
            log.close()

    def log(self) -> SqliteLog:
        """The log, opened."""
        return SqliteLog(self.settings().log_path, 256 * MB)

    def forget_log(self) -> None:
        """Takes the log away, as somebody would who has to."""
        for path in self.settings().state_dir.glob("log.db*"):
            path.unlink()
        self._logged, self._read_to = {}, 0

    async def stored(self) -> None:
        """Brings the log into the tables."""

        def drain() -> None:
            lake = Lake(self.folder / "lake")
            lake.drain()
            lake.close()

        await asyncio.to_thread(drain)

    async def faults(self, faults: str) -> None:
        """What goes wrong from now on."""
        answer = await self.exchange.http.post("/simulator/faults", content=faults)
        assert answer.status_code == 200, answer.json()

    async def more_trades(self, count: int) -> None:
        """Returns when so many trades more have been published."""
        await self.exchange.has_traded((await self.exchange.ledger())["trades"] + count)

    async def pages_asked(self) -> int:
        """How often REST was asked for trades, as the exchange counts."""
        return int((await self.exchange.ledger())["rest_requests"].get("trades", 0))

    async def every_product_seen(self, run: Run) -> None:
        """Returns when a message of each product came that was published after this call."""
        before = (await self.exchange.ledger())["products"]
        last = {product: before.get(product, {}).get("last_trade_id", 0) for product in self.products}
        async with asyncio.timeout(PATIENCE_S):
            while any(max(self.logged().get(p, {0})) <= newest for p, newest in last.items()):
                await run.next_report()

    async def end(self, run: Run, held: Ids | None = None) -> dict[str, Any]:
        """Stops trading, and waits until every published id is in the log (or `held` elsewhere), and the producer
        knows it. The ids of a product count from the first that is in the log. Returns the ledger."""
        ledger = await self.exchange.stop_trading()
        async with asyncio.timeout(PATIENCE_S):
            while self.missing(ledger, held) or run.last["ids_missing"] + run.last["ids_open"]:
                await run.next_report()
        return ledger

    def missing(self, ledger: dict[str, Any], held: Ids | None = None) -> Ids:
        """What was published since the record began and is not in it."""
        logged = self.logged()
        found: Ids = {}
        for product, there in published(ledger).items():
            have = logged.get(product, set()) | (held or {}).get(product, set())
            lack = {i for i in there if i >= min(have, default=0)} - have
            if lack:
                found[product] = lack
        return found

    def messages(self, offset: int = 0) -> list[tuple[str, str, bytes]]:
        """(partition key, source, body) of everything in the log, or of what came at this offset and after it."""
        log = self.log()
        first, end = log.bounds(0)
        first = max(first, offset)
        rows: list[tuple[str, str, bytes]] = []
        while first < end:
            records = log.read(0, first, end - first)
            columns = (records[name].to_pylist() for name in ("partition_key", "source", "body"))
            rows += zip(*columns, strict=True)
            first += records.num_rows
        log.close()
        self._end = end
        return rows

    def logged(self) -> Ids:
        """The ids that came into the log; tests ask often, so what was read once is not read again."""
        found = self._logged
        for key, source, body in self.messages(self._read_to):
            if source == "rest":
                rows = [row for row in json.loads(body) if isinstance(row, dict)]
                found.setdefault(key, set()).update(r["trade_id"] for r in rows if isinstance(r.get("trade_id"), int))
                continue
            for message in (ExchangeDialect().read(body), AdvancedDialect().read(body)):
                if isinstance(message, TradesMessage):
                    for product, trade_id in message.ids:
                        found.setdefault(product, set()).add(trade_id)
        self._read_to = self._end
        return {product: set(ids) for product, ids in found.items()}


def published(ledger: dict[str, Any]) -> Ids:
    """The ids that there are."""
    return {
        product: set(range(figures["first_trade_id"], figures["last_trade_id"] + 1)) - set(figures["skipped_trade_ids"])
        for product, figures in ledger["products"].items()
    }


@asynccontextmanager
async def simulated(folder: Path, **options: Any) -> AsyncIterator[Setup]:
    """A simulated exchange that begins to trade when every product has a reader."""
    given = {"products": 3, "rate": 300, "start": "all_subscribed", "rest_limit": True, "start_time_ns": None} | options
    async with simulator(**given) as exchange:
        products = [row["id"] for row in (await exchange.http.get("/products")).json()]
        yield Setup(exchange, products, folder)


async def until(run: Run, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first report that has `reached` what the test waits for."""
    async with asyncio.timeout(PATIENCE_S):
        while not (run.last and reached(run.last)):
            await run.next_report()
    return run.last


async def reports(run: Run, count: int) -> None:
    """Lets so many reports pass."""
    for _ in range(count):
        await run.next_report()
