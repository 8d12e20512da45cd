"""The market page over a lake that holds a market of three venues."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from browser_pages import served
from playwright.sync_api import Page, expect

from support import START, Lake, Trade, at, message, text_of

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def system(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server over that lake, in the place of the running deployment."""
    folder = tmp_path_factory.mktemp("venues")
    lake = Lake(folder / "lake")
    row = f'{{"symbol":"BTC/USD","side":"sell","price":100.5,"qty":1,"trade_id":1,"timestamp":"{text_of(at(1))}"}}'
    ms = round(START.timestamp() * 1000)
    lake.take_in(
        [
            *(Trade(symbol, 1, at(0), price).match() for symbol, price in (("BTC-USD", "100"), ("ETH-USD", "10"))),
            message(f'{{"channel":"trade","type":"update","data":[{row}]}}'.encode(), key="@kraken"),
            message(
                f'{{"e":"trade","s":"BTCUSDT","t":1,"p":"101","q":"1","T":{ms},"m":true}}'.encode(), key="@binance"
            ),
        ]
    )
    lake.close()
    with served(folder) as server:
        yield server


def test_a_market_shows_each_venues_price_and_the_spread(visit: Visit) -> None:
    page = visit("/")
    across = page.get_by_role("table", name="Across venues", exact=True)
    expect(across.locator("th")).to_have_text(["Across venues", "Spread", "Binance", "Coinbase", "Kraken"])
    row = across.locator("tbody tr")
    expect(row).to_have_count(1)  # ETH is traded at one venue only
    expect(row.locator("td")).to_have_text(["BTC/USD·USDT", re.compile(r"^1\.000.%$"), "101.0", "100.0", "100.5"])
    row.locator("td").nth(1).click()
    page.wait_for_url("**/?q=BTC")
    expect(page.get_by_role("table", name="Market", exact=True).locator("tbody tr")).to_have_count(3)
