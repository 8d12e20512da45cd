"""Kraken, Binance and OKX at once: bad connections, a bad REST interface, kills of the producer. Nothing may be lost or
doubled. The judge is what the simulator sent.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import replace

import pytest
from deployment import Deployment
from tally import TALLY, judged

from cryptopulse.simulator.other_venues import SYMBOLS
from support import Trade
from support_processes import Exchange, Id, Processes, same_trades, wait_until

MESSAGES = "drop=0.04,duplicate=0.04,reorder=0.04,garbage=0.01,skip=0.001"
REST = "rest-slow=50ms,rest-429=0.1,rest-500=0.1,rest-truncated=0.1"
FIRST_MAX = 500
"""Trades that may pass before a venue's connection hears the first one: nobody can know that they are missing."""


@pytest.fixture
def chance(seed: int) -> random.Random:
    return random.Random(seed)


def venue_settings(exchange: Exchange) -> dict[str, str]:
    """Settings that record every product of the simulator at each venue, in place of Coinbase."""
    url = exchange.feed()["FEED__REST_URL"]
    named = [f"{symbol(product)}@{venue}" for venue, symbol in SYMBOLS.items() for product in exchange.products]
    settings = {"FEED__PRODUCTS": ",".join(named)}
    for venue in SYMBOLS:
        settings[f"{venue.upper()}__WEBSOCKET_URL"] = f"{url.replace('http', 'ws')}/{venue}"
        settings[f"{venue.upper()}__REST_URL"] = url
        settings[f"{venue.upper()}__REST_REQUESTS_PER_SECOND"] = "20"
    return settings


def told(exchange: Exchange) -> dict[Id, Trade]:
    """Every published trade as each venue tells it: Binance and OKX in whole milliseconds."""
    found = {}
    for trade in exchange.published().values():
        for venue, symbol in SYMBOLS.items():
            name = f"{symbol(trade.symbol)}@{venue}"
            when = trade.time
            if venue != "kraken":
                when = when.replace(microsecond=when.microsecond // 1000 * 1000)
            found[name, trade.trade_id] = replace(trade, symbol=name, time=when)
    return found


def test_bad_connections_bad_rest_and_kills_lose_and_double_no_trade_of_any_venue(
    processes: Processes, chance: random.Random
) -> None:
    exchange = Exchange(processes, "--start", "all_subscribed", "--no-rest-limit", products=4, rate=200)
    deployment = Deployment(processes, exchange, processes.folder / "lake", venue_settings(exchange))
    every = {f"{symbol(product)}@{venue}" for venue, symbol in SYMBOLS.items() for product in exchange.products}
    tables = deployment.tables
    wait_until(lambda: {symbol for symbol, _ in tables.ids()} == every, "each product is stored")
    exchange.faults(f"{MESSAGES},{REST},disconnect=3s")
    for _ in range(3):
        time.sleep(chance.uniform(1.0, 3.0))
        deployment.kill("producer")
    wait_until(deployment.recorded_again, "a producer records again")
    exchange.faults(f"{MESSAGES},{REST},silence=100ms+60s")
    wait_until(lambda: deployment.events("connection_stale"), "silence is noticed")
    exchange.faults(REST)
    TALLY["feed_faults"] += 2
    exchange.stop_trading()
    published, held = told(exchange), sorted(tables.ids(), reverse=True)
    first = dict(held)
    assert all(first[symbol] - min(one for name, one in published if name == symbol) < FIRST_MAX for symbol in every)
    expected = {key: trade for key, trade in published.items() if key[1] >= first[key[0]]}
    wait_until(lambda: len(tables.ids()) >= len(expected), f"nothing is missing: {deployment.run.said[-3000:]}")
    assert deployment.run.stop() == 0, deployment.run.said[-3000:]

    judged(tables.ids(), expected)
    assert tables.ids() == Counter(dict.fromkeys(expected, 1))
    assert same_trades(tables.trades(), expected)
    assert {trade.symbol for trade in tables.trades() if trade.source == "rest"} == every
    assert not deployment.events("unexpected_error")
    said = processes.call("audit", "--lake", str(deployment.lake), "--json")
    assert said.returncode == 0, said.stdout[-3000:]
    assert {product["symbol"] for product in json.loads(said.stdout)["products"]} == every
