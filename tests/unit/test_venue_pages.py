"""Pages of the REST interfaces of Kraken, Binance and OKX: the parser and the audit read the same in them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptopulse.audit.venues import can_be_fetched, venue_page_ids, venue_trades
from cryptopulse.engine.parse import absent_ids, parse
from cryptopulse.feed.venue_rest import venue_page_ids as ids_for_the_log
from cryptopulse.lake.tables import ABSENT, QUARANTINE, SILVER
from cryptopulse.venues.registry import PAGES
from support import START, Lake, bronze, message
from support_audit import audit

KEYS = {"kraken": "BTC/USD@kraken", "binance": "BTCUSDT@binance", "okx": "BTC-USDT@okx"}
ROW_ID: dict[str, Any] = {"kraken": 6, "binance": "id", "okx": "tradeId"}
VENUE = pytest.mark.parametrize("venue", sorted(PAGES))
BASE_MS = 1_783_465_157_897
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def row(venue: str, number: int, *, price: str = "63551.02") -> Any:
    """A row as the venue writes it; the taker of odd ids buys."""
    is_bought, time_ms = number % 2 == 1, BASE_MS + number
    if venue == "kraken":
        return [price, "0.00317000", time_ms / 1000, "b" if is_bought else "s", "l", "", number]
    if venue == "binance":
        return {
            "id": number,
            "price": price,
            "qty": "0.00317000",
            "quoteQty": "201.45",
            "time": time_ms,
            "isBuyerMaker": not is_bought,
            "isBestMatch": True,
        }
    side = "buy" if is_bought else "sell"
    return {
        "instId": "BTC-USDT",
        "side": side,
        "sz": "0.00317000",
        "source": "0",
        "px": price,
        "tradeId": str(number),
        "ts": str(time_ms),
    }


def page(venue: str, rows: Sequence[Any]) -> Any:
    if venue == "kraken":
        return {"error": [], "result": {"XXBTZUSD": list(rows), "last": "1783465157897000000"}}
    return list(rows) if venue == "binance" else {"code": "0", "msg": "", "data": list(reversed(rows))}


def page_of(venue: str, *numbers: int, price: str = "63551.02") -> bytes:
    return json.dumps(page(venue, [row(venue, number, price=price) for number in numbers])).encode()


def parsed(venue: str, *bodies: bytes, source: str = "rest") -> pa.Table:
    return parse(bronze([message(body, source, KEYS[venue]) for body in bodies]))


def accepted(venue: str, body: bytes) -> list[dict[str, Any]]:
    return [one for one in parsed(venue, body).to_pylist() if one["reason"] is None]


def as_the_audit_reads(venue: str, body: bytes) -> set[tuple[Any, ...]]:
    """(symbol, id, price, size, taker's side, time) of each trade that it can read."""
    found = set()
    for one in venue_trades(body, KEYS[venue], is_page=True):
        if len(one) == len(("symbol", "trade_id", "price", "size", "side", "time")):
            try:
                numbers = Decimal(one["price"]), Decimal(one["size"])
                when = datetime.fromisoformat(one["time"])
            except (ArithmeticError, ValueError):
                continue
            taker = {"buy": "SELL", "sell": "BUY"}[one["side"]]
            if one["trade_id"].isascii() and one["trade_id"].isdigit():
                found.add((one["symbol"], int(one["trade_id"]), *numbers, taker, when))
    return found


def content(one: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(one[name] for name in ("symbol", "trade_id", "price", "trade_size", "side", "event_time"))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 10**20), st.text(max_size=6), st.floats(),
    st.builds(list), st.builds(dict), st.builds(lambda: [[]]), st.builds(lambda: {"a": 1}),
    st.sampled_from([
        "1e-8", "1E3", "1e400", "1e-400", "1e999999999", "NaN", "Infinity", "007", "7_0", " 7", "+7", "-7", "\u0667",
        "1783465157.8971239", "1783465157.8971239" + "9" * 20, "1783465157897.5", "1783465157897123", "0", "1" * 25,
        "253402300800", "b", "s", "buy", "sell", "True", "9" * 30, "0." + "0" * 11 + "1", "0." + "0" * 12 + "1",
    ]),
)  # fmt: skip
RAW_NUMBERS = ["1e400", "1E-9", "7.0", "1e2", "-0", "123456789012345678901234567890", "0.1e1", "1783465157.8971239"]


@st.composite
def changed_pages(draw: st.DrawFn) -> tuple[str, bytes]:
    """A venue, and a page of it with values replaced, members left out or there twice, rows doubled, or bytes gone."""
    venue = draw(st.sampled_from(sorted(PAGES)))
    numbers = sorted(draw(st.sets(st.integers(1, 12), max_size=5)))
    value = page(venue, [row(venue, number) for number in numbers])
    for _ in range(draw(st.integers(0, 3))):
        place: Any = value
        while isinstance(place, dict | list) and place:
            names = list(place) if isinstance(place, dict) else list(range(len(place)))
            name = draw(st.sampled_from(names))
            if not isinstance(place[name], dict | list) or not place[name] or draw(st.integers(0, 5)) == 0:
                change = draw(st.sampled_from(["replace", "replace", "raw", "remove", "double"]))
                if change == "replace":
                    place[name] = draw(VALUES)
                elif change == "raw":
                    place[name] = f"RAW{draw(st.integers(0, len(RAW_NUMBERS) - 1))}"
                elif change == "remove":
                    del place[name]
                elif isinstance(place, list):
                    place.insert(name, place[name])
                else:
                    place[f"TWICE{name}"] = draw(VALUES)
                break
            place = place[name]
    text = json.dumps(value).replace('"TWICE', '"')
    for number, raw in enumerate(RAW_NUMBERS):
        text = text.replace(f'"RAW{number}"', raw)
    if draw(st.integers(0, 19)) == 0:
        text = text[: draw(st.integers(0, len(text)))]
    return venue, text.encode()


class TestAgreement:
    @VENUE
    def test_a_page_is_read_alike_to_the_last_digit(self, venue: str) -> None:
        body = page_of(venue, 6, 7)
        found = [content(one) for one in accepted(venue, body)]
        numbers, start = (Decimal("63551.02"), Decimal("0.00317")), EPOCH + timedelta(milliseconds=BASE_MS)
        assert found == [
            (KEYS[venue], 6, *numbers, "SELL", start + timedelta(milliseconds=6)),
            (KEYS[venue], 7, *numbers, "BUY", start + timedelta(milliseconds=7)),
        ]
        assert as_the_audit_reads(venue, body) == set(found)

    @given(changed_pages())
    def test_the_audit_reads_every_trade_that_the_parser_accepts_with_the_same_content(
        self, changed: tuple[str, bytes]
    ) -> None:
        venue, body = changed
        assert {content(one) for one in accepted(venue, body)} <= as_the_audit_reads(venue, body)

    @given(st.lists(changed_pages(), min_size=1, max_size=4))
    def test_an_absence_is_proved_only_where_the_audit_sees_both_neighbours_and_none_between(
        self, changed: list[tuple[str, bytes]]
    ) -> None:
        messages = [message(body, "rest", KEYS[venue]) for venue, body in changed]
        for proof in absent_ids(parse(bronze(messages))).to_pylist():
            venue, body = changed[proof["offset"]]
            first, last = proof["first_trade_id"], proof["last_trade_id"]
            ids = venue_page_ids(body, KEYS[venue])
            assert ids is not None
            assert proof["symbol"] == KEYS[venue]
            assert {first - 1, last + 1} <= set(ids)
            assert not any(first <= number <= last for number in ids)
            assert ids == sorted(ids, reverse=True)

    @given(changed_pages())
    def test_ids_for_the_log_are_those_of_the_page_or_none(self, changed: tuple[str, bytes]) -> None:
        """What begins a producer's work: see `feed.recovery`."""
        venue, body = changed
        try:
            ids = ids_for_the_log(body, KEYS[venue])
        except (ValueError, RecursionError):
            return
        known = {one["trade_id"] for one in parsed(venue, body).to_pylist()}
        assert known - {None} <= set(ids) or known == {None}

    @given(
        st.binary() | st.text().map(str.encode),
        st.sampled_from([*KEYS.values(), "@kraken", "X@okx", "a@b@okx", "X@no"]),
    )
    def test_no_bytes_raise(self, body: bytes, key: str) -> None:
        assert {one["reason"] is None for one in parse(bronze([message(body, "rest", key)])).to_pylist()} <= {False}
        assert list(venue_trades(body, key, is_page=True)) == []
        assert not venue_page_ids(body, key)

    @VENUE
    @pytest.mark.parametrize("broken", [[], {}, None, 7, "x"])
    @pytest.mark.parametrize("member", range(6))
    def test_a_broken_member_hides_no_other_row(self, venue: str, member: int, broken: Any) -> None:
        rows = [row(venue, number) for number in (5, 6, 7)]
        name: Any = member if venue == "kraken" else list(rows[1])[member]
        rows[1][name] = broken
        body = json.dumps(page(venue, rows)).encode()
        found = {content(one) for one in accepted(venue, body)}
        assert {one[1] for one in found} >= {5, 7}
        assert found <= as_the_audit_reads(venue, body)

    @VENUE
    def test_a_row_without_its_id_hides_no_other_row(self, venue: str) -> None:
        rows = [row(venue, number) for number in (5, 6, 7)]
        if venue == "kraken":
            rows[1][6] = None
        else:
            del rows[1][ROW_ID[venue]]
        body = json.dumps(page(venue, rows)).encode()
        found = {content(one) for one in accepted(venue, body)}
        assert {one[1] for one in found} == {5, 7}
        assert found <= as_the_audit_reads(venue, body)

    @pytest.mark.parametrize("text", ["1783465157.8971239", "1783465157.8971239" + "9" * 20, "17834651578971239e-7"])
    def test_a_time_with_any_decimals_is_cut_alike(self, text: str) -> None:
        rows = [row("kraken", 5)]
        rows[0][2] = text
        body = json.dumps(page("kraken", rows)).encode()
        (found,) = accepted("kraken", body)
        assert found["event_time"] == EPOCH + timedelta(microseconds=1_783_465_157_897_123)
        assert as_the_audit_reads("kraken", body) == {content(found)}

    @VENUE
    @pytest.mark.parametrize("text", ["1e999990", "9" * 4_000])
    def test_a_number_of_a_million_digits_takes_no_time_to_refuse(self, venue: str, text: str) -> None:
        rows = [row(venue, 5)]
        for name in list(range(3)) if venue == "kraken" else list(rows[0]):
            rows[0][name] = text
        body = json.dumps(page(venue, rows)).encode()
        start_s = time.monotonic()
        assert accepted(venue, body) == []
        assert len(list(venue_trades(body, KEYS[venue], is_page=True))) == 1
        assert time.monotonic() - start_s < 5

    @VENUE
    def test_a_page_has_no_trades_where_the_feed_has_messages(self, venue: str) -> None:
        found = parsed(venue, page_of(venue, 5), source="websocket")
        assert not any(one["reason"] is None for one in found.to_pylist())
        assert list(venue_trades(page_of(venue, 5), KEYS[venue])) == []

    @VENUE
    @pytest.mark.parametrize("count", [1, 500])  # one by one, and together
    def test_pages_stand_beside_other_messages(self, venue: str, count: int) -> None:
        match = b'{"type":"heartbeat","product_id":"BTC-USD","last_trade_id":7}'
        messages = [message(page_of(venue, 5, 7), "rest", KEYS[venue]), message(match, key="BTC-USD")]
        found = parse(bronze(messages * count)).to_pylist()
        assert [(one["offset"], one["trade_id"]) for one in found] == [
            (2 * number, trade_id) for number in range(count) for trade_id in (5, 7)
        ]


class TestAbsence:
    @VENUE
    def test_ids_between_two_of_a_page_are_absent(self, venue: str) -> None:
        proofs = absent_ids(parsed(venue, page_of(venue, 5, 6, 9, 11))).to_pylist()
        assert [(p["symbol"], p["first_trade_id"], p["last_trade_id"]) for p in proofs] == [
            (KEYS[venue], 7, 8),
            (KEYS[venue], 10, 10),
        ]

    @VENUE
    def test_two_pages_prove_nothing_about_the_ids_between_them(self, venue: str) -> None:
        assert absent_ids(parsed(venue, page_of(venue, 5), page_of(venue, 9))).num_rows == 0

    @VENUE
    def test_a_refused_trade_is_there(self, venue: str) -> None:
        rows = [row(venue, 5), row(venue, 6, price="-1"), row(venue, 7)]
        body = json.dumps(page(venue, rows)).encode()
        assert [one["trade_id"] for one in accepted(venue, body)] == [5, 7]
        assert absent_ids(parsed(venue, body)).num_rows == 0
        assert venue_page_ids(body, KEYS[venue]) == [7, 6, 5]

    @VENUE
    @pytest.mark.parametrize("broken", ["x", None, -6, 0, 6.5, "6 ", 2**70])
    def test_a_page_with_an_id_that_cannot_be_read_proves_nothing(self, venue: str, broken: Any) -> None:
        rows = [row(venue, number) for number in (5, 6, 9)]
        rows[1][ROW_ID[venue]] = broken
        assert absent_ids(parsed(venue, json.dumps(page(venue, rows)).encode())).num_rows == 0

    @VENUE
    def test_a_message_of_the_feed_proves_nothing(self, venue: str) -> None:
        assert absent_ids(parsed(venue, page_of(venue, 5, 9), source="websocket")).num_rows == 0

    def test_only_venues_with_a_rest_interface_are_asked(self) -> None:
        assert all(can_be_fetched(key) for key in (*KEYS.values(), "BTC-USD"))
        assert not can_be_fetched("NKNUSDT@binance-aggregates")


class TestLake:
    @VENUE
    def test_a_page_heals_a_lake_and_the_audit_agrees(self, venue: str, tmp_path: Path) -> None:
        lake = Lake(tmp_path / "lake")
        lake.take_in([message(page_of(venue, 5, 6, 9), "rest", KEYS[venue], START)])
        assert [(one["symbol"], one["trade_id"]) for one in lake.rows(SILVER)] == [(KEYS[venue], n) for n in (5, 6, 9)]
        (proof,) = lake.rows(ABSENT)
        assert (proof["first_trade_id"], proof["last_trade_id"]) == (7, 8)
        lake.close()
        assert audit(tmp_path / "lake").kinds == []

    @VENUE
    def test_a_page_that_contradicts_a_trade_is_a_conflict_that_the_audit_finds(
        self, venue: str, tmp_path: Path
    ) -> None:
        lake = Lake(tmp_path / "lake")
        lake.take_in([message(page_of(venue, 5, 6, 7), "rest", KEYS[venue], START)])
        lake.take_in([message(page_of(venue, 5, 6, 7, price="1"), "rest", KEYS[venue], START)])
        assert lake.arrow(QUARANTINE).num_rows == 1
        lake.close()
        assert audit(tmp_path / "lake").kinds == ["trades_conflict"]
