"""Both engines in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import tables
from benchmarks.cluster.engines import DRIVER_MEMORY
from benchmarks.cluster.measure import CatchUp, Latency, Live
from benchmarks.machine import Machine
from benchmarks.results import Results


@dataclass(frozen=True)
class Measured:
    """What was measured, one entry for each engine."""

    titles: Sequence[str]
    caught_up: Sequence[CatchUp]
    lives: Sequence[Live]
    versions: dict[str, str]


def tables_of(machine: Machine, measured: Measured) -> list[tables.Table]:
    """The machine, and the engines side by side."""
    rows = [*_catch_up(measured.caught_up), *_live(measured.lives)]
    return [*tables.tables_of(Results(machine, quick=False)), _side_by_side(measured, rows)]


def _side_by_side(measured: Measured, rows: Sequence[Sequence[str]]) -> tables.Table:
    live = measured.lives[0]
    versions = ", ".join(f"{name} {version}" for name, version in measured.versions.items())
    note = (
        f"{versions}; Spark's driver has {DRIVER_MEMORY} of heap, all else is the default. Both read topics of one "
        f"partition from one broker on this machine. Live: {live.rate:,.0f} trades/s of 20 products, {live.seconds:g} "
        "s after the warm-up; a trade is received when it is due, and stored when its commit is in the Delta log. "
        "Memory: PSS of all processes of the engine, seen once a second."
    )
    return tables.Table("Embedded engine and Spark, side by side", ("", *measured.titles), rows, note)


def _catch_up(runs: Sequence[CatchUp]) -> list[list[str]]:
    trades = f"{runs[0].trades:,}"
    return [
        [f"catch-up of {trades} trades, process start → end, s", *(f"{run.seconds:.1f}" for run in runs)],
        ["the same on an empty topic (start-up), s", *(f"{run.idle_s:.1f}" for run in runs)],
        ["trades/s through gold, start-up included", *(f"{run.trades_per_s:,.0f}" for run in runs)],
        ["trades/s through gold, without start-up", *(f"{run.trades_per_s_started:,.0f}" for run in runs)],
        ["most memory during catch-up, MB", *(f"{run.pss_peak_mb:,.0f}" for run in runs)],
    ]


def _live(runs: Sequence[Live]) -> list[list[str]]:
    return [
        ["process start → first trade in silver, s", *(f"{run.first_trade_s:.1f}" for run in runs)],
        *_latency("receive → silver committed", [run.silver for run in runs]),
        *_latency("trade that opens an episode → alert committed", [run.alert for run in runs]),
        ["behind at the end, s", *(f"{run.behind_s:.1f}" for run in runs)],
        ["CPU live, % of a core", *(f"{run.cores * 100:.0f}" for run in runs)],
        ["most memory live, MB", *(f"{run.pss_peak_mb:,.0f}" for run in runs)],
    ]


def _latency(what: str, found: Sequence[Latency]) -> list[list[str]]:
    return [
        [f"{what}, p50, ms", *(f"{latency.p50:,.0f}" for latency in found)],
        [f"{what}, p99, ms", *(f"{latency.p99:,.0f}" for latency in found)],
        [f"{what}, max, ms (n)", *(f"{latency.max:,.0f} ({latency.n:,})" for latency in found)],
    ]
