"""What machines ask: does it live, is it ready, and the figures for Prometheus, of real tables and status files."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cryptopulse.lake.files import Files
from cryptopulse.lake.tables import ALERTS, BARS, SILVER
from cryptopulse.serve.ops.lake import TableFigures
from cryptopulse.serve.ops.processes import FIGURES
from cryptopulse.status import StatusFile
from support import Lake, Trade, message
from support_serve import Served


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    """Trades of just now: one product with a hole, one that crashes, and a message that is none."""
    made = Lake(tmp_path / "lake")
    now = datetime.now(UTC) - timedelta(seconds=30)
    trades = [Trade("BTC-USD", number, now, price="100") for number in range(1, 11) if number not in (4, 5)]
    trades += [
        Trade("ETH-USD", number, now + timedelta(seconds=number), price=str(100 - number)) for number in range(1, 6)
    ]
    made.take_in([trade.match() for trade in trades] + [message(b"{nonsense", key="BTC-USD", received=now)])
    yield made
    made.close()


def metrics(served: Served) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by its name and labels."""
    answer = served.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"cryptopulse_{name}", frozenset(labels.items())


def checks(served: Served) -> dict[str, Any]:
    return {check["name"]: check for check in served.get("/readyz").json()["checks"]}


def test_a_fresh_lake_is_ready(lake: Lake) -> None:
    with Served(lake.path) as served:
        answer = served.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")


def test_a_lake_that_stands_still_is_not_ready_and_says_since_when(lake: Lake) -> None:
    with Served(lake.path, fresh_s=0.001) as served:
        assert served.get("/readyz").status_code == 503
        found = checks(served)
        assert found["lake"]["ok"]
        assert not found["fresh"]["ok"]
        assert "serve.fresh_s = 0.001" in found["fresh"]["detail"]


def test_without_a_lake_it_is_not_ready_until_there_is_one(tmp_path: Path) -> None:
    with Served(tmp_path / "lake") as served:
        assert served.get("/healthz").status_code == 200
        assert served.get("/readyz").status_code == 503
        assert "Table silver.fact_crypto_trades not found" in checks(served)["lake"]["detail"]
        lake = Lake(tmp_path / "lake")
        lake.take_in([Trade("BTC-USD", 1, datetime.now(UTC)).match()])
        lake.close()
        deadline_s = time.monotonic() + 10
        while served.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline_s, served.get("/readyz").text
            time.sleep(0.1)


def test_a_table_that_cannot_be_read_is_not_ready(lake: Lake) -> None:
    for file in lake.folder(BARS).rglob("*.parquet"):
        file.write_bytes(b"PAR1 nothing of the kind PAR1")
    with Served(lake.path) as served:
        assert served.get("/readyz").status_code == 503
        assert "gold.dm_trade_bars" in checks(served)["lake"]["detail"]
        assert served.get("/healthz").status_code == 200


def test_the_figures_of_the_tables_are_those_of_the_tables(lake: Lake) -> None:
    with Served(lake.path) as served:
        found = metrics(served)
        assert found[key("lake_readable")] == 1
        assert found[key("trades_total")] == lake.arrow(SILVER).num_rows == 13
        assert found[key("quarantined_messages_total")] == 1
        assert found[key("table_rows", table="gold.dm_trade_bars")] == lake.arrow(BARS).num_rows
        assert found[key("table_version", table="gold.dm_trade_bars")] == lake.delta(BARS).version()
        newest = max(row["event_time"] for row in lake.arrow(SILVER).to_pylist())
        assert found[key("newest_trade_timestamp_seconds")] == pytest.approx(newest.timestamp(), abs=0.001)
        loaded = max(row["load_timestamp"] for row in lake.arrow(SILVER).to_pylist())
        told = found[key("table_last_load_timestamp_seconds", table=SILVER.qualified)]
        assert told == pytest.approx(loaded.timestamp(), abs=0.001)
        assert found[key("trade_ids_missing", product="BTC-USD")] == 2
        assert found[key("trade_ids_held_total", product="ETH-USD")] == 5
        (alert,) = lake.arrow(ALERTS).to_pylist()
        assert found[key("alerts_total", rule=alert["rule"], type="FLASH_CRASH")] == 1
        assert found[key("alerts_total", rule=alert["rule"], type="PRICE_SURGE")] == 0
        labels = {"severity": alert["severity"], "state": alert["state"]}
        assert found[key("alert_episodes", rule=alert["rule"], type="FLASH_CRASH", **labels)] == 1


def test_alerts_of_each_rule_are_counted_from_0_on(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [{"name": "deep", "types": ["FLASH_CRASH"]}, {"name": "any"}, {"name": "any", "products": ["BTC-USD"]}]
    monkeypatch.setenv("CRYPTOPULSE_ALERTS__RULES", json.dumps(rules))
    with Served(lake.path) as served:
        found = metrics(served)
    of_rules = {labels: value for (name, labels), value in found.items() if name == "cryptopulse_alerts_total"}
    expected = [("deep", "FLASH_CRASH", 0), ("any", "FLASH_CRASH", 0), ("any", "PRICE_SURGE", 0)]
    (alert,) = lake.arrow(ALERTS).to_pylist()  # of a rule that is configured no more
    expected.append((alert["rule"], alert["alert_type"], 1))
    assert of_rules == {key("", rule=rule, type=kind)[1]: count for rule, kind, count in expected}


def test_one_trade_of_the_year_9999_does_not_hide_how_old_the_newest_is(lake: Lake) -> None:
    newest, far = datetime.now(UTC) - timedelta(seconds=5), datetime(9999, 12, 31, tzinfo=UTC)
    times = pa.array([newest, far, None], pa.timestamp("us", "UTC"))
    firsts = pa.array([newest - timedelta(1), newest - timedelta(1), None], pa.timestamp("us", "UTC"))
    actions = {"path": ["a", "b", "c"], "min.event_time": firsts, "max.event_time": times}
    files = Files(lake.settings.location, SILVER, 1, pa.table(actions))
    assert TableFigures.of(files).happened_at_s == pytest.approx(newest.timestamp(), abs=0.001)


def test_the_figures_follow_the_tables(lake: Lake) -> None:
    with Served(lake.path) as served:
        assert metrics(served)[key("trades_total")] == 13
        of_the_others = lake.arrow(SILVER)["event_time"][0].as_py()  # another hour would count the id as well
        lake.take_in([Trade("BTC-USD", 4, of_the_others).match()])
        found = metrics(served)
        assert found[key("trades_total")] == 14
        assert found[key("trade_ids_held_total", product="BTC-USD")] == 9


def test_the_figures_of_other_processes_come_from_their_status_files(lake: Lake) -> None:
    state = lake.settings.state_dir
    producer, processing = StatusFile(state, "producer", restarts=3), StatusFile(state, "processing")
    producer.report({"messages_total": 50, "ids_missing": 2, "ids_healed": 7, "last_message_age_s": None})
    latency = {"receive_to_silver": {"p50": 20.0, "p99": 90.5, "max": 120, "n": 9}, "receive_to_gold": {"p50": None}}
    processing.report({"latency_ms": latency, "log_lag_messages": 11, "trades_per_s": 12.5})
    with Served(lake.path) as served:
        found = metrics(served)
    assert found[key("process_up", process="producer")] == 1
    assert found[key("process_restarts_total", process="producer")] == 3
    assert found[key("process_resident_memory_bytes", process="producer")] > 1_000_000
    assert found[key("process_cpu_seconds_total", process="processing")] > 0
    assert found[key("feed_messages_total")] == 50
    assert (found[key("feed_ids_missing")], found[key("feed_ids_healed_total")]) == (2, 7)
    assert found[key("log_lag_messages")] == 11
    assert found[key("hop_latency_seconds", hop="receive_to_silver", quantile="0.99")] == pytest.approx(0.0905)
    assert found[key("hop_latency_max_seconds", hop="receive_to_silver")] == pytest.approx(0.12)
    assert key("hop_latency_seconds", hop="receive_to_gold", quantile="0.5") not in found
    assert key("feed_last_message_age_seconds") not in found
    assert key("process_up", process="notifier") not in found


def test_a_process_that_failed_is_down(lake: Lake) -> None:
    StatusFile(lake.settings.state_dir, "processing").close(error="The log is full.")
    with Served(lake.path) as served:
        assert metrics(served)[key("process_up", process="processing")] == 0


def test_without_a_lake_the_figures_say_so(tmp_path: Path) -> None:
    with Served(tmp_path / "lake") as served:
        found = metrics(served)
        assert found[key("trades_total")] == 0
        assert key("table_rows", table=SILVER.qualified) not in found


def test_requests_are_counted_by_few_labels_whatever_is_asked(lake: Lake) -> None:
    with Served(lake.path) as served:
        for path in ("/api/bars", "/api/bars?limit=0", "/api/x", "/api/y", "/some/page", "/another"):
            served.get(path)
        served.client.request("PURGE", "/api/bars")
        found = metrics(served)
    counted = {
        (labels["method"], labels["handler"], labels["status"]): value
        for (name, pairs), value in found.items()
        if name == "cryptopulse_http_requests_total"
        for labels in [dict(pairs)]
    }
    assert counted[("GET", "/api/bars", "200")] == counted[("GET", "/api/bars", "422")] == 1
    assert counted[("GET", "/api", "404")] == counted[("GET", "dashboard", "404")] == 2
    assert counted[("other", "/api/bars", "405")] == 1
    assert found[key("http_request_duration_seconds_count", handler="/api/bars")] == 3


_METRIC = re.compile(r"\bcryptopulse_[a-z0-9_]+")


def test_every_metric_of_the_documentation_and_of_grafana_is_told(lake: Lake) -> None:
    for process, figures in FIGURES.items():
        StatusFile(lake.settings.state_dir, process).report(
            {**dict.fromkeys(figures, 1), "latency_ms": {"receive_to_silver": {"p50": 1, "p99": 2, "max": 3}}}
        )
    with Served(lake.path) as served:
        served.get("/healthz")
        told = {name for name, _ in metrics(served)}
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    named = set(_METRIC.findall(page)) - {"cryptopulse_feed_"}
    assert len(named) > 30
    assert {name for name in named if not {name, f"{name}_count"} & told} <= {"cryptopulse_http_connections_open"}
    grafana = (Path(__file__).parents[2] / "deploy" / "grafana" / "cryptopulse.json").read_text()
    asked = {name for panel in json.loads(grafana)["panels"] for name in _METRIC.findall(json.dumps(panel))}
    assert len(asked) >= 15
    assert asked <= told


def test_names_and_types_are_as_is_usual(lake: Lake) -> None:
    StatusFile(lake.settings.state_dir, "producer").report({"messages_total": 1, "buffer_bytes": 2})
    with Served(lake.path) as served:
        families = list(text_string_to_metric_families(served.get("/metrics").text))
    ours = [family for family in families if family.name.startswith("cryptopulse_")]
    assert len({family.name for family in ours}) == len(ours)
    assert all(family.documentation for family in ours)
    assert {"process_resident_memory_bytes", "process_cpu_seconds"} <= {family.name for family in families}
    for family in ours:
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            assert not sample.name.endswith(("_ms", "_mb", "_us"))
