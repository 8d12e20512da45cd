"""A full disk is told in one line, and costs nothing: under the log, under the lake, at the start and later.

`test_crash_points.py` lets a disk fill up at every single change; here whole processes meet one.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from deployment import check_complete, check_tables, start_deployment
from tally import TALLY

from cryptopulse.errors import LogFull
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.settings import load_settings
from support import Lake, Trade, at
from support_processes import Processes, Tables, wait_until


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leaves no room in `folder`; the file to remove."""
    TALLY["full_disks"] += 1
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_full_disk_under_the_log_is_said_clearly_and_afterwards_nothing_is_missing(
    small_disk: Path, processes: Processes
) -> None:
    deployment = start_deployment(processes, LOG__URL=f"sqlite:{small_disk / 'log.db'}")
    filler = fill(small_disk)
    wait_until(lambda: "is full" in deployment.run.said, "the full disk is named")
    time.sleep(2)
    assert not deployment.events("unexpected_error"), deployment.run.said
    filler.unlink()
    assert not deployment.times("process_died", name="processing")
    published = deployment.finish()
    check_tables(deployment, published)
    check_complete(deployment, published)
    assert deployment.events("hole_found")  # there was something to heal


def test_a_log_on_a_full_disk_can_be_opened_and_read_by_whoever_is_to_empty_it(small_disk: Path) -> None:
    writer = SqliteLog(small_disk / "log.db", 1 << 30)
    messages = pa.Table.from_pylist([Trade("BTC-USD", 1).match()], schema=MESSAGE_SCHEMA)
    for _ in range(20):
        writer.append(messages)
    filler = fill(small_disk)
    with contextlib.suppress(LogFull):
        while True:  # there may be room for some in its last page
            writer.append(messages)
    reader = SqliteLog(small_disk / "log.db", 1 << 30)
    with closing(writer), closing(reader), ThreadPoolExecutor(1) as other_thread:
        first, end = other_thread.submit(reader.bounds, 0).result()
        assert end - first >= 20
        assert reader.read(0, first, 100).num_rows == end - first
        other_thread.submit(reader.trim, 0, first + 10).result()
        filler.unlink()
        reader.append(messages)


def test_a_full_disk_under_the_lake_is_said_clearly_and_the_log_keeps_everything_meanwhile(
    small_disk: Path, processes: Processes
) -> None:
    log = processes.folder / "log.db"
    deployment = start_deployment(processes, lake=small_disk / "lake", LOG__URL=f"sqlite:{log}")
    filler = fill(small_disk)
    wait_until(lambda: "is full" in deployment.run.said, "the full disk is named")
    wait_until(
        lambda: len(deployment.times("process_died", name="processing")) > 1, "the processing ends, again and again"
    )
    filler.unlink()
    published = deployment.finish()
    check_tables(deployment, published)
    assert not deployment.times("process_died", name="producer")
    assert deployment.tables.ids().keys() == published.keys()
    assert deployment.events("hole_found") == []


@pytest.fixture
def full_while(interposer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file: while it exists, the folder `lake` has no room for the processes that are started."""
    monkeypatch.setenv("LD_PRELOAD", str(interposer))
    monkeypatch.setenv("INTERPOSER_FOLDER", str(tmp_path / "lake"))
    monkeypatch.setenv("INTERPOSER_FULL_WHILE", str(tmp_path / "full"))
    return tmp_path / "full"


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EDQUOT, "is full"), (errno.EIO, "disk I/O error")], ids=["quota", "failing disk"]
)
def test_a_quota_or_a_disk_that_fails_for_a_while_under_the_log_loses_nothing(
    full_while: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    monkeypatch.setenv("INTERPOSER_ERROR", str(number))
    monkeypatch.setenv("INTERPOSER_FOLDER", str(processes.folder / "log"))
    processes = Processes(processes.folder)  # with this environment
    try:
        deployment = start_deployment(processes, LOG__URL=f"sqlite:{processes.folder / 'log' / 'log.db'}")
        full_while.touch()
        wait_until(lambda: words in deployment.run.said, f"'{words}' is said")
        time.sleep(2)
        assert deployment.run.popen.poll() is None, deployment.run.said
        assert "Can't append to the log" not in deployment.run.said or number == errno.EIO
        assert not deployment.events("unexpected_error"), deployment.run.said
        full_while.unlink()
        published = deployment.finish()
        check_tables(deployment, published)
        check_complete(deployment, published)
    finally:
        processes.close()


def test_a_processing_that_starts_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    full_while: Path, tmp_path: Path
) -> None:
    processes = Processes(tmp_path)
    trades = [Trade("BTC-USD", number, at(number)) for number in range(1, 101)]
    lake = Lake(tmp_path / "lake")
    lake.append(trade.match() for trade in trades)
    try:
        for start in ("a lake without tables", "a lake with tables"):
            full_while.touch()
            done = processes.call("process", "--once", "--lake", str(lake.path))
            assert done.returncode == 3, start
            (line,) = done.stderr.splitlines()
            assert line.startswith("cryptopulse: The ")
            assert "is full" in line
            full_while.unlink()
            assert processes.call("process", "--once", "--lake", str(lake.path)).returncode == 0
            assert Tables(lake.path).ids() == {("BTC-USD", trade.trade_id): 1 for trade in trades}
    finally:
        processes.close()
        lake.close()


def test_a_full_disk_at_the_very_first_start_is_told_as_such(full_while: Path, tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    full_while.touch()
    try:
        for command in (["process", "--once"], ["produce"], ["run", "--no-view"]):
            done = processes.call(*command, "--lake", str(tmp_path / "lake"))
            assert done.returncode == 3, done.stderr
            (line,) = done.stderr.splitlines()
            assert line.startswith("cryptopulse: ")
            assert "is full" in line
    finally:
        processes.close()
    assert not load_settings(lake=tmp_path / "lake").log_path.exists()
