"""The Spark engine and what lies around it: partitions that come, messages that go, a lake on S3, a catalog."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import NewPartitions
from deltalake import DeltaTable
from kafka_broker import KafkaBroker
from requirements import jars
from spark_session import spark_conf
from storage_servers import Storage, start_s3
from structlog.testing import capture_logs

from cryptopulse.errors import ConfigurationError, Fenced, LakeBusy
from cryptopulse.lake.lock import LakeLock
from cryptopulse.lake.tables import BRONZE, COVERAGE, QUARANTINE, SILVER, TABLES, Table
from cryptopulse.log.kafka_address import kafka_address
from cryptopulse.pipeline import Pipeline
from cryptopulse.settings import STEPS
from support import Lake, Message, Trade, at, message, page
from support_audit import audit
from support_processes import wait_until

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from cryptopulse.engine.spark.checkpoint import Checkpoint
    from cryptopulse.engine.spark.session import SparkSql
    from cryptopulse.engine.spark.tables import BatchId

pytestmark = pytest.mark.cluster

MakeLake = Callable[..., "SparkLake"]


class SparkLake(Lake):
    """A lake that Spark keeps up to date, in this process."""

    steps: Sequence[str] = ("bronze", "silver")
    """Gold does not know the log."""

    def drain(self, batch: int | None = None) -> dict[str, Any]:
        from cryptopulse.engine.spark.processing import drain

        spark = self.settings.spark.model_copy(update={"messages_per_batch_max": batch or 1_000_000})
        return drain(self.settings.model_copy(update={"spark": spark}), self.log, self.steps)

    def delta(self, table: Table) -> DeltaTable:
        if self.settings.spark.catalog is None:
            return super().delta(table)
        warehouse = self.settings.spark.conf["spark.sql.warehouse.dir"]
        return DeltaTable(f"{warehouse}/{table.schema}.db/{table.name}")

    def places(self) -> list[tuple[int, int]]:
        rows = self.arrow(BRONZE).select(["partition", "offset"]).to_pylist()
        return sorted((row["partition"], row["offset"]) for row in rows)


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Settings of the one session of this file, which the first test starts."""
    yield {**spark_conf(), "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse"))}
    from pyspark.sql import SparkSession

    if session := SparkSession.getActiveSession():
        session.stop()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path_factory.mktemp("kafka"), jars("kafka")) as started:
        yield started


@pytest.fixture
def lake_of(broker: KafkaBroker, conf: dict[str, str], tmp_path: Path) -> Iterator[MakeLake]:
    """Opens the test's lake on a topic; again the same lake when asked again."""
    opened: list[SparkLake] = []

    def make(topic: str, url: str | None = None, spark: dict[str, Any] | None = None, **options: Any) -> SparkLake:
        log = {"url": f"kafka://{broker.bootstrap}/{topic}", **options.pop("log", {})}
        given = {"log": log, "spark": {"conf": conf, **(spark or {})}, **options}
        opened.append(SparkLake(url or tmp_path / "lake", **given))
        return opened[-1]

    yield make
    for lake in opened:
        lake.close()


def trades(ids: range, symbol: str = "BTC-USD") -> list[Message]:
    return [Trade(symbol, number, at(number * 1.5), f"{100 + number % 5}").match() for number in ids]


def intervals(lake: Lake) -> list[tuple[int, int]]:
    return [(row["first_trade_id"], row["last_trade_id"]) for row in lake.rows(COVERAGE)]


def expire(broker: KafkaBroker, topic: str, below: int) -> None:
    """What retention does."""
    admin = broker.admin()
    (done,) = admin.delete_records([TopicPartition(topic, 0, below)]).values()
    done.result(30)


def test_messages_in_partitions_that_were_added_later_are_taken_once(broker: KafkaBroker, lake_of: MakeLake) -> None:
    products = ("BTC-USD", "ETH-USD", "SOL-USD", "ADA-USD", "XRP-USD")
    lake = lake_of("grows")
    lake.take_in([one for symbol in products for one in trades(range(1, 41), symbol)])
    admin = broker.admin()
    admin.create_partitions([NewPartitions("grows", 3)])["grows"].result(30)
    lake = lake_of("grows")  # a producer notices within minutes, a new one at once
    lake.take_in([one for symbol in products for one in trades(range(41, 81), symbol)])
    assert len({partition for partition, _ in lake.places()}) > 1
    assert len(set(lake.places())) == len(lake.places()) == 400
    assert intervals(lake) == [(1, 80)] * 5


@pytest.mark.parametrize("checkpoint", ["kept", "lost"])
def test_what_retention_took_unread_is_said_counted_and_a_hole(
    checkpoint: str, broker: KafkaBroker, lake_of: MakeLake, tmp_path: Path
) -> None:
    topic = f"expired-{checkpoint}"
    lake = lake_of(topic)
    lake.take_in(trades(range(1, 101)))
    lake.append(trades(range(101, 301)))
    expire(broker, topic, 250)
    if checkpoint == "lost":
        lake = lake_of(topic, spark={"checkpoints": str(tmp_path / "others")})
    with capture_logs() as said:
        state = lake.drain(batch=40)  # so that of some batches nothing is left
    counts = [line["count"] for line in said if line["event"] == "messages_expired"]
    assert sum(counts) == state["messages_expired_total"] == 150
    assert intervals(lake) == [(1, 100), (251, 300)]
    assert lake.drain()["messages_expired_total"] == 0
    audited = audit(lake.path)
    assert (audited.of("offsets_missing"), audited.checked("messages expired unread")) == ([], 150)


def test_a_batch_that_bronze_held_before_a_kill_is_neither_doubled_nor_taken_for_expired(lake_of: MakeLake) -> None:
    lake = lake_of("killed")
    lake.take_in(trades(range(1, 51)))
    lake.take_in(trades(range(51, 101)))
    for step in ("bronze", "silver"):  # as a kill between the commit to the table and that to the checkpoint leaves it
        commits = lake.path / "_cryptopulse" / "checkpoints" / step / "commits"
        newest = max(int(path.name) for path in commits.iterdir() if path.name.isdigit())
        for path in (commits / str(newest), commits / f".{newest}.crc"):
            path.unlink(missing_ok=True)
    with capture_logs() as said:
        state = lake.drain()
    assert [line for line in said if line["event"] == "messages_expired"] == []
    assert state["messages_expired_total"] == 0
    assert len(set(lake.places())) == len(lake.places()) == 100
    assert sorted(row["trade_id"] for row in lake.rows(SILVER)) == [*range(1, 101)]
    assert lake.take_in(trades(range(101, 111)))["trades_total"] == 10
    assert intervals(lake) == [(1, 110)]


def test_a_topic_made_anew_is_refused_until_the_epoch_is_raised(broker: KafkaBroker, lake_of: MakeLake) -> None:
    lake = lake_of("anew")
    lake.take_in(trades(range(1, 151)))
    lake.close()
    admin = broker.admin()
    admin.delete_topics(["anew"])["anew"].result(30)
    create_when_gone(broker, "anew")
    lake = lake_of("anew")
    lake.append(trades(range(151, 201)))
    with pytest.raises(ConfigurationError, match=r"raise log\.epoch by one"):
        lake.drain()
    raised = lake_of("anew", log={"epoch": 1})
    raised.drain()
    assert raised.places() == [*((0, number) for number in range(150)), *((10_000, number) for number in range(50))]
    assert intervals(raised) == [(1, 200)]


def create_when_gone(broker: KafkaBroker, topic: str) -> None:
    """A topic's end takes a moment."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return broker.create_topic(topic)
        except KafkaException:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Storage]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    server = start_s3()
    yield server
    server.close()


def assert_as_embedded(lake: SparkLake, folder: Path) -> None:
    """All four steps, in two parts, make the tables of the embedded engine."""
    lake.steps = STEPS
    sent = [*trades(range(1, 61)), *trades(range(5, 65), "ETH-USD"), message(b"{broken")]
    later = [*trades(range(70, 121)), *trades(range(60, 90), "ETH-USD"), page_of(range(58, 75))]
    embedded = Lake(folder)
    for part in (sent, later):
        embedded.take_in(part)
        lake.take_in(part)
    assert lake.contents() == embedded.contents()
    assert len(lake.places()) == len(sent) + len(later)
    assert all(lake.arrow(table).num_rows for table in TABLES)
    embedded.close()


def test_a_lake_on_s3_has_the_tables_of_the_embedded_engine_in_a_folder(
    s3: Storage, lake_of: MakeLake, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lake = lake_of("on-s3", url=s3.new_lake(), storage={"options": s3.options})
    assert_as_embedded(lake, tmp_path / "embedded")
    told = capfd.readouterr()
    assert s3.secret not in told.out + told.err


def test_tables_of_a_catalog_are_those_of_the_embedded_engine(lake_of: MakeLake, tmp_path: Path) -> None:
    """By name, as on Databricks."""
    lake = lake_of("by-name", spark={"catalog": "spark_catalog", "checkpoints": str(tmp_path / "checkpoints")})
    assert_as_embedded(lake, tmp_path / "embedded")
    assert not [table for table in TABLES if lake.folder(table).exists()]


def page_of(ids: range) -> Message:
    """What the REST interface gives for these ids, one of which the exchange never had."""
    return page([Trade("BTC-USD", number, at(number * 1.5), f"{100 + number % 5}") for number in ids if number != 66])


@pytest.fixture
def embedded_of(lake_of: MakeLake) -> Iterator[Callable[[SparkLake], Lake]]:
    """The same lake and topic for the embedded engine."""
    opened: list[Lake] = []

    def make(lake: SparkLake) -> Lake:
        opened.append(Lake(lake.path, log={"url": lake.settings.log.url}))
        return opened[-1]

    yield make
    for lake in opened:
        lake.close()


def test_the_engines_may_take_turns_and_nothing_doubles(
    lake_of: MakeLake, embedded_of: Callable[[SparkLake], Lake], tmp_path: Path
) -> None:
    """With the checkpoints kept: what the other engine stored meanwhile is known by the tables."""
    lake = lake_of("turns")
    embedded = embedded_of(lake)
    parts = [[*trades(range(n, n + 20)), message(b"{%d" % n), page_without(n + 10)] for n in (1, 21, 41, 61, 81)]
    for taking, part in zip((lake, embedded, lake, embedded, lake), parts, strict=True):
        taking.take_in(part)
    lake.steps = STEPS
    lake.drain()
    alone = Lake(tmp_path / "alone")
    for part in parts:
        alone.take_in(part)
    assert len(set(lake.places())) == len(lake.places()) == sum(map(len, parts))
    places = [(row["partition"], row["offset"]) for row in lake.rows(QUARANTINE)]
    assert len(set(places)) == len(places) == len(parts)
    assert lake.contents() == alone.contents()
    alone.close()


def page_without(number: int) -> Message:
    """A page that shows that the exchange never had one id."""
    return page([Trade("ADA-USD", one, at(one * 1.0)) for one in range(number, number + 10) if one != number + 5])


def test_on_one_machine_the_engines_keep_each_other_out(
    lake_of: MakeLake, embedded_of: Callable[[SparkLake], Lake]
) -> None:
    lake = lake_of("one-machine")
    embedded = embedded_of(lake)
    with Pipeline(embedded.settings, embedded.log), pytest.raises(LakeBusy):
        lake.take_in(trades(range(1, 5)))
    others = LakeLock(lake.settings.state_dir, lake.settings.lake, is_shared=True)
    with others, pytest.raises(LakeBusy):
        embedded.drain()
    with others:  # another step's driver
        lake.drain()
    assert intervals(lake) == [(1, 4)]


def test_of_two_engines_on_different_machines_the_later_fences_the_earlier(
    lake_of: MakeLake, embedded_of: Callable[[SparkLake], Lake]
) -> None:
    lake = lake_of("two-machines")
    embedded = embedded_of(lake)
    lock = lake.settings.state_dir / "pipeline.lock"
    embedded.append(trades(range(1, 11)))
    with Pipeline(embedded.settings, embedded.log) as pipeline:
        pipeline.step(0)
        lock.unlink()  # which the other machine does not see
        lake.take_in(trades(range(11, 21)))
        lake.append(trades(range(21, 31)))
        with pytest.raises(Fenced):
            pipeline.step(0)
    raised: list[Fenced] = []
    stop = threading.Event()
    reports: list[dict[str, object]] = []

    def run_spark() -> None:
        from cryptopulse.engine.spark.processing import process

        try:
            process(lake.settings, lake.log, stop, reports.append, lake.steps)
        except Fenced as error:
            raised.append(error)

    running = threading.Thread(target=run_spark)
    running.start()
    wait_until(lambda: intervals(lake) == [(1, 30)], "Spark has taken in what was left", 120)
    lock.unlink()
    with Pipeline(embedded.settings, embedded.log):
        lake.append(trades(range(31, 41)))
        running.join(120)
    stop.set()
    running.join()
    assert len(raised) == 1
    assert lake.arrow(BRONZE).num_rows == 30
    embedded.drain()
    assert intervals(lake) == [(1, 40)]
    assert lake.arrow(SILVER).num_rows == 40


@pytest.mark.parametrize("checkpoints", ["kept", "deleted"])
def test_trades_that_were_deleted_from_silver_are_not_claimed_for_ever(checkpoints: str, lake_of: MakeLake) -> None:
    lake = lake_of(f"deleted-{checkpoints}")
    lake.take_in(trades(range(1, 51)))
    lake.delta(SILVER).delete("trade_id BETWEEN 11 AND 20")
    if checkpoints == "deleted":
        shutil.rmtree(lake.path / "_cryptopulse" / "checkpoints" / "silver")
    with capture_logs() as said:
        lake.take_in(trades(range(51, 61)))
    assert [line["rows"] for line in said if line["event"] == "coverage_rebuilt"] == [40]
    # From bronze they come back when it is looked at again; until then the healer sees that they are missing.
    assert intervals(lake) == ([(1, 60)] if checkpoints == "deleted" else [(1, 10), (21, 60)])


def test_offsets_that_go_back_while_it_runs_are_refused(lake_of: MakeLake) -> None:
    from cryptopulse.engine.spark.bronze import BronzeStep
    from cryptopulse.engine.spark.tables import SparkTables

    lake = lake_of("back")
    address = kafka_address(lake.settings.log)
    assert address is not None
    step = BronzeStep(SparkTables(lake.settings), address, lake.log, lake.settings)
    nothing: Any = None
    with pytest.raises(ConfigurationError, match=r"up to message 4999, but the log back ends before message 40"):
        step.passed(nothing, {"back": {"0": 5000}}, {"back": {"0": 40}}, 0, lambda: None)
    step.passed(nothing, {"back": {"0": 40}}, {"back": {"0": 40}}, 0, lambda: None)


def test_records_of_another_producer_are_taken_as_the_embedded_engine_takes_them(
    broker: KafkaBroker, lake_of: MakeLake, tmp_path: Path
) -> None:
    lake = lake_of("foreign")
    lake.append(trades(range(1, 3)))  # makes the topic
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    now_us = time.time_ns() // 1000
    cases: list[list[tuple[str, str | bytes | None]]] = [
        [("received_us", b"soon"), ("source", b"fax")],
        [("source", b"rest"), ("received_us", b"%d" % now_us)],
        [("received_us", b"%d" % (now_us * 1000))],
        [("received_us", b"-5"), ("source", None)],
        [],
    ]
    for number, headers in enumerate(cases):
        producer.produce("foreign", b"foreign %d" % number, key=b"\xffk" if number else b"BTC-USD", headers=headers)
    assert producer.flush(30) == 0
    lake.drain()
    embedded = Lake(tmp_path / "embedded", log={"url": lake.settings.log.url})
    embedded.drain()
    here = {"bronze_ingestion_time"}
    assert lake.rows(BRONZE, *here) == embedded.rows(BRONZE, *here)
    assert {row["partition_key"] for row in lake.rows(BRONZE)} == {"BTC-USD", "\ufffdk"}
    embedded.close()


class Modes:
    """A step that notes how Spark runs its batches, over a source of `rows` rows a batch."""

    name = "modes"

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.seen: list[str] = []

    def source(self, sql: SparkSql, checkpoint: Checkpoint) -> DataFrame:  # noqa: ARG002
        return sql.session.readStream.format("rate-micro-batch").option("rowsPerBatch", self._rows).load()

    def take(self, sql: SparkSql, batch: DataFrame, batch_id: BatchId) -> dict[str, int]:  # noqa: ARG002
        self.seen.append(sql.session.conf.get("spark.sql.codegen.factoryMode"))
        return {"counted": batch.count()}


@pytest.mark.parametrize(("rows", "mode"), [(10, "NO_CODEGEN"), (100_000, "FALLBACK")])
def test_batches_are_compiled_as_long_as_the_one_before_was_large(
    rows: int, mode: str, lake_of: MakeLake, tmp_path: Path
) -> None:
    from cryptopulse.engine.spark.session import spark_session
    from cryptopulse.engine.spark.streams import Stream

    step = Modes(rows)
    stream = Stream(spark_session(lake_of("modes").settings), step, str(tmp_path / "checkpoint"), lambda: None)
    stream.start(to_the_end_only=False)
    try:
        wait_until(lambda: stream.watch() and stream.totals.get("rows", 0) >= 5 * rows, "five batches")
    finally:
        stream.stop()
    assert step.seen[0] == "FALLBACK"
    assert step.seen[-1] == mode
