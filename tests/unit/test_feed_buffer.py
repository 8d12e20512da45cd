"""The bounded buffer and the thread that writes it to the log."""

import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest

from cryptopulse.errors import LogFull, TransientError
from cryptopulse.feed.buffer import CLUSTER_S, MESSAGE_OVERHEAD_BYTES, REST, SPARE_SHARE, LogWriter, MessageBuffer
from cryptopulse.log import MESSAGE_SCHEMA, Log
from cryptopulse.log.sqlite import SqliteLog

MB = 1024 * 1024


class ScriptedLog:
    """A log in memory, slow or refusing on order: raises `errors` first, waits until `open` is set."""

    def __init__(self, *errors: Exception) -> None:
        self.tables: list[pa.Table] = []
        self.errors = list(errors)
        self.open = threading.Event()
        self.open.set()
        self.appending = threading.Event()

    def append(self, messages: pa.Table) -> None:
        self.appending.set()
        self.open.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.tables.append(messages)

    def bodies(self) -> list[bytes]:
        return [body for table in self.tables for body in table["body"].to_pylist()]

    def partitions(self) -> list[int]:
        return [0]

    def bounds(self, partition: int) -> tuple[int, int]:
        assert partition == 0
        return 0, len(self.bodies())


class TimedLog(ScriptedLog):
    """Notes when each append began."""

    def __init__(self) -> None:
        super().__init__()
        self.began_s: list[float] = []

    def append(self, messages: pa.Table) -> None:
        self.began_s.append(time.monotonic())
        super().append(messages)


def _writer(
    buffer: MessageBuffer, log: Log | ScriptedLog, group_commit_ms: int = 5
) -> tuple[LogWriter, threading.Event]:
    failed = threading.Event()
    writer = LogWriter(buffer, cast("Log", log), group_commit_ms=group_commit_ms, failed=failed.set)
    writer.start()
    return writer, failed


def test_messages_reach_the_real_log_as_they_came_and_in_order(tmp_path: Path) -> None:
    buffer = MessageBuffer(MB)
    log = SqliteLog(tmp_path / "log.db", 64 * MB)
    writer, _ = _writer(buffer, log)
    bodies = [b"", b"\x00\xff", b'{"type":"match"}', b"x" * 100_000]
    for number, body in enumerate(bodies):
        buffer.put("BTC-USD" if number % 2 else "", 1_700_000_000_123_456_789 + number * 1000, body)
    writer.close()
    first, _ = log.bounds(0)
    records = log.read(0, first, 100)
    log.close()
    assert records["body"].to_pylist() == bodies
    assert records["partition_key"].to_pylist() == ["", "BTC-USD", "", "BTC-USD"]
    assert set(records["source"].to_pylist()) == {"websocket"}
    received = datetime.fromtimestamp(1_700_000_000, UTC).replace(microsecond=123_456)
    assert records["received_time"].to_pylist()[0] == received
    assert writer.messages_logged == 4
    assert buffer.bytes_held == 0


def test_one_table_is_appended_for_what_arrives_within_the_group_time() -> None:
    buffer = MessageBuffer(MB)
    log = ScriptedLog()
    for number in range(1000):
        buffer.put("A-USD", time.time_ns(), b"%d" % number)
    writer, _ = _writer(buffer, log)
    writer.close()
    (table,) = log.tables
    assert table.schema == MESSAGE_SCHEMA
    assert table.num_rows == 1000


def test_a_lone_message_is_in_the_log_long_before_the_group_time() -> None:
    buffer = MessageBuffer(MB)
    log = ScriptedLog()
    writer, _ = _writer(buffer, log, group_commit_ms=100_000)
    before_s = time.monotonic()
    buffer.put("A-USD", time.time_ns(), b"alone")
    assert log.appending.wait(60)
    assert time.monotonic() - before_s >= CLUSTER_S
    writer.close()
    latency = writer.latency.lately()
    assert latency["n"] == 1
    assert latency["p50"] is not None
    assert 1000 * CLUSTER_S <= latency["p50"] < 2500


def test_writes_begin_a_group_time_after_each_other_and_share_what_came_in_between() -> None:
    buffer = MessageBuffer(MB)
    log = TimedLog()
    writer, _ = _writer(buffer, log, group_commit_ms=50)
    for number in range(100):
        buffer.put("A-USD", time.time_ns(), b"%d" % number)
        time.sleep(0.002)
    writer.close()
    assert log.bodies() == [b"%d" % number for number in range(100)]
    *began_s, _ = log.began_s  # the last one is hurried by the end
    assert len(began_s) >= 2
    took_s = began_s[-1] - began_s[0]
    # Of a single pause a busy machine may take something away: the writer counts from when it wanted to begin.
    assert len(began_s) - 1 <= took_s / 0.05 + 1


def test_messages_that_the_log_has_not_acknowledged_count_against_the_bound() -> None:
    size = 1000 + MESSAGE_OVERHEAD_BYTES
    buffer = MessageBuffer(2 * size)
    log = ScriptedLog()
    log.open.clear()
    writer, _ = _writer(buffer, log)
    buffer.put("A-USD", 0, b"x" * 1000)
    assert log.appending.wait(5)
    assert len(buffer) == 0
    assert buffer.has_room(1000)
    buffer.put("A-USD", 0, b"x" * 1000)
    assert not buffer.has_room(0)
    log.open.set()
    writer.close()
    assert buffer.has_room(1000)


def test_a_page_of_the_rest_interface_keeps_its_source_among_others(tmp_path: Path) -> None:
    buffer = MessageBuffer(MB)
    log = SqliteLog(tmp_path / "log.db", 64 * MB)
    buffer.put("A-USD", 0, b"{}")
    buffer.put("A-USD", 0, b"[]", REST)
    buffer.put("", 0, b"{}")
    writer, _ = _writer(buffer, log)
    writer.close()
    records = log.read(0, log.bounds(0)[0], 9)
    log.close()
    assert list(zip(records["source"].to_pylist(), records["body"].to_pylist(), strict=True)) == [
        ("websocket", b"{}"),
        ("rest", b"[]"),
        ("websocket", b"{}"),
    ]


def test_a_message_is_done_when_the_log_has_acknowledged_it_and_not_before() -> None:
    buffer = MessageBuffer(MB)
    log = ScriptedLog()
    log.open.clear()
    buffer.put("A-USD", 0, b"first")
    position = buffer.position
    assert not buffer.is_done(position)
    writer, _ = _writer(buffer, log)
    assert log.appending.wait(5)
    buffer.put("A-USD", 0, b"second")
    assert not buffer.is_done(position)
    log.open.set()
    writer.close()
    assert buffer.is_done(position)
    assert buffer.is_done(buffer.position)


def test_pages_find_no_room_long_before_live_messages_do() -> None:
    buffer = MessageBuffer(SPARE_SHARE * 1000)
    assert buffer.has_room_for_page(1000 - MESSAGE_OVERHEAD_BYTES)
    buffer.put("A-USD", 0, b"live")
    assert not buffer.has_room_for_page(1000 - MESSAGE_OVERHEAD_BYTES)
    assert buffer.has_room(1000)


def test_a_message_larger_than_the_bound_is_refused_even_when_nothing_is_held() -> None:
    assert not MessageBuffer(1000).has_room(1001)


def test_a_full_log_stops_the_writer_and_what_is_held_is_known() -> None:
    buffer = MessageBuffer(MB)
    log = ScriptedLog(LogFull("the log is full"))
    for _ in range(3):
        buffer.put("A-USD", 0, b"lost")
    writer, failed = _writer(buffer, log)
    assert failed.wait(5)
    writer.close()
    assert isinstance(writer.error, LogFull)
    assert writer.in_flight + len(buffer) == 3
    assert writer.messages_logged == 0


def test_a_log_that_is_only_busy_gets_the_same_messages_again() -> None:
    buffer = MessageBuffer(MB)
    log = ScriptedLog(TransientError("busy"), TransientError("still busy"))
    writer, failed = _writer(buffer, log)
    buffer.put("A-USD", 0, b"patient")
    deadline_s = time.monotonic() + 5
    while not log.tables and time.monotonic() < deadline_s:
        failed.wait(0.01)
    writer.close()
    assert log.bodies() == [b"patient"]
    assert not failed.is_set()


def test_closing_writes_everything_that_was_put() -> None:
    buffer = MessageBuffer(64 * MB)
    log = ScriptedLog()
    writer, _ = _writer(buffer, log, group_commit_ms=50)
    bodies = [b"%d" % number for number in range(60_000)]
    for body in bodies:
        buffer.put("", time.time_ns(), body)
    writer.close()
    assert log.bodies() == bodies


def test_a_group_is_limited_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryptopulse.feed.buffer.GROUP_BYTES_MAX", 2500)
    buffer = MessageBuffer(MB)
    log = ScriptedLog()
    for number in range(7):
        buffer.put("A-USD", 0, bytes([number]) * 1000)
    writer, _ = _writer(buffer, log)
    writer.close()
    assert [table.num_rows for table in log.tables] == [3, 3, 1]
    assert log.bodies() == [bytes([number]) * 1000 for number in range(7)]
