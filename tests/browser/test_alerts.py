"""Alerts and the pipeline of a running deployment: what is new shows by itself."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from support_processes import PATIENCE_S

Visit = Callable[..., Page]
PATIENCE_MS = PATIENCE_S * 1000
EPISODES = "[aria-label='Episodes'] tbody tr"


def test_an_alert_arrives_without_a_reload_and_on_top(visit: Visit) -> None:
    page = visit("/alerts")
    expect(page.locator(EPISODES).first).to_be_visible(timeout=PATIENCE_MS)  # the surge of the beginning
    known = page.evaluate(f'[...document.querySelectorAll("{EPISODES}")].map(row => row.dataset.key)')
    page.evaluate("window.isSame = true")
    page.wait_for_function(
        f'known => [...document.querySelectorAll("{EPISODES}")].some(row => !known.includes(row.dataset.key))',
        arg=known,
        timeout=PATIENCE_MS,
    )
    assert page.evaluate("window.isSame")
    newest = page.locator(EPISODES).first
    expect(newest.locator("[data-key=state]")).to_have_text("Open")
    assert newest.get_attribute("data-key") not in known
    newest.click()
    expect(page.get_by_role("region", name="Evidence")).to_contain_text("Trigger")


def test_the_pipeline_shows_its_processes_and_what_goes_through(visit: Visit) -> None:
    page = visit("/pipeline")
    processes = page.get_by_role("table", name="Processes", exact=True).locator("tbody tr")
    for name in ("producer", "processing", "dashboard"):
        row = processes.filter(has=page.get_by_text(name, exact=True))
        expect(row).to_contain_text("Running")
    for label in ("Messages/s", "Trades/s", "Receive → silver p99"):
        expect(page.locator(".cp-figure", has_text=label).locator("b")).not_to_have_text("–", timeout=PATIENCE_MS)
    for label in ("Latency of each hop", "Trades a minute", "Volume of the last 24 hours"):
        expect(page.get_by_role("region", name=label).locator("canvas")).to_be_visible(timeout=PATIENCE_MS)
