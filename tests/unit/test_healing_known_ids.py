"""Holes that only the tables know of are found and fetched as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import uvloop
from deltalake import write_deltalake
from healing import Ids, Setup, published, reports, simulated, until
from structlog.testing import capture_logs

from cryptopulse import producer
from cryptopulse.healing import heal, work_list
from cryptopulse.healing.known_ids import known_ids
from cryptopulse.intervals import Intervals
from cryptopulse.lake.tables import COVERAGE
from support import Lake, Trade, page


@pytest.fixture(autouse=True)
def _frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests wait for reports and looks; a person has more time."""
    monkeypatch.setattr(producer, "REPORT_INTERVAL_S", 0.05)
    monkeypatch.setattr(producer, "UNCHANGED_S", 0.0)
    monkeypatch.setattr(heal, "SECOND_COMPARISON_S", 0.5)


def test_a_producer_whose_log_is_gone_goes_on_where_the_tables_end(tmp_path: Path) -> None:
    async def scenario() -> tuple[Setup, dict[str, Any], Ids]:
        async with simulated(tmp_path) as setup:
            async with setup.recording() as run:
                await setup.every_product_seen(run)
            await setup.stored()
            stored = setup.logged()
            setup.forget_log()
            await setup.more_trades(300)
            async with setup.recording() as run:
                await setup.every_product_seen(run)
                ledger = await setup.end(run, stored)
            return setup, ledger, stored

    setup, ledger, stored = uvloop.run(scenario())
    assert setup.missing(ledger, stored) == {}
    for product, there in published(ledger).items():
        assert stored[product] | setup.logged()[product] == there


def test_a_hole_that_only_the_tables_know_of_is_fetched_until_their_ids_are_one_interval(tmp_path: Path) -> None:
    async def scenario() -> tuple[Setup, dict[str, Any]]:
        async with simulated(tmp_path) as setup:
            async with setup.recording() as run:
                await setup.every_product_seen(run)
                await setup.faults("drop=0.2,rest-500=1")
                await setup.more_trades(300)
                await setup.every_product_seen(run)
            await setup.stored()
            setup.forget_log()
            await setup.faults("")
            async with setup.recording() as run:
                await setup.every_product_seen(run)
                await until(run, lambda state: state["ids_healed"] > 20)
                ledger = await setup.exchange.stop_trading()
                await until(run, lambda state: state["ids_missing"] + state["ids_open"] == 0)
                await reports(run, 30)
            await setup.stored()
            return setup, ledger

    with capture_logs() as lines:
        setup, ledger = uvloop.run(scenario())
    lake = Lake(setup.folder / "lake")
    rows = {row["symbol"]: (row["first_trade_id"], row["last_trade_id"]) for row in lake.rows(COVERAGE)}
    assert len(lake.rows(COVERAGE)) == len(rows)
    lake.close()
    assert rows == {
        p: (figures["first_trade_id"], figures["last_trade_id"]) for p, figures in ledger["products"].items()
    }
    assert "tables" in {line["witness"] for line in lines if line["event"] == "hole_found"}


def test_an_absence_needs_two_pages_even_when_the_tables_know_the_first_and_none_of_the_next_producer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_list, "PROOF_NS", 4 * work_list.SECOND_NS)

    async def scenario() -> dict[str, Any]:
        async with simulated(tmp_path) as setup:
            async with setup.recording() as run:
                await setup.every_product_seen(run)
                await setup.faults("skip=0.02")
                await setup.more_trades(200)
                await setup.faults("")
                await setup.every_product_seen(run)
                await setup.stored()
                await reports(run, 25)  # the tables are looked at before the proof is due
                ledger = await setup.end(run)
            await setup.stored()
            asked = await setup.pages_asked()
            async with setup.recording() as run:
                await until(run, lambda state: state["connections"] == 1)
                await reports(run, 40)
                assert await setup.pages_asked() == asked
            return ledger

    with capture_logs() as lines:
        ledger = uvloop.run(scenario())
    skipped = {(product, i) for product, figures in ledger["products"].items() for i in figures["skipped_trade_ids"]}
    absent = [line for line in lines if line["event"] == "ids_absent"]
    assert skipped
    assert {(line["product"], i) for line in absent for i in range(line["first"], line["last"] + 1)} == skipped


def test_tables_that_cant_be_read_are_said_once_and_recording_goes_on(tmp_path: Path) -> None:
    async def scenario() -> dict[str, Any]:
        async with simulated(tmp_path) as setup:
            folder = setup.folder / "lake" / "silver" / "trade_id_coverage" / "_delta_log"
            folder.mkdir(parents=True)
            (folder / f"{0:020}.json").write_text("{")
            async with setup.recording() as run:
                await setup.every_product_seen(run)
                await reports(run, 60)
                return run.last

    with capture_logs() as lines:
        state = uvloop.run(scenario())
    assert state["state"] == "recording"
    (said,) = [line for line in lines if line["event"] == "tables_unreadable"]
    assert "\n" not in said["error"]


def test_a_fault_in_healing_is_said_and_does_not_end_the_recording(tmp_path: Path) -> None:
    columns = {"symbol": ["BTC-USD"] * 2, "first_trade_id": [1, None], "last_trade_id": [2, 3]}
    loaded = pa.array([0, 0], COVERAGE.arrow_schema.field("load_timestamp").type)
    nonsense = pa.table({**columns, "load_timestamp": loaded})
    write_deltalake(str(tmp_path / "lake" / "silver" / "trade_id_coverage"), nonsense)

    async def scenario() -> dict[str, Any]:
        async with simulated(tmp_path) as setup, setup.recording() as run:
            await setup.every_product_seen(run)
            await reports(run, 20)
            await setup.every_product_seen(run)
            return run.last

    with capture_logs() as lines:
        state = uvloop.run(scenario())
    assert state["state"] == "recording"
    assert len([line for line in lines if line["event"] == "unexpected_error"]) == 1


def test_what_the_tables_say_is_read_whether_they_are_there_or_not(lake: Lake) -> None:
    location = lake.settings.location
    assert known_ids(location) == ({}, {})
    lake.take_in(Trade(product, i).match() for product in ("A-USD", "B-USD") for i in (5, 6, 7, 9))
    held, absent = known_ids(location)
    assert held == {"A-USD": Intervals([(5, 7), (9, 9)]), "B-USD": Intervals([(5, 7), (9, 9)])}
    assert absent == {}
    lake.take_in([page([Trade("A-USD", 7), Trade("A-USD", 9)])])
    assert known_ids(location).absent == {"A-USD": Intervals([(8, 8)])}
