"""The audit names the very ids that silver lost, doubled, or disagrees about with its intervals."""

from __future__ import annotations

import random
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cryptopulse.cli import run
from cryptopulse.lake.tables import BRONZE, COVERAGE, SILVER
from support import at, intervals
from support_audit import append, audit, change, copied, delete, intervals_of, iso, overwrite, rows


@pytest.fixture
def lake(market_lake: Path, tmp_path: Path) -> Path:
    """A lake of one's own to harm."""
    return copied(market_lake, tmp_path / "lake")


def test_a_range_of_rows_that_was_taken_out_of_silver_is_named_to_the_id_and_a_rebuild_brings_it_back(
    lake: Path,
) -> None:
    delete(lake, SILVER, "symbol = 'BTC-USD' AND trade_id BETWEEN 150 AND 160")
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["ids_lost"])
    lost = found.one("ids_lost")
    assert intervals_of([lost]) == [("BTC-USD", 150, 160)]
    assert (lost["ids"], lost["told_by"]) == (11, BRONZE.qualified)
    assert (lost["after_time"], lost["before_time"]) == (iso(at(98)), iso(at(122)))
    assert lost["text"] == (
        "BTC-USD: ids 150 to 160 (11) missing in silver.fact_crypto_trades, between 2026-07-07T12:01:38Z and "
        "2026-07-07T12:02:02Z, though bronze.coinbase_raw_trades holds their messages"
    )
    assert lost["repair"] == f"run `cryptopulse rebuild --lake {lake}`"
    ledger = found.product("BTC-USD")
    assert (ledger["expected_ids"], ledger["held_ids"], ledger["missing_ids"]) == (120, 109, 11)
    assert ledger["holes"] == [
        {
            "first_trade_id": 150, "last_trade_id": 160, "missing_ids": 11, "witness": "trade",
            "after_time": iso(at(98)), "before_time": iso(at(122)),
        }
    ]  # fmt: skip
    assert found.product("ETH-USD")["missing_ids"] == 0
    assert run(["rebuild", "--lake", str(lake)]) == 0
    assert audit(lake).code == 0


@pytest.mark.parametrize(
    ("predicate", "lost"), [("trade_id < 110", (100, 109)), ("trade_id > 200", (201, 219)), ("true", (100, 219))]
)
def test_rows_taken_off_an_end_of_silver_are_missed_as_well(lake: Path, predicate: str, lost: tuple[int, int]) -> None:
    delete(lake, SILVER, predicate)
    delete(lake, COVERAGE, "true")  # not even the intervals tell
    found = audit(lake)
    assert found.code == 8
    assert intervals_of(found.of("ids_lost")) == [("BTC-USD", *lost), ("ETH-USD", *lost)]


def test_ids_that_coverage_does_not_claim_are_told(lake: Path) -> None:
    change(lake, COVERAGE, {"symbol": "ETH-USD"}, first_trade_id=103)
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["ids_unclaimed"])
    assert found.one("ids_unclaimed")["text"] == (
        "ETH-USD: ids 100 to 102 (3) in silver.fact_crypto_trades but not in silver.trade_id_coverage"
    )
    assert found.product("ETH-USD")["missing_ids"] == 0


def test_a_trade_that_was_doubled_is_named_once(lake: Path) -> None:
    trades = rows(lake, SILVER)
    append(
        lake, SILVER, trades.filter(pc.and_(pc.equal(trades["trade_id"], 142), pc.equal(trades["symbol"], "BTC-USD")))
    )
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["ids_doubled"])
    assert found.one("ids_doubled")["text"] == "BTC-USD: id 142 more than once in silver.fact_crypto_trades"
    assert intervals_of(found.findings) == [("BTC-USD", 142, 142)]
    assert found.product("BTC-USD")["held_ids"] == 120


def test_a_trade_doubled_into_another_day_is_found(lake: Path) -> None:
    trades = rows(lake, SILVER)
    copy = trades.filter(pc.and_(pc.equal(trades["trade_id"], 142), pc.equal(trades["symbol"], "BTC-USD"))).to_pylist()
    copy[0]["event_time"] += timedelta(days=1)
    copy[0]["event_date"] += timedelta(days=1)
    append(lake, SILVER, pa.Table.from_pylist(copy, schema=trades.schema))
    found = audit(lake)
    assert intervals_of(found.of("ids_doubled")) == [("BTC-USD", 142, 142)]


def test_a_trade_in_the_partition_of_another_day_is_found(lake: Path) -> None:
    trades = rows(lake, SILVER)
    delete(lake, SILVER, "trade_id = 142 AND symbol = 'BTC-USD'")
    moved = trades.filter(pc.and_(pc.equal(trades["trade_id"], 142), pc.equal(trades["symbol"], "BTC-USD"))).to_pylist()
    moved[0]["event_date"] = date(2026, 7, 9)
    append(lake, SILVER, pa.Table.from_pylist(moved, schema=trades.schema))
    found = audit(lake)
    assert found.one("trades_misplaced")["text"] == (
        "silver.fact_crypto_trades: 1 trades of the partition 2026-07-09 were made on another day"
    )


def runs(ids: set[tuple[str, int]]) -> set[tuple[str, int, int]]:
    """(product, first, last) of stretches without a gap."""
    by_product = {product: [one for symbol, one in ids if symbol == product] for product, _ in ids}
    return {(product, *stretch) for product, found in by_product.items() for stretch in intervals(found)}


@pytest.mark.parametrize("seed", range(3))
def test_whatever_ids_are_taken_out_or_doubled_are_named_and_no_others(lake: Path, seed: int) -> None:
    dice = random.Random(seed)
    trades = rows(lake, SILVER)
    ids = list(zip(trades["symbol"].to_pylist(), trades["trade_id"].to_pylist(), strict=True))
    lost, doubled = set(dice.sample(ids, 40)), set(dice.sample(ids, 20))
    keep = [number for number, one in enumerate(ids) if one not in lost]
    again = [number for number, one in enumerate(ids) if one in doubled - lost]
    overwrite(lake, SILVER, trades.take(keep + again))
    found = audit(lake)
    assert found.code == 8
    assert set(intervals_of(found.of("ids_lost"))) == runs(lost)
    assert set(intervals_of(found.of("ids_doubled"))) == runs(doubled - lost)
    assert set(found.kinds) == {"ids_lost", "ids_doubled"}
    for product in ("BTC-USD", "ETH-USD"):
        assert found.product(product)["missing_ids"] == sum(symbol == product for symbol, _ in lost)
