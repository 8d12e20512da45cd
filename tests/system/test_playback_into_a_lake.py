"""A lake that records a playback of another has the same trades, bars and alerts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cryptopulse.lake.tables import ALERTS, BARS, COMPLETENESS, SILVER, STATS
from support_processes import Exchange, Processes, Tables, wait_until

HERE = ("load_timestamp", "detected_at", "ingestion_time")


@pytest.mark.parametrize("speed", ["0", "4"])
def test_a_second_lake_is_the_first_one(processes: Processes, tmp_path: Path, speed: str) -> None:
    """Also where trades were healed: the playback has pages as well."""
    first, second = Tables(tmp_path / "first"), Tables(tmp_path / "second")
    options = ("--start", "all_subscribed", "--episode", "crash:BTC-USD@1s:3%/1s", "--faults", "drop=0.02")
    exchange = Exchange(processes, *options, products=6, rate=300)
    recorder = processes.start("run", "--lake", str(first.lake), **exchange.feed())
    wait_until(lambda: exchange.ledger()["trading"], "every product is subscribed to")
    time.sleep(4)
    exchange.stop_trading()
    published = exchange.published()
    wait_until(lambda: first.ids().keys() == published.keys(), f"all is healed: {recorder.said[-3000:]}")
    assert recorder.stop() == 0, recorder.said[-3000:]
    assert "rest" in first.read(SILVER)["source"].to_pylist()

    playback = processes.start("playback", "--lake", str(first.lake), "--speed", speed, "--port", "0", "--json")
    assert playback.popen.stdout is not None
    told = json.loads(playback.popen.stdout.readline())
    feed = {"FEED__WEBSOCKET_URL": told["exchange_url"], "FEED__REST_URL": told["rest_url"]}
    feed |= {"FEED__PRODUCTS": ",".join(told["products"]), "FEED__PRODUCTS_PER_CONNECTION_MAX": "2"}
    again = processes.start("run", "--lake", str(second.lake), **feed)
    wait_until(lambda: second.ids().keys() == published.keys(), f"all is played: {again.said[-3000:]}")
    assert again.stop() == 0, again.said[-3000:]
    assert playback.stop() == 0, playback.said[-3000:]
    for table in (SILVER, BARS, STATS, COMPLETENESS, ALERTS):
        assert second.contents(table, *HERE) == first.contents(table, *HERE), table.qualified
    assert len(first.contents(ALERTS)) == 1
