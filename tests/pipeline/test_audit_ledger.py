"""The ledger accounts for every id: held, healed, absent at the exchange, on its way, or missing, and since when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cryptopulse.cli import run
from cryptopulse.lake.tables import ABSENT, BARS, BRONZE, SILVER
from support import Message, Trade, advanced, at, message, page
from support_audit import audit, create, delete, fill, heartbeat, intervals_of, iso, market, matches, offset_of, rows

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a lake of messages, each argument a batch."""
    return lambda *parts: fill(tmp_path / "lake", parts)


def btc(*ids: int) -> list[Trade]:
    return market(ids, ("BTC-USD",))


def test_a_hole_is_told_with_the_times_around_it_and_the_command_that_fetches_it(make: Make) -> None:
    lake = make(matches(btc(*range(100, 110), *range(112, 120), 121)))
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["hole", "hole"])
    first, second = found.findings
    assert (first["first_trade_id"], first["last_trade_id"], first["ids"]) == (110, 111, 2)
    assert (first["after_time"], first["before_time"], first["witness"]) == (iso(at(18)), iso(at(24)), "trade")
    assert first["text"] == (
        "BTC-USD: ids 110 to 111 (2) never received, between 2026-07-07T12:00:18Z and 2026-07-07T12:00:24Z; a later "
        "trade shows it"
    )
    assert first["repair"] == (
        f"run `cryptopulse backfill BTC-USD --from 2026-07-07T12:00:18Z --to 2026-07-07T12:00:25Z --lake {lake}`; a "
        "producer that runs does it by itself"
    )
    assert second["text"].startswith("BTC-USD: id 120 never received")
    ledger = found.product("BTC-USD")
    counts = (ledger["expected_ids"], ledger["held_ids"], ledger["missing_ids"])
    assert counts == (22, 19, 3)
    assert [(hole["first_trade_id"], hole["last_trade_id"]) for hole in ledger["holes"]] == [(110, 111), (120, 120)]
    assert audit(lake, as_text=True).text.endswith("NOT COMPLETE: 3 ids missing; findings by kind: hole: 2\n")


def test_what_was_healed_over_rest_is_told_with_its_source(make: Make) -> None:
    lake = make(matches(btc(*range(100, 110), *range(115, 120))), [page(btc(*range(108, 117)))])
    found = audit(lake)
    assert found.code == 0
    ledger = found.product("BTC-USD")
    assert (ledger["held_ids"], ledger["healed_ids"], ledger["missing_ids"]) == (20, 5, 0)
    assert ledger["healed"] == [
        {
            "first_trade_id": 110, "last_trade_id": 114, "first_time": iso(at(20)), "last_time": iso(at(28)),
            "source": "rest",
        }
    ]  # fmt: skip
    assert (
        "healed  BTC-USD: ids 110 to 114 (5) by rest, traded 2026-07-07T12:00:20Z to 2026-07-07T12:00:28Z"
        in audit(lake, as_text=True).text.splitlines()
    )


def test_the_advanced_feeds_batches_are_read_as_well(make: Make) -> None:
    assert audit(make([advanced(btc(*range(100, 110))), advanced(market(range(108, 115)))])).code == 0


def proofs(lake: Path, body: bytes, *spans: tuple[int, int], **changes: Any) -> None:
    """Makes `silver.absent_trade_ids` with these spans, proven by the page with this body."""
    proven = [
        {
            "symbol": "BTC-USD", "first_trade_id": first, "last_trade_id": last, "partition": 0,
            "offset": offset_of(lake, body, BRONZE), "received_time": at(0), "load_timestamp": at(0),
            "received_date": date(2026, 7, 7), **changes,
        }
        for first, last in spans
    ]  # fmt: skip
    create(lake, "silver", "absent_trade_ids", pa.Table.from_pylist(proven), "received_date")


def test_ids_that_a_page_of_the_exchange_leaves_out_are_absent_and_not_missing(make: Make) -> None:
    proof = page(btc(109, 112, 113))
    lake = make(matches(btc(*range(100, 110), *range(112, 120))), [proof])
    proofs(lake, proof["body"], (110, 111))
    found = audit(lake)
    assert (found.code, found.findings) == (0, [])
    ledger = found.product("BTC-USD")
    assert (ledger["expected_ids"], ledger["held_ids"], ledger["absent_ids"], ledger["missing_ids"]) == (20, 18, 2, 0)
    offset = offset_of(lake, proof["body"], BRONZE)
    assert ledger["absent"] == [{"first_trade_id": 110, "last_trade_id": 111, "partition": 0, "offset": offset}]
    text = audit(lake, as_text=True).text
    assert f"left out by the exchange, as the message at partition 0, offset {offset} of bronze shows" in text
    assert text.endswith(
        "COMPLETE: of 20 ids of 1 products 18 held once, 2 absent at the exchange; nothing is missing\n"
    )


def test_an_absence_that_several_pages_prove_is_told_once_with_its_earliest_proof(make: Make) -> None:
    pages = [page(btc(109, 112)), page(btc(108, 109, 112, 113))]
    lake = make(matches(btc(*range(100, 110), *range(112, 120))), pages)
    proofs(lake, pages[1]["body"], (110, 111))
    both = pa.concat_tables([rows(lake, ABSENT)] * 2).to_pylist()
    both[0]["offset"] = offset_of(lake, pages[0]["body"], BRONZE)
    create(lake, "silver", "absent_trade_ids", pa.Table.from_pylist(both), "received_date")
    found = audit(lake)
    assert found.code == 0
    (told,) = found.product("BTC-USD")["absent"]
    assert (told["offset"], found.product("BTC-USD")["absent_ids"]) == (both[0]["offset"], 2)


def test_pages_that_do_not_prove_an_absence_are_told_and_the_ids_are_missing(make: Make) -> None:
    flawed = [
        (page(btc(109, 111, 112)), "the page holds such a trade"),
        (page(btc(107, 108, 109)), "the page does not hold the trades on both sides"),
        (page(btc(112, 113)), "the page does not hold the trades on both sides"),
        (page(market((109, 112), ("ETH-USD",))), "that message is no page of the product's trades"),
        (btc(109)[0].match(), "that message is no page of the product's trades"),
        (message(b'{"message": "NotFound"}', "rest", "BTC-USD"), "that message is no page of trades"),
    ]
    lake = make(matches(btc(*range(100, 109), *range(112, 120))), [body for body, _ in flawed])
    claims = []
    for body, _ in flawed:
        proofs(lake, body["body"], (110, 111))
        claims += rows(lake, ABSENT).to_pylist()
    create(lake, "silver", "absent_trade_ids", pa.Table.from_pylist(claims), "received_date")
    found = audit(lake)
    assert found.code == 8
    told = {(finding["offset"], finding["flaw"]) for finding in found.of("absence_unproven")}
    assert told == {(offset_of(lake, body["body"], BRONZE), flaw) for body, flaw in flawed}
    ledger = found.product("BTC-USD")
    assert (ledger["absent_ids"], ledger["missing_ids"]) == (0, 1)  # one of the pages brought 111


def test_a_proof_whose_page_is_gone_is_told(make: Make) -> None:
    proof = page(btc(109, 112))
    lake = make(matches(btc(*range(100, 110), *range(112, 120))), [proof])
    proofs(lake, proof["body"], (110, 111))
    delete(lake, BRONZE, "source = 'rest'")
    assert audit(lake).one("absence_unproven")["flaw"] == "bronze has no such message"


def test_an_absent_id_that_came_after_all_counts_as_held(make: Make) -> None:
    proof = page(btc(109, 112))
    lake = make(matches(btc(*range(100, 110), *range(112, 120))), [proof], matches(btc(110)))
    proofs(lake, proof["body"], (110, 111))
    ledger = audit(lake).product("BTC-USD")
    assert (ledger["held_ids"], ledger["absent_ids"], ledger["missing_ids"]) == (19, 1, 0)


def test_a_heartbeat_that_names_a_later_trade_shows_what_is_missing_at_the_end(make: Make) -> None:
    beats = [heartbeat("BTC-USD", 113, seconds) for seconds in range(30, 60)]
    lake = make([*matches(market(range(100, 111))), *beats, heartbeat("ETH-USD", 110, 30)])
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["hole"])
    hole = found.one("hole")
    assert (hole["symbol"], hole["first_trade_id"], hole["last_trade_id"]) == ("BTC-USD", 111, 113)
    assert (hole["after_time"], hole["before_time"], hole["witness"]) == (iso(at(20)), None, "heartbeat")
    assert hole["text"] == (
        "BTC-USD: ids 111 to 113 (3) never received, after 2026-07-07T12:00:20Z; the exchange's heartbeat names them"
    )
    assert hole["repair"].startswith(f"run `cryptopulse backfill BTC-USD --from 2026-07-07T12:00:20Z --lake {lake}`; ")
    ledger = found.product("BTC-USD")
    assert (ledger["last_trade_id"], ledger["missing_ids"], ledger["witness"]) == (113, 3, "heartbeat")
    assert ledger["heartbeat_trade_id"] == 113
    assert found.product("ETH-USD")["witness"] == "heartbeat"


def test_a_heartbeat_counts_only_when_its_trade_had_time_to_come(make: Make) -> None:
    """Bronze grows: what follows the heartbeat may still be in the log."""
    found = audit(make([*matches(btc(*range(100, 111))), heartbeat("BTC-USD", 113, 30), heartbeat("BTC-USD", 113, 38)]))
    assert (found.code, found.product("BTC-USD")["heartbeat_trade_id"]) == (0, None)


def test_heartbeats_that_know_nothing_are_no_witness(make: Make) -> None:
    found = audit(make([*matches(btc(*range(100, 111))), *(heartbeat("BTC-USD", 0, s) for s in range(30, 60))]))
    assert (found.code, found.product("BTC-USD")["witness"]) == (0, "trade")


def hours_of_trades(*left_out: int) -> list[Message]:
    """A trade every ten minutes for five hours from 12:00 on, of two products."""
    return [
        Trade(product, number, at((number - 100) * 600)).match()
        for number in range(100, 130)
        if number not in left_out
        for product in ("BTC-USD", "ETH-USD")
    ]


def test_only_the_hours_asked_for_are_audited_and_holes_at_their_edges_belong_to_them(make: Make) -> None:
    lake = make(hours_of_trades(103, 106, 111, 118))
    found = audit(lake, "--from", "2026-07-07T13:20", "--to", "2026-07-07T14:30Z", "--product", "eth-usd")
    assert (found.json["from"], found.json["to"]) == ("2026-07-07T13:00:00+00:00", "2026-07-07T15:00:00+00:00")
    assert [ledger["symbol"] for ledger in found.json["products"]] == ["ETH-USD"]
    ledger = found.product("ETH-USD")
    # 13:00 is 106 and 15:00 is 118, both of them holes at an edge.
    assert (ledger["first_trade_id"], ledger["last_trade_id"]) == (106, 118)
    assert [hole["first_trade_id"] for hole in ledger["holes"]] == [106, 111, 118]
    assert found.checked("bars") == 10
    assert found.code == 8
    assert audit(lake, "--from", "2026-07-07T16:00").code == 0
    assert audit(lake, "--to", "2026-07-07T16:00+03:00").product("BTC-USD")["missing_ids"] == 2


def test_one_trade_with_a_wrong_time_hides_no_hole_of_the_audited_hours(make: Make) -> None:
    trades = [*btc(*range(100, 130)), Trade("BTC-USD", 99, at(86_400 * 365))]
    lake = make(matches([trade for trade in trades if trade.trade_id != 110]))
    found = audit(lake, "--to", "2026-07-07T13:00")
    assert (found.code, found.one("hole")["first_trade_id"], found.product("BTC-USD")["held_ids"]) == (8, 110, 29)


def test_what_was_harmed_outside_of_the_audited_time_is_not_told(make: Make) -> None:
    lake = make(hours_of_trades())
    delete(lake, BARS, "window_start = '2026-07-07T12:10:00Z'")
    delete(lake, SILVER, "trade_id = 102")
    assert audit(lake, "--from", "2026-07-07T13:00").code == 0
    assert audit(lake, "--to", "2026-07-07T13:00").kinds == ["bar_missing"] * 2 + ["ids_lost"] * 2


def test_an_hour_without_a_trade_within_an_outage_is_not_complete(make: Make) -> None:
    lake = make(hours_of_trades(*range(104, 120)))
    found = audit(lake, "--from", "2026-07-07T14:00", "--to", "2026-07-07T15:00", "--product", "BTC-USD")
    assert (found.code, found.kinds) == (8, ["hole"])
    assert found.product("BTC-USD")["missing_ids"] == 16


def test_a_lake_of_several_days_is_read_day_by_day(make: Make) -> None:
    days = [Trade("BTC-USD", number, at(number * 40_000)) for number in range(1, 13) if number != 6]
    found = audit(make([trade.match() for trade in days]))
    assert found.kinds == ["hole"]
    assert (found.one("hole")["after_time"], found.one("hole")["before_time"]) == (iso(at(200_000)), iso(at(280_000)))
    assert found.checked("bars") == 11


def test_a_new_embedded_log_is_no_hole_in_bronze(tmp_path: Path) -> None:
    folder = fill(tmp_path / "lake", [matches(btc(*range(100, 105)))])
    (folder / "_cryptopulse" / "log.db").rename(tmp_path / "old.db")
    for rest in (folder / "_cryptopulse").glob("log.db-*"):
        rest.unlink()
    before = rows(folder, BRONZE)["offset"].to_pylist()
    while time.time_ns() // 1000 < max(before) + 1_100_000:  # nobody makes a new one within a second
        time.sleep(0.05)
    fill(folder, [matches(btc(*range(105, 110)))])
    offsets = sorted(rows(folder, BRONZE)["offset"].to_pylist())
    assert offsets[5] - offsets[4] > 1_000_000
    assert sorted(before) == offsets[:5]
    assert audit(folder).code == 0


def test_a_lake_without_trades_is_complete(make: Make) -> None:
    lake = make([heartbeat("BTC-USD", 5, 0)])
    found = audit(lake)
    assert (found.code, found.json["products"]) == (0, [])
    assert audit(lake, as_text=True).text.endswith("COMPLETE: there are no trades\n")


def test_every_bad_message_is_excused_by_the_quarantine(make: Make) -> None:
    good = btc(*range(100, 110))
    bad = [good[3].match(price="cheap"), btc(110)[0].match(side=None), btc(111)[0].match(size="0")]
    mixed = page([*btc(109, 112)])
    rows_of_page = json.loads(mixed["body"])
    rows_of_page[0]["price"] = "-1"  # trade 112 of the page is refused, 109 is not
    mixed["body"] = json.dumps(rows_of_page).encode()
    lake = make(matches(good), [*bad, mixed])
    found = audit(lake)
    assert (found.code, found.findings) == (0, [])
    assert found.product("BTC-USD")["last_trade_id"] == 109
    # Nothing is known of trades after 109, but that such messages came is said.
    assert found.json["refused_ids"] == 3
    assert audit(lake, as_text=True).text.endswith(
        "10 held once; nothing is missing; 3 more were received and refused (see silver.quarantined_messages)\n"
    )


CHEAP, NO_SIDE = "price is missing, malformed or out of range", "side is neither buy nor sell"


def test_a_trade_that_was_received_and_refused_is_told_with_its_place_and_reason(make: Make) -> None:
    refused = [*[trade.match(price="cheap") for trade in btc(110, 111)], btc(112)[0].match(side=None)]
    lake = make([*matches(btc(*range(100, 110))), *refused, *matches(btc(*range(114, 120)))])
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["hole", "ids_refused"])
    assert intervals_of(found.of("hole")) == [("BTC-USD", 113, 113)]
    told = found.one("ids_refused")
    offset = offset_of(lake, refused[0]["body"], BRONZE)
    assert told["text"] == (
        "BTC-USD: ids 110 to 112 (3) received and refused, see silver.quarantined_messages at partition 0, offset "
        f"{offset}: {CHEAP}; {NO_SIDE}"
    )
    assert (told["offset"], told["reasons"], told["ids"]) == (offset, [CHEAP, NO_SIDE], 3)
    assert "backfill" not in told["repair"]
    assert found.product("BTC-USD")["missing_ids"] == 4


@pytest.mark.parametrize(
    "messages",
    [
        [trade.match(price="cheap") for trade in btc(*range(100, 103))],
        [advanced([replace(trade, size="0") for trade in btc(100, 101, 102)])],
        [page([replace(trade, price="-1") for trade in btc(100, 101, 102)])],
        [trade.match(time="1969-01-01T00:00:00Z") for trade in btc(100, 101, 102)],
        [*(trade.match(price="cheap") for trade in btc(100, 101, 102)), message(b"hello")],
    ],
    ids=["exchange", "advanced", "rest", "time", "with-noise"],
)
def test_a_lake_of_which_all_is_in_quarantine_is_not_complete(make: Make, messages: list[Message]) -> None:
    lake = make(messages)
    for scope in ([], ["--from", "2026-07-07T12:00"], ["--to", "2026-07-08"], ["--product", "BTC-USD"]):
        found = audit(lake, *scope)
        assert (found.code, found.json["complete"], found.json["products"]) == (8, False, [])
        assert intervals_of(found.of("ids_refused")) == [("BTC-USD", 100, 102)]
    assert "NOT COMPLETE: 0 ids missing; 3 more were received and refused" in audit(lake, as_text=True).text


def test_a_lake_of_nothing_but_what_can_not_be_read_is_not_complete(make: Make) -> None:
    lake = make([message(b"hello"), heartbeat("BTC-USD", 5, 0), message(b'{"type":"match","product_id":"?"}')])
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["messages_refused"])
    told = found.one("messages_refused")
    assert (told["messages"], told["offset"]) == (2, offset_of(lake, b"hello", BRONZE))
    assert audit(lake, "--from", "2026-07-09").code == 0  # they came before


def test_a_proof_of_absence_does_not_excuse_the_loss_of_a_trade_that_was_received(make: Make) -> None:
    proof = page(btc(109, 112))
    lake = make(matches(btc(*range(100, 110), *range(112, 120))), [proof], matches(btc(110)))
    proofs(lake, proof["body"], (110, 111))
    delete(lake, SILVER, "trade_id = 110")
    found = audit(lake)
    assert (found.code, found.one("ids_lost")["first_trade_id"]) == (8, 110)
    ledger = found.product("BTC-USD")
    assert (ledger["held_ids"], ledger["absent_ids"], ledger["missing_ids"]) == (18, 1, 1)


def test_a_refused_trade_that_came_right_as_well_is_held(make: Make) -> None:
    bad = [trade.match(price="cheap") for trade in btc(103, 104)]
    lake = make([*matches(btc(100, 101, 102)), *bad, *matches(btc(105))], [page(btc(102, 103, 104, 105))])
    found = audit(lake)
    assert (found.code, found.json["refused_ids"]) == (0, 0)


@pytest.mark.parametrize("trade_id", [103.5, "103.5", 103.0, " 103", "1_03", "103x"])
def test_half_an_id_is_none_that_was_received(make: Make, trade_id: object) -> None:
    found = audit(make([*matches(btc(100, 101, 102)), btc(103)[0].match(trade_id=trade_id), *matches(btc(105))]))
    assert (found.one("hole")["first_trade_id"], found.one("hole")["last_trade_id"]) == (103, 104)
    assert not found.of("ids_refused")


def test_a_message_that_silver_lost_is_no_refused_one(make: Make) -> None:
    lake = make([*matches(btc(*range(100, 110))), btc(104)[0].match(price="cheap")])
    delete(lake, SILVER, "trade_id = 104")
    found = audit(lake)
    assert "ids_lost" in found.kinds
    assert not found.of("ids_refused")


def test_every_command_that_fetches_goes_forward_in_time(make: Make) -> None:
    """Ids are in order, times nearly: the trade before a hole may be later than the one after it."""
    early, late = Trade("BTC-USD", 102, at(10)), Trade("BTC-USD", 100, at(14))
    told = audit(make(matches([late, early]))).one("hole")
    assert "--from 2026-07-07T12:00:10Z --to 2026-07-07T12:00:15Z" in told["repair"]


def test_a_product_of_which_silver_holds_nothing_is_made_again_first(make: Make) -> None:
    lake = make([*matches(btc(*range(100, 103), *range(105, 108))), *matches(market(range(100, 103), ("ETH-USD",)))])
    delete(lake, SILVER, "symbol = 'BTC-USD'")
    for told in audit(lake).findings:
        assert "backfill BTC-USD --lake" not in told["repair"]  # it needs a time


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "0001-01-01"], "--from: '0001-01-01' is no time of a trade; years go from 1970 to 2200."),
        (["--from", "yesterday"], "--from: 'yesterday' is no time; write it like 2026-07-07 or 2026-07-07T22:00."),
        (["--from", "2026-07-08", "--to", "2026-07-07"], "--from 2026-07-08 is not before --to 2026-07-07."),
        (["--product", "BTCUSD"], "Invalid product id 'BTCUSD' (expected BASE-QUOTE, e.g. BTC-USD)."),
        (["--product", "XRP-USD"], "There is nothing of XRP-USD in the lake "),
    ],
)
def test_a_mistake_is_one_line(
    market_lake: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "--lake", str(market_lake), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"cryptopulse: {said}")
    assert err.count("\n") == 1


def test_where_there_is_no_lake_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audit", "--lake", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("cryptopulse: There is no lake at ")
