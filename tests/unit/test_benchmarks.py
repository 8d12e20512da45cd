"""The benchmark's own arithmetic: figures that are wrong are worse than none."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # the benchmarks lie beside the tests, not in the package

from benchmarks import machine, report
from benchmarks.catchup import CatchUp, Drain
from benchmarks.live import Hop, worst_of
from benchmarks.messages import message_batches
from benchmarks.results import Results, Target, targets_of
from benchmarks.stages import STAGES, StageClock
from benchmarks.startup import Startup, age_of
from benchmarks.storage import LogStorage, SchemaStorage, Storage, log_storage
from benchmarks.tables import tables_of

from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.sqlite import SqliteLog


@pytest.mark.parametrize(("messages", "batch"), [(2500, 400), (800, 400), (3, 400), (1000, 1000)])
def test_a_log_is_filled_with_exactly_as_many_trades_as_asked_for_in_batches_of_one_size(
    messages: int, batch: int
) -> None:
    batches = list(message_batches(messages, batch, rate=5_000))
    assert [table.num_rows for table in batches[:-1]] == [batch] * (len(batches) - 1)
    assert 0 < batches[-1].num_rows <= batch
    table = pa.concat_tables(batches)
    assert table.schema.equals(MESSAGE_SCHEMA)
    found = [json.loads(body) for body in table["body"].to_pylist()]
    assert len({(trade["product_id"], trade["trade_id"]) for trade in found}) == messages
    assert {trade["type"] for trade in found} == {"match"}
    assert table["partition_key"].to_pylist() == [trade["product_id"] for trade in found]


def test_filled_in_trades_are_in_order_and_not_in_the_future() -> None:
    table = pa.concat_tables(message_batches(5_000, 1_000, rate=1_000))
    received = [when.timestamp() for when in table["received_time"].to_pylist()]
    assert received == sorted(received)
    assert time.time() - 60 < received[-1] < time.time()


def test_the_worst_window_is_shown_whatever_the_others_were() -> None:
    windows = [
        {"receive_to_silver": Hop(40.0, 90.0, 120.0, 1000), "receive_to_log_synced": Hop(11.0, 19.0, None, None)},
        {"receive_to_silver": Hop(45.0, 80.0, 300.0, 900)},
    ]
    assert worst_of(windows) == {
        "receive_to_silver": Hop(45.0, 90.0, 300.0, 1900),
        "receive_to_log_synced": Hop(11.0, 19.0, None, None),
    }


def test_a_stage_within_another_counts_for_itself_alone_and_threads_do_not_mix() -> None:
    clock = StageClock()
    inner = clock.timed("parse", lambda: time.sleep(0.05))

    def work() -> None:
        inner()
        time.sleep(0.02)

    other = threading.Thread(target=clock.timed("bars", lambda: time.sleep(0.06)))
    other.start()
    begun = time.perf_counter()
    clock.timed("silver", work)()
    took = time.perf_counter() - begun
    other.join()
    assert clock.busy_s["parse"] >= 0.05
    assert clock.busy_s["silver"] >= 0.02
    assert clock.busy_s["bars"] >= 0.06
    assert clock.busy_s["parse"] + clock.busy_s["silver"] <= took


def test_a_commit_is_as_old_as_its_oldest_trade() -> None:
    stats = json.dumps({"minValues": {"event_time": "1970-01-01T00:01:40.250Z"}})
    assert age_of({"stats": stats}, 101.0) == pytest.approx(0.75)
    assert age_of({"stats": None}, 101.0) == 0.0


def test_the_logs_bytes_per_message_are_those_of_its_batches(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", 1 << 30)
    for batch in message_batches(1_000, 100, rate=1_000):
        log.append(batch)
    found = log_storage(tmp_path / "log.db")
    log.close()
    assert (found.messages, found.batches) == (1_000, 10)
    assert 40 < found.per_message < 400


def test_a_target_is_met_on_its_own_side() -> None:
    assert Target("latency", 100, 100.0, "ms").met
    assert not Target("latency", 100, 100.1, "ms").met
    assert Target("throughput", 300, 300.0, "trades/s", at_least=True).met
    assert not Target("throughput", 300, 299.9, "trades/s", at_least=True).met


def test_the_report_says_what_was_missed_on_the_terminals_tables_in_markdown_and_in_json(tmp_path: Path) -> None:
    schemas = {name: SchemaStorage(600, 1, 1200, 9) for name in ("bronze", "silver", "gold")}
    busy = dict.fromkeys(STAGES, 0.0) | {"parse": 1.5, "silver": 0.5}
    drain = Drain(1000, 1000, 2.0, 1.2, busy, 300.0, 0.4, Storage(1000, schemas))
    results = Results(
        machine.describe(tmp_path),
        quick=True,
        catchup=CatchUp(100, LogStorage(1000, 10, 65_000), [drain]),
        startup=Startup(1000.0, 4.0, [2.0, 2.5], [2.2, 2.7], [2.9, 3.1]),
    )
    assert [(target.what.split(",")[0], target.met) for target in targets_of(results)] == [
        ("catch-up through gold", False),
        ("start → first trade committed", True),
        ("kill -9 → caught up", False),
    ]
    text = report.markdown(tables_of(results))
    assert "| parse | 1.50 | 75 % | 75 % | 1500.00 |" in text
    assert "| kill -9 → caught up, slowest round | ≤ 3 s | 3.10 s | MISSED |" in text
    report.write_json(results, tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["catchup"]["runs"][0]["seconds"] == 2.0
    assert [target["met"] for target in figures["targets"]] == [False, True, False]
