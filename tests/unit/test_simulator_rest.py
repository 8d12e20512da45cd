"""REST of the simulator and its judge."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from simulator_server import Running, run, simulator

from cryptopulse.simulator import StagedEpisode
from support import orders

TRADE_FIELDS = {"time", "trade_id", "price", "size", "side"}  # those of the recorded page


async def some_trades(running: Running, count: int) -> dict[str, Any]:
    await running.has_traded(count)
    return await running.stop_trading()


def test_products_say_how_they_tick() -> None:
    async def talk() -> None:
        async with simulator(products=30) as running:
            products = {row["id"]: row for row in (await running.http.get("/products")).json()}
            assert len(products) == 30
            bitcoin = products["BTC-USD"]
            assert (bitcoin["quote_increment"], bitcoin["base_increment"]) == ("0.01", "0.00000001")
            assert (bitcoin["status"], bitcoin["quote_currency"]) == ("online", "USD")
            assert products["ZILCH-USD"]["quote_increment"] == "0.000000000001"
            assert (await running.http.get("/products/ETH-USD")).json() == products["ETH-USD"]
            assert (await running.http.get("/products/XYZ-USD")).status_code == 404

    run(talk)


def test_a_market_with_a_past_has_it_before_it_opens_and_goes_on_from_it() -> None:
    async def talk() -> None:
        options = {"past_s": 10_800, "start": "all_subscribed", "start_time_ns": None}
        async with simulator(products=2, rate=100, **options) as running:
            before = datetime.now(UTC)
            ledger = await running.ledger()
            assert ledger["trades"] == pytest.approx(7_200 * 6 + 3_600 * 0.5, rel=0.05)  # busier in the last two hours
            assert not ledger["trading"]
            past = await running.trades("BTC-USD")
            times = [datetime.fromisoformat(trade["time"]) for trade in past]
            assert times == sorted(times)
            assert timedelta(0) <= before - times[-1] < timedelta(minutes=1)
            assert timedelta(0) <= times[0] - (before - timedelta(seconds=10_800)) < timedelta(minutes=5)
            candles = (await running.http.get("/products/BTC-USD/candles", params={"granularity": 3600})).json()
            assert len(candles) in (3, 4)
            await asyncio.sleep(0.3)  # it opens later than it was made
            wanted = {"type": "subscribe", "channels": ["matches"], "product_ids": list(ledger["products"])}
            async with running.connect() as feed:
                await feed.send(json.dumps(wanted))
                await running.has_traded(ledger["trades"] + 50)
            trades = await running.trades("BTC-USD")
            assert trades[: len(past)] == past
            first = past[0]["trade_id"]
            assert [trade["trade_id"] for trade in trades] == list(range(first, first + len(trades)))
            assert datetime.fromisoformat(trades[len(past)]["time"]) >= before + timedelta(seconds=0.3)

    run(talk)


def test_pages_walk_down_with_after_and_give_every_trade_once() -> None:
    async def talk() -> None:
        async with simulator(products=1, rate=10_000) as running:
            ledger = (await some_trades(running, 1500))["products"]["BTC-USD"]
            found: list[dict[str, Any]] = []
            after = ledger["last_trade_id"] + 1
            while True:
                answer = await running.http.get("/products/BTC-USD/trades", params={"limit": 400, "after": after})
                page = answer.json()
                if not page:
                    assert "cb-after" not in answer.headers
                    break
                assert set(page[0]) == TRADE_FIELDS
                assert int(answer.headers["cb-before"]) == page[0]["trade_id"] == after - 1
                assert int(answer.headers["cb-after"]) == page[-1]["trade_id"]
                after = page[-1]["trade_id"]
                found += page
            exact = await running.trades("BTC-USD")
            assert len(exact) == ledger["count"]
            path = f"/simulator/trades/BTC-USD?from=0&to={ledger['first_trade_id'] + 4}"
            assert (await running.http.get(path)).json() == exact[:5]
            for rest, told in zip(reversed(found), exact, strict=True):
                assert rest["trade_id"] == told["trade_id"]
                assert re.fullmatch(r"\d+\.\d{8,}", rest["price"])
                assert Decimal(rest["price"]) == Decimal(told["price"])
                assert Decimal(rest["size"]) == Decimal(told["size"])
                assert (rest["side"], rest["time"]) == (told["side"], told["time"])

    run(talk)


def test_before_gives_the_newest_page_and_not_the_next() -> None:
    async def talk() -> None:
        async with simulator(products=1, rate=10_000) as running:
            ledger = (await some_trades(running, 300))["products"]["BTC-USD"]
            path = "/products/BTC-USD/trades"
            page = (await running.http.get(path, params={"before": ledger["first_trade_id"], "limit": 10})).json()
            assert [t["trade_id"] for t in page] == list(
                range(ledger["last_trade_id"], ledger["last_trade_id"] - 10, -1)
            )
            page = (await running.http.get(path, params={"before": ledger["last_trade_id"] - 3})).json()
            assert len(page) == 3
            assert (await running.http.get(path, params={"before": ledger["last_trade_id"]})).json() == []
            assert len((await running.http.get(path)).json()) == min(1000, ledger["count"])
            assert (await running.http.get(path, params={"after": "x"})).status_code == 400

    run(talk)


def test_candles_agree_with_the_trades() -> None:
    async def talk() -> None:
        async with simulator(products=1, rate=200, speed=600) as running:
            await some_trades(running, 40_000)
            trades = await running.trades("BTC-USD")
            path = "/products/BTC-USD/candles"
            candles = (await running.http.get(path, params={"granularity": 60})).json()
            assert [row[0] for row in candles] == sorted((row[0] for row in candles), reverse=True)
            first = candles[-1]
            minute = trades[0]["time"][:16]
            own = [t for t in trades if t["time"][:16] == minute]
            prices = [Decimal(t["price"]) for t in own]
            assert [Decimal(str(value)) for value in first[1:5]] == [
                min(prices),
                max(prices),
                prices[0],
                prices[-1],
            ]
            assert Decimal(str(first[5])) == pytest.approx(sum(Decimal(t["size"]) for t in own))
            one: dict[str, str | int] = {"granularity": 60, "start": candles[-1][0], "end": candles[-1][0]}
            assert (await running.http.get(path, params=one)).json() == [first]
            assert (await running.http.get(path, params={"granularity": 7})).status_code == 400
            one |= {"start": "2026-05-01T00:00:00Z", "end": "2026-05-02T00:00:00"}
            assert (await running.http.get(path, params=one)).status_code == 400

    run(talk)


def test_more_than_a_burst_of_fifteen_is_too_many() -> None:
    async def talk() -> None:
        async with simulator(rest_limit=True) as running:
            answers = await asyncio.gather(*(running.http.get("/products") for _ in range(30)))
            codes = [answer.status_code for answer in answers]
            assert 15 <= codes.count(200) <= 20
            assert codes.count(200) + codes.count(429) == 30
            assert (await running.http.get("/simulator/ledger")).status_code == 200

    run(talk)


def test_the_ledger_tells_of_episodes_once_they_began() -> None:
    async def talk() -> None:
        episodes = [StagedEpisode("ETH-USD", 30, depth_pct=2, duration_s=5), StagedEpisode("BTC-USD", 100_000)]
        async with simulator(speed=120, rate=100, episodes=episodes) as running:
            await running.ledger_when(lambda now: now["episodes"] and now["episodes"][0]["ended"])
            (played,) = (await running.stop_trading())["episodes"]
            assert (played["product"], played["kind"], played["depth_pct"]) == ("ETH-USD", "crash", 2)
            trades = await running.trades("ETH-USD")
            moving = [t for t in trades if played["start_time"] <= t["time"] <= played["end_time"]]
            assert (moving[0]["trade_id"], moving[-1]["trade_id"]) == (
                played["first_trade_id"],
                played["last_trade_id"],
            )
            assert float(moving[-1]["price"]) / float(moving[0]["price"]) < 0.987

    run(talk)


def test_unknown_paths_and_methods_are_refused() -> None:
    async def talk() -> None:
        async with simulator() as running:
            assert (await running.http.get("/nothing")).status_code == 404
            assert (await running.http.get("/simulator/nothing")).status_code == 404
            assert (await running.http.post("/products")).status_code == 405
            reader, writer = await asyncio.open_connection("127.0.0.1", running.http.base_url.port)
            writer.write(b"what is this\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
            writer.close()

    run(talk)


def test_rest_answers_as_it_is_told_and_then_rightly() -> None:
    async def talk() -> None:
        async with simulator(products=1, rate=10_000) as running:
            last = (await some_trades(running, 100))["products"]["BTC-USD"]["last_trade_id"]

            async def page() -> httpx.Response:
                return await running.http.get("/products/BTC-USD/trades", params={"limit": 3})

            right = (await page()).json()
            answers: list[dict[str, Any]] = [
                {"path": "/products", "status": 418},
                {"path": "/trades", "times": 2, "status": 302, "headers": {"location": "/"}, "body": b"moved"},
                {"reversed": True},
            ]
            rows = {"BTC-USD": {last - 1: {"time": None}}}
            told = await running.http.post("/simulator/rest", content=orders(*answers, rows=rows))
            assert told.status_code == 200
            for _ in range(2):
                moved = await page()
                assert (moved.status_code, moved.headers["location"], moved.content) == (302, "/", b"moved")
            broken = [right[0], {"time": None}, right[2]]
            assert (await page()).json() == broken[::-1]
            assert (await page()).json() == broken
            assert (await running.http.get("/products")).status_code == 418
            assert (await running.http.get("/products")).status_code == 200
            for wrong in (b"", b"[]", b'{"answers":[{"colour":1}]}', b'{"answers":[{"body":"?"}]}'):
                assert (await running.http.post("/simulator/rest", content=wrong)).status_code == 400
            await running.http.post("/simulator/rest", content=orders())
            assert (await page()).json() == right

    run(talk)
