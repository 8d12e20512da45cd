"""The log: a durable, ordered, replayable buffer of raw messages.

It makes data safe: `append` returns once the batch is on disk (or acknowledged by the brokers), and nothing is
trimmed before bronze holds it. It never looks inside a message. The contract is Kafka's: partitions, each a
sequence of messages with dense offsets.
"""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa

MESSAGE_SCHEMA = pa.schema(
    [
        pa.field("partition_key", pa.string(), nullable=False),
        pa.field("received_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("body", pa.binary(), nullable=False),
    ]
)
"""What is appended: `partition_key` (the product id, or "" for a message of none), `received_time` (UTC),
`source` ("websocket" or "rest"), `body` (the message exactly as received)."""

RECORD_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("enqueued_time", pa.timestamp("us", tz="UTC"), nullable=False),
        *MESSAGE_SCHEMA,
    ]
)
"""What is read: a message, its place, and the time at which the log took it."""


EPOCH_PARTITIONS = 10_000
"""Numbers of partitions that an epoch (`log.epoch`) has: bronze's `partition` is epoch · EPOCH_PARTITIONS + the
partition of the log. Offsets that began anew stand in another epoch, so none is taken for one already stored."""


class Log(Protocol):
    """A durable buffer. One process appends, one reads; each opens its own."""

    def append(self, messages: pa.Table) -> None:
        """Stores `messages` (MESSAGE_SCHEMA) in order; returns when they are durable.

        Raises LogFull when the size bound or the disk is reached, LogBusy when another process keeps the log to
        itself, MessageTooLarge when a message is larger than the log takes: of the batch nothing is kept then.
        Raises Disconnected when brokers don't answer: some of the batch may have been kept, and appending it again
        gives duplicates, whose first copies are in order.
        """

    def partitions(self) -> list[int]:
        """The partitions that exist."""

    def origin(self, partition: int) -> int:
        """The first offset that the log ever gave: below it nothing can be missing."""

    def bounds(self, partition: int) -> tuple[int, int]:
        """First offset still held, and the offset that the next message will get."""

    def read(self, partition: int, offset: int, messages_max: int) -> pa.Table:
        """Messages (RECORD_SCHEMA) from `offset` on, at most about `messages_max` or 64 MB; empty when there are none.

        The first has a greater offset when the log has forgotten `offset`; see `cryptopulse.log.continuity`.

        Raises LogDamaged when a record is not what was written.
        """

    def trim(self, partition: int, below: int) -> None:
        """Forgets messages with offsets under `below`; only for those that are safe elsewhere.

        The last seconds may stay: a new producer reads there how far the one before had come.
        """

    def close(self) -> None:
        """Releases files and connections."""
