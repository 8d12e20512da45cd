"""`run` on a simulated exchange, to be killed or starved, and what must hold of its tables afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tally import TALLY, judged

from cryptopulse.lake.tables import BARS, BRONZE
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.settings import load_settings
from support import Trade, model_bars
from support_processes import (
    Command,
    Processes,
    Tables,
    same_trades,
    wait_until,
)
from support_processes import (
    Exchange as SimulatedExchange,
)

PRODUCTS = 8
RATE = 400.0
IMPATIENT = {"HEALING__WAIT_S": "0.5", "HEALING__TABLE_CHECK_INTERVAL_S": "2", "PROCESSING__STEP_INTERVAL_MS": "0"}
_QUOTIENTS = ("vwap", "load_timestamp", "window_date")


@dataclass
class Deployment:
    """`run` on a simulator, and what was done to it."""

    processes: Processes
    exchange: SimulatedExchange
    lake: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    clock_shift_s: float = 0.0
    """How far the clock of `run` is ahead of the test's."""
    run: Command = field(init=False)
    died_at: datetime | None = None
    """When the last producer was killed."""
    earlier: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tables = Tables(self.lake)
        self.start()

    def start(self) -> None:
        given = {**self.exchange.feed(), **IMPATIENT, **self.settings}
        self.run = self.processes.start("run", "--lake", str(self.lake), **given)

    def events(self, name: str) -> list[dict[str, object]]:
        return [event for command in (*self.earlier, self.run) for event in command.events(name)]

    def times(self, event: str, **of: object) -> list[datetime]:
        """When the events `event` with the members `of` were logged, by the test's clock."""
        shift = timedelta(seconds=self.clock_shift_s)
        found = [one for one in self.events(event) if of.items() <= one.items()]
        return sorted(datetime.fromisoformat(str(one["timestamp"])) - shift for one in found)

    def kill(self, name: str) -> None:
        """kill -9 of `producer`, `processing` or `run`, which is started again as its user would."""
        TALLY["kills"] += 1
        if name == "run":
            self.died_at = datetime.now(UTC)
            self.run.kill()
            self.earlier.append(self.run)
            self.start()
            return
        command = {"producer": "produce", "processing": "process"}[name]
        pid = wait_until(lambda: self.run.child(command), f"the {name} runs: {self.run.said[-2000:]}")
        if name == "producer":
            self.died_at = datetime.now(UTC)
        os.kill(pid, signal.SIGKILL)

    def recorded_again(self) -> bool:
        """Whether a producer has subscribed since the last one was killed, or died by itself."""
        subscribed, died = self.times("subscribed"), self.times("process_died", name="producer")
        return bool(subscribed) and all(subscribed[-1] > at for at in (self.died_at, *died) if at is not None)

    def finish(self) -> dict[tuple[str, int], Trade]:
        """Ends the market, waits until every trade is stored, ends `run`; what the simulator sent."""
        wait_until(self.recorded_again, "a producer records again")
        count = self.exchange.stop_trading()["trades"]
        wait_until(lambda: len(self.tables.ids()) >= count, f"nothing is missing: {self.run.said[-3000:]}")
        assert self.run.stop() == 0, self.run.said[-3000:]
        return self.exchange.published()


def start_deployment(processes: Processes, lake: Path | None = None, **settings: str) -> Deployment:
    """One that has stored a trade of each product. `lake`: another folder than `lake` in that of `processes`."""
    exchange = SimulatedExchange(processes, "--start", "all_subscribed", products=PRODUCTS, rate=RATE)
    deployment = Deployment(processes, exchange, lake or processes.folder / "lake", settings)
    # A product's record begins with its first trade that is held: what was before it can't be known to be missing.
    every = set(exchange.products)

    def is_stored() -> bool:
        assert deployment.run.popen.poll() is None, deployment.run.said[-3000:]
        return {product for product, _ in deployment.tables.ids()} == every

    wait_until(is_stored, "each product is stored")
    return deployment


def check_tables(deployment: Deployment, published: dict[tuple[str, int], Trade]) -> None:
    """What must hold whatever was killed: no trade twice, none invented, none lost that the log had taken."""
    tables = deployment.tables
    stored = tables.ids()
    judged(stored, published)
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
    expected = [{k: v for k, v in bar.items() if k not in _QUOTIENTS} for bar in model_bars(tables.trades())]
    assert tables.contents(BARS, *_QUOTIENTS) == expected
    assert not deployment.events("unexpected_error")


def check_complete(deployment: Deployment, published: dict[tuple[str, int], Trade]) -> None:
    """Nothing that the exchange published is missing, and the tables know it."""
    assert deployment.tables.ids().keys() == published.keys()
    assert deployment.tables.holes() == set()
