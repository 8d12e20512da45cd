"""What the Alerts page asks for: evidence, episodes of the past by pages, prices, trials; and what is said when not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

import dashboard_lake
from cryptopulse.lake.dataset import Lake as Dataset
from cryptopulse.lake.tables import ALERTS
from cryptopulse.serve.dashboard import candles as candles_module
from cryptopulse.serve.dashboard import episodes as episodes_module
from cryptopulse.serve.dashboard import evidence as evidence_module
from cryptopulse.serve.dashboard import handlers
from cryptopulse.serve.dashboard.handlers import add_handlers
from cryptopulse.serve.http.problems import MEDIA_TYPE, handle_errors
from cryptopulse.serve.live.candles import COLUMNS, GRAINS, BarCandles, TradeCandles
from cryptopulse.serve.live.episodes import plain_episodes
from cryptopulse.serve.live.history import history_of
from cryptopulse.serve.live.market import LiveMarket
from support import START, Lake, Trade, at, micros

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
    handle_errors(app)
    handlers_of_pages = add_handlers(app)
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
    handlers_of_pages.close()


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


def test_an_episode_that_deepened_after_its_window_had_moved_still_shows_the_trade_that_opened_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Opened by a fall from 100 at 10 s; the deepest fall within two minutes begins 100 s later."""
    moves = [(0, "100"), (10, "98.9"), *((at, "98.8") for at in range(20, 110, 5)), (110, "99.5"), (170, "90")]
    trades = [Trade("BTC-USD", 100 + place, at(seconds), price) for place, (seconds, price) in enumerate(moves)]
    deepened = Lake(tmp_path_factory.mktemp("deepened") / "lake")
    deepened.take_in(trade.match() for trade in trades)
    (episode,) = stored(deepened)
    assert episode["opened_at"] < episode["window_start"] - 60_000_000
    with served(deepened) as client:
        found = client.post("/pages/evidence", json=episode).json()
    assert set(found["roles"].values()) <= {trade["trade_id"] for trade in found["trades"]}
    deepened.close()


@pytest.mark.parametrize("far", [-(10**18), 10**18, 253_402_300_799_000_000])
def test_an_episode_beyond_the_calendar_is_refused(client: httpx.Client, lake: Lake, far: int) -> None:
    answer = client.post("/pages/evidence", json=stored(lake)[0] | {"last_trigger_at": far})
    assert (answer.status_code, answer.json()["detail"]) == (400, "Invalid episode.")


@pytest.mark.parametrize("episode", [{}, {"symbol": "BTC-USD"}, {"symbol": 5, "window_start": "x"}])
def test_what_is_no_episode_is_refused(client: httpx.Client, episode: dict[str, Any]) -> None:
    answer = client.post("/pages/evidence", json=episode)
    assert (answer.status_code, answer.json()["detail"]) == (400, "Invalid episode.")


_NUMBERS = (
    st.integers() | st.floats() | st.sampled_from([2**63, -(2**63), 253_402_300_799_999_999, 10**400, 1e308, True])
)
_VALUES = (
    st.none() | _NUMBERS | st.text(max_size=5) | st.lists(st.none(), max_size=1) | st.dictionaries(st.text(), st.none())
)
_EPISODE = {
    **{f"{name}_trade_id": 1 for name in ("start", "trigger", "end", "last_trigger")},
    "symbol": "BTC-USD",
    "window_start": 0,
    "last_trigger_at": 0,
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(sorted(_EPISODE)), _VALUES, min_size=1))
def test_no_value_of_an_episode_is_an_error_of_the_server(client: httpx.Client, values: dict[str, Any]) -> None:
    said = json.dumps({**_EPISODE, **values})
    answer = client.post("/pages/evidence", content=said, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 422), answer.text


@pytest.mark.parametrize("path", ["/pages/evidence", "/pages/trials"])
@pytest.mark.parametrize(
    "said", ["NaN", "[NaN]", '"\\ud800"', '{"a":', "[1, 2]", "null", "", '{"\\ud800": NaN}', "[" * 60_000]
)
def test_a_body_that_is_no_object_is_refused_without_being_repeated(client: httpx.Client, path: str, said: str) -> None:
    answer = client.post(path, content=said, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    if answer.status_code == 422 and "faults" not in answer.json():
        assert answer.headers["content-type"] == MEDIA_TYPE
        assert (answer.json()["code"], answer.json()["parameters"][0]["name"]) == ("bad_parameter", "request")


_JSON = st.recursive(_VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_JSON | st.characters(categories=["Cs"]), st.sampled_from(["evidence", "trials"]))
def test_no_body_is_an_error_of_the_server(client: httpx.Client, value: Any, path: str) -> None:
    answer = client.post(f"/pages/{path}", content=json.dumps(value), headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["start", "end", "opened_before", "id_before"]), _NUMBERS, min_size=1))
def test_no_time_is_an_error_of_the_server(client: httpx.Client, values: dict[str, Any]) -> None:
    for path in ("/pages/episodes", "/pages/prices/BTC-USD", f"/pages/prices/{'A' * 300}-USD"):
        assert client.get(path, params=values).status_code in (200, 400, 422)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["threshold_pct", "lookback_s", "start", "end", "products", "types"]), _VALUES))
def test_no_form_is_an_error_of_the_server(client: httpx.Client, values: dict[str, Any]) -> None:
    said = json.dumps({"threshold_pct": 1000, **values})  # never begins
    answer = client.post("/pages/trials", content=said, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 422), answer.text


def test_an_error_that_nobody_expected_has_a_number(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_arguments: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(handlers, "episodes_page", fails)
    with capture_logs() as events, served(lake) as client:
        answer = client.get("/pages/episodes")
    (event,) = [event for event in events if event["event"] == "unexpected_error"]
    assert (answer.status_code, event["number"] in answer.json()["detail"]) == (500, True)
    assert isinstance(event["exc_info"], ZeroDivisionError)


def test_an_episode_of_a_product_that_is_none_is_refused(client: httpx.Client, lake: Lake) -> None:
    answer = client.post("/pages/evidence", json=stored(lake)[0] | {"symbol": "'; DROP TABLE x"})
    assert answer.status_code == 400
    assert "Invalid product id" in answer.json()["detail"]


def test_pages_of_the_past_are_all_episodes_once_the_newest_first(
    client: httpx.Client, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(episodes_module, "PAGE_ROWS", 1)
    found: list[dict[str, Any]] = []
    query: dict[str, Any] = {}
    while True:
        page = client.get("/pages/episodes", params=query).json()
        found += page["rows"]
        assert page["total"] == len(stored(lake))
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
        page = client.get("/pages/episodes", params={name: values}).json()
        assert page["rows"] == [row for row in rows if row[name] in values]
        assert page["total"] == len(page["rows"])
    middle = rows[1]["opened_at"] / 1000
    since = client.get("/pages/episodes", params={"start": middle}).json()["rows"]
    before = client.get("/pages/episodes", params={"end": middle}).json()["rows"]
    assert since == rows[:2]
    assert before == rows[2:]


@pytest.mark.parametrize("part", ["btc", "BTC-USD", "usd", "C-U", "", "x"])
def test_a_part_of_a_products_id_chooses_the_same_episodes_as_looking_for_it_in_all(
    client: httpx.Client, lake: Lake, part: str
) -> None:
    page = client.get("/pages/episodes", params={"product": part}).json()
    wanted = [row for row in stored(lake) if part.upper() in row["symbol"]]
    assert (page["rows"], page["total"], page["is_last"]) == (wanted, len(wanted), True)


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


@pytest.mark.parametrize("grain", ["1s", "15s", "1m", "1h", "trades:3", "volume:0.5"])
def test_pages_of_candles_backwards_and_forwards_are_all_candles_once(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, grain: str
) -> None:
    whole = client.get(f"/pages/candles/BTC-USD/{grain}").json()
    monkeypatch.setattr(candles_module, "CANDLES", 7 if grain == "1h" else 311)
    back: list[Any] = []
    query: dict[str, float] = {}
    while not (page := client.get(f"/pages/candles/BTC-USD/{grain}", params=query).json())["is_end"]:
        back = page["rows"] + back
        query = {"before": back[0][0] * 1000}
    back = page["rows"] + back
    there: list[Any] = []
    query = {"start": 0}
    while not (page := client.get(f"/pages/candles/BTC-USD/{grain}", params=query).json())["is_end"]:
        there += page["rows"]
        query = {"start": there[-1][0] * 1000 + 1}
    np.testing.assert_allclose(np.array(there + page["rows"], float), np.array(back, float), rtol=1e-12)
    assert [row[0] for row in back] == sorted({row[0] for row in back})
    np.testing.assert_allclose(np.array(back[-len(whole["rows"]) :], float), np.array(whole["rows"], float), rtol=1e-12)
    count = whole["columns"].index("trade_count")
    assert sum(row[count] for row in back) == sum(trade.symbol == "BTC-USD" for trade in dashboard_lake.TRADES)


@pytest.mark.parametrize("grain", GRAINS)
def test_candles_of_the_past_are_those_that_live_pages_have(client: httpx.Client, lake: Lake, grain: str) -> None:
    newest_us = max(micros(trade.time) for trade in dashboard_lake.TRADES)
    rows = history_of(lake.settings.location, "BTC-USD", GRAINS[grain], newest_us, newest_us * 2)
    kind = BarCandles if GRAINS[grain] >= 60 else TradeCandles
    live = kind(0, GRAINS[grain], LiveMarket()).past(rows)[:, : COLUMNS.index("average_1h")]
    page = client.get(f"/pages/candles/BTC-USD/{grain}").json()
    np.testing.assert_allclose(np.array(page["rows"], float)[-len(live) :, : live.shape[1]], live, rtol=1e-12)


@pytest.mark.parametrize("grain", ["1s", "15s", "1m", "5m"])
def test_the_average_of_a_candle_knows_no_trade_after_it(client: httpx.Client, grain: str) -> None:
    page = client.get(f"/pages/candles/BTC-USD/{grain}").json()
    own = [trade for trade in dashboard_lake.TRADES if trade.symbol == "BTC-USD"]
    for time_s, *_, average in page["rows"][-20:]:
        over = (int(time_s) + GRAINS[grain]) // 60  # minutes that are over
        minutes = [minute for trade in own if (minute := micros(trade.time) // 60_000_000) < over]
        prices = [float(t.price) for t in own if max(minutes) - 60 < micros(t.time) // 60_000_000 <= max(minutes)]
        assert average == pytest.approx(sum(prices) / len(prices))


def test_candles_by_activity_are_the_bars_of_the_lake(client: httpx.Client, lake: Lake) -> None:
    page = client.get("/pages/candles/BTC-USD/notional:100000").json()
    with Dataset(lake.settings.location) as opened:
        bars = opened.activity_bars("BTC-USD", by="notional", size=100000).arrow().to_pylist()
    assert len(page["rows"]) == len(bars) > 20
    for row, bar in zip(page["rows"], bars, strict=True):
        found = dict(zip(page["columns"], row, strict=True))
        assert found.pop("time") == pytest.approx(micros(bar["window_start"]) / 1e6, abs=1e-5)
        found.pop("average_1h")
        assert found == {name: pytest.approx(float(bar[name])) for name in found}


def test_bars_that_begin_at_once_are_told_apart(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    lake.take_in([Trade("BTC-USD", number, START).match() for number in range(1, 8)])
    with served(lake) as client:
        rows = client.get("/pages/candles/BTC-USD/trades:2").json()["rows"]
    lake.close()
    assert [round((row[0] - rows[0][0]) * 1e6) for row in rows] == [0, 1, 2, 3]


def test_an_unknown_grain_or_product_of_candles_is_refused_in_words(client: httpx.Client) -> None:
    assert client.get("/pages/candles/BTC-USD/ticks:5").json()["detail"].startswith("by='ticks': write one of trades, ")
    assert client.get("/pages/candles/BTC-USD/volume:x").json()["detail"].startswith("size='x': bars by volume take ")
    assert client.get("/pages/candles/BTC-USD/7s").json()["detail"].startswith("Unknown grain '7s' (expected 1s, ")
    assert client.get("/pages/candles/BTC/1s").status_code == 400


def test_a_hole_is_told_with_its_ids_and_the_times_of_the_trades_around_it(client: httpx.Client) -> None:
    held = {trade.trade_id: trade for trade in dashboard_lake.TRADES if trade.symbol == "BTC-USD"}
    times = {trade_id: trade.time.timestamp() * 1000 for trade_id, trade in held.items()}
    hole = {"first_id": 1030, "last_id": 1032, "absent": 0, "since": times[1029], "until": times[1033]}
    by_ids = client.get("/pages/holes/BTC-USD/ids", params={"first": 1030, "last": 1032}).json()
    assert by_ids["holes"] == [hole]
    hour = times[1033] // 3_600_000 * 3_600_000
    in_hour = client.get("/pages/holes/BTC-USD/time", params={"start": hour, "end": hour + 3_600_000}).json()
    assert (in_hour["holes"], in_hour["holes_found"]) == ([hole], 1)
    ids = [trade_id for trade_id, time_ms in times.items() if hour <= time_ms < hour + 3_600_000]
    assert in_hour["last_id"] == max(ids)
    whole = client.get("/pages/holes/BTC-USD/time", params={"start": 0, "end": 4e12}).json()
    assert (whole["holes"], whole["healed"]) == ([hole], [[1040, 1040]])


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("time", {"start": 9, "end": 5}),
        ("time", {"start": 1}),
        ("ids", {"first": -1, "last": 2}),
        ("ids", {"first": 1}),
    ],
)
def test_holes_that_can_not_be_meant_are_refused(client: httpx.Client, path: str, query: dict[str, Any]) -> None:
    assert client.get(f"/pages/holes/BTC-USD/{path}", params=query).status_code in (400, 422)


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
        assert client.get("/pages/episodes").json() == {"rows": [], "is_last": True, "total": 0}
        assert client.get("/pages/candles/BTC-USD/1s").json()["rows"] == []
        assert client.get("/pages/holes/BTC-USD/time", params={"start": 0, "end": 4e12}).json()["holes"] == []
        assert client.get("/pages/prices/BTC-USD").json()["bars"]["rows"] == []
    empty.close()
