"""The producer with healing, on a simulated exchange: every id ends in the log, or is proved to exist nowhere."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import uvloop
from feed_exchange import MB, GatedLog, producing
from healing import PATIENCE_S, Setup, published, reports, simulated, until
from simulator_server import simulator
from structlog.testing import capture_logs

from cryptopulse import producer
from cryptopulse.healing import heal, work_list
from support import orders


@pytest.fixture(autouse=True)
def _frequent_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests wait for reports; a person has more time."""
    monkeypatch.setattr(producer, "REPORT_INTERVAL_S", 0.05)
    monkeypatch.setattr(producer, "UNCHANGED_S", 0.0)


@pytest.mark.parametrize("dialect", ["exchange", "advanced"])
def test_every_twentieth_message_dropped_and_rest_failing_in_every_way_loses_nothing(
    dialect: str, tmp_path: Path
) -> None:
    faults = "drop=0.05,reorder=0.05,duplicate=0.05"
    rest_faults = "rest-429=0.1,rest-500=0.1,rest-stale=1s,rest-truncated=0.1"

    async def scenario() -> tuple[Setup, dict[str, Any], dict[str, Any]]:
        async with simulated(tmp_path) as setup, setup.recording(dialect) as run:
            await setup.every_product_seen(run)
            await setup.faults(f"{faults},{rest_faults}")
            await setup.more_trades(600)
            await setup.faults(rest_faults)
            await setup.every_product_seen(run)  # of the last trades on the Advanced feed later ones are the witness
            await setup.end(run)
            return setup, await setup.exchange.ledger(), run.last

    with capture_logs() as lines:
        setup, ledger, state = uvloop.run(scenario())
    assert setup.missing(ledger) == {}
    assert state["ids_healed"] > 0
    assert (state["ids_absent"], state["holes_open"]) == (0, 0)
    assert {"hole_found", "healing_started", "hole_closed"} <= {line["event"] for line in lines}
    assert {source for _, source, _ in setup.messages()} == {"websocket", "rest"}
    assert {key for key, source, _ in setup.messages() if source == "rest"} <= set(ledger["products"])


def test_what_was_traded_while_no_producer_ran_is_fetched_by_the_next(tmp_path: Path) -> None:
    async def scenario() -> tuple[Setup, dict[str, Any]]:
        async with simulated(tmp_path, rate=1000) as setup:
            async with setup.recording() as run:
                await setup.every_product_seen(run)
            await setup.more_trades(3000)
            async with setup.recording() as run:
                await setup.every_product_seen(run)
                return setup, await setup.end(run)

    with capture_logs() as lines:
        setup, ledger = uvloop.run(scenario())
    assert setup.logged() == published(ledger)
    holes = [line for line in lines if line["event"] == "hole_found"]
    assert {line["product"] for line in holes} == set(ledger["products"])
    assert sum(line["missing"] for line in holes) > 2900


def test_an_id_that_the_exchange_does_not_have_is_reported_after_its_proof_and_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_list, "PROOF_NS", work_list.SECOND_NS)

    async def scenario() -> tuple[Setup, dict[str, Any], dict[str, Any]]:
        async with simulated(tmp_path) as setup, setup.recording() as run:
            await setup.every_product_seen(run)
            await setup.faults("skip=0.02")
            await setup.more_trades(400)
            await setup.faults("")
            await setup.every_product_seen(run)
            await setup.end(run)
            await setup.stored()
            asked = await setup.pages_asked()
            await reports(run, 50)  # two looks at the tables, which show the gaps
            assert await setup.pages_asked() == asked
            return setup, await setup.exchange.ledger(), run.last

    with capture_logs() as lines:
        setup, ledger, state = uvloop.run(scenario())
    skipped = {(product, i) for product, figures in ledger["products"].items() for i in figures["skipped_trade_ids"]}
    absent = [line for line in lines if line["event"] == "ids_absent"]
    assert skipped
    assert {(line["product"], i) for line in absent for i in range(line["first"], line["last"] + 1)} == skipped
    assert state["ids_absent"] == len(skipped)
    assert setup.logged() == published(ledger)
    for product, i in skipped:  # the lasting proof: two pages with what is above and below, and without the id
        pages = [json.loads(body) for key, source, body in setup.messages() if (key, source) == (product, "rest")]
        shown = [{row["trade_id"] for row in page} for page in pages]
        assert sum(i not in ids and min(ids) < i < max(ids) for ids in shown) >= 2


def test_a_product_that_rest_does_not_know_is_reported_and_left_alone(tmp_path: Path) -> None:
    async def scenario() -> dict[str, Any]:
        async with (
            simulated(tmp_path, products=1) as setup,
            simulator(products=["ZZZ-USD"], rate=1) as elsewhere,
            setup.recording(products=["BTC-USD"], rest_url=str(elsewhere.http.base_url)) as run,
        ):
            await until(run, lambda state: state["trades_total"] > 0)
            await setup.faults("drop=0.5")
            await until(run, lambda state: state["rest_failures"] > 0)
            await reports(run, 20)
            return run.last

    with capture_logs() as lines:
        state = uvloop.run(scenario())
    refused = [line for line in lines if line["event"] == "healing_refused"]
    assert ["BTC-USD is no product there" in line["error"] for line in refused] == [True]
    assert 1 <= state["rest_requests"] <= heal.REQUESTS_AT_ONCE
    assert state["ids_missing"] > 0
    assert state["state"] == "recording"


def test_live_messages_come_first(tmp_path: Path) -> None:
    """While the log hangs and the buffer is not nearly empty, no page is asked for."""

    async def scenario() -> tuple[Setup, dict[str, Any]]:
        async with simulated(tmp_path) as setup:
            log = setup.log()
            gated = GatedLog(log)
            async with producing(setup.settings(buffer_max_mb=1), gated) as run:
                try:
                    await until(run, lambda state: state["trades_total"] > 0)
                    await setup.faults("drop=0.1")
                    await until(run, lambda state: state["buffer_bytes"] > MB // 4 and state["ids_missing"] > 5)
                    asked = await setup.pages_asked()
                    await reports(run, 12)
                    assert await setup.pages_asked() <= asked + heal.REQUESTS_AT_ONCE
                    assert (run.last["ids_healed"], run.last["lost_messages"]) == (0, 0)
                    await setup.faults("")
                finally:
                    gated.gate.set()
                await setup.every_product_seen(run)
                ledger = await setup.end(run)
            log.close()
            return setup, ledger

    setup, ledger = uvloop.run(scenario())
    assert setup.missing(ledger) == {}


def test_without_healing_holes_are_only_reported(tmp_path: Path) -> None:
    async def scenario() -> tuple[Setup, dict[str, Any]]:
        async with simulated(tmp_path) as setup:
            log = setup.log()
            settings = setup.settings()
            silent = settings.model_copy(update={"healing": settings.healing.model_copy(update={"enabled": False})})
            async with producing(silent, log) as run:
                await setup.every_product_seen(run)
                await setup.faults("drop=0.2")
                await until(run, lambda state: state["ids_missing"] > 10)
                await reports(run, 20)
                assert await setup.pages_asked() == 0
            log.close()
            return setup, run.last

    with capture_logs() as lines:
        _, state = uvloop.run(scenario())
    assert state["ids_healed"] == 0
    assert "healing_started" not in {line["event"] for line in lines}


@pytest.mark.parametrize(
    "answer", [{"status": 503}, {"status": 403, "headers": {"retry-after": "1"}}, {"body": b"<html>"}]
)
def test_a_product_that_rest_fails_on_keeps_no_other_from_being_healed(answer: dict[str, Any], tmp_path: Path) -> None:
    async def scenario() -> tuple[Setup, dict[str, Any]]:
        async with simulated(tmp_path) as setup, setup.recording() as run:
            await setup.every_product_seen(run)
            failing = setup.products[0]
            failure = {"path": f"/{failing}/trades", "times": -1, **answer}
            await setup.exchange.http.post("/simulator/rest", content=orders(failure))
            await setup.faults("drop=0.2")
            await setup.more_trades(400)
            await setup.faults("")
            await setup.every_product_seen(run)
            ledger = await setup.exchange.stop_trading()
            async with asyncio.timeout(PATIENCE_S):
                while set(setup.missing(ledger)) != {failing}:
                    await run.next_report()
            await setup.exchange.http.post("/simulator/rest", content=orders())
            return setup, await setup.end(run)

    setup, ledger = uvloop.run(scenario())
    assert setup.missing(ledger) == {}


@pytest.mark.parametrize(
    "bad", [{"trade_id": None}, {"trade_id": "x"}, {"time": None, "price": None}, None, 7], ids=str
)
def test_rows_that_cant_be_read_are_fetched_once_and_not_called_absent(bad: Any, tmp_path: Path) -> None:
    async def scenario() -> tuple[Setup, dict[str, Any], dict[str, Any]]:
        async with simulated(tmp_path) as setup, setup.recording() as run:
            await setup.every_product_seen(run)
            ledger = await setup.exchange.ledger()
            rows = {
                product: {
                    trade_id: {"trade_id": trade_id, "price": "1", **bad} if isinstance(bad, dict) else bad
                    for trade_id in range(figures["first_trade_id"], figures["last_trade_id"] + 5_000, 3)
                }
                for product, figures in ledger["products"].items()
            }
            await setup.exchange.http.post("/simulator/rest", content=orders(rows=rows))
            await setup.faults("drop=0.2")
            await setup.more_trades(400)
            await setup.faults("")
            await setup.every_product_seen(run)
            ledger = await setup.exchange.stop_trading()
            await until(run, lambda state: state["ids_missing"] == 0 and state["ids_open"] == 0)
            pages = await setup.pages_asked()
            await reports(run, 20)
            assert await setup.pages_asked() == pages
            return setup, ledger, run.last

    setup, ledger, state = uvloop.run(scenario())
    assert state["ids_absent"] == 0
    missing = {(product, trade_id) for product, ids in setup.missing(ledger).items() for trade_id in ids}
    first = {product: figures["first_trade_id"] for product, figures in ledger["products"].items()}
    assert all((trade_id - first[product]) % 3 == 0 for product, trade_id in missing)
