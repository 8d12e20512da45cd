"""The benchmark's own arithmetic: figures that are wrong are worse than none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

sys.path.insert(0, str(Path(__file__).parents[2]))  # the benchmarks lie beside the tests, not in the package

from benchmarks import commits, crash_day, machine, report
from benchmarks.catchup import CatchUp, Drain
from benchmarks.cluster.commits import Follower, alert_latencies_ms, episodes, received_us, silver_latencies_ms
from benchmarks.cluster.engines import Use, watched
from benchmarks.cluster.feed import PacedFeed
from benchmarks.cluster.measure import CatchUp as ClusterCatchUp
from benchmarks.cluster.measure import Latency
from benchmarks.cluster.measure import Live as ClusterLive
from benchmarks.cluster.tables import Measured
from benchmarks.cluster.tables import tables_of as cluster_tables_of
from benchmarks.commits import Mark, Soak, Tables
from benchmarks.live import Hop, Live, worst_of
from benchmarks.messages import message_batches
from benchmarks.processes import MeasurementError
from benchmarks.reading import frames_in
from benchmarks.results import Results, Target, targets_of
from benchmarks.startup import Startup, age_of
from benchmarks.storage import Growth, LogStorage, SchemaStorage, Storage, log_storage
from benchmarks.tables import tables_of

from cryptopulse.lake.tables import ALERTS, SILVER
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.simulator.wire import frame

pytestmark = pytest.mark.texts


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
    drain = Drain(1000, 2.0, 2.4, 300.0, 0.4, Storage(1000, schemas))
    results = Results(
        machine.describe(tmp_path),
        quick=True,
        catchup=CatchUp(1100, 100, LogStorage(1000, 10, 65_000), [drain]),
        startup=Startup(1000.0, 4.0, [1.0, 1.25], [1.2, 1.7], [1.4, 1.6]),
        crash_day=crash_day.Replays(1100, 1000, 7, 3, [crash_day.Replay(9.5, 12.0, 400.0, 5)]),
        imported=crash_day.Replays(1001, 1000, 7, 3, [crash_day.Replay(8.5, 11.0, 400.0, 5)]),
    )
    assert [(target.what.split(",")[0], target.met) for target in targets_of(results)] == [
        ("catch-up through gold", False),
        ("replay of a crash day through gold", True),
        ("import of a crash day's CSV through gold", True),
        ("start → first trade committed", True),
        ("kill -9 → caught up", False),
    ]
    text = report.markdown(tables_of(results))
    assert "| run 1 | 500 | 2.00 | 1.20 | 2400.00 | 300 | 0.40 |" in text
    assert "| run 1 | 9.50 | 105 | 1.26 | 12000.00 | 400 | 5 |" in text
    assert "`cryptopulse import` of 1,001 lines with 1,000 trades" in text
    assert "| kill -9 → caught up, slowest round | ≤ 1.5 s | 1.60 s | MISSED |" in text
    report.write_json(results, tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["catchup"]["runs"][0]["seconds"] == 2.0
    assert [target["met"] for target in figures["targets"]] == [False, True, True, True, False]


def _live(load: str, rate: float, cpu: float, hops: dict[str, Hop]) -> Live:
    return Live(
        load=load,
        rate=rate,
        trades_per_s=rate,
        seconds=10.0,
        windows=1,
        hops=hops,
        whole_run={},
        detections_ms={"BTC-USD": 80.0, "ETH-USD": 120.0} if rate >= 1000 else {},
        lag_messages=0,
        lost_messages=0,
        cpu={"supervisor": 0.0, "producer": cpu / 2, "processing": cpu / 2, "simulator": 5.0},
        pss_mb={"supervisor": 50.0, "producer": 100.0, "processing": 200.0},
        rss_mb={"supervisor": 50.0, "producer": 100.0, "processing": 200.0},
        written_mb=7.0,
        written_files=80.0,
        io_mb=None,
        stop_s=1.0,
        storage=Storage(1, {name: SchemaStorage(1, 1, 1, 1) for name in ("bronze", "silver", "gold")}),
        log=LogStorage(0, 0, 0),
    )


def test_each_load_has_the_designs_targets_and_the_simulator_is_no_part_of_the_whole(tmp_path: Path) -> None:
    hops = {"receive_to_silver": Hop(39.0, 81.0, 90.0, 100), "receive_to_alert": Hop(40.0, 99.0, 110.0, 100)}
    lives = [
        _live("nothing", 0.0, 0.009, {}),
        _live("heartbeats alone", 0.0, 0.05, {}),
        _live("10/s", 10.0, 0.1, hops),
        _live("50/s", 50.0, 0.16, hops),
        _live("1,000/s", 1000.0, 0.39, hops),
    ]
    results = Results(machine.describe(tmp_path), quick=False, live=lives)
    assert [(target.limit, target.met) for target in targets_of(results)] == [
        (1, True),
        (15, False),
        (8, True),
        (40, True),
        (40, True),
        (80, False),
        (100, True),
        (100, False),
        (350, True),
    ]
    text = report.markdown(tables_of(results))
    assert "| CPU of the whole, % of a core | 0.9 | 5.0 | 10 | 16 | 39 |" in text
    assert "Latency at 0 " not in text


def test_a_soak_is_judged_by_what_its_end_costs_against_its_beginning(tmp_path: Path) -> None:
    tables = Tables(3_000, 40, 120, 300, 5.0)
    marks = [
        Mark(1_000, 3.0, 2.0, 4.0, 9.0, 3.0, 200.0, tables),
        Mark(100_000, 310.0, 2.4, 5.2, 9.0, 3.3, 260.0, tables),
    ]
    fresh = Mark(1_000, 3.0, 2.2, 4.0, 9.0, 3.0, 200.0, tables)
    results = Results(machine.describe(tmp_path), quick=False, soak=Soak(marks, fresh, 0.5))
    assert [(target.limit, target.met) for target in targets_of(results)] == [
        (1.2, True),
        (1.2, True),
        (1.2, False),
        (1.2, False),
    ]
    text = report.markdown(tables_of(results))
    assert "| step p50, ms | 2.0 | 2.4 | 2.2 | 1.20 | 1.09 |" in text
    assert "| files in the Delta logs | 120 | 120 | 120 | 1.00 | 1.00 |" in text


def test_a_short_soak_counts_its_steps_and_all_commits(tmp_path: Path) -> None:
    soak = commits.measure(tmp_path, 30, lambda _: None)
    (mark,) = soak.marks
    assert mark.commits == 30
    assert mark.tables.delta_commits >= 60
    assert 0 < mark.p50_ms <= mark.p99_ms <= mark.max_ms
    assert mark.cpu_ms > 0
    assert not list(tmp_path.iterdir())


def test_a_crash_day_is_replayed_by_the_command_and_checked_against_what_the_simulator_says(tmp_path: Path) -> None:
    replays = crash_day.measure(tmp_path, 20_000, 1, lambda _: None)
    assert replays.trades + replays.missing_ids == 20_000
    assert replays.holes > 0
    (run,) = replays.runs
    assert run.episodes > 10
    assert run.rss_peak_mb > 50
    assert run.cpu_s > 0.5
    assert not list(tmp_path.iterdir())


def test_a_crash_day_that_was_replayed_wrongly_gives_no_figures() -> None:
    products = {"BTC-USD": {"trades": 9}}
    summary = {"messages": 12, "trades": 9, "repeated": 2, "missing_ids": 1, "holes": 1, "products": products}
    result = {"messages": 12, "trades": 9, "duplicates": 2, "quarantined": 0, "missing_ids": 1, "holes": 1}
    result |= {"symbols": {"BTC-USD": 9}}
    crash_day.check(summary, result, episodes=1)
    for wrong in ({"trades": 8}, {"quarantined": 1}, {"holes": 2}, {"symbols": {"BTC-USD": 8}}):
        with pytest.raises(MeasurementError, match=next(iter(wrong))):
            crash_day.check(summary, result | wrong, episodes=1)
    with pytest.raises(MeasurementError, match="no episode"):
        crash_day.check(summary, result, episodes=0)


def test_growth_counts_new_files_those_that_took_anothers_place_and_what_others_grew_by(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 100)
    (tmp_path / "status").write_bytes(b"x" * 30)
    growth = Growth(tmp_path)
    (tmp_path / "log").write_bytes(b"x" * 150)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "part").write_bytes(b"x" * 1000)
    (tmp_path / "status.new").write_bytes(b"x" * 31)
    (tmp_path / "status.new").replace(tmp_path / "status")
    growth.look()
    assert (growth.files, growth.bytes_written) == (2, 1081)
    (tmp_path / "table" / "part").unlink()
    growth.look()
    assert (growth.files, growth.bytes_written) == (2, 1081)


def test_without_the_jars_the_cluster_benchmark_says_in_one_line_what_installs_them(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cluster", "--dir", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "CLUSTER_JARS": str(tmp_path / "nothing")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "is missing; `make cluster` installs" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_paced_feed_sends_every_trade_once_and_none_before_it_is_due(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", 1 << 30)
    feed = PacedFeed(log, rate=4_000, crashes_at_s=[0.1])
    while feed.age_s < 0.5:
        before_us = time.time_ns() // 1000
        feed.step()
        (_, end), now_us = log.bounds(0), time.time_ns() // 1000
        sent = log.read(0, log.origin(0), 100_000)
        assert (sent.num_rows, end - log.origin(0)) == (feed.sent, feed.sent)
        received_us = sent["received_time"].cast(pa.int64()).to_pylist()
        assert received_us == sorted(received_us)
        assert not received_us or received_us[-1] <= now_us
        time.sleep(0.005)
    assert received_us[-1] > before_us - 100_000
    found = [json.loads(body) for body in sent["body"].to_pylist()]
    log.close()
    assert len({(trade["product_id"], trade["trade_id"]) for trade in found}) == feed.sent
    assert 0.5 * 4_000 * 0.5 < feed.sent < 1.6 * 4_000 * max(feed.age_s, 0.6)
    assert feed.crashing == {"BTC-USD"}


def test_a_latency_is_the_time_from_receipt_to_the_commit_that_added_the_row(tmp_path: Path) -> None:
    received = [1_000.000_001, 1_001.0, 1_002.0]
    trades = [("BTC-USD", 1), ("BTC-USD", 2), ("ETH-USD", 2)]
    follower, at = Follower(tmp_path, SILVER), [1_000.5, 1_003.0]
    for version, rows in enumerate(((0, 1), (1, 3))):
        written = pa.table(
            {
                "symbol": [symbol for symbol, _ in trades[slice(*rows)]],
                "trade_id": [trade_id for _, trade_id in trades[slice(*rows)]],
                "ingestion_time": pa.array(
                    [round(t * 1e6) for t in received[slice(*rows)]], pa.timestamp("us", tz="UTC")
                ),
            }
        )
        write_deltalake(str(tmp_path / "silver" / "fact_crypto_trades"), written, mode="append")
        log = tmp_path / "silver" / "fact_crypto_trades" / "_delta_log"
        os.utime(log / f"{version:020d}.json", (at[version], at[version]))
        follower.look()
    DeltaTable(str(tmp_path / "silver" / "fact_crypto_trades")).optimize.compact()  # adds files, but no rows
    follower.look()
    assert follower.rows == 3
    commits = follower.commits
    assert silver_latencies_ms(commits, 0, 2_000_000_000).tolist() == pytest.approx([499.999, 2000.0, 1000.0])
    assert silver_latencies_ms(commits, 1_001_000_000, 1_002_000_000).tolist() == pytest.approx([2000.0])
    opened = {("BTC-USD", 2): 1_001.25}
    assert alert_latencies_ms(opened, received_us(commits)).tolist() == pytest.approx([250.0])


def test_an_alert_is_there_from_the_first_commit_with_it_on(tmp_path: Path) -> None:
    path, follower = tmp_path / "gold" / "dm_market_alerts", Follower(tmp_path, ALERTS)
    for version, ids in enumerate(([7], [7, 9])):
        rows = pa.table({"symbol": ["BTC-USD"] * len(ids), "trigger_trade_id": ids})
        write_deltalake(str(path), rows, mode="overwrite")
        os.utime(path / "_delta_log" / f"{version:020d}.json", (100.0 + version, 100.0 + version))
    follower.look()
    assert episodes(follower.commits) == {("BTC-USD", 7): 100.0, ("BTC-USD", 9): 101.0}


def test_both_engines_stand_beside_each_other_with_start_up_and_without(tmp_path: Path) -> None:
    latency = Latency(100.0, 200.0, 300.0, 60_000)
    measured = Measured(
        titles=["embedded", "Spark local[2]"],
        caught_up=[ClusterCatchUp(1_000, 1.0, 3.0, 400.0), ClusterCatchUp(1_000, 12.0, 32.0, 2_000.0)],
        lives=[ClusterLive(1_000.0, 60.0, first_s, latency, latency, 0.1, 1.25, 400.0) for first_s in (2.0, 15.0)],
        versions={"Spark": "4.0.0", "Java": "17.0.1"},
    )
    text = report.markdown(cluster_tables_of(machine.describe(tmp_path), measured))
    assert "|  | embedded | Spark local[2] |" in text
    assert "| trades/s through gold, start-up included | 333 | 31 |" in text
    assert "| trades/s through gold, without start-up | 500 | 50 |" in text
    assert "| process start → first trade in silver, s | 2.0 | 15.0 |" in text
    assert "| CPU live, % of a core | 125 | 125 |" in text
    assert "Spark 4.0.0, Java 17.0.1" in text


def test_memory_is_that_of_a_process_and_of_its_children() -> None:
    child = "import sys; held = bytearray(60_000_000); sys.stdin.read()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE) as popen, watched(popen.pid) as use:
        deadline = time.monotonic() + 60
        while use.pss_peak_mb <= 60 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert popen.stdin is not None
        popen.stdin.close()
    assert use.pss_peak_mb > 60


def test_cores_used_are_those_between_two_moments() -> None:
    use = Use(cpu_s=[(100.0, 0.5), (101.0, 1.5), (103.0, 5.5), (104.0, 5.6)])
    assert use.cores(100.5, 103.5) == 2.0
    assert use.cores(103.5, 110.0) == 0.0


def test_only_whole_frames_of_a_playback_are_counted() -> None:
    frames = [frame(b"x" * size) for size in (0, 1, 125, 126, 65_535, 65_536)]
    assert frames_in(b"".join(frames)) == len(frames)
    assert frames_in(b"".join(frames)[:-1]) == len(frames) - 1
    assert frames_in(b"") == frames_in(b"\x81") == 0
