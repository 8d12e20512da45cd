"""Everything that was measured, and the targets of the design beside it."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.catchup import CatchUp
from benchmarks.commits import Soak
from benchmarks.crash_day import Replays
from benchmarks.dashboard import Dashboard
from benchmarks.live import Live
from benchmarks.machine import Machine
from benchmarks.reading import Reading
from benchmarks.startup import Startup


@dataclass(frozen=True)
class Results:
    """Everything that was measured; what was not is empty."""

    machine: Machine
    quick: bool
    live: list[Live] = field(default_factory=list)
    catchup: CatchUp | None = None
    startup: Startup | None = None
    crash_day: Replays | None = None
    imported: Replays | None = None
    reading: list[Reading] = field(default_factory=list)
    soak: Soak | None = None
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
        found += _live_targets(live)
    if results.catchup:
        reached = results.catchup.median.trades_per_s
        found.append(Target("catch-up through gold, median run", 350_000, reached, "trades/s", at_least=True))
    if results.crash_day:
        reached = results.crash_day.median.seconds
        found.append(Target("replay of a crash day through gold, median run", 10, reached, "s"))
    if results.imported:
        reached = results.imported.median.seconds
        found.append(Target("import of a crash day's CSV through gold, median run", 10, reached, "s"))
    if results.startup:
        start, recovery = max(results.startup.first_trade_s), max(results.startup.recovery_s)
        found.append(Target("start → first trade committed, slowest round", 1.5, start, "s"))
        found.append(Target("kill -9 → caught up, slowest round", 1.5, recovery, "s"))
    if results.dashboard:
        found += _dashboard_targets(results.dashboard)
    if results.soak and len(results.soak.marks) > 1:
        found += _soak_targets(results.soak)
    return found


def _live_targets(live: Live) -> list[Target]:
    at = f"at {live.rate:,.0f} trades/s" + " of 3 venues" * live.load.endswith("venues")
    cpu_pct = 100 * live.cpu_total
    match live.load:
        case "nothing":
            return [Target("CPU of the whole when nothing comes", 1, cpu_pct, "% of a core")]
        case "50/s":
            return [
                Target(f"CPU of the whole {at}", 15, cpu_pct, "% of a core"),
                Target(f"written {at}, all files", 8, live.written_mb, "MB a minute"),
            ]
        case "1,000/s, 1,000 rules":
            return [Target(f"CPU of the whole {at} and 1,000 alert rules", 80, cpu_pct, "% of a core")]
        case "1,000/s" | "1,000/s, 3 venues":
            found = [Target(f"CPU of the whole {at}", 40, cpu_pct, "% of a core")]
            if silver := live.hops.get("receive_to_silver"):
                found.append(Target(f"receive → silver committed {at}, p50", 40, silver.p50, "ms"))
                found.append(Target(f"receive → silver committed {at}, p99", 80, silver.p99, "ms"))
            if alert := live.hops.get("receive_to_alert"):
                found.append(Target(f"receive → alert committed {at}, p99", 100, alert.p99, "ms"))
            if live.detections_ms:
                slowest = max(live.detections_ms.values())
                found.append(Target(f"trade that opens an episode → alert committed {at}, slowest", 100, slowest, "ms"))
            return [*found, Target(f"memory of the whole {at}", 350, live.pss_total_mb, "MB")]
    return []


def _dashboard_targets(dashboard: Dashboard) -> list[Target]:
    found = [
        Target(f"commit → screen with {one.viewers} viewer(s), p99", 500, one.p99_ms, "ms")
        for one in dashboard.viewers
        if one.p99_ms is not None
    ]
    alone = next(one for one in dashboard.viewers if one.viewers == 1)
    return [*found, Target("server with one viewer", 15, 100 * alone.cpu, "% of a core")]


def _soak_targets(soak: Soak) -> list[Target]:
    first, last, fresh = soak.marks[0], soak.marks[-1], soak.fresh
    ratios = {
        f"CPU a step after {last.commits:,} steps / in a new lake then": last.cpu_ms / fresh.cpu_ms,
        f"p50 of a step after {last.commits:,} steps / in a new lake then": last.p50_ms / fresh.p50_ms,
        f"p99 of a step after {last.commits:,} steps / in a new lake then": last.p99_ms / fresh.p99_ms,
        f"memory after {last.commits:,} steps / after {first.commits:,}": last.rss_mb / first.rss_mb,
    }
    return [Target(what, 1.2, ratio, "×") for what, ratio in ratios.items()]
