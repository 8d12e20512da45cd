"""The status of each process: one small file each, `<state_dir>/status/<name>.json`.

A process writes its file when something has changed, at most twice a second, and otherwise every few seconds. It
writes a temporary file and renames it, so readers never see half of one. The states that a reader derives::

    running   the process lives and wrote recently
    silent    the process lives but has written nothing for a while: stuck, stopped by a signal, or starved
    dead      the file says running, but there is no such process: it was killed or crashed
              (on another machine or in another container: it has written nothing for a while)
    stopped   it ended in order
    failed    it ended with an error, which the file contains
    absent    there is no file: it never ran on this lake
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cryptopulse.errors import ConfigurationError
from cryptopulse.folders import is_full

if TYPE_CHECKING:  # a reader of status files need not know the settings
    from cryptopulse.settings import Settings

State = Literal["running", "silent", "dead", "stopped", "failed", "absent"]

PRODUCER = "producer"
PROCESSING = "processing"

PROCESSES = (PRODUCER, PROCESSING)
"""The processes of every deployment; both run in a healthy one."""

NOTIFIER = "notifier"
"""Runs where `notify.targets` are set."""

DASHBOARD = "dashboard"
"""Runs where `serve.enabled` is set; it only reads."""

ALL_PROCESSES = (*PROCESSES, NOTIFIER, DASHBOARD)

ALIVE: tuple[State, ...] = ("running", "silent")
"""States of a process that exists."""

SILENT_AFTER_S = 10.0  # reports come at least every 4 s; merging files or a slow disk may delay them by seconds
_UNCONNECTED_MAX_S = 30.0  # the longest pause between two attempts (feed.backoff_max_s)

# Not affected by setting the clock, and the same for all containers of a machine.
_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True)
class ProcessStatus:
    """One process as its file and the system's process table show it. Times are UTC."""

    name: str
    state: State
    pid: int | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None
    age_s: float | None = None
    """Seconds since it last wrote, when this was read."""
    restarts: int = 0
    """How often the supervisor has started it again."""
    error: str | None = None
    orphaned: bool = False
    """Whether it lives but its parent process does not: it is about to end."""
    report: Mapping[str, object] = field(default_factory=dict)
    """The process's own figures."""

    @property
    def unwritten_s(self) -> float | None:
        """Seconds since the log last took a message of the producer; since the start if it has taken none."""
        logged_s = self.report.get("last_logged_age_s")
        if isinstance(logged_s, float) and self.age_s is not None:
            return self.age_s + logged_s
        return None if self.started_at is None else (datetime.now(UTC) - self.started_at).total_seconds()

    @property
    def unconnected_s(self) -> float | None:
        """Seconds since a producer without a connection last received something; None when it has one, or for less
        than 30 s."""
        if self.report.get("connections") != 0 or self.started_at is None or self.age_s is None:
            return None
        received_s = self.report.get("last_message_age_s")
        if isinstance(received_s, float):
            found = received_s + self.age_s
        else:
            found = (datetime.now(UTC) - self.started_at).total_seconds()
        return found if found > _UNCONNECTED_MAX_S else None

    @property
    def healthy(self) -> bool:
        """Whether it is running."""
        return self.state == "running"


def processes_of(settings: Settings) -> tuple[str, ...]:
    """The processes of a deployment with these settings."""
    notifier = (NOTIFIER,) if settings.notify.targets else ()
    dashboard = (DASHBOARD,) if settings.serve.enabled else ()
    return (*PROCESSES, *notifier, *dashboard)


def shown_processes(settings: Settings) -> tuple[str, ...]:
    """`processes_of` as names of status files: Spark's steps may run as several jobs (`process --steps`)."""
    from cryptopulse.settings import STEPS

    state_dir = settings.state_dir
    files = [file.stem for file in status_path(state_dir, "").parent.glob(f"{PROCESSING}*.json")]
    by_age = sorted((read_status(state_dir, name) for name in files), key=lambda one: one.age_s or 0.0)
    by_age.sort(key=lambda one: one.state not in ALIVE)
    if not by_age or by_age[0].name == PROCESSING:
        return processes_of(settings)
    steps = list(STEPS)
    jobs: list[str] = []
    for job in by_age:  # a stopped job is shown unless others have taken over its steps
        own = [step for step in job.name.removeprefix(f"{PROCESSING}-").split("-") if step in steps]
        if own:
            jobs.append(job.name)
            steps = [step for step in steps if step not in own]
    jobs += [f"{PROCESSING}-{step}" for step in steps]
    return tuple(name for one in processes_of(settings) for name in (sorted(jobs) if one == PROCESSING else [one]))


class StatusFile:
    """Writes the status file of this process."""

    def __init__(self, state_dir: Path, name: str, restarts: int = 0) -> None:
        """`state_dir`: see `Settings.state_dir`. Creates the folder, but no file yet. Later reports create no folder,
        so they don't recreate a lake that was moved away.

        Raises ConfigurationError when the folder can't be made.
        """
        self._path = status_path(state_dir, name)
        with self._errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fixed = {
            "name": name,
            "pid": os.getpid(),
            "pid_start": (_process(os.getpid()) or (None,))[0],
            "parent_pid": os.getppid(),
            "host": socket.gethostname(),
            "boot": _boot(),
            "started_at": _iso_now(),
            "restarts": restarts,
        }
        self._report: Mapping[str, object] = {}

    def open(self) -> None:
        """Writes a first, empty report. Raises ConfigurationError when the folder can't be written."""
        with self._errors():
            self._write("running", None)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not (is_full(error) or error.errno == errno.EROFS):  # see `report`; readers need not write
                raise ConfigurationError(f"Can't write to {self._path.parent}: {error.strerror}.") from error

    def report(self, report: Mapping[str, object]) -> None:
        """Replaces the process's figures with `report` (values that JSON can hold).

        A full disk does not end the process: the file just becomes outdated.
        """
        self._report = report
        try:
            self._write("running", None)
        except OSError:
            return

    def close(self, error: str | None = None) -> None:
        """Writes that the process has ended: in order, or with `error`."""
        try:
            self._write("failed" if error else "stopped", error)
        except OSError:
            return

    def _write(self, state: str, error: str | None) -> None:
        content = {
            **self._fixed,
            "updated_at": _iso_now(),
            "updated_boot_s": time.clock_gettime(_BOOT_CLOCK),
            "state": state,
            "error": error,
            "report": self._report,
        }
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        beside.write_text(json.dumps(content, default=str))
        beside.replace(self._path)


def status_path(state_dir: Path, name: str) -> Path:
    """The status file of process `name`."""
    return state_dir / "status" / f"{name}.json"


def read_status(state_dir: Path, name: str) -> ProcessStatus:
    """The status of process `name`. Never raises: an unreadable file counts as absent."""
    try:
        content = json.loads(status_path(state_dir, name).read_text())
        updated_at = datetime.fromisoformat(content["updated_at"])
        if content["boot"] == _boot():
            age_s = time.clock_gettime(_BOOT_CLOCK) - float(content["updated_boot_s"])
        else:
            age_s = (datetime.now(UTC) - updated_at).total_seconds()
        # The process table of another machine or container can't be read.
        is_here = content["host"] == socket.gethostname()
        process = _process(int(content["pid"])) if is_here else None
        state: State = content["state"]
        if state == "running":
            # The pid may belong to another process by now; the start time tells them apart.
            if is_here and (process is None or process[0] != content["pid_start"]):
                state = "dead"
            elif age_s >= SILENT_AFTER_S:
                state = "silent" if is_here else "dead"
        return ProcessStatus(
            name=name,
            state=state,
            pid=content["pid"],
            started_at=datetime.fromisoformat(content["started_at"]),
            updated_at=updated_at,
            age_s=age_s,
            restarts=content["restarts"],
            error=content["error"],
            orphaned=state in ALIVE and process is not None and process[1] != content["parent_pid"],
            report=content["report"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ProcessStatus(name=name, state="absent")


def _boot() -> str:
    """Id of the machine's current boot, from which `_BOOT_CLOCK` counts; the same in all its containers."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _process(pid: int) -> tuple[float, int] | None:
    """Start time and parent of process `pid`; None when there is no such process, or it is a zombie.

    On Linux the start is in clock ticks since boot: that of psutil changes when the time of day is set.
    """
    if os.uname().sysname == "Linux":
        try:
            state, parent, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if state == "Z" else (float(others[17]), int(parent))

    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else (process.create_time(), process.ppid())
    except psutil.Error:
        return None


def _iso_now() -> str:
    return datetime.now(UTC).isoformat()
