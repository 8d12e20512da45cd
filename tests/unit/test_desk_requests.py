"""What the Alerts page asks for: evidence, episodes of the past by pages, prices, trials; and what is said when not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

import dashboard_lake
from cryptopulse.lake.tables import ALERTS
from cryptopulse.serve.desk import evidence as evidence_module
from cryptopulse.serve.desk.requests import add_requests
from cryptopulse.serve.live.episodes import plain_episodes
from support import START, Lake

END_MS = (START + 26 * dashboard_lake.HOUR).timestamp() * 1000


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    made = Lake(tmp_path_factory.mktemp("requests") / "lake")
    dashboard_lake.fill(made)
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(lake: Lake) -> Iterator[httpx.Client]:
    with served(lake) as made:
        yield made


@contextmanager
def served(lake: Lake) -> Iterator[httpx.Client]:
    """The routes over a lake, at a port of their own."""
    app = FastAPI()
    app.state.settings = lake.settings
    desk = add_requests(app)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
        yield client
    server.should_exit = True
    thread.join()
    desk.close()


def stored(lake: Lake) -> list[dict[str, Any]]:
    rows = plain_episodes(lake.arrow(ALERTS))
    return sorted(rows, key=lambda row: (row["opened_at"], row["alert_id"]), reverse=True)


def test_the_evidence_is_the_trades_that_decided_and_their_neighbours(client: httpx.Client, lake: Lake) -> None:
    for episode in stored(lake):
        found = client.post("/pages/evidence", json=episode).json()
        prices = {trade["trade_id"]: trade["price"] for trade in found["trades"]}
        times = {trade["trade_id"]: trade["event_time"] for trade in found["trades"]}
        assert prices[episode["start_trade_id"]] == episode["start_price"]
        assert prices[episode["end_trade_id"]] == episode["end_price"]
        assert times[episode["trigger_trade_id"]] == episode["opened_at"] / 1000
        assert times[episode["last_trigger_trade_id"]] == episode["last_trigger_at"] / 1000
        assert {episode["start_trade_id"] - 1, episode["start_trade_id"] + 1} <= prices.keys()
        held = {trade.trade_id: trade for trade in dashboard_lake.TRADES if trade.symbol == episode["symbol"]}
        assert {trade_id: float(price) for trade_id, price in prices.items()} == {
            trade_id: float(held[trade_id].price) for trade_id in prices
        }
        bars = [dict(zip(found["bars"]["columns"], row, strict=True)) for row in found["bars"]["rows"]]
        assert bars[0]["window_start"] <= episode["window_start"] / 1000
        assert min(bar["low"] for bar in bars) <= float(episode["end_price"]) <= max(bar["high"] for bar in bars)


@pytest.mark.parametrize("episode", [{}, {"symbol": "BTC-USD"}, {"symbol": 5, "window_start": "x"}])
def test_what_is_no_episode_is_refused(client: httpx.Client, episode: dict[str, Any]) -> None:
    answer = client.post("/pages/evidence", json=episode)
    assert (answer.status_code, answer.json()["said"]) == (400, "That is no episode.")


def test_an_episode_of_a_product_that_is_none_is_refused(client: httpx.Client, lake: Lake) -> None:
    answer = client.post("/pages/evidence", json=stored(lake)[0] | {"symbol": "'; DROP TABLE x"})
    assert answer.status_code == 400
    assert "no product id" in answer.json()["said"]


def test_pages_of_the_past_are_all_episodes_once_the_newest_first(
    client: httpx.Client, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence_module, "PAGE_ROWS", 1)
    found: list[dict[str, Any]] = []
    query: dict[str, Any] = {}
    while True:
        page = client.get("/pages/episodes", params=query).json()
        found += page["rows"]
        if page["is_last"]:
            break
        last = page["rows"][-1]
        query = {"opened_before": last["opened_at"], "id_before": last["alert_id"]}
    assert found == stored(lake)
    assert len(found) >= 3


def test_the_past_is_chosen_by_product_type_severity_rule_state_and_time(client: httpx.Client, lake: Lake) -> None:
    rows = stored(lake)
    for name, values in (
        ("symbol", ["BTC-USD"]),
        ("alert_type", ["FLASH_CRASH"]),
        ("severity", ["HIGH", "CRITICAL"]),
        ("rule", ["price-move"]),
        ("state", ["OPEN"]),
        ("symbol", ["ETH-USD"]),
    ):
        found = client.get("/pages/episodes", params={name: values}).json()["rows"]
        assert found == [row for row in rows if row[name] in values]
    middle = rows[1]["opened_at"] / 1000
    since = client.get("/pages/episodes", params={"start": middle}).json()["rows"]
    before = client.get("/pages/episodes", params={"end": middle}).json()["rows"]
    assert since == rows[:2]
    assert before == rows[2:]


@pytest.mark.parametrize("query", [{"start": "x"}, {"start": -1}, {"opened_before": 1e30}, {"symbol": ["x"] * 99}])
def test_what_can_not_be_meant_is_a_bad_request(client: httpx.Client, query: dict[str, Any]) -> None:
    assert client.get("/pages/episodes", params=query).status_code in (400, 422)


def test_prices_are_as_fine_as_a_chart_can_show(client: httpx.Client) -> None:
    fine = client.get("/pages/prices/BTC-USD", params={"start": END_MS - 300_000, "end": END_MS}).json()
    coarse = client.get("/pages/prices/BTC-USD").json()
    assert fine["grain_s"] == 1
    assert coarse["grain_s"] == 300  # 26 hours in at most 700 bars
    for prices in (fine, coarse):
        assert 10 < len(prices["bars"]["rows"]) <= 2 * evidence_module.BARS_MAX
    assert client.get("/pages/prices/NONE-USD").json()["bars"]["rows"] == []


def test_a_trial_can_be_begun_looked_at_and_ended(client: httpx.Client) -> None:
    form = {"threshold_pct": "1", "products": "BTC-USD", "types": ["FLASH_CRASH"]}
    begun = client.post("/pages/trials", json=form).json()
    deadline = time.monotonic() + 60
    while (now := client.get(f"/pages/trials/{begun['id']}").json())["state"] in ("waiting", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert now["state"] == "done"
    assert now["found"] == len(now["episodes"]) == 2
    assert client.delete(f"/pages/trials/{begun['id']}").status_code == 200
    assert client.get("/pages/trials/nothing").status_code == 404


def test_a_form_that_can_not_be_meant_is_answered_with_its_faults(client: httpx.Client) -> None:
    answer = client.post("/pages/trials", json={"threshold_pct": "-1", "products": "*"})
    assert answer.status_code == 422
    assert list(answer.json()["faults"]) == ["threshold_pct"]


def test_a_lake_that_is_empty_has_no_episodes(tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = Lake(tmp_path_factory.mktemp("requests") / "empty")
    with served(empty) as client:
        assert client.get("/pages/episodes").json() == {"rows": [], "is_last": True}
        assert client.get("/pages/prices/BTC-USD").json()["bars"]["rows"] == []
    empty.close()
