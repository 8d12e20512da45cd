"""The log: a durable, ordered, replayable buffer of raw messages.

It makes data safe: `append` returns once the batch is on disk (or acknowledged by the brokers), and nothing is
trimmed before bronze holds it. It never looks inside a message. The contract is Kafka's: partitions, each a
sequence of messages with dense offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

MESSAGE_SCHEMA = pa.schema(
    [
        pa.field("partition_key", pa.string(), nullable=False),
        pa.field("received_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("body", pa.binary(), nullable=False),
    ]
)
"""What is appended: `partition_key` (the product id, or "" without one), `received_time` (UTC),
`source` ("websocket", "rest" or "import"), `body` (the message exactly as received)."""


def message_table(
    keys: Sequence[str],
    received_us: npt.NDArray[np.int64],
    sources: Sequence[str] | str,
    bodies: Sequence[bytes] | Sequence[str],
) -> pa.Table:
    """Messages as a table (MESSAGE_SCHEMA). `received_us`: µs UTC; `sources`: one per message, or one for all.

    Raises ValueError when a column is larger than 2 GB. Columns are built from buffers: `pa.array` takes four times as
    long for a list of bytes, and imports pandas wherever it is installed (35 MB and 0.3 s for nothing).
    """
    columns = [
        _joined(keys, pa.string()),
        pa.Array.from_buffers(MESSAGE_SCHEMA.field("received_time").type, len(keys), [None, pa.py_buffer(received_us)]),
        pa.repeat(sources, len(keys)) if isinstance(sources, str) else _joined(sources, pa.string()),
        _joined(bodies, pa.binary()),
    ]
    return pa.Table.from_arrays(columns, schema=MESSAGE_SCHEMA)


def _joined(values: Sequence[bytes] | Sequence[str], type_: pa.DataType) -> pa.Array:
    """`values` as one Arrow column, texts as UTF-8."""
    if values and isinstance(values[0], str):
        texts = cast("Sequence[str]", values)
        data = "".join(texts).encode()
        if len(data) != sum(map(len, texts)):
            return _joined([text.encode() for text in texts], type_)
    else:
        data = b"".join(cast("Sequence[bytes]", values))
    ends = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, values), np.int64, len(values)), out=ends[1:])
    if ends[-1] > np.iinfo(np.int32).max:
        raise ValueError("a column of messages is limited to 2 GB")
    return pa.Array.from_buffers(type_, len(values), [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(data)])


RECORD_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("enqueued_time", pa.timestamp("us", tz="UTC"), nullable=False),
        *MESSAGE_SCHEMA,
    ]
)
"""What is read: a message with its partition and offset, and the time at which the log took it (UTC)."""


EPOCH_PARTITIONS = 10_000
"""Partition numbers per epoch (`log.epoch`): bronze's `partition` is epoch · EPOCH_PARTITIONS + the log's partition.
Offsets that start over get a new epoch, so none is mistaken for one already stored."""


class Log(Protocol):
    """A durable buffer. One process appends, one reads; each opens its own."""

    expires: bool
    """Whether messages may leave the log before they were read, as by Kafka's retention."""

    def append(self, messages: pa.Table) -> None:
        """Stores `messages` (MESSAGE_SCHEMA) in order; returns when they are durable.

        Raises LogFull when the size bound is reached or the disk is full, LogBusy when another process holds the log,
        MessageTooLarge when a message exceeds the log's limit; in these cases nothing of the batch is kept. Raises
        Disconnected when brokers don't answer: part of the batch may have been kept. Appending it again gives
        duplicates, but the first copies are in order.
        """

    def partitions(self) -> list[int]:
        """The partitions that exist."""

    def origin(self, partition: int) -> int:
        """The first offset that the log ever assigned: nothing below it can be missing."""

    def bounds(self, partition: int) -> tuple[int, int]:
        """First offset still held, and the offset that the next message will get."""

    def read(self, partition: int, offset: int, messages_max: int) -> pa.Table:
        """Messages (RECORD_SCHEMA) from `offset` on, at most about `messages_max` or 64 MB; empty when there are none.

        The first has a greater offset when `offset` is no longer in the log; see `cryptopulse.log.continuity`.

        Raises LogDamaged when a record is not what was written.
        """

    def trim(self, partition: int, below: int) -> None:
        """Deletes messages with offsets under `below`. Call it only for messages that are safe elsewhere.

        Some may stay: the last seconds, from which a new producer reads how far its predecessor got, and amounts too
        small to be worth a write.
        """

    def close(self) -> None:
        """Releases files and connections."""
