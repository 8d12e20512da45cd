"""The audit names every file and table that is gone or unreadable, and the repair that it names repairs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptopulse.cli import run
from cryptopulse.lake.tables import BARS, BRONZE, QUARANTINE, SILVER, TABLES, Table
from support import at
from support_audit import FIRST, LAST, audit, copied, files, intervals_of, iso, place


@pytest.fixture
def lake(market_lake: Path, tmp_path: Path) -> Path:
    """A lake of one's own to harm."""
    return copied(market_lake, tmp_path / "lake")


def test_a_lake_in_order_is_complete_and_says_what_was_compared(lake: Path) -> None:
    found = audit(lake)
    assert (found.code, found.json["complete"], found.findings) == (0, True, [])
    for product in ("BTC-USD", "ETH-USD"):
        ledger = found.product(product)
        assert (ledger["first_trade_id"], ledger["last_trade_id"]) == (FIRST, LAST)
        counts = {name: ledger[name] for name in ledger if name.endswith("_ids")}
        assert counts == {
            "expected_ids": 120, "held_ids": 120, "healed_ids": 0, "absent_ids": 0, "missing_ids": 0,
            "let_go_ids": 0, "on_their_way_ids": 0,
        }  # fmt: skip
        assert (ledger["holes"], ledger["witness"]) == ([], "trade")
    checked = {name: found.checked(name) for name in ("ids", "messages", "offsets", "bars", "statistics")}
    assert checked == {"ids": 240, "messages": 242, "offsets": 242, "bars": 8, "statistics": 2}
    assert found.checked("files") == sum(len(files(lake, table)) for table in TABLES)


def test_people_get_a_table_and_a_verdict(lake: Path) -> None:
    found = audit(lake, as_text=True)
    assert found.code == 0
    lines = [line.split() for line in found.text.splitlines() if line]
    assert lines[1:5:2] == [
        ["product", "first", "id", "last", "id", "expected", "held", "missing", "witness"],
        ["BTC-USD", "100", "219", "120", "120", "0", "trade"],
    ]
    assert found.text.endswith("COMPLETE: of 240 ids of 2 products 240 held once; nothing is missing\n")


def test_a_silver_file_that_was_removed_is_named_with_its_rows_and_the_rebuild_brings_them_back(lake: Path) -> None:
    file = files(lake, SILVER)[1]
    file.unlink()
    found = audit(lake)
    assert found.code == 8
    assert found.kinds == ["file_missing", "ids_lost", "ids_lost"]
    gone = found.one("file_missing")
    assert gone["table"] == SILVER.qualified
    assert gone["file"] == f"event_date=2026-07-07/{file.name}"
    assert (gone["rows"], gone["day"]) == (80, "2026-07-07")
    assert gone["statistics"]["trade_id"] == {"min": 140, "max": 179}
    assert gone["statistics"]["symbol"] == {"min": "BTC-USD", "max": "ETH-USD"}
    assert gone["statistics"]["event_time"] == {"min": iso(at(80)), "max": iso(at(158))}
    assert gone["text"].startswith(
        f"silver.fact_crypto_trades: file event_date=2026-07-07/{file.name} is missing; gone with it: 80 rows, day "
        "2026-07-07, trade_id 140 to 179, symbol BTC-USD to ETH-USD, event_time 2026-07-07T12:01:20Z to "
        "2026-07-07T12:02:38Z, load_timestamp "
    )
    assert intervals_of(found.of("ids_lost")) == [("BTC-USD", 140, 179), ("ETH-USD", 140, 179)]
    assert gone["repair"] == f"stop the pipeline and run `cryptopulse rebuild --lake {lake}`"
    assert run(["rebuild", "--lake", str(lake)]) == 0
    assert audit(lake).code == 0


@pytest.mark.parametrize("table", [t for t in TABLES if t.name != "absent_trade_ids"], ids=lambda table: table.name)
def test_a_file_of_any_table_that_was_removed_is_named(lake: Path, table: Table) -> None:
    file = files(lake, table)[0]
    file.unlink()
    found = audit(lake)
    assert found.code == 8
    gone = found.one("file_missing")
    assert (gone["table"], gone["file"].rpartition("/")[2]) == (table.qualified, file.name)
    told_with_it = {
        "silver.fact_crypto_trades": ["ids_lost"] * 2,
        "silver.trade_id_coverage": ["ids_unclaimed"] * 2,
        "gold.dm_trade_bars": ["bar_missing"] * 2,
        "gold.dm_crypto_price_stats": ["statistic_missing"] * 2,
        "gold.dm_completeness": ["hour_missing"] * 2,
    }
    assert found.kinds == sorted(["file_missing", *told_with_it.get(table.qualified, [])])


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_table_that_was_removed_is_named(lake: Path, table: Table) -> None:
    shutil.rmtree(place(lake, table))
    found = audit(lake)
    assert found.code == 8
    gone = found.one("table_missing")
    assert (gone["table"], gone["text"]) == (table.qualified, f"{table.qualified} is not there")
    assert set(found.kinds) <= {"table_missing", "ids_lost"}


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def _zero(file: Path) -> None:
    file.write_bytes(b"\0" * file.stat().st_size)


def _spoil_the_middle(file: Path) -> None:
    """The footer stays whole: only reading the values shows it."""
    content = file.read_bytes()
    file.write_bytes(content[:4] + b"\xff" * (len(content) // 2) + content[4 + len(content) // 2 :])


@pytest.mark.parametrize("harm", [_truncate, _zero, _spoil_the_middle])
@pytest.mark.parametrize("table", [BRONZE, SILVER, QUARANTINE, BARS], ids=lambda table: table.name)
def test_a_file_that_cannot_be_read_is_named(lake: Path, table: Table, harm: Callable[[Path], None]) -> None:
    file = files(lake, table)[0]
    harm(file)
    found = audit(lake)
    assert found.code == 8
    broken = found.one("file_unreadable")
    assert (broken["table"], broken["file"].rpartition("/")[2]) == (table.qualified, file.name)
    assert not set(found.kinds) - {"file_unreadable", "ids_lost", "bar_missing"}


def test_a_table_whose_log_is_torn_is_named_and_the_others_are_still_compared(lake: Path) -> None:
    newest = max((place(lake, BARS) / "_delta_log").glob("*.json"))
    newest.write_bytes(b"\0" * newest.stat().st_size)
    found = audit(lake)
    assert found.code == 8
    assert found.kinds == ["table_unreadable"]
    assert found.one("table_unreadable")["text"].startswith("gold.dm_trade_bars can't be opened: ")
    assert found.product("BTC-USD")["held_ids"] == 120
    assert run(["process", "--once", "--lake", str(lake)]) == 0  # as it says
    assert audit(lake).code == 0
