"""The recordings of the real feeds through the whole pipeline, against a count that shares no code with it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cryptopulse.lake.tables import BARS, COVERAGE, QUARANTINE, SILVER, STATS
from cryptopulse.recording import read_recording
from support import Lake, Trade, message, model_bars, model_coverage, model_stats, page

CAPTURES = Path(__file__).parents[2].parent / "shared" / "captures"
FILES = {
    "exchange-2026-07-07": ("messages.jsonl", 437),
    "exchange-2021-04-17": ("recv.jsonl", 107),
    "advanced-2026-08-09": ("recv.no_l2.jsonl", 279),
}
pytestmark = [
    pytest.mark.captures,
    pytest.mark.skipif(not CAPTURES.is_dir(), reason="the recordings (../shared/captures) are not on this machine"),
]
OPPOSITE = {"sell": "BUY", "buy": "SELL"}


def _trade(row: dict[str, Any], symbol: str) -> Trade:
    whole, _, fraction = row["time"].removesuffix("Z").partition(".")
    when = datetime.fromisoformat(whole).replace(tzinfo=UTC, microsecond=int(fraction[:6].ljust(6, "0") or 0))
    return Trade(symbol, int(row["trade_id"]), when, row["price"], row["size"], OPPOSITE[row["side"].lower()])


def _counted(file: Path) -> list[Trade]:
    """The file's distinct trades, read with nothing but json."""
    found: dict[Trade, Trade] = {}
    for line in file.read_text().splitlines():
        body = json.loads(line)
        body = json.loads(body["raw"]) if "raw" in body else body
        rows = [body] if body.get("type") in {"match", "last_match"} else []
        if body.get("channel") == "market_trades":
            rows = [row for event in body["events"] for row in event["trades"]]
        for row in rows:
            found.setdefault(trade := _trade(row, row["product_id"]), trade)
    return sorted(found)


@pytest.fixture(scope="module", params=FILES)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    name, trades = FILES[request.param]
    file = CAPTURES / request.param / name
    lake = Lake(tmp_path_factory.mktemp("recorded") / "lake")
    messages = [
        message(body, received=datetime.fromtimestamp((received or 0) // 1_000_000_000, UTC))
        for received, body in read_recording(file)
    ]
    summary = lake.take_in(messages)
    yield lake, _counted(file), summary, trades
    lake.close()


def test_every_trade_of_a_recording_is_stored_as_its_message_says(recorded: Any) -> None:
    lake, counted, summary, trades = recorded
    assert len(counted) == summary["trades"] == trades
    rows = lake.rows(SILVER, "ingestion_time", "source", "event_date")
    found = [
        Trade(r["symbol"], r["trade_id"], r["event_time"], f"{r['price']:f}", f"{r['trade_size']:f}", r["side"])
        for r in rows
    ]
    assert [(t, t.time, t.side) for t in found] == [(t, t.time, t.side) for t in counted]
    assert [(r["price"], r["trade_size"]) for r in rows] == [_exact(t) for t in counted]


def _exact(trade: Trade) -> tuple[Any, Any]:
    from decimal import Decimal

    return Decimal(trade.price), Decimal(trade.size)


def test_a_recording_has_no_holes_and_nothing_is_quarantined(recorded: Any) -> None:
    lake, counted, summary, trades = recorded
    assert lake.rows(QUARANTINE) == []
    assert lake.rows(COVERAGE) == model_coverage(counted)
    if trades == 437:
        assert (summary["holes"], summary["symbols"]) == (0, {"BTC-USD": 345, "ETH-USD": 92})


def test_bars_and_statistics_of_a_recording_are_those_of_a_plain_computation(recorded: Any) -> None:
    lake, counted, _, _ = recorded
    assert lake.rows(BARS, "vwap", "window_date") == model_bars(counted)
    floats = ("avg_price", "vwap", "volatility")
    rows = lake.rows(STATS, "window_date")
    assert model_stats(counted) == [
        row | {name: pytest.approx(row[name], rel=1e-9, abs=1e-12) for name in floats} for row in rows
    ]


def test_a_page_of_the_rest_interface_gives_its_trades(lake: Lake) -> None:
    recorded = json.loads((CAPTURES / "rest" / "rest_products_BTC-EUR_trades_GET-200.json").read_text())
    rows = recorded if isinstance(recorded, list) else recorded.get("response", recorded.get("body"))
    trades = sorted(_trade(row, "BTC-EUR") for row in rows)
    whole = message(json.dumps(rows).encode(), "rest", "BTC-EUR")
    lake.take_in([whole, page([replace(trades[0], price="1")])])
    assert [(r["trade_id"], r["price"], r["side"]) for r in lake.rows(SILVER)] == [
        (t.trade_id, _exact(t)[0], t.side) for t in trades
    ]
