"""From Kafka to the tables: the same rows as through the embedded log, whatever the broker goes through."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from kafka_broker import KafkaBroker
from requirements import jars
from structlog.testing import capture_logs

from cryptopulse import pipeline
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.tables import ALERTS, BRONZE, COVERAGE, SILVER, TABLES
from cryptopulse.log.opening import open_log
from support import Lake, Message, Trade, at, message
from support_audit import audit

pytestmark = pytest.mark.cluster

PLACE = ("partition", "offset")
"""Where a message stood in its log, which differs between logs."""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path_factory.mktemp("kafka"), jars("kafka")) as started:
        yield started


@pytest.fixture
def lake_of(broker: KafkaBroker, tmp_path: Path) -> Iterator[Callable[..., Lake]]:
    """Opens a lake on a topic; again the same lake when asked again."""
    opened: list[Lake] = []

    def make(topic: str, folder: str = "lake", **log: Any) -> Lake:
        lake = Lake(tmp_path / folder, log={"url": f"kafka://{broker.bootstrap}/{topic}", **log})
        opened.append(lake)
        return lake

    yield make
    for lake in opened:
        lake.log.close()


def trades(count: int, first: int = 1, products: tuple[str, ...] = ("BTC-USD", "ETH-USD", "SOL-USD")) -> list[Trade]:
    """So many of each product, with prices that crash now and then."""
    rng = random.Random(count)
    found = []
    for number in range(count):
        for symbol in products:
            fallen = 5 if (number // 40) % 3 == 2 else 0
            price = f"{100 - fallen + rng.random():.2f}"
            found.append(Trade(symbol, first + number, at(number * 1.5), price, "0.5", rng.choice(["BUY", "SELL"])))
    return found


def with_oddities(found: list[Trade]) -> list[Message]:
    """The trades as messages, with a repetition, garbage and control messages among them."""
    sent = [trade.match() for trade in found]
    sent.insert(7, message(b'{"type":"subscriptions","channels":[]}'))
    sent.insert(20, message(b"\xff\x00 not JSON"))
    sent.insert(50, sent[40])
    return sent


def contents(lake: Lake) -> dict[str, Any]:
    times = ("enqueued_time", "bronze_ingestion_time", "quarantined_at")
    rows = {table.qualified: lake.rows(table, *PLACE, *times) for table in TABLES}
    rows[BRONZE.qualified].sort(key=lambda row: (row["partition_key"], row["received_time"], row["body"]))
    return rows


@pytest.mark.parametrize("partitions", [1, 3])
def test_the_tables_are_those_of_the_embedded_log(
    partitions: int, broker: KafkaBroker, lake_of: Callable[..., Lake], tmp_path: Path
) -> None:
    sent = with_oddities(trades(400))
    embedded = Lake(tmp_path / "embedded")
    embedded.take_in(sent)
    lake = lake_of(f"same-{partitions}", kafka_partitions=partitions)
    summary: dict[str, Any] = {}
    for start in range(0, len(sent), 300):
        summary = lake.take_in(sent[start : start + 300])
    assert contents(lake) == contents(embedded)
    assert summary["missing_ids"] == 0
    assert len(lake.rows(ALERTS)) > 0
    stored = lake.arrow(BRONZE)
    assert (len(set(stored["partition"].to_pylist())) > 1) == (partitions > 1)
    embedded.close()


def test_a_restarted_processing_goes_on_where_bronze_stands(lake_of: Callable[..., Lake]) -> None:
    found = trades(200)
    first = lake_of("resume", kafka_partitions=2)
    first.take_in([trade.match() for trade in found[:300]])
    first.append([trade.match() for trade in found[300:]])
    again = lake_of("resume")
    result = again.drain(batch=50)
    assert result["messages"] == 300
    assert len(again.rows(SILVER)) == 600
    assert again.arrow(BRONZE).num_rows == 600


def expire(broker: KafkaBroker, topic: str, below: int) -> None:
    """What retention does."""
    admin = broker.admin()
    (done,) = admin.delete_records([TopicPartition(topic, 0, below)]).values()
    done.result(30)


def test_what_retention_took_unread_is_said_once_counted_and_a_hole(
    broker: KafkaBroker, lake_of: Callable[..., Lake]
) -> None:
    found = trades(300, products=("BTC-USD",))
    lake = lake_of("expired")
    lake.take_in([trade.match() for trade in found[:100]])
    lake.append([trade.match() for trade in found[100:]])
    expire(broker, "expired", 150)
    with capture_logs() as said, pipeline.Pipeline(lake.settings, lake.log) as running:
        for _ in range(3):
            running.drain(lambda _done, _total: None)
        state = running.state()
    expired = [line for line in said if line["event"] == "messages_expired"]
    assert [(line["partition"], line["first_offset"], line["last_offset"], line["count"]) for line in expired] == [
        (0, 100, 149, 50)
    ]
    assert state["messages_expired_total"] == 50
    intervals = [(row["first_trade_id"], row["last_trade_id"]) for row in lake.rows(COVERAGE)]
    assert intervals == [(1, 100), (151, 300)]
    audited = audit(lake.path)
    assert (audited.kinds, audited.checked("messages expired unread")) == (["hole"], 50)


def test_retention_that_passes_a_reader_at_work_is_said_too(broker: KafkaBroker, lake_of: Callable[..., Lake]) -> None:
    found = trades(300, products=("BTC-USD",))
    lake = lake_of("overtaken")
    with capture_logs() as said, pipeline.Pipeline(lake.settings, lake.log) as running:
        lake.append([trade.match() for trade in found[:100]])
        running.drain(lambda _done, _total: None)
        lake.append([trade.match() for trade in found[100:200]])  # the log lets go of its reader here
        expire(broker, "overtaken", 180)
        lake.append([trade.match() for trade in found[200:]])
        running.drain(lambda _done, _total: None)
        assert running.state()["messages_expired_total"] == 80
    assert [line["count"] for line in said if line["event"] == "messages_expired"] == [80]
    assert len(lake.rows(SILVER)) == 220
    assert audit(lake.path).checked("messages expired unread") == 80


def test_a_log_that_ends_before_what_the_lake_holds_is_refused_until_the_epoch_is_raised(
    broker: KafkaBroker, lake_of: Callable[..., Lake]
) -> None:
    found = trades(200, products=("BTC-USD",))
    lake = lake_of("old")
    lake.take_in([trade.match() for trade in found[:150]])
    assert lake.drain()["messages"] == 0  # exactly at the end: nothing wrong
    anew = lake_of("new")
    anew.append([trade.match() for trade in found[150:]])
    with pytest.raises(ConfigurationError, match=r"raise log\.epoch by one") as error:
        anew.drain()
    assert "\n" not in str(error.value)
    raised = lake_of("new", epoch=1)
    raised.drain()
    assert len(raised.rows(SILVER)) == 200
    assert set(raised.arrow(BRONZE)["partition"].to_pylist()) == {0, 10_000}


def test_a_lake_moves_from_the_embedded_log_to_kafka_by_an_epoch(lake_of: Callable[..., Lake], tmp_path: Path) -> None:
    found = trades(100)
    embedded = Lake(tmp_path / "lake")
    embedded.take_in([trade.match() for trade in found[:150]])
    embedded.close()
    moved = lake_of("moved")
    with pytest.raises(ConfigurationError, match=r"log\.epoch"):
        moved.drain()
    moved = lake_of("moved", epoch=1)
    moved.take_in([trade.match() for trade in found[100:]])  # some are there already
    assert len(moved.rows(SILVER)) == 300
    assert len(moved.rows(COVERAGE)) == 3


def test_a_live_processing_outlives_its_broker(tmp_path: Path) -> None:
    found = trades(300)
    with KafkaBroker(tmp_path / "kafka", jars("kafka")) as broker:
        settings = Lake(tmp_path / "lake", log={"url": f"kafka://{broker.bootstrap}/live"}).settings
        stop, states = threading.Event(), list[dict[str, object]]()
        errors: list[BaseException] = []

        def run() -> None:
            try:
                with closing(open_log(settings)) as log:
                    pipeline.process(settings, log, stop, states.append)
            except BaseException as error:  # noqa: BLE001 - shown by the test
                errors.append(error)

        with closing(open_log(settings)) as log:
            lake = Lake(tmp_path / "lake")
            lake.log = log  # type: ignore[assignment] # another kind, by the same contract
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            for part in range(3):
                lake.append([trade.match() for trade in found[part * 300 : part * 300 + 300]])
                wanted = (part + 1) * 300
                deadline = time.monotonic() + 120
                while not errors and not (states and states[-1]["trades_total"] == wanted):
                    assert time.monotonic() < deadline, states and states[-1]["trades_total"]
                    time.sleep(0.05)
                if part < 2:
                    broker.kill()
                    time.sleep(4)
                    broker.start()
            stop.set()
            thread.join(120)
        assert not errors
        assert not thread.is_alive()
        assert len(lake.rows(SILVER)) == 900
        assert lake.arrow(BRONZE).num_rows >= 900
