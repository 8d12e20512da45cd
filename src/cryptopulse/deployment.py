"""The processes of a deployment: what each one runs, and `run`, which supervises them.

They end in order on SIGTERM or SIGINT: the producer writes what it holds to the log, the processing brings
all that the log holds through to gold, and the notifier, where there is one, tells of the last alerts. The dashboard
goes last, so that one can watch.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from types import FrameType, ModuleType
from typing import TYPE_CHECKING

from cryptopulse import logging_setup
from cryptopulse.errors import ConfigurationError, LakeBusy
from cryptopulse.folders import cannot_use
from cryptopulse.log import Log
from cryptopulse.settings import STEPS, Settings
from cryptopulse.status import ALIVE, DASHBOARD, NOTIFIER, PROCESSES, read_status
from cryptopulse.supervisor import ProcessSpec, Supervisor

if TYPE_CHECKING:
    from cryptopulse.serve.terminal import LiveView

STEP_S = 0.1
"""Pause between two looks at the processes: soon enough for a person, and nearly free."""

_PRODUCER_STOP_S = 15.0  # at most 64 MB of buffered messages go to the log: a second, or a few on a slow disk
_PROCESSING_STOP_S = 120.0  # the log may be far ahead; at 300,000 trades/s this drains 36 million
_NOTIFIER_STOP_S = 15.0  # it takes ten seconds for itself (`cryptopulse.serve.notify.notifier`)
_DASHBOARD_STOP_S = 5.0  # it cuts what is under way after a second

_ORPHANS_END_WITHIN_S = 4.0  # they take one second (`cryptopulse.supervisor.stop_with_parent`)

Report = Callable[[Mapping[str, object]], None]


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
        options = {name: self.options.get(name) for name in ("--lake", "--config")}
        specs = [
            self._spec("producer", "produce", self.options, _PRODUCER_STOP_S, logs_to_files),
            self._spec("processing", "process", options, _PROCESSING_STOP_S, logs_to_files),
        ]
        if NOTIFIER in self.processes:
            notifier = self._spec(NOTIFIER, "notify", options, _NOTIFIER_STOP_S, logs_to_files)
            specs.append(replace(notifier, is_essential=False))
        if DASHBOARD in self.processes:
            dashboard = self._spec(DASHBOARD, "serve", options, _DASHBOARD_STOP_S, logs_to_files)
            specs.append(replace(dashboard, is_essential=False))
        return Supervisor(specs)

    def log_file(self, name: str) -> Path:
        """Where process `name` logs when the terminal is taken."""
        return self.state_dir / "logs" / f"{name}.log"

    def _spec(
        self, name: str, command: str, options: Mapping[str, object], stop_timeout_s: float, to_file: bool
    ) -> ProcessSpec:
        log_file = self.log_file(name) if to_file else None
        given = {**options, "--log-file": log_file}
        arguments = [text for key, value in given.items() if value is not None for text in (key, str(value))]
        return ProcessSpec(
            name=name,
            command=lambda restarts: [
                *(sys.executable, "-m", "cryptopulse", command),
                *arguments,
                *("--supervised", str(restarts)),
            ],
            stop_timeout_s=stop_timeout_s,
            log_file=log_file,
            environment=self.environment,
            folder=self.folder,
        )


def run_producer(settings: Settings, log: Log, report: Report) -> None:
    """Writes the feed to `log` until SIGTERM or SIGINT. Raises the feed's and the log's errors."""
    import uvloop

    from cryptopulse.feed.producer import produce

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
    """Tells the targets of `notify.targets` of alerts until SIGTERM or SIGINT. Raises as `cryptopulse.serve.notify`."""
    from cryptopulse.serve.notify.notifier import notify

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
    _make_folder(settings.state_dir)
    wait_until_free(settings.state_dir, settings.lake, [name for name in deployment.processes if name != DASHBOARD])
    deployment = _without_second_dashboard(deployment)
    log_file = logging_setup.BoundedFile(deployment.log_file("supervisor")) if shown else None
    logging_setup.configure(settings.logging, "supervisor", log_file)
    supervisor = deployment.supervisor(logs_to_files=shown)
    with on_signals(supervisor.stop), guarded(supervisor), _view(deployment, shown) as live_view:
        while not supervisor.done:
            supervisor.step()
            if live_view:
                live_view.note = "stopping: what has arrived is being stored" if supervisor.stopping else live_view.note
                live_view.refresh()
            time.sleep(STEP_S)
    supervisor.check()


def _without_second_dashboard(deployment: Deployment) -> Deployment:
    """`cryptopulse serve` may run on this lake already, and shows it as well as ours would."""
    status = read_status(deployment.state_dir, DASHBOARD)
    if status.state not in ALIVE or status.orphaned:
        return deployment
    return replace(deployment, processes=[name for name in deployment.processes if name != DASHBOARD])


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_use(folder, error) from error


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


@contextmanager
def _view(deployment: Deployment, shown: bool) -> Iterator[LiveView | None]:
    if not shown:
        yield None
        return
    from cryptopulse.serve.terminal import LiveView

    with LiveView(deployment.state_dir, processes=deployment.processes) as view:
        yield view
