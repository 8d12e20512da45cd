"""The demo: a simulated exchange, the whole pipeline on it in separate processes, and a check of every trade.

Only the exchange is simulated: it uses a real WebSocket on the loopback interface, the real log, real Delta tables, and
the same supervisor as `run`. It can trade at several venues at once: each speaks its own dialect of the same market.
The processes don't see the user's settings, so that all demos are alike; only the targets of notifications are taken
from there if the user asks for it.
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
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import httpx
import structlog

from cryptopulse import logging_setup
from cryptopulse.demo.check import COINBASE, Recorded, all_stored, check, symbol_at
from cryptopulse.demo.summary import where, write_summary
from cryptopulse.deployment import STEP_S, Deployment, guarded, on_signals, wait_until_free
from cryptopulse.errors import ConfigurationError, ProcessFailed
from cryptopulse.lake.location import LakeLocation
from cryptopulse.settings import LoggingSettings
from cryptopulse.settings.notify import NotifySettings
from cryptopulse.simulator.other_venues import SYMBOLS
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
_PAST_MAX_S = 1800.0
"""Most of the past that is fetched if there are other venues than Coinbase: for four it takes 8 s, 25 hours would take
50 s. So few pages are stored at once. Trades that a second store brings just before the start are judged again after
it, and would count in the latency of alerts."""

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
    """How much of the market's past is fetched first, in seconds."""
    crash_day_trades: int | None = None
    """A crash day of so many trades takes the market's place, which has products and episodes of its own."""
    venues: Sequence[str] = (COINBASE,)
    """Where the market is traded; at each of them all its products are recorded."""

    @property
    def is_coinbase_alone(self) -> bool:
        """Whether no other venue is recorded."""
        return set(self.venues) == {COINBASE}

    @property
    def fetched_s(self) -> float:
        """How much of the past is really fetched."""
        return self.past_s if self.is_coinbase_alone else min(self.past_s, _PAST_MAX_S)

    @property
    def market_past_s(self) -> float:
        """How long the market has traded before, in seconds: with other venues for longer than is fetched, as their
        first trade takes long to be found."""
        return self.fetched_s if self.is_coinbase_alone else 2 * self.fetched_s

    @property
    def feeds(self) -> list[str]:
        """The simulator's feeds that are recorded."""
        return [self.feed if venue == COINBASE else venue for venue in self.venues]

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
        environment |= simulator.settings()
        recorded = _fetch_past(options, simulator, environment)
        symbols = [symbol_at(venue, product) for venue in options.venues for product in simulator.products]
        has_coinbase = COINBASE in options.venues
        deployment = Deployment(
            state_dir,
            {
                "--lake": options.lake,
                "--products": ",".join(symbols),
                "--feed": options.feed if has_coinbase else None,
                "--websocket-url": simulator.addresses[f"{options.feed}_url"] if has_coinbase else None,
            },
            environment | ({"CRYPTOPULSE_NOTIFY": options.notify.in_clear_text()} if options.notify else {}),
            folder=options.lake,
            processes=options.processes,
        )
        ledger = _play(options, deployment, simulator, recorded)
    report = read_status(state_dir, "processing").report
    result = check(options.lake, ledger, recorded)
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
                    *("--start", "all_subscribed", "--start-feeds", ",".join(options.feeds)),
                    *("--supervised", "0", "--log-file", str(self._log_file)),
                    *(("--past", f"{options.market_past_s:f}s") if options.past_s else ()),
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
        # The address is on this machine, so proxies in the environment are ignored.
        self._client = httpx.Client(base_url=self.addresses["rest_url"], trust_env=False, timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
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

    def settings(self) -> dict[str, str]:
        """The settings with its addresses, as environment variables."""
        return {
            "CRYPTOPULSE_FEED__REST_URL": self.addresses["rest_url"],
            **{f"CRYPTOPULSE_{venue.upper()}__WEBSOCKET_URL": self.addresses[f"{venue}_url"] for venue in SYMBOLS},
            **{f"CRYPTOPULSE_{venue.upper()}__REST_URL": self.addresses["rest_url"] for venue in SYMBOLS},
        }

    def ledger(self) -> dict[str, Any]:
        """What was traded so far. Raises ProcessFailed without an answer."""
        ledger: dict[str, Any] = self._ask("GET", "ledger")
        return ledger

    def stop_trading(self) -> dict[str, Any]:
        """Ends the market; connections stay open. Returns the ledger. Raises ProcessFailed without an answer."""
        ledger: dict[str, Any] = self._ask("POST", "stop_trading")
        return ledger

    def first_id_since(self, moment: datetime, product: str, sent: Mapping[str, int]) -> int:
        """The id of the first trade at `moment` or later, or the next one. `sent`: the product in the ledger.

        Raises ProcessFailed without an answer.
        """

        def time_of(trade_id: int) -> datetime:
            (trade,) = self._ask("GET", f"trades/{product}?from={trade_id}&to={trade_id}")
            return datetime.fromisoformat(trade["time"])

        first = sent["first_trade_id"]
        return first + bisect_left(range(first, sent["last_trade_id"] + 1), moment, key=time_of)

    def _ask(self, method: str, what: str) -> Any:
        try:
            answer = self._client.request(method, f"/simulator/{what}")
            answer.raise_for_status()
            return answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ProcessFailed(f"The simulator does not answer ({error}); see {self._log_file}") from error


def _fetch_past(options: DemoOptions, simulator: SimulatorProcess, environment: Mapping[str, str]) -> Recorded:
    """Brings the time before the start into the tables as a user would: by `cryptopulse backfill`.

    Returns what is to be recorded. Raises ProcessFailed when the backfill fails, or the simulator ends.
    """
    traded = simulator.ledger()["products"]  # those that have a past
    if not traded:
        return {venue: {} for venue in options.venues}
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=options.fetched_s)
    if options.is_coinbase_alone:
        start -= timedelta(seconds=60)  # all of it, which began before the simulator did
    at = "" if options.is_coinbase_alone else f" at {', '.join(options.venues)}"
    minutes = options.fetched_s / 60
    length = f"{minutes / 60:g} h" if minutes >= 60 else f"{minutes:g} min"
    sys.stdout.write(f"Fetching the last {length} of the simulated market{at} …\n")
    sys.stdout.flush()
    log_file = options.lake / "_cryptopulse" / "logs" / "backfill.log"
    symbols = [symbol_at(venue, name) for venue in options.venues for name in traded]
    sections, rate = ("FEED", *map(str.upper, SYMBOLS)), str(_REQUESTS_PER_SECOND)
    with log_file.open("ab") as file:
        popen = subprocess.Popen(  # noqa: S603 -- the command is ours
            [
                *(sys.executable, "-m", "cryptopulse", "backfill", *symbols, "--from", start.isoformat()),
                *("--lake", str(options.lake), "--supervised", "0"),
            ],
            stdin=subprocess.PIPE,  # it ends with this process
            stdout=file,
            stderr=file,
            env={**environment, **{f"CRYPTOPULSE_{name}__REST_REQUESTS_PER_SECOND": rate for name in sections}},
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
    firsts = {name: simulator.first_id_since(start, name, sent) for name, sent in traded.items()}
    return dict.fromkeys(options.venues, firsts)


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


def _play(
    options: DemoOptions, deployment: Deployment, simulator: SimulatorProcess, recorded: Recorded
) -> dict[str, Any]:
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
    title = f"CryptoPulse demo, simulated {'crash day' if is_crash_day else 'market'}{where(options.venues)}"
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
        while not supervisor.stopping and not all_stored(options.lake, ledger, recorded):
            if time.monotonic() > deadline:
                _log.warning("not_caught_up", after_s=_CAUGHT_UP_WITHIN_S)
                break
            step()
        supervisor.stop()
        while not supervisor.done:
            step()
    supervisor.check()
    return ledger
