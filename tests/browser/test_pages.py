"""The frame of the pages and the market, as a person uses them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from browser_pages import MINUS, prices, shown_symbols, sort_by, state_is
from playwright.sync_api import Page, expect

Visit = Callable[..., Page]


def test_the_market_shows_every_product_with_its_price_in_its_own_ticks(visit: Visit, system) -> None:
    page = visit("/")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(len(system.exchange.products))
    state_is(page, "live")
    assert sorted(shown_symbols(page)) == sorted(system.exchange.products)
    price = page.locator("tr[data-key='BTC-USD'] td[data-key='price']")
    expect(price).to_have_text(re.compile(r"^\d{2}\u202f\d{3}\.\d{2}$"))
    expect(page.locator("tr[data-key='SHIB-USD'] td[data-key='price']")).to_have_text(re.compile(r"^0\.0000\d+$"))
    expect(page.locator("tr[data-key='BTC-USD'] td[data-key='notional_24h']")).to_have_text(re.compile(r"\u202f[KMB]$"))


def test_prices_change_without_a_reload(visit: Visit) -> None:
    page = visit("/")
    expect(page.locator("tbody tr").first).to_be_visible()
    page.evaluate("window.isSame = true")
    first = prices(page)
    page.wait_for_function(
        "before => document.querySelector('tbody').innerText !== before", arg=page.inner_text("tbody")
    )
    page.wait_for_timeout(1500)
    moved = [name for name, price in prices(page).items() if first[name] != price]
    assert len(moved) > len(first) / 2
    assert page.evaluate("window.isSame")


def test_typing_in_the_filter_leaves_what_matches_and_says_how_many(visit: Visit, system) -> None:
    page = visit("/")
    expect(page.locator("tbody tr").first).to_be_visible()
    page.keyboard.press("f")
    page.keyboard.type("sh")
    expect(page.locator("tbody tr")).to_have_count(1)
    assert shown_symbols(page) == ["SHIB-USD"]
    expect(page.locator("#cp-shown")).to_have_text(f"1 of {len(system.exchange.products)}")
    page.reload()  # it stands in the address
    expect(page.locator("tbody tr")).to_have_count(1)
    page.locator("#cp-filter").fill("no such thing")
    expect(page.get_by_text("Nothing matches.")).to_be_visible()
    page.locator("#cp-filter").press("Escape")
    expect(page.locator("tbody tr")).to_have_count(len(system.exchange.products))


def test_a_click_on_a_heading_sorts_and_the_next_page_remembers(visit: Visit) -> None:
    page = visit("/")
    expect(page.locator("tbody tr").first).to_be_visible()
    sort_by(page, "Product")
    assert shown_symbols(page) == sorted(shown_symbols(page))
    sort_by(page, "Product")
    assert shown_symbols(page) == sorted(shown_symbols(page), reverse=True)
    expect(page.locator("th[data-key='symbol']")).to_have_attribute("aria-sort", "descending")
    page.reload()
    expect(page.locator("tbody tr").first).to_be_visible()
    assert shown_symbols(page) == sorted(shown_symbols(page), reverse=True)
    page.locator("tbody").hover()  # rows under the pointer stay where they are
    sort_by(page, "Last")
    values = [float(price.replace("\u202f", "")) for price in prices(page).values()]
    assert values[0] == max(values)


def test_a_row_leads_to_its_product_by_click_and_by_keyboard(visit: Visit) -> None:
    page = visit("/")
    row = page.locator("tr[data-key='ETH-USD']")
    row.locator("td[data-key='change_5m']").click()
    page.wait_for_url("**/product/ETH-USD*")
    page.go_back()
    expect(page.locator("tbody tr").first).to_be_visible()
    page.keyboard.press("f")
    page.keyboard.type("BTC")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    expect(page.locator("tr[data-key='BTC-USD']")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/product/BTC-USD*")


def test_arrow_keys_move_along_the_rows(visit: Visit) -> None:
    page = visit("/")
    expect(page.locator("tbody tr").first).to_be_visible()
    sort_by(page, "Product")
    page.locator("tbody tr").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator("tbody tr").nth(2)).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator("tbody tr").last).to_be_focused()


def test_the_search_finds_a_product_from_any_page(visit: Visit) -> None:
    page = visit("/product/BTC-USD")
    state_is(page, "live")
    page.keyboard.press("/")
    page.keyboard.type("do")
    expect(page.locator("li[role=option]")).to_have_text("DOGE-USD")
    page.keyboard.press("Enter")
    page.wait_for_url("**/product/DOGE-USD*")


def test_the_first_tab_leads_past_the_header_and_focus_is_seen(visit: Visit) -> None:
    page = visit("/")
    expect(page.locator("tbody tr").first).to_be_visible()
    page.keyboard.press("Tab")
    skip = page.get_by_text("Skip to content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator("#cp-filter")).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_kept(visit: Visit) -> None:
    page = visit("/", color_scheme="light")
    html = page.locator("html")
    expect(html).to_have_attribute("data-theme", "light")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    expect(html).to_have_attribute("data-theme", "dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    page.keyboard.press("t")  # dark
    page.locator("#cp-theme").click()  # light
    expect(html).to_have_attribute("data-theme", "light")
    page.reload()
    expect(html).to_have_attribute("data-theme", "light")
    expect(page.locator("#cp-theme")).to_have_attribute("data-choice", "light")


def test_times_are_utc_or_local_as_is_chosen(visit: Visit) -> None:
    page = visit("/", timezone_id="Asia/Tokyo")
    newest = page.locator(".cp-figure", has_text="Newest trade").locator("b")
    expect(newest).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    hour = int(newest.inner_text()[:2])
    assert (datetime.now(UTC).hour - hour) % 24 in (0, 1)
    page.keyboard.press("u")
    expect(page.locator("#cp-zone")).to_have_text("GMT+9")
    page.wait_for_function(
        "was => Number(document.querySelectorAll('.cp-figure b')[5].textContent.slice(0, 2)) !== was", arg=hour
    )
    assert (int(newest.inner_text()[:2]) - hour) % 24 in (9, 10)


def test_the_list_of_shortcuts_opens_and_closes(visit: Visit) -> None:
    page = visit("/")
    expect(page.locator("tbody tr").first).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Filter the table")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("path", ["/", "/product/BTC-USD"])
def test_on_a_phone_nothing_is_wider_than_the_screen(visit: Visit, path: str) -> None:
    page = visit(path, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    expect(page.locator("tbody tr, canvas").first).to_be_visible()
    state_is(page, "live")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.locator(".cp-tabs")).to_be_visible()
    expect(page.locator(".cp-nav")).to_be_hidden()


def test_minus_and_plus_stand_beside_the_colours(visit: Visit) -> None:
    page = visit("/")
    expect(page.locator("tbody tr").first).to_be_visible()
    page.wait_for_function(
        "document.querySelector('td[data-direction=up]') && document.querySelector('td[data-direction=down]')",
        timeout=90_000,  # no change is known before a minute is over
    )
    texts = page.evaluate(
        "[...document.querySelectorAll('td[data-direction]')].map(cell => [cell.dataset.direction, cell.textContent])"
    )
    signs = {"up": "+", "down": MINUS}
    assert all(text.startswith(signs[way]) for way, text in texts if way in signs)
