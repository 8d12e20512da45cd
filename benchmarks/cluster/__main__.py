"""Measures the embedded engine and Spark beside each other, on the same input from one Kafka broker."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from benchmarks import machine, report
from benchmarks.cluster import tables
from benchmarks.cluster.engines import ROOT, Jars, engines, java_version, required_jars
from benchmarks.cluster.measure import CRASH_EVERY_S, Bench, catch_up, fill, live
from benchmarks.processes import MeasurementError, Scratch
from benchmarks.startup import Say
from cryptopulse import logging_setup
from cryptopulse.errors import CryptoPulseError
from cryptopulse.settings import LoggingSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 when something is missing or a measurement failed."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes and folders are cleaned up
    logging_setup.configure(LoggingSettings(level="WARNING"), "benchmark")  # standard output is for the figures
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        found = machine.describe(options.dir)
        measured = _measure(options, required_jars(), lambda text: errors.print(f"{text} …", style="dim"))
    except (MeasurementError, CryptoPulseError) as error:
        errors.print(f"The measurement failed: {str(error).rstrip('.')}.", style="red", markup=False)
        return 1
    shown = tables.tables_of(found, measured)
    if options.markdown:
        sys.stdout.write(report.markdown(shown))
    else:
        report.show(shown, Console(width=None if sys.stdout.isatty() else 140, highlight=False))
    return 0


def _measure(options: argparse.Namespace, jars: Jars, say: Say) -> tables.Measured:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ExitStack() as stack:
        scratch = stack.enter_context(Scratch(options.dir))
        bench = Bench(scratch, _broker(stack, scratch, jars, say), say)
        both = engines(jars, min(cores, options.cores), scratch.folder)
        fill(bench, "empty", 0)
        fill(bench, "filled", options.trades)
        caught_up = [catch_up(bench, engine, "empty", "filled", options.trades) for engine in both]
        lives = [live(bench, engine, options.rate, options.warm_up, options.seconds) for engine in both]
    versions = {**jars.versions, "Java": java_version()}
    return tables.Measured([engine.title for engine in both], caught_up, lives, versions)


def _broker(stack: ExitStack, scratch: Scratch, jars: Jars, say: Say) -> str:
    """Starts a broker that ends with `stack`; its address."""
    sys.path.insert(0, str(ROOT / "tests" / "cluster"))  # the tests' broker: it is no part of the package
    from kafka_broker import KafkaBroker  # noqa: PLC0415

    say("starting a Kafka broker")
    try:
        broker = KafkaBroker(scratch.folder / "kafka", jars.kafka)
        stack.callback(broker.kill)  # also when it is still starting
        broker.start()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise MeasurementError(f"the Kafka broker does not start: {str(error).splitlines()[-1]}") from error
    return str(broker.bootstrap)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    add = parser.add_argument
    add("--trades", type=_count, default=1_000_000, metavar="N", help="trades in the topic of the catch-up [1000000]")
    add("--rate", type=_positive, default=1_000.0, metavar="N", help="trades a second of the live runs [1000]")
    add("--seconds", type=_positive, default=60.0, help="length of a live run after the warm-up, 3 at least [60]")
    add("--warm-up", type=_positive, default=120.0, metavar="SECONDS", help="start-up and warm-up before that [120]")
    add("--cores", type=_count, default=2, metavar="N", help="Spark's threads, at most as many as there are cores [2]")
    add("--dir", type=_folder, default=Path(tempfile.gettempdir()), help="folder for everything [the system's]")
    add("--markdown", action="store_true", help="print Markdown")
    options = parser.parse_args(arguments)
    if options.seconds < CRASH_EVERY_S:
        parser.error(f"--seconds must be {CRASH_EVERY_S:g} at least: a crash needs so long")
    return options


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number over 0")
    return value


def _folder(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path


if __name__ == "__main__":
    sys.exit(main())
