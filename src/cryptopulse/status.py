"""What each process says about itself: one small file each, `<state_dir>/status/<name>.json`.

A process writes its file twice a second; a reader never sees half of one (written beside, then renamed).
What a reader makes of it::

    running   the process lives and wrote lately
    silent    the process lives but has written nothing for a while: stuck, stopped by a signal, or starved
    dead      the file says running, but there is no such process: it was killed or crashed
              (a process of another machine or container: it has written nothing for a while)
    stopped   it ended in order
    failed    it ended with an error, which the file names
    absent    there is no file: it never ran on this lake
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cryptopulse.errors import ConfigurationError
from cryptopulse.folders import is_full

if TYPE_CHECKING:  # a reader of status files need not know the settings
    from cryptopulse.settings import Settings

State = Literal["running", "silent", "dead", "stopped", "failed", "absent"]

PROCESSES = ("producer", "processing")
"""The processes of every deployment; a healthy one has both running."""

NOTIFIER = "notifier"
"""The third, of a deployment that has somebody to notify."""

DASHBOARD = "dashboard"
"""One more, of a deployment that shows itself in browsers; it only reads."""

ALL_PROCESSES = (*PROCESSES, NOTIFIER, DASHBOARD)

ALIVE: tuple[State, ...] = ("running", "silent")
"""States of a process that exists."""

SILENT_AFTER_S = 10.0  # reports come every 0.5 s; merging files or a slow disk may hold them up for seconds


@dataclass(frozen=True)
class ProcessStatus:
    """One process as its file and the system's process table show it. Times are UTC."""

    name: str
    state: State
    pid: int | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None
    restarts: int = 0
    """How often the supervisor has started it again."""
    error: str | None = None
    orphaned: bool = False
    """Whether it lives, but the process that started it does not: it is about to end."""
    report: Mapping[str, object] = field(default_factory=dict)
    """The process's own figures."""

    @property
    def age_s(self) -> float | None:
        """Seconds since it last wrote."""
        return None if self.updated_at is None else (datetime.now(UTC) - self.updated_at).total_seconds()

    @property
    def unwritten_s(self) -> float | None:
        """Seconds since the log took a message of the producer; since its start when it has taken none."""
        logged_s = self.report.get("last_logged_age_s")
        if isinstance(logged_s, float) and self.age_s is not None:
            return self.age_s + logged_s
        return None if self.started_at is None else (datetime.now(UTC) - self.started_at).total_seconds()

    @property
    def healthy(self) -> bool:
        """Whether it does its work."""
        return self.state == "running"


def processes_of(settings: Settings) -> tuple[str, ...]:
    """The processes of a deployment with these settings."""
    notifier = (NOTIFIER,) if settings.notify.targets else ()
    dashboard = (DASHBOARD,) if settings.serve.enabled else ()
    return (*PROCESSES, *notifier, *dashboard)


class StatusFile:
    """Writes the file of this process."""

    def __init__(self, state_dir: Path, name: str, restarts: int = 0) -> None:
        """`state_dir`: see `Settings.state_dir`. Writes a first, empty report.

        Raises ConfigurationError when the folder can't be written.
        """
        self._path = status_path(state_dir, name)
        self._fixed = {
            "name": name,
            "pid": os.getpid(),
            "pid_started_at": _process_start(os.getpid()),
            "parent_pid": os.getppid(),
            "host": socket.gethostname(),
            "started_at": _iso_now(),
            "restarts": restarts,
        }
        self._report: Mapping[str, object] = {}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write("running", None)
        except OSError as error:
            if not (is_full(error) or error.errno == errno.EROFS):  # see `report`; readers need not write
                raise ConfigurationError(f"Can't write to {self._path.parent}: {error.strerror}.") from error

    def report(self, report: Mapping[str, object]) -> None:
        """Replaces the process's figures with `report` (values that JSON can hold).

        A full disk is not worth ending the process for: the file then just grows old.
        """
        self._report = report
        try:
            self._write("running", None)
        except OSError:
            return

    def close(self, error: str | None = None) -> None:
        """Says that the process ended: in order, or with `error`."""
        try:
            self._write("failed" if error else "stopped", error)
        except OSError:
            return

    def _write(self, state: str, error: str | None) -> None:
        content = {
            **self._fixed,
            "updated_at": _iso_now(),
            "state": state,
            "error": error,
            "report": self._report,
        }
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        beside.write_text(json.dumps(content, default=str))
        beside.replace(self._path)


def status_path(state_dir: Path, name: str) -> Path:
    """Where process `name` writes."""
    return state_dir / "status" / f"{name}.json"


def read_status(state_dir: Path, name: str) -> ProcessStatus:
    """What is known of process `name`; never fails: an unreadable file counts as absent."""
    try:
        content = json.loads(status_path(state_dir, name).read_text())
        state = _judge(content)
        return ProcessStatus(
            name=name,
            state=state,
            pid=content["pid"],
            started_at=datetime.fromisoformat(content["started_at"]),
            updated_at=datetime.fromisoformat(content["updated_at"]),
            restarts=content["restarts"],
            error=content["error"],
            orphaned=state in ALIVE and _is_here(content) and _parent(content["pid"]) != content["parent_pid"],
            report=content["report"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return ProcessStatus(name=name, state="absent")


def _judge(content: dict[str, object]) -> State:
    match content["state"]:
        case "stopped":
            return "stopped"
        case "failed":
            return "failed"
    age_s = time.time() - datetime.fromisoformat(str(content["updated_at"])).timestamp()
    if not _is_here(content):
        return "running" if age_s < SILENT_AFTER_S else "dead"
    # A number alone may belong to another process by now; its start time tells them apart.
    started = _process_start(int(str(content["pid"])))
    if started is None or abs(started - float(str(content["pid_started_at"]))) > 2:  # the clock may be set meanwhile
        return "dead"
    return "running" if age_s < SILENT_AFTER_S else "silent"


def _is_here(content: dict[str, object]) -> bool:
    """Whether the process is one of this machine or container: of another one the process table can't be seen."""
    return content.get("host") == socket.gethostname()


def _process_start(pid: int) -> float | None:
    """When process `pid` started (seconds since 1970), None when there is none or it is a zombie."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


def _parent(pid: int) -> int | None:
    import psutil

    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return None


def _iso_now() -> str:
    return datetime.now(UTC).isoformat()
