"""The stream of events: alerts that come while one listens, resumed over restarts; prices; ends that are told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cryptopulse.serve.api import events, streaming
from support_notify import Market
from support_serve import Served


class Listener:
    """One who listens; gives the events one by one."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()
        self.comments = 0

    def __iter__(self) -> Iterator[tuple[str, str | None, Any]]:
        kind, number, data = "", None, ""
        for line in self._lines:
            if line.startswith(":"):
                self.comments += 1
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "id":
                number = value
            elif name == "data":
                data = value
            elif not line and data:
                yield kind, number, json.loads(data)
                kind, number, data = "", None, ""

    def wait_for(self, kind: str, fits: Callable[[Any], bool] = lambda _data: True) -> tuple[str | None, Any]:
        """The id and data of the next event that fits."""
        for found, number, data in self:
            if found == kind and fits(data):
                return number, data
        raise AssertionError(f"the stream ended without {kind}")


@contextmanager
def listening(served: Served, last_event_id: str | None = None, **parameters: Any) -> Iterator[Listener]:
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    with (
        served.browser() as browser,
        browser.stream("GET", "/api/events", params=parameters, headers=headers, timeout=20) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Listener(response)


@pytest.fixture
def market(market: Market) -> Market:
    market.trade(BTC=100, ETH=50)
    return market


@pytest.fixture
def served(market: Market) -> Iterator[Served]:
    with Served(market.lake.path) as served:
        yield served


def test_an_alert_comes_while_one_listens_as_the_api_tells_it_and_changes_come_too(
    market: Market, served: Served
) -> None:
    with listening(served, kind="alerts") as listener:
        listener.wait_for("lake", lambda data: data["state"] == "filled")
        (alert_id,) = market.crash("BTC")
        _, opened = listener.wait_for("alert")
        assert (opened["alert_id"], opened["state"]) == (alert_id, "OPEN")
        assert [opened] == served.get("/api/alerts").json()["data"]
        market.calm_down()
        _, closed = listener.wait_for("alert")
        assert (closed["alert_id"], closed["state"]) == (alert_id, "CLOSED")


def test_who_comes_back_gets_all_that_has_changed_since_also_from_another_server(market: Market) -> None:
    with Served(market.lake.path) as served, listening(served, kind="alerts") as listener:
        listener.wait_for("lake", lambda data: data["state"] == "filled")
        market.crash("BTC")
        last_id, _ = listener.wait_for("alert")
        assert last_id is not None
    missed = market.crash("ETH", "SOL")
    with Served(market.lake.path) as served, listening(served, last_id, kind="alerts") as listener:
        found = [next(event for event in listener if event[0] == "alert") for _ in range(3)]
        told = {data["alert_id"]: data["state"] for _, _, data in found}
        assert set(missed) < set(told)
        assert told.pop(next(iter(set(told) - set(missed)))) == "CLOSED"  # that of BTC, meanwhile
        # Those of one commit have one id, and only the last of them says it.
        numbers = [number for _, number, _ in found]
        assert numbers[-1] is not None
        assert len([number for number in numbers if number]) < len(numbers)
        market.calm_down()
        _, closed = listener.wait_for("alert")
        assert closed["state"] == "CLOSED"


def test_who_comes_first_is_told_of_what_is_open(market: Market, served: Served) -> None:
    market.crash("BTC")
    market.calm_down()
    (open_one,) = market.crash("ETH")
    with listening(served, kind="alerts") as listener:
        assert listener.wait_for("alert")[1]["alert_id"] == open_one


def test_an_id_of_the_future_hides_nothing_that_comes(market: Market, served: Served) -> None:
    with listening(served, "99999999999999999", kind="alerts") as listener:
        listener.wait_for("lake", lambda data: data["state"] == "filled")
        (alert_id,) = market.crash("BTC")
        assert listener.wait_for("alert")[1]["alert_id"] == alert_id


def test_only_what_was_asked_for_comes(market: Market, served: Served) -> None:
    with listening(served, symbol="ETH-USD") as listener:
        listener.wait_for("prices")
        market.crash("BTC")
        (alert_id,) = market.crash("ETH")
        for kind, _, data in listener:
            if kind == "prices":
                assert {row["symbol"] for row in data["prices"]} == {"ETH-USD"}
            if kind == "alert":
                assert data["alert_id"] == alert_id
                break


def test_prices_come_exactly_as_they_change(market: Market, served: Served) -> None:
    with listening(served, kind="prices") as listener:
        _, first = listener.wait_for("prices")
        assert {row["symbol"]: float(row["price"]) for row in first["prices"]} == {"BTC-USD": 100, "ETH-USD": 50}
        market.trade(BTC=101.2345)
        _, changed = listener.wait_for("prices", lambda data: any(row["price"] == "101.2345" for row in data["prices"]))
        assert changed["time"].endswith("Z")
        market.trade(SOL=7)
        listener.wait_for("prices", lambda data: any(row["symbol"] == "SOL-USD" for row in data["prices"]))


@pytest.mark.parametrize("number", ["abc", "-1", "1.5", "9" * 40, "1%0a"])
def test_an_id_that_is_none_is_refused(served: Served, number: str) -> None:
    answer = served.get("/api/events", headers={"Last-Event-ID": number})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_parameter")


def test_a_quiet_stream_is_kept_open_by_comments(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUIET_S", 0.1)
    with listening(served, kind="alerts") as listener:
        started_s = time.monotonic()
        for line in listener.response.iter_lines():
            listener.comments += line.startswith(":")
            if listener.comments == 5:
                break
        assert time.monotonic() - started_s >= 0.4


def test_the_end_of_the_server_is_told_and_who_listens_does_not_hold_it_up(market: Market) -> None:
    with Served(market.lake.path) as served, listening(served) as listener:
        listener.wait_for("prices")
        served.end_events()
        assert listener.wait_for("end")[1] == {"reason": "the server ends"}
        assert list(listener) == []


def test_no_more_than_a_bounded_number_listen_and_the_rest_is_told_when_to_come_back(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "STREAMS_MAX", 2)
    monkeypatch.setattr(events, "FULL_S", 0.1)
    with listening(served) as first, listening(served) as second:
        for listener in (first, second):
            listener.wait_for("lake")
        full = served.get("/api/events")  # any other status, and a browser never comes back
        assert (full.status_code, full.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert 15_000 <= int(full.text.splitlines()[0].removeprefix("retry: ")) <= 45_000
        assert "2 listen already" in full.text
        assert 'cryptopulse_http_connections_open{kind="events"} 2.0' in served.get("/metrics").text
    deadline_s = time.monotonic() + 10
    while 'cryptopulse_http_connections_open{kind="events"} 0.0' not in served.get("/metrics").text:
        assert time.monotonic() < deadline_s, "who has gone still counts"
    with listening(served) as again:
        again.wait_for("lake")


def test_a_hundred_that_come_back_at_once_are_all_served(market: Market) -> None:
    market.crash("BTC")

    async def hear(client: httpx.AsyncClient) -> str:
        async with client.stream("GET", "/api/events", params={"kind": "alerts"}) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("event: alert"):
                    return line
        raise AssertionError("it ended")

    async def all_of_them(url: str) -> None:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30, limits=limits) as client:
            await asyncio.gather(*(hear(client) for _ in range(100)))

    with Served(market.lake.path, queries_at_once=1) as served:
        asyncio.run(all_of_them(served.url))


def test_a_lake_that_is_gone_is_told_in_the_stream_so_that_a_browser_comes_back(
    market: Market, served: Served, tmp_path: Path
) -> None:
    assert served.get("/api/alerts").status_code == 200
    market.lake.path.rename(tmp_path / "elsewhere")
    answer = served.get("/api/events")
    assert answer.status_code == 200
    assert answer.text.startswith("retry: ")
    assert "event: end" in answer.text
    assert "is gone" in answer.text


def test_a_product_that_there_is_not_is_no_reason_to_come_back(served: Served) -> None:
    assert served.get("/api/events", params={"symbol": "NOPE-USD"}).status_code == 404


def test_who_does_not_read_is_left(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's side alone: a connection whose buffers are full takes nothing more."""
    monkeypatch.setattr(streaming, "UNREAD_S", 0.2)
    served = Served(market.lake.path)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/api/events",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "scheme": "http",
        "server": ("127.0.0.1", 80),
    }
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(3600)

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) > 2:
            await asyncio.sleep(3600)

    async def listen() -> float:
        served.app.state.live.start()
        started_s = time.monotonic()
        await asyncio.wait_for(served.app(scope, receive, send), 60)
        await asyncio.to_thread(served.app.state.live.close)
        return time.monotonic() - started_s

    assert asyncio.run(listen()) < 5
    assert served.app.state.events.listeners == 0
