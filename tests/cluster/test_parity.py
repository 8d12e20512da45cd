"""The embedded engine and Spark make the same tables of the same log: every row, decimals exact, times to the µs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from kafka_broker import KafkaBroker
from parity_messages import crash_day, misbehaving, other_venues, recorded
from requirements import jars
from spark_session import spark_conf

from cryptopulse import pipeline
from cryptopulse.lake.alerts import KINDS
from cryptopulse.lake.tables import ABSENT, ALERTS, BRONZE, COMPLETENESS, QUARANTINE, SILVER, TABLES, Table
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.opening import open_log
from cryptopulse.settings import Settings, load_settings
from support import LOADS, Message, message
from support_audit import audit
from support_bad_messages import BAD, CONTROL

pytestmark = pytest.mark.cluster

DONE_HERE = {*LOADS, "bronze_ingestion_time"}
"""Columns that say when an engine did something."""

DIGITS = 1e-14
"""Declared difference: doubles may differ in their last digit; the decimals that they are made of may not."""

KAFKA_MESSAGE_MAX = 900_000

PRODUCTS = ("BTC-USD", "ETH-USD", "SHIB-USD", "BTC-USDT@kraken", "BTC-USDT@okx", "BTCUSDT@binance")


RULES = [
    {"name": "price-move"},
    {"name": "volume", "types": ["VOLUME_SURGE"], "threshold_pct": "300", "lookback_s": 60, "baseline_windows": 8},
    {"name": "flow", "types": ["BUY_IMBALANCE", "SELL_IMBALANCE"], "threshold_pct": "70", "min_trades": 20},
    {"name": "swings", "types": ["VOLATILITY"], "threshold_pct": "1.5"},
    {"name": "apart", "types": ["DISLOCATION"], "threshold_pct": "0.5", "lookback_s": 20},
    {"name": "quiet", "types": ["SILENCE"], "threshold_pct": "300", "lookback_s": 20, "baseline_windows": 8},
    {
        "name": "share",
        "types": ["CUSTOM"],
        "threshold_pct": "40",
        "sql": "SELECT symbol, 100 * sum(trade_count) / (SELECT sum(trade_count) FROM bars) AS value "
        "FROM bars GROUP BY symbol",
    },
]

INTERPRETED = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}


def parts() -> list[list[Message]]:
    """What arrives, in three parts; late trades of the first arrive with the last."""
    sent = list(misbehaving(crash_day(seed=11), seed=12))
    third = len(sent) // 3
    late = [m for number, m in enumerate(sent[:third]) if number % 200 == 0]
    first = [m for number, m in enumerate(sent[:third]) if number % 200]
    bad = [*(one for one, _reason in BAD.values()), *map(message, CONTROL)]
    arriving = [
        first,
        [*sent[third : 2 * third], *bad, *other_venues()],
        [*sent[2 * third :], *late, *recorded(), *first[::300]],
    ]
    return [[one for one in part if len(one["body"]) < KAFKA_MESSAGE_MAX] for part in arriving]


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Settings]]:
    """Settings of the embedded engine's lake and of Spark's, each brought up to date after each part."""
    folder = tmp_path_factory.mktemp("parity")
    conf = spark_conf()
    with pytest.MonkeyPatch.context() as patch, KafkaBroker(folder / "kafka", jars("kafka")) as broker:
        patch.setenv("CRYPTOPULSE_ALERTS__RULES", json.dumps(RULES))
        broker.create_topic("trades", partitions=3)
        log = {"url": f"kafka://{broker.bootstrap}/trades"}
        embedded = load_settings(lake=folder / "embedded", log=log, processing={"batch_messages_max": 700})
        spark = load_settings(lake=folder / "spark", log=log, processing={"engine": "spark"}, spark={"conf": conf})
        for number, messages in enumerate(parts()):
            kafka = open_log(embedded)
            kafka.append(pa.Table.from_pylist(messages, schema=MESSAGE_SCHEMA))
            pipeline.drain(embedded, kafka, lambda _done, _total: None)
            kafka.close()
            # Once interpreted instead of compiled, as small batches are. The last time with checkpoints lost: all is
            # read again, and nothing may change by that.
            drain_with_spark(spark, folder, INTERPRETED if number == 1 else {}, "_lost" if number == 2 else "")
        yield embedded, spark


def drain_with_spark(settings: Settings, folder: Path, conf: dict[str, str], checkpoints: str) -> None:
    """As a user does it: a process of its own, told by a configuration file."""
    config = folder / "cryptopulse.toml"
    lines = "\n".join(f'"{name}" = "{value}"' for name, value in {**settings.spark.conf, **conf}.items())
    config.write_text(
        f'lake = "{settings.lake}"\n[log]\nurl = "{settings.log.url}"\n[processing]\nengine = "spark"\n'
        f'[spark]\ncheckpoints = "{folder}/checkpoints{checkpoints}"\n[spark.conf]\n{lines}\n'
    )
    command = [sys.executable, "-m", "cryptopulse", "process", "--config", str(config), "--once"]
    # In a folder of its own: Spark makes one for its warehouse where it is started. A slow machine needs long for it.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1200, env=dict(os.environ), cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.qualified)
def test_both_engines_keep_the_same_rows(lakes: tuple[Settings, Settings], table: Table) -> None:
    ours, sparks = (rows_of(settings, table) for settings in lakes)
    assert len(ours) > 3
    assert sparks.keys() == ours.keys()
    for key, row in ours.items():
        assert differences(row, sparks[key]) == {}, key


def test_the_input_has_something_of_everything(lakes: tuple[Settings, Settings]) -> None:
    embedded, _ = lakes
    alerts = rows_of(embedded, ALERTS).values()
    assert {row["alert_type"] for row in alerts} == set(KINDS)
    assert len(rows_of(embedded, QUARANTINE)) > len(BAD) * 0.9
    assert len({row["partition"] for row in rows_of(embedded, BRONZE).values()}) > 1
    silver = rows_of(embedded, SILVER).values()
    assert {*PRODUCTS} <= {row["symbol"] for row in silver}
    assert {row["source"] for row in silver} == {"websocket", "rest", "import"}
    proofs = [(row["symbol"], row["first_trade_id"]) for row in rows_of(embedded, ABSENT).values()]
    assert len(proofs) > len(set(proofs)) > 10
    hours = rows_of(embedded, COMPLETENESS).values()
    assert {row["is_complete"] for row in hours} == {True, False}
    for count in ("healed_ids", "absent_ids", "missing_ids"):
        assert len([row for row in hours if row[count]]) > 10, count


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.qualified)
def test_both_engines_make_the_same_columns_and_partitions(lakes: tuple[Settings, Settings], table: Table) -> None:
    ours, sparks = (DeltaTable(f"{settings.lake}/{table.schema}/{table.name}") for settings in lakes)
    assert [(f.name, f.type, f.nullable) for f in sparks.schema().fields] == [
        (f.name, f.type, f.nullable) for f in ours.schema().fields
    ]
    assert sparks.metadata().partition_columns == ours.metadata().partition_columns
    statistics = "delta.dataSkippingStatsColumns"
    assert sparks.metadata().configuration[statistics] == ours.metadata().configuration[statistics]


def rows_of(settings: Settings, table: Table) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The table's rows by key, read with nothing but deltalake, without the columns that say when it was done."""
    rows = DeltaTable(f"{settings.lake}/{table.schema}/{table.name}").to_pyarrow_table()
    found = rows.drop_columns([name for name in rows.column_names if name in DONE_HERE]).to_pylist()
    by_key = {tuple(row[name] for name in table.key): row for row in found}
    assert len(by_key) == len(found), "a key stands twice"
    return by_key


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    assert one.keys() == other.keys()
    return {name: (one[name], other[name]) for name in one if not is_same(name, one, other)}


def is_same(name: str, one: dict[str, Any], other: dict[str, Any]) -> bool:
    if isinstance(one[name], float):
        return math.isclose(one[name], other[name], rel_tol=DIGITS)
    return bool(one[name] == other[name])


def test_the_audit_finds_nothing_wrong_with_either_lake(
    lakes: tuple[Settings, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for trades that were dropped, and what was sent wrongly of other venues.

    Spark does not say how far it is: ten minutes settle it.
    """
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + 700 * 10**9)
    embedded, spark = (audit(settings.lake) for settings in lakes)
    for found in (embedded, spark):
        others = sorted((one["kind"], one["symbol"]) for one in found.findings if one["kind"] != "hole")
        assert others == [("ids_refused", "BTC-USDT@kraken"), ("trades_conflict", "BTCUSDT@binance")]
        assert "hole" in found.kinds
        assert all(check["skipped"] == 0 for check in found.json["checks"])
    assert embedded.json["products"] == spark.json["products"]
