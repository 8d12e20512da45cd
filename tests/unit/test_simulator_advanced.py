"""The Advanced Trade dialect of the simulator, over real sockets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from simulator_server import receive, receive_until, run, simulator

CAPTURE = Path(__file__).parents[3] / "shared/captures/advanced-2026-08-09/recv.no_l2.jsonl"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d*[1-9])?Z")


def request(channel: str, *products: str, kind: str = "subscribe") -> str:
    return json.dumps({"type": kind, "channel": channel, "product_ids": products})


def shape(value: Any) -> Any:
    """Names and types in their order, one element for a list."""
    if isinstance(value, dict):
        return [(name, shape(item)) for name, item in value.items()]
    if isinstance(value, list):
        return [shape(value[0])]
    return type(value)


def shapes(messages: Iterable[dict[str, Any]]) -> dict[str, Any]:
    found = {}
    for message in messages:
        if message["channel"] in ("market_trades", "heartbeats"):
            found[message["channel"] + message["events"][0].get("type", "")] = shape(message)
    return found


def is_channel(name: str) -> Any:
    return lambda message: message.get("channel") == name


def test_a_snapshot_then_the_answer_then_updates_newest_first_without_a_hole() -> None:
    async def talk() -> None:
        async with simulator(rate=4000) as running, running.connect("/advanced") as client:
            await running.has_traded(200)
            await client.send(request("market_trades", "BTC-USD", "ETH-USD"))
            await client.send(request("heartbeats"))
            messages = await receive_until(client, lambda m: m["sequence_num"] == 11)
            kinds = [(m["channel"], m["events"][0].get("type")) for m in messages[:4]]
            assert kinds == [
                ("market_trades", "snapshot"),
                ("market_trades", "snapshot"),
                ("subscriptions", None),
                ("subscriptions", None),
            ]
            assert messages[3]["events"] == [
                {"subscriptions": {"heartbeats": ["heartbeats"], "market_trades": ["BTC-USD", "ETH-USD"]}}
            ]
            assert [m["sequence_num"] for m in messages] == list(range(len(messages)))
            assert len(messages[0]["events"][0]["trades"]) == 100
            updates = [m["events"][0]["trades"] for m in messages if m["channel"] == "market_trades"]
            for product in ("BTC-USD", "ETH-USD"):
                own = [trades for trades in updates if trades[0]["product_id"] == product]
                ids = [int(trade["trade_id"]) for trades in own for trade in reversed(trades)]
                assert ids == list(range(ids[0], ids[0] + len(ids)))
                assert len(own) >= 3

    run(talk)


def test_both_feeds_tell_of_the_same_trades() -> None:
    async def talk() -> None:
        async with (
            simulator(rate=2000, start="first_subscription") as running,
            running.connect("/advanced") as client,
        ):
            await client.send(request("market_trades", "BTC-USD", "ETH-USD"))
            await running.has_traded(500)
            ledger = await running.stop_trading()
            trades: dict[str, list[dict[str, str]]] = {"BTC-USD": [], "ETH-USD": []}
            while sum(map(len, trades.values())) < ledger["trades"]:
                message = await receive(client)
                for event in message["events"]:
                    for trade in reversed(event.get("trades", [])):
                        trades[trade["product_id"]].append(trade)
            for product, told in trades.items():
                exact = await running.trades(product)
                assert [(int(t["trade_id"]), t["price"], t["size"], t["side"].lower()) for t in told] == [
                    (t["trade_id"], t["price"], t["size"], t["side"]) for t in exact
                ]
                assert all(TIME.fullmatch(t["time"]) for t in told)

    run(talk)


@pytest.mark.captures
@pytest.mark.skipif(not CAPTURE.exists(), reason="the recordings of the real feeds are not here")
def test_messages_have_the_shape_of_recorded_ones() -> None:
    recorded = [json.loads(json.loads(line)["raw"]) for line in CAPTURE.read_text().splitlines()]
    go_time = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \+0000 UTC m=\+\d+\.\d{9}")

    async def talk() -> None:
        async with simulator(rate=2000) as running, running.connect("/advanced") as client:
            await running.has_traded(200)
            await client.send(request("market_trades", "BTC-USD"))
            await client.send(request("heartbeats"))
            messages = await receive_until(client, is_channel("heartbeats"))
            messages += await receive_until(
                client, lambda m: m["channel"] == "market_trades" and m["events"][0]["type"] == "update"
            )
            assert shapes(messages) == shapes(recorded)
            beats = [m for m in [*messages, *recorded] if m["channel"] == "heartbeats"]
            assert all(go_time.fullmatch(m["events"][0]["current_time"]) for m in beats)
            assert all(TIME.fullmatch(m["timestamp"]) for m in [*messages, *recorded])

    run(talk)


def test_unsubscribing_ends_updates() -> None:
    async def talk() -> None:
        async with simulator(rate=2000) as running, running.connect("/advanced") as client:
            await client.send(request("market_trades", "BTC-USD", "ETH-USD"))
            await client.send(request("heartbeats"))
            await client.send(request("market_trades", "BTC-USD", kind="unsubscribe"))
            messages = await receive_until(client, is_channel("heartbeats"))
            answers = [i for i, m in enumerate(messages) if m["channel"] == "subscriptions"]
            later = [m for m in messages[answers[2] :] if m["channel"] == "market_trades"]
            assert {m["events"][0]["trades"][0]["product_id"] for m in later} == {"ETH-USD"}

    run(talk)


@pytest.mark.parametrize(
    "wrong",
    [
        "{",
        "[]",
        request("level9", "BTC-USD"),
        request("market_trades", "XYZ-USD"),
        request("market_trades"),
        '{"type":"subscribe","channel":"market_trades","product_ids":"BTC-USD"}',
    ],
)
def test_a_bad_request_is_answered_with_an_error(wrong: str) -> None:
    async def talk() -> None:
        async with simulator() as running, running.connect("/advanced") as client:
            await client.send(wrong)
            error = await receive(client)
            assert error["type"] == "error"
            assert error["message"]

    run(talk)
