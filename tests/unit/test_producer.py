"""The producer as a whole: which products, how many connections, how it ends, and what a faulty exchange costs."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from feed_exchange import (
    MB,
    Peer,
    Run,
    ScriptedExchange,
    logged,
    producing,
    settings_for,
    stays_from_fourteen,
)
from simulator_server import simulator
from structlog.testing import capture_logs

from cryptopulse import producer
from cryptopulse.errors import ConfigurationError
from cryptopulse.feed import event_log
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.simulator.faults import Faults
from cryptopulse.simulator.options import SimulatorOptions
from cryptopulse.simulator.server import serve
from cryptopulse.venues import TradesMessage
from cryptopulse.venues.coinbase_advanced import AdvancedDialect
from cryptopulse.venues.coinbase_exchange import ExchangeDialect


@pytest.fixture(autouse=True)
def _frequent_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests wait for reports; a person has more time. The lake, if one is made, is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(producer, "REPORT_INTERVAL_S", 0.02)


@pytest.fixture
def log(tmp_path: Path) -> SqliteLog:
    return SqliteLog(tmp_path / "log.db", 256 * MB)


def test_stopping_writes_everything_that_was_received(log: SqliteLog) -> None:
    async def script(peer: Peer) -> None:
        await peer.answer()
        for trade_id in range(1, 20_001):
            peer.trade(trade_id)

    exchange = ScriptedExchange(script)

    async def scenario() -> Run:
        async with exchange.listening() as url:
            async with producing(settings_for(url), log) as run:
                await run.until(lambda state: state["messages_total"] > 0)
            await asyncio.wait_for(exchange.peers[0].gone.wait(), 60)
        return run

    state = uvloop.run(scenario()).last
    assert state["state"] == "stopped"
    assert state["messages_logged"] == state["messages_total"] == len(logged(log))


def test_many_products_are_spread_over_connections(log: SqliteLog) -> None:
    exchange = ScriptedExchange(stays_from_fourteen)
    products = ["A-USD", "B-USD", "C-USD", "D-USD", "E-USD"]

    async def scenario() -> dict[str, Any]:
        async with exchange.listening() as url:
            settings = settings_for(url, products=products, products_per_connection_max=2)
            async with producing(settings, log) as run:
                return await run.until(lambda state: state["connections"] == 3)

    state = uvloop.run(scenario())
    assert state["products"] == 5
    assert sorted(peer.products for peer in exchange.peers) == [products[:2], products[2:4], products[4:]]


def test_without_a_network_it_says_what_it_waits_for_and_connects_when_there_is_one(log: SqliteLog) -> None:
    async def scenario() -> None:
        async with ScriptedExchange(stays_from_fourteen).listening() as url:
            pass
        async with producing(settings_for(url), log) as run:
            with capture_logs() as lines:
                while sum(line["event"] == "waiting_for_feed" for line in lines) < 3:
                    await run.next_report()
            waiting = [line for line in lines if line["event"] == "waiting_for_feed"]
            assert {line["url"] for line in waiting} == {url}
            assert all("onnect" in line["error"] and line["retry_in_s"] <= 0.05 for line in waiting)
            assert run.last["connection_states"][0]["state"] == "waiting"
            port = int(url.rpartition(":")[2])
            async with ScriptedExchange(stays_from_fourteen).listening(port):
                await run.until(lambda state: state["trades_total"] == 1)

    uvloop.run(scenario())


async def _http(answers: list[tuple[int, Any]]) -> asyncio.Server:
    """An HTTP server that gives one answer after the other."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status, content = answers.pop(0)
        body = json.dumps(content).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        writer.close()

    return await asyncio.start_server(serve, "127.0.0.1", 0)


def _address(server: asyncio.Server) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _unheard(state: dict[str, Any]) -> None:
    """Takes reports that no test looks at."""


def _listed(*products: str) -> list[dict[str, str]]:
    return [{"id": p, "quote_currency": p.rpartition("-")[2], "status": "online"} for p in products]


def test_without_products_all_online_ones_of_the_currency_are_recorded(log: SqliteLog) -> None:
    exchange = ScriptedExchange(stays_from_fourteen)

    async def scenario() -> None:
        http = await _http([(503, []), (429, []), (200, _listed("B-USD", "A-USD", "A-EUR"))])
        rest_url = _address(http)
        async with (
            http,
            exchange.listening() as url,
            producing(settings_for(url, products=[], rest_url=rest_url), log) as run,
        ):
            await run.until(lambda state: state["trades_total"] == 1)

    with capture_logs() as lines:
        uvloop.run(scenario())
    assert exchange.peers[0].products == ["A-USD", "B-USD"]
    waiting = [line["error"] for line in lines if line["event"] == "waiting_for_products"]
    assert ["503" in waiting[0], "429" in waiting[1]] == [True, True]


def test_products_that_are_listed_later_are_recorded_too(log: SqliteLog) -> None:
    exchange = ScriptedExchange(stays_from_fourteen)

    async def scenario() -> None:
        answers = [(200, _listed("A-USD")), (404, []), (200, []), (200, _listed("A-EUR", "C-USD", "B-USD", "A-USD"))]
        http = await _http([*answers, *answers[-1:] * 100])
        feed = {"products": [], "rest_url": _address(http), "products_refresh_s": 0.05}
        async with http, exchange.listening() as url, producing(settings_for(url, **feed), log) as run:
            state = await run.until(lambda state: state["trades_total"] == 2)
            assert (state["products"], state["connections"], state["reconnects"]) == (3, 2, 0)

    with capture_logs() as lines:
        uvloop.run(scenario())
    assert [peer.products for peer in exchange.peers] == [["A-USD"], ["B-USD", "C-USD"]]
    assert [line["products"] for line in lines if line["event"] == "products_added"] == [["B-USD", "C-USD"]]
    assert len([line for line in lines if line["event"] == "products_not_refreshed"]) == 2


def test_stopping_while_waiting_for_products_is_prompt(log: SqliteLog) -> None:
    async def scenario() -> None:
        settings = settings_for("ws://127.0.0.1:1", products=[], rest_url="http://127.0.0.1:1", backoff_max_s=30)
        async with asyncio.timeout(20), producing(settings, log) as run:
            assert (await run.until(bool))["state"] == "waiting for products"

    uvloop.run(scenario())


def test_a_currency_without_products_is_the_users_mistake(log: SqliteLog) -> None:
    async def scenario() -> None:
        http = await _http([(200, _listed("A-EUR"))])
        rest_url = _address(http)
        async with http:
            settings = settings_for("ws://127.0.0.1:1", products=[], rest_url=rest_url)
            with pytest.raises(ConfigurationError, match=r"feed\.quote_currency"):
                await producer.produce(settings, log, asyncio.Event(), _unheard)

    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("feed", "text"),
    [
        ({"websocket_url": "https://ws-feed.exchange.coinbase.com"}, "feed.websocket_url"),
        ({"websocket_url": "wss://localhost:port"}, "feed.websocket_url"),
        ({"websocket_url": "ws-feed.exchange.coinbase.com"}, "feed.websocket_url"),
        ({"dialect": "both", "advanced_url": "coinbase.com"}, "feed.advanced_url"),
        ({"dialect": "advanced", "products": ["BTC-USDC"]}, "Ask for BTC-USD"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_starts(
    feed: dict[str, Any], text: str, log: SqliteLog
) -> None:
    settings = settings_for("ws://127.0.0.1:1", **feed)
    with pytest.raises(ConfigurationError, match=text):
        uvloop.run(producer.produce(settings, log, asyncio.Event(), _unheard))


async def _simulated(dialect: str, faults: str, log: SqliteLog) -> dict[str, tuple[int, int]]:
    """Records a faulty simulator for two seconds; returns the (first, last) id that it published by product."""
    options = SimulatorOptions(products=4, rate=1000, port=0, faults=Faults.parse(faults))
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(options, port.set_result, stop))
    address = f"127.0.0.1:{await port}"
    settings = settings_for(f"ws://{address}/{dialect}", dialect=dialect, products=[], rest_url=f"http://{address}")
    loop = asyncio.get_running_loop()
    async with httpx.AsyncClient(trust_env=False) as http, producing(settings, log) as run:
        await run.until(lambda state: state["reconnects"] > 0)
        ledger = (await http.post(f"http://{address}/simulator/stop_trading")).json()
        # A heartbeat a second is the witness of the last trades, and then their grace runs.
        end_s = loop.time() + 2.5
        while loop.time() < end_s:
            await run.next_report()
    stop.set()
    await serving
    return {name: (p["first_trade_id"], p["last_trade_id"]) for name, p in ledger["products"].items()}


@pytest.mark.parametrize("dialect", ["exchange", "advanced"])
def test_every_trade_that_a_faulty_exchange_published_is_in_the_log_or_reported_missing(
    dialect: str, log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "LINES_PER_REPORT_MAX", 10_000)
    faults = "drop=0.02,duplicate=0.02,garbage=0.02,disconnect=1s,oversized=500ms"
    with capture_logs() as lines:
        published = uvloop.run(_simulated(dialect, faults, log))
    reader = AdvancedDialect() if dialect == "advanced" else ExchangeDialect()
    came: dict[str, set[int]] = {product: set() for product in published}
    for key, body in logged(log):
        message = reader.read(body)
        if isinstance(message, TradesMessage) and key:
            came[key] |= {trade_id for _, trade_id in message.ids}
    reported: dict[str, list[int]] = {product: [] for product in published}
    for line in lines:
        if line["event"] == "hole_found":
            reported[line["product"]] += range(line["first_missing"], line["last_missing"] + 1)
    for product, (_, last_published) in published.items():
        # Heartbeats of the Advanced feed name no trades: what is dropped at the very end shows by the next trade.
        last = last_published if dialect == "exchange" else max(came[product])
        missing = set(range(min(came[product]), last + 1)) - came[product]
        assert sorted(missing) == sorted(reported[product]), product
    assert sum(map(len, reported.values())) > 0


def test_a_product_that_falls_silent_is_subscribed_again_and_what_it_missed_is_known(log: SqliteLog) -> None:
    async def scenario() -> dict[str, Any]:
        async with simulator(products=2, start_time_ns=None) as exchange:
            first, second = (await exchange.ledger())["products"]
            feed = {"products": [first, second], "heartbeats_missed_max": 2}
            async with producing(settings_for(f"ws://127.0.0.1:{exchange.http.base_url.port}", **feed), log) as run:
                await run.until(lambda state: state["trades_total"] > 300)
                await exchange.http.post("/simulator/faults", content=f"mute={second}@0s")
                silent = await run.until(lambda state: state["products_silent"] == 1)
                assert silent["connection_states"][0]["silent"] == [second]
                recovered = await run.until(lambda state: state["products_silent"] == 0)
                assert (recovered["connections"], recovered["reconnects"]) == (1, 0)
                await run.until(lambda state: state["ids_missing"] > 0)
        return {"silent": second}

    with capture_logs() as lines:
        expected = uvloop.run(scenario())["silent"]
    said = [(line["event"], line["product"]) for line in lines if line["event"] in ("product_silent", "hole_found")]
    assert said == [("product_silent", expected), ("hole_found", expected)]


@pytest.mark.parametrize("dialect", ["exchange", "advanced"])
def test_products_that_the_exchange_does_not_know_cost_the_others_nothing(dialect: str, log: SqliteLog) -> None:
    async def scenario() -> dict[str, Any]:
        async with simulator(products=3) as exchange:
            known = list((await exchange.ledger())["products"])
            products = [known[0], "GONE-USD", known[1], "TYPO-USD", known[2]]
            url = f"ws://127.0.0.1:{exchange.http.base_url.port}/{dialect}"
            async with producing(settings_for(url, products=products, dialect=dialect), log) as run:
                state = await run.until(lambda state: state["trades_total"] > 300)
        keys = {key for key, _ in logged(log)}
        assert keys - {""} == set(known)
        return state

    with capture_logs() as lines:
        state = uvloop.run(scenario())
    assert (state["connections"], state["reconnects"]) == (1, 0)
    (subscribed,) = (line for line in lines if line["event"] == "subscribed")
    assert (subscribed["products"], subscribed["refused"]) == (3, ["GONE-USD", "TYPO-USD"])
