"""The page of a product, and what pages do when the server or the pipeline goes and comes back."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable
from itertools import islice
from typing import Any

from browser_pages import state_is
from playwright.sync_api import Page, expect

from support_processes import PATIENCE_S

Visit = Callable[..., Page]
PATIENCE_MS = PATIENCE_S * 1000


def chart(page: Page, expression: str) -> Any:
    """A value of the chart, which JavaScript calls `chart`."""
    return page.evaluate(
        f"(() => {{ const chart = document.querySelector('.cp-product').chart; return {expression} }})()"
    )


def wait_for_candles(page: Page, count: int = 2) -> None:
    page.wait_for_function(
        "count => document.querySelector('.cp-product')?.chart?.candles.length >= count", arg=count, timeout=PATIENCE_MS
    )


def test_a_product_shows_its_price_its_figures_and_its_candles(visit: Visit) -> None:
    page = visit("/product/BTC-USD?grain=1s")
    wait_for_candles(page)
    expect(page.locator("h1")).to_have_text("BTC-USD")
    expect(page.locator(".cp-price")).to_have_text(re.compile(r"^\d\d\u202f\d{3}\.\d\d$"))
    expect(page).to_have_title(re.compile(r"^\d\d\u202f\d{3}\.\d\d BTC-USD · CryptoPulse$"))
    for label in ("High 24 h", "Volume 24 h, BTC", "Average 1 h", "Buyers 1 h"):
        expect(page.locator(".cp-figure", has_text=label).locator("b")).not_to_have_text("–")
    for part in ("O ", "VWAP", "Avg 1 h", "Bought"):
        expect(page.locator(".cp-legend")).to_contain_text(part)
    drawn = chart(page, "chart.chart.getOption().series.map(series => series.data.length)")
    assert len(drawn) == 6  # candles, two averages, bought, sold, pressure
    assert min(drawn) >= 2
    last = chart(page, "chart.candles.rows[chart.candles.length - 1]")
    assert last["low"] <= min(last["open"], last["close"]) <= max(last["open"], last["close"]) <= last["high"]
    assert abs(last["buy_volume"] + last["sell_volume"] - last["volume"]) < 1e-6


def test_candles_come_without_a_reload_and_every_grain_can_be_chosen(visit: Visit) -> None:
    page = visit("/product/ETH-USD?grain=1s")
    wait_for_candles(page)
    before = chart(page, "chart.candles.length")
    page.wait_for_function(
        "before => document.querySelector('.cp-product').chart.candles.length >= before + 2", arg=before
    )
    for place, grain in enumerate(("1s", "5s", "15s", "1m", "5m", "15m", "1h"), 1):
        page.keyboard.press(str(place))
        expect(page.get_by_role("button", name=grain, exact=True)).to_have_attribute("aria-pressed", "true")
        wait_for_candles(page, 1)
        assert page.url.endswith(f"?grain={grain}")
    page.get_by_role("button", name="5s", exact=True).click()
    page.reload()
    expect(page.get_by_role("button", name="5s", exact=True)).to_have_attribute("aria-pressed", "true")


def test_bars_by_activity_end_at_their_size_grow_and_are_in_the_address(visit: Visit) -> None:
    page = visit("/product/BTC-USD?grain=1s")
    wait_for_candles(page)
    expect(page.locator(".cp-figure", has_text="Trades 24 h").locator("b")).not_to_have_text("–")
    page.get_by_label("Bars end by").select_option("trades")
    size = page.get_by_label("Size of a bar")
    expect(size).to_have_value(re.compile(r"^[1-9]0*$"))  # from the figures of the day
    size.fill("3")
    size.press("Enter")
    wait_for_candles(page, 10)
    assert page.url.endswith("?grain=trades:3")
    expect(page.get_by_role("button", name="1s", exact=True)).to_have_attribute("aria-pressed", "false")
    for more in (0, 2):  # a trade that comes late moves the bars after it: then they are soon read again
        page.wait_for_function(
            """least => {
                const { rows } = document.querySelector('.cp-product').chart.candles;
                return rows.length >= least && rows.slice(0, -1).every((row) => row.trade_count === 3);
            }""",
            arg=chart(page, "chart.candles.length") + more,
            timeout=PATIENCE_MS,
        )
    times = chart(page, "chart.candles.times")
    assert times == sorted(set(times))
    page.reload()
    expect(page.get_by_label("Size of a bar")).to_have_value("3")
    wait_for_candles(page, 10)
    size.fill("2.5")
    size.press("Enter")
    expect(page.locator("[name=size]:invalid")).to_have_value("2.5")
    assert page.url.endswith("?grain=trades:3")
    page.get_by_label("Bars end by").select_option("By activity …")
    expect(page.get_by_role("button", name="1m", exact=True)).to_have_attribute("aria-pressed", "true")


def test_zoom_and_pan_survive_what_comes(visit: Visit) -> None:
    page = visit("/product/BTC-USD?grain=1s")
    wait_for_candles(page, 30)
    box = page.locator(".cp-drawing").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + 150)
    for _ in range(3):
        page.mouse.wheel(0, -240)
        page.wait_for_timeout(100)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 3 + 120, box["y"] + 150, steps=6)
    page.mouse.up()
    expect(page.locator("#cp-latest")).to_be_visible()
    shown = "chart.shown().map(place => chart.candles.times[place])"
    before, count = chart(page, shown), chart(page, "chart.candles.length")
    page.wait_for_function(
        "count => document.querySelector('.cp-product').chart.candles.length >= count + 3", arg=count
    )
    page.wait_for_timeout(400)
    assert chart(page, shown) == before
    drawn = chart(page, "chart.chart.getOption().dataZoom[0]")
    assert [chart(page, f"chart.candles.times[{drawn[end]}]") for end in ("startValue", "endValue")] == before
    page.keyboard.press("0")
    expect(page.locator("#cp-latest")).to_be_hidden()
    assert chart(page, "chart.shown()[1] === chart.candles.length - 1")


def test_keys_move_and_zoom_the_chart(visit: Visit) -> None:
    page = visit("/product/BTC-USD?grain=1s")
    wait_for_candles(page, 20)
    for _ in range(6):
        page.keyboard.press("+")
    span = chart(page, "chart.span")
    page.keyboard.press("-")
    assert chart(page, "chart.span") > span
    for _ in range(6):
        page.keyboard.press("+")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#cp-latest")).to_be_visible()
    page.locator("#cp-latest").click()
    expect(page.locator("#cp-latest")).to_be_hidden()


def test_lines_can_be_taken_off_the_chart(visit: Visit) -> None:
    page = visit("/product/BTC-USD?grain=1s")
    wait_for_candles(page)
    page.get_by_role("button", name="VWAP").click()
    page.wait_for_function("document.querySelector('.cp-product').chart.chart.getOption().series[2].data.length === 0")
    assert chart(page, "chart.chart.getOption().series[1].data.length") > 0


def test_an_alert_is_marked_on_the_chart_and_leads_there(visit: Visit) -> None:
    page = visit("/product/BTC-USD?grain=1s")
    wait_for_candles(page, 10)
    alert = page.locator(".cp-alerts button").first
    expect(alert).to_contain_text("Price surge", timeout=PATIENCE_MS)
    marks = "document.querySelector('.cp-product').chart.chart.getOption().series[0]"
    assert page.evaluate(f"{marks}.markArea.data.length") == 0
    alert.click()
    page.wait_for_function(f"{marks}.markArea.data.length === 1")
    page.wait_for_function(f"{marks}.markPoint.data.length > 0")
    opened = chart(page, "chart.alerts[0].opened_at / 1e6")
    first, last = chart(page, "chart.shown().map(place => chart.candles.times[place])")
    assert first - 1 <= opened <= last + 1


def test_an_alert_arrives_without_a_reload(visit: Visit, system) -> None:
    page = visit("/")
    expect(page.locator("tbody tr").first).to_be_visible()
    held = page.evaluate(
        """async () => {
            const { subscribe } = await import(document.querySelector('link[rel=modulepreload][href*=live]').href);
            const rows = await new Promise((done) => subscribe('alerts', (message) => done(message.rows)));
            return rows.map((row) => [row.alert_type, row.symbol]);
        }"""
    )
    to_come = Counter(system.episodes) - Counter(map(tuple, held))
    rounds = max(to_come.values())
    _, (kind, coming) = islice((each for each in system.episodes if to_come[each] == rounds), 2)  # not at once
    words = {"FLASH_CRASH": "Flash crash", "PRICE_SURGE": "Price surge"}[kind]
    page.goto(f"{system.url}/product/{coming}")
    alerts = page.locator(".cp-alerts")
    expect(alerts.locator("button, .cp-empty").first).to_be_visible()
    of_its_kind = alerts.locator("button", has_text=words)
    expect(of_its_kind).to_have_count(held.count([kind, coming]))
    page.evaluate("window.isSame = true")
    expect(of_its_kind).to_have_count(held.count([kind, coming]) + 1, timeout=2 * PATIENCE_MS)
    assert page.evaluate("window.isSame")


def test_a_product_that_is_not_there_is_said(visit: Visit) -> None:
    page = visit("/product/NOPE-USD")
    expect(page.get_by_text("There is no product NOPE-USD in this lake.")).to_be_visible()


def test_a_pipeline_that_stands_still_is_told_by_age_and_seen_to_go_on(visit: Visit, system) -> None:
    page = visit("/")
    state_is(page, "live")
    system.pipeline.stop()
    expect(page.locator("#cp-state")).to_have_attribute("data-state", "stale", timeout=PATIENCE_MS)
    expect(page.locator("#cp-state")).to_contain_text(re.compile(r"Stale 1\d\u202fs"))
    expect(page.locator("tbody tr").first).to_be_visible()  # old, but not gone
    system.start_pipeline()
    expect(page.locator("#cp-state")).to_have_attribute("data-state", "live", timeout=PATIENCE_MS)


def test_a_restart_of_the_server_is_shown_and_got_over(visitor, system) -> None:
    page = visitor.open("/product/BTC-USD?grain=5s")
    wait_for_candles(page)
    system.server.popen.send_signal(signal.SIGKILL)
    system.server.popen.wait()
    state_is(page, "disconnected")
    expect(page.locator(".cp-price")).not_to_have_text("–")  # what was known stays
    system.start_server()
    expect(page.locator("#cp-state")).to_have_attribute("data-state", "live", timeout=PATIENCE_MS)
    wait_for_candles(page)
    expect(page.get_by_role("button", name="5s", exact=True)).to_have_attribute("aria-pressed", "true")
    price = page.locator(".cp-price").inner_text()
    expect(page.locator(".cp-price")).not_to_have_text(price)
    # The browser itself says that nobody answered, or that an answer was cut off.
    told = ("ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_CONTENT_LENGTH_MISMATCH")
    assert [error for error in visitor.errors if not any(name in error for name in told)] == []
    visitor.errors.clear()
