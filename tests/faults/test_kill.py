"""kill -9 of each process at random moments, then a comparison by trade id with what the simulator sent.

The moments come from a seed, which is printed; CRYPTOPULSE_TEST_SEED sets it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cryptopulse.lake.tables import BARS, BRONZE
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.settings import load_settings
from support import Trade, model_bars
from support_processes import (
    Command,
    Exchange,
    Processes,
    Tables,
    reported_missing,
    runs,
    same_trades,
    wait_until,
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
    exchange: Exchange
    lake: Path
    run: Command = field(init=False)
    deaths: list[datetime] = field(default_factory=list)
    """When there was no producer any more."""
    earlier: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tables = Tables(self.lake)
        self.start()

    def start(self) -> None:
        self.run = self.processes.start("run", "--lake", str(self.lake), **self.exchange.feed())

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


def start_deployment(processes: Processes) -> Deployment:
    exchange = Exchange(processes, "--start", "all_subscribed", products=PRODUCTS, rate=RATE)
    deployment = Deployment(processes, exchange, processes.folder / "lake")
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
    log = SqliteLog(load_settings(lake=deployment.lake).log_path, 1 << 30)
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


def test_kills_of_the_processing_lose_nothing_and_double_nothing(
    processes: Processes, chance: random.Random
) -> None:
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
