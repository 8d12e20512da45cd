"""kill -9 of each process at random moments, then a comparison by trade id with what the simulator sent.

The moments come from a seed, which is printed; CRYPTOPULSE_TEST_SEED sets it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from cryptopulse.errors import LogBusy
from cryptopulse.feed.exchange import Exchange
from cryptopulse.feed.protocol import HoleFound, Session
from cryptopulse.lake.tables import BARS, BRONZE
from cryptopulse.log import MESSAGE_SCHEMA, sqlite
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.settings import load_settings
from support import Trade, model_bars
from support_processes import (
    Command,
    Processes,
    Tables,
    reported_missing,
    runs,
    same_trades,
    wait_until,
)
from support_processes import (
    Exchange as SimulatedExchange,
)

PRODUCTS = 8  # a producer says at most ten holes at once, one line each
RATE = 400.0
UNDERWAY = timedelta(seconds=1.5)
"""What was published so shortly before a kill may not have been on disk yet: two busy cores, one slow disk."""
_SEED = os.environ.pop("CRYPTOPULSE_TEST_SEED", None)  # no setting of the program, which would refuse it
QUOTIENTS = ("vwap", "load_timestamp", "window_date")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.close()


@pytest.fixture
def chance() -> random.Random:
    seed = time.time_ns() % 1_000_000 if _SEED is None else int(_SEED)
    print(f"CRYPTOPULSE_TEST_SEED={seed}")
    return random.Random(seed)


@dataclass
class Deployment:
    """`run` on a simulator, and what was done to it."""

    processes: Processes
    exchange: SimulatedExchange
    lake: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    run: Command = field(init=False)
    deaths: list[datetime] = field(default_factory=list)
    """When there was no producer any more."""
    earlier: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tables = Tables(self.lake)
        self.start()

    def start(self) -> None:
        self.run = self.processes.start("run", "--lake", str(self.lake), **self.exchange.feed(), **self.settings)

    def events(self, name: str) -> list[dict[str, object]]:
        return [event for command in (*self.earlier, self.run) for event in command.events(name)]

    def subscriptions(self) -> list[datetime]:
        return sorted(datetime.fromisoformat(str(event["timestamp"])) for event in self.events("subscribed"))

    def kill(self, name: str) -> None:
        """kill -9 of `producer`, `processing` or `run`, which is started again as its user would."""
        if name == "run":
            self.deaths.append(datetime.now(UTC))
            self.run.kill()
            self.earlier.append(self.run)
            self.start()
            return
        command = {"producer": "produce", "processing": "process"}[name]
        pid = wait_until(lambda: self.run.child(command), f"the {name} runs: {self.run.said[-2000:]}")
        if name == "producer":
            self.deaths.append(datetime.now(UTC))
        os.kill(pid, signal.SIGKILL)

    def recorded_again(self) -> bool:
        """Whether a producer has subscribed since the last one died."""
        return bool(self.subscriptions()) and (not self.deaths or self.subscriptions()[-1] > self.deaths[-1])

    def finish(self) -> dict[tuple[str, int], Trade]:
        """Ends the market, waits until all is stored, ends `run`; what the simulator sent."""
        wait_until(self.recorded_again, "a producer records again")
        ledger = self.exchange.stop_trading()
        wait_until(lambda: self.tables.reach(ledger), f"caught up: {self.run.said[-3000:]}")
        time.sleep(1.5)  # holes are reported a second after they were seen
        assert self.run.stop() == 0, self.run.said[-3000:]
        return self.exchange.published()

    def is_down(self, when: datetime) -> bool:
        """Whether there was no producer then: between a death and the next subscription."""
        back = self.subscriptions()
        return any(
            died - UNDERWAY <= when <= next((at for at in back if at > died), datetime.max.replace(tzinfo=UTC))
            for died in self.deaths
        )


def start_deployment(processes: Processes, **settings: str) -> Deployment:
    exchange = SimulatedExchange(processes, "--start", "all_subscribed", products=PRODUCTS, rate=RATE)
    deployment = Deployment(processes, exchange, processes.folder / "lake", settings)
    # A product's record begins with its first trade that is held: what was before it can't be known to be missing.
    every = set(exchange.products)
    wait_until(lambda: {product for product, _ in deployment.tables.ids()} == every, "each product is stored")
    return deployment


def check_tables(deployment: Deployment, published: dict[tuple[str, int], Trade]) -> None:
    """What must hold whatever was killed: no trade twice, none invented, none lost that the log had taken."""
    tables = deployment.tables
    stored = tables.ids()
    assert [found for found, count in stored.items() if count > 1] == []
    assert stored.keys() <= published.keys()
    assert same_trades(tables.trades(), published)

    offsets = sorted(tables.read(BRONZE, '"offset"')["offset"].to_pylist())
    url = deployment.settings.get("LOG__URL")
    log = SqliteLog(load_settings(lake=deployment.lake, log={"url": url}).log_path, 1 << 30)
    end = log.bounds(0)[1]
    log.close()
    assert offsets == list(range(end - len(offsets), end))  # every message that the log acknowledged, once
    assert stored.keys() == tables.logged()

    assert tables.covered() == stored.keys()
    expected = [{k: v for k, v in bar.items() if k not in QUOTIENTS} for bar in model_bars(tables.trades())]
    assert tables.contents(BARS, *QUOTIENTS) == expected
    assert not deployment.events("unexpected_error")


def check_losses(deployment: Deployment, published: dict[tuple[str, int], Trade]) -> None:
    """Only what was sent while nobody listened is missing, and all of that is known to be."""
    missing = published.keys() - deployment.tables.ids().keys()
    heard = [(one, str(published[one].time)) for one in sorted(missing) if not deployment.is_down(published[one].time)]
    assert heard == [], (deployment.deaths, deployment.subscriptions())
    assert runs(deployment.tables.holes()) == runs(missing)
    assert runs(reported_missing(deployment.events("hole_found"))) == runs(missing)


def test_kills_of_the_processing_lose_nothing_and_double_nothing(processes: Processes, chance: random.Random) -> None:
    deployment = start_deployment(processes)
    for _ in range(3):
        time.sleep(chance.uniform(0.2, 2.0))
        deployment.kill("processing")
    published = deployment.finish()
    check_tables(deployment, published)
    assert deployment.tables.ids().keys() == published.keys()
    assert deployment.events("hole_found") == []
    assert len(deployment.events("process_died")) == 3


def kill_rounds(deployment: Deployment, chance: random.Random, rounds: int) -> None:
    """Kills each process once a round, in any order, as soon as 0.1 s and as late as 1.5 s after the last kill."""
    for _ in range(rounds):
        for name in chance.sample(["producer", "processing", "run"], 3):
            time.sleep(chance.uniform(0.1, 1.5))
            deployment.kill(name)


def test_kills_of_any_process_lose_only_what_was_sent_while_nobody_listened(
    processes: Processes, chance: random.Random
) -> None:
    deployment = start_deployment(processes)
    kill_rounds(deployment, chance, 3)
    published = deployment.finish()
    check_tables(deployment, published)
    check_losses(deployment, published)


@pytest.mark.long
def test_twenty_rounds_of_kills_lose_only_what_was_sent_while_nobody_listened(
    processes: Processes, chance: random.Random
) -> None:
    deployment = start_deployment(processes)
    kill_rounds(deployment, chance, 20)
    published = deployment.finish()
    check_tables(deployment, published)
    check_losses(deployment, published)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leaves no room in `folder`; the file to remove."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return filler


def test_a_full_disk_under_the_log_is_said_clearly_and_loses_nothing_that_the_log_had_taken(
    small_disk: Path, processes: Processes
) -> None:
    deployment = start_deployment(processes, LOG__URL=f"sqlite:{small_disk / 'log.db'}")
    filler = fill(small_disk)
    wait_until(lambda: "is full" in deployment.run.said, "the full disk is named")
    deployment.deaths.append(datetime.now(UTC))
    time.sleep(2)
    assert not deployment.events("unexpected_error"), deployment.run.said
    filler.unlink()
    deployment.deaths += [
        datetime.fromisoformat(str(event["timestamp"]))
        for event in deployment.events("process_died")
        if event["name"] == "producer"
    ]
    published = deployment.finish()
    check_tables(deployment, published)
    check_losses(deployment, published)


def test_a_log_that_another_process_keeps_to_itself_is_a_reason_to_wait_not_to_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_S", 0.05)
    log = SqliteLog(tmp_path / "log.db", 1 << 20)
    message = pa.Table.from_pylist([Trade("BTC-USD", 1).match()], schema=MESSAGE_SCHEMA)
    with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # as a process that was stopped in the middle of a write
        with pytest.raises(LogBusy):
            log.append(message)
        other.execute("ROLLBACK")
    log.append(message)
    assert log.read(0, 0, 10).num_rows == 1
    log.close()


def test_a_new_producer_finds_the_newest_messages_however_eagerly_the_log_is_trimmed(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db", 16 << 20)
    for number in range(1, 4):
        log.append(pa.Table.from_pylist([Trade("BTC-USD", number).match()], schema=MESSAGE_SCHEMA))
    log.trim(0, log.bounds(0)[1])
    session = Session(Exchange(), ["BTC-USD"], heartbeats_missed_max=5)
    session.resume([(body, 0) for body in log.read(0, 0, 10)["body"].to_pylist()])
    log.close()
    session.connected(0)
    session.receive(Trade("BTC-USD", 7).match("last_match")["body"], 0)
    session.tick(2_000_000_000)
    holes = [event for event in session.take_events() if isinstance(event, HoleFound)]
    assert [(hole.first_missing, hole.last_missing) for hole in holes] == [(4, 6)]


def test_a_hole_whose_grace_ran_when_the_producer_died_is_reported_by_the_next(tmp_path: Path) -> None:
    second = 1_000_000_000
    kept = [(Trade("BTC-USD", number).match()["body"], at * second) for number, at in ((1, 0), (3, 10), (5, 20))]
    session = Session(Exchange(), ["BTC-USD"], heartbeats_missed_max=5)
    session.resume(kept)
    session.connected(21 * second)
    session.receive(Trade("BTC-USD", 5).match("last_match")["body"], 21 * second)
    session.tick(23 * second)
    holes = [event for event in session.take_events() if isinstance(event, HoleFound)]
    assert [(hole.first_missing, hole.last_missing) for hole in holes] == [(4, 4)]  # 2 was reported long before
