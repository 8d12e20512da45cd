"""The demo: a simulated exchange, the whole pipeline on it in separate processes, and a check of every trade.

Only the exchange is simulated: it uses a real WebSocket on the loopback interface, the real log, real Delta tables, and
the same supervisor as `run`. The processes don't see the user's settings, so that all demos are alike; only the targets
of notifications are taken from there if the user asks for it.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import httpx
import structlog

from cryptopulse import logging_setup
from cryptopulse.demo.check import all_stored, check
from cryptopulse.demo.summary import write_summary
from cryptopulse.deployment import STEP_S, Deployment, guarded, on_signals, wait_until_free
from cryptopulse.errors import ConfigurationError, ProcessFailed
from cryptopulse.lake.location import LakeLocation
from cryptopulse.settings import LoggingSettings
from cryptopulse.settings.notify import NotifySettings
from cryptopulse.status import ALL_PROCESSES, DASHBOARD, NOTIFIER, PROCESSES, read_status
from cryptopulse.supervisor import last_words
from cryptopulse.terminal.view import LiveView, PlainView

_MARKER = ".cryptopulse-demo"
_READY_WITHIN_S = 60.0
_CAUGHT_UP_WITHIN_S = 30.0
_CRASH_AT_S = 12.0
_SURGE_AT_S = 30.0
_REQUESTS_PER_SECOND = 1_000  # the simulator is ours alone
_ASKED_EVERY_S = 1.0
_BACKOFF_MAX_S = 0.5  # a crash day has 23 lost connections in a minute, which the exchange of others never has

_log = structlog.get_logger()


@dataclass(frozen=True)
class DemoOptions:
    """Options of a demo."""

    lake: Path
    duration_s: float | None
    """None: until Ctrl-C, or until the crash day is over."""
    rate: float
    products: int
    seed: int
    feed: str
    notify: NotifySettings | None = None
    """Where the demo's alerts are sent; None: nowhere."""
    dashboard: bool = True
    """Whether the demo serves the dashboard."""
    past_s: float = 0.0
    """How long the market has traded before, in seconds; its trades are fetched first."""
    crash_day_trades: int | None = None
    """A crash day of so many trades takes the market's place, which has products and episodes of its own."""

    @property
    def processes(self) -> tuple[str, ...]:
        """The processes of the pipeline."""
        return (*PROCESSES, *((NOTIFIER,) if self.notify else ()), *((DASHBOARD,) if self.dashboard else ()))

    @property
    def episodes(self) -> list[str]:
        """The scripted moves of the simulated market."""
        if self.crash_day_trades is not None:
            return []
        return [f"crash:BTC-USD@{_CRASH_AT_S:g}s:3%/4s", f"surge:ETH-USD@{_SURGE_AT_S:g}s:2.5%/6s"]


def run_demo(options: DemoOptions) -> bool:
    """Runs the demo and prints its summary; returns whether every trade is stored exactly once.

    Raises ConfigurationError when the folder can't be used, ProcessFailed when a part can't be kept running.
    """
    if options.feed not in ("exchange", "advanced"):
        raise ConfigurationError(f"--feed {options.feed}: write exchange or advanced.")
    if options.notify and not options.notify.targets:
        raise ConfigurationError("--notify: your settings name nobody to notify (notify.targets).")
    _prepare_lake(options.lake)
    state_dir = options.lake / "_cryptopulse"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRYPTOPULSE_")}
    if options.crash_day_trades is not None:
        environment["CRYPTOPULSE_FEED__BACKOFF_MAX_S"] = str(_BACKOFF_MAX_S)
    logging_setup.configure(
        LoggingSettings(), "supervisor", logging_setup.BoundedFile(state_dir / "logs" / "supervisor.log")
    )
    with SimulatorProcess(options, state_dir, environment) as simulator:
        if options.past_s:
            _fetch_past(options, simulator, environment)
        deployment = Deployment(
            state_dir,
            {
                "--lake": options.lake,
                "--products": ",".join(simulator.products),
                "--feed": options.feed,
                "--websocket-url": simulator.addresses[f"{options.feed}_url"],
                "--rest-url": simulator.addresses["rest_url"],
            },
            environment | ({"CRYPTOPULSE_NOTIFY": options.notify.in_clear_text()} if options.notify else {}),
            folder=options.lake,
            processes=options.processes,
        )
        ledger = _play(options, deployment, simulator)
    report = read_status(state_dir, "processing").report
    result = check(options.lake, ledger)
    write_summary(options.lake, result, report, is_crash_day=options.crash_day_trades is not None)
    return result.complete and result.crashes_right


class SimulatorProcess:
    """The exchange of the demo, in a process of its own."""

    def __init__(self, options: DemoOptions, state_dir: Path, environment: Mapping[str, str]) -> None:
        """Starts it and waits for its addresses. Raises ProcessFailed when it doesn't come up."""
        self._log_file = state_dir / "logs" / "simulator.log"
        episodes = [text for episode in options.episodes for text in ("--episode", episode)]
        market = ["--products", str(options.products)]
        if options.crash_day_trades is not None:
            market = ["--real-shape", "--trades", str(options.crash_day_trades)]
        with self._log_file.open("ab") as log_file:
            self._popen = subprocess.Popen(  # noqa: S603 -- the command is ours
                [
                    *(sys.executable, "-m", "cryptopulse", "simulate", "--json", "--port", "0"),
                    *market,
                    *("--rate", str(options.rate), "--seed", str(options.seed), "--no-rest-limit"),
                    *("--start", "all_subscribed", "--supervised", "0", "--log-file", str(self._log_file)),
                    *(("--past", f"{options.past_s:f}s") if options.past_s else ()),
                    *episodes,
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,
                env=dict(environment),
                cwd=options.lake,
            )
        try:
            assert self._popen.stdout is not None
            readable, _, _ = select.select([self._popen.stdout], [], [], _READY_WITHIN_S)
            line = self._popen.stdout.readline() if readable else b""
            self.addresses: dict[str, Any] = json.loads(line)
        except BaseException as error:
            self._popen.kill()
            self._popen.wait()
            if isinstance(error, ValueError):  # it ended, or did not answer in time
                raise self.failure() from error
            raise
        self.products: list[str] = self.addresses["products"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._popen.terminate()
        try:
            self._popen.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    @property
    def dead(self) -> bool:
        """Whether it ended by itself."""
        return self._popen.poll() is not None

    def failure(self) -> ProcessFailed:
        """The error to raise when it is dead."""
        return ProcessFailed(f"The simulator ended: {last_words(self._log_file) or f'see {self._log_file}'}")

    def ledger(self) -> dict[str, Any]:
        """What was traded so far. Raises ProcessFailed without an answer."""
        return self._ask("GET", "ledger")

    def stop_trading(self) -> dict[str, Any]:
        """Ends the market; connections stay open. Returns the ledger. Raises ProcessFailed without an answer."""
        return self._ask("POST", "stop_trading")

    def _ask(self, method: str, what: str) -> dict[str, Any]:
        try:
            # The address is on this machine, so proxies in the environment are ignored.
            with httpx.Client(trust_env=False, timeout=10) as client:
                answer = client.request(method, f"{self.addresses['rest_url']}/simulator/{what}")
                answer.raise_for_status()
                content: dict[str, Any] = answer.json()
                return content
        except (httpx.HTTPError, ValueError) as error:
            raise ProcessFailed(f"The simulator does not answer ({error}); see {self._log_file}") from error


def _fetch_past(options: DemoOptions, simulator: SimulatorProcess, environment: Mapping[str, str]) -> None:
    """Brings the time before the start into the tables as a user would: by `cryptopulse backfill`.

    Raises ProcessFailed when that fails, or the simulator ends.
    """
    products = list(simulator.ledger()["products"])  # those that were traded
    if not products:
        return
    length = f"{options.past_s / 3600:g} h" if options.past_s >= 3600 else f"{options.past_s:g} s"
    sys.stdout.write(f"Fetching the last {length} of the simulated market …\n")
    sys.stdout.flush()
    start = datetime.now(UTC) - timedelta(seconds=options.past_s + 60)
    log_file = options.lake / "_cryptopulse" / "logs" / "backfill.log"
    with log_file.open("ab") as file:
        popen = subprocess.Popen(  # noqa: S603 -- the command is ours
            [
                *(sys.executable, "-m", "cryptopulse", "backfill", *products, "--from", start.isoformat()),
                *("--lake", str(options.lake), "--rest-url", simulator.addresses["rest_url"], "--supervised", "0"),
            ],
            stdin=subprocess.PIPE,  # it ends with this process
            stdout=file,
            stderr=file,
            env={**environment, "CRYPTOPULSE_FEED__REST_REQUESTS_PER_SECOND": str(_REQUESTS_PER_SECOND)},
            cwd=options.lake,
        )
        try:
            while popen.poll() is None:
                if simulator.dead:
                    raise simulator.failure()
                time.sleep(STEP_S)
        finally:
            popen.kill()
            popen.wait()
    if popen.returncode:
        raise ProcessFailed(f"The backfill ended: {last_words(log_file) or f'see {log_file}'}")


def _prepare_lake(lake: Path) -> None:
    """Makes `lake` an empty folder with a marker; empties it only if an earlier demo made it."""
    marker = lake / _MARKER
    try:
        LakeLocation.of(lake)
        if lake.exists() and not lake.is_dir():
            raise ConfigurationError(f"{lake} is not a folder; choose another with --lake.")
        if marker.is_file():
            wait_until_free(lake / "_cryptopulse", str(lake), ALL_PROCESSES)
            shutil.rmtree(lake)
        elif lake.is_dir() and any(lake.iterdir()):
            raise ConfigurationError(
                f"{lake} holds files that no demo made, so it stays as it is; choose another with --lake."
            )
        (lake / "_cryptopulse" / "logs").mkdir(parents=True)
        marker.write_text("Made by `cryptopulse demo`, which empties this folder when it is run again.\n")
    except ValueError as error:
        raise ConfigurationError(f"--lake: {error}.") from error
    except OSError as error:
        raise ConfigurationError(f"Can't use {lake}: {error.strerror}; choose another folder with --lake.") from error


def _play(options: DemoOptions, deployment: Deployment, simulator: SimulatorProcess) -> dict[str, Any]:
    """Runs the pipeline until its time is over or a signal comes, ends it in order, and returns the ledger."""
    supervisor = deployment.supervisor(logs_to_files=True)
    stop_requested = threading.Event()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        stop_requested.set()
        if signals > 1:
            supervisor.stop()

    is_crash_day = options.crash_day_trades is not None
    kind = LiveView if sys.stdout.isatty() else PlainView
    title = f"CryptoPulse demo, simulated {'crash day' if is_crash_day else 'market'}"
    shown = kind(deployment.state_dir, title, deployment.processes)
    with on_signals(on_signal), guarded(supervisor), shown as view:
        if options.duration_s is not None:
            view.note = f"ends after {options.duration_s:g} s, or with Ctrl-C"
        asked_at = time.monotonic()

        def step() -> None:
            supervisor.step()
            view.refresh()
            if simulator.dead:
                raise simulator.failure()
            time.sleep(STEP_S)

        until = time.monotonic() + (options.duration_s or float("inf"))
        while not (stop_requested.is_set() or supervisor.stopping or time.monotonic() > until):
            step()
            if is_crash_day and time.monotonic() > asked_at + _ASKED_EVERY_S:
                ledger, asked_at = simulator.ledger(), time.monotonic()
                is_over = ledger["started_at"] is not None and not ledger["trading"]
                if is_over and options.duration_s is None:
                    break
                view.note = (
                    f"{ledger['market_time'][11:16]} UTC of the day, {ledger['trades']:,} of "
                    f"{options.crash_day_trades:,} trades; Ctrl-C ends"
                )
        view.note = "stopping: the market is closed, the last trades are being stored"
        ledger = simulator.stop_trading()
        deadline = time.monotonic() + _CAUGHT_UP_WITHIN_S
        while not supervisor.stopping and not all_stored(options.lake, ledger):
            if time.monotonic() > deadline:
                _log.warning("not_caught_up", after_s=_CAUGHT_UP_WITHIN_S)
                break
            step()
        supervisor.stop()
        while not supervisor.done:
            step()
    supervisor.check()
    return ledger
