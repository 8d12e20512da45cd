"""A lake played again sends the bytes that came, in order and at their pace, and answers over REST from its tables."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from simulator_server import Running, listening, receive_all, run, subscribe
from websockets.exceptions import ConnectionClosedError

import cryptopulse
from cryptopulse import cli
from cryptopulse.lake.scan import time_range
from cryptopulse.playback import PlaybackOptions, serve
from support import Lake, Message, Trade, advanced, at, message, page

BTC, ETH = "BTC-USD", "ETH-USD"


def heartbeat(symbol: str, last: int, seconds: float) -> Message:
    body = {"type": "heartbeat", "last_trade_id": last, "product_id": symbol, "time": "2026-07-07T12:00:00.000000Z"}
    return message(json.dumps(body).encode(), key=symbol, received=at(seconds))


MESSAGES = [
    message(b'{"type":"subscriptions","channels":[]}', received=at(0)),
    Trade(BTC, 100, at(0), price="62893.10").match("last_match"),
    heartbeat(BTC, 100, 0.1),
    Trade(ETH, 7, at(0.2), price="1900.5").match(),
    *(Trade(BTC, n, at(n / 100), price=f"{62_000 + n}.5", size="1e-8").match() for n in range(102, 160)),
    page([Trade(BTC, 101, at(1.01), price="62001.5", size="0.5", source="rest")]),
    message(b'{"type":"match", broken', key=BTC, received=at(2)),
    message(b'{"channel":"subscriptions","events":[]}', received=at(2)),
    advanced([Trade(ETH, 8, at(3)), Trade(ETH, 9, at(3))]) | {"received_time": at(3)},
    heartbeat(ETH, 9, 4),
    heartbeat(BTC, 159, 65),
]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Lake(tmp_path_factory.mktemp("playback") / "lake")
    for place in range(0, len(MESSAGES), 20):
        made.take_in(MESSAGES[place : place + 20])
    made.close()
    return made.path


@asynccontextmanager
async def playback(
    lake: Path, start: datetime | None = None, end: datetime | None = None, **options: Any
) -> AsyncIterator[Running]:
    chosen = PlaybackOptions(*time_range(start, end), **{"port": 0, "speed": 0.0} | options)
    with cryptopulse.open(lake) as reader:
        async with listening(lambda ready, stop: serve(reader, chosen, lambda port, _: ready(port), stop)) as running:
            yield running


async def received(running: Running, count: int, *requests: str, path: str = "/exchange") -> list[bytes]:
    """The first messages that a client gets, without the answers to its requests; no other comes soon after."""
    async with running.connect(path) as client:
        for request in requests:
            await client.send(request)
            assert b'"subscriptions"' in await client.recv(decode=False)
        found = [await client.recv(decode=False) for _ in range(count)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.recv()
        return found


def sent(
    *symbols: str, start: float = 0, end: float = 100, kinds: tuple[bytes, ...] = (b"match", b"heart")
) -> list[bytes]:
    """What the Exchange feed sent, as it came."""
    return [
        one["body"]
        for one in MESSAGES[1:]
        if one["partition_key"] in symbols
        and one["source"] == "websocket"
        and at(start) <= one["received_time"] < at(end)
        and any(kind in one["body"] for kind in kinds)
    ]


def test_a_window_is_the_same_bytes_in_the_same_order(lake: Path) -> None:
    async def talk() -> None:
        for first, end in ((0.0, 100.0), (1.05, 1.3)):
            expected = sent(BTC, ETH, start=first, end=end)
            async with playback(lake, at(first), at(end)) as running:
                assert await received(running, len(expected), subscribe(BTC, ETH)) == expected
        assert len(sent(BTC, ETH)) == len(MESSAGES) - 4

    run(talk)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (subscribe(ETH), sent(ETH)),
        (subscribe(BTC, channels=["matches"]), sent(BTC, kinds=(b"match",))),
        (subscribe(BTC, channels=["heartbeat"]), sent(BTC, kinds=(b"heart",))),
        (json.dumps({"type": "subscribe", "channels": [{"name": "matches", "product_ids": [ETH]}]}), sent(ETH)[:1]),
    ],
)
def test_a_client_gets_what_it_subscribed_to(lake: Path, request_: str, expected: list[bytes]) -> None:
    async def talk() -> None:
        async with playback(lake) as running:
            assert await received(running, len(expected), request_) == expected

    run(talk)


def test_the_other_feed_has_its_own_messages(lake: Path) -> None:
    async def talk() -> None:
        async with playback(lake) as running:
            asked = json.dumps({"type": "subscribe", "channel": "market_trades", "product_ids": [ETH]})
            assert await received(running, 1, asked, path="/advanced") == [MESSAGES[-3]["body"]]

    run(talk)


def test_the_pace_is_that_of_receipt_times_the_speed_and_a_late_client_joins_the_present(lake: Path) -> None:
    async def talk() -> None:
        expected = sent(BTC, start=1.0, end=1.6, kinds=(b"match",))
        async with playback(lake, at(1), at(1.6), speed=0.5) as running, running.connect() as client:
            began = time.monotonic()
            await client.send(subscribe(BTC, channels=["matches"]))
            await client.recv()
            for place, body in enumerate(expected):
                assert await client.recv(decode=False) == body
                took_s = time.monotonic() - began
                assert took_s >= (place * 0.01) / 0.5 - 0.02
                if place == len(expected) // 2:
                    async with running.connect() as late:
                        await late.send(subscribe(BTC, channels=["matches"]))
                        await late.recv()
                        assert expected.index(await late.recv(decode=False)) >= place

    run(talk)


def matches(*symbols: str, kind: str = "subscribe") -> str:
    return json.dumps({"type": kind, "product_ids": symbols, "channels": ["matches"]})


@pytest.mark.parametrize("speed", [0.0, 1.0, 1_000.0])
def test_who_subscribes_to_more_or_less_misses_nothing_and_gets_nothing_twice(lake: Path, speed: float) -> None:
    async def talk() -> None:
        async with playback(lake, at(1), at(1.6), speed=speed) as running, running.connect() as client:
            for request in (matches(BTC), matches(ETH), matches(ETH, kind="unsubscribe"), matches(BTC)):
                await client.send(request)
                await asyncio.sleep(0.1)
            expected = sent(BTC, start=1, end=1.6, kinds=(b"match",))
            found: list[bytes] = []
            with suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.2 if len(found) >= len(expected) else None):
                        body = await client.recv(decode=False)
                    found += [] if b'"subscriptions"' in body else [body]
            assert found == expected

    run(talk)


def test_at_speed_0_a_connection_goes_on_where_its_products_were_left(lake: Path) -> None:
    async def talk() -> None:
        async with playback(lake) as running:
            expected = sent(BTC, ETH)
            assert await received(running, len(sent(ETH)), subscribe(ETH)) == sent(ETH)
            assert await received(running, len(sent(BTC)), subscribe(BTC)) == sent(BTC)
            assert await received(running, 0, subscribe(BTC, ETH)) in ([], expected[-1:])

    run(talk)


def test_what_it_does_not_have_is_refused(lake: Path) -> None:
    async def talk() -> None:
        async with playback(lake, products=[BTC]) as running, running.connect() as client:
            for request, reason in (
                (subscribe(ETH), "ETH-USD is not a valid product"),
                (subscribe(BTC, channels=["level2"]), "level2 is not a valid channel"),
                (json.dumps({"type": "buy"}), "buy is not a valid type"),
                ("[]", "can't be understood"),
                ("no JSON", "can't be understood"),
                ('{"type":"subscribe","channels":[7]}', "can't be understood"),
                ('{"type":"subscribe","channels":[{"names":1}]}', "can't be understood"),
                ('{"type":"subscribe","channels":["matches"],"product_ids":[[]]}', "[] is not a valid product"),
            ):
                await client.send(request)
                told = json.loads(await client.recv())
                assert told["type"] == "error"
                assert reason in told["reason"]

    run(talk)


def test_a_lake_that_is_gone_ends_the_connection(lake: Path, tmp_path: Path) -> None:
    async def talk() -> None:
        copy = Path(shutil.copytree(lake, tmp_path / "copy"))
        async with playback(copy) as running, running.connect() as client:
            shutil.rmtree(copy / "bronze")
            await client.send(subscribe(BTC))
            with pytest.raises(ConnectionClosedError, match="1011"):
                await receive_all(client)

    run(talk)


def test_rest_pages_are_those_of_the_tables_up_to_the_time_played(lake: Path) -> None:
    async def talk() -> None:
        async with playback(lake) as running:
            get = running.http.get
            assert [row["id"] for row in (await get("/products")).json()] == [BTC, ETH]
            assert (await get("/products/BTC-USD")).json()["quote_currency"] == "USD"
            assert [row["trade_id"] for row in (await get("/products/BTC-USD/trades")).json()] == [100]
            assert (await get("/products/BTC-USD/candles")).json() == []
            await received(running, len(sent(BTC, ETH)), subscribe(BTC, ETH))
            answer = await get("/products/BTC-USD/trades", params={"limit": 3, "after": 104})
            assert [row["trade_id"] for row in answer.json()] == [103, 102, 101]
            assert (answer.headers["cb-before"], answer.headers["cb-after"]) == ("103", "101")
            assert answer.json()[2] == {
                "time": "2026-07-07T12:00:01.010000Z",
                "trade_id": 101,
                "price": "62001.5",
                "size": "0.5",
                "side": "sell",
            }
            rows = (await get("/products/BTC-USD/trades", params={"before": 157})).json()
            assert [(row["trade_id"], row["size"]) for row in rows] == [(159, "0.00000001"), (158, "0.00000001")]
            ((opened, low, high, *_),) = (await get("/products/BTC-USD/candles")).json()
            assert (opened, low, high) == (int(at(0).timestamp()), 62001.5, 62893.1)
            assert (await get("/products/BTC-USD/candles", params={"granularity": 300})).json() == []  # not over
            assert (await get("/products/BTC-USD/candles", params={"start": "2027-01-01"})).json() == []
            assert (await get("/products/BTC-USD/candles", params={"start": 9, "end": 8})).status_code == 400
            assert len((await get("/products/BTC-USD/trades", params={"after": "9" * 40})).json()) == 60
            assert (await get("/products/BTC-USD/candles", params={"granularity": 7})).status_code == 400
            assert (await get("/products/BTC-USD/candles", params={"end": "soon"})).status_code == 400
            assert (await get("/products/BTC-USD/candles", params={"end": int(at(0).timestamp()) - 60})).json() == []
            assert (await get("/products/BTC-USD/trades", params={"after": "x"})).status_code == 400
            assert (await get("/products/DOGE-USD/trades")).status_code == 404

    run(talk)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--from", "2027-01-01"], "no messages from that time"),
        (["--products", "DOGE-USD"], "no trades of DOGE-USD"),
        (["--from", "2026-07-08", "--to", "2026-07-07"], "lies before"),
        (["--from", "soon"], "soon"),
        (["--speed", "-1"], "Speed -1.0: give 0"),
        (["--speed", "nan"], "Speed nan: give 0"),
        (["--speed", "1e300"], "to 1,000,000"),
        (["--host", "192.0.2.1"], "Can't listen on 192.0.2.1:8766"),
        (["--host", "a..b"], "no name of a host"),
    ],
)
def test_a_mistake_is_one_line(lake: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    assert cli.run(["playback", "--lake", str(lake), *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
