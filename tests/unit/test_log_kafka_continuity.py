"""What comes between a log and a lake is said: expired messages, another log. And what does not, is not."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from structlog.testing import capture_logs

from cryptopulse.errors import ConfigurationError, MessageTooLarge
from cryptopulse.feed.buffer import LogWriter, MessageBuffer
from cryptopulse.log import MESSAGE_SCHEMA, RECORD_SCHEMA
from cryptopulse.log.continuity import Continuity
from cryptopulse.log.sqlite import PARTITION, SqliteLog
from support import Lake, Trade, at, message

MB = 1 << 20


def of(*bodies: bytes) -> pa.Table:
    return pa.Table.from_pylist([message(body) for body in bodies], schema=MESSAGE_SCHEMA)


def test_a_new_embedded_log_and_one_that_is_at_its_end_are_nothing_to_speak_of(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", MB)
    watch = Continuity(log)
    with capture_logs() as said:
        watch.check_start(lambda _partition: -1)
        watch.check_start(lambda _partition: 1234)  # of a log that was thrown away
        log.append(of(b"1", b"2", b"3"))
        first, end = log.bounds(PARTITION)
        watch.check_start(lambda _partition: end - 1)
        watch.check_read(PARTITION, 1235, log.read(PARTITION, 1235, 10))
        watch.check_read(PARTITION, end, RECORD_SCHEMA.empty_table())
    assert not said
    assert watch.expired == 0
    assert log.origin(PARTITION) == first
    log.close()


def test_what_was_trimmed_unread_is_said_once_for_each_stretch(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", 256)  # so small that no more than the newest batch is kept back
    for number in range(5):
        log.append(of(b"%d" % number, b"x" * 100_000))
    origin = log.bounds(PARTITION)[0]
    watch = Continuity(log)
    with capture_logs() as said:
        log.trim(PARTITION, origin + 4)
        watch.check_start(lambda _partition: origin)  # one of the four was stored
        watch.check_read(PARTITION, origin + 1, log.read(PARTITION, origin + 1, 2))
        log.trim(PARTITION, origin + 8)
        watch.check_read(PARTITION, origin + 6, log.read(PARTITION, origin + 6, 2))
        watch.check_read(PARTITION, origin + 6, log.read(PARTITION, origin + 6, 2))
    stretches = [(line["first_offset"] - origin, line["last_offset"] - origin, line["count"]) for line in said]
    assert stretches == [(1, 3, 3), (6, 7, 2)]
    assert watch.expired == 5
    log.close()


def test_a_lake_that_is_ahead_of_its_log_is_refused(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", MB)
    log.append(of(b"1"))
    end = log.bounds(PARTITION)[1]
    with pytest.raises(ConfigurationError, match=r"raise log\.epoch by one"):
        Continuity(log).check_start(lambda _partition: end)
    log.close()


def test_the_processing_reports_how_many_messages_expired(lake: Lake) -> None:
    from cryptopulse.pipeline import Pipeline

    lake.append([Trade("BTC-USD", number, at(number)).match() for number in range(1, 11)])
    with Pipeline(lake.settings, lake.log) as running:
        running.drain(lambda _done, _total: None)
        assert running.state()["messages_expired_total"] == 0


class SmallLog(SqliteLog):
    """A log that takes no batch with a body of more than ten bytes."""

    def append(self, messages: pa.Table) -> None:
        if max(map(len, messages["body"].to_pylist())) > 10:
            raise MessageTooLarge("A message is larger than the log takes (10).")
        super().append(messages)


@pytest.mark.parametrize("large", [{0}, {9}, {3, 4}, set(range(10)), set()])
def test_a_message_that_the_log_refuses_for_its_size_costs_no_other_one(large: set[int], tmp_path: Path) -> None:
    log = SmallLog(tmp_path / "log.db", MB)
    buffer = MessageBuffer(MB)
    writer = LogWriter(buffer, log, group_commit_ms=5, failed=lambda: None)
    for number in range(10):
        buffer.put("BTC-USD", number * 1000, b"%d" % number * (11 if number in large else 1))
    with capture_logs() as said:
        writer.start()
        writer.close()
    assert writer.error is None
    assert (writer.messages_logged, writer.messages_refused) == (10 - len(large), len(large))
    first, end = log.bounds(PARTITION)
    held = log.read(PARTITION, first, end - first)["body"].to_pylist()
    assert held == [b"%d" % number for number in range(10) if number not in large]
    assert [line["event"] for line in said] == ["message_refused"] * len(large)
    log.close()
