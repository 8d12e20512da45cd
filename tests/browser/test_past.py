"""Alerts, completeness and pipeline of a lake of the past: holes, crashes, a quarantine; nothing new comes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from browser_pages import MINUS, list_is_read, served
from playwright.sync_api import Browser, Page, expect

import dashboard_lake
from support import START, Lake, message
from support_processes import PATIENCE_S, Processes, wait_until

Visit = Callable[..., Page]
PATIENCE_MS = PATIENCE_S * 1000
NASTY = (
    b'{"type":"match","trade_id":1031,"note":"<img src=x onerror=\'window.hacked=1\'><script>window.hacked=1</script>"}'
)
"""Its id lies in the hole of `dashboard_lake`."""


@pytest.fixture(scope="module")
def system(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server over that lake, in the place of the running deployment."""
    folder = tmp_path_factory.mktemp("past")
    lake = Lake(folder / "lake")
    dashboard_lake.fill(lake)
    lake.take_in([message(NASTY, key="BTC-USD", received=START)])
    lake.close()
    with served(folder) as server:
        yield server


def figure(page: Page, label: str):
    return page.locator(".cp-figure", has=page.get_by_text(label, exact=True)).locator("b")


def rows(page: Page, label: str):
    return page.get_by_role("table", name=label, exact=True).locator("tbody tr")


def test_the_holes_of_a_lake_appear_with_what_to_do(visit: Visit) -> None:
    page = visit("/completeness")
    expect(figure(page, "Missing")).to_have_text("3")
    expect(figure(page, "Healed")).to_have_text("1")
    expect(figure(page, "Conflicts")).to_have_text("0")
    expect(figure(page, "Complete products")).to_have_text("1 of 2")
    hole = rows(page, "Holes")
    expect(hole).to_have_count(1)
    expect(hole).to_contain_text(re.compile(r"BTC-USD.*1.030.*1.032.*3"))
    expect(page.locator(".cp-command code").nth(0)).to_have_text(
        re.compile(r"^cryptopulse audit --lake \S+ --product BTC-USD$")
    )
    expect(page.locator(".cp-command code").nth(1)).to_have_text(
        re.compile(r"^cryptopulse backfill BTC-USD --from 2026-07-07T12:00 --to 2026-07-07T14:00 --lake \S+$")
    )


def test_an_id_that_was_refused_leads_to_its_message_in_quarantine(visit: Visit) -> None:
    page = visit("/completeness")
    verdict = page.locator(".cp-verdict")
    expect(verdict).to_contain_text("1 of them was received and refused: a backfill does not help")
    rows(page, "Holes").first.click()
    details = page.get_by_role("region", name="Details")
    expect(details.locator(".cp-story")).to_contain_text(
        "Received and refused: 1\u202f031; see silver.quarantined_messages"
    )
    expect(details.get_by_role("link", name="Show the refused message")).to_be_visible()
    verdict.get_by_role("link").click()
    page.wait_for_url("**/pipeline#message-*")
    expect(page.locator(".cp-message")).to_contain_text("1031")


def test_the_grid_is_moved_in_by_keyboard_and_tells_the_ids_of_an_hour(visit: Visit) -> None:
    page = visit("/completeness")
    missing = page.locator("td[data-cell='missing']")
    expect(missing).to_have_count(1)
    expect(page.locator("td[data-cell='healed']")).to_have_count(1)
    missing.click()
    told = page.locator(".cp-told")
    expect(told).to_have_text(re.compile(r"^BTC-USD, 2026-07-07 1\d:00–1\d:00 UTC: .* 3 missing\.$"))
    before = told.inner_text()
    page.keyboard.press("ArrowRight")
    expect(told).to_have_text(re.compile("BTC-USD.*none missing"))
    page.keyboard.press("ArrowLeft")
    expect(told).to_have_text(before)
    page.get_by_role("button", name="60 days").click()
    expect(page.locator(".cp-grid tbody tr").first.locator("td")).to_have_count(2)


def test_a_message_that_could_not_be_read_is_shown_as_text_and_nothing_of_it_runs(visit: Visit) -> None:
    page = visit("/pipeline")
    message_row = rows(page, "Quarantined messages")
    expect(message_row).to_contain_text("<img src=x onerror=")
    message_row.click()
    expect(page.locator(".cp-message")).to_contain_text(NASTY.decode())
    assert page.locator("main img, main script").count() == 0
    assert page.evaluate("window.hacked") is None
    expect(figure(page, "Quarantined")).to_have_text("1")


def test_a_pipeline_of_another_machine_is_said_to_be_there(visit: Visit) -> None:
    page = visit("/pipeline")
    expect(page.get_by_text("The pipeline runs elsewhere")).to_be_visible()
    expect(rows(page, "Freshness")).to_have_count(4)
    expect(page.locator("[aria-label='Latency of each hop'] canvas")).to_be_visible()


def test_an_episode_shows_the_trades_that_prove_it_and_its_address_leads_back_to_it(visit: Visit) -> None:
    page = visit("/alerts")
    page.locator("tr[data-key*='FLASH_CRASH']").first.click()
    evidence = page.get_by_role("region", name="Evidence")
    expect(evidence.locator("h2")).to_have_text(re.compile(f"^Flash crash of BTC-USD {MINUS}3"))
    proof = rows(page, "Trades that prove it")
    for role in ("Start", "Trigger", "Lowest"):
        expect(proof.filter(has_text=role)).to_have_count(1)
    expect(evidence.locator("canvas")).to_be_visible()
    page.reload()
    expect(evidence.locator("h2")).to_contain_text("Flash crash of BTC-USD")
    page.keyboard.press("Escape")
    expect(evidence).to_be_hidden()


def test_filters_choose_episodes_and_stand_in_the_address(visit: Visit) -> None:
    page = visit("/alerts")
    episodes = rows(page, "Episodes")
    list_is_read(page)
    all_of_them = episodes.count()
    page.get_by_label("Type").select_option("PRICE_SURGE")
    expect(page.locator("tr[data-key*='FLASH_CRASH']")).to_have_count(0)
    assert 0 < episodes.count() < all_of_them
    page.reload()
    expect(page.get_by_label("Type")).to_have_value("PRICE_SURGE")
    expect(page.locator("tr[data-key*='FLASH_CRASH']")).to_have_count(0)
    page.get_by_label("Product", exact=True).fill("eth")
    expect(page.get_by_text("Nothing matches.")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(episodes).to_have_count(all_of_them)


def test_a_lower_threshold_shows_more_episodes_and_marks_them_on_the_price(visit: Visit) -> None:
    page = visit("/alerts")
    page.get_by_role("button", name="Try a rule").click()
    found = []
    for threshold in ("3.05", "1"):
        page.get_by_label("Threshold").fill(threshold)
        page.evaluate("delete document.querySelector('.cp-found').dataset.found")
        page.get_by_label("Threshold").press("Enter")
        page.wait_for_selector(".cp-found[data-found]", timeout=PATIENCE_MS)
        found.append(int(page.get_attribute(".cp-found", "data-found") or 0))
        expect(rows(page, "Episodes of the trial")).to_have_count(found[-1])
    assert 0 < found[0] < found[1]
    expect(page.locator(".cp-found canvas")).to_be_visible()


def test_a_bad_rule_is_refused_in_words_beside_its_field(visit: Visit, visitor) -> None:
    page = visit("/alerts?view=try")
    page.get_by_label("Threshold").fill("-1")
    page.get_by_label("Look-back").fill("2h")
    page.get_by_role("button", name="Try it").click()
    expect(
        page.get_by_text("Threshold: a number of percent above 0, with at most 4 decimals, as in 0.5.")
    ).to_be_visible()
    expect(page.get_by_text("Look-back: whole seconds, from 1 to 3600.")).to_be_visible()
    expect(page.get_by_label("Threshold")).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Threshold")).to_be_focused()
    visitor.errors = [error for error in visitor.errors if "422" not in error]  # the browser notes the refusal


@pytest.mark.parametrize("path", ["/alerts", "/alerts?view=try", "/completeness", "/pipeline"])
def test_a_page_fits_a_phone(visit: Visit, path: str) -> None:
    page = visit(path, viewport={"width": 390, "height": 844})
    expect(page.locator(".cp-tabs")).to_be_visible()
    page.wait_for_timeout(1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_empty_lake_is_neither_complete_nor_incomplete(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    processes = Processes(tmp_path_factory.mktemp("empty"))
    server = processes.start("serve", "--lake", "lake", "--port", "0")
    url = wait_until(lambda: re.search(r"http://[\d.:]+", server.said), "the server says where it is")[0]
    page = browser.new_page()
    page.goto(f"{url}/completeness", timeout=PATIENCE_MS)
    expect(page.locator(".cp-verdict")).to_contain_text("No trades yet")
    expect(figure(page, "Held")).to_have_text("–")
    page.goto(f"{url}/pipeline")
    expect(page.get_by_text("There are no trades yet.")).to_have_count(6)
    page.close()
    processes.close()
