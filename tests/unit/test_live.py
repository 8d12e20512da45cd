"""The live state: read once for all, a snapshot and then the changes, and nobody waits for who is slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from cryptopulse.lake.tables import BARS
from cryptopulse.serve.live.hub import Live
from cryptopulse.serve.live.market import FIGURES
from cryptopulse.serve.live.message import LiveMessage
from support import Lake, Trade
from support_serve import following

PATIENCE_S = 60.0


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    made = Lake(tmp_path / "lake")
    yield made
    made.close()


class LiveMarket:
    """Trades with dense ids, just now."""

    def __init__(self, lake: Lake) -> None:
        self._lake = lake
        self._ids: dict[str, int] = {}
        self._now = datetime.now(UTC) - timedelta(minutes=5)

    def trade(self, after_s: float = 1, **prices: float) -> None:
        messages = []
        self._now += timedelta(seconds=after_s)
        for base, price in prices.items():
            symbol = f"{base}-USD"
            self._ids[symbol] = self._ids.get(symbol, 0) + 1
            messages.append(Trade(symbol, self._ids[symbol], self._now, str(price)).match())
        self._lake.take_in(messages)


@pytest.fixture
def market(lake: Lake) -> LiveMarket:
    return LiveMarket(lake)


async def until(messages: AsyncIterator[LiveMessage], wanted: Callable[[LiveMessage], bool]) -> LiveMessage:
    async with asyncio.timeout(PATIENCE_S):
        async for message in messages:
            if wanted(message):
                return message
    raise AssertionError("the messages ended")


def prices(message: LiveMessage, known: dict[str, float], names: list[str]) -> dict[str, float]:
    """What is known of the prices after `message`."""
    place = FIGURES.index("price")
    if message.kind == "snapshot":
        names[:] = message.data["symbols"]
        known.update({name: row[place] for name, row in zip(names, message.data["rows"], strict=True)})
    else:
        known.update({names[int(row[0])]: row[1 + place] for row in message.data["rows"]})
    return known


def test_a_subscriber_gets_all_and_then_what_changes(lake: Lake, market: LiveMarket) -> None:
    async def main() -> None:
        market.trade(BTC=100, ETH=10)
        async with following(lake) as live, live.subscribe(["market"]) as subscription:
            messages, known, names = aiter(subscription), {}, []  # type: ignore[var-annotated]
            first = await until(messages, lambda message: bool(message.data["symbols"]))
            assert prices(first, known, names) == {"BTC-USD": 100, "ETH-USD": 10}
            await asyncio.to_thread(market.trade, ETH=11)
            await until(messages, lambda message: prices(message, known, names)["ETH-USD"] == 11)
            await asyncio.to_thread(market.trade, SOL=5)
            await until(messages, lambda message: prices(message, known, names).get("SOL-USD") == 5)
            assert known == {"BTC-USD": 100, "ETH-USD": 11, "SOL-USD": 5}

    asyncio.run(main())


def test_states_are_told_as_they_are_and_a_lake_may_come_later(lake: Lake, market: LiveMarket) -> None:
    async def main() -> None:
        async with following(lake) as live, live.subscribe(["lake"]) as subscription:
            messages = aiter(subscription)
            await until(messages, lambda message: message.data["state"] == "empty")
            await asyncio.to_thread(market.trade, BTC=100)
            filled = await until(messages, lambda message: message.data["state"] == "filled")
            assert abs(filled.data["loaded_us"] / 1e6 - time.time()) < PATIENCE_S

    asyncio.run(main())


def test_a_table_of_another_version_is_said_and_not_read(lake: Lake) -> None:
    async def main() -> None:
        DeltaTable.create(lake.settings.location.table_url(BARS), BARS.arrow_schema.remove(0))
        async with following(lake) as live, live.subscribe(["lake"]) as subscription:
            refused = await until(aiter(subscription), lambda message: message.data["state"] == "refused")
            assert "another version" in refused.data["detail"]

    asyncio.run(main())


def test_what_many_watch_is_read_and_encoded_once(lake: Lake, market: LiveMarket) -> None:
    async def main() -> None:
        market.trade(BTC=100)
        async with (
            following(lake) as live,
            live.subscribe(["market"]) as one,
            live.subscribe(["market"]) as other,
        ):
            streams = aiter(one), aiter(other)
            for stream in streams:
                await until(stream, lambda message: bool(message.data["symbols"]))
            await asyncio.to_thread(market.trade, BTC=101)
            first, second = [await until(stream, lambda message: "101.0" in message.text) for stream in streams]
            assert first is second

    asyncio.run(main())


def test_a_change_reaches_each_of_many(lake: Lake, market: LiveMarket) -> None:
    async def main() -> None:
        market.trade(BTC=100)
        async with following(lake) as live, AsyncExitStack() as stack:
            many = [await stack.enter_async_context(live.subscribe(["market"])) for _ in range(100)]
            streams = [aiter(one) for one in many]
            for stream in streams:
                await until(stream, lambda message: bool(message.data["symbols"]))
            await asyncio.to_thread(market.trade, BTC=101)
            for stream in streams:
                await until(stream, lambda message: "101.0" in message.text)

    asyncio.run(main())


def test_nothing_is_read_while_nobody_looks(lake: Lake, market: LiveMarket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryptopulse.serve.live.hub._LINGER_S", 0.05)
    market.trade(BTC=100)

    async def main() -> None:
        async with following(lake) as live:
            async with live.subscribe(["market"]) as subscription:
                await until(aiter(subscription), lambda message: bool(message.data["symbols"]))
            looks = _counted(live, monkeypatch)
            async with asyncio.timeout(PATIENCE_S):
                quiet = -1
                while len(looks) > quiet:
                    quiet = len(looks)
                    await asyncio.sleep(0.3)  # some thirty looks, if anybody did
            market.trade(BTC=102)
            async with live.subscribe(["market"]) as subscription:
                await until(aiter(subscription), lambda message: "102.0" in message.text)

    asyncio.run(main())


def _counted(live: Live, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    looks: list[float] = []
    look = live._poll

    def counted() -> float:
        looks.append(time.monotonic())
        return look()

    monkeypatch.setattr(live, "_poll", counted)
    return looks


def test_who_is_slow_gets_a_snapshot_instead_of_a_queue(lake: Lake, market: LiveMarket) -> None:
    async def main() -> None:
        market.trade(BTC=100)
        async with following(lake) as live, live.subscribe(["lake"]) as subscription:
            await until(aiter(subscription), lambda message: message.data["state"] == "filled")
            message = LiveMessage("lake", "change", {})
            subscription.take([message] * 1000)
            assert len(subscription._waiting) == 0
            again = await until(aiter(subscription), lambda _message: True)
            assert (again.kind, again.data["state"]) == ("snapshot", "filled")

    asyncio.run(main())


@pytest.mark.parametrize("grain", ["1s", "1m"])
def test_candles_come_with_their_past_and_follow_the_trades(lake: Lake, market: LiveMarket, grain: str) -> None:
    async def main() -> None:
        for step in range(3):
            market.trade(61, BTC=100 + step)
        async with following(lake) as live, live.subscribe([f"candles/BTC-USD/{grain}"]) as subscription:
            messages = aiter(subscription)
            past = await until(messages, lambda message: message.kind == "snapshot")
            close = past.data["columns"].index("close")
            assert [row[close] for row in past.data["rows"]] == [100, 101, 102]
            await asyncio.to_thread(market.trade, 1, BTC=107)
            changed = await until(messages, lambda message: message.kind == "change")
            assert changed.data["rows"][-1][close] == 107

    asyncio.run(main())


def test_a_rebuilt_lake_is_shown_as_it_is_now(lake: Lake, market: LiveMarket) -> None:
    async def main() -> None:
        market.trade(BTC=100)
        async with following(lake) as live, live.subscribe(["candles/BTC-USD/1s", "market"]) as subscription:
            messages, counts = aiter(subscription), {}  # type: ignore[var-annotated]

            def shows_both(message: LiveMessage) -> bool:
                if message.topic == "market":
                    return False
                if message.kind == "snapshot":
                    counts.clear()
                place = message.data["columns"].index("trade_count")
                counts.update({row[0]: row[place] for row in message.data["rows"]})
                return list(counts.values()) == [1, 1]

            await until(messages, lambda message: message.topic == "candles/BTC-USD/1s")
            await asyncio.to_thread(lake.rebuild)
            await asyncio.to_thread(market.trade, BTC=101)
            await until(messages, shows_both)

    asyncio.run(main())


def test_an_alert_comes_when_it_opens_and_when_it_deepens(lake: Lake, market: LiveMarket) -> None:
    async def main() -> None:
        market.trade(BTC=100)
        async with following(lake) as live, live.subscribe(["alerts"]) as subscription:
            messages = aiter(subscription)
            await until(messages, lambda _message: True)
            await asyncio.to_thread(market.trade, BTC=98.5)
            opened = await until(messages, lambda message: bool(message.data["rows"]))
            alert: dict[str, Any] = opened.data["rows"][0]
            assert (alert["symbol"], alert["state"], alert["start_price"]) == ("BTC-USD", "OPEN", "100")
            await asyncio.to_thread(market.trade, BTC=95)
            deeper = await until(messages, lambda message: bool(message.data["rows"]))
            assert (deeper.data["rows"][0]["alert_id"], deeper.data["rows"][0]["severity"]) == (
                alert["alert_id"],
                "CRITICAL",
            )

    asyncio.run(main())
