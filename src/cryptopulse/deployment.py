"""The processes of a deployment: what each one runs, and `run`, which supervises them.

Both end in order on SIGTERM or SIGINT: the producer writes what it holds to the log, the processing brings
all that the log holds through to gold.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cryptopulse import logging_setup
from cryptopulse.errors import ConfigurationError, LakeBusy
from cryptopulse.log import Log
from cryptopulse.settings import Settings
from cryptopulse.status import ALIVE, PROCESSES, read_status
from cryptopulse.supervisor import ProcessSpec, Supervisor

if TYPE_CHECKING:
    from cryptopulse.serve.terminal import LiveView

STEP_S = 0.1
"""Pause between two looks at the processes: soon enough for a person, and nearly free."""

_PRODUCER_STOP_S = 15.0  # at most 64 MB of buffered messages go to the log: a second, or a few on a slow disk
_PROCESSING_STOP_S = 120.0  # the log may be far ahead; at 300,000 trades/s this drains 36 million

_ORPHANS_END_WITHIN_S = 4.0  # they take one second (`cryptopulse.supervisor.stop_with_parent`)

Report = Callable[[Mapping[str, object]], None]


@dataclass(frozen=True)
class Deployment:
    """How to start producer and processing so that both see the same options."""

    state_dir: Path
    options: Mapping[str, object]
    """Command-line options by name; None is left out."""
    environment: Mapping[str, str] | None = None
    folder: Path | None = None

    def supervisor(self, logs_to_files: bool) -> Supervisor:
        """A supervisor for both, the producer to end first."""
        processing_options = {name: self.options.get(name) for name in ("--lake", "--config")}
        return Supervisor(
            [
                self._spec("producer", "produce", self.options, _PRODUCER_STOP_S, logs_to_files),
                self._spec("processing", "process", processing_options, _PROCESSING_STOP_S, logs_to_files),
            ]
        )

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


def run_processing(settings: Settings, log: Log, report: Report) -> None:
    """Keeps the tables up to date from `log` until SIGTERM or SIGINT. Raises the pipeline's errors."""
    from cryptopulse import pipeline

    stop = threading.Event()
    with on_signals(stop.set):
        try:
            pipeline.process(settings, log, stop, report)
        finally:
            log.close()


def run_until_stopped(settings: Settings, deployment: Deployment, view: bool | None) -> None:
    """Supervises both processes until SIGTERM or SIGINT; a second signal shortens the end.

    `view`: show the live view; unset: when standard output is a terminal.
    Raises ProcessFailed when a process can't be kept running, LakeBusy when the lake is another deployment's.
    """
    shown = sys.stdout.isatty() if view is None else view
    _make_folder(settings.state_dir)
    wait_until_free(settings.state_dir)
    log_file = logging_setup.BoundedFile(deployment.log_file("supervisor")) if shown else None
    logging_setup.configure(settings.logging, "supervisor", log_file)
    supervisor = deployment.supervisor(logs_to_files=shown)
    with on_signals(supervisor.stop), guarded(supervisor), _view(settings, shown) as live_view:
        while not supervisor.done:
            supervisor.step()
            if live_view:
                live_view.note = "stopping: what has arrived is being stored" if supervisor.stopping else live_view.note
                live_view.refresh()
            time.sleep(STEP_S)
    supervisor.check()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"Can't make the folder {folder}: {error.strerror}. Choose another with --lake."
        ) from error


def wait_until_free(state_dir: Path, names: Sequence[str] = PROCESSES) -> None:
    """Waits for processes whose supervisor was killed, which end by themselves; refuses a lake that is in use.

    `names`: which of the processes must not be there. Raises LakeBusy.
    """
    deadline = time.monotonic() + _ORPHANS_END_WITHIN_S
    for name in names:
        while (status := read_status(state_dir, name)).state in ALIVE:
            if not status.orphaned or time.monotonic() > deadline:
                raise LakeBusy(
                    f"Another {name} (process {status.pid}) works on the lake {state_dir.parent}. "
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
    """Calls `action` for each SIGTERM and SIGINT while the context lasts."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        action()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _view(settings: Settings, shown: bool) -> Iterator[LiveView | None]:
    if not shown:
        yield None
        return
    from cryptopulse.serve.terminal import LiveView

    with LiveView(settings.state_dir) as view:
        yield view
