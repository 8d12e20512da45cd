"""Measures latency, throughput, start-up and size on this machine and prints them beside their targets."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import catchup, commits, crash_day, dashboard, live, machine, reading, report, startup
from benchmarks.processes import MeasurementError
from benchmarks.results import Results, targets_of
from benchmarks.tables import tables_of

_KINDS = (
    "idle",
    "live",
    "venues",
    "rules",
    "catchup",
    "crash-day",
    "import",
    "reading",
    "startup",
    "storage",
    "dashboard",
)
_QUICK = {"seconds": 8.0, "warm_up": 2.0, "rates": [50.0, 1000.0], "trades": 100_000, "runs": 1, "rounds": 1}
_FULL = {"seconds": 30.0, "warm_up": 5.0, "rates": [10.0, 50.0, 1000.0, 5000.0], "trades": 1_600_000, "runs": 3}
_FULL |= {"rounds": 5}
_KILL_AFTER_S = 4.0
_LOAD_RATE = 1_000.0
_RULES = 1_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 when a measurement failed, or a target was missed under `--strict`."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and folders are cleaned up
    errors = Console(stderr=True, highlight=False)
    try:
        results = _measure(options, lambda text: errors.print(f"{text} …", style="dim"))
    except MeasurementError as error:
        errors.print(f"The measurement failed: {error}.", style="red")
        return 1
    tables = tables_of(results)
    report.show(tables, Console(width=None if sys.stdout.isatty() else 140, highlight=False))
    if options.markdown:
        options.markdown.write_text(report.markdown(tables))
    if options.json:
        report.write_json(results, options.json)
    missed = [target for target in targets_of(results) if not target.met]
    return 1 if options.strict and missed else 0


def _measure(options: argparse.Namespace, say: startup.Say) -> Results:
    kinds, storage_only = set(options.only or _KINDS), options.only == ["storage"]
    found = machine.describe(options.dir)
    if options.commits:
        return Results(found, options.quick, soak=commits.measure(options.dir, options.commits, say))
    lives = []
    for heartbeats in (False, True) if "idle" in kinds else ():
        say(f"idle, {'heartbeats alone' if heartbeats else 'nothing comes'}, for {options.seconds:g} s")
        lives.append(live.measure_idle(options.dir, options.seconds, options.warm_up, heartbeats=heartbeats))
    rates = [_LOAD_RATE] if storage_only else options.rates
    for rate in rates if kinds & {"live", "storage"} else ():
        say(f"live, {rate:,.0f} trades/s for {options.seconds + options.warm_up:g} s")
        lives.append(live.measure(options.dir, rate, options.seconds, options.warm_up))
    if "venues" in kinds:
        say(f"live, {_LOAD_RATE:,.0f} trades/s of three venues for {options.seconds + options.warm_up:g} s")
        lives.append(live.measure_venues(options.dir, _LOAD_RATE, options.seconds, options.warm_up))
    if "rules" in kinds:
        say(f"live, {_LOAD_RATE:,.0f} trades/s and {_RULES:,} rules for {options.seconds + options.warm_up:g} s")
        lives.append(live.measure(options.dir, _LOAD_RATE, options.seconds, options.warm_up, _RULES))
    caught_up = replayed = imported = None
    if kinds & {"catchup", "storage"}:
        runs = 1 if storage_only else options.runs
        caught_up = catchup.measure(options.dir, options.trades, runs, options.append, say)
    if "crash-day" in kinds:
        replayed = crash_day.measure(options.dir, options.trades, options.runs, say)
    if "import" in kinds:
        imported = crash_day.measure_import(options.dir, options.trades, options.runs, say)
    read = reading.measure(options.dir, options.trades, say) if "reading" in kinds else []
    started = (
        startup.measure(options.dir, options.rounds, _LOAD_RATE, _KILL_AFTER_S, say) if "startup" in kinds else None
    )
    shown = _dashboard(options, say) if "dashboard" in kinds else None
    return Results(
        found,
        options.quick,
        lives,
        caught_up,
        started,
        replayed,
        imported,
        reading=read,
        dashboard=shown,
        storage_only=storage_only,
    )


def _dashboard(options: argparse.Namespace, say: startup.Say) -> dashboard.Dashboard | None:
    if not dashboard.can_measure():
        say("dashboard: left out, Chromium is not installed")
        return None
    say(f"dashboard, {_LOAD_RATE:,.0f} trades/s, {options.seconds:g} s each with 0, 1 and 20 viewers")
    return dashboard.measure(options.dir, _LOAD_RATE, options.seconds, options.warm_up, 0 if options.quick else 100)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="all of it, but short (about a minute): does it work?")
    add("--only", action="append", choices=_KINDS, help="this alone; may be repeated")
    add("--rates", type=float, nargs="+", metavar="N", help="trades a second of the live runs [10 50 1000 5000]")
    add("--seconds", type=float, help="length of a live run after the warm-up, tens are best [30]")
    add("--warm-up", type=float, metavar="SECONDS", help="before a live run is measured [5]")
    add("--trades", type=int, metavar="N", help="trades of the crash day, in the log and as a recording [1600000]")
    add("--append", type=int, default=1_000, metavar="N", help="messages that share a write to that log [1000]")
    add("--runs", type=int, metavar="N", help="how often each is run [3]")
    add("--rounds", type=int, metavar="N", help="how often the pipeline is started and killed [5]")
    add(
        "--commits",
        type=int,
        metavar="N",
        help="instead: N small steps, do cost and latency stay? `make soak` makes 100000",
    )
    add("--dir", type=_folder, default=Path(tempfile.gettempdir()), help="folder for everything [the system's]")
    add("--markdown", type=Path, metavar="FILE", help="also write the tables into FILE")
    add("--json", type=Path, metavar="FILE", help="also write all figures into FILE")
    add("--strict", action="store_true", help="exit code 1 when a target is missed")
    options = parser.parse_args(arguments)
    for name, value in (_QUICK if options.quick else _FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _folder(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path


if __name__ == "__main__":
    sys.exit(main())
