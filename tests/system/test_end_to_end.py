"""The whole pipeline as its processes, on a simulated exchange: what was published is what is stored."""

from __future__ import annotations

import json
import os
import signal
import time
from bisect import bisect_left
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from cryptopulse.engine.embedded import EmbeddedEngine
from cryptopulse.lake.tables import ALERTS, BARS, BRONZE, QUARANTINE, SILVER, STATS, TABLES
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.settings import load_settings
from support import Trade, some
from support_processes import (
    Command,
    Exchange,
    Processes,
    Tables,
    same_trades,
    stop_outside_of_writes,
    wait_until,
)

LOADS = ("load_timestamp", "detected_at")
DERIVED = TABLES[1:]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


def first_fall(trades: Sequence[Trade], threshold: Decimal) -> tuple[Trade, Decimal, Trade] | None:
    """The first trade that lies `threshold` percent under the highest price of the two minutes before it, and the
    deepest fall of all trades: from which price, and at which trade. `trades` of one product in the order of ids."""
    times = [trade.time for trade in trades]
    trigger, deepest = None, None
    for number, trade in enumerate(trades):
        start = bisect_left(times, trade.time - timedelta(seconds=120))
        highest = max(Decimal(other.price) for other in trades[start : number + 1])
        ratio = Decimal(trade.price) / highest
        if ratio <= 1 - threshold / 100:
            trigger = trigger or trade
            if deepest is None or ratio < deepest[0]:
                deepest = (ratio, highest, trade)
    return None if trigger is None or deepest is None else (trigger, deepest[1], deepest[2])


def run_until_stored(
    processes: Processes, lake: Path, exchange: Exchange, dialect: str, seconds: float
) -> tuple[Command, dict[tuple[str, int], Trade]]:
    """`run` for some seconds of trading, until everything is stored and it has ended; what was published."""
    run = processes.start("run", "--lake", str(lake), **exchange.feed(dialect))
    wait_until(lambda: exchange.ledger()["trading"], "every product is subscribed to")
    time.sleep(seconds)
    ledger = exchange.stop_trading()
    tables = Tables(lake)
    wait_until(lambda: tables.reach(ledger), f"caught up: {run.said[-3000:]}")
    assert run.stop() == 0, run.said[-3000:]
    assert run.events("process_died") == []
    assert run.events("unexpected_error") == []
    return run, exchange.published()


@pytest.mark.parametrize("dialect", some(1, ["exchange", "advanced"]))
def test_every_published_trade_is_stored_once_and_a_rebuild_gives_the_same(
    processes: Processes, lake: Path, dialect: str
) -> None:
    staged = ("--episode", "crash:BTC-USD@2s:3%/2s", "--episode", "surge:ETH-USD@3s:2.5%/2s")
    exchange = Exchange(processes, "--start", "all_subscribed", *staged, products=8, rate=300)
    run, published = run_until_stored(processes, lake, exchange, dialect, 6.5)
    tables = Tables(lake)
    stored = tables.ids()
    assert stored.keys() == published.keys()
    assert max(stored.values()) == 1
    assert same_trades(tables.trades(), published)
    assert tables.covered() == stored.keys()
    assert tables.holes() == set()
    assert run.events("hole_found") == []
    assert tables.read(QUARANTINE).num_rows == 0

    alerts = tables.contents(ALERTS)
    for symbol, kind in (("BTC-USD", "FLASH_CRASH"), ("ETH-USD", "PRICE_SURGE")):
        found = [alert for alert in alerts if (alert["symbol"], alert["alert_type"]) == (symbol, kind)]
        assert len(found) == 1, (symbol, found)
    crash = next(alert for alert in alerts if (alert["symbol"], alert["alert_type"]) == ("BTC-USD", "FLASH_CRASH"))
    expected = first_fall([trade for one, trade in sorted(published.items()) if one[0] == "BTC-USD"], Decimal(1))
    assert expected is not None
    trigger, from_price, deepest = expected
    assert crash["trigger_trade_id"] == trigger.trade_id
    assert crash["opened_at"] == trigger.time
    assert (crash["end_trade_id"], crash["end_price"]) == (deepest.trade_id, Decimal(deepest.price))
    assert crash["start_price"] == from_price == Decimal(published["BTC-USD", crash["start_trade_id"]].price)

    live = {table.qualified: tables.contents(table, *LOADS) for table in DERIVED}
    rebuilt = processes.call("rebuild", "--lake", str(lake), "--json")
    assert rebuilt.returncode == 0, rebuilt.stderr
    for table in DERIVED:
        assert tables.contents(table, *LOADS) == live[table.qualified], table.qualified


@pytest.mark.parametrize(("dialect", "garbage"), some(1, [("advanced", 0.5), ("exchange", 0.05)]))
def test_messages_doubled_moved_and_mixed_with_garbage_lose_nothing_and_stop_nobody(
    processes: Processes, lake: Path, dialect: str, garbage: float
) -> None:
    faults = ("--faults", f"garbage={garbage},duplicate=0.1,reorder=0.1")  # Advanced Trade sends few, long messages
    exchange = Exchange(processes, "--start", "all_subscribed", *faults, products=4, rate=200)
    _, published = run_until_stored(processes, lake, exchange, dialect, 4)
    tables = Tables(lake)
    stored = tables.ids()
    assert stored.keys() == published.keys()
    assert max(stored.values()) == 1
    assert same_trades(tables.trades(), published)
    assert tables.holes() == set()
    refused = [row["body"] for row in tables.contents(QUARANTINE)]
    logged: list[bytes] = tables.read(BRONZE, "body")["body"].to_pylist()
    assert refused
    assert sorted(refused) == sorted(body for body in logged if is_garbage(body))


def is_garbage(body: bytes) -> bool:
    """Whether the simulator made this message up: no message of either feed is like it."""
    try:
        content = json.loads(body)
    except ValueError:
        return True
    if "channel" in content:
        return False
    if content["type"] in ("match", "last_match"):
        return not (isinstance(content.get("trade_id"), int) and content["trade_id"] < 2**63)
    return content["type"] == "weather"


def test_without_a_feed_run_waits_and_records_as_soon_as_there_is_one(processes: Processes, lake: Path) -> None:
    exchange = Exchange(processes, products=3, rate=100)
    port = int(exchange.feed()["FEED__REST_URL"].rsplit(":", 1)[1])
    exchange.command.kill()

    run = processes.start("run", "--lake", str(lake), FEED__BACKOFF_MAX_S="0.5", **exchange.feed())
    url = exchange.feed()["FEED__WEBSOCKET_URL"]
    waiting = wait_until(lambda: run.events("waiting_for_feed"), "it says what it waits for")
    assert waiting[0]["url"] == url
    time.sleep(1)
    assert run.popen.poll() is None
    assert run.events("process_died") == []

    exchange = Exchange(processes, products=3, rate=100, port=port)
    wait_until(lambda: Tables(lake).ids(), "trades flow")
    assert run.stop() == 0
    assert "Traceback" not in run.said


def appended(log: SqliteLog, numbers: range) -> set[tuple[str, int]]:
    """Puts trades with these numbers into the log; their ids."""
    trades = [Trade("BTC-USD", number) for number in numbers]
    log.append(pa.Table.from_pylist([trade.match() for trade in trades], schema=MESSAGE_SCHEMA))
    return {(trade.symbol, trade.trade_id) for trade in trades}


def test_a_pipeline_that_stands_still_keeps_its_lake_and_its_status(processes: Processes, lake: Path) -> None:
    first = processes.start("process", "--lake", str(lake))
    tables = Tables(lake)
    wait_until(lambda: tables.status("processing").report, "it works")
    os.kill(first.popen.pid, signal.SIGSTOP)
    try:
        for command in ("process", "run", "process"):
            second = processes.call(command, "--lake", str(lake))
            assert second.returncode == 5
            assert second.stderr.count("\n") == 1, second.stderr
            assert f"(process {first.popen.pid})" in second.stderr
            assert tables.status("processing").pid == first.popen.pid
        locked = processes.call("rebuild", "--lake", str(lake))
        assert (locked.returncode, locked.stderr.count("\n")) == (5, 1), locked.stderr
    finally:
        os.kill(first.popen.pid, signal.SIGCONT)
    assert first.stop() == 0


def test_a_pipeline_that_wakes_up_after_another_took_over_stops_and_writes_nothing(
    processes: Processes, lake: Path
) -> None:
    settings = load_settings(lake=lake)
    log = SqliteLog(settings.log_path, 1 << 30)
    tables = Tables(lake)
    sent = appended(log, range(1, 501))
    first = processes.start("process", "--lake", str(lake))
    wait_until(lambda: tables.covered() == sent and tables.read(STATS).num_rows, "every table is up to date")
    stop_outside_of_writes(first.popen.pid, settings.log_path)

    sent |= appended(log, range(501, 1001))
    engine = EmbeddedEngine(settings)  # takes no lock
    engine.store(log.read(0, engine.stored_to(0) + 1, 10_000), {})
    engine.advance(SILVER)
    os.kill(first.popen.pid, signal.SIGCONT)
    assert first.popen.wait(timeout=120) == 5
    assert "Another pipeline has taken over" in first.said.splitlines()[-1]

    sent |= appended(log, range(1001, 1501))
    engine.store(log.read(0, engine.stored_to(0) + 1, 10_000), {})
    engine.wait_for_news(False)
    for table in DERIVED:
        while engine.advance(table) is not None:
            pass
    engine.close()
    log.close()
    assert tables.ids() == dict.fromkeys(sent, 1)
    assert tables.covered() == sent
    assert [bar["trade_count"] for bar in tables.contents(BARS)] == [len(sent)]


def test_a_log_that_was_cut_short_is_one_clear_line(processes: Processes, lake: Path) -> None:
    settings = load_settings(lake=lake)
    log = SqliteLog(settings.log_path, 1 << 30)
    log.append(pa.Table.from_pylist([Trade("BTC-USD", n).match() for n in range(2000)], schema=MESSAGE_SCHEMA))
    log.close()
    size = settings.log_path.stat().st_size
    for left in (size // 2, 100):
        os.truncate(settings.log_path, left)
        ended = processes.call("process", "--lake", str(lake))
        assert ended.returncode == 4, ended.stderr
        said = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
        assert len(said) == 1
        assert "log.db is damaged" in said[0]


def test_a_full_log_is_said_clearly_and_what_it_took_is_stored_when_there_is_room(
    processes: Processes, lake: Path
) -> None:
    exchange = Exchange(processes, products=3, rate=3000)
    small = {"LOG__SIZE_MAX_MB": "1"}
    # Nobody empties the log: it fills up.
    full = processes.start("produce", "--lake", str(lake), **exchange.feed(), **small)
    assert full.popen.wait(timeout=120) == 3
    assert "cryptopulse: The log" in full.said
    assert "is full" in full.said.splitlines()[-1]
    log = SqliteLog(load_settings(lake=lake).log_path, 1 << 20)
    held = log.read(0, 0, 1_000_000)
    log.close()
    acknowledged = {
        (body["product_id"], body["trade_id"])
        for body in map(json.loads, held["body"].to_pylist())
        if body["type"] in ("match", "last_match")
    }
    assert acknowledged

    run = processes.start("run", "--lake", str(lake), **exchange.feed(), **small)
    tables = Tables(lake)
    wait_until(lambda: set(tables.ids()) > acknowledged, f"recording goes on: {run.said[-2000:]}")
    assert run.stop() == 0, run.said[-2000:]
    stored = tables.ids()
    assert stored.keys() >= acknowledged
    assert max(stored.values()) == 1
