"""The Kafka log against a real broker: what is acknowledged is there, once in order, as it was sent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions
from kafka_broker import PASSWORD, USER, KafkaBroker
from requirements import jars
from structlog.testing import capture_logs

from cryptopulse.errors import ConfigurationError, Disconnected, MessageTooLarge
from cryptopulse.feed.buffer import LogWriter, MessageBuffer
from cryptopulse.feed.recovery import log_end
from cryptopulse.log import MESSAGE_SCHEMA, RECORD_SCHEMA, Log
from cryptopulse.log.kafka import KafkaLog
from cryptopulse.log.kafka_address import KafkaAddress

pytestmark = pytest.mark.cluster

START_US = 1_783_000_000_123_456
_QUOTA = ("--alter", "--entity-type", "clients", "--entity-default")
PRODUCTS = ("BTC-USD", "ETH-USD", "SOL-USD", "ADA-USD", "XRP-USD", "")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path_factory.mktemp("kafka"), jars("kafka")) as started:
        yield started


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[KafkaBroker]:
    """A broker that the test may kill."""
    with KafkaBroker(tmp_path / "kafka", jars("kafka")) as started:
        yield started


@pytest.fixture
def opened(broker: KafkaBroker, request: pytest.FixtureRequest) -> Iterator[Callable[..., KafkaLog]]:
    """Opens the test's own topic, as often as wanted."""
    logs: list[KafkaLog] = []

    def open_topic(topic: str = request.node.name.split("[")[0], **options: Any) -> KafkaLog:
        logs.append(KafkaLog(KafkaAddress((broker.bootstrap,), topic), **options))
        return logs[-1]

    yield open_topic
    for log in logs:
        log.close()


def messages(bodies: list[bytes], keys: list[str] | None = None, sources: list[str] | None = None) -> pa.Table:
    count = len(bodies)
    return pa.table(
        [
            pa.array(keys or [PRODUCTS[i % len(PRODUCTS)] for i in range(count)]),
            pa.array(np.arange(START_US, START_US + count), pa.timestamp("us", tz="UTC")),
            pa.array(sources or ["websocket"] * count),
            pa.array(bodies, pa.binary()),
        ],
        schema=MESSAGE_SCHEMA,
    )


def numbered(first: int, end: int) -> pa.Table:
    """Messages that say their number; of each product the numbers grow."""
    return messages([b"%d" % number for number in range(first, end)])


def everything(log: Log, most: int = 100_000) -> pa.Table:
    """All that the log holds, by partition and offset."""
    parts = [RECORD_SCHEMA.empty_table()]
    for partition in log.partitions():
        first, end = log.bounds(partition)
        while first < end:
            records = log.read(partition, first, most)
            assert records.num_rows, f"nothing from {first} on, but the log ends at {end}"
            assert records.num_rows <= most
            parts.append(records)
            first = records["offset"][-1].as_py() + 1
    return pa.concat_tables(parts)


def numbers_of(records: pa.Table) -> list[int]:
    return [int(body) for body in records["body"].to_pylist()]


def assert_in_order(records: pa.Table) -> None:
    """The first copies of each product's numbers grow."""
    seen: dict[str, list[int]] = {}
    for key, number in zip(records["partition_key"].to_pylist(), numbers_of(records), strict=True):
        numbers = seen.setdefault(key, [])
        if not numbers or number > numbers[-1]:
            numbers.append(number)
        else:
            assert number in set(numbers), f"{key}: {number} comes after {numbers[-1]}"


def test_what_is_read_is_what_was_appended_in_every_column(opened: Callable[..., KafkaLog]) -> None:
    bodies = [bytes(range(256)), b"", b"\x00", "é€".encode(), b'{"a":1}', b"x" * 500_000]
    sent = messages(bodies, sources=["rest", "websocket"] * 3)
    before_us = time.time_ns() // 1000
    opened().append(sent)
    records = everything(opened())
    assert records.schema == RECORD_SCHEMA
    assert records.select(MESSAGE_SCHEMA.names).to_pylist() == sent.to_pylist()
    assert records["offset"].to_pylist() == list(range(6))
    assert set(records["partition"].to_pylist()) == {0}
    enqueued = records["enqueued_time"].cast(pa.int64()).to_pylist()
    assert before_us - 1000 <= min(enqueued) <= max(enqueued) <= time.time_ns() // 1000  # a record's time is in ms


def test_a_missing_topic_is_made_with_the_partitions_asked_for(
    opened: Callable[..., KafkaLog], broker: KafkaBroker
) -> None:
    log = opened(partitions=3, epoch=2)
    assert log.partitions() == [20_000, 20_001, 20_002]
    assert [log.bounds(partition) for partition in log.partitions()] == [(0, 0)] * 3
    assert opened(partitions=7).partitions() == [0, 1, 2]
    with pytest.raises(ConfigurationError, match="has no partition 3"):
        log.bounds(3)


def test_a_product_stays_in_one_partition_and_in_order(opened: Callable[..., KafkaLog]) -> None:
    log = opened(partitions=4)
    for first in range(0, 6000, 600):
        log.append(numbered(first, first + 600))
    records = everything(opened())
    assert sorted(numbers_of(records)) == list(range(6000))
    assert_in_order(records)
    places = set(zip(records["partition_key"].to_pylist(), records["partition"].to_pylist(), strict=True))
    assert len(places) == len(PRODUCTS)
    assert len({partition for _, partition in places}) > 1
    assert ("", 0) in places


def test_reading_starts_anywhere_and_in_pieces_of_any_size(opened: Callable[..., KafkaLog]) -> None:
    log = opened()
    log.append(numbered(0, 5000))
    reader = opened()
    for most in (1, 7, 999, 5000):
        _, end = reader.bounds(0)
        for start in (0, 1, 2500, 4999):
            found = numbers_of(reader.read(0, start, most))
            assert found == list(range(start, start + len(found)))
            assert len(found) == min(most, end - start)
    assert reader.read(0, 5000, 10).num_rows == 0
    log.append(numbered(5000, 5003))
    assert reader.bounds(0) == (0, 5003)
    assert numbers_of(reader.read(0, 5000, 10)) == [5000, 5001, 5002]


def test_reading_returns_at_once_without_news_and_soon_with_them(opened: Callable[..., KafkaLog]) -> None:
    log, reader = opened(), opened()
    log.append(numbered(0, 1))
    everything(reader)
    empty_s, news_s = [], []
    for number in range(1, 60):
        started = time.perf_counter()
        assert reader.read(0, number, 10).num_rows == 0
        empty_s.append(time.perf_counter() - started)
        log.append(numbered(number, number + 1))
        acknowledged = time.perf_counter()
        while not reader.read(0, number, 10).num_rows:
            time.sleep(0.001)
        news_s.append(time.perf_counter() - acknowledged)
    assert float(np.median(empty_s)) < 0.005
    assert float(np.median(news_s)) < 0.05  # a few ms on a machine that has nothing else to do


def test_records_of_another_producer_are_taken_as_they_are(
    opened: Callable[..., KafkaLog], broker: KafkaBroker
) -> None:
    log = opened()
    topic = test_records_of_another_producer_are_taken_as_they_are.__name__
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    odd: list[dict[str, Any]] = [
        {"value": b"plain"},
        {"value": None, "key": b"\xff"},
        {"value": b"a", "headers": [("received_us", b"soon"), ("source", b"fax")]},
        {"value": b"b", "headers": [("source", b"rest"), ("received_us", b"%d" % START_US)]},
        {"value": b"c", "headers": [("received_us", None), ("source", None), ("more", b"")]},
        {"value": b"d", "headers": [("received_us", b"9" * 40), ("source", b"rest")]},
    ]
    for record in odd:
        producer.produce(topic, partition=0, **record)
    assert producer.flush(30) == 0
    records = everything(log)
    assert records["body"].to_pylist() == [b"plain", b"", b"a", b"b", b"c", b"d"]
    assert records["source"].to_pylist() == ["websocket"] * 3 + ["rest", "websocket", "rest"]
    assert records["partition_key"].to_pylist() == ["", "\ufffd", "", "", "", ""]
    received, enqueued = (records[name].cast(pa.int64()).to_pylist() for name in ("received_time", "enqueued_time"))
    assert received[3] == START_US
    assert [received[i] for i in (0, 1, 2, 4, 5)] == [enqueued[i] for i in (0, 1, 2, 4, 5)]


def test_a_partition_added_later_is_noticed_and_written_to(
    opened: Callable[..., KafkaLog], broker: KafkaBroker
) -> None:
    log = opened(partitions=1)
    log.append(numbered(0, 100))
    topic = test_a_partition_added_later_is_noticed_and_written_to.__name__
    admin = broker.admin()
    admin.create_partitions([NewPartitions(topic, 3)])[topic].result(30)
    deadline = time.monotonic() + 30
    while log.partitions() != [0, 1, 2]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    opened().append(numbered(100, 700))
    records = everything(log)
    assert sorted(numbers_of(records)) == list(range(700))
    assert len(set(records["partition"].to_pylist())) > 1


def test_a_new_producer_finds_the_end_of_every_partition(opened: Callable[..., KafkaLog]) -> None:
    log = opened(partitions=3)
    for first in range(0, 3000, 500):
        log.append(numbered(first, first + 500))
    # All received at the same time within an append, one after the other in it: by time they interleave.
    found = [int(body) % 500 for body, _, _ in log_end(opened()).live]
    assert len(found) == 3000
    assert found == sorted(found)


@pytest.mark.parametrize("of_the_topic", [False, True])
def test_a_message_over_the_limit_is_refused_and_costs_no_other(
    of_the_topic: bool, opened: Callable[..., KafkaLog], broker: KafkaBroker
) -> None:
    topic = f"limit-{of_the_topic}"
    broker.create_topic(topic, max_message_bytes=20_000 if of_the_topic else 2_000_000)
    log = opened(topic)
    rng = np.random.default_rng(1)
    large = rng.bytes(30_000 if of_the_topic else 1_100_000)  # of noise: compression does not help
    with pytest.raises(MessageTooLarge) as error:
        log.append(messages([b"1", large, b"2"]))
    assert "\n" not in str(error.value)
    buffer = MessageBuffer(64 << 20)
    writer = LogWriter(buffer, log, group_commit_ms=5, failed=lambda: None)
    for number in range(10):
        buffer.put("BTC-USD", 1_000 * number, large if number == 4 else b"%d" % number)
    writer.start()
    writer.close()
    assert writer.error is None
    assert (writer.messages_logged, writer.messages_refused) == (9, 1)
    held = numbers_of(everything(opened(topic)))
    assert set(held) >= {0, 1, 2, 3, 5, 6, 7, 8, 9}
    assert [n for i, n in enumerate(held) if n not in held[:i] and n not in (1, 2)] == [0, 3, 5, 6, 7, 8, 9]


def test_a_wrong_password_is_said_in_one_line(broker: KafkaBroker, opened: Callable[..., KafkaLog]) -> None:
    opened("with-password")
    good = KafkaAddress(
        (broker.bootstrap_sasl,), "with-password", "SASL_PLAINTEXT", "PLAIN", username=USER, password=PASSWORD
    )
    with closing(KafkaLog(good)) as log:
        log.append(numbered(0, 10))
        assert numbers_of(everything(log)) == list(range(10))
    bad = KafkaAddress(good.servers, good.topic, "SASL_PLAINTEXT", "PLAIN", username=USER, password="wr0ng-secret")
    with pytest.raises(
        ConfigurationError, match=r"refuses us: .*[Aa]uthentication.*Check log\.kafka_username"
    ) as error:
        KafkaLog(bad)
    assert "\n" not in str(error.value)
    assert "wr0ng" not in str(error.value)


def test_a_server_that_does_not_exist_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryptopulse.log.kafka._OPEN_S", 1.0)
    with pytest.raises(Disconnected, match=r"no-such-host\.invalid:9092.*(resolve|[Nn]ame)") as error:
        KafkaLog(KafkaAddress(("no-such-host.invalid:9092",), "t"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [60, 900, 20_000, 999_000])
def test_no_request_is_larger_than_event_hubs_takes(size: int, broker: KafkaBroker) -> None:
    broker.create_topic(f"hub-{size}", 1)
    noise = np.random.default_rng(size)  # of noise: compression does not help
    sent = messages([noise.bytes(size) for _ in range(max(4_000_000 // (size + 100), 3))])
    with closing(KafkaLog(KafkaAddress((broker.bootstrap,), f"hub-{size}", is_event_hub=True))) as log:
        log.append(sent)  # a broker that closes the connection is never answered by, and ends in Disconnected
        assert everything(log)["body"].to_pylist() == sent["body"].to_pylist()


def test_a_hub_that_is_missing_is_not_made_but_named(broker: KafkaBroker) -> None:
    with pytest.raises(ConfigurationError, match=r"no hub nowhere at .*az eventhubs eventhub create"):
        KafkaLog(KafkaAddress((broker.bootstrap,), "nowhere", is_event_hub=True))


class Load:
    """Appends numbered messages until stopped, each batch again while the log asks for it."""

    def __init__(self, log: KafkaLog) -> None:
        self.acknowledged = 0
        self.refusals = 0
        self._log = log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            batch = numbered(self.acknowledged, self.acknowledged + 300)
            try:
                self._log.append(batch)
            except Disconnected:
                self.refusals += 1
                time.sleep(0.2)
            else:
                self.acknowledged += 300


def wait_for(what: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_broker_killed_under_load_loses_nothing_and_turns_no_order_round(mortal: KafkaBroker) -> None:
    mortal.create_topic("load", 3)
    address = KafkaAddress((mortal.bootstrap,), "load")
    with closing(KafkaLog(address)) as log:
        load = Load(log)
        for _ in range(3):
            before = load.acknowledged
            wait_for(lambda before=before: load.acknowledged > before + 3000)  # type: ignore[misc]
            mortal.kill()
            mortal.start()
        before = load.acknowledged
        wait_for(lambda: load.acknowledged > before)
        load.stop()
    with closing(KafkaLog(address)) as log:
        records = everything(log)
    assert set(numbers_of(records)) == set(range(load.acknowledged))
    assert_in_order(records)


def test_a_broker_that_stays_away_is_said_and_waited_for(mortal: KafkaBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryptopulse.log.kafka_writer._UNREACHABLE_S", 1.0)
    mortal.create_topic("away", 2)
    address = KafkaAddress((mortal.bootstrap,), "away")
    with closing(KafkaLog(address)) as log, closing(KafkaLog(address)) as reader:
        load = Load(log)
        wait_for(lambda: load.acknowledged > 0)
        known = [reader.bounds(partition) for partition in reader.partitions()]
        mortal.kill()
        wait_for(lambda: load.refusals >= 2)
        assert [reader.bounds(partition) for partition in reader.partitions()] == known  # what it last heard
        mortal.start()
        before = load.acknowledged
        wait_for(lambda: load.acknowledged > before)
        load.stop()
        records = everything(reader)
    assert set(numbers_of(records)) == set(range(load.acknowledged))
    assert_in_order(records)


def test_a_throttled_producer_is_slow_says_so_and_loses_nothing(
    broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryptopulse.log.kafka_writer._UNREACHABLE_S", 1.0)
    broker.create_topic("throttled", 1)
    # A broker averages over at least ten seconds: 1 MB passes at once, and the third batch is 2 s too early.
    broker.run("kafka.admin.ConfigCommand", *_QUOTA, "--add-config", "producer_byte_rate=100000")
    noise = np.random.default_rng(2)
    batch = messages([noise.bytes(20_000) for _ in range(80)])
    with capture_logs() as said, closing(KafkaLog(KafkaAddress((broker.bootstrap,), "throttled"))) as log:
        started = time.monotonic()
        for start in range(0, 80, 20):
            log.append(batch.slice(start, 20))
        took_s = time.monotonic() - started
        broker.run("kafka.admin.ConfigCommand", *_QUOTA, "--delete-config", "producer_byte_rate")
        held = everything(log)
    assert held["body"].to_pylist() == batch["body"].to_pylist()
    throttles = [line for line in said if line["event"] == "kafka_throttled"]
    assert throttles
    # Longer than a broker that is away is waited for: a slow one is another thing.
    assert 1.0 < throttles[0]["by_s"] <= took_s
