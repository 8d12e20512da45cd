"""The demo's judge: it must notice every kind of fault, or its "0 lost, 0 duplicated" means nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from cryptopulse.demo.check import CheckResult, Recorded, all_stored, check
from cryptopulse.demo.summary import write_summary

NOW = datetime.now(UTC)
ALONE: Recorded = {"coinbase": {}}


def ledger(episodes: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    products = {
        "BTC-USD": {"first_trade_id": 101, "last_trade_id": 105},
        "ETH-USD": {"first_trade_id": 7, "last_trade_id": 9},
    }
    return {"products": products, "episodes": episodes or []}


ALL = [("BTC-USD", trade_id) for trade_id in range(101, 106)] + [("ETH-USD", trade_id) for trade_id in range(7, 10)]


def store(lake: Path, rows: list[tuple[str, int]]) -> None:
    symbols, ids = zip(*rows, strict=True)
    received = pa.array([NOW] * len(rows), pa.timestamp("us", tz="UTC"))
    source = pa.array(["rest" if trade_id == 103 else "websocket" for trade_id in ids])
    table = pa.table({"symbol": symbols, "trade_id": ids, "ingestion_time": received, "source": source})
    write_deltalake(str(lake / "silver" / "fact_crypto_trades"), table)


def alert(lake: Path, alert_id: str = "a", symbol: str = "BTC-USD") -> None:
    table = pa.table(
        {
            "alert_id": [alert_id],
            "symbol": [symbol],
            "alert_type": ["FLASH_CRASH"],
            "price_change_pct": [-2.9],
            "start_price": [Decimal(100)],
            "end_price": [Decimal("97.1")],
            "trigger_trade_id": [103],
            "detected_at": pa.array([NOW + timedelta(milliseconds=50)], pa.timestamp("us", tz="UTC")),
        }
    )
    write_deltalake(str(lake / "gold" / "dm_market_alerts"), table, mode="append")


def figures(result: CheckResult) -> tuple[int, int, int, int]:
    return result.stored, result.lost, result.duplicated, result.strange


def test_every_trade_once_is_complete(tmp_path: Path) -> None:
    store(tmp_path, ALL)
    result = check(tmp_path, ledger(), ALONE)
    assert (result.sent, result.products) == (8, 2)
    assert figures(result) == (8, 0, 0, 0)
    assert result.healed == 1
    assert result.complete


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (ALL[1:], (7, 1, 0, 0)),
        (ALL[:-1], (7, 1, 0, 0)),
        ([row for row in ALL if row != ("BTC-USD", 103)], (7, 1, 0, 0)),
        (ALL[:5], (5, 3, 0, 0)),
        ([*ALL, ("BTC-USD", 103)], (9, 0, 1, 0)),
        ([*ALL, ("ETH-USD", 10)], (8, 0, 0, 1)),
        ([*ALL, ("XRP-USD", 7)], (8, 0, 0, 1)),
        ([*ALL[1:], ALL[1]], (8, 1, 1, 0)),
    ],
    ids=["first", "last", "middle", "product", "twice", "never sent", "wrong product", "one for another"],
)
def test_no_fault_goes_unnoticed(tmp_path: Path, rows: list[tuple[str, int]], expected: tuple[int, ...]) -> None:
    store(tmp_path, rows)
    result = check(tmp_path, ledger(), ALONE)
    assert figures(result) == expected
    assert not result.complete


def test_without_a_table_everything_is_lost(tmp_path: Path) -> None:
    assert figures(check(tmp_path, ledger(), ALONE)) == (0, 8, 0, 0)


def crash(*, ended: bool = True) -> list[dict[str, Any]]:
    return [{"kind": "crash", "product": "BTC-USD", "depth_pct": 3.0, "ended": ended}]


def test_a_staged_crash_is_one_row_and_its_latency_counts_from_the_trades_receipt(tmp_path: Path) -> None:
    store(tmp_path, ALL)
    alert(tmp_path)
    result = check(tmp_path, ledger(crash()), ALONE)
    (found,) = result.crashes
    assert (found.rows, found.change_pct) == (1, -2.9)
    assert found.latency_ms is not None
    assert 0 < found.latency_ms < 60_000
    assert result.crashes_right


def test_the_latency_ends_with_the_first_commit_that_holds_the_row(tmp_path: Path) -> None:
    store(tmp_path, ALL)
    alert(tmp_path, "other", "ETH-USD")
    alert(tmp_path)
    committed = (tmp_path / "gold/dm_market_alerts/_delta_log/00000000000000000001.json").stat().st_mtime
    alert(tmp_path, "later", "ETH-USD")
    (found,) = check(tmp_path, ledger(crash()), ALONE).crashes
    assert found.latency_ms == pytest.approx((committed - NOW.timestamp()) * 1000, abs=1)


def test_a_crash_without_a_row_or_with_two_is_not_right(tmp_path: Path) -> None:
    store(tmp_path, ALL)
    assert not check(tmp_path, ledger(crash()), ALONE).crashes_right
    alert(tmp_path)
    alert(tmp_path, "b")
    assert not check(tmp_path, ledger(crash()), ALONE).crashes_right
    assert check(tmp_path, ledger(crash(ended=False)), ALONE).crashes == []


def test_the_pipeline_has_caught_up_when_every_id_is_stored(tmp_path: Path) -> None:
    def holds(*intervals: tuple[str, int, int]) -> bool:
        columns = ("symbol", "first_trade_id", "last_trade_id")
        rows = pa.table(list(map(list, zip(*intervals, strict=True))), names=columns)
        write_deltalake(str(tmp_path / "silver" / "trade_id_coverage"), rows, mode="overwrite")
        return all_stored(tmp_path, ledger(), ALONE)

    assert not all_stored(tmp_path, ledger(), ALONE)
    assert not holds(("BTC-USD", 101, 105), ("ETH-USD", 7, 8))
    assert not holds(("BTC-USD", 101, 102), ("BTC-USD", 104, 105), ("ETH-USD", 7, 9))
    assert holds(("BTC-USD", 90, 103), ("BTC-USD", 104, 105), ("ETH-USD", 7, 30), ("XRP-USD", 1, 2))


# Several venues

TWO: Recorded = {"coinbase": {}, "kraken": {"BTC-USD": 104}}
"""Kraken's products are recorded from these ids on: its past was not fetched."""
AT_KRAKEN = [("BTC/USD@kraken", 104), ("BTC/USD@kraken", 105)] + [
    ("ETH/USD@kraken", trade_id) for trade_id in (7, 8, 9)
]


def test_each_venue_must_have_its_own_trades(tmp_path: Path) -> None:
    store(tmp_path, [*ALL, *AT_KRAKEN])
    result = check(tmp_path, ledger(), TWO)
    assert figures(result) == (13, 0, 0, 0)
    assert {venue: (found.sent, found.stored) for venue, found in result.venues.items()} == {
        "coinbase": (8, 8),
        "kraken": (5, 5),
    }
    assert figures(check(tmp_path, ledger(), ALONE)) == (8, 0, 0, 5)
    assert figures(check(tmp_path, ledger(), {**TWO, "okx": {}})) == (13, 8, 0, 0)


@pytest.mark.parametrize(
    ("rows", "expected", "older"),
    [
        (AT_KRAKEN[1:], (12, 1, 0, 0), 0),
        ([*AT_KRAKEN, AT_KRAKEN[0]], (14, 0, 1, 0), 0),
        ([*AT_KRAKEN, ("BTC/USD@kraken", 103)], (13, 0, 0, 0), 1),
        ([*AT_KRAKEN, ("BTC/USD@kraken", 103), ("BTC/USD@kraken", 103)], (13, 0, 1, 0), 2),
        ([*AT_KRAKEN, ("BTC/USD@kraken", 100)], (13, 0, 0, 1), 0),
        ([*AT_KRAKEN[1:], ("BTC/USD@kraken", 103)], (12, 1, 0, 0), 1),
        ([*AT_KRAKEN, ("BTC-USD@kraken", 104)], (13, 0, 0, 1), 0),
    ],
    ids=["lost", "twice", "older", "older twice", "never sent", "older for another", "wrong symbol"],
)
def test_no_fault_of_a_venue_goes_unnoticed(
    tmp_path: Path, rows: list[tuple[str, int]], expected: tuple[int, ...], older: int
) -> None:
    store(tmp_path, [*ALL, *rows])
    result = check(tmp_path, ledger(), TWO)
    assert figures(result) == expected
    assert result.venues["kraken"].older == older
    assert result.venues["coinbase"].stored == 8


def test_each_venue_must_have_the_staged_crash(tmp_path: Path) -> None:
    store(tmp_path, [*ALL, *AT_KRAKEN])
    alert(tmp_path)
    result = check(tmp_path, ledger(crash()), TWO)
    assert {found.symbol: found.rows for found in result.crashes} == {"BTC-USD": 1, "BTC/USD@kraken": 0}
    assert not result.crashes_right
    alert(tmp_path, "k", "BTC/USD@kraken")
    assert check(tmp_path, ledger(crash()), TWO).crashes_right


def test_the_pipeline_has_caught_up_when_every_venues_ids_are_stored(tmp_path: Path) -> None:
    def holds(*intervals: tuple[str, int, int]) -> bool:
        columns = ("symbol", "first_trade_id", "last_trade_id")
        intervals = (("BTC-USD", 101, 105), ("ETH-USD", 7, 9), *intervals)
        rows = pa.table(list(map(list, zip(*intervals, strict=True))), names=columns)
        write_deltalake(str(tmp_path / "silver" / "trade_id_coverage"), rows, mode="overwrite")
        return all_stored(tmp_path, ledger(), TWO)

    assert not holds()
    assert not holds(("BTC/USD@kraken", 104, 105), ("ETH/USD@kraken", 8, 9))
    assert holds(("BTC/USD@kraken", 104, 105), ("ETH/USD@kraken", 7, 9))
    assert holds(("BTC/USD@kraken", 102, 105), ("ETH/USD@kraken", 7, 9))


def test_the_summary_has_a_line_for_each_venue_only_if_there_are_several(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, [*ALL, *AT_KRAKEN[1:], ("BTC/USD@kraken", 103)])
    write_summary(tmp_path, check(tmp_path, ledger(), TWO), {}, is_crash_day=False)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1:6] == [
        "Traded 13 trades of 2 products at 2 venues (the simulator's own count)",
        "Stored 12 trades in silver: 1 lost, 0 duplicated",
        "coinbase 8 of 8",
        "kraken 4 of 5: 1 lost, 0 duplicated",
        "and 1 older ones that came with them",
    ]
    assert any("WHERE symbol IN ('BTC-USD', 'BTC/USD@kraken') ORDER" in line for line in lines)
    write_summary(tmp_path, check(tmp_path, ledger(), ALONE), {}, is_crash_day=False)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == "Traded 8 trades of 2 products (the simulator's own count)"
    assert lines[3].startswith("Staged crash")
    assert any("WHERE symbol = 'BTC-USD' ORDER" in line for line in lines)
