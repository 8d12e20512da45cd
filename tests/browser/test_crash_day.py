"""The pages on a simulated crash day of long ago, as one uses them who wants to know what happened."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from browser_pages import list_is_read
from playwright.sync_api import Locator, Page, Route, WebSocketRoute, expect

import cryptopulse
from support_processes import PATIENCE_S, Processes, wait_until

Visit = Callable[..., Page]
PATIENCE_MS = PATIENCE_S * 1000
TRADES = 100_000
PAGES = ["/", "/product/BTC-USD", "/alerts", "/alerts?view=try", "/completeness", "/pipeline"]


@pytest.fixture(scope="module")
def system(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server over that day, and what the recording and the tables hold of it."""
    processes = Processes(tmp_path_factory.mktemp("crash_day"))
    told = processes.call("simulate", "--crash-day", "day.jsonl", "--trades", str(TRADES), "--json")
    assert told.returncode == 0, told.stderr
    replayed = processes.call("replay", "day.jsonl", "--lake", "lake")
    assert replayed.returncode == 0, replayed.stderr
    server = processes.start("serve", "--lake", "lake", "--port", "0")
    url = wait_until(lambda: re.search(r"http://[\d.:]+", server.said), "the server says where it is")[0]
    wait_until(lambda: httpx.get(url, trust_env=False, timeout=10).status_code == 200, "the server answers")
    with cryptopulse.open(processes.folder / "lake") as lake:
        rows = lake.alerts().reversed().arrow().to_pylist()
        newest = lake.trades(columns=["event_time"]).reversed().limit(1).arrow()["event_time"][0].as_py()
    yield SimpleNamespace(url=url, summary=json.loads(told.stdout), alerts=rows, newest=newest)
    processes.close()


def grouped(number: int) -> str:
    """As the pages write it."""
    return f"{number:,}".replace(",", "\u202f")


def figure(page: Page, label: str) -> Locator:
    return page.locator(".cp-figure", has=page.get_by_text(label, exact=True)).locator("b")


def rows(page: Page, label: str) -> Locator:
    return page.get_by_role("table", name=label, exact=True).locator("tbody tr")


def chart(page: Page, expression: str) -> Any:
    """A value of the chart, which JavaScript calls `chart`."""
    return page.evaluate(
        f"(() => {{ const chart = document.querySelector('.cp-product').chart; return {expression} }})()"
    )


def shown(page: Page) -> tuple[datetime, datetime]:
    """The times of the first and the last candle that are seen."""
    first, last = chart(page, "chart.shown().map(place => chart.candles.times[place])")
    return datetime.fromtimestamp(first, UTC), datetime.fromtimestamp(last, UTC)


def texts(page: Page) -> list[str]:
    """All that is written in the chart."""
    found: list[str] = chart(
        page,
        """chart.chart.getZr().storage.getDisplayList(true)
            .filter(one => one.type === 'tspan').map(one => one.style.text)""",
    )
    return found


def wait_for_candles(page: Page) -> None:
    page.wait_for_function(
        "document.querySelector('.cp-product')?.chart?.candles.length > 1 "
        "&& !document.querySelector('.cp-product').chart.timeline.loading",
        timeout=PATIENCE_MS,
    )
    page.wait_for_timeout(400)  # it is drawn, and its time stands in the address


def test_the_evidence_of_an_episode_that_deepened_holds_the_trade_that_opened_it(visit: Visit, system: Any) -> None:
    moved = next(one for one in system.alerts if one["opened_at"] < one["window_start"])
    page = visit(f"/alerts?product={moved['symbol']}#{moved['alert_id']}")
    proof = rows(page, "Trades that prove it")
    expect(proof.filter(has_text="Trigger").first).to_contain_text(grouped(moved["trigger_trade_id"]))
    expect(proof.filter(has_text="Start").first).to_contain_text(grouped(moved["start_trade_id"]))


@pytest.mark.parametrize("product", ["ZILCH-USD", "PEPE-USD", "CRV-USD", "BTC-USD"])
def test_the_line_of_the_last_price_stands_at_the_price(visit: Visit, product: str) -> None:
    page = visit(f"/product/{product}?grain=1m")
    wait_for_candles(page)
    expect(page.locator(".cp-price")).not_to_have_text("–")
    lines = chart(
        page,
        """chart.chart.getZr().storage.getDisplayList(true)
            .filter(({ shape, style }) => style.lineDash === 'dotted' && shape?.y1 === shape?.y2 && shape.x2 > shape.x1)
            .map(({ shape }) => shape.y1)""",
    )
    price = chart(page, "chart.chart.convertToPixel({ yAxisIndex: 0 }, chart.candles.rows.at(-1).close)")
    assert lines == [pytest.approx(price, abs=1)]
    assert page.locator(".cp-price").inner_text() in texts(page)


def test_a_time_in_the_address_is_shown_at_every_grain(visit: Visit) -> None:
    for grain in ("1s", "5s", "15s", "1m"):
        page = visit(f"/product/BTC-USD?at=2025-10-10T21:15&grain={grain}")
        wait_for_candles(page)
        first, last = shown(page)
        assert first < datetime(2025, 10, 10, 21, 15, tzinfo=UTC) < last
        expect(page.locator("#cp-latest")).to_be_visible()
        assert f"grain={grain}" in page.url
    page.locator("#cp-latest").click()
    expect(page.locator("#cp-latest")).to_be_hidden()
    expect(page).to_have_url(re.compile(r"/product/BTC-USD\?grain=1m$"))


def test_what_is_no_time_in_the_address_is_said(visit: Visit) -> None:
    page = visit("/product/BTC-USD?at=yesterday")
    expect(page.locator(".cp-said")).to_have_text("yesterday is not a time (expected as in 2025-10-10T21:15, UTC).")
    wait_for_candles(page)


def test_one_goes_back_by_hand_to_the_first_candle_without_a_gap_and_returns(visit: Visit) -> None:
    page = visit("/product/BTC-USD?grain=15s")
    wait_for_candles(page)
    for _ in range(12):  # zoomed out, a step is long
        page.keyboard.press("-")
    page.wait_for_function(
        """() => {
            const { chart } = document.querySelector('.cp-product');
            if (!chart.timeline.loading) chart.move(-0.5);
            return chart.timeline.hasOldest && chart.shown()[0] === 0;
        }""",
        timeout=PATIENCE_MS,
        polling=100,
    )
    page.wait_for_timeout(400)
    assert shown(page)[0] < datetime(2025, 10, 10, 0, 5, tzinfo=UTC)
    times = chart(page, "chart.candles.times")
    assert times == sorted(set(times))
    reloaded = visit(page.url.removeprefix(page.evaluate("location.origin")))
    wait_for_candles(reloaded)
    assert chart(reloaded, "chart.span") == chart(page, "chart.span")
    first, last = shown(reloaded)
    assert first < datetime.fromtimestamp(chart(page, "chart.middle()"), UTC) < last
    page.keyboard.press("0")
    expect(page.locator("#cp-latest")).to_be_hidden()
    assert chart(page, "chart.shown()[1] === chart.candles.length - 1 && chart.timeline.isLive")


def test_one_jumps_to_a_date_and_is_told_when_nothing_is_there(visit: Visit) -> None:
    page = visit("/product/BTC-USD?grain=1s")
    wait_for_candles(page)
    page.keyboard.press("d")
    expect(page.get_by_label("Date, UTC")).to_be_focused()
    page.get_by_label("Date, UTC").fill("2025-10-10")
    page.get_by_label("Time, UTC").fill("21:20:30")
    page.keyboard.press("Enter")
    page.wait_for_url("**at=2025-10-10T21:20*")
    first, last = shown(page)
    assert first < datetime(2025, 10, 10, 21, 20, 30, tzinfo=UTC) < last
    page.get_by_label("Date, UTC").fill("2024-01-01")
    page.get_by_label("Time, UTC").fill("")
    page.keyboard.press("Enter")
    expect(page.locator(".cp-said")).to_have_text(
        "No trade is stored at 2024-01-01 00:00:00 UTC; the candles next to it are shown."
    )
    assert shown(page)[0] < datetime(2025, 10, 10, 0, 5, tzinfo=UTC)


def test_one_goes_from_alert_to_alert_by_keys_from_what_is_seen_on(visit: Visit, system: Any) -> None:
    own = sorted((one for one in system.alerts if one["symbol"] == "ETH-USD"), key=lambda one: one["opened_at"])
    middle = len(own) // 2
    page = visit(f"/product/ETH-USD?grain=1s#{own[middle]['alert_id']}")
    wait_for_candles(page)
    for key, place in ((",", middle - 1), (",", middle - 2), (".", middle - 1)):
        page.keyboard.press(key)
        page.wait_for_function(
            "id => document.querySelector('.cp-product').chart.chosen === id", arg=own[place]["alert_id"]
        )
        wait_for_candles(page)
        first, last = shown(page)
        assert first <= own[place]["opened_at"] < last
    page.keyboard.press("0")
    expect(page.locator("#cp-latest")).to_be_hidden()
    page.get_by_role("button", name="‹ Alert").click()
    page.wait_for_function("id => document.querySelector('.cp-product').chart.chosen === id", arg=own[-1]["alert_id"])
    wait_for_candles(page)
    page.get_by_role("button", name="Alert ›").click()
    expect(page.locator(".cp-said")).to_have_text("There is no later alert of ETH-USD.")


@pytest.mark.parametrize("grain", ["1s", "1h"])
def test_a_click_on_any_alert_leads_there_and_marks_it_alone(visit: Visit, system: Any, grain: str) -> None:
    own = [one for one in system.alerts if one["symbol"] == "ETH-USD"]
    page = visit(f"/product/ETH-USD?grain={grain}")
    wait_for_candles(page)
    buttons = page.locator(".cp-alerts button")
    expect(buttons).to_have_count(len(own))
    areas = "chart.chart.getOption().series[0].markArea.data.map(area => area[0].name)"
    assert chart(page, areas) == []
    for place in (len(own) - 1, 0, len(own) // 2):
        buttons.nth(place).click()
        expect(buttons.nth(place)).to_have_attribute("aria-pressed", "true")
        wait_for_candles(page)
        first, last = shown(page)
        assert first <= own[place]["opened_at"] or grain == "1h"
        assert own[place]["opened_at"].timestamp() < last.timestamp() + 3600
        assert chart(page, areas) == [own[place]["alert_id"]]
        expect(page.locator(".cp-said")).to_be_hidden()


def test_the_link_of_the_evidence_leads_to_the_episode_in_the_chart(visit: Visit, system: Any) -> None:
    oldest = system.alerts[-1]
    page = visit(f"/alerts?product={oldest['symbol']}#{oldest['alert_id']}")
    page.get_by_role("link", name="Show in the product’s chart").click()
    page.wait_for_url("**/product/**")
    wait_for_candles(page)
    first, last = shown(page)
    assert first < oldest["opened_at"] < last
    page.wait_for_function("document.querySelector('.cp-product').chart.chosen !== null")
    expect(page.locator(".cp-alerts [aria-pressed=true]")).to_have_count(1)


@pytest.mark.parametrize("viewport", [{"width": 390, "height": 844}, {"width": 1440, "height": 900}])
def test_labels_of_alerts_cover_neither_each_other_nor_a_mark_nor_a_candle(visit: Visit, viewport: Any) -> None:
    page = visit("/product/BTC-USD?at=2025-10-10T22:30&grain=1m&candles=200", viewport=viewport)
    wait_for_candles(page)
    page.wait_for_function("document.querySelector('.cp-product').chart.alerts.length > 10")
    page.wait_for_timeout(400)

    def boxes(condition: str) -> list[list[float]]:
        return chart(
            page,
            f"""chart.chart.getZr().storage.getDisplayList(true).filter((one) => {condition}).map(one => {{
                const box = one.getBoundingRect().clone();
                const transform = one.getComputedTransform();
                if (transform) box.applyTransform(transform);
                return [box.x, box.y, box.x + box.width, box.y + box.height];
            }})""",
        )

    labels = boxes("one.type === 'tspan' && /^([+−]|Flash|Price).*%$/.test(one.style.text)")
    marks = boxes("one.shape?.symbolType === 'triangle'")
    candles = chart(
        page,
        """chart.candles.rows.slice(chart.shown()[0], chart.shown()[1] + 1).map((row, place) => {
            const x = chart.placeOf(chart.shown()[0] + place);
            const [top, bottom] = [row.high, row.low].map(at => chart.chart.convertToPixel({ yAxisIndex: 0 }, at));
            return [x, top, x, bottom];
        })""",
    )
    width, height = chart(page, "[chart.chart.getWidth(), chart.chart.getHeight()]")
    assert len(labels) >= 3
    assert len(marks) > len(labels)
    for left, top, right, bottom in labels:
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height
    slack = 2  # a text's box is higher than its letters
    for place, one in enumerate(labels):
        for other in [*labels[place + 1 :], *marks, *candles]:
            beside = one[2] <= other[0] + slack or other[2] <= one[0] + slack
            assert beside or one[3] <= other[1] + slack or other[3] <= one[1] + slack


def test_trades_that_are_older_than_their_commit_are_said_to_be(visit: Visit) -> None:
    page = visit("/")
    expect(page.locator("#cp-as-of")).to_be_visible()

    def as_if_late(socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()

        def on_message(text: str | bytes) -> None:
            messages = json.loads(text)
            for one in messages:
                if one["topic"] == "lake" and one.get("now_us"):
                    one |= {"now_us": one["clock_us"] - 720_500_000, "loaded_us": one["clock_us"]}
            socket.send(json.dumps(messages))

        server.on_message(on_message)

    page.route_web_socket("**/live", as_if_late)
    page.reload()
    text = page.locator("#cp-state span")
    expect(text).to_have_attribute("data-late", re.compile(r"^, trades 12\u202fmin old$"))
    expect(text).to_have_text("Live")
    expect(page.locator("#cp-as-of")).to_be_hidden()


def test_the_list_of_episodes_says_that_it_is_still_read(visit: Visit) -> None:
    page = visit("/")
    waiting: list[Route] = []

    def hold(route: Route) -> None:
        waiting.append(route)

    page.route("**/pages/episodes?*", hold)
    page.goto(page.evaluate("location.origin") + "/alerts")
    expect(rows(page, "Episodes").first).to_be_visible()  # the open ones
    assert {row.inner_text() for row in rows(page, "Episodes").locator("[data-key=state]").all()} == {"Open"}
    expect(page.get_by_text("These are open. The others are being read …")).to_be_visible()
    expect(page.locator("#cp-shown")).to_have_text("Reading …")
    for route in waiting:
        route.continue_()
    list_is_read(page)
    expect(page.get_by_text("are being read")).to_be_hidden()


def test_market_and_alerts_count_back_from_the_newest_trade(visit: Visit, system: Any) -> None:
    newest = f"{system.newest:%Y-%m-%d %H:%M:%S}"
    market = visit("/")
    expect(figure(market, "Newest trade")).to_have_text(newest)
    alerts = visit("/alerts")
    ages = [(system.newest - one["opened_at"]).total_seconds() for one in system.alerts]
    expect(figure(alerts, "Last 24 h")).to_have_text(grouped(sum(age < 86_400 for age in ages)))
    expect(figure(alerts, "Last hour")).to_have_text(grouped(sum(age < 3600 for age in ages)))
    for page in (market, alerts):
        as_of = page.locator("#cp-as-of")
        expect(as_of).to_contain_text(re.compile(rf"^As of {newest} UTC, \d+\u202fd ago"))
        expect(as_of).to_contain_text(re.compile(r"Loaded \d[\d.]*\u202f(s|min) ago"))
    alerts.get_by_label("Time", exact=True).select_option("1h")
    expect(alerts.locator("#cp-shown")).to_contain_text(f"{grouped(sum(age < 3600 for age in ages))} episodes")


def test_pages_of_alerts_add_up_to_the_total_from_the_first_click_on(visit: Visit, system: Any) -> None:
    page = visit("/alerts")
    all_of_them = len(system.alerts)
    assert all_of_them > 200
    episodes = rows(page, "Episodes")
    expect(page.locator("#cp-shown")).to_have_text(f"200 of {all_of_them} episodes")
    expect(episodes).to_have_count(200)
    page.get_by_role("button", name="Older episodes").click()
    expect(episodes).to_have_count(min(all_of_them, 400))
    expect(page.locator("#cp-shown")).to_have_text(f"{all_of_them} episodes")
    expect(page.get_by_role("button", name="Older episodes")).to_be_hidden()


def test_filters_choose_what_the_table_holds(visit: Visit, system: Any) -> None:
    page = visit("/alerts")
    list_is_read(page)
    page.get_by_label("Product", exact=True).fill("th-")
    page.get_by_label("Severity").select_option("CRITICAL")
    wanted = [one for one in system.alerts if "TH-" in one["symbol"] and one["severity"] == "CRITICAL"]
    assert wanted
    expect(rows(page, "Episodes")).to_have_count(len(wanted))
    expect(page.locator("#cp-shown")).to_have_text(re.compile(f"^{len(wanted)} episodes?$"))
    page.get_by_label("Product", exact=True).fill("nothing")
    expect(page.get_by_text("Nothing matches.")).to_be_visible()
    expect(page.locator("#cp-shown")).to_have_text("")


def test_from_the_filter_of_alerts_one_gets_into_the_rows_by_keyboard(visit: Visit) -> None:
    page = visit("/alerts")
    list_is_read(page)
    for key in ("ArrowDown", "Enter"):
        page.keyboard.press("f")
        expect(page.get_by_label("Product", exact=True)).to_be_focused()
        page.keyboard.press(key)
        expect(rows(page, "Episodes").first).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(rows(page, "Episodes").nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("region", name="Evidence")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("region", name="Evidence")).to_be_hidden()
    expect(rows(page, "Episodes").nth(1)).to_be_focused()


def test_the_repair_command_names_every_product_that_lacks_trades_and_its_end(visit: Visit, system: Any) -> None:
    page = visit("/completeness")
    expect(figure(page, "Missing")).to_have_text(str(system.summary["missing_ids"]))
    lacking = sorted(name for name, one in system.summary["products"].items() if one["missing_ids"])
    command = page.locator(".cp-verdict .cp-command code").last
    expect(command).to_have_text(
        re.compile(rf"^cryptopulse backfill {' '.join(lacking)} --from 2025-10-\S+ --to 2025-10-\S+ --lake \S+$")
    )


def test_a_cell_tells_its_ids_its_command_and_leads_to_the_chart(visit: Visit) -> None:
    page = visit("/completeness")
    cell = page.locator("td[data-cell='missing']").first
    symbol = cell.get_attribute("data-symbol") or ""
    cell.focus()
    page.keyboard.press("Enter")
    details = page.get_by_role("region", name="Details")
    expect(details.locator("h2")).to_have_text(re.compile(rf"^{symbol}, 2025-10-10 \d\d:00–\d\d:00 UTC$"))
    expect(details.locator(".cp-story")).to_have_text(re.compile(r"^From id .+ to .+ expected, .+ held, .+ missing\.$"))
    expect(details.locator("code").first).to_have_text(
        re.compile(rf"^cryptopulse backfill {symbol} --from 2025-10-\S+ --to 2025-10-\S+ --lake \S+$")
    )
    page.reload()  # it stands in the address
    details.get_by_role("link", name="Show this time in the product’s chart").click()
    page.wait_for_url(f"**/product/{symbol}?at=2025-10-10T*")
    wait_for_candles(page)


def test_a_hole_tells_its_times_its_command_and_leads_to_the_chart(visit: Visit) -> None:
    page = visit("/completeness")
    hole = rows(page, "Holes").first
    ids = [hole.locator(f"[data-key={name}]").inner_text() for name in ("first_missing_id", "last_missing_id")]
    hole.click()
    details = page.get_by_role("region", name="Details")
    expect(details.locator(".cp-story")).to_have_text(
        re.compile(
            r"^None of these ids is held\. The trades next to them are of 2025-10-10 \S+ and 2025-10-10 \S+ UTC\.$"
        )
    )
    for text in ids:
        expect(details.locator("h2")).to_contain_text(text)
    expect(details.locator("code").first).to_have_text(
        re.compile(r"^cryptopulse backfill \S+ --from \S+ --to \S+ --lake")
    )
    details.get_by_role("link", name="Show the hole in the product’s chart").click()
    page.wait_for_url("**/product/*at=2025-10-10T*")
    wait_for_candles(page)
    page.go_back()
    expect(details).to_be_visible()
    page.keyboard.press("Escape")
    expect(details).to_be_hidden()


def test_the_latency_of_a_replay_says_so_and_leaves_the_axis_to_what_was_measured(visit: Visit) -> None:
    page = visit("/pipeline")
    latency = page.get_by_role("region", name="Latency of each hop")
    expect(latency).to_contain_text(re.compile(r"Not drawn: receive → log, receive → silver, up to \d+\u202fd\."))
    expect(latency.locator("canvas")).to_be_visible()
    fresh = rows(page, "Freshness").first
    expect(fresh.locator("[data-key=data_age_s]")).to_have_text(re.compile(r"^\d+\u202fd$"))
    expect(fresh.locator("[data-key=age_s]")).to_have_text(re.compile(r"^\d[\d.]*\u202f(s|min)$"))


def test_ticks_of_the_chart_are_round_times_and_the_first_has_its_date(visit: Visit) -> None:
    for grain, step in (("1s", 10), ("15s", 60), ("1m", 300), ("5m", 1800)):
        page = visit(f"/product/BTC-USD?at=2025-10-10T21:30&grain={grain}")
        wait_for_candles(page)
        ticks = chart(page, "[...chart.ticks.keys()].map(Number)")
        assert len(ticks) >= 3
        assert all(tick % step == 0 for tick in ticks)
    assert "2025-10-10" in texts(page)


@pytest.mark.parametrize("width", [320, 390])
@pytest.mark.parametrize("path", PAGES)
def test_on_a_busy_day_nothing_is_wider_than_a_phone(visit: Visit, path: str, width: int) -> None:
    page = visit(path, viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True)
    expect(page.locator("tbody tr:visible, canvas:visible, form:visible").first).to_be_visible(timeout=PATIENCE_MS)
    page.wait_for_timeout(1000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if path == "/alerts":
        expect(rows(page, "Episodes").first.locator("[data-key=severity]")).to_be_in_viewport(ratio=1)
        rows(page, "Episodes").first.click()
        expect(page.get_by_role("region", name="Evidence")).to_be_in_viewport()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    widths = page.evaluate("[...document.querySelectorAll('.cp-figure')].map(one => Math.round(one.clientWidth))")
    assert len(set(widths)) <= 1
