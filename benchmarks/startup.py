"""Starting and recovering: how long until trades are in the tables.

Nothing is taken from what the processes say of themselves (they say it twice a second): the moments are those of
commits, the times of the files in silver's and gold's Delta logs.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.processes import Deployment, Exchange, Scratch
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import BARS, SILVER, Table

Say = Callable[[str], None]
"""Takes a line about what is being done."""

_FRESH_S = 0.25  # a commit whose oldest trade is no older than the latency target's p99 has nothing to catch up with
_POLL_S = 0.005


@dataclass(frozen=True)
class Startup:
    """Some rounds of start and kill -9, seconds each."""

    rate: float
    load_s: float
    """How long the pipeline had run when the processing was killed."""
    first_trade_s: list[float]
    """Start of `cryptopulse run` on a fresh lake, exchange running → first trade committed to silver."""
    first_bar_s: list[float]
    """The same to the first bar committed to gold."""
    recovery_s: list[float]
    """kill -9 of the processing → first commit to silver that is not behind any more."""


def measure(folder: Path, rounds: int, rate: float, load_s: float, say: Say) -> Startup:
    """Starts and kills a pipeline on a fresh lake `rounds` times, under `rate` trades/s for `load_s` each."""
    first_trade_s, first_bar_s, recovery_s = [], [], []
    with Scratch(folder) as scratch:
        exchange = Exchange(scratch, rate, "at_once")
        time.sleep(2)  # its own start-up shall not be measured
        for number in range(1, rounds + 1):
            say(f"start and kill -9, round {number} of {rounds}")
            deployment = Deployment(scratch, exchange, f"lake-{number}")
            started_at = time.time() - (time.monotonic() - deployment.started_s)
            silver, bars = _Commits(deployment.lake, SILVER), _Commits(deployment.lake, BARS)
            first_trade_s.append(round(_await(deployment, silver, "a first trade") - started_at, 3))
            first_bar_s.append(round(_await(deployment, bars, "a first bar") - started_at, 3))
            time.sleep(load_s)
            recovery_s.append(round(_recovery(deployment), 3))
            deployment.stop()
    return Startup(rate, load_s, first_trade_s, first_bar_s, recovery_s)


def _await(deployment: Deployment, commits: _Commits, what: str) -> float:
    """When the next commit with rows came (seconds since 1970)."""
    found: list[_Commit] = []

    def come() -> bool:
        found.extend(commits.new())
        return bool(found)

    deployment.wait_for(come, what, _POLL_S)
    return found[0].at


def _recovery(deployment: Deployment) -> float:
    """Kills the processing and waits until silver is up to date again; the seconds between."""
    commits = _Commits(deployment.lake, SILVER)
    killed_at = time.time()
    os.kill(deployment.pids()["processing"], signal.SIGKILL)
    caught_up: list[float] = []

    def come() -> bool:
        fresh = (commit.at for commit in commits.new() if commit.at > killed_at and commit.age_s <= _FRESH_S)
        caught_up.extend(fresh)
        return bool(caught_up)

    deployment.wait_for(come, "catching up after the kill", _POLL_S)
    return caught_up[0] - killed_at


@dataclass(frozen=True)
class _Commit:
    at: float
    """Seconds since 1970."""
    age_s: float
    """How old its oldest row was then; 0 for tables without `event_time`."""


class _Commits:
    """The commits of one table that add rows, as they come."""

    def __init__(self, lake: Path, table: Table) -> None:
        """Begins after the newest commit that there is now; a table that is not there yet begins after its creation."""
        self._log = Path(LakeLocation.of(lake).table_url(table)) / "_delta_log"
        self._next = max((int(file.stem) for file in self._log.glob("*.json")), default=0) + 1

    def new(self) -> Iterator[_Commit]:
        """Those since the last call."""
        while (file := self._log / f"{self._next:020d}.json").exists():
            self._next += 1
            at, text = file.stat().st_mtime, file.read_text()
            adds = [action["add"] for action in map(json.loads, text.splitlines()) if "add" in action]
            if any(add["dataChange"] for add in adds):  # merging small files adds none
                yield _Commit(at, max(age_of(add, at) for add in adds))


def age_of(add: dict[str, Any], at: float) -> float:
    """How old the oldest row of an added file was at the time `at`, by the file's statistics; 0 without any."""
    oldest = json.loads(add.get("stats") or "{}").get("minValues", {}).get("event_time")
    return 0.0 if oldest is None else at - datetime.fromisoformat(oldest).timestamp()
