"""A bad connection and a bad REST interface, ten minutes without a producer, a wrong clock: all is healed. The judge is
what the simulator sent. The audit must find the lake complete.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest
from deployment import PRODUCTS, RATE, Deployment, check_complete, check_tables, start_deployment
from tally import TALLY, judged

from cryptopulse.lake.tables import BARS, BRONZE, COMPLETENESS
from support import model_bars, some
from support_processes import Exchange, Id, Processes, Tables, same_trades, wait_until

OUTAGE_S = 600.0
SPEED = 20.0  # so ten minutes of trade take 30 s, and 4,000 trades a second come live


def healed_by(audit: dict[str, object]) -> dict[str, set[Id]]:
    """The ids of the audit's healed intervals, by their source."""
    found: dict[str, set[Id]] = {}
    for product in audit["products"]:  # type: ignore[attr-defined]
        for stretch in product["healed"]:
            ids = range(stretch["first_trade_id"], stretch["last_trade_id"] + 1)
            found.setdefault(stretch["source"], set()).update((product["symbol"], one) for one in ids)
    return found


@pytest.mark.long
def test_ten_minutes_of_twenty_products_are_healed_and_every_interval_is_in_the_ledger_with_its_source(
    processes: Processes,
) -> None:
    """200 trades a second: 120,000 that nobody heard. What the simulator sent is the judge."""
    exchange = Exchange(processes, "--start", "all_subscribed", "--speed", str(SPEED), products=20, rate=200)
    lake = processes.folder / "lake"
    tables, settings = Tables(lake), exchange.feed()
    processing = processes.start("process", "--lake", str(lake))
    producer = processes.start("produce", "--lake", str(lake), **settings)
    wait_until(lambda: {product for product, _ in tables.ids()} == set(exchange.products), "each product is stored")
    producer.kill()
    TALLY["feed_faults"] += 1
    before = exchange.ledger()["trades"]
    missed = int(OUTAGE_S * 200)
    wait_until(lambda: exchange.ledger()["trades"] >= before + missed, "ten minutes of trade", within_s=300)
    producer = processes.start("produce", "--lake", str(lake), **settings)
    wait_until(lambda: producer.events("subscribed"), "it records again")
    count = exchange.stop_trading()["trades"]
    wait_until(lambda: len(tables.ids()) >= count, f"nothing is missing: {producer.said[-3000:]}", within_s=300)
    assert producer.stop() == 0, producer.said[-3000:]
    assert processing.stop() == 0, processing.said[-3000:]

    published = exchange.published()
    judged(tables.ids(), published)
    assert tables.ids() == Counter(dict.fromkeys(published, 1))
    stored = tables.trades()
    assert same_trades(stored, published)
    without = ("vwap", "load_timestamp", "window_date")
    expected = [{k: v for k, v in bar.items() if k not in without} for bar in model_bars(stored)]
    assert tables.contents(BARS, *without) == expected

    fetched = {(trade.symbol, trade.trade_id) for trade in stored if trade.source == "rest"}
    assert len(fetched) >= missed
    said = processes.call("audit", "--lake", str(lake), "--json")
    assert said.returncode == 0, said.stdout[-3000:]
    assert healed_by(json.loads(said.stdout)) == {"rest": fetched}
    hours = tables.contents(COMPLETENESS)
    assert sum(hour["healed_ids"] for hour in hours) == len(fetched)
    assert all(hour["is_complete"] for hour in hours)
    assert {hour["healed_from"] for hour in hours if hour["healed_ids"]} == {"rest"}
    print(f"{len(fetched):,} trades healed over REST")


MESSAGES = "drop=0.05,duplicate=0.05,reorder=0.05"
REST = "rest-slow=200ms,rest-429=0.15,rest-500=0.15,rest-truncated=0.15"


@pytest.mark.long
def test_all_that_connections_and_rest_can_do_at_once_loses_and_doubles_nothing(processes: Processes) -> None:
    """Cut every two seconds, then silent though open; messages dropped, doubled, moved; REST failing half the time."""
    deployment = start_deployment(processes)
    exchange = deployment.exchange
    exchange.faults(f"{MESSAGES},{REST},disconnect=2s")
    wait_until(lambda: len(deployment.events("subscribed")) >= 4, "connections are cut")
    exchange.faults(f"{MESSAGES},{REST},silence=100ms+60s")
    wait_until(lambda: deployment.events("connection_stale"), "silence is noticed")
    newest = exchange.ledger()
    wait_until(lambda: deployment.tables.reach(newest), "and replaced by a connection that is heard")
    exchange.faults(REST)
    TALLY["feed_faults"] += 2
    published = deployment.finish()
    check_tables(deployment, published)
    check_complete(deployment, published)
    assert deployment.events("waiting_for_rest")
    assert any(trade.source == "rest" for trade in deployment.tables.trades())
    said = processes.call("audit", "--lake", str(deployment.lake), "--json")
    assert said.returncode == 0, said.stdout[-3000:]


def shortest_way_s(tables: Tables) -> float:
    """From the exchange's time of a trade to our time of its receipt."""
    rows = tables.read(BRONZE, "body, received_time").to_pylist()
    matches = [(json.loads(row["body"]), row["received_time"]) for row in rows]
    return min(
        (received - datetime.fromisoformat(match["time"])).total_seconds()
        for match, received in matches
        if match.get("type") == "match"
    )


@pytest.mark.parametrize("shift_s", some(1, [-2, 2]))
def test_a_clock_two_seconds_off_makes_no_holes_and_loses_nothing(
    interposer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Processes, shift_s: int
) -> None:
    """The clock of all our processes; the exchange has the right one."""
    monkeypatch.setenv("LD_PRELOAD", str(interposer))
    monkeypatch.setenv("INTERPOSER_CLOCK_SHIFT", str(shift_s))
    TALLY["feed_faults"] += 1
    folder = tmp_path / "wrong"
    folder.mkdir()
    wrong = Processes(folder)
    try:
        exchange = Exchange(processes, "--start", "all_subscribed", products=PRODUCTS, rate=RATE)
        deployment = Deployment(wrong, exchange, folder / "lake", clock_shift_s=shift_s)
        every = set(exchange.products)
        wait_until(lambda: {product for product, _ in deployment.tables.ids()} == every, "each product is stored")
        assert deployment.events("hole_found") == []
        assert abs(shortest_way_s(deployment.tables) - shift_s) < 1.5  # or nothing would be tested
        deployment.kill("producer")
        published = deployment.finish()
        check_tables(deployment, published)
        check_complete(deployment, published)
        assert deployment.events("hole_found")  # there was something to heal
        said = wrong.call("audit", "--lake", str(deployment.lake), "--json")
        assert said.returncode == 0, said.stdout[-3000:]
    finally:
        wrong.close()
