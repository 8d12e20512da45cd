"""The past of a product as it is read from a real lake."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import dashboard_lake
from cryptopulse.lake.tables import ALERTS, SILVER
from cryptopulse.serve.live.candles import CANDLES, COLUMNS, GRAINS, BarCandles, TradeCandles
from cryptopulse.serve.live.channels import EPISODES, LAKE, MARKET, PRODUCT, PRODUCTS, Topics
from cryptopulse.serve.live.charts import CHART_TOPIC
from cryptopulse.serve.live.dashboard_queries import DashboardQueries
from cryptopulse.serve.live.history import history_of, newest_us
from cryptopulse.serve.live.market import LiveMarket
from cryptopulse.serve.live.query_cache import ANSWER
from support import START, Lake, Trade, message, micros

PATIENCE_S = 60.0
SYMBOL = "BTC-USD"
OWN = sorted(trade for trade in dashboard_lake.TRADES if trade.symbol == SYMBOL)
NOW_US = max(micros(trade.time) for trade in dashboard_lake.TRADES)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    made = Lake(tmp_path_factory.mktemp("history") / "lake")
    dashboard_lake.fill(made)
    yield made
    made.close()


@pytest.mark.parametrize("grain", GRAINS)
def test_the_past_of_a_product_is_that_of_a_plain_count(lake: Lake, grain: str) -> None:
    seconds = GRAINS[grain]
    rows = history_of(lake.settings.location, SYMBOL, seconds, NOW_US, NOW_US * 2)
    found = (BarCandles if seconds >= 60 else TradeCandles)(0, seconds, LiveMarket()).past(rows)
    expected: dict[int, list[float]] = {}
    for trade in OWN:
        price, size, start = float(trade.price), float(trade.size), micros(trade.time) // 10**6 // seconds * seconds
        bought = size if trade.side == "BUY" else 0.0
        one = expected.setdefault(start, [price, price, price, price, 0, 0, 0, 0])
        one[1], one[2], one[3] = max(one[1], price), min(one[2], price), price
        one[4:] = [one[4] + size, one[5] + price * size, one[6] + bought, one[7] + 1]
    last = NOW_US // 10**6 // seconds * seconds if seconds < 60 else max(expected)
    wanted = [[start, *row] for start, row in sorted(expected.items()) if start > last - CANDLES * seconds]
    np.testing.assert_allclose(found[:, : COLUMNS.index("average_1h")], np.array(wanted), rtol=1e-9)
    if seconds >= 60:
        last_hour = [
            float(t.price) for t in OWN if micros(t.time) // 60_000_000 > micros(OWN[-1].time) // 60_000_000 - 60
        ]
        assert found[-1, COLUMNS.index("average_1h")] == pytest.approx(sum(last_hour) / len(last_hour))


def test_trades_of_later_commits_are_left_out_as_they_come_as_news(lake: Lake) -> None:
    assert history_of(lake.settings.location, SYMBOL, 1, NOW_US, 0).num_rows == 0


def test_the_newest_time_is_known_without_reading_a_file(lake: Lake) -> None:
    newest = newest_us(pa.table(lake.delta(SILVER).get_add_actions(flatten=True)), "event_time")
    assert newest is not None
    assert 0 <= NOW_US - newest <= 1000


def test_trades_of_the_far_future_change_nothing_of_the_other_products(tmp_path: Path) -> None:
    """As it was: "now" was the clock's, nothing was of the last day before it, and the market was empty."""
    lake = Lake(tmp_path / "lake")
    dashboard_lake.fill(lake)
    before = _told(lake)
    _take_in_far_future(lake)
    assert "FAR-USD" in lake.arrow(ALERTS)["symbol"].to_pylist()
    after = _told(lake)
    lake.close()
    assert before["market"]["now_us"] == NOW_US
    assert after.keys() == before.keys()
    for topic, told in before.items():
        assert after[topic] == told, topic


def test_trades_of_the_far_future_leave_the_other_products_to_a_page_that_is_open(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    dashboard_lake.fill(lake)
    topics = Topics(lake.settings.location, lambda _topic: None)
    shown = []
    for _ in range(2):
        time.sleep(0.15)  # trades are read ten times a second
        topics.poll([])
        messages = {topic: topics.snapshot(topic) for topic in (LAKE, MARKET, EPISODES, PRODUCTS, f"{PRODUCT}{SYMBOL}")}
        shown.append({topic: _of_others(json.loads(told.text)) for topic, told in messages.items() if told is not None})
        _take_in_far_future(lake)
    topics.close()
    lake.close()
    assert shown[0]["market"]["now_us"] == NOW_US
    assert shown[1] == shown[0]


def _take_in_far_future(lake: Lake) -> None:
    far = datetime(2150, 1, 1, tzinfo=UTC)
    prices = (100, 100, 97, 95)
    trades = [Trade("FAR-USD", 1 + at, far + timedelta(seconds=at), str(price)) for at, price in enumerate(prices)]
    lake.take_in(
        message(trade.match()["body"], key=trade.symbol, received=START + timedelta(hours=1)) for trade in trades
    )


def _told(lake: Lake) -> dict[str, Any]:
    """What all topics and questions say of the products but FAR-USD."""
    ready: Queue[str] = Queue()
    topics = Topics(lake.settings.location, ready.put)
    questions = DashboardQueries(lake.settings.location)
    awaited = {f"{CHART_TOPIC}{SYMBOL}/{grain}" for grain in GRAINS} | {f"{ANSWER}{name}" for name in questions.all}
    questions.close()
    for topic in awaited:
        topics.snapshot(topic)
    found, until_s = {}, time.monotonic() + PATIENCE_S
    while awaited:
        assert time.monotonic() < until_s, awaited
        topics.poll(awaited)
        with suppress(Empty):
            topic = ready.get(timeout=0.05)
            found[topic] = topics.loaded(topic)
            awaited.discard(topic)
    found |= {topic: topics.snapshot(topic) for topic in (LAKE, MARKET, EPISODES, PRODUCTS, f"{PRODUCT}{SYMBOL}")}
    topics.close()
    return {topic: _of_others(json.loads(told.text)) for topic, told in found.items() if told is not None}


def _of_others(told: dict[str, Any]) -> dict[str, Any]:
    """Without FAR-USD, how many products there are, when it was asked or committed, and whether an episode is over:
    that the pipeline decides.
    """
    unlike = ("asked_us", "at_ms", "took_ms", "clock_us", "loaded_us", "products", "open_alerts")
    told = {name: value for name, value in told.items() if name not in unlike}
    kept = [place for place, symbol in enumerate(told.get("symbols", ())) if symbol != "FAR-USD"]
    for name in {"symbols", "decimals", "rows", "sparks"} & told.keys() if kept else ():
        told[name] = [told[name][place] for place in kept]
    if not kept and "rows" in told:
        rows = [dict(zip(told["columns"], row, strict=True)) if "columns" in told else row for row in told["rows"]]
        told["rows"] = [
            {name: value for name, value in row.items() if name not in ("age_s", "state", "load_timestamp")}
            for row in rows
            if not {"FAR-USD", "bronze.coinbase_raw_trades"} & set(row.values())
        ]
    return told
