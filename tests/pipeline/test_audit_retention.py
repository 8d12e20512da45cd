"""The audit tells what was let go on purpose from what was lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cryptopulse.lake.tables import BARS, BRONZE, COMPLETENESS, COVERAGE, SILVER
from support import Lake, Trade, at, page
from support_audit import audit, delete
from support_retention import ALL, COUNT, DAY_S, DAYS, MISSING, day, keeping, messages_of, run


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    """Five days, all healed."""
    with closing(Lake(tmp_path / "lake")) as lake:
        lake.take_in(message for number in range(DAYS) for message in messages_of(number))
        lake.take_in([page([MISSING])])
        yield lake


def test_days_let_go_are_no_loss(lake: Lake) -> None:
    run(lake, keeping(bronze_days=2, silver_days=3, quarantine_days=2))
    found = audit(lake.path)
    assert (found.code, found.kinds) == (0, [])
    ledger = found.product("BTC-USD")
    assert (ledger["expected_ids"], ledger["held_ids"], ledger["let_go_ids"]) == (len(ALL), 2 * COUNT, 3 * COUNT)
    assert [(gone["table"], gone["rows"], len(gone["days"])) for gone in found.json["let_go"]] == [
        ("bronze.coinbase_raw_trades", 2 * COUNT + 2, 2),
        ("silver.fact_crypto_trades", 3 * COUNT, 3),
        ("silver.quarantined_messages", 2, 2),
    ]
    assert {(one["day"], one["rows"]) for one in found.json["let_go"][1]["days"]} == {
        (str(day(number)), COUNT) for number in range(3)
    }
    text = audit(lake.path, as_text=True).text
    assert f"let go on purpose: 3 days of silver.fact_crypto_trades, until {day(2)} (120 rows)\n" in text
    assert f"{2 * COUNT} held once, {3 * COUNT} let go on purpose; nothing is missing" in text


@pytest.mark.parametrize("hours", [("--from", 2), ("--from", 3), ("--to", 2), ("--to", 4)])
def test_days_let_go_are_no_loss_in_any_part_of_the_time(lake: Lake, hours: tuple[str, int]) -> None:
    run(lake, keeping(bronze_days=2, silver_days=3))
    assert audit(lake.path, hours[0], str(day(hours[1]))).kinds == []


def test_a_lake_of_which_all_trades_and_messages_are_gone_is_complete(lake: Lake) -> None:
    run(lake, keeping(bronze_days=DAYS, silver_days=DAYS))
    found = audit(lake.path)
    assert (found.code, found.product("BTC-USD")["let_go_ids"]) == (0, len(ALL))


@pytest.mark.parametrize("number", [2, 3])
def test_a_day_that_nobody_let_go_is_lost(lake: Lake, number: int) -> None:
    run(lake, keeping(silver_days=2))
    delete(lake.path, SILVER, f"event_date = '{day(number)}'")
    found = audit(lake.path)
    lost = [one for one in found.findings if one["kind"] == "ids_lost"]
    assert [(one["first_trade_id"], one["ids"]) for one in lost] == [(number * COUNT + 1, COUNT)]


def test_messages_that_nobody_let_go_are_lost(lake: Lake) -> None:
    run(lake, keeping(bronze_days=2))
    delete(lake.path, BRONZE, f"received_date = '{day(2)}'")
    found = audit(lake.path)
    (missing,) = [one for one in found.findings if one["kind"] == "message_missing"]
    assert (missing["first_trade_id"], missing["ids"]) == (2 * COUNT + 1, COUNT)


def test_ids_of_days_gone_that_coverage_does_not_claim_are_found(lake: Lake) -> None:
    run(lake, keeping(silver_days=3))
    delete(lake.path, COVERAGE, "true")
    assert {"ids_unclaimed"} <= set(audit(lake.path).kinds)


def test_the_ledger_of_days_gone_is_still_compared(lake: Lake) -> None:
    run(lake, keeping(silver_days=3))
    delete(lake.path, COMPLETENESS, f"window_date = '{day(4)}'")
    assert "hour_missing" in audit(lake.path).kinds


def test_bars_of_kept_days_are_still_compared(lake: Lake) -> None:
    run(lake, keeping(silver_days=3))
    delete(lake.path, BARS, f"window_date = '{day(3)}'")
    assert set(audit(lake.path).kinds) >= {"bar_missing"}


def test_trades_that_came_late_for_a_day_gone_are_no_finding(lake: Lake) -> None:
    run(lake, keeping(bronze_days=3, silver_days=3))
    lake.take_in([page([Trade("ETH-USD", 7, at(0)), Trade("ETH-USD", 8, at(1))])])
    assert audit(lake.path).kinds == []
    run(lake, keeping(bronze_days=3, silver_days=3))
    assert audit(lake.path).kinds == []
    assert audit(lake.path).product("ETH-USD")["let_go_ids"] == 2


def test_a_hole_of_a_day_gone_stays_one(tmp_path: Path) -> None:
    with closing(Lake(tmp_path / "lake")) as lake:
        lake.take_in(message for number in range(DAYS) for message in messages_of(number))
        run(lake, keeping(bronze_days=3, silver_days=3))
        found = audit(lake.path)
        (hole,) = found.findings
        assert (hole["kind"], hole["first_trade_id"], hole["ids"]) == ("hole", MISSING.trade_id, 1)
        assert hole["repair"].startswith("start the producer")


def test_proofs_of_absence_outlive_their_messages(tmp_path: Path) -> None:
    with closing(Lake(tmp_path / "lake")) as lake:
        trades = [Trade("BTC-USD", one, at(one)) for one in (1, 2, 5, 6)]
        lake.take_in([page(trades)])
        lake.take_in([Trade("BTC-USD", 7, at(DAYS * DAY_S)).match()])
        run(lake, keeping(bronze_days=2))
        found = audit(lake.path)
        assert (found.kinds, found.product("BTC-USD")["absent_ids"]) == ([], 2)
