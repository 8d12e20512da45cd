"""Everything that was measured, and the targets of the design beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.catchup import CatchUp
from benchmarks.commits import Mark
from benchmarks.dashboard import Dashboard
from benchmarks.live import Live
from benchmarks.machine import Machine
from benchmarks.startup import Startup

_TARGET_RATE = 1_000.0  # the targets of live operation are for this many trades a second


@dataclass(frozen=True)
class Results:
    """Everything that was measured; what was not is empty."""

    machine: Machine
    quick: bool
    live: list[Live] = field(default_factory=list)
    catchup: CatchUp | None = None
    startup: Startup | None = None
    commits: list[Mark] = field(default_factory=list)
    dashboard: Dashboard | None = None
    storage_only: bool = False
    """Live and catch-up were run for the sake of their storage alone."""


@dataclass(frozen=True)
class Target:
    """What must be reached, and what was."""

    what: str
    limit: float
    reached: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of the limit."""
        return self.reached >= self.limit if self.at_least else self.reached <= self.limit


def targets_of(results: Results) -> list[Target]:
    """The targets of the design for which something was measured."""
    found: list[Target] = []
    if results.storage_only:
        return found
    for live in results.live:
        if live.rate == _TARGET_RATE:
            found += _live_targets(live)
    if results.catchup:
        reached = results.catchup.median.trades_per_s
        found.append(Target("catch-up through gold, median run", 300_000, reached, "trades/s", at_least=True))
    if results.startup:
        start, recovery = max(results.startup.first_trade_s), max(results.startup.recovery_s)
        found.append(Target("start → first trade committed, slowest round", 3, start, "s"))
        found.append(Target("kill -9 → caught up, slowest round", 3, recovery, "s"))
    if results.dashboard:
        found += _dashboard_targets(results.dashboard)
    return found


def _dashboard_targets(dashboard: Dashboard) -> list[Target]:
    found = [
        Target(f"commit → screen with {one.viewers} viewer(s), p99", 500, one.p99_ms, "ms")
        for one in dashboard.viewers
        if one.p99_ms is not None
    ]
    alone = next(one for one in dashboard.viewers if one.viewers == 1)
    return [*found, Target("server with one viewer", 15, 100 * alone.cpu, "% of a core")]


def _live_targets(live: Live) -> list[Target]:
    at = "at 1,000 trades/s"
    found = []
    if silver := live.hops.get("receive_to_silver"):
        found.append(Target(f"receive → silver committed {at}, p50", 100, silver.p50, "ms"))
        found.append(Target(f"receive → silver committed {at}, p99", 250, silver.p99, "ms"))
    if alert := live.hops.get("receive_to_alert"):
        found.append(Target(f"receive → alert committed {at}, p99", 300, alert.p99, "ms"))
    if live.detections_ms:
        slowest = max(live.detections_ms.values())
        found.append(Target(f"trade that opens an episode → alert committed {at}, slowest", 300, slowest, "ms"))
    return [*found, Target(f"memory of the whole {at}", 500, live.pss_total_mb, "MB")]
