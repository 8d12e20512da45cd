"""The Exchange dialect of the simulator, over real sockets."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from simulator_server import START_NS, is_type, receive, receive_all, receive_until, run, simulator, subscribe
from websockets.exceptions import ConnectionClosed

from cryptopulse.errors import ConfigurationError
from cryptopulse.simulator.messages import iso_micros

CAPTURE = Path(__file__).parents[3] / "shared/captures/exchange-2026-07-07/messages.jsonl"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
MICROS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
DECIMAL = re.compile(r"(0|[1-9]\d*)(\.\d*[1-9])?")


def shape(message: dict[str, Any]) -> list[tuple[str, type]]:
    return [(name, type(value)) for name, value in message.items()]


def test_a_subscription_is_answered_then_the_last_trades_then_the_live_ones_without_a_hole() -> None:
    async def talk() -> None:
        async with simulator(products=3, rate=3000) as running, running.connect() as client:
            await running.has_traded(200)  # which pass unseen
            await client.send(subscribe("BTC-USD", "SOL-USD"))
            answer = await receive(client)
            assert answer == {
                "type": "subscriptions",
                "channels": [
                    {"name": "matches", "product_ids": ["BTC-USD", "SOL-USD"], "account_ids": None},
                    {"name": "heartbeat", "product_ids": ["BTC-USD", "SOL-USD"], "account_ids": None},
                ],
            }
            last = [await receive(client) for _ in range(2)]
            assert [(m["type"], m["product_id"]) for m in last] == [
                ("last_match", "BTC-USD"),
                ("last_match", "SOL-USD"),
            ]
            messages = await receive_until(client, is_type("heartbeat"))
            assert {m["product_id"] for m in messages} == {"BTC-USD", "SOL-USD"}
            for first in last:
                product = first["product_id"]
                ids = [m["trade_id"] for m in messages if m["type"] == "match" and m["product_id"] == product]
                assert ids == list(range(first["trade_id"] + 1, first["trade_id"] + 1 + len(ids)))
                assert len(ids) > 10

    run(talk)


def test_trading_starts_when_every_named_feed_has_a_subscriber_of_each_product() -> None:
    async def talk() -> None:
        feeds = ["exchange", "kraken"]
        async with (
            simulator(start="all_subscribed", start_feeds=feeds) as running,
            running.connect() as first,
            running.connect() as second,
            running.connect("/kraken") as third,
        ):
            params = {"channel": "trade", "symbol": ["BTC/USD", "ETH/USD"]}
            await third.send(json.dumps({"method": "subscribe", "params": params}))
            await first.send(subscribe("BTC-USD"))
            await receive_until(third, lambda message: message.get("result", {}).get("symbol") == "ETH/USD")
            await receive_until(first, is_type("subscriptions"))
            assert not (await running.ledger())["trading"]
            await second.send(subscribe("ETH-USD"))
            await running.has_traded(1)

    run(talk)


def is_last_heartbeat(message: dict[str, Any]) -> bool:
    """Whether it is the last of a second's heartbeats, when DOGE-USD was subscribed last."""
    return message["type"] == "heartbeat" and message["product_id"] == "DOGE-USD"


def test_the_ledger_is_what_a_client_without_faults_received() -> None:
    async def talk() -> None:
        async with (
            simulator(products=5, rate=4000, start="all_subscribed") as running,
            running.connect() as client,
        ):
            products = ["BTC-USD", "ETH-USD", "SOL-USD", "XRP-USD", "DOGE-USD"]
            assert (await running.ledger())["trading"] is False
            await client.send(subscribe(*products))
            messages = await receive_until(client, is_last_heartbeat)
            ledger = await running.stop_trading()
            # Heartbeats follow everything that was sent before them.
            messages += await receive_until(client, is_last_heartbeat)
            matches = [m for m in messages if m["type"] == "match"]
            assert ledger["trades"] == len(matches) > 300
            for product in products:
                ids = [m["trade_id"] for m in matches if m["product_id"] == product]
                assert ledger["products"][product] == {
                    "first_trade_id": ids[0],
                    "last_trade_id": ids[-1],
                    "count": len(ids),
                    "skipped_trade_ids": [],
                }
                assert ids == list(range(ids[0], ids[-1] + 1))
                exact = await running.trades(product)
                assert [(t["trade_id"], t["price"], t["size"], t["side"], t["time"]) for t in exact] == [
                    (m["trade_id"], m["price"], m["size"], m["side"], m["time"])
                    for m in matches
                    if m["product_id"] == product
                ]
            heartbeats = [m for m in messages if m["type"] == "heartbeat"]
            newest = {m["product_id"]: m["last_trade_id"] for m in heartbeats}
            assert newest == {name: entry["last_trade_id"] for name, entry in ledger["products"].items()}
            assert (await running.ledger())["trades"] == ledger["trades"]

    run(talk)


def test_two_servers_with_one_seed_send_the_same_trades_to_different_clients() -> None:
    async def collect(products: list[str], speed: float) -> list[dict[str, Any]]:
        async with (
            simulator(products=3, rate=2000, seed=11, start="first_subscription", speed=speed) as running,
            running.connect() as client,
        ):
            await client.send(subscribe(*products))
            messages: list[dict[str, Any]] = []
            while sum(m.get("product_id") == "BTC-USD" for m in messages) < 800:
                messages.append(await receive(client))
            own = [m for m in messages if m.get("product_id") == "BTC-USD" and m["type"] == "match"]
            return own[:700]

    async def compare() -> None:
        assert await collect(["BTC-USD"], 1) == await collect(["BTC-USD", "ETH-USD", "SOL-USD"], 0)

    run(compare)


def test_messages_have_the_fields_and_formats_of_the_documentation() -> None:
    async def talk() -> None:
        async with simulator(products=7, rate=5000) as running, running.connect() as client:
            await client.send(subscribe("BTC-USD", "ZILCH-USD", "SHIB-USD"))
            messages = await receive_until(client, is_type("heartbeat"))
            for match in (m for m in messages if m["type"] == "match"):
                assert UUID.fullmatch(match["maker_order_id"])
                assert UUID.fullmatch(match["taker_order_id"])
                assert MICROS.fullmatch(match["time"])
                assert DECIMAL.fullmatch(match["price"]), match["price"]
                assert DECIMAL.fullmatch(match["size"]), match["size"]
                assert match["side"] in ("buy", "sell")
            assert MICROS.fullmatch(messages[-1]["time"])
            assert any(m.get("product_id") == "ZILCH-USD" and float(m["price"]) < 1e-8 for m in messages[5:])

    run(talk)


@pytest.mark.captures
@pytest.mark.skipif(not CAPTURE.exists(), reason="the recordings of the real feeds are not here")
def test_messages_have_the_shape_of_recorded_ones() -> None:
    recorded = [json.loads(line) for line in CAPTURE.read_text().splitlines()]
    shapes = {
        m["type"]: shape(m) for m in recorded if m["type"] in ("match", "last_match", "heartbeat", "subscriptions")
    }
    channels = shape(next(m for m in recorded if m["type"] == "subscriptions")["channels"][0])

    async def talk() -> None:
        async with simulator(rate=2000) as running, running.connect() as client:
            await running.has_traded(200)
            await client.send(subscribe("BTC-USD", "ETH-USD"))
            messages = await receive_until(client, is_type("heartbeat"))
            assert {m["type"]: shape(m) for m in messages} == shapes
            assert shape(messages[0]["channels"][0]) == channels

    run(talk)


def test_a_connection_that_does_not_subscribe_in_time_is_closed() -> None:
    async def talk() -> None:
        async with simulator(subscribe_within_s=0.1) as running, running.connect() as client:
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008

    run(talk)


@pytest.mark.parametrize(
    ("request_text", "reason"),
    [
        ("{not json", "parsed"),
        ("[1,2]", "type"),
        ('{"type":["subscribe"]}', "type"),
        ('{"type":"subscribe","product_ids":["BTC-USD"],"channels":5}', "channels"),
        ('{"type":"subscribe","channels":[{"name":["matches"]}]}', "channel"),
        ('{"type":"subscribe","channels":[{"name":"matches","product_ids":[["BTC-USD"]]}]}', "product"),
        ('{"type":"weather"}', "weather is not a valid type"),
        (subscribe("XYZ-USD"), "XYZ-USD is not a valid product"),
        (subscribe("BTC-USD", channels=["level9"]), "level9 is not a valid channel"),
        ('{"type":"subscribe","product_ids":"BTC-USD","channels":["matches"]}', "not a list"),
        ('{"type":"subscribe","product_ids":[],"channels":["matches"]}', "no channels"),
    ],
)
def test_a_bad_request_is_answered_with_an_error(request_text: str, reason: str) -> None:
    async def talk() -> None:
        async with simulator() as running, running.connect() as client:
            await client.send(request_text)
            error = await receive(client)
            assert error["type"] == "error"
            assert reason in error["reason"]
            assert error["message"]

    run(talk)


def test_unsubscribing_ends_a_product_and_leaves_the_others() -> None:
    async def talk() -> None:
        async with simulator(rate=3000) as running, running.connect("/") as client:
            await client.send(subscribe("BTC-USD", "ETH-USD"))
            await receive_until(client, lambda m: m["type"] == "match")
            channels = [{"name": "matches", "product_ids": ["BTC-USD"]}]
            await client.send(json.dumps({"type": "unsubscribe", "channels": channels}))
            answer = (await receive_until(client, is_type("subscriptions")))[-1]
            assert {c["name"]: c["product_ids"] for c in answer["channels"]} == {
                "matches": ["ETH-USD"],
                "heartbeat": ["BTC-USD", "ETH-USD"],
            }
            later = await receive_until(client, is_type("heartbeat"))
            assert {m["product_id"] for m in later if m["type"] == "match"} == {"ETH-USD"}
            await client.send('{"type":"unsubscribe","channels":["heartbeat","matches"]}')
            assert (await receive_until(client, is_type("subscriptions")))[-1]["channels"] == []

    run(talk)


def test_market_time_starts_where_it_was_told_and_runs_at_its_speed() -> None:
    async def talk() -> None:
        async with (
            simulator(rate=100, speed=60, start="first_subscription") as running,
            running.connect() as client,
        ):
            await client.send(subscribe("BTC-USD"))
            started_s = time.monotonic()
            messages = await receive_until(client, lambda m: m.get("time", "") > "2026-05-28T20:27:4")
            assert time.monotonic() - started_s < 30  # not a minute
            assert messages[1]["time"].startswith("2026-05-28T20:26:4")
            assert messages[1]["time"] > iso_micros(START_NS // 1000)

    run(talk)


def test_trading_ends_after_the_number_of_trades_that_was_asked_for() -> None:
    async def talk() -> None:
        async with (
            simulator(speed=0, trades_max=12_345, products=4) as running,
            running.connect() as client,
        ):
            await client.send(subscribe("BTC-USD", "ETH-USD", "SOL-USD", "XRP-USD"))
            trades = 0
            while trades < 12_345:
                trades += is_type("match")(await receive(client))
            ledger = await running.ledger()
            assert (ledger["trades"], ledger["trading"]) == (12_345, False)

    run(talk)


def test_a_reader_that_does_not_keep_up_is_cut_off() -> None:
    async def talk() -> None:
        async with (
            simulator(rate=50_000, unsent_max_bytes=100_000) as running,
            running.connect(max_queue=1) as client,  # stops reading after two messages
        ):
            await client.send(subscribe("BTC-USD", "ETH-USD"))
            await running.has_traded(60_000)  # 17 MB, beyond what the kernel holds
            with pytest.raises(ConnectionClosed) as closed:
                await receive_all(client)
            assert closed.value.rcvd is None

    run(talk)


def test_stopping_says_goodbye() -> None:
    async def talk() -> None:
        async with simulator() as running:
            client = await running.connect()
            await client.send(subscribe("BTC-USD"))
            await receive(client)
        with pytest.raises(ConnectionClosed) as closed:
            await receive_all(client)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001

    run(talk)


def test_the_blocking_entry_says_its_address_and_stops_on_a_signal() -> None:
    code = (
        "from cryptopulse.simulator import *\n"
        "run(SimulatorOptions(port=0, products=2), on_ready=lambda port: print('port', port, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = next(line.split()[1] for line in process.stdout if line.startswith("port "))
        assert httpx.get(f"http://127.0.0.1:{port}/simulator/ledger").json()["trading"] is True
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert "simulator_stopped" in process.stdout.read()


def test_an_address_that_is_taken_is_named() -> None:
    async def talk() -> None:
        async with simulator() as running:
            with pytest.raises(ConfigurationError, match="choose another port"):
                async with simulator(port=running.http.base_url.port):
                    pass

    run(talk)
