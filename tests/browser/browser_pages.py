"""What tests do with pages, in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
from playwright.sync_api import Page, expect

from support_processes import Processes, wait_until

MINUS = "−"


@contextmanager
def served(folder: Path) -> Iterator[SimpleNamespace]:
    """A server over the lake in `folder`, in the place of the running deployment."""
    processes = Processes(folder)
    server = processes.start("serve", "--lake", "lake", "--port", "0")
    url = wait_until(lambda: re.search(r"http://[\d.:]+", server.said), "the server says where it is")[0]
    wait_until(lambda: httpx.get(url, trust_env=False, timeout=10).status_code == 200, "the server answers")
    yield SimpleNamespace(url=url)
    processes.close()


def state_is(page: Page, name: str) -> None:
    """Waits until the header says this of the data."""
    expect(page.locator("#cp-state")).to_have_attribute("data-state", name)


def list_is_read(page: Page) -> None:
    """Waits until the list of episodes is read: open ones stand there before, alone."""
    expect(page.locator("#cp-shown")).to_have_text(re.compile("episodes?$"))


def shown_symbols(page: Page) -> list[str]:
    """The products in the table, from top to bottom."""
    found: list[str] = page.evaluate("[...document.querySelectorAll('tbody tr')].map(row => row.dataset.key)")
    return found


def prices(page: Page) -> dict[str, str]:
    """The prices in the table, from top to bottom."""
    found: dict[str, str] = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('tbody tr')].map("
        "row => [row.dataset.key, row.querySelector('[data-key=price]').textContent]))"
    )
    return found


def sort_by(page: Page, heading: str) -> None:
    """Clicks a heading of the table."""
    page.locator("th").get_by_role("button", name=heading, exact=True).click()
