"""Between the socket and the log: a bounded buffer of messages in memory, and the thread that writes them.

The event loop puts messages in and never waits; a separate thread takes them out in groups and appends each group, as
an Arrow table, to the log, which waits for the disk. Messages that the log has not acknowledged still count against
the bound.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import structlog

from cryptopulse.errors import MessageTooLarge, TransientError
from cryptopulse.latency import Latency
from cryptopulse.log import Log, message_table
from cryptopulse.retry import Backoff

WEBSOCKET = "websocket"
REST = "rest"
"""Where a message came from."""

MESSAGE_OVERHEAD_BYTES = 200
"""Memory of a held message beside its bytes: object headers, the receive time, the tuple, its slot in the queue."""

GROUP_MESSAGES_MAX = 20_000
GROUP_BYTES_MAX = 64 << 20
"""Largest group. Bounds what is in memory twice (as objects and as a table) after the log was slow for long."""

CLUSTER_S = 0.002
"""How long a lone message waits for others. Trades come in clusters, one taker's order against several makers'. With
7 real trades a second, 2 ms put as many into one synced write as 20 ms did (4 writes a second)."""

_log = structlog.get_logger()


SPARE_SHARE = 4
"""Pages of the REST interface may use 1/SPARE_SHARE of the bound; the rest is for messages that can't be requested
again."""


class ReceivedMessage(NamedTuple):
    """A message as received: product id or "", receive time (ns UTC), the bytes, WEBSOCKET or REST."""

    partition_key: str
    received_ns: int
    body: bytes
    source: str


class MessageBuffer:
    """A queue with a bound in bytes. One thread puts, one thread takes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._messages: deque[ReceivedMessage] = deque()
        # Each counter is written by one thread only, so comparing them needs no lock.
        self._bytes_put = 0
        self._bytes_done = 0
        self.news = threading.Event()
        """Set when there may be messages to take."""

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def bytes_held(self) -> int:
        """Memory of all unacknowledged messages, in bytes."""
        return self._bytes_put - self._bytes_done

    def has_room(self, size: int) -> bool:
        """Whether a message of `size` bytes may be put. Stays true until it is put: only one thread puts."""
        return self.bytes_held + size + MESSAGE_OVERHEAD_BYTES <= self._bytes_max

    def has_room_for_page(self, size: int) -> bool:
        """Whether a message of `size` bytes fits the share for pages, so that it takes no room from the sockets."""
        return self.bytes_held + size + MESSAGE_OVERHEAD_BYTES <= self._bytes_max // SPARE_SHARE

    @property
    def position(self) -> int:
        """The position after the last message put; see `is_done`."""
        return self._bytes_put

    def is_done(self, position: int) -> bool:
        """Whether the log has acknowledged all messages put before `position`."""
        return self._bytes_done >= position

    def put(self, partition_key: str, received_ns: int, body: bytes, source: str = WEBSOCKET) -> None:
        """Adds a message; check `has_room` first."""
        self._bytes_put += len(body) + MESSAGE_OVERHEAD_BYTES
        self._messages.append(ReceivedMessage(partition_key, received_ns, body, source))
        if not self.news.is_set():
            self.news.set()

    def take(self) -> list[ReceivedMessage]:
        """Takes out the oldest messages, at most one group. They count against the bound until `done`."""
        messages, size = self._messages, 0
        taken: list[ReceivedMessage] = []
        while messages and len(taken) < GROUP_MESSAGES_MAX and size < GROUP_BYTES_MAX:
            taken.append(messages.popleft())
            size += len(taken[-1].body)
        return taken

    def done(self, size: int) -> None:
        """Frees the room of messages taken; `size` is the sum of their bytes and overheads."""
        self._bytes_done += size


class LogWriter:
    """The thread that empties a buffer into a log.

    It sleeps until a message comes, gathers what follows within `CLUSTER_S`, and appends the group, but no sooner than
    `group_commit_ms` after it began to append the previous one. So a lone message is on disk at once, and with a busy
    feed each synced write has many messages. It ends when it is closed and the buffer is empty, or when the log fails
    for good: then `error` is set, `failed` has been called (from the thread), and the messages still held are lost.
    """

    def __init__(self, buffer: MessageBuffer, log: Log, *, group_commit_ms: int, failed: Callable[[], None]) -> None:
        self.error: BaseException | None = None
        self.messages_logged = 0
        self.messages_refused = 0
        """Messages too large for the log: lost, and logged as errors."""
        self.last_logged_ns = 0
        """When the log last acknowledged messages (ns UTC); 0: never."""
        self.latency = Latency()
        """From receiving a message to its acknowledgement, in ms."""
        self.in_flight = 0
        """Messages taken from the buffer that the log has not acknowledged."""
        self._buffer = buffer
        self._log = log
        self._group_s = group_commit_ms / 1000
        self._appended_s = -math.inf
        self._failed = failed
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Returns when all messages put are in the log, or the log has failed."""
        self._closing.set()
        self._buffer.news.set()
        self._thread.join()

    def _run(self) -> None:
        buffer = self._buffer
        try:
            while True:
                while not len(buffer):
                    if self._closing.is_set():
                        return
                    buffer.news.wait()
                    buffer.news.clear()
                # More messages of the same group may still come.
                due_s = max(time.monotonic() + CLUSTER_S, self._appended_s + self._group_s)
                self._closing.wait(due_s - time.monotonic())
                self._appended_s = time.monotonic()
                self._write(buffer.take())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
            self.error = error
            self._failed()

    def _write(self, messages: list[ReceivedMessage]) -> None:
        keys, times, bodies, sources = zip(*messages, strict=True)
        received_us = np.array(times, dtype=np.int64) // 1000
        table = message_table(keys, received_us, sources, bodies)
        self.in_flight, refused = len(messages), self.messages_refused
        self._append(table)
        self.in_flight = 0
        self.messages_logged += len(messages) - (self.messages_refused - refused)
        self._buffer.done(sum(map(len, bodies)) + MESSAGE_OVERHEAD_BYTES * len(messages))
        self.last_logged_ns = time.time_ns()
        self.latency.add((self.last_logged_ns // 1000 - received_us) / 1000)

    def _append(self, table: pa.Table) -> None:
        """Appends, with retries while errors are transient; meanwhile the buffer fills."""
        backoff = Backoff(longest_s=5.0)
        while True:
            try:
                return self._log.append(table)
            except MessageTooLarge as error:
                return self._append_apart(table, error)
            except TransientError as error:
                if self._closing.is_set():
                    raise
                pause_s = backoff.next_pause()
                _log.warning("waiting_for_log", error=str(error), retry_in_s=round(pause_s, 2))
                self._closing.wait(pause_s)

    def _append_apart(self, table: pa.Table, error: MessageTooLarge) -> None:
        """Appends the halves: if one message makes the log refuse a group, the others must not be lost."""
        half = table.num_rows // 2
        if half:
            self._append(table.slice(0, half))
            self._append(table.slice(half))
            return
        # Go on without it: a hole of one message is better than one that grows until an operator reacts.
        self.messages_refused += 1
        key, size = table["partition_key"][0].as_py(), len(table["body"][0].as_buffer())
        _log.error("message_refused", product=key, bytes=size, error=str(error))
