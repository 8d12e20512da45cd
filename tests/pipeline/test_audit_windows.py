"""The audit computes bars and statistics again from silver, and names each that differs by the smallest amount."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from cryptopulse.lake.tables import BARS, STATS, Table
from support_audit import append, audit, change, copied, delete, iso, minute, overwrite, rows


@pytest.fixture
def lake(market_lake: Path, tmp_path: Path) -> Path:
    """A lake of one's own to harm."""
    return copied(market_lake, tmp_path / "lake")


def test_a_bar_that_was_deleted_is_named_by_product_and_minute(lake: Path) -> None:
    delete(lake, BARS, "symbol = 'ETH-USD' AND window_start = '2026-07-07T12:01:00Z'")
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["bar_missing"])
    gone = found.one("bar_missing")
    assert gone["text"] == "ETH-USD: bar of 2026-07-07T12:01Z: missing"
    assert (gone["symbol"], gone["window_start"], gone["windows"]) == ("ETH-USD", iso(minute(1)), 1)
    assert gone["repair"] == f"run `cryptopulse rebuild --lake {lake}`"
    assert audit(lake, as_text=True).text.splitlines()[-3:] == [
        f"bar missing  ETH-USD: bar of 2026-07-07T12:01Z: missing. Repair: run `cryptopulse rebuild --lake {lake}`.",
        f"Checked: {found.checked('files')} files, 240 ids, 242 messages, 242 offsets, 8 bars, 2 statistics, 2 hours.",
        "NOT COMPLETE: 0 ids missing; findings by kind: bar missing: 1",
    ]


def test_neighbouring_bars_that_were_deleted_are_one_finding(lake: Path) -> None:
    delete(lake, BARS, "symbol = 'ETH-USD' AND window_start > '2026-07-07T12:00:00Z'")
    gone = audit(lake).one("bar_missing")
    assert gone["text"] == "ETH-USD: bar of 2026-07-07T12:01Z and on to that of 2026-07-07T12:03Z (3): missing"
    assert (gone["window_start"], gone["last_window_start"], gone["windows"]) == (iso(minute(1)), iso(minute(3)), 3)


def test_a_bar_without_trades_is_told(lake: Path) -> None:
    bars = rows(lake, BARS)
    odd = bars.slice(0, 1).to_pylist()
    odd[0]["window_start"] = minute(30)
    append(lake, BARS, pa.Table.from_pylist(odd, schema=bars.schema))
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["bar_extra"])
    assert found.one("bar_extra")["text"].endswith(
        "bar of 2026-07-07T12:30Z: there without a trade in silver.fact_crypto_trades"
    )


_SMALLEST = Decimal("1e-12")
_PRICES = ("open", "high", "low", "close", "price_sum", "volume", "notional", "buy_volume")
_COUNTS = ("sell_volume", "trade_count", "buy_count", "first_trade_id", "last_trade_id", "vwap")


@pytest.mark.parametrize("columns", [_PRICES, _COUNTS])
def test_bars_that_are_off_by_the_smallest_amount_are_named_with_their_column(
    lake: Path, columns: tuple[str, ...]
) -> None:
    bars = rows(lake, BARS)
    changed = bars.to_pylist()
    expected = {}
    for bar, column in zip(changed, columns, strict=False):  # one column of each bar
        before = bar[column]
        bar[column] += _SMALLEST if isinstance(before, Decimal) else 1 if isinstance(before, int) else 1e-6
        expected[bar["symbol"], iso(bar["window_start"])] = (column, str(before), str(bar[column]))
    assert len(expected) == len(columns)
    overwrite(lake, BARS, pa.Table.from_pylist(changed, schema=bars.schema))
    found = audit(lake)
    assert found.code == 8
    assert set(found.kinds) == {"bar_differs"}
    told = {}
    for finding in found.findings:
        ((column, values),) = finding["columns"].items()
        assert finding["text"].startswith(f"{finding['symbol']}: bar of 2026-07-07T12:0")
        assert f": {column} " in finding["text"]
        told[finding["symbol"], finding["window_start"]] = (column, values["expected"], values["stored"])
    assert told.keys() == expected.keys()
    for window, (column, right, wrong) in expected.items():
        assert told[window][0] == column
        assert float(told[window][1]) == pytest.approx(float(right), rel=1e-9)
        assert Decimal(str(told[window][2])) == Decimal(wrong)


@pytest.mark.parametrize(("number", "says"), [(0, True), (1, False), (3, True)])
def test_a_bar_that_is_wrong_about_being_complete_is_told(lake: Path, number: int, says: bool) -> None:
    change(lake, BARS, {"symbol": "BTC-USD", "window_start": minute(number)}, is_complete=says)
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["bar_differs"])
    assert found.findings[0]["columns"] == {"is_complete": {"stored": says, "expected": not says}}


def test_statistics_that_are_off_are_named_with_each_column(lake: Path) -> None:
    (stored,) = [row for row in rows(lake, STATS).to_pylist() if row["symbol"] == "ETH-USD"]
    exact = ("max_price", "min_price", "total_trade_volume", "open_price", "close_price")
    wrong = {name: stored[name] + _SMALLEST for name in exact}
    wrong |= {name: stored[name] + 1e-6 for name in ("avg_price", "vwap", "volatility")}
    wrong["trade_count"] = stored["trade_count"] + 1
    wrong["window_end"] = stored["window_end"] + timedelta(microseconds=1)
    change(lake, STATS, {"symbol": "ETH-USD"}, **wrong)
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["statistic_differs"])
    assert set(found.findings[0]["columns"]) == wrong.keys()
    assert found.findings[0]["text"].startswith("ETH-USD: statistic of 2026-07-07T12:00Z: ")


@pytest.mark.parametrize("table", [BARS, STATS], ids=lambda table: table.name)
def test_a_window_that_is_there_twice_is_told_once(lake: Path, table: Table) -> None:
    append(lake, table, rows(lake, table).slice(0, 1))
    found = audit(lake)
    assert (found.code, len(found.findings)) == (8, 1)
    assert found.findings[0]["text"].endswith("there more than once")
