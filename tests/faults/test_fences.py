"""A pipeline that was stopped, and wakes after another took its place, can commit to no table.

The lock that keeps a second pipeline out guards one machine, and only as long as nobody deletes it. The tests delete
it, as if the successor ran elsewhere.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tally import TALLY

from cryptopulse.engine.embedded import EmbeddedEngine
from cryptopulse.errors import Fenced, LakeBusy
from cryptopulse.lake.tables import BRONZE, SILVER, TABLES
from cryptopulse.pipeline import Pipeline
from cryptopulse.store.table_writer import TableWriter
from support import Lake, Trade, at
from support_processes import Processes, Tables, wait_until

_ZOMBIE = """
import sys
from cryptopulse.errors import Fenced
from cryptopulse.lake.tables import TABLES
from cryptopulse.log.opening import open_log
from cryptopulse.pipeline import Pipeline
from cryptopulse.settings import load_settings

settings = load_settings(lake=sys.argv[1], maintenance={"compact_commits": 8})
with Pipeline(settings, open_log(settings)) as pipeline:
    pipeline.drain(lambda _done, _total: None)
    rows = {name: writer.read("*").slice(0, 1) for name, writer in pipeline.engine.tables.items()}
    print("ready", flush=True)
    sys.stdin.readline()
    for care in pipeline.maintenance._tables:
        care._compacted = -100
    for table in TABLES:
        writer = pipeline.engine.tables[table.qualified]
        for way in (writer.append, writer.replace, lambda r, p: writer.append(r[:0], p)):
            try:
                way(rows[table.qualified], {"somewhere": 1})
                print(table.qualified, "committed", flush=True)
            except Fenced:
                pass
    try:
        pipeline.maintenance.run_due()
        print("maintained", flush=True)
    except Fenced:
        print("fenced", flush=True)
"""


def trades(first: int, last: int) -> list[dict[str, Any]]:
    """With a crash in every third."""
    found = [Trade("BTC-USD", n, at(n * 20.0), str(100 - (n % 3) * 2)) for n in range(first, last + 1)]
    return [*(trade.match() for trade in found), {**found[0].match(), "body": b"junk"}]


def forget_who_works_here(lake: Lake) -> None:
    """The lock and the status files, as if they were on another machine."""
    TALLY["take_overs"] += 1
    (lake.settings.state_dir / "pipeline.lock").unlink()
    shutil.rmtree(lake.settings.state_dir / "status", ignore_errors=True)


def test_a_stopped_pipeline_that_is_continued_after_a_take_over_can_commit_to_no_table(lake: Lake) -> None:
    """Also to those to which its successor had nothing to write."""
    for first in range(1, 41, 5):
        lake.take_in(trades(first, first + 4))
    command = [sys.executable, "-c", _ZOMBIE, str(lake.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as zombie:
        assert zombie.stdin is not None
        assert zombie.stdout is not None
        assert zombie.stdout.readline() == "ready\n"
        os.kill(zombie.pid, signal.SIGSTOP)
        forget_who_works_here(lake)
        lake.drain()
        versions = {table.qualified: lake.delta(table).version() for table in TABLES}
        os.kill(zombie.pid, signal.SIGCONT)
        said, _ = zombie.communicate("go\n", timeout=60)
    assert said == "fenced\n"
    assert {table.qualified: lake.delta(table).version() for table in TABLES} == versions


def test_a_processing_that_is_continued_after_a_take_over_ends_in_one_line(lake: Lake, tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    try:
        lake.take_in(trades(1, 5))
        zombie = processes.start("process", "--lake", str(lake.path))
        wait_until(lambda: Tables(lake.path).status("processing").report.get("tables"), "the first one works")
        os.kill(zombie.popen.pid, signal.SIGSTOP)
        forget_who_works_here(lake)
        successor = processes.start("process", "--lake", str(lake.path))
        before = lake.delta(BRONZE).version()
        wait_until(lambda: lake.delta(BRONZE).version() > before, "the second one has taken over")
        os.kill(zombie.popen.pid, signal.SIGCONT)
        lake.append(trades(6, 30))
        assert zombie.popen.wait(timeout=60) == 5, zombie.said
        assert "Run one pipeline per lake" in zombie.said.splitlines()[-1]
        assert "Traceback" not in zombie.said
        wait_until(lambda: len(Tables(lake.path).ids()) == 30, "the second one has stored all")
        assert successor.stop() == 0, successor.said
    finally:
        processes.close()
    assert set(Tables(lake.path).ids().values()) == {1}
    assert sorted(lake.arrow(BRONZE)["offset"].to_pylist()) == list(range(lake.log.origin(0), lake.log.bounds(0)[1]))


def test_of_pipelines_that_start_at_the_same_moment_one_goes_on(lake: Lake) -> None:
    """However the starts mix: one can commit to every table, the others to none."""
    lake.take_in(trades(1, 5))
    empty = {table.qualified: table.arrow_schema.empty_table() for table in TABLES}
    for _ in range(5):
        engines: list[EmbeddedEngine] = []

        def start(engines: list[EmbeddedEngine] = engines) -> None:
            try:
                engines.append(EmbeddedEngine(lake.settings))
            except Fenced:
                return

        starts = [threading.Thread(target=start) for _ in range(3)]
        for thread in starts:
            thread.start()
        for thread in starts:
            thread.join()
        committed = []
        for engine in engines:
            for name, writer in engine.tables.items():
                try:
                    writer.append(empty[name], {"somewhere": 1})
                    committed.append((id(engine), name))
                except Fenced:
                    pass
            engine.close()
        assert {name for _, name in committed} == empty.keys()
        assert len({engine for engine, _ in committed}) == 1
    assert lake.arrow(SILVER).num_rows == 5


@pytest.mark.parametrize("name", ["link", "lake/", "./lake/../lake", "file://{}/lake"])
def test_a_second_pipeline_on_the_same_lake_is_refused_whatever_name_the_lake_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    first = Lake(tmp_path / "lake")
    (tmp_path / "link").symlink_to("lake")
    with Pipeline(first.settings, first.log):
        second = Lake(name.format(tmp_path))
        with pytest.raises(LakeBusy) as told:
            second.drain()
        second.close()
    assert str(os.getpid()) in str(told.value)
    assert "\n" not in str(told.value)
    first.close()


def test_a_take_over_takes_little_of_the_start(lake: Lake) -> None:
    """It must leave the 3 s from the start to the first trade alone: some 20 ms are usual."""
    lake.take_in(trades(1, 5))
    writers = [TableWriter(lake.settings.location, table, {}) for table in TABLES]
    started = time.process_time()  # for a disk or a core that others use says nothing of it
    for writer in writers:
        writer.take_over(writer.owner + 1)
    assert time.process_time() - started < 2
