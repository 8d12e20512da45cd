"""Several connections at once, and trades that come late: what one of them brings nobody has to fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import uvloop
from feed_exchange import producing
from healing import Setup, published, simulated, until
from structlog.testing import capture_logs

from cryptopulse import producer


@pytest.fixture(autouse=True)
def _frequent_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests wait for reports; a person has more time."""
    monkeypatch.setattr(producer, "REPORT_INTERVAL_S", 0.05)
    monkeypatch.setattr(producer, "UNCHANGED_S", 0.0)


@pytest.mark.parametrize("dialect", ["exchange", "both"])
def test_of_two_connections_one_is_cut_and_no_trade_is_missing_nor_fetched(dialect: str, tmp_path: Path) -> None:
    connections = 2 if dialect == "exchange" else 1

    async def scenario() -> tuple[Setup, dict[str, Any], dict[str, Any]]:
        async with simulated(tmp_path) as setup, setup.recording(dialect, connections=connections) as run:
            await until(run, lambda state: state["connections"] == 2)
            await setup.every_product_seen(run)
            await setup.faults("only=0,drop=0.3,disconnect=0.5s")
            await until(run, lambda state: state["reconnects"] == 1 and state["connections"] == 2)
            await setup.every_product_seen(run)
            await setup.end(run)
            return setup, await setup.exchange.ledger(), run.last

    with capture_logs() as lines:
        setup, ledger, state = uvloop.run(scenario())
    assert setup.logged() == published(ledger)
    assert "trades" not in ledger["rest_requests"]
    assert (state["holes"], state["ids_healed"], state["rest_requests"]) == (0, 0, 1)  # for the products
    assert [line for line in lines if line["event"] == "hole_found"] == []
    assert state["trades_repeated"] > ledger["trades"] // 4
    assert state["products"] == len(ledger["products"])


def test_what_one_feed_does_not_take_the_other_records(tmp_path: Path) -> None:
    async def scenario() -> tuple[Setup, dict[str, Any], list[int]]:
        products = ["BTC-USDC", "ETH-USD", "SOL-USD"]
        async with (
            simulated(tmp_path, products=products) as setup,
            setup.recording("both", products=products) as run,
        ):
            await until(run, lambda state: state["connections"] == 2)
            await setup.every_product_seen(run)
            ledger = await setup.end(run)
            return setup, ledger, [part["products"] for part in run.last["connection_states"]]

    setup, ledger, parts = uvloop.run(scenario())
    assert parts == [3, 2]
    assert setup.logged() == published(ledger)


def test_the_snapshot_after_a_reconnect_or_a_restart_heals_without_a_request(tmp_path: Path) -> None:
    async def scenario() -> tuple[Setup, dict[str, Any]]:
        async with simulated(tmp_path, rate=100) as setup:
            async with setup.recording("advanced", wait_s=30) as run:
                await setup.every_product_seen(run)
                await setup.faults("only=0,disconnect=0.3s")
                await until(run, lambda state: state["reconnects"] == 1 and state["connections"] == 1)
                await setup.every_product_seen(run)
            await setup.more_trades(20)
            async with setup.recording("advanced", wait_s=30) as run:
                await setup.every_product_seen(run)
                await setup.end(run)
            return setup, await setup.exchange.ledger()

    setup, ledger = uvloop.run(scenario())
    assert setup.logged() == published(ledger)
    assert "trades" not in ledger["rest_requests"]


def test_trades_that_come_late_leave_the_list_and_are_not_fetched(tmp_path: Path) -> None:
    """Dropped on one connection, they come with the snapshot of the next while healing still waits."""

    async def scenario() -> tuple[Setup, dict[str, Any], dict[str, Any]]:
        async with simulated(tmp_path, rate=20) as setup:  # a snapshot of 100 trades reaches back for some seconds
            log = setup.log()
            async with producing(setup.settings("advanced", wait_s=30), log) as run:
                await setup.every_product_seen(run)
                await setup.faults("only=0,drop=0.5")
                await until(run, lambda state: state["ids_missing"] > 0)
                await setup.faults("only=0,disconnect=0.1s")
                await until(run, lambda state: state["reconnects"] == 1 and state["connections"] == 1)
                await setup.every_product_seen(run)
                await setup.end(run)
            log.close()
            return setup, await setup.exchange.ledger(), run.last

    with capture_logs() as lines:
        setup, ledger, state = uvloop.run(scenario())
    assert setup.logged() == published(ledger)
    assert "trades" not in ledger["rest_requests"]
    late = [line["late"] for line in lines if line["event"] == "hole_closed"]
    assert 0 < sum(late) == state["ids_healed"]
