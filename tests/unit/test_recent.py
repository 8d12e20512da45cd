"""The newest trades in memory: complete from the moment that they claim."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa

from cryptopulse.engine.recent import RecentTrades
from cryptopulse.lake.tables import SILVER
from cryptopulse.latency import Latency
from support import START, micros


def _trades(*seconds: float) -> pa.Table:
    trades = [
        {
            "trade_id": trade_id,
            "symbol": "BTC-USD",
            "price": Decimal(100),
            "trade_size": Decimal(1),
            "side": "BUY",
            "event_time": (when := START + timedelta(seconds=at)),
            "ingestion_time": when,
            "load_timestamp": when,
            "source": "websocket",
            "event_date": when.date(),
        }
        for trade_id, at in enumerate(seconds)
    ]
    return pa.Table.from_pylist(trades, schema=SILVER.arrow_schema)


def _between(recent: RecentTrades, first: float, last: float) -> int:
    return recent.between(micros(START) + round(first * 1e6), micros(START) + round(last * 1e6)).num_rows


def test_trades_are_found_by_minute_until_they_are_too_old() -> None:
    recent = RecentTrades(keep_s=120)
    recent.load(_trades(), -(2**63), 0)
    recent.add(_trades(0, 30, 60), 1)
    recent.add(_trades(*[n * 0.1 for n in range(200)]), 2)
    assert _between(recent, 0, 59) == 202
    for position in range(3, 13):  # what is too old is told by several commits, not by one
        recent.add(_trades(300, 300), position)
    assert recent.complete_from_us == micros(START) + 180_000_000
    assert _between(recent, 180, 400) == 20
    assert _between(recent, 0, 100) == 0


def test_one_trade_from_the_future_does_not_push_the_others_out() -> None:
    recent = RecentTrades(keep_s=120)
    recent.add(_trades(0, 1, 2, 1e7), 1)
    assert _between(recent, 0, 60) == 3


def test_commits_are_known_until_they_are_forgotten() -> None:
    recent = RecentTrades(keep_s=120)
    recent.load(_trades(0), 0, 5)
    recent.add(_trades(1, 2), 6)
    recent.add(_trades(3), 7)
    assert recent.since(4) is None
    assert [recent.since(at).num_rows for at in (5, 6, 7)] == [3, 1, 0]
    recent.forget_commits(6)
    assert recent.since(5) is None
    assert recent.since(6).num_rows == 1


def test_more_commits_than_are_remembered_are_not_claimed_to_be_known() -> None:
    recent = RecentTrades(keep_s=120)
    recent.load(_trades(), 0, 0)
    for position in range(1, 5000):
        recent.add(_trades(1), position)
    assert recent.since(0) is None
    assert recent.since(recent.known_from).num_rows == 4999 - recent.known_from


def test_percentiles_of_a_run_are_exact_to_a_few_percent() -> None:
    latency = Latency()
    latency.add(np.array([], dtype=np.float64))
    assert latency.overall() == latency.lately() == {"p50": None, "p99": None, "max": None, "n": 0}
    values = np.random.default_rng(1).lognormal(3, 1, 50_000)
    for part in np.array_split(values, 7):
        latency.add(part)
    for found in (latency.overall(), latency.lately()):
        assert found["n"] == 50_000
        assert abs(found["p50"] / np.percentile(values, 50) - 1) < 0.03
        assert abs(found["p99"] / np.percentile(values, 99) - 1) < 0.03
        assert found["max"] == round(values.max(), 2)


def test_negative_latencies_of_differing_clocks_are_counted() -> None:
    latency = Latency()
    latency.add(np.array([-5.0, -4.0, 1.0]))
    assert latency.overall()["n"] == 3
    assert latency.lately()["p50"] == -4.0
