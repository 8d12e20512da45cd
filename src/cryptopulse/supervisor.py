"""Keeps the processes of a deployment running, and ends them in order.

Each process is in one of these states; only `Supervisor.step` moves it::

    WAITING ──pause over──▶ RUNNING ──died──▶ WAITING     started again, after a pause that doubles
       │                       │  └──────────▶ FAILED      died too often (a full disk does not count), or with an
       │                       │                           error that a restart can't fix
       └──────────────┬────────┘
               stop requested, its turn
                      ▼
                  STOPPING ──ended, or time limit and SIGKILL──▶ STOPPED

Processes end in the order of the list: first the producer, which writes its buffer to the log, then the processing,
which brings the rest of the log through to gold. A FAILED process ends all others, in this order. A process that is
not essential is always restarted, unless its very first start ends with an error that a restart can't fix: then
somebody has just started the deployment, and is there to read why.

`step` returns at once; `wait` sleeps until there is something to do. The owner calls both in a loop until `done`, and
can draw in between.

A child has its own session, so that Ctrl-C in the terminal reaches only the supervisor. Its standard input is a pipe
that closes when the supervisor dies, however that happens; `stop_with_parent` watches it in the child.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import structlog

from cryptopulse.errors import ERROR_PREFIX, ConfigurationError, ProcessFailed

_log = structlog.get_logger()

_EXIT_CODES_THAT_STAY = frozenset({2, 4, 5})
"""From `cryptopulse.errors`: configuration, damage, a lake that another pipeline holds. A restart would not help."""

_EXIT_CODE_OF_A_FULL_DISK = 3
"""Restarted for ever, while the other process goes on: somebody will free space, however long it takes."""


@dataclass(frozen=True)
class ProcessSpec:
    """What to start and how long its orderly end may take."""

    name: str
    command: Callable[[int], Sequence[str]]
    """Returns the command line; its argument is the number of restarts so far."""
    stop_timeout_s: float
    """SIGKILL follows SIGTERM after this long. Nothing is lost then, but the log is not drained."""
    log_file: Path | None = None
    """Where its standard error goes. None: to ours."""
    environment: Mapping[str, str] | None = None
    """None: ours."""
    folder: Path | None = None
    """Working directory. None: ours."""
    is_essential: bool = True
    """Whether the deployment can't go on without it."""
    head_start_s: float = 0.0
    """Delay of its first start, in which the others have the machine to themselves."""


@dataclass(frozen=True)
class RestartPolicy:
    """When to start a dead process again."""

    deaths_max: int = 5
    """Give up at this many deaths ..."""
    within_s: float = 60.0
    """... within this time."""
    pause_first_s: float = 0.5
    """Pause before the second restart within that time; the first comes at once. Each further pause is twice as long
    ..."""
    pause_max_s: float = 10.0
    """... up to this."""
    hurried_timeout_s: float = 2.0
    """Time limit of an orderly end after the user's second request."""


class ProcessState(Enum):
    """See the diagram above."""

    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


_FINAL = (ProcessState.STOPPED, ProcessState.FAILED)


@dataclass
class _Process:
    spec: ProcessSpec
    policy: RestartPolicy
    news: threading.Event
    """Set when it has ended."""
    start_at: float
    state: ProcessState = ProcessState.WAITING
    starts: int = 0
    kill_at: float = 0.0
    exit_code: int | None = None
    deaths: deque[float] = field(default_factory=deque)
    popen: subprocess.Popen[bytes] | None = None

    def step(self, now: float) -> None:
        """Handles what has happened and does what is due. `now`: seconds of the monotonic clock."""
        if self.state is ProcessState.WAITING and now >= self.start_at:
            self._start(now)
        elif self.state is ProcessState.RUNNING and self._ended():
            self._judge_death(now)
        elif self.state is ProcessState.STOPPING:
            if self._ended():
                say = _log.error if self.has_failed_at_the_end else _log.info
                say("process_stopped", name=self.spec.name, exit_code=self.exit_code)
                self.state = ProcessState.STOPPED
            elif now >= self.kill_at and self.popen:
                _log.warning("process_killed", name=self.spec.name, reason="did not end in time")
                self.popen.kill()
                self.kill_at = math.inf

    @property
    def due(self) -> float:
        """When the next action is due unless the process ends first: seconds of the monotonic clock."""
        match self.state:
            case ProcessState.WAITING:
                return self.start_at
            case ProcessState.STOPPING:
                return self.kill_at
            case _:
                return math.inf

    def stop(self, now: float, timeout_s: float) -> None:
        """Requests an orderly end within `timeout_s`. A second call can only shorten the time limit."""
        if self.state is ProcessState.WAITING:
            self.state = ProcessState.STOPPED
            self.exit_code = None  # its death was reported when it happened
        elif self.state is ProcessState.RUNNING and self.popen:
            self.state = ProcessState.STOPPING
            self.kill_at = now + timeout_s
            self.popen.terminate()
        elif self.state is ProcessState.STOPPING:
            self.kill_at = min(self.kill_at, now + timeout_s)

    def _start(self, now: float) -> None:
        command = list(self.spec.command(self.starts))
        try:
            self.popen = _spawn(self.spec, command)
        except OSError as error:
            if self.starts == 0:
                raise ConfigurationError(f"Can't start {self.spec.name}: {error}.") from error
            self.exit_code = None  # no memory, or too many processes: handled like a death
            _log.warning("process_not_started", name=self.spec.name, error=str(error))
            self._judge_death(now)
            return
        popen = self.popen

        def notify_end() -> None:
            popen.wait()
            self.news.set()

        threading.Thread(target=notify_end, name="process-end", daemon=True).start()
        self.starts += 1
        self.state = ProcessState.RUNNING
        _log.info("process_started", name=self.spec.name, pid=self.popen.pid, restarts=self.starts - 1)

    def _ended(self) -> bool:
        if self.popen is None or self.popen.poll() is None:
            return False
        self.exit_code = self.popen.returncode
        if self.popen.stdin:
            self.popen.stdin.close()
        return True

    def _judge_death(self, now: float) -> None:
        self.deaths.append(now)
        while now - self.deaths[0] > self.policy.within_s:
            self.deaths.popleft()
        stays = self.exit_code in _EXIT_CODES_THAT_STAY
        if self.spec.is_essential:
            is_too_often = len(self.deaths) >= self.policy.deaths_max and self.exit_code != _EXIT_CODE_OF_A_FULL_DISK
            gives_up = stays or is_too_often
        else:
            gives_up = stays and self.starts == 1
        if gives_up:
            self.state = ProcessState.FAILED
            _log.error("restart_limit_reached", name=self.spec.name, exit=self.exit_text, deaths=len(self.deaths))
            return
        repeated = len(self.deaths) - 1
        pause_s = min(self.policy.pause_first_s * 2 ** (repeated - 1), self.policy.pause_max_s) if repeated else 0.0
        self.state = ProcessState.WAITING
        self.start_at = now + pause_s
        _log.warning("process_died", name=self.spec.name, exit=self.exit_text, restart_in_s=pause_s)

    @property
    def has_failed_at_the_end(self) -> bool:
        """Whether it ended with an error of its own after it was told to end."""
        return bool(self.spec.is_essential and self.exit_code and self.exit_code > 0)

    @property
    def exit_text(self) -> str:
        """How it ended, for people."""
        if self.exit_code is None:
            return "no process"
        if self.exit_code < 0:
            return f"signal {signal.Signals(-self.exit_code).name}"
        return f"exit code {self.exit_code}"


class Supervisor:
    """Several processes that run, fail and end together."""

    def __init__(self, specs: Sequence[ProcessSpec], policy: RestartPolicy | None = None) -> None:
        """`specs` in the order in which they are to end. Nothing starts before the first `step`."""
        self._policy = policy or RestartPolicy()
        self._news = threading.Event()
        now = time.monotonic()
        self._processes = [_Process(spec, self._policy, self._news, now + spec.head_start_s) for spec in specs]
        self._stopping = False
        self._hurry = False

    def step(self) -> None:
        """Checks every process once: starts, restarts and ends what is due. Returns at once.

        Raises ConfigurationError when the first start of a process is impossible.
        """
        self._news.clear()
        now = time.monotonic()
        for process in self._processes:
            if self._stopping and process.state is ProcessState.WAITING:
                process.stop(now, 0)
            process.step(now)
        if self._stopping or any(process.state is ProcessState.FAILED for process in self._processes):
            self._stopping = True
            for process in self._processes:  # the first that has not ended, and then the next
                if process.state not in _FINAL:
                    timeout_s = process.spec.stop_timeout_s
                    process.stop(now, min(timeout_s, self._policy.hurried_timeout_s) if self._hurry else timeout_s)
                if process.state not in _FINAL:
                    break

    def wait(self, timeout_s: float = math.inf) -> None:
        """Returns when `step` has something to do, after `timeout_s`, or at once when all is done."""
        if self.done:
            return
        due = min((process.due for process in self._processes), default=math.inf)
        left_s = min(due - time.monotonic(), timeout_s)
        self._news.wait(None if left_s == math.inf else max(left_s, 0.0))

    def stop(self) -> None:
        """Requests the end of all processes, in order. A second call shortens the time limits."""
        self._hurry = self._stopping
        self._stopping = True
        self._news.set()

    @property
    def done(self) -> bool:
        """Whether every process has ended for good."""
        return all(process.state in _FINAL for process in self._processes)

    @property
    def stopping(self) -> bool:
        """Whether the processes are ending, by request or after a failure."""
        return self._stopping

    def states(self) -> dict[str, ProcessState]:
        """The state of each process, by name."""
        return {process.spec.name: process.state for process in self._processes}

    def pids(self) -> dict[str, int]:
        """Process ids of the running processes, by name."""
        return {
            process.spec.name: process.popen.pid
            for process in self._processes
            if process.popen and process.state in (ProcessState.RUNNING, ProcessState.STOPPING)
        }

    def check(self) -> None:
        """Raises ProcessFailed when a process was given up or could not end in order; with its last error message, if
        known."""
        for process in self._processes:
            has_failed = process.state is ProcessState.STOPPED and process.has_failed_at_the_end
            if has_failed or process.state is ProcessState.FAILED:
                often = "" if len(process.deaths) <= 1 else f" {len(process.deaths)} times in a row"
                words = last_words(process.spec.log_file) if process.spec.log_file else ""
                said = f": {words}" if words else "; see its messages above."
                error = ProcessFailed(f"The {process.spec.name} ended{often} with {process.exit_text}{said}")
                if process.exit_code in _EXIT_CODES_THAT_STAY:
                    error.exit_code = process.exit_code
                raise error

    def kill(self) -> None:
        """Kills all running processes at once: for errors of the supervisor itself."""
        for process in self._processes:
            if process.popen and process.popen.poll() is None:
                process.popen.kill()
                process.popen.wait()


def _spawn(spec: ProcessSpec, command: list[str]) -> subprocess.Popen[bytes]:
    with ExitStack() as stack:
        stderr = None
        if spec.log_file is not None:
            spec.log_file.parent.mkdir(parents=True, exist_ok=True)
            stderr = stack.enter_context(spec.log_file.open("ab"))
        return subprocess.Popen(  # noqa: S603 -- the command is ours
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            env=None if spec.environment is None else dict(spec.environment),
            cwd=spec.folder,
        )


def last_words(log_file: Path) -> str:
    """The last error that the program wrote to its log file (see `cryptopulse.cli`); "" when there is none."""
    try:
        lines = log_file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    words = next((line for line in reversed(lines) if line.startswith(ERROR_PREFIX)), "")
    return words.removeprefix(ERROR_PREFIX).strip()


def stop_with_parent(grace_s: float = 1.0) -> None:
    """In a supervised process: ends it when the supervisor is gone, however that ended.

    It first requests the usual orderly end (SIGTERM to ourselves). After `grace_s` it kills the process, because a new
    supervisor may already be waiting for the lake.
    """

    def watch() -> None:
        while os.read(0, 1):  # nobody writes: returns when the pipe closes
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="stop-with-parent", daemon=True).start()
