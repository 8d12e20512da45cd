"""A producer that records several venues: each connection has its own products, and the end of the record is known."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop
from feed_exchange import MB, Run, producing
from simulator_server import Running, simulator

from cryptopulse import producer
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.settings import Settings
from cryptopulse.venues import Dialect
from cryptopulse.venues.coinbase_advanced import AdvancedDialect
from cryptopulse.venues.coinbase_exchange import ExchangeDialect
from cryptopulse.venues.registry import VENUES

PRODUCTS = ("BTC-USD", "BTC/USD@kraken", "BTCUSD@binance", "BTC-USD@okx")
DIALECTS = (ExchangeDialect(), AdvancedDialect(), *(venue() for venue in VENUES.values()))


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: type(dialect).__name__)
def test_a_feed_takes_the_products_of_its_venue_alone(dialect: Dialect) -> None:
    assert [product.partition("@")[2] for product in PRODUCTS if dialect.takes(product)] == [dialect.venue]


def settings(exchange: Running, lake: Path) -> Settings:
    """Settings that look for quiet products once an hour only."""
    url = str(exchange.http.base_url)
    ws = url.replace("http", "ws")
    feed = {"products": list(PRODUCTS), "websocket_url": f"{ws}/exchange", "rest_url": url, "backoff_max_s": 0.3}
    places = {
        venue: {"websocket_url": f"{ws}/{venue}", "rest_url": url, "rest_requests_per_second": 50} for venue in VENUES
    }
    healing = {"wait_s": 0.2, "table_check_interval_s": 3600}
    return Settings.model_validate({"lake": str(lake), "feed": feed, "healing": healing, **places})


def ids(log: SqliteLog, product: str) -> set[int]:
    """The ids of `product` in messages and pages of the log."""
    found: set[int] = set()
    first, end = log.bounds(0)
    records = log.read(0, first, end - first)
    for key, source, body in zip(*(records[c].to_pylist() for c in ("partition_key", "source", "body")), strict=True):
        if key != product:
            continue
        value = json.loads(body)
        if source == "websocket":
            rows = value.get("data", [value]) if isinstance(value, dict) else []
        else:
            rows = value if isinstance(value, list) else value.get("data") or value["result"]["XBTUSD"]
        for row in rows:
            names = ("trade_id", "t", "tradeId", "id")
            number = row[6] if isinstance(row, list) else next((row[n] for n in names if n in row), None)
            found |= set() if number is None else {int(number)}
    return found


def test_trades_missed_before_a_reconnect_to_a_market_that_is_quiet_since_are_fetched_at_every_venue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "REPORT_INTERVAL_S", 0.05)
    log = SqliteLog(tmp_path / "log.db", 64 * MB)

    async def until_held(run: Run, last: int) -> None:
        async with asyncio.timeout(20):
            while any(last not in ids(log, product) for product in PRODUCTS) or run.last["ids_missing"]:
                await run.next_report()

    async def scenario() -> tuple[dict[str, Any], dict[str, Any]]:
        start = {"start": "all_subscribed", "start_feeds": ["exchange", *VENUES], "start_time_ns": None}
        async with (
            simulator(products=["BTC-USD"], rate=200, **start) as exchange,
            producing(settings(exchange, tmp_path / "lake"), log) as run,
        ):
            await run.until(lambda state: state["trades_total"] > 200)
            await exchange.http.post("/simulator/faults", content="drop=1")
            await exchange.has_traded((await exchange.ledger())["trades"] + 100)
            ledger = await exchange.stop_trading()
            await exchange.http.post("/simulator/faults", content="disconnect=0.1s")
            cut_at = time.time()
            await run.until(lambda state: all(part["since"] > cut_at for part in state["connection_states"]))
            await exchange.http.post("/simulator/faults", content="")
            await until_held(run, ledger["products"]["BTC-USD"]["last_trade_id"])
            return ledger["products"]["BTC-USD"], run.last

    published, state = uvloop.run(scenario())
    assert [connection["products"] for connection in state["connection_states"]] == [1] * len(PRODUCTS)
    assert state["products_refused"] == 0
    for product in PRODUCTS:
        assert ids(log, product) == set(range(published["first_trade_id"], published["last_trade_id"] + 1)), product
    log.close()
