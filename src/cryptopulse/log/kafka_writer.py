"""Appends to Kafka with an idempotent producer. Only delivery reports count as success.

Messages never time out inside librdkafka: it would drop one and go on with the next, which breaks the order of a
product. Instead, when nothing is acknowledged for a while, the whole batch and the producer are given up, and the
caller appends the batch again. Messages that arrived after all are then stored twice, which is harmless: the first
copies are in order.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from cryptopulse.errors import MessageTooLarge
from cryptopulse.log.kafka_address import KafkaAddress
from cryptopulse.log.kafka_client import BrokerMonitor, create_client, number

RECEIVED_HEADER = "received_us"
SOURCE_HEADER = "source"

_MESSAGE_BYTES_MAX = 1_000_000  # librdkafka's default for message.max.bytes; Kafka's brokers take 1,048,588
_FRAME_BYTES = 200  # per record, besides key and value: our two headers, lengths, the batch's header (61)
_UNREACHABLE_S = 8.0  # without a broker: the feed must be able to stop within its 15 s
_STALLED_S = 60.0  # with a slow broker: throttling Event Hubs may hold a request this long
_WARN_AFTER_S = 1.0  # reopening a connection deserves no warning
_FLUSH_S = 0.1
_QUEUE_MESSAGES = 100_000
_QUEUE_KBYTES = 131_072
_OPTIONS: dict[str, str | int] = {
    "enable.idempotence": "true",
    "acks": "all",
    "message.timeout.ms": 0,
    "linger.ms": 2,  # within one append; the flush at its end does not linger
    "compression.type": "lz4",
    "partitioner": "murmur2_random",  # the Java client's, so that all producers put a product into one partition
    "queue.buffering.max.messages": _QUEUE_MESSAGES,
    "queue.buffering.max.kbytes": _QUEUE_KBYTES,
}


class _Delivery:
    """The delivery reports of one batch."""

    def __init__(self, messages: int) -> None:
        self.pending = messages
        self.error: KafkaError | None = None

    def __call__(self, error: KafkaError | None, _message: Message) -> None:
        """One message was acknowledged or refused."""
        self.pending -= 1
        if error is not None and self.error is None:
            self.error = error


class KafkaWriter:
    """Appends batches to one topic; one batch at a time, from any thread."""

    def __init__(self, address: KafkaAddress) -> None:
        """Connects with the first batch. Raises ConfigurationError for an option that librdkafka does not know."""
        self._monitor = BrokerMonitor(address)
        self._topic = address.topic
        self._options = self._monitor.options({**_OPTIONS, **address.producer_options()})
        self._message_bytes_max = number(address.client_options(), "message.max.bytes", _MESSAGE_BYTES_MAX)
        self._lock = threading.Lock()
        self._producer: Producer | None = None

    def append(self, messages: pa.Table) -> None:
        """See `cryptopulse.log.Log.append`."""
        # Checked before anything is sent.
        lengths = pc.add(pc.binary_length(messages["body"]), pc.binary_length(messages["partition_key"]))
        longest = (pc.max(lengths).as_py() or 0) + _FRAME_BYTES
        if longest > self._message_bytes_max:
            raise MessageTooLarge(
                f"A message of {longest:,} bytes is larger than the Kafka log {self._monitor.address} takes "
                f"({self._message_bytes_max:,}); message.max.bytes in log.kafka_options is the limit."
            )
        with self._lock:
            delivery = _Delivery(messages.num_rows)
            try:
                self._send(self._connected(), messages, delivery)
                error = self._monitor.as_error("write to", delivery.error) if delivery.error else None
            except KafkaException as failure:
                error = self._monitor.as_error("write to", failure)
            except _Stalled:
                error = self._monitor.as_error("write to")
            if error is not None:
                self._give_up()
                raise error
            self._monitor.works()

    def close(self) -> None:
        """Closes the connections."""
        with self._lock:
            self._give_up()

    def _connected(self) -> Producer:
        if self._producer is None:
            self._producer = create_client(Producer, self._options)
        return self._producer

    def _send(self, producer: Producer, messages: pa.Table, delivery: _Delivery) -> None:
        """Returns when every message was acknowledged or refused."""
        patience = _Patience(self._monitor)
        keys = messages["partition_key"].to_pylist()
        received_us = pc.cast(pc.cast(messages["received_time"], pa.int64()), pa.string()).to_pylist()
        columns = (keys, received_us, messages["source"].to_pylist(), messages["body"].to_pylist())
        produce, topic = producer.produce, self._topic
        for key, received, source, body in zip(*columns, strict=True):
            headers = [(RECEIVED_HEADER, received), (SOURCE_HEADER, source)]
            # Messages without a product go to the first partition, so they keep their order.
            place = {"key": key} if key else {"partition": 0}
            while True:
                try:
                    produce(topic, body, on_delivery=delivery, headers=headers, **place)
                    break
                except BufferError:  # the queue is full: wait for the brokers
                    producer.poll(_FLUSH_S)
                    patience.check(delivery.pending)
        while delivery.pending:
            producer.flush(_FLUSH_S)
            if delivery.pending:
                patience.check(delivery.pending)

    def _give_up(self) -> None:
        """Drops the producer with all queued messages; it may be stuck for good."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(KafkaException):
                producer.purge()
            producer.flush(1.0)
            producer.close()


class _Stalled(Exception):
    """Nothing was acknowledged for too long. Never leaves this module."""


class _Patience:
    """How long to wait for the next acknowledgement."""

    def __init__(self, monitor: BrokerMonitor) -> None:
        self._monitor = monitor
        self._pending = -1
        self._since = time.monotonic()

    def check(self, pending: int) -> None:
        """Raises _Stalled when `pending` has not changed for too long."""
        now = time.monotonic()
        if pending != self._pending:
            self._pending, self._since = pending, now
            self._monitor.works()
            return
        waited_s = now - max(self._since, self._monitor.throttled_at)
        trouble = self._monitor.trouble
        if trouble is not None and waited_s > _WARN_AFTER_S:
            self._monitor.warn_waiting("append")
        if waited_s > (_STALLED_S if trouble is None else _UNREACHABLE_S) or (trouble is not None and trouble.fatal()):
            raise _Stalled
