"""The processes of a deployment: what each one runs, and `run`, which supervises them.

They end in order on SIGTERM or SIGINT: the producer writes what it holds to the log, the processing brings
all that the log holds through to gold, and the notifier, where there is one, tells of the last alerts. The dashboard
goes last, so that one can watch.
"""

from __future__ import annotations

import asyncio
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
from typing import TYPE_CHECKING

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
"""Between two pictures of a live view, and two looks at a file: soon enough for a person."""

_HEAD_START_S = 1.0
"""Recording has the machine for itself until it runs; a dashboard takes a core for seconds to start."""

_COMMANDS = {
    PRODUCER: ("produce", 15.0),  # at most 64 MB of buffered messages go to the log: a second, or a few on a slow disk
    PROCESSING: ("process", 120.0),  # the log may be far ahead; at 300,000 trades/s this drains 36 million
    NOTIFIER: ("notify", 15.0),  # it takes ten seconds for itself (`cryptopulse.notify.notifier`)
    DASHBOARD: ("serve", 5.0),  # it cuts what is under way after a second
}
"""What each process runs, and how many seconds its orderly end may take; in the order in which they end."""

_ORPHANS_END_WITHIN_S = 4.0  # they take one second (`cryptopulse.supervisor.stop_with_parent`)

Report = Callable[[Mapping[str, object]], None]

_log = structlog.get_logger()


@dataclass(frozen=True)
class Deployment:
    """How to start the processes so that all see the same options."""

    state_dir: Path
    options: Mapping[str, object]
    """Command-line options by name; None is left out."""
    environment: Mapping[str, str] | None = None
    folder: Path | None = None
    processes: Sequence[str] = PROCESSES
    """Which processes it has (`cryptopulse.status.processes_of`)."""

    def supervisor(self, logs_to_files: bool) -> Supervisor:
        """A supervisor for all, the producer to end first."""
        # glibc gives every thread memory of its own, which small, frequent commits scatter and never give back: the
        # processing's grew by 15 % instead of 29 % between 1,000 and 10,000 commits with two such arenas.
        environment = {"MALLOC_ARENA_MAX": "2", **(self.environment or os.environ)}
        specs = []
        for name, (command, stop_timeout_s) in _COMMANDS.items():
            if name not in self.processes:
                continue
            log_file = self.log_file(name) if logs_to_files else None
            given = {**self.options, "--log-file": log_file}
            if name != PRODUCER:  # the others know no feed
                given = {key: given.get(key) for key in ("--lake", "--config", "--log-file")}
            arguments = [text for key, value in given.items() if value is not None for text in (key, str(value))]
            start = (sys.executable, "-m", "cryptopulse", command, *arguments, "--supervised")
            specs.append(
                ProcessSpec(
                    name=name,
                    command=partial(lambda start, restarts: [*start, str(restarts)], start),
                    stop_timeout_s=stop_timeout_s,
                    log_file=log_file,
                    environment=environment,
                    folder=self.folder,
                    is_essential=name in PROCESSES,
                    head_start_s=0.0 if name in PROCESSES else _HEAD_START_S,
                )
            )
        return Supervisor(specs)

    def log_file(self, name: str) -> Path:
        """Where process `name` logs when the terminal is taken."""
        return self.state_dir / "logs" / f"{name}.log"


class _NoPandas:
    """A finder that says that there is no pandas."""

    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is kept out of this process", name=name)


def without_pandas(settings: Settings) -> None:
    """Keeps pandas out of this process, unless Spark runs in it, which needs it.

    pyarrow imports it, wherever it is installed, for the first `pa.array` or `pa.table`, only to see whether what it
    was given is one of its frames: 35 MB and 0.3 s.
    """
    if settings.processing.engine != "spark" and "pandas" not in sys.modules and _NoPandas not in sys.meta_path:
        sys.meta_path.insert(0, _NoPandas)


@contextmanager
def process_context(
    settings: Settings, name: str, supervised: int | None, log_file: Path | None
) -> Iterator[Callable[..., None]]:
    """The frame of a long-running process: its logging, its status file, its end with the supervisor.

    Gives the function that takes the process's reports. An error is logged, noted in the status file, and
    raised; LakeBusy when the lake has such a process already.
    """
    without_pandas(settings)
    file = logging_setup.BoundedFile(log_file, descriptor=2) if log_file else None
    logging_setup.configure(settings.logging, name, file)
    if supervised is not None:
        stop_with_parent()
    # Before our own file takes the place of the one that shows it.
    wait_until_free(settings.state_dir, settings.lake, [name])
    status = StatusFile(settings.state_dir, name, supervised or 0)

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    # Whoever sees the status may end the process, also before its work has begun and has handlers of its own.
    has_signals = threading.current_thread() is threading.main_thread()  # else a job runner has them
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
            raise  # nobody wants a traceback among the events on the terminal
        _log.exception("unexpected_error", error=str(error))
        raise CryptoPulseError(f"{what}; details are in the log") from error
    finally:
        if has_signals:
            signal.signal(signal.SIGTERM, before)


def run_producer(settings: Settings, log: Log, report: Report) -> None:
    """Writes the feed to `log` until SIGTERM or SIGINT. Raises the feed's and the log's errors."""
    import pyarrow as pa
    import uvloop

    from cryptopulse.producer import produce

    pa.set_memory_pool(pa.system_memory_pool())  # the other keeps 6 MB for columns that are small and soon gone

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
    """Keeps the tables up to date from `log` until SIGTERM or SIGINT; `steps`: of Spark's, only these.

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
    """Brings the tables up to what `log` holds now; returns what was counted. `steps`: as in `run_processing`."""
    with closing(log):
        if settings.processing.engine == "spark":
            drained: dict[str, object] = _spark().drain(settings, log, steps)
            return drained
        from cryptopulse import pipeline

        _refuse_steps(steps)
        return pipeline.drain(settings, log, lambda _done, _total: None)


def run_notifier(settings: Settings, report: Report) -> None:
    """Tells the targets of `notify.targets` of alerts until SIGTERM or SIGINT. Raises as `cryptopulse.notify`."""
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
    """Supervises the processes until SIGTERM or SIGINT; a second signal shortens the end.

    `view`: show the live view; unset: when standard output is a terminal.
    Raises ProcessFailed when a process can't be kept running, LakeBusy when the lake is another deployment's.
    """
    shown = sys.stdout.isatty() if view is None else view
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_use(settings.state_dir, error) from error
    wait_until_free(settings.state_dir, settings.lake, [name for name in deployment.processes if name != DASHBOARD])
    dashboard = read_status(settings.state_dir, DASHBOARD)
    if dashboard.state in ALIVE and not dashboard.orphaned:
        # `cryptopulse serve` runs on this lake already, and shows it as well as ours would.
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
    """Waits for processes whose supervisor was killed, which end by themselves; refuses a `lake` that is in use.

    `names`: which of the processes must not be there. Raises LakeBusy.
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
    """No process outlives an error of the code that supervises it."""
    try:
        yield
    except BaseException:
        supervisor.kill()
        raise


@contextmanager
def on_signals(action: Callable[[], None]) -> Iterator[None]:
    """Calls `action`, in another thread, for each SIGTERM and SIGINT while the context lasts."""
    # A handler runs between any two instructions of the main thread, which may hold the very lock that `action` wants:
    # that of an Event it is about to wait for. A SimpleQueue is made for this, see its documentation.
    came: SimpleQueue[bool] = SimpleQueue()

    def handle(_number: int, _frame: FrameType | None) -> None:
        came.put(True)

    def act() -> None:
        while came.get():
            action()

    if threading.current_thread() is not threading.main_thread():  # a notebook or a job runner has the signals
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
