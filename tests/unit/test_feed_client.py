"""Connections with real sockets: a scripted exchange on loopback that misbehaves, the real log."""

import asyncio
import json
from pathlib import Path
from typing import Any

import picows
import pytest
import uvloop
from feed_exchange import (
    BINARY,
    CONTINUATION,
    MB,
    TEXT,
    GatedLog,
    Peer,
    Run,
    ScriptedExchange,
    logged,
    producing,
    settings_for,
    stays_from_fourteen,
)
from structlog.testing import capture_logs

from cryptopulse import producer
from cryptopulse.errors import LogFull
from cryptopulse.log.sqlite import SqliteLog


@pytest.fixture(autouse=True)
def _frequent_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests wait for reports; a person has more time. The lake, if one is made, is the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(producer, "REPORT_INTERVAL_S", 0.02)


@pytest.fixture
def log(tmp_path: Path) -> SqliteLog:
    return SqliteLog(tmp_path / "log.db", 256 * MB)


def test_every_frame_reaches_the_log_exactly_as_it_came(log: SqliteLog) -> None:
    large = b'{"type":"snapshot","product_id":"A-USD","bids":"' + b"1" * 9 * MB + b'"}'

    async def script(peer: Peer) -> None:
        await peer.answer()
        peer.trade(7)
        peer.send(b"not json \xf0\x9f\x92\xa9")
        peer.transport.send(BINARY, b"\x00\xff\xfe")
        peer.send(b"")
        peer.send(large)
        peer.transport.send(TEXT, b'{"type":"heart', fin=False)
        peer.transport.send_ping(b"between fragments")
        peer.transport.send(CONTINUATION, b'beat","product_id"', fin=False)
        peer.transport.send(CONTINUATION, b':"A-USD"}', fin=True)

    async def scenario() -> dict[str, Any]:
        async with ScriptedExchange(script).listening() as url, producing(settings_for(url), log) as run:
            return await run.until(lambda state: state["messages_logged"] >= 7)

    state = uvloop.run(scenario())
    keys, bodies = zip(*logged(log), strict=True)
    assert json.loads(bodies[0])["type"] == "subscriptions"
    assert json.loads(bodies[1])["trade_id"] == 7
    assert list(bodies[2:6]) == ["not json 💩".encode(), b"\x00\xff\xfe", b"", large]
    assert bodies[6] == b'{"type":"heartbeat","product_id":"A-USD"}'
    assert keys == ("", "A-USD", "", "", "", "A-USD", "A-USD")
    assert (state["malformed"], state["trades_total"], state["messages_total"]) == (3, 1, 7)
    assert state["bytes_total"] == sum(map(len, bodies))
    assert state["logged_latency_p50_ms"] <= state["logged_latency_p99_ms"]


async def _leaves_after_ten(peer: Peer) -> None:
    await peer.answer()
    peer.trade(10)
    peer.transport.send_close(picows.WSCloseCode.GOING_AWAY, b"maintenance")
    peer.transport.disconnect()


async def _breaks_off(peer: Peer) -> None:
    await peer.answer()
    peer.trade(11)
    await asyncio.sleep(0)
    peer.transport.disconnect(graceful=False)


def test_a_connection_that_ends_is_replaced_and_the_hole_between_is_reported(log: SqliteLog) -> None:
    exchange = ScriptedExchange(_leaves_after_ten, stays_from_fourteen)

    async def scenario() -> dict[str, Any]:
        async with exchange.listening() as url, producing(settings_for(url), log) as run:
            return await run.until(lambda state: state["holes"] == 1)

    with capture_logs() as lines:
        state = uvloop.run(scenario())
    assert (state["reconnects"], state["ids_missing"], state["lost_messages"]) == (1, 3, 0)
    assert state["connections"] == 1
    assert state["connection_states"][0]["state"] == "live"
    (waiting,) = [line for line in lines if line["event"] == "waiting_for_feed"]
    assert waiting["error"] == "closed by the exchange: 1001 maintenance"
    (hole,) = [line for line in lines if line["event"] == "hole_found"]
    assert (hole["first_missing"], hole["last_missing"], hole["witness"]) == (11, 13, "trade")
    trades = [json.loads(body) for key, body in logged(log) if key]
    assert [trade["trade_id"] for trade in trades] == [10, 14]


def test_a_broken_socket_is_replaced_again_and_again(log: SqliteLog) -> None:
    exchange = ScriptedExchange(_breaks_off)

    async def scenario() -> dict[str, Any]:
        async with exchange.listening() as url, producing(settings_for(url), log) as run:
            return await run.until(lambda state: state["reconnects"] >= 3)

    assert uvloop.run(scenario())["holes"] == 0


def test_a_silent_connection_is_replaced_after_the_missed_heartbeats(log: SqliteLog) -> None:
    async def goes_silent(peer: Peer) -> None:
        await peer.answer()

    exchange = ScriptedExchange(goes_silent, stays_from_fourteen)

    async def scenario() -> float:
        async with exchange.listening() as url:
            started_s = asyncio.get_running_loop().time()
            async with producing(settings_for(url, heartbeats_missed_max=2), log) as run:
                await run.until(lambda state: state["trades_total"] == 1)
                return asyncio.get_running_loop().time() - started_s

    with capture_logs() as lines:
        assert 1.9 < uvloop.run(scenario()) < 4
    assert {"connection_stale", "waiting_for_feed"} <= {line["event"] for line in lines}
    assert any(line.get("error") == "no trade or heartbeat for 2 s" for line in lines)


def test_a_half_alive_connection_keeps_its_socket_and_says_which_products_are_silent_or_refused(log: SqliteLog) -> None:
    async def script(peer: Peer) -> None:
        """Refuses B-USD without naming it; C-USD says nothing before it is subscribed a second time."""
        subscribed: list[str] = []
        while True:
            while not peer.requests.empty():
                request = peer.requests.get_nowait()
                products = request["product_ids"]
                if "B-USD" in products:
                    peer.send(b'{"type":"error","message":"Failed to subscribe"}')
                elif request["type"] == "subscribe":
                    subscribed += products
                    channels = [{"name": name, "product_ids": subscribed} for name in request["channels"]]
                    peer.send(json.dumps({"type": "subscriptions", "channels": channels}).encode())
            for product in set(subscribed):
                if product != "C-USD" or subscribed.count(product) == 2:
                    peer.send(json.dumps({"type": "heartbeat", "product_id": product, "last_trade_id": 0}).encode())
            await asyncio.sleep(0.1)

    async def scenario() -> tuple[dict[str, Any], dict[str, Any]]:
        products = ["A-USD", "B-USD", "C-USD", "D-USD"]
        async with ScriptedExchange(script).listening() as url:
            chosen = settings_for(url, products=products, heartbeats_missed_max=2)
            async with producing(chosen, log) as run:
                silent = await run.until(lambda state: state["products_silent"] == 1)
                return silent, await run.until(lambda state: state["products_silent"] == 0)

    with capture_logs() as lines:
        silent, recovered = uvloop.run(scenario())
    [connection] = silent["connection_states"]
    assert (connection["state"], connection["silent"], connection["refused"]) == ("live", ["C-USD"], ["B-USD"])
    assert (recovered["connections"], recovered["products_refused"], recovered["reconnects"]) == (1, 1, 0)
    said = {line["event"]: line.get("product") for line in lines if line["event"].startswith("product_")}
    assert said == {"product_silent": "C-USD", "product_recovered": "C-USD"}


def test_a_message_over_the_size_limit_costs_the_connection_not_the_feed(log: SqliteLog) -> None:
    async def sends_too_much(peer: Peer) -> None:
        await peer.answer()
        peer.send(b"x" * (17 * MB))

    exchange = ScriptedExchange(sends_too_much, stays_from_fourteen)

    async def scenario() -> dict[str, Any]:
        async with exchange.listening() as url, producing(settings_for(url), log) as run:
            return await run.until(lambda state: state["trades_total"] == 1)

    assert uvloop.run(scenario())["reconnects"] == 1


def test_a_log_that_hangs_never_blocks_the_feed_and_the_loss_is_a_hole(log: SqliteLog) -> None:
    count = 10_000  # of 260 bytes with their overhead: more than the buffer of 1 MB holds

    async def script(peer: Peer) -> None:
        await peer.answer()
        for trade_id in range(1, count + 1):
            peer.trade(trade_id)

    async def scenario() -> dict[str, Any]:
        gated = GatedLog(log)
        async with (
            ScriptedExchange(script).listening() as url,
            producing(settings_for(url, buffer_max_mb=1), gated) as run,
        ):
            await run.until(lambda state: state["messages_total"] == count + 1)
            await run.until(lambda state: state["holes"] == 1)
            gated.gate.set()
            return await run.until(lambda state: state["messages_logged"] + state["lost_messages"] > count)

    with capture_logs() as lines:
        state = uvloop.run(scenario())
    kept = [json.loads(body)["trade_id"] for key, body in logged(log) if key]
    assert kept == list(range(1, len(kept) + 1))
    assert state["lost_messages"] == state["ids_missing"] == count - len(kept) > 0
    assert sum(line["count"] for line in lines if line["event"] == "messages_lost") == state["lost_messages"]
    (hole,) = [line for line in lines if line["event"] == "hole_found"]
    assert (hole["first_missing"], hole["last_missing"]) == (len(kept) + 1, count)
    assert hole["witness"] == "refused"


def test_a_full_log_ends_the_producer_with_that_error_and_the_loss_is_said(log: SqliteLog) -> None:
    async def scenario() -> Run:
        gated = GatedLog(log, LogFull("The log is full: trim it."))
        run = Run()
        async with ScriptedExchange(stays_from_fourteen).listening() as url:
            task = asyncio.create_task(producer.produce(settings_for(url), gated, run.stop, run.report))
            await run.until(lambda state: state["messages_total"] == 2)
            gated.gate.set()
            with pytest.raises(LogFull, match="trim it"):
                await asyncio.wait_for(task, 60)
        return run

    with capture_logs() as lines:
        run = uvloop.run(scenario())
    assert run.last["state"] == "stopped"
    assert run.last["lost_messages"] == 2
    (lost,) = [line for line in lines if line["event"] == "messages_lost"]
    assert (lost["count"], lost["log_level"]) == (2, "error")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5h://127.0.0.1:9"])
def test_a_proxy_that_is_away_is_waited_for_like_every_other_lack_of_a_network(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)

    async def scenario() -> None:
        async with producing(settings_for("wss://exchange.invalid"), log) as run:
            await run.until(lambda _state: sum(line["event"] == "waiting_for_feed" for line in lines) >= 2)

    with capture_logs() as lines:
        uvloop.run(scenario())
    assert all(line["error"] for line in lines if line["event"] == "waiting_for_feed")
