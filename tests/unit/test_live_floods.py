"""Subscribers that want too much: they get their newest wish, nobody else waits for it, and the end comes at once."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from websockets.asyncio.client import connect

from cryptopulse.serve.live import charts as live_charts
from cryptopulse.serve.live import socket as live_socket
from cryptopulse.serve.live.hub import Live
from cryptopulse.serve.live.message import LiveMessage
from cryptopulse.serve.live.socket import PATH
from support import START, Lake, Trade
from support_processes import wait_until
from support_serve import Served, following, serve_topics

PATIENCE_S = 60.0
TO_AND_FRO = (["candles/BTC-USD/1m", "market"], ["candles/ETH-USD/1m"])


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    made = Lake(tmp_path_factory.mktemp("floods") / "lake")
    made.take_in([Trade(symbol, 1, START).match() for symbol in ("BTC-USD", "ETH-USD")])
    yield made
    made.close()


async def first_of(live: Live, topic: str) -> LiveMessage:
    """The first message of `topic` to one who comes now."""
    async with asyncio.timeout(PATIENCE_S), live.subscribe([topic]) as subscription:
        async for message in subscription:
            if message.topic == topic:
                return message
    raise AssertionError("the messages ended")


def test_who_changes_its_mind_quickly_delays_nobody(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with following(lake) as live, live.subscribe() as wild:
            await first_of(live, "market")
            made, snapshot = Counter[str](), live._topics.snapshot

            def counted(*given: Any) -> Any:
                made["snapshots"] += 1
                return snapshot(*given)

            monkeypatch.setattr(live._topics, "snapshot", counted)
            for number in range(100_000):
                wild.set(TO_AND_FRO[number % 2])
            await first_of(live, "market")
            assert made["snapshots"] < 10_000  # what there is to do before a newcomer's turn was one for each change

    asyncio.run(main())


def test_of_wishes_only_the_newest_is_kept_and_those_of_who_is_gone_are_dropped(lake: Lake) -> None:
    class Blocked(Live):
        """Its thread stands still in the first poll."""

        looks, goes_on = threading.Event(), threading.Event()

        def _poll(self) -> float:
            self.looks.set()
            self.goes_on.wait(PATIENCE_S)
            return super()._poll()

    async def main() -> None:
        live = Blocked(lake.settings.location, poll_s=0.01)
        made: Counter[str] = Counter()
        snapshot = live._topics.snapshot
        live._topics.snapshot = lambda topic: (made.update([topic]), snapshot(topic))[1]  # type: ignore[method-assign]
        live.start()
        async with live.subscribe(["lake"]) as subscription:
            await asyncio.to_thread(live.looks.wait, PATIENCE_S)
            assert live.busy_s > 0
            for number in range(10_000):
                subscription.set([f"product/P{number}-USD"])
            subscription.set(["product/BTC-USD"])
            for _ in range(100):
                async with live.subscribe(["market"]):
                    pass
            assert len(live._requests) == 101  # each once
            live.goes_on.set()
            async for message in subscription:
                if message.topic == "product/BTC-USD":
                    break
        assert {name for name in made if name.startswith("product/")} == {"product/BTC-USD"}
        assert made["market"] == 0
        await asyncio.to_thread(live.close)

    asyncio.run(main())


def test_a_snapshot_is_made_once_a_version_for_all_who_come(lake: Lake) -> None:
    async def main() -> None:
        async with following(lake) as live:
            first = await first_of(live, "candles/BTC-USD/1m")
            again = [await first_of(live, "candles/BTC-USD/1m") for _ in range(20)]
            assert all(one is again[0] for one in again)
            assert json.loads(first.text) == json.loads(again[0].text)
            await asyncio.to_thread(lake.take_in, [Trade("BTC-USD", 2, START, price="102").match()])
            for _ in range(400):
                newest = await first_of(live, "candles/BTC-USD/1m")
                if newest.data["rows"][-1][4] == 102:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError("the new version is not shown")

    asyncio.run(main())


def test_who_goes_to_and_fro_between_two_charts_has_their_past_read_once(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    history_of = live_charts.history_of

    def counted(location: Any, symbol: str, *more: Any) -> Any:
        reads[symbol] += 1
        return history_of(location, symbol, *more)

    monkeypatch.setattr(live_charts, "history_of", counted)

    async def main() -> None:
        async with following(lake) as live:
            for _ in range(10):
                for symbol in ("BTC", "ETH"):
                    await first_of(live, f"candles/{symbol}-USD/1m")

    asyncio.run(main())
    assert reads == {"BTC-USD": 1, "ETH-USD": 1}


def test_topics_that_nobody_watches_any_more_are_let_go(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryptopulse.serve.live.hub._TOPIC_LINGER_S", 0.05)

    async def main() -> None:
        async with following(lake) as live, live.subscribe(["lake"]):
            await first_of(live, "candles/BTC-USD/1m")
            for number in range(1000):
                async with live.subscribe([f"product/P{number}-USD"]):
                    await asyncio.sleep(0)
            await asyncio.to_thread(
                wait_until, lambda: set(live._watchers) == {"lake"} and not live._left_at_s, "all are left"
            )
            assert not live._topics._charts._charts
            assert set(live._snapshots) <= {"lake"}

    asyncio.run(main())


def test_one_topic_that_can_not_be_made_ends_nothing_but_itself(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with following(lake) as live:
            snapshot = live._topics.snapshot

            def bad(topic: str) -> LiveMessage | None:
                if topic == "product/BTC-USD":
                    raise ZeroDivisionError
                return snapshot(topic)

            monkeypatch.setattr(live._topics, "snapshot", bad)
            async with live.subscribe(["product/BTC-USD"]):
                await first_of(live, "market")
                assert live.is_healthy

    asyncio.run(main())


def test_an_end_is_obeyed_within_a_second_or_so_whatever_is_under_way(lake: Lake) -> None:
    live = Live(lake.settings.location)
    under_way, may_end = threading.Event(), threading.Event()

    def poll(_watched: object) -> list[Any]:
        under_way.set()
        may_end.wait(PATIENCE_S)
        return []

    live._topics.poll = poll  # type: ignore[method-assign]
    live.start()

    async def watch() -> None:
        async with live.subscribe(["market"]):
            await asyncio.to_thread(under_way.wait, PATIENCE_S)
            await asyncio.wait_for(asyncio.to_thread(live.close), PATIENCE_S / 2)

    asyncio.run(watch())
    may_end.set()


@pytest.fixture
def served(lake: Lake) -> Iterator[Served]:
    served = Served(lake.path)
    serve_topics(served)
    with served:
        yield served


def test_health_knows_when_what_follows_the_lake_is_stuck(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    live: Live = served.app.state.live
    assert served.get("/healthz").json()["status"] == "ok"
    goes_on = threading.Event()
    monkeypatch.setattr(live, "_stuck_s", 0.2)
    monkeypatch.setattr(live._topics, "loaded", lambda _topic: goes_on.wait(PATIENCE_S) and None)
    live._ready("nothing")
    wait_until(lambda: served.get("/healthz").status_code == 503, "it is said")
    assert served.get("/healthz").json()["live_busy_s"] > 0.2
    assert served.get("/readyz").status_code == 503
    goes_on.set()
    wait_until(lambda: served.get("/healthz").json()["status"] == "ok", "it goes on")


def _talk(served: Served, messages: list[str]) -> list[dict[str, Any]]:
    """What a page gets that says all of `messages` at once, until one quiet moment later."""

    async def main() -> list[dict[str, Any]]:
        found = []
        async with connect(f"ws://127.0.0.1:{served.port}{PATH}", max_size=None, proxy=None) as ws:
            for message in messages:
                await ws.send(message)
            while batch := json.loads(await asyncio.wait_for(ws.recv(), PATIENCE_S)):
                found += batch
        return found

    return asyncio.run(main())


def test_a_page_that_changes_its_mind_gets_what_it_wanted_last_and_little_else(served: Served) -> None:
    _talk(served, ['{"topics": ["market"]}'])
    wishes = [json.dumps({"topics": [f"product/{'BTC' if number % 2 else 'ETH'}-USD"]}) for number in range(14)]
    found = [message["topic"] for message in _talk(served, [*wishes, '{"topics": ["market"]}'])]
    assert found[-1] == "market"
    assert len(found) < 20


def test_of_a_page_that_goes_on_talking_little_is_taken(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Counter[str] = Counter()
    decode = live_socket.msgspec.json.decode

    def counted(text: str, **more: Any) -> Any:
        taken["messages"] += 1
        return decode(text, **more)

    monkeypatch.setattr(live_socket.msgspec.json, "decode", counted)

    async def main() -> int:
        sent, end_s = 0, time.monotonic() + 2
        async with connect(f"ws://127.0.0.1:{served.port}{PATH}", max_size=None, proxy=None) as ws:
            with suppress(TimeoutError):
                async with asyncio.timeout(3):
                    while time.monotonic() < end_s:
                        await ws.send(json.dumps({"topics": TO_AND_FRO[sent % 2]}))
                        sent += 1
            ws.transport.abort()
        return sent

    began_s = time.monotonic()
    asyncio.run(main())
    assert taken["messages"] <= 15 + (time.monotonic() - began_s) * 5 + 1
    assert served.get("/healthz", timeout=2).status_code == 200
