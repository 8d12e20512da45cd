"""The dashboard: how long from a commit to the screen, and what viewers cost the server.

A real Chromium shows the market; it notes for each message the moment after the frame in which it was painted. A commit
counts as shown with the first frame that holds it or a later one. The moment of a commit is that at which its entry of
the Delta log got its name. All clocks are this machine's. The other viewers are sockets that want what a page wants.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from websockets.asyncio.client import connect

from benchmarks.processes import Deployment, Exchange, MeasurementError, Scratch

_TABLES = ("gold/dm_trade_bars", "silver/fact_crypto_trades")
_TOPICS = ["lake", "products", "market"]
_PRODUCTS = 50
_PRUNED_S = 75  # NiceGUI drops a page that no browser connected to after a minute
_OPTIONS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
_NOTE_FRAMES = """
window.painted = [];
const begin = () => {
  const market = document.querySelector('.cp-market');
  if (!market) return setTimeout(begin, 50);
  let seen = '';
  new MutationObserver(() => {
    const loaded = market.dataset.loaded;
    if (loaded === seen) return;
    seen = loaded;
    // The second callback comes after the frame of the first is on its way to the screen.
    requestAnimationFrame(() => requestAnimationFrame(() => window.painted.push([Number(loaded), Date.now()])));
  }).observe(market, { attributes: true, attributeFilter: ['data-loaded'] });
};
addEventListener('DOMContentLoaded', begin);
"""


@dataclass(frozen=True)
class Viewers:
    """What so many viewers came to."""

    viewers: int
    cpu: float
    """Cores that the server used."""
    rss_mb: float
    p50_ms: float | None
    """Commit → screen; None without a browser."""
    p99_ms: float | None
    max_ms: float | None
    commits: int


@dataclass(frozen=True)
class Dashboard:
    """What was measured."""

    rate: float
    products: int
    seconds: float
    """Each number of viewers was looked at for so long."""
    viewers: list[Viewers]
    first_rows_s: float
    """From the request of the page to its first rows, with an empty cache."""
    visits: int
    visits_mb: float | None
    """How much more memory the server held after so many visits of page and socket; None when that was left out."""


def can_measure() -> bool:
    """Whether there is a browser to measure with."""
    return shutil.which("chromium") is not None


def measure(folder: Path, rate: float, seconds: float, warm_up_s: float, visits: int) -> Dashboard:
    """Runs simulator, pipeline and server under `folder`, and looks for `seconds` with 0, 1 and 20 viewers; then
    `visits` come and go twice, unless that is 0.
    """
    with Scratch(folder) as scratch:
        exchange = Exchange(scratch, rate, "all_subscribed", products=_PRODUCTS)
        deployment = Deployment(scratch, exchange, options=("--no-dashboard",))
        deployment.wait_for(lambda: bool(deployment.report("processing").get("trades_total")), "a first trade")
        server = scratch.start("serve", "--lake", str(deployment.lake), "--port", "0")
        assert server.stdout is not None
        url = server.stdout.readline().strip().removeprefix("Dashboard: ")
        if not url.startswith("http"):
            raise MeasurementError("the dashboard did not start")
        process = psutil.Process(server.pid)
        with _Commits(deployment.lake) as commits, _browser() as browser:
            first_rows_s = _first_rows_s(browser, url)
            time.sleep(warm_up_s)
            found = [_look(process, commits, seconds, 0, None)]
            page = _market(browser, url)
            found.append(_look(process, commits, seconds, 1, page))
            with _Sockets(url, 19):
                found.append(_look(process, commits, seconds, 20, page))
            page.close()
        grown_mb = _visit(url, process, visits) if visits else None
        return Dashboard(rate, _PRODUCTS, seconds, found, first_rows_s, visits, grown_mb)


@contextmanager
def _browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - not everybody has it

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_OPTIONS)
        yield browser
        browser.close()


def _market(browser: Any, url: str) -> Any:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.add_init_script(_NOTE_FRAMES)
    page.goto(url)
    page.locator("tbody tr").first.wait_for(timeout=60_000)
    return page


def _first_rows_s(browser: Any, url: str) -> float:
    begun = time.monotonic()
    page = _market(browser, url)
    took = time.monotonic() - begun
    page.close()
    return round(took, 2)


def _look(process: psutil.Process, commits: _Commits, seconds: float, viewers: int, page: Any) -> Viewers:
    time.sleep(2)  # what comes with the first look, and what lingers of the last
    begun_s, since_ms = time.monotonic(), time.time() * 1000
    before = process.cpu_times()
    if page is not None:
        page.evaluate("window.painted.length = 0")
    time.sleep(seconds)
    after = process.cpu_times()
    cores = (after.user + after.system - before.user - before.system) / (time.monotonic() - begun_s)
    shown = np.array(page.evaluate("window.painted") if page else [], dtype=np.float64).reshape(-1, 2)
    ms = _latencies_ms(commits.since(since_ms), shown)
    p50, p99, most = (float(np.percentile(ms, at)) for at in (50, 99, 100)) if len(ms) else (None, None, None)
    rss_mb = process.memory_info().rss / 1e6
    return Viewers(viewers, round(cores, 3), round(rss_mb, 1), p50, p99, most, len(ms))


def _latencies_ms(commits: Sequence[tuple[int, float]], shown: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """For each commit (load_timestamp in µs, moment in ms) how long until a frame held it."""
    if not len(shown):
        return np.array([])
    loads, moments = (np.array(column, dtype=np.float64) for column in zip(*commits, strict=True))
    places = np.searchsorted(shown[:, 0], loads)
    held = places < len(shown)
    return np.asarray(shown[places[held], 1] - moments[held])


class _Commits:
    """Notes the commits of the tables that the market is made of."""

    def __init__(self, lake: Path) -> None:
        self._logs = [lake / table / "_delta_log" for table in _TABLES]
        self._seen: list[tuple[int, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Commits:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def since(self, moment_ms: float) -> list[tuple[int, float]]:
        """(load_timestamp, moment) of each commit since then, but for the newest second, which may not be shown yet."""
        until_ms = time.time() * 1000 - 1000
        return sorted(one for one in self._seen if moment_ms < one[1] < until_ms)

    def _watch(self) -> None:
        next_version = [max((int(p.stem) for p in log.glob("*.json")), default=-1) + 1 for log in self._logs]
        while not self._stop.wait(0.05):
            for place, log in enumerate(self._logs):
                while (entry := log / f"{next_version[place]:020d}.json").exists():
                    next_version[place] += 1
                    if load := _load_of(entry):
                        self._seen.append((load, entry.stat().st_ctime_ns / 1e6))  # its link was made then


def _load_of(entry: Path) -> int | None:
    for line in reversed(entry.read_text().splitlines()):
        txn = json.loads(line).get("txn")
        if txn and txn["appId"].endswith(":load"):
            return int(txn["version"])
    return None


class _Sockets:
    """Viewers without a screen, in a thread of their own."""

    def __init__(self, url: str, count: int) -> None:
        self._address, self._count = f"ws{url.removeprefix('http')}/live", count
        self._loop = asyncio.new_event_loop()
        self._enough = asyncio.Event()
        self.heard = 0
        """Messages, of all of them."""
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._all(),), daemon=True)

    def __enter__(self) -> _Sockets:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._enough.set)
        self._thread.join()
        self._loop.close()
        if not self.heard:
            raise MeasurementError("the server sent nothing to the other viewers")

    async def _all(self) -> None:
        viewers = [asyncio.create_task(self._one()) for _ in range(self._count)]
        await self._enough.wait()
        for viewer in viewers:
            viewer.cancel()
        await asyncio.wait(viewers)

    async def _one(self) -> None:
        async with connect(self._address, compression=None, max_size=None) as socket:
            await socket.send(json.dumps({"topics": _TOPICS}))
            async for _ in socket:
                self.heard += 1


def _visit(url: str, process: psutil.Process, visits: int) -> float:
    """Comes and goes; how much more memory the server holds after the second half of the visits."""
    marks = []
    for _ in range(2):
        for _ in range(visits):
            with httpx.Client(trust_env=False, timeout=20) as client:
                client.get(url).raise_for_status()
            with _Sockets(url, 1) as sockets:
                deadline = time.monotonic() + 5
                while not sockets.heard and time.monotonic() < deadline:
                    time.sleep(0.01)
        time.sleep(_PRUNED_S)
        marks.append(process.memory_info().rss / 1e6)
    return round(marks[1] - marks[0], 1)
