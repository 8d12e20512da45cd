"""A server that is started anew: what a viewer looks at, has written and has begun stays as it is."""

from __future__ import annotations

import signal
from typing import Any

from browser_pages import state_is
from playwright.sync_api import Page, expect

from support_processes import PATIENCE_S

PATIENCE_MS = PATIENCE_S * 1000
_CANDLES = "() => document.querySelector('.cp-product')?.chart?.candles.length > 30"
_SHOWN = """(() => {
    const { chart } = document.querySelector('.cp-product');
    return chart.shown().map(place => chart.candles.times[place]);
})()"""


def restart(page: Page, system: Any) -> None:
    page.evaluate("window.isSame = true")
    system.server.popen.send_signal(signal.SIGTERM)
    assert system.server.popen.wait(PATIENCE_S) == 0
    state_is(page, "disconnected")
    system.start_server()
    expect(page.locator("#cp-state")).to_have_attribute("data-state", "live", timeout=PATIENCE_MS)
    page.wait_for_timeout(2000)  # whoever would reload the page has had the time
    assert page.evaluate("window.isSame")


def forgive(visitor: Any) -> None:
    """The browser itself says that nobody answered, and that a trial is not there any more."""
    told = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "404 (Not Found)")
    visitor.errors[:] = [error for error in visitor.errors if not any(one in error for one in told)]


def test_a_restart_keeps_where_a_viewer_looks(visitor: Any, system: Any) -> None:
    page = visitor.open("/product/BTC-USD?grain=1s")
    page.wait_for_function(_CANDLES, timeout=PATIENCE_MS)
    for key in (*["+"] * 14, "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    expect(page.locator("#cp-latest")).to_be_visible()
    before = page.evaluate(_SHOWN)
    restart(page, system)
    assert page.evaluate(_SHOWN) == before
    forgive(visitor)


def test_a_restart_keeps_what_is_written_and_goes_on_with_what_was_begun(visitor: Any, system: Any) -> None:
    page = visitor.open("/alerts?view=try")
    form = page.locator("form.cp-form")
    form.locator("[name=threshold_pct]").fill("0.123")
    form.locator("[name=name]").fill("mine")
    form.get_by_role("button", name="Try it").click()
    restart(page, system)
    expect(form.locator("[name=threshold_pct]")).to_have_value("0.123")
    expect(form.locator("[name=name]")).to_have_value("mine")
    expect(page.locator(".cp-found[data-found]")).to_be_visible(timeout=PATIENCE_MS)
    forgive(visitor)
