"""A running deployment and a real browser that looks at it.

Simulator, pipeline and server are processes of their own, started once for all tests of a worker. Whatever a test does,
its page must write no error to the console and ask no other host for anything.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from support_processes import Command, Exchange, Processes, wait_until

try:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright
except ImportError:
    pytest.skip("Playwright is not installed: pip install playwright", allow_module_level=True)

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-gpu-rasterization",
    "--disable-software-rasterizer",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_MOVING = [
    (kind, product)
    for kind in ("crash", "surge")
    for product in (
        "ETH-USD",
        "SOL-USD",
        "XRP-USD",
        "DOGE-USD",
        "SHIB-USD",
        "LINK-USD",
        "ADA-USD",
        "AVAX-USD",
        "LTC-USD",
    )
] * 5
_EVERY_S = 15  # some 20 minutes: longer than a slow machine needs for all tests of this folder

_PATIENCE_MS = 20_000  # two busy cores are slow
expect.set_options(timeout=_PATIENCE_MS)

DESKTOP = {"width": 1440, "height": 900}


class System:
    """Simulator, pipeline and server over one lake."""

    def __init__(self, processes: Processes) -> None:
        later = [f"{kind}:{name}@{_EVERY_S * place}s:3%/2s" for place, (kind, name) in enumerate(_MOVING, 1)]
        options = [text for episode in ("surge:BTC-USD@2s:3%/2s", *later) for text in ("--episode", episode)]
        self._processes = processes
        self.exchange = Exchange(processes, "--start", "all_subscribed", *options, products=12, rate=300)
        self.episodes = [({"crash": "FLASH_CRASH", "surge": "PRICE_SURGE"}[kind], name) for kind, name in _MOVING]
        """Type and product of alerts to come, some seconds one after the other, so that there is always a next one."""
        self._port = _free_port()
        self.pipeline = self.start_pipeline()
        self.server = self.start_server()
        wait_until(self._answers, "the server answers")

    @property
    def url(self) -> str:
        """Where the server is, after a restart too."""
        return f"http://127.0.0.1:{self._port}"

    def start_pipeline(self) -> Command:
        settings = {**self.exchange.feed(), "PROCESSING__STEP_INTERVAL_MS": "150"}  # leaves the browser a core
        self.pipeline = self._processes.start("run", "--lake", "lake", "--no-dashboard", **settings)
        return self.pipeline

    def start_server(self) -> Command:
        self.server = self._processes.start("serve", "--lake", "lake", "--port", str(self._port))
        return self.server

    def _answers(self) -> bool:
        try:
            return httpx.get(self.url, trust_env=False, timeout=10).status_code == 200
        except httpx.HTTPError:
            return False


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where Chromium is; without it there is nothing to test with."""
    if _CHROMIUM is None:
        pytest.skip("Chromium is not installed; on Debian or Ubuntu: apt install chromium")
    return _CHROMIUM


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """Chromium. Ended with each module: as long as Playwright runs, no other test of this process can use asyncio."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=_OPTIONS)
        yield launched
        launched.close()


_running = ExitStack()


@pytest.fixture(scope="session")
def system(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> System:
    """The deployment; started only when there is a browser."""
    processes = Processes(tmp_path_factory.mktemp("deployment"))
    _running.callback(processes.close)
    return System(processes)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends the deployment with the last test of this folder: it would slow down all that comes after."""
    if nextitem is None or nextitem.path.parent != item.path.parent:
        _running.close()


class Visitor:
    """Opens pages, and notes what goes wrong in them."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self._contexts: list[Any] = []

    def open(self, path: str = "/", **context: Any) -> Page:
        """A page in a browser that knows nothing yet; `context` as Playwright's `new_context`."""
        made = self._browser.new_context(**{"viewport": DESKTOP, "color_scheme": "dark", **context})
        self._contexts.append(made)
        page = made.new_page()
        page.set_default_timeout(_PATIENCE_MS)
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._asked)
        page.goto(self._url + path)
        return page

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url')})")

    def _asked(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self.hosts.add(urlsplit(request.url).netloc)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def visitor(browser: Browser, system: System) -> Iterator[Visitor]:
    """Whoever looks at the pages. At the end nothing may have gone wrong that the test does not expect."""
    one = Visitor(browser, system.url)
    yield one
    one.close()
    assert one.errors == []
    assert one.hosts <= {urlsplit(system.url).netloc}


@pytest.fixture
def visit(visitor: Visitor) -> Callable[..., Page]:
    """Opens a page; see `Visitor.open`."""
    return visitor.open
