"""With --candles the audit compares complete bars with the exchange's own candles, over a real socket."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from cryptopulse.lake.tables import BARS
from cryptopulse.simulator import Faults, SimulatorOptions, serve
from support import Message, Trade, message, micros
from support_audit import audit, copied, delete, fill, iso, matches, overwrite, rows
from support_processes import wait_until

START_NS = 1_780_000_000_000_000_000
TRADES = 2_050
RATE = 0.1  # a second of market time: so many minutes that one answer can not have the candles of all


@pytest.fixture(autouse=True)
def quiet() -> None:
    """The exchange's events go nowhere: standard output is the audit's."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())


@contextmanager
def exchange(**options: Any) -> Iterator[str]:
    """A simulated exchange whose market is over; its REST address."""
    given: dict[str, Any] = {
        "port": 0,
        "products": 2,
        "rate": RATE,
        "trades_max": TRADES,
        "speed": 1e7,
        "start_time_ns": START_NS,
    }
    ready, stop = threading.Event(), asyncio.Event()
    ports: list[int] = []
    loop = asyncio.new_event_loop()

    def announce(port: int) -> None:
        ports.append(port)
        ready.set()

    serving = threading.Thread(
        target=lambda: loop.run_until_complete(serve(SimulatorOptions(**(given | options)), announce, stop))
    )
    serving.start()
    try:
        assert ready.wait(20)
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        serving.join()
        loop.close()


def minute_of(trade: Trade) -> datetime:
    return trade.time.replace(second=0, microsecond=0)


def published(url: str) -> list[Trade]:
    """Every trade of the market, once it is over."""
    with httpx.Client(base_url=url, trust_env=False) as client:
        wait_until(lambda: client.get("/simulator/ledger").json()["trades"] >= TRADES, "the market is over")
        found = []
        for product, figures in client.get("/simulator/ledger").json()["products"].items():
            path = f"/simulator/trades/{product}?from={figures['first_trade_id']}"
            found += [
                Trade(
                    product,
                    int(row["trade_id"]),
                    datetime.fromisoformat(row["time"]),
                    row["price"],
                    row["size"],
                    "BUY" if row["side"].lower() == "sell" else "SELL",
                )
                for row in client.get(path).json()
            ]
    return found


@pytest.fixture(scope="module")
def trades_and_url() -> Iterator[tuple[list[Trade], str]]:
    """A market, and an exchange that still answers about it, now and then with 429 or an error."""
    with exchange(faults=Faults(rest_429=0.2, rest_500=0.1)) as url:
        yield published(url), url


@pytest.fixture(scope="module")
def original(trades_and_url: tuple[list[Trade], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("candles") / "lake", [matches(trades_and_url[0])])


@pytest.fixture
def url(trades_and_url: tuple[list[Trade], str]) -> str:
    return trades_and_url[1]


@pytest.fixture
def lake(original: Path, tmp_path: Path) -> Path:
    return copied(original, tmp_path / "lake")


def test_bars_agree_with_the_exchanges_candles(lake: Path, url: str) -> None:
    found = audit(lake, "--candles", "--rest-url", url)
    assert (found.code, found.findings) == (0, [])
    complete = sum(rows(lake, BARS)["is_complete"].to_pylist())
    assert complete > 300  # more than one answer for a product
    assert found.checked("candles") == complete


def test_a_bar_that_differs_from_its_candle_is_named_with_both_values(lake: Path, url: str) -> None:
    bars = rows(lake, BARS)
    changed = bars.to_pylist()
    victim = next(bar for bar in changed if bar["is_complete"])
    before = {name: victim[name] for name in ("low", "volume")}
    victim["low"] -= 1
    victim["volume"] += victim["volume"] / 1000
    overwrite(lake, BARS, type(bars).from_pylist(changed, schema=bars.schema))
    found = audit(lake, "--candles", "--rest-url", url)
    assert found.kinds == ["bar_differs", "candle_differs"]
    told = found.one("candle_differs")
    assert (told["symbol"], told["window_start"]) == (victim["symbol"], iso(victim["window_start"]))
    exchanges = {name: float(values["exchange"]) for name, values in told["columns"].items()}
    assert exchanges == pytest.approx({name: float(value) for name, value in before.items()})


def test_trades_that_the_exchange_puts_into_another_minute_are_told_on_both_sides(
    trades_and_url: tuple[list[Trade], str], tmp_path: Path
) -> None:
    """Ids alone do not show that: they are all there."""
    trades, url = trades_and_url
    alone = (  # in its minute, with a quiet one after it
        trade
        for before, trade, after in zip(trades, trades[1:], trades[2:], strict=False)
        if before.symbol == trade.symbol == after.symbol
        and minute_of(before) < minute_of(trade)
        and minute_of(after) > minute_of(trade) + timedelta(minutes=1)
    )
    moved = next(alone)
    late = replace(moved, time=moved.time + timedelta(minutes=1))
    lake = fill(tmp_path / "lake", [matches(late if trade is moved else trade for trade in trades)])
    assert audit(lake).code == 0
    found = audit(lake, "--candles", "--rest-url", url)
    minutes = [minute_of(moved), minute_of(late)]
    told = {finding["window_start"]: finding["text"] for finding in found.of("candle_differs")}
    assert found.kinds == ["candle_differs"] * 2
    assert "all ids around it are held and none was traded then" in told[iso(minutes[0])]
    assert "of which there is a complete bar" in told[iso(minutes[1])]


def test_a_bar_that_is_missing_is_not_blamed_on_the_exchange(lake: Path, url: str) -> None:
    bar = rows(lake, BARS).slice(50, 1).to_pylist()[0]
    delete(lake, BARS, f"symbol = '{bar['symbol']}' AND window_start = '{iso(bar['window_start'])}'")
    assert audit(lake, "--candles", "--rest-url", url).kinds == ["bar_missing"]


def test_an_exchange_that_does_not_answer_is_told_and_all_else_is_still_audited(lake: Path) -> None:
    found = audit(lake, "--candles", "--rest-url", "http://127.0.0.1:9/nobody")
    assert (found.code, found.kinds) == (8, ["candles_unreachable"])
    assert "can't be reached" in found.findings[0]["text"]
    assert found.checked("candles") == 0
    assert found.checked("ids") == TRADES


def test_an_answer_that_is_no_list_of_candles_is_told(lake: Path) -> None:
    with exchange(products=1, rate=1, trades_max=1) as other:  # it does not know our products
        found = audit(lake, "--candles", "--rest-url", other, "--product", "ETH-USD")
    assert found.kinds == ["candles_unreachable"]


def pages(url: str, venue: str) -> list[Message]:
    """Every trade of the market's second product as pages of the venue's REST interface."""
    path, symbol, step = {
        "kraken": ("0/public/Trades?pair=ETHUSD&since={}", "ETH/USD", lambda b: b["result"]["last"]),
        "binance": ("api/v3/historicalTrades?symbol=ETHUSD&limit=1000&fromId={}", "ETHUSD", lambda b: b[-1]["id"] + 1),
        "okx": ("api/v5/market/history-trades?instId=ETH-USD&after={}", "ETH-USD", lambda b: b["data"][-1]["tradeId"]),
    }[venue]
    found: list[Message] = []
    at: object = 2**62 if venue == "okx" else 0
    with httpx.Client(base_url=url, trust_env=False) as client:
        while True:
            body = client.get(path.format(at)).content
            if b"Too many" in body or b"Internal" in body:  # faults of the exchange
                continue
            if len(body) < 150:  # an empty page is shorter
                return found
            found.append(message(body, "rest", f"{symbol}@{venue}"))
            at = step(json.loads(body))


def test_bars_of_other_venues_agree_with_their_candles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kraken tells of the newest twelve hours only, so the market is of these."""
    with exchange(start_time_ns=time.time_ns() - 11 * 3_600_000_000_000, rest_limit=False) as url:
        published(url)
        lake = fill(tmp_path / "lake", [pages(url, venue) for venue in ("kraken", "binance", "okx")])
        for venue in ("KRAKEN", "BINANCE", "OKX"):
            monkeypatch.setenv(f"CRYPTOPULSE_{venue}__REST_URL", url)
        found = audit(lake, "--candles")
        assert (found.code, found.findings) == (0, [])
        assert found.checked("candles") == sum(rows(lake, BARS)["is_complete"].to_pylist()) > 300
        bars = rows(lake, BARS)
        changed = bars.to_pylist()
        for venue in ("kraken", "binance", "okx"):
            next(bar for bar in changed if bar["is_complete"] and bar["symbol"].endswith(venue))["close"] += 1
        overwrite(lake, BARS, type(bars).from_pylist(changed, schema=bars.schema))
        assert audit(lake, "--candles").kinds == ["bar_differs"] * 3 + ["candle_differs"] * 3
        for bar in changed:
            bar["trade_count"] += 1
        overwrite(lake, BARS, type(bars).from_pylist(changed, schema=bars.schema))
        told = audit(lake, "--candles").of("candle_differs")
        counted = {one["symbol"].partition("@")[2] for one in told if "trade_count" in one["columns"]}
        assert counted == {"kraken", "binance"}  # OKX's candles have no count


def test_minutes_of_which_kraken_has_no_candles_any_more_are_not_compared(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = fill(tmp_path / "lake", [pages(url, "kraken")])
    monkeypatch.setenv("CRYPTOPULSE_KRAKEN__REST_URL", url)
    found = audit(lake, "--candles")
    assert (found.code, found.checked("candles")) == (0, 0)


assert micros(datetime.fromisoformat("2026-05-28T20:26:40+00:00")) * 1000 == START_NS
