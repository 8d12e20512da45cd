"""The two engines: what they need, how they are started on a topic, and what their processes take."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.processes import MeasurementError, Scratch

ROOT = Path(__file__).parents[2]
DRIVER_MEMORY = "1200m"
_EVERY_S = 1.0  # PSS is added up by the kernel, which holds the process's memory map for some 10 ms meanwhile
_STOP_S = 180.0
_GONE_S = 30.0


@dataclass(frozen=True)
class Jars:
    """The folders of jars that `make cluster` fetches."""

    kafka: list[Path]
    spark: list[Path]

    @property
    def versions(self) -> dict[str, str]:
        """What is in them."""
        names = {
            "Kafka broker": r"kafka_[\d.]+-",
            "Delta Lake": r"delta-spark_[\d.]+-",
            "Spark": r"spark-sql-kafka-.*-",
        }
        found = {}
        for what, pattern in names.items():
            for jar in (*self.kafka, *self.spark):
                if match := re.fullmatch(rf"{pattern}(\d[\d.]*)\.jar", jar.name):
                    found[what] = match[1]
        return found


def required_jars() -> Jars:
    """Raises MeasurementError for the first thing that is missing here."""
    folder = Path(os.environ.get("CLUSTER_JARS", ROOT / ".jars"))
    jars = Jars(*(sorted((folder / name).glob("*.jar")) for name in ("kafka", "spark")))
    checks = {
        "Java 17 or newer": shutil.which("java") is not None,
        "the package pyspark": importlib.util.find_spec("pyspark") is not None,
        f"the jars of Kafka in {folder / 'kafka'}": bool(jars.kafka),
        f"the jars of Spark in {folder / 'spark'}": bool(jars.spark),
    }
    for what, is_there in checks.items():
        if not is_there:
            raise MeasurementError(f"{what} is missing; `make cluster` installs what can be installed")
    return jars


def java_version() -> str:
    """The version of the Java on the path."""
    said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    match = re.search(r'"([\d._]+)', said)
    return match[1] if match else "unknown"


@dataclass(frozen=True)
class Engine:
    """One engine as it is measured."""

    name: str
    title: str
    conf: dict[str, str] = field(default_factory=dict)
    """Spark's settings."""

    def config(self, log_url: str) -> str:
        """The configuration file; all that it leaves out is the default."""
        lines = ["[log]", f"url = {json.dumps(log_url)}"]
        if self.conf:
            lines += [
                "[spark.conf]",
                *(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in self.conf.items()),
            ]
        return "\n".join(lines) + "\n"


def engines(jars: Jars, cores: int, scratch: Path) -> list[Engine]:
    """Both, Spark with as many threads as there are `cores`; what Spark writes beside its tables goes to `scratch`."""
    master = f"local[{cores}]"
    conf = {
        "spark.master": master,
        "spark.jars": ",".join(map(str, jars.spark)),
        "spark.driver.memory": DRIVER_MEMORY,
        "spark.driver.extraJavaOptions": f"-XX:+UseParallelGC -Djava.io.tmpdir={scratch}",  # the former is the default
        "spark.local.dir": str(scratch / "spark"),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.sql.shuffle.partitions": str(cores),
        "spark.ui.enabled": "false",
    }
    return [Engine("embedded", "embedded"), Engine("spark", f"Spark {master}", conf)]


class Run:
    """One `cryptopulse process` on a topic, with a fresh lake."""

    def __init__(self, scratch: Scratch, engine: Engine, log_url: str, name: str, *options: str) -> None:
        """Starts it and returns at once; `started_at` is the moment before (seconds since 1970)."""
        self.lake = scratch.folder / f"{name}-{engine.name}"
        config = scratch.folder / f"{name}-{engine.name}.toml"
        config.write_text(engine.config(log_url))
        self._stderr = scratch.folder / f"{len(list(scratch.folder.glob('*.stderr')))}-process.stderr"
        self.started_at = time.time()
        given = ("--config", str(config), "--lake", str(self.lake), "--engine", engine.name)
        self.popen = scratch.start("process", *given, *options)

    def wait(self, seconds_max: float) -> float:
        """Waits for its end; returns how long it has run, in s. Raises MeasurementError when it failed."""
        try:
            self.popen.wait(seconds_max)
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"`cryptopulse process` did not end within {seconds_max:g} s") from None
        took_s = time.time() - self.started_at
        if self.popen.returncode:
            raise MeasurementError(
                f"`cryptopulse process` ended with exit code {self.popen.returncode}: {self._last()}"
            )
        return took_s

    def check(self) -> None:
        """Raises MeasurementError when it does not run any more."""
        if self.popen.poll() is not None:
            raise MeasurementError(f"`cryptopulse process` ended too early ({self.popen.returncode}): {self._last()}")

    def stop(self) -> None:
        """Ends it in order, and waits until its children are gone too."""
        family = family_of(self.popen.pid)
        self.popen.terminate()
        try:
            self.popen.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"`cryptopulse process` did not stop within {_STOP_S:g} s") from None
        _, alive = psutil.wait_procs(family, timeout=_GONE_S)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _last(self) -> str:
        lines = self._stderr.read_text(errors="replace").strip().splitlines() if self._stderr.exists() else []
        return lines[-1][:300] if lines else "it said nothing"


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all its children; nobody when it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@dataclass
class Use:
    """What a process and its children took, as it was seen once a second."""

    pss_peak_mb: float = 0.0
    """Most memory of all together; shared pages count once."""
    cpu_s: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since 1970, CPU time of all so far)."""
    seen: set[int] = field(default_factory=set)
    """The processes of the last look. Memory counts from the second on: a child that has not yet replaced its program
    shows its parent's as its own."""

    def cores(self, first_at: float, last_at: float) -> float:
        """Cores used between two moments, as exactly as the looks were frequent; 0 without two looks."""
        within = [(at, used) for at, used in self.cpu_s if first_at <= at <= last_at]
        if len(within) < 2:
            return 0.0
        (begin, before), (end, after) = within[0], within[-1]
        return (after - before) / (end - begin)


@contextmanager
def watched(pid: int) -> Iterator[Use]:
    """Watches a process and its children while the context lasts."""
    use, over = Use(), threading.Event()

    def watch() -> None:
        while True:
            _look(pid, use)
            if over.wait(_EVERY_S):
                return

    with ExitStack() as stack:
        thread = threading.Thread(target=watch, name="watch", daemon=True)
        stack.callback(thread.join)
        stack.callback(over.set)
        thread.start()
        yield use


def _look(pid: int, use: Use) -> None:
    pss = cpu_s = 0.0
    seen: set[int] = set()
    for process in family_of(pid):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            times = process.cpu_times()
            if process.pid in use.seen:
                memory = process.memory_full_info()
                pss += getattr(memory, "pss", memory.rss)  # only Linux knows pss
            seen.add(process.pid)
            cpu_s += times.user + times.system
    use.seen = seen
    use.pss_peak_mb = max(use.pss_peak_mb, pss / 1e6)
    use.cpu_s.append((time.time(), cpu_s))
