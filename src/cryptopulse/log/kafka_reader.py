"""Reads one partition of Kafka from given offsets, as Arrow columns.

No consumer group is used and no offset committed to the brokers: the tables store the position. The consumer fetches
ahead; a read returns what it holds, and waits only for messages that are known to exist.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from cryptopulse.log import RECORD_SCHEMA
from cryptopulse.log.continuity import began_anew
from cryptopulse.log.kafka_address import KafkaAddress
from cryptopulse.log.kafka_client import BrokerMonitor, create_client
from cryptopulse.log.kafka_writer import RECEIVED_HEADER, SOURCE_HEADER

SOURCES = ("websocket", "rest", "import")
"""Values of `source`; a record of another producer, without this header, counts as the first."""

_TAKE_MAX = 1_000  # messages held as Python objects at once; with 20,000 each takes 7.6 instead of 3.5 µs
_READ_BYTES_MAX = 64 << 20  # pages of the REST interface are some 500 times as large as messages of the feed
_WAIT_S = 0.1
_AWAY_S = 5.0  # how long one read waits for messages that the broker has announced
_BOUNDS_S = 5.0
_TIME_US_MAX = 253_402_300_800_000_000  # the year 10,000; tables hold earlier times only
_OPTIONS: dict[str, str | int] = {
    "group.id": "cryptopulse",  # the client requires a name; no group is joined, nothing committed
    "enable.auto.commit": "false",
    "enable.auto.offset.store": "false",
    "auto.offset.reset": "error",  # else an offset out of range would be skipped silently
    "enable.partition.eof": "true",
    "check.crcs": "true",
    "queued.min.messages": 100_000,
    "queued.max.messages.kbytes": 65_536,
    "max.partition.fetch.bytes": 8_388_608,
    "fetch.queue.backoff.ms": 5,  # instead of 1 s: how long a full queue stays without a fetch
    "fetch.error.backoff.ms": 100,
}
_TIME = RECORD_SCHEMA.field("received_time").type


class PartitionReader:
    """Reads one partition. Threads may share it; their reads run one after the other."""

    def __init__(self, address: KafkaAddress, partition: int, number: int) -> None:
        """`partition`: Kafka's number; `number`: the one in the records, which includes the epoch."""
        self._monitor = BrokerMonitor(address)
        self._consumer: Consumer | None = None
        self._place = TopicPartition(address.topic, partition)
        self._number = number
        self._lock = threading.Lock()
        self._next = -1
        """Offset after the last record read; -1 before the first."""
        self._caught_up_to = -1
        """Offset at which the broker reported the end; -1 for none."""

    def read(self, offset: int, messages_max: int, known_end: int) -> pa.Table:
        """Messages from `offset` on; waits only for those below `known_end`. See `cryptopulse.log.Log.read`."""
        with self._lock:
            if offset != self._next:
                self._go_to(offset)
            parts: list[pa.Table] = []
            left, size, deadline = messages_max, 0, time.monotonic() + _AWAY_S
            while left > 0 and size < _READ_BYTES_MAX:
                announced = 0 if self._caught_up_to >= known_end else known_end - self._next
                part = self._consume(min(announced, left, _TAKE_MAX) if announced > 0 else 0, min(left, _TAKE_MAX))
                if part.num_rows:
                    parts.append(part)
                    left -= part.num_rows
                    size += part.nbytes
                elif announced <= 0 or parts:
                    break
                elif time.monotonic() >= deadline:  # waited long enough for announced messages
                    self._monitor.warn_waiting("read")
                    break
            return pa.concat_tables(parts) if parts else RECORD_SCHEMA.empty_table()

    def close(self) -> None:
        """Closes the connection until the next read."""
        with self._lock:
            consumer, self._consumer, self._next = self._consumer, None, -1
            if consumer is not None:
                consumer.close()

    def _go_to(self, offset: int) -> None:
        if self._consumer is None:
            self._consumer = create_client(
                Consumer, self._monitor.options({**_OPTIONS, **self._monitor.address.client_options()})
            )
        place = TopicPartition(self._place.topic, self._place.partition, offset)
        self._consumer.assign([place])
        self._next, self._caught_up_to = offset, -1

    def _consume(self, announced: int, most: int) -> pa.Table:
        """Waits up to 0.1 s for `announced` messages; if that is 0, takes up to `most` that are fetched already."""
        assert self._consumer is not None
        found = self._consumer.consume(announced or most, _WAIT_S if announced else 0)
        records = [message for message in found if message.error() is None]
        if len(records) < len(found):  # some are events, not messages
            for message in found:
                if (error := message.error()) is None:
                    continue
                match error.code():
                    case KafkaError._PARTITION_EOF:
                        self._caught_up_to = message.offset() or 0
                    case KafkaError._AUTO_OFFSET_RESET | KafkaError.OFFSET_OUT_OF_RANGE:
                        self._go_to(self._first_available())
                    case KafkaError.GROUP_AUTHORIZATION_FAILED:
                        pass  # the group is not used
                    case code if code in TERMINAL:
                        raise self._monitor.as_error("read", error)
                    case _:
                        self._monitor.report(error)
        if not records:
            return RECORD_SCHEMA.empty_table()
        self._monitor.works()
        table = as_records(records, self._number)
        self._next = table["offset"][-1].as_py() + 1
        return table

    def _first_available(self) -> int:
        """The offset to go on from when retention has deleted the wanted one.

        Raises ConfigurationError when the log ends before that offset.
        """
        assert self._consumer is not None
        try:
            first, end = self._consumer.get_watermark_offsets(self._place, _BOUNDS_S)
        except KafkaException as error:
            raise self._monitor.as_error("read", error) from error
        if self._next > end:
            raise began_anew(f" {self._monitor.address}", self._number, self._next - 1, end)
        return max(first, self._next)


TERMINAL = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError._BAD_MSG,
        KafkaError._BAD_COMPRESSION,
    }
)
"""Errors, delivered instead of a message, that won't pass by themselves."""


def as_records(messages: list[Message], partition: int) -> pa.Table:
    """Messages of one partition as RECORD_SCHEMA."""
    enqueued_ms = np.array([message.timestamp()[1] for message in messages], dtype=np.int64)
    if enqueued_ms.min() <= 0:  # records of the oldest formats have no time
        enqueued_ms[enqueued_ms <= 0] = time.time_ns() // 1_000_000
    names = [message.key() or b"" for message in messages]
    try:
        keys = pa.array(names, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:  # another producer's keys: not UTF-8
        keys = pa.array([name.decode(errors="replace") for name in names], pa.string())
    received_us, sources = _from_headers([message.headers() for message in messages], enqueued_ms * 1000)
    return pa.table(
        [
            pa.array(np.full(len(messages), partition, dtype=np.int32)),
            pa.array([message.offset() for message in messages], pa.int64()),
            pa.array(enqueued_ms * 1000, _TIME),
            keys,
            pa.array(received_us, _TIME),
            pa.array(sources, pa.string()),
            pa.array([message.value() or b"" for message in messages], pa.binary()),
        ],
        schema=RECORD_SCHEMA,
    )


_Headers = Any  # list[tuple[str, bytes | None]] | None, wider in the client's own types


def _from_headers(
    headers: list[_Headers], otherwise_us: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Receive times (µs UTC) and sources; a record without these headers gets `otherwise_us` and "websocket"."""
    with suppress(TypeError, ValueError, IndexError, AttributeError):  # messages that are not from our producer
        (names,) = {(one[0][0], one[1][0]) for one in headers}
        if names == (RECEIVED_HEADER, SOURCE_HEADER):
            received = np.array([one[0][1] for one in headers]).astype(np.int64)
            sources = [one[1][1].decode() for one in headers]
            if received.min() > 0 and received.max() < _TIME_US_MAX and set(sources) <= set(SOURCES):
                return received, sources
    received, sources = otherwise_us.copy(), []
    for number, one in enumerate(headers):
        known = dict(one or [])
        text, source = known.get(RECEIVED_HEADER) or b"", (known.get(SOURCE_HEADER) or b"").decode(errors="replace")
        received_us = int(text) if text.isdigit() and len(text) < 19 else 0
        if 0 < received_us < _TIME_US_MAX:
            received[number] = received_us
        sources.append(source if source in SOURCES else SOURCES[0])
    return received, sources
