"""Real processes for measurements: a simulated exchange and a deployment on a fresh lake, all ended at the close."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import psutil

from cryptopulse.simulator.other_venues import SYMBOLS
from cryptopulse.status import ProcessStatus, read_status

VENUES = ("kraken", "binance", "okx")
"""Those that are recorded together."""

_STOP_S = 60.0  # a processing that is behind drains its log first
_PATIENCE_S = 60.0

_P = ParamSpec("_P")
_R = TypeVar("_R")


class MeasurementError(Exception):
    """What should have been measured did not happen; the text says what."""


class Scratch:
    """A folder and processes that do not outlive the `with` block. The folder is the processes' working directory."""

    def __init__(self, parent: Path | None) -> None:
        """Makes the folder under `parent`."""
        self.folder = Path(tempfile.mkdtemp(prefix="cryptopulse-bench-", dir=parent))
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("CRYPTOPULSE_")}
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Scratch:
        """The scratch itself."""
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Kills what still runs, and deletes the folder."""
        for popen in self._started:
            _kill_tree(popen)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts `cryptopulse ARGUMENTS`; its standard error goes to a file in the folder."""
        with (self.folder / f"{len(self._started)}-{arguments[0]}.stderr").open("w") as stderr:
            popen = subprocess.Popen(
                [sys.executable, "-m", "cryptopulse", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=self.folder,
                env=self._environment,
                text=True,
                start_new_session=True,  # Ctrl-C is for us; we end them in order
            )
        self._started.append(popen)
        return popen


def _kill_tree(popen: subprocess.Popen[str]) -> None:
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(popen.pid)
        family = [process, *process.children(recursive=True)]
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    if popen.stdout is not None:
        popen.stdout.close()
    popen.wait()
    psutil.wait_procs(family, timeout=5)


class Exchange:
    """A simulated exchange."""

    def __init__(
        self, scratch: Scratch, rate: float, start: str, episodes: Sequence[str] = (), *, products: int = 20
    ) -> None:
        """Returns when it accepts connections. `rate`: trades/s; `start`, `episodes`: as for `cryptopulse simulate`."""
        options = [text for episode in episodes for text in ("--episode", episode)]
        given = ("--products", str(products), "--rate", str(rate), "--seed", "7", "--port", "0", "--start", start)
        self.popen = scratch.start("simulate", *given, *options, "--json")
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise MeasurementError("the simulated exchange did not start")
        self._addresses: dict[str, Any] = json.loads(line)

    @property
    def feed_options(self) -> tuple[str, ...]:
        """Options that point `cryptopulse run` here."""
        given = self._addresses
        products = ",".join(given["products"])
        urls = ("--websocket-url", given["exchange_url"], "--rest-url", given["rest_url"])
        return ("--products", products, *urls)

    def venue_settings(self) -> str:
        """Settings that record every product at each of VENUES, as TOML, in the place of `feed_options`."""
        url, ws = self._addresses["rest_url"], self._addresses["rest_url"].replace("http", "ws")
        listed = [f"{SYMBOLS[venue](product)}@{venue}" for venue in VENUES for product in self._addresses["products"]]
        sections = [f'[{v}]\nwebsocket_url = "{ws}/{v}"\nrest_url = "{url}"\n' for v in VENUES]
        return "\n".join([f"[feed]\nproducts = {json.dumps(listed)}\n", *sections])

    def stop_trading(self) -> None:
        """No trades from now on; heartbeats go on."""
        self._post("stop_trading", "")

    def set_faults(self, faults: str) -> None:
        """What goes wrong from now on, as for `cryptopulse simulate --faults`."""
        self._post("faults", faults)

    def _post(self, what: str, body: str) -> None:
        url = f"{self._addresses['rest_url']}/simulator/{what}"
        with urllib.request.urlopen(urllib.request.Request(url, body.encode(), method="POST"), timeout=10):
            pass


class Deployment:
    """`cryptopulse run` on a fresh lake."""

    def __init__(
        self,
        scratch: Scratch,
        exchange: Exchange,
        name: str = "lake",
        options: Sequence[str] = (),
        *,
        is_coinbase: bool = True,
    ) -> None:
        """Starts it and returns at once; `started_s` is the moment before (monotonic clock). `options`: of `run`;
        `is_coinbase`: whether they are about Coinbase's feed."""
        self.lake = scratch.folder / name
        self.state_dir = self.lake / "_cryptopulse"
        self.started_s = time.monotonic()
        feed = exchange.feed_options if is_coinbase else ()
        self.popen = scratch.start("run", "--no-view", "--lake", str(self.lake), *feed, *options)

    def status(self, name: str) -> ProcessStatus:
        """What `producer` or `processing` says of itself."""
        return read_status(self.state_dir, name)

    def report(self, name: str) -> Mapping[str, Any]:
        """The newest figures of `producer` or `processing`, at most half a second old."""
        return self.status(name).report

    def pids(self) -> dict[str, int]:
        """Process ids of supervisor, producer and processing. Raises MeasurementError when one is not running."""
        found = {"supervisor": self.popen.pid}
        for name in ("producer", "processing"):
            pid = self.status(name).pid
            if pid is None:
                raise MeasurementError(f"the {name} does not run")
            found[name] = pid
        return found

    def wait_for(self, condition: Callable[[], bool], what: str, pause_s: float = 0.05) -> None:
        """Returns when `condition` holds; MeasurementError when it does not within a minute, or the run ended."""
        deadline = time.monotonic() + _PATIENCE_S
        while not condition():
            if self.popen.poll() is not None:
                raise MeasurementError(f"`cryptopulse run` ended with exit code {self.popen.returncode} before {what}")
            if time.monotonic() > deadline:
                raise MeasurementError(f"not within {_PATIENCE_S:g} s: {what}")
            time.sleep(pause_s)

    def stop(self) -> float:
        """Ends it in order, which brings all that arrived through to gold; seconds that this took."""
        begun = time.monotonic()
        self.popen.terminate()
        try:
            self.popen.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"`cryptopulse run` did not end within {_STOP_S:g} s") from None
        return time.monotonic() - begun


def in_a_process(function: Callable[_P, _R], *arguments: _P.args, **named: _P.kwargs) -> _R:
    """Calls a function of a module in a fresh process: nothing is warm, and its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


def peak_rss_mb(pid: int) -> float:
    """The most memory that a process has had, in MB; 0 when it is gone or the system does not say.

    Not `getrusage`: a child begins with its parent's peak.
    """
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
