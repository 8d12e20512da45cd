"""The embedded log: nothing acknowledged is lost, nothing doubled, nothing damaged goes unnoticed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cryptopulse.errors import ConfigurationError, LogDamaged, LogFull
from cryptopulse.log import MESSAGE_SCHEMA, RECORD_SCHEMA, message_table
from cryptopulse.log.sqlite import SqliteLog
from support import START, message

MB = 1 << 20


def batch(*bodies: bytes) -> pa.Table:
    rows = [message(body, key="BTC-USD", received=START + timedelta(microseconds=n)) for n, body in enumerate(bodies)]
    return pa.Table.from_pylist(rows, schema=MESSAGE_SCHEMA)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    made = SqliteLog(tmp_path / "log.db", 64 * MB)
    yield made
    made.close()


def bodies(log: SqliteLog, count: int = 1_000_000) -> list[bytes]:
    return log.read(0, log.bounds(0)[0], count)["body"].to_pylist()


def test_what_is_read_is_what_was_appended_with_dense_offsets(log: SqliteLog) -> None:
    first = log.bounds(0)[1]
    log.append(batch(b"a", b"\0\xff", b""))
    log.append(batch(*[bytes([n]) * 5000 for n in range(7)]))
    records = log.read(0, first, 100)
    assert records.schema == RECORD_SCHEMA
    assert records["offset"].to_pylist() == list(range(first, first + 10))
    assert records["body"].to_pylist()[:4] == [b"a", b"\0\xff", b"", b"\0" * 5000]
    assert records["received_time"].to_pylist()[:2] == [START, START + timedelta(microseconds=1)]
    assert log.bounds(0) == (first, first + 10)


@pytest.mark.parametrize(("skip", "most"), [(0, 1), (1, 2), (2, 3), (3, 100), (7, 1), (9, 5), (10, 5), (99, 5)])
def test_reading_starts_and_ends_anywhere(log: SqliteLog, skip: int, most: int) -> None:
    for start in (0, 3, 5):
        log.append(batch(*[str(n).encode() for n in range(start, {0: 3, 3: 5, 5: 10}[start])]))
    found = log.read(0, log.bounds(0)[0] + skip, most)["body"].to_pylist()
    expected = [str(n).encode() for n in range(skip, 10)]
    assert found == expected[: len(found)]
    assert len(found) <= most
    assert found or not expected


def test_one_read_holds_a_bounded_amount_of_bytes_and_the_next_goes_on(
    log: SqliteLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryptopulse.log.sqlite._READ_BYTES_MAX", 250_000)
    pages = [bytes([number]) * 100_000 for number in range(7)]
    for page in pages:
        log.append(batch(page))
    first = log.bounds(0)[0]
    counts, found = [], []
    while (records := log.read(0, first + len(found), 1_000_000)).num_rows:
        counts.append(records.num_rows)
        found += records["body"].to_pylist()
    assert counts == [3, 3, 1]
    assert found == pages


def test_one_append_of_many_messages_is_one_unit(log: SqliteLog) -> None:
    log.append(batch(*[str(n).encode() for n in range(45_000)]))
    assert bodies(log) == [str(n).encode() for n in range(45_000)]
    log.append(batch())
    assert log.bounds(0)[1] - log.bounds(0)[0] == 45_000


def test_trimming_forgets_only_what_is_below_and_offsets_go_on(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", 256)  # so small that no more than the newest batch is kept back
    first = log.bounds(0)[0]
    for n in range(5):
        log.append(batch(*[str(n).encode()] * 10))
    log.trim(0, first + 25)
    assert log.bounds(0) == (first + 20, first + 50)
    log.trim(0, first + 50)
    start, end = log.bounds(0)
    assert end == first + 50
    log.append(batch(b"next"))
    assert log.read(0, end, 10)["offset"].to_pylist() == [end]
    assert start > first
    log.close()


def test_offsets_grow_when_a_log_is_deleted_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    one = SqliteLog(path, MB)
    one.append(batch(*[b"x"] * 100))
    end = one.bounds(0)[1]
    one.close()
    for file in tmp_path.iterdir():
        file.unlink()
    two = SqliteLog(path, MB)
    assert two.bounds(0)[0] >= end
    two.close()


def test_a_full_log_says_so_keeps_what_it_has_and_goes_on_after_a_trim(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", 2 * MB)
    first, kept = log.bounds(0)[0], 0
    with pytest.raises(LogFull, match=r"log\.size_max_mb"):  # noqa: PT012 - some batches fit
        for _ in range(100):
            log.append(batch(os.urandom(100_000)))
            kept += 1
    assert kept > 10
    assert log.bounds(0) == (first, first + kept)
    assert len(bodies(log)) == kept
    log.trim(0, first + kept)
    log.append(batch(os.urandom(100_000)))
    assert log.bounds(0)[1] == first + kept + 1
    log.close()


def test_a_full_disk_says_so_and_the_log_goes_on_when_there_is_room_again(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", mount], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("a small file system can't be mounted here")
    try:
        filler = mount / "filler"
        filler.write_bytes(b"x" * 2 * MB)
        log, kept = SqliteLog(mount / "log.db", 1 << 30), 0
        first = log.bounds(0)[0]
        with pytest.raises(LogFull):  # noqa: PT012 - some batches fit
            for _ in range(100):
                log.append(batch(os.urandom(100_000)))
                kept += 1
        assert len(bodies(log)) == kept
        filler.unlink()
        log.append(batch(b"again"))
        assert log.bounds(0) == (first, first + kept + 1)
        log.close()
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize("column", ["body", "messages", "enqueued_us", "checksum", "raw_bytes"])
@pytest.mark.parametrize("size", [1, 20_000], ids=["plain", "compressed"])
def test_a_changed_record_is_noticed_and_named(tmp_path: Path, column: str, size: int) -> None:
    path = tmp_path / "log.db"
    log = SqliteLog(path, 64 * MB)
    first = log.bounds(0)[0]
    for _ in range(3):
        log.append(batch(b"x" * size, b"y" * size))
    log.close()
    with sqlite3.connect(path) as db:
        body = bytearray(db.execute("SELECT body FROM batches LIMIT 1 OFFSET 1").fetchone()[0])
        body[len(body) // 2] ^= 1
        value = "?" if column == "body" else f"{column} + ?"
        where = f"WHERE first_offset = {first + 2}"
        db.execute(f"UPDATE batches SET {column} = {value} {where}", (bytes(body) if column == "body" else 1,))
    db.close()
    again = SqliteLog(path, 64 * MB)
    assert again.read(0, first, 2).num_rows == 2
    with pytest.raises(LogDamaged, match=f"{first + 2} to "):
        again.read(0, first, 100)
    again.close()


def test_a_flipped_byte_in_the_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = SqliteLog(path, 64 * MB)
    log.append(batch(os.urandom(50_000) + b"NEEDLE" + os.urandom(50_000)))
    log.close()
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"NEEDLE")] ^= 1
    path.write_bytes(raw)
    again = SqliteLog(path, 64 * MB)
    with pytest.raises(LogDamaged):
        bodies(again)
    again.close()


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_file_cut_short_is_told_or_reads_as_a_shorter_log(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "log.db"
    log = SqliteLog(path, 64 * MB)
    for n in range(20):
        log.append(batch(bytes([n]) * 10, os.urandom(30_000)))
    log.close()
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(LogDamaged, match=r"Restore (it|the)"):  # noqa: PT012 - at opening or at reading
        again = SqliteLog(path, 64 * MB)
        try:
            bodies(again)
        finally:
            again.close()


def test_a_file_that_is_no_log_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"These are my notes. " * 2000)
    with pytest.raises(LogDamaged) as told:
        SqliteLog(tmp_path / "log.db", MB)
    assert "\n" not in str(told.value)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError):
        SqliteLog(tmp_path / "file" / "log.db", MB)


_APPENDER = """
import sys, pyarrow as pa
from datetime import datetime, UTC
from pathlib import Path
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.sqlite import SqliteLog
log = SqliteLog(Path(sys.argv[1]), 1 << 30)
n, most = int(sys.argv[2]), int(sys.argv[3])
while n < most:
    rows = [dict(partition_key="", received_time=datetime.now(UTC), source="websocket", body=str(n + k).encode())
            for k in range(7)]
    log.append(pa.Table.from_pylist(rows, schema=MESSAGE_SCHEMA))
    n += 7
    print(n, flush=True)
"""


def test_a_kill_amid_appends_loses_nothing_acknowledged_and_doubles_nothing(tmp_path: Path) -> None:
    path, stored = tmp_path / "log.db", 0
    for _ in range(4):
        command = [sys.executable, "-c", _APPENDER, str(path), str(stored), "1000000000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as appender:
            assert appender.stdout is not None
            acknowledged = [int(appender.stdout.readline()) for _ in range(25)]
            appender.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in appender.stdout if line.endswith(b"\n")]
        log = SqliteLog(path, 1 << 30)
        found = [int(body) for body in bodies(log)]
        log.close()
        assert found == list(range(len(found)))
        assert acknowledged[-1] <= len(found) <= acknowledged[-1] + 7
        stored = len(found)


def test_one_process_appends_while_another_reads_and_trims(tmp_path: Path) -> None:
    path, most = tmp_path / "log.db", 2100
    with subprocess.Popen(
        [sys.executable, "-c", _APPENDER, str(path), "0", str(most)], stdout=subprocess.PIPE
    ) as other:
        log, found, deadline = SqliteLog(path, 1 << 30), [], time.monotonic() + 60
        offset = log.bounds(0)[0]
        while len(found) < most and time.monotonic() < deadline:
            records = log.read(0, offset, 50)
            found += [int(body) for body in records["body"].to_pylist()]
            if records.num_rows:
                assert records["offset"][0].as_py() == offset
                offset += records.num_rows
                log.trim(0, offset)
        assert other.wait(30) == 0
    assert found == list(range(most))
    log.close()


def test_several_processes_can_make_a_new_log_at_once(tmp_path: Path) -> None:
    for round_ in range(3):
        path = tmp_path / str(round_) / "log.db"
        command = [sys.executable, "-c", _APPENDER, str(path), "0", "7"]
        processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(3)]
        errors = [process.communicate()[1].decode() for process in processes]
        assert errors == ["", "", ""]
        log = SqliteLog(path, MB)
        assert len(bodies(log)) == 21
        log.close()


def test_messages_put_together_from_buffers_are_those_that_arrow_itself_makes() -> None:
    keys, sources, bodies_ = ["", "BTC-USD", "Ł-€"], ["rest", "websocket", "rest"], [b"", b"\0\xff", b"x" * 70_000]
    received_us = np.array([0, 1_700_000_000_123_456, -1], dtype=np.int64)
    for count in (0, 1, 3):
        columns: tuple[Any, ...] = (keys[:count], received_us[:count], sources[:count], bodies_[:count])
        made = message_table(*columns)
        made.validate(full=True)
        arrays = [
            pa.array([int(value) if isinstance(value, np.int64) else value for value in column], field.type)
            for column, field in zip(columns, MESSAGE_SCHEMA, strict=True)
        ]
        assert made.equals(pa.table(arrays, schema=MESSAGE_SCHEMA))


def test_a_small_append_writes_few_bytes(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", 64 * MB)
    before = (tmp_path / "log.db-wal").stat().st_size
    for number in range(50):
        log.append(batch(*[b'{"type":"match","trade_id":%d,"size":"0.1","price":"64000.1"}' % number] * 4))
    assert (tmp_path / "log.db-wal").stat().st_size - before < 50 * 11_000
    log.close()


def test_what_is_too_little_to_be_worth_a_write_is_not_trimmed_and_more_is(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", 64 * MB)
    first = log.bounds(0)[0]
    with sqlite3.connect(tmp_path / "log.db") as db:
        for number in range(20):
            log.append(batch(os.urandom(100_000)))
            db.execute("UPDATE batches SET enqueued_us = enqueued_us - 20000000")  # older than what a trim leaves
            db.commit()
            if number == 1:
                log.trim(0, first + 2)
                assert log.bounds(0)[0] == first
    db.close()
    log.trim(0, first + 19)
    assert log.bounds(0) == (first + 19, first + 20)
    log.close()


def test_a_log_that_was_long_gives_its_disk_back_and_trimming_writes_little(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", 16 * MB)  # of which a trim leaves two
    for _ in range(40):
        with suppress(LogFull):
            log.append(batch(os.urandom(1_000_000)))
    assert (tmp_path / "log.db").stat().st_size > 12 * MB
    log.trim(0, log.bounds(0)[1])
    for _ in range(30):
        log.append(batch(os.urandom(300_000)))
        log.trim(0, log.bounds(0)[1])
    assert (tmp_path / "log.db").stat().st_size < 8 * MB
    assert (tmp_path / "log.db-wal").stat().st_size < 6 * MB
    log.close()
