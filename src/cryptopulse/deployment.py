"""The processes of a deployment: what each one runs, and `run`, which supervises them.

They end in order on SIGTERM or SIGINT: the producer writes its buffer to the log, the processing brings the rest of
the log through to gold, and the notifier, if there is one, sends the last alerts. The dashboard ends last, so that
this can be watched.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Final

import structlog

from cryptopulse import logging_setup
from cryptopulse.errors import ConfigurationError, CryptoPulseError, LakeBusy
from cryptopulse.folders import cannot_use
from cryptopulse.settings import STEPS, Settings
from cryptopulse.status import ALIVE, DASHBOARD, NOTIFIER, PROCESSES, PROCESSING, PRODUCER, StatusFile, read_status
from cryptopulse.supervisor import ProcessSpec, Supervisor, stop_with_parent

if TYPE_CHECKING:  # a supervisor does not need it
    from cryptopulse.log import Log

STEP_S = 0.1
"""Pause between two refreshes of a live view, and between two reads of a status file: short enough for a person."""

_HEAD_START_S = 1.0
"""Delays the first start of notifier and dashboard, so that recording starts first: a dashboard takes a core for
seconds to start."""

_COMMANDS = {
    PRODUCER: ("produce", 15.0),  # at most 64 MB of buffered messages go to the log: a second, or a few on a slow disk
    PROCESSING: ("process", 120.0),  # the log may be far ahead; at 300,000 trades/s this drains 36 million
    NOTIFIER: ("notify", 15.0),  # it allows itself ten seconds (`cryptopulse.notify.notifier`)
    DASHBOARD: ("serve", 5.0),  # it cuts open requests after a second
}
"""The command of each process, and how many seconds its orderly end may take; in the order in which they end."""

_ORPHANS_END_WITHIN_S = 4.0  # they end within one second (`cryptopulse.supervisor.stop_with_parent`)

Report = Callable[[Mapping[str, object]], None]

_log = structlog.get_logger()


_JEMALLOC = "narenas:1,tcache:false,dirty_decay_ms:100,muzzy_decay_ms:0"
LOW_MEMORY: Final = {
    "MALLOC_ARENA_MAX": "2",
    "_RJEM_MALLOC_CONF": _JEMALLOC,
    "DUCKDB_JE_MALLOC_CONF": _JEMALLOC,
    "TOKIO_WORKER_THREADS": "1",
}
"""Environment of producer, processing and notifier. Allocators give each thread memory of its own, which small,
frequent commits fragment and which is returned late or never. With few arenas for glibc, delta-rs and DuckDB (each has
a jemalloc of its own), and one working thread of delta-rs, all processes have 355 MB at 1,000 trades/s, else 400, at
the same CPU."""

MEMORY_CHECK_S: Final = 2.0
"""Time between two calls of `FreedMemory.return_it`."""

_MEMORY_GROWN = 8 << 20
_MEMORY = Path("/proc/self/statm")  # of Linux


class FreedMemory:
    """Returns memory that this process has freed to the system, when it has grown since by 8 MB.

    glibc returns it by itself only from the end of the heap: behind pieces still in use it keeps what was freed, after
    10,000 commits 90 MB. To return it takes some 4 ms. Other C libraries have no such function, and nothing is done.
    """

    def __init__(self) -> None:
        """Counts from now on."""
        self._low = 0
        libc = ctypes.CDLL(None) if _MEMORY.exists() else None
        self._trim: Callable[[int], int] | None = getattr(libc, "malloc_trim", None)

    def return_it(self) -> None:
        """Returns it if there may be much; finding out takes some 20 µs."""
        if self._trim is None:
            return
        resident = _resident_bytes()
        if resident > self._low + _MEMORY_GROWN:
            self._trim(0)
            resident = _resident_bytes()
            self._low = resident
        self._low = min(self._low, resident)


def _resident_bytes() -> int:
    pages = _MEMORY.read_bytes().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Deployment:
    """How to start the processes, so that all get the same options."""

    state_dir: Path
    options: Mapping[str, object]
    """Command-line options by name; those that are None are left out."""
    environment: Mapping[str, str] | None = None
    folder: Path | None = None
    processes: Sequence[str] = PROCESSES
    """Which processes it has (`cryptopulse.status.processes_of`)."""

    def supervisor(self, logs_to_files: bool) -> Supervisor:
        """A supervisor for all processes; the producer ends first."""
        own = self.environment or os.environ
        specs = []
        for name, (command, stop_timeout_s) in _COMMANDS.items():
            if name not in self.processes:
                continue
            log_file = self.log_file(name) if logs_to_files else None
            given = {**self.options, "--log-file": log_file}
            if name != PRODUCER:  # the others have no options of the feed
                given = {key: given.get(key) for key in ("--lake", "--config", "--log-file")}
            arguments = [text for key, value in given.items() if value is not None for text in (key, str(value))]
            start = (sys.executable, "-m", "cryptopulse", command, *arguments, "--supervised")
            specs.append(
                ProcessSpec(
                    name=name,
                    command=partial(lambda start, restarts: [*start, str(restarts)], start),
                    stop_timeout_s=stop_timeout_s,
                    log_file=log_file,
                    # The dashboard answers many questions at once.
                    environment={"MALLOC_ARENA_MAX": "2", **own} if name == DASHBOARD else {**LOW_MEMORY, **own},
                    folder=self.folder,
                    is_essential=name in PROCESSES,
                    head_start_s=0.0 if name in PROCESSES else _HEAD_START_S,
                )
            )
        return Supervisor(specs)

    def log_file(self, name: str) -> Path:
        """Where process `name` logs when the live view has the terminal."""
        return self.state_dir / "logs" / f"{name}.log"


class _NoPandas:
    """An import finder that reports pandas as not installed."""

    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is kept out of this process", name=name)


def without_pandas(settings: Settings) -> None:
    """Prevents the import of pandas in this process, unless Spark runs in it, which needs it.

    If it is installed, pyarrow imports it at the first `pa.array` or `pa.table`, only to check whether its argument is
    a DataFrame. That costs 35 MB and 0.3 s.
    """
    if settings.processing.engine != "spark" and "pandas" not in sys.modules and _NoPandas not in sys.meta_path:
        sys.meta_path.insert(0, _NoPandas)


@contextmanager
def process_context(
    settings: Settings, name: str, supervised: int | None, log_file: Path | None
) -> Iterator[Callable[..., None]]:
    """The frame of a long-running process: its logging, its status file, its end with the supervisor.

    Yields the function that takes the process's reports. An error is logged, written to the status file, and raised.
    Raises LakeBusy when the lake already has such a process.
    """
    without_pandas(settings)
    file = logging_setup.BoundedFile(log_file, descriptor=2) if log_file else None
    logging_setup.configure(settings.logging, name, file)
    if supervised is not None:
        stop_with_parent()
    threading.Thread(target=_keep_memory_low, name="memory", daemon=True).start()
    # Before our own status file replaces the one that would show the other process.
    wait_until_free(settings.state_dir, settings.lake, [name])
    status = StatusFile(settings.state_dir, name, supervised or 0)

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    # Once the status file exists, the process may be told to end before its work has installed handlers of its own.
    has_signals = threading.current_thread() is threading.main_thread()  # else a job runner handles signals
    before = signal.signal(signal.SIGTERM, end) if has_signals else None
    try:
        status.open()
        yield status.report
        status.close()
    except CryptoPulseError as error:
        status.close(error=str(error))
        raise
    except SystemExit:
        status.close()
        raise
    except Exception as error:
        what = f"unexpected error: {type(error).__name__}: {error}"
        status.close(error=what)
        if not log_file and sys.stderr.isatty():
            raise  # without a log event: a traceback among the events on the terminal would only disturb
        _log.exception("unexpected_error", error=str(error))
        raise CryptoPulseError(f"{what}; details are in the log") from error
    finally:
        if has_signals:
            signal.signal(signal.SIGTERM, before)


def _keep_memory_low() -> None:
    freed = FreedMemory()
    while True:
        time.sleep(MEMORY_CHECK_S)
        freed.return_it()


def run_producer(settings: Settings, log: Log, report: Report) -> None:
    """Writes the feed to `log` until SIGTERM or SIGINT. Raises the feed's and the log's errors."""
    import pyarrow as pa
    import uvloop

    from cryptopulse.producer import produce

    pa.set_memory_pool(pa.system_memory_pool())  # the default pool keeps 6 MB for small, short-lived columns

    async def until_signalled() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await produce(settings, log, stop, report)

    try:
        uvloop.run(until_signalled())
    finally:
        log.close()


def run_processing(settings: Settings, log: Log, report: Report, steps: Sequence[str] = STEPS) -> None:
    """Keeps the tables up to date from `log` until SIGTERM or SIGINT. `steps`: run only these steps of Spark.

    Raises the engine's errors.
    """
    stop = threading.Event()
    with on_signals(stop.set), closing(log):
        if settings.processing.engine == "spark":
            _spark().process(settings, log, stop, report, steps)
        else:
            from cryptopulse import pipeline

            _refuse_steps(steps)
            pipeline.process(settings, log, stop, report)


def drain_log(settings: Settings, log: Log, steps: Sequence[str] = STEPS) -> dict[str, object]:
    """Processes everything that `log` holds now; returns the counts. `steps`: as in `run_processing`."""
    with closing(log):
        if settings.processing.engine == "spark":
            drained: dict[str, object] = _spark().drain(settings, log, steps)
            return drained
        from cryptopulse import pipeline

        _refuse_steps(steps)
        return pipeline.drain(settings, log, lambda _done, _total: None)


def run_notifier(settings: Settings, report: Report) -> None:
    """Sends alerts to `notify.targets` until SIGTERM or SIGINT. Raises the errors of `cryptopulse.notify`."""
    from cryptopulse.notify.notifier import notify

    stop = threading.Event()
    with on_signals(stop.set):
        notify(settings, stop, report)


def _spark() -> ModuleType:
    try:
        from cryptopulse.engine.spark import processing
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "pyspark":
            raise
        raise ConfigurationError(
            "The Spark engine needs pyspark: pip install 'cryptopulse[spark]', or run this where Spark is."
        ) from error
    return processing


def _refuse_steps(steps: Sequence[str]) -> None:
    if tuple(steps) != STEPS:
        raise ConfigurationError("Only the Spark engine runs single steps; leave out --steps, or add --engine spark.")


def run_until_stopped(settings: Settings, deployment: Deployment, view: bool | None) -> None:
    """Supervises the processes until SIGTERM or SIGINT; a second signal shortens the time limits of their end.

    `view`: whether to show the live view; None: when standard output is a terminal.
    Raises ProcessFailed when a process can't be kept running, LakeBusy when another deployment uses the lake.
    """
    shown = sys.stdout.isatty() if view is None else view
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_use(settings.state_dir, error) from error
    wait_until_free(settings.state_dir, settings.lake, [name for name in deployment.processes if name != DASHBOARD])
    dashboard = read_status(settings.state_dir, DASHBOARD)
    if dashboard.state in ALIVE and not dashboard.orphaned:
        # `cryptopulse serve` already runs on this lake and shows the same.
        deployment = replace(deployment, processes=[name for name in deployment.processes if name != DASHBOARD])
    log_file = logging_setup.BoundedFile(deployment.log_file("supervisor")) if shown else None
    logging_setup.configure(settings.logging, "supervisor", log_file)
    supervisor = deployment.supervisor(logs_to_files=shown)
    with ExitStack() as stack:
        stack.enter_context(on_signals(supervisor.stop))
        stack.enter_context(guarded(supervisor))
        live_view = None
        if shown:
            from cryptopulse.terminal.view import LiveView

            live_view = stack.enter_context(LiveView(deployment.state_dir, processes=deployment.processes))
        while not supervisor.done:
            supervisor.step()
            if live_view is None:
                supervisor.wait()
                continue
            live_view.note = "stopping: what has arrived is being stored" if supervisor.stopping else live_view.note
            live_view.refresh()
            supervisor.wait(STEP_S)
    supervisor.check()


def wait_until_free(state_dir: Path, lake: str, names: Sequence[str] = PROCESSES) -> None:
    """Waits until orphans, processes whose supervisor was killed, have ended by themselves.

    `names`: the processes that must not run. Raises LakeBusy when one of them is no orphan, or does not end in time.
    """
    deadline = time.monotonic() + _ORPHANS_END_WITHIN_S
    for name in names:
        while (status := read_status(state_dir, name)).state in ALIVE:
            if not status.orphaned or time.monotonic() > deadline:
                raise LakeBusy(
                    f"Another {name} (process {status.pid}) works on the lake {lake}. "
                    "Stop it first, or use another --lake."
                )
            time.sleep(STEP_S)


@contextmanager
def guarded(supervisor: Supervisor) -> Iterator[None]:
    """Kills the processes when the code that supervises them raises."""
    try:
        yield
    except BaseException:
        supervisor.kill()
        raise


@contextmanager
def on_signals(action: Callable[[], None]) -> Iterator[None]:
    """Calls `action`, in another thread, for each SIGTERM and SIGINT while the context lasts."""
    # A signal handler runs between any two instructions of the main thread, which may hold the lock that `action`
    # needs, such as that of an Event. SimpleQueue.put is reentrant, as its documentation says.
    came: SimpleQueue[bool] = SimpleQueue()

    def handle(_number: int, _frame: FrameType | None) -> None:
        came.put(True)

    def act() -> None:
        while came.get():
            action()

    if threading.current_thread() is not threading.main_thread():  # a notebook or a job runner handles signals
        yield
        return
    thread = threading.Thread(target=act, name="signals", daemon=True)
    thread.start()
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        came.put(False)
        thread.join()
