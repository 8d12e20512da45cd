"""The log in Kafka, or in an Azure Event Hub by its Kafka endpoint: one topic.

A message is a record: the body as its value, the product id as its key, and the receive time and the source as
headers. Bronze stores the reader's position in the same commit as its rows; consumer groups are not used.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pyarrow as pa
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined] # it is not in its list

from cryptopulse.errors import ConfigurationError, TransientError
from cryptopulse.log import EPOCH_PARTITIONS
from cryptopulse.log.kafka_address import KafkaAddress
from cryptopulse.log.kafka_client import BrokerMonitor, create_client
from cryptopulse.log.kafka_reader import PartitionReader
from cryptopulse.log.kafka_writer import KafkaWriter

_OPEN_S = 15.0  # a restarting broker is back by then; longer silence is an error
_ASK_S = 2.0
_PAUSE_S = 0.2
_PARTITIONS_S = 5.0  # how soon a new partition is noticed
_MADE_S = 30.0
_log = structlog.get_logger()


class KafkaLog:
    """Implements `cryptopulse.log.Log` on one topic. Threads may share an object."""

    expires = True

    def __init__(self, address: KafkaAddress, epoch: int = 0, partitions: int = 1) -> None:
        """Looks up the topic, and creates it with `partitions` when it is missing (not on Event Hubs).

        `epoch`: see the setting log.epoch. Raises Disconnected when no broker answers within 15 s,
        ConfigurationError when one refuses us or the topic is missing and can't be created.
        """
        self._address = address
        self._epoch = epoch
        self._monitor = BrokerMonitor(address)
        self._options = self._monitor.options(address.client_options())
        self._consumer = create_client(
            Consumer, {**self._options, "group.id": "cryptopulse", "enable.auto.commit": False}
        )
        self._writer = KafkaWriter(address)
        self._readers: dict[int, PartitionReader] = {}
        self._bounds: dict[int, tuple[int, int]] = {}
        self._query_again_at = 0.0
        self._lock = threading.Lock()
        self._count = self._open_topic(partitions)
        self._counted_at = time.monotonic()

    def append(self, messages: pa.Table) -> None:
        """Returns when the brokers have acknowledged every message. See `cryptopulse.log.Log.append`.

        After Disconnected part of the batch may be stored. Appended again, it is stored twice, first copies in order.
        """
        if messages.num_rows:
            self._release_readers()
            self._writer.append(messages)

    def partitions(self) -> list[int]:
        """The topic's partitions, numbered with the epoch; a new one is noticed within seconds."""
        if time.monotonic() - self._counted_at > _PARTITIONS_S:
            self._counted_at = time.monotonic()
            with suppress(TransientError):
                self._count = max(self._count, self._query_partitions() or 0)
        first = self._epoch * EPOCH_PARTITIONS
        return list(range(first, first + self._count))

    def origin(self, partition: int) -> int:
        """0, where Kafka's offsets start. See `cryptopulse.log.Log.origin`."""
        self._of_topic(partition)
        return 0

    def bounds(self, partition: int) -> tuple[int, int]:
        """First offset that the brokers still hold, and the next. While they don't answer: their last answer.

        Raises Disconnected when there is no first answer within 15 s. See `cryptopulse.log.Log.bounds`.
        """
        known = partition in self._bounds
        deadline = time.monotonic() + _OPEN_S
        while not known or time.monotonic() >= self._query_again_at:
            try:
                self._bounds[partition] = self._query_bounds(self._of_topic(partition))
            except TransientError:  # for example while a new partition has no leader
                if known:
                    break
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)
            else:
                break
        return self._bounds[partition]

    def read(self, partition: int, offset: int, messages_max: int) -> pa.Table:
        """What has arrived from `offset` on. See `cryptopulse.log.Log.read`.

        Waits up to 5 s, and then returns none, for messages that `bounds` has announced but an unreachable broker has
        not sent yet; otherwise does not wait. Raises ConfigurationError if the topic is gone or its offsets start over.
        """
        known_end = self._bounds.get(partition, (0, 0))[1]
        with self._lock:
            if partition not in self._readers:
                self._readers[partition] = PartitionReader(self._address, self._of_topic(partition), partition)
            reader = self._readers[partition]
        return reader.read(offset, messages_max, known_end)

    def trim(self, partition: int, below: int) -> None:
        """Does nothing: the topic's retention decides how long messages stay."""

    def close(self) -> None:
        """Closes all connections."""
        self._writer.close()
        self._release_readers()
        self._consumer.close()

    def _release_readers(self) -> None:
        """Stops fetching: a producer reads the end of the log only at its start, not what it writes afterwards."""
        if self._readers:
            with self._lock:
                readers, self._readers = self._readers, {}
            for reader in readers.values():
                reader.close()

    def _of_topic(self, partition: int) -> int:
        found = partition - self._epoch * EPOCH_PARTITIONS
        if not 0 <= found < self._count:
            raise ConfigurationError(
                f"The Kafka log {self._address} has no partition {partition}; it has {self._count} in epoch "
                f"{self._epoch} (log.epoch)."
            )
        return found

    def _query_bounds(self, partition: int) -> tuple[int, int]:
        try:
            found: tuple[int, int] = self._consumer.get_watermark_offsets(
                TopicPartition(self._address.topic, partition), _ASK_S
            )
        except KafkaException as error:
            self._failed(error)
            raise self._monitor.as_error("read", error) from error
        self._monitor.works()
        return found

    def _open_topic(self, partitions: int) -> int:
        """How many partitions the topic has; creates a missing one."""
        deadline = time.monotonic() + _OPEN_S
        while True:
            try:
                count = self._query_partitions()
            except TransientError:
                if time.monotonic() > deadline:
                    raise
                self._monitor.warn_waiting("open")
                continue
            if count:
                return count
            if time.monotonic() > deadline:
                raise ConfigurationError(f"The topic {self._address.topic} was made, but has no partition yet; wait.")
            self._create_topic(partitions)

    def _query_partitions(self) -> int | None:
        """How many partitions the topic has; None when there is no such topic."""
        topic = self._address.topic
        try:
            found = self._consumer.list_topics(topic, timeout=_ASK_S).topics[topic]
        except KafkaException as error:
            self._failed(error)
            raise self._monitor.as_error("open", error) from error
        self._monitor.works()
        if found.error is not None:
            if found.error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE):
                return None
            raise self._monitor.as_error("open", found.error)
        if len(found.partitions) > EPOCH_PARTITIONS:
            raise ConfigurationError(f"The topic {topic} has more than {EPOCH_PARTITIONS:,} partitions.")
        return len(found.partitions)

    def _failed(self, error: KafkaException) -> None:
        """After a failed query: collects the reason, which librdkafka gives to a callback, and queries less often."""
        self._consumer.poll(0)
        self._monitor.failed(error)
        self._query_again_at = time.monotonic() + _ASK_S

    def _create_topic(self, partitions: int) -> None:
        topic = self._address.topic
        if self._address.is_event_hub:
            raise ConfigurationError(
                f"There is no hub {topic} at {self._address.bootstrap_servers}. Make it (`az eventhubs eventhub "
                "create`), or name another in log.eventhub_name."
            )
        admin = create_client(AdminClient, self._options)
        # The broker's clock gives the enqueued time; the producers' clocks would differ.
        new = NewTopic(topic, partitions, config={"message.timestamp.type": "LogAppendTime"})
        try:
            admin.create_topics([new], operation_timeout=_MADE_S)[topic].result(_MADE_S)
            _log.info("topic_created", topic=topic, partitions=partitions, log=str(self._address))
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                explained = self._monitor.as_error("make the topic of", error)
                if isinstance(explained, TransientError):
                    raise explained from error
                raise ConfigurationError(
                    f"There is no topic {topic} at {self._address.bootstrap_servers} and it can't be made: "
                    f"{error.args[0].str()}. Make it, or name another in log.url."
                ) from error
            time.sleep(_PAUSE_S)  # another process created it, or it has no leader yet
