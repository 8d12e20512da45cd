"""Each fault is visible to a real client, and to nobody when it is not asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from simulator_server import Running, is_type, receive, receive_all, receive_until, run, simulator, subscribe
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from cryptopulse.errors import ConfigurationError
from cryptopulse.simulator import Faults


def options(faults: str, **more: Any) -> dict[str, Any]:
    return {"products": 1, "rate": 4000, "start": "first_subscription", "faults": Faults.parse(faults)} | more


async def match_ids(running: Running, client: ClientConnection) -> tuple[list[int], list[int]]:
    """Ids of received matches in their order, and those of the ledger."""
    await client.send(subscribe("BTC-USD"))
    messages = await receive_until(client, is_type("heartbeat"))
    ledger = (await running.stop_trading())["products"]["BTC-USD"]
    messages += await receive_until(client, is_type("heartbeat"))
    ids = [m["trade_id"] for m in messages if m["type"] == "match"]
    return ids, list(range(ledger["first_trade_id"], ledger["last_trade_id"] + 1))


def test_dropped_trades_are_missing_on_the_socket_and_not_on_rest() -> None:
    async def talk() -> None:
        async with simulator(**options("drop=0.1")) as running, running.connect() as client:
            received, published = await match_ids(running, client)
            missing = set(published) - set(received)
            assert received == [i for i in published if i not in missing]
            assert 0.03 < len(missing) / len(published) < 0.25
            lost = min(missing)
            page = await running.http.get("/products/BTC-USD/trades", params={"after": lost + 1, "limit": 1})
            assert [trade["trade_id"] for trade in page.json()] == [lost]

    run(talk)


def test_duplicated_trades_come_twice() -> None:
    async def talk() -> None:
        async with simulator(**options("duplicate=0.1")) as running, running.connect() as client:
            received, published = await match_ids(running, client)
            assert sorted(set(received)) == published
            assert 0.03 < len(received) / len(published) - 1 < 0.25

    run(talk)


def test_reordered_trades_all_come_but_not_in_their_order() -> None:
    async def talk() -> None:
        async with simulator(**options("reorder=0.1")) as running, running.connect() as client:
            received, published = await match_ids(running, client)
            assert sorted(received) == published
            assert received != published
            late = [place - published.index(i) for place, i in enumerate(received)]
            assert 1 <= max(late) <= 5

    run(talk)


def test_faults_do_not_change_the_market() -> None:
    async def trades(faults: str) -> list[dict[str, Any]]:
        async with (
            simulator(**options(faults, speed=0, trades_max=2000)) as running,
            running.connect() as client,
        ):
            await client.send(subscribe("BTC-USD"))
            await running.has_traded(2000)
            return await running.trades("BTC-USD")

    async def compare() -> None:
        assert await trades("") == await trades("drop=0.3,reorder=0.3,garbage=0.1")

    run(compare)


def kind_of(message: bytes) -> str:
    """Which garbage a message is, or `match`."""
    if message == bytes(range(256)):
        return "binary"
    try:
        content = json.loads(message)
    except UnicodeDecodeError:
        return "invalid UTF-8"
    except ValueError:
        return "malformed"
    if content["type"] != "match" or isinstance(content["trade_id"], str):
        return {"weather": "unknown type", "match": "wrong types"}.get(content["type"], "other")
    return "huge number" if content["trade_id"] > 10**300 else "match"


def test_garbage_is_of_every_kind_and_replaces_no_trade() -> None:
    async def talk() -> None:
        async with simulator(**options("garbage=0.05")) as running, running.connect() as client:
            await client.send(subscribe("BTC-USD"))
            kinds = set()
            ids = []
            while len(kinds - {"match", "other"}) < 6:
                # Undecoded: invalid UTF-8 must reach the reader too.
                message = await client.recv(decode=False)
                kind = kind_of(message)
                kinds.add(kind)
                if kind == "match":
                    ids.append(json.loads(message)["trade_id"])
            assert ids == list(range(ids[0], ids[0] + len(ids)))

    run(talk)


def test_a_connection_is_cut_without_a_word() -> None:
    async def talk() -> None:
        async with simulator(**options("disconnect=200ms")) as running:
            for _ in range(2):
                async with running.connect() as client:
                    await client.send(subscribe("BTC-USD"))
                    with pytest.raises(ConnectionClosed) as closed:
                        await receive_all(client)
                    assert closed.value.rcvd is None

    run(talk)


def test_silence_keeps_the_connection_open_and_says_nothing_while_new_ones_work() -> None:
    async def talk() -> None:
        async with simulator(**options("silence=300ms+500ms")) as running, running.connect() as client:
            await client.send(subscribe("BTC-USD"))
            longest, last, fresh = 0.0, time.monotonic(), False
            while longest < 0.4:
                await client.recv()
                now = time.monotonic()
                longest, last = max(longest, now - last), now
                if not fresh:
                    async with running.connect() as other:
                        await other.send(subscribe("BTC-USD"))
                        await other.recv()
                        fresh = True
            assert longest < 0.8
            await receive_until(client, is_type("match"))

    run(talk)


def test_faults_of_one_connection_leave_the_others_alone() -> None:
    async def talk() -> None:
        async with (
            simulator(**options("drop=1,disconnect=300ms,only=0")) as running,
            running.connect() as struck,
            running.connect() as spared,
        ):
            for client in (struck, spared):
                await client.send(subscribe("BTC-USD"))
            got = []
            with contextlib.suppress(ConnectionClosed):
                while True:
                    got.append((await receive(struck))["type"])
            assert set(got) <= {"subscriptions", "last_match", "heartbeat"}
            received, published = await match_ids(running, spared)
            assert received[-1000:] == published[-1000:]

    run(talk)


def test_a_skipped_id_is_nowhere() -> None:
    async def talk() -> None:
        async with simulator(**options("skip=0.1")) as running, running.connect() as client:
            received, published = await match_ids(running, client)
            ledger = (await running.ledger())["products"]["BTC-USD"]
            skipped = ledger["skipped_trade_ids"]
            assert 0.03 < len(skipped) / len(published) < 0.25
            assert sorted(received + skipped) == published
            assert ledger["count"] == len(received) == (await running.ledger())["trades"]
            assert [trade["trade_id"] for trade in await running.trades("BTC-USD")] == received
            page = await running.http.get("/products/BTC-USD/trades", params={"limit": 300})
            assert [trade["trade_id"] for trade in page.json()] == received[:-301:-1]

    run(talk)


def test_stale_pages_are_those_of_some_seconds_ago() -> None:
    async def talk() -> None:
        async with simulator(**options("rest-stale=1s")) as running, running.connect() as client:
            _, published = await match_ids(running, client)
            path = "/products/BTC-USD/trades"
            page = (await running.http.get(path, params={"limit": 1})).json()
            assert page[0]["trade_id"] < published[-1]
            while page[0]["trade_id"] != published[-1]:
                page = (await running.http.get(path, params={"limit": 1})).json()
            assert (await running.ledger())["rest_requests"]["trades"] > 1

    run(talk)


def test_an_oversized_message_has_megabytes() -> None:
    async def talk() -> None:
        async with simulator(**options("oversized=200ms")) as running, running.connect() as client:
            await client.send(subscribe("BTC-USD"))
            sizes = [len(await client.recv())]
            while sizes[-1] < 5_000_000:
                sizes.append(len(await client.recv()))
            await receive_until(client, is_type("match"))

    run(talk)


def test_rest_fails_in_each_way() -> None:
    async def talk() -> None:
        async with simulator(products=1) as running:

            async def with_faults(text: str) -> httpx.Response:
                assert (await running.http.post("/simulator/faults", content=text)).json() == {"faults": text}
                return await running.http.get("/products")

            assert (await with_faults("rest-429=1")).status_code == 429
            assert (await with_faults("rest-500=1")).status_code == 500
            started = time.monotonic()
            assert (await with_faults("rest-slow=0.2s")).status_code == 200
            assert time.monotonic() - started >= 0.2
            with pytest.raises(httpx.RemoteProtocolError):
                await with_faults("rest-truncated=1")
            assert (await with_faults("")).status_code == 200
            refused = await running.http.post("/simulator/faults", content="flood=1")
            assert refused.status_code == 400
            assert "flood" in refused.json()["message"]

    run(talk)


def test_faults_can_be_changed_while_running() -> None:
    async def talk() -> None:
        async with simulator(**options("drop=1")) as running, running.connect() as client:
            await client.send(subscribe("BTC-USD"))
            messages = await receive_until(client, is_type("heartbeat"))
            assert not any(m["type"] == "match" for m in messages)
            await running.http.post("/simulator/faults", content="")
            await receive_until(client, is_type("match"))

    run(talk)


@pytest.mark.parametrize("path", ["/exchange", "/advanced"])
def test_a_muted_product_comes_again_when_it_is_subscribed_again(path: str) -> None:
    def asked(*products: str) -> str:
        if path == "/exchange":
            return subscribe(*products)
        return json.dumps({"type": "subscribe", "channel": "market_trades", "product_ids": products})

    def names(product: str) -> Callable[[dict[str, Any]], bool]:
        return lambda message: message.get("type") != "subscriptions" and product in json.dumps(message)

    async def talk() -> None:
        async with simulator(products=2, rate=2000) as running, running.connect(path) as client:
            await client.send(asked("BTC-USD", "ETH-USD"))
            await receive_until(client, names("BTC-USD"))
            await running.http.post("/simulator/faults", content="mute=BTC-USD@0s")
            async with asyncio.timeout(60):
                while any(map(names("BTC-USD"), [await receive(client) for _ in range(20)])):
                    pass
            await client.send(asked("BTC-USD"))
            await receive_until(client, names("BTC-USD"))
            refused = await running.http.post("/simulator/faults", content="mute=NO-USD@0s")
            assert (refused.status_code, refused.json()) == (400, {"message": "Fault mute: NO-USD is not traded here."})

    run(talk)


def test_faults_are_read_from_and_written_to_their_short_form() -> None:
    text = "skip=0.001,only=2,drop=0.01,duplicate=0.05,reorder=1,garbage=0.001,disconnect=30s,silence=20s+10s"
    text += ",mute=BTC-USD@5s,oversized=60s,rest-429=0.2,rest-500=0.1,rest-slow=2s,rest-stale=3s,rest-truncated=0.3"
    faults = Faults.parse(text)
    assert str(faults) == text
    assert faults.silence == (20.0, 10.0)
    assert Faults.parse(" drop=0.5 , disconnect=2m ") == Faults(drop=0.5, disconnect=120.0)
    assert Faults.parse("") == Faults()


@pytest.mark.parametrize(
    "wrong",
    [
        "lightning=1",
        "drop",
        "drop=2",
        "drop=x",
        "disconnect=30",
        "disconnect=1.1.1s",
        "silence=3s",
        "only=-1",
        "mute=BTC-USD",
    ],
)
def test_faults_that_can_not_be_are_refused_by_name(wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong.partition("=")[0]):
        Faults.parse(wrong)
