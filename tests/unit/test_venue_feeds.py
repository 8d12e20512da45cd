"""The feeds of Kraken, Binance and OKX: their frames, their messages, and what a session makes of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feed_exchange import MB, Peer, ScriptedExchange, producing
from hypothesis import given
from hypothesis import strategies as st

from cryptopulse.feed.protocol import (
    CONFIRM_NS,
    Event,
    FeedSession,
    HoleFound,
    Malformed,
    ServerError,
    Stale,
    State,
    Subscribed,
)
from cryptopulse.feed.recovery import log_end, resume
from cryptopulse.feed.sequence_gaps import IdWatch
from cryptopulse.intervals import Intervals
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.settings import Settings
from cryptopulse.venues import (
    FeedMessage,
    Heartbeat,
    Other,
    Refusal,
    Subscriptions,
    TradesMessage,
    Unreadable,
    Venue,
)
from cryptopulse.venues.registry import VENUES
from support import message

KRAKEN, BINANCE, OKX = (VENUES[name]() for name in ("kraken", "binance", "okx"))
S = 1_000_000_000
MISSED_MAX = 5
CAPTURES = Path(__file__).parents[2].parent / "shared" / "captures"
needs_captures = [
    pytest.mark.captures,
    pytest.mark.skipif(not CAPTURES.is_dir(), reason="the recordings (../shared/captures) are not on this machine"),
]

PAIR = {
    "kraken": ("BTC/USD@kraken", "ETH/USD@kraken"),
    "binance": ("BTCUSDT@binance", "ETHUSDT@binance"),
    "okx": ("BTC-USDT@okx", "ETH-USDT@okx"),
}
"""Venue → two of its products."""


def own(product: str) -> str:
    return product.partition("@")[0]


def trade(product: str, number: int) -> bytes:
    """The message of a trade, as the venue of `product` writes it."""
    symbol, _, venue = product.partition("@")
    bodies: dict[str, Any] = {
        "kraken": {
            "channel": "trade",
            "type": "update",
            "data": [{"symbol": symbol, "side": "sell", "price": 1.5, "qty": 2, "trade_id": number}],
        },
        "binance": {"e": "trade", "E": 1, "s": symbol, "t": number, "p": "1.5", "q": "2", "T": 1, "m": True},
        "okx": {
            "arg": {"channel": "trades-all", "instId": symbol},
            "data": [{"instId": symbol, "tradeId": str(number), "px": "1.5", "sz": "2", "side": "sell", "ts": "1"}],
        },
    }
    return json.dumps(bodies[venue]).encode()


def answers(*products: str) -> list[bytes]:
    """What the venue of `products` answers to a request for them that it accepts."""
    venue = products[0].partition("@")[2]
    if venue == "binance":
        streams = [f"{own(product).lower()}@trade" for product in products]
        return [b'{"result":null,"id":1}', json.dumps({"result": streams, "id": 2}).encode()]
    forms: dict[str, Callable[[str], Any]] = {
        "kraken": lambda symbol: {
            "method": "subscribe",
            "result": {"channel": "trade", "snapshot": True, "symbol": symbol},
            "success": True,
            "time_in": "2026-07-07T23:00:03.000000Z",
        },
        "okx": lambda symbol: {"event": "subscribe", "arg": {"channel": "trades-all", "instId": symbol}, "connId": "a"},
    }
    return [json.dumps(forms[venue](own(product))).encode() for product in products]


def refusal(product: str, *, is_named: bool = True) -> bytes:
    symbol, _, venue = product.partition("@")
    if venue == "kraken":
        named = {"symbol": symbol} if is_named else {}
        text = "Currency pair not supported"
        return json.dumps({"error": text, "method": "subscribe", "success": False, **named}).encode()
    text = f"channel:trades-all,instId:{symbol} doesn't exist" if is_named else "Invalid request"
    return json.dumps({"event": "error", "code": "60018", "msg": text, "connId": "a"}).encode()


HEARTBEATS = {"kraken": b'{"channel":"heartbeat"}', "binance": b'{"result":["x"],"id":3}', "okx": b"pong"}


def session_of(venue: str, products: Iterable[str] = ()) -> FeedSession:
    """A session that has just connected, at 0 s."""
    session = FeedSession(VENUES[venue](), tuple(products) or PAIR[venue], heartbeats_missed_max=MISSED_MAX)
    session.connected(0)
    return session


def live_session(venue: str) -> FeedSession:
    """A session that the venue has confirmed, at 0 s."""
    session = session_of(venue)
    for raw in answers(*PAIR[venue]):
        session.receive(raw, 0)
    session.take_events()
    session.frames_to_send()
    return session


def run_to(session: FeedSession, start_s: int, end_s: int, *messages: bytes) -> list[Event]:
    """Lets the session tick ten times a second and gives it `messages` every second; the events."""
    for tenth in range(start_s * 10, end_s * 10 + 1):
        now_ns = tenth * S // 10
        session.tick(now_ns)
        for raw in messages if tenth % 10 == 0 else ():
            session.receive(raw, now_ns)
    return session.take_events()


VENUE = pytest.mark.parametrize("venue", sorted(VENUES))
EACH = pytest.mark.parametrize("venue", ["kraken", "okx"])


class TestFrames:
    def test_kraken_is_asked_for_all_symbols_at_once_with_the_last_trades(self) -> None:
        (frame,) = KRAKEN.subscribe_frames(PAIR["kraken"])
        params = {"channel": "trade", "symbol": ["BTC/USD", "ETH/USD"], "snapshot": True}
        assert json.loads(frame) == {"method": "subscribe", "params": params}

    def test_kraken_is_subscribed_again_after_an_end(self) -> None:
        end, begin = map(json.loads, KRAKEN.resubscribe_frames(PAIR["kraken"][:1]))
        assert end == {"method": "unsubscribe", "params": {"channel": "trade", "symbol": ["BTC/USD"]}}
        assert (begin["method"], begin["params"]["snapshot"]) == ("subscribe", True)

    def test_binance_names_streams_in_small_letters_and_is_asked_which_there_are(self) -> None:
        begin, ask = map(json.loads, BINANCE.subscribe_frames(PAIR["binance"]))
        assert begin == {"method": "SUBSCRIBE", "params": ["btcusdt@trade", "ethusdt@trade"], "id": 1}
        assert (ask["method"], "params" in ask) == ("LIST_SUBSCRIPTIONS", False)
        end, again = map(json.loads, BINANCE.resubscribe_frames(PAIR["binance"][:1]))
        assert [end["method"], again["method"]] == ["UNSUBSCRIBE", "SUBSCRIBE"]
        assert end["params"] == again["params"] == ["btcusdt@trade"]

    def test_okx_is_asked_for_the_channel_with_each_trade(self) -> None:
        (frame,) = OKX.subscribe_frames(PAIR["okx"])
        args = [{"channel": "trades-all", "instId": name} for name in ("BTC-USDT", "ETH-USDT")]
        assert json.loads(frame) == {"op": "subscribe", "args": args}
        end, again = map(json.loads, OKX.resubscribe_frames(PAIR["okx"][:1]))
        assert [end["op"], again["op"]] == ["unsubscribe", "subscribe"]
        assert end["args"] == again["args"] == args[:1]

    @VENUE
    def test_a_venue_takes_its_own_products_and_no_others(self, venue: str) -> None:
        takes = VENUES[venue]().takes
        assert all(takes(product) == (venue == name) for name, pair in PAIR.items() for product in pair)
        assert not takes("BTC-USD")


CASES: list[tuple[Venue, bytes, FeedMessage]] = [
    (KRAKEN, b'{"channel":"heartbeat"}', Heartbeat()),
    (KRAKEN, b'{"method":"pong","req_id":2}', Heartbeat()),
    (
        KRAKEN,
        b'{"channel":"trade","type":"snapshot","data":[{"symbol":"B/U","trade_id":8},{"symbol":"B/U","trade_id":7}]}',
        TradesMessage((("B/U@kraken", 7), ("B/U@kraken", 8)), product="B/U@kraken"),
    ),
    (
        KRAKEN,
        b'{"channel":"trade","data":[{"symbol":"B/U","trade_id":8},{"symbol":"A/U","trade_id":9}]}',
        TradesMessage((("A/U@kraken", 9), ("B/U@kraken", 8))),
    ),
    (
        KRAKEN,
        b'{"error":"Currency pair not supported XBT/USD","method":"subscribe","success":false,"symbol":"XBT/USD"}',
        Refusal("Currency pair not supported XBT/USD XBT/USD", product="XBT/USD@kraken"),
    ),
    (
        KRAKEN,
        b'{"error":"Already subscribed","method":"subscribe","success":false,"symbol":"B/U"}',
        Subscriptions({"trade": frozenset(["B/U@kraken"])}),
    ),
    (KRAKEN, b'{"method":"unsubscribe","result":{"channel":"trade","symbol":"B/U"},"success":true}', Other()),
    (KRAKEN, b'{"channel":"status","data":[{"connection_id":44218940131019144131}]}', Other()),
    (KRAKEN, b'{"channel":"instrument","type":"snapshot","data":{"pairs":[]}}', Other()),
    (BINANCE, trade("B@binance", 7), TradesMessage((("B@binance", 7),), product="B@binance")),
    (
        BINANCE,
        b'{"stream":"b@trade","data":' + trade("B@binance", 7) + b"}",
        TradesMessage((("B@binance", 7),), product="B@binance"),
    ),
    (BINANCE, b'{"result":null,"id":1}', Other()),
    (BINANCE, b'{"result":["b@trade"],"id":2}', Subscriptions({"trade": frozenset(["B@binance"])})),
    (BINANCE, b'{"result":["b@trade"],"id":3}', Heartbeat()),
    (BINANCE, b'{"code":2,"msg":"Invalid request"}', Refusal("2: Invalid request")),
    (BINANCE, b'{"e":"serverShutdown","E":1}', Other()),
    (BINANCE, b'{"e":"aggTrade","s":"B","a":1,"p":"1","q":"1","f":1,"l":3}', Other()),
    (OKX, b"pong", Heartbeat()),
    (OKX, trade("B-U@okx", 7), TradesMessage((("B-U@okx", 7),), product="B-U@okx")),
    (
        OKX,
        b'{"event":"error","code":"60018","msg":"Wrong URL or channel:trades-all,instId:B-U doesn\'t exist"}',
        Refusal("Wrong URL or channel:trades-all,instId:B-U doesn't exist", product="B-U@okx"),
    ),
    (OKX, b'{"event":"error","code":"60012","msg":"Invalid request"}', Refusal("Invalid request")),
    (OKX, b'{"event":"unsubscribe","arg":{"channel":"trades-all","instId":"B-U"}}', Other()),
    (OKX, b'{"event":"notice","code":"64008","msg":"upgrade"}', Other()),
    (OKX, b'{"arg":{"channel":"tickers","instId":"B-U"},"data":[{"last":"1"}]}', Other()),
]


class TestRead:
    @pytest.mark.parametrize(("venue", "raw", "message"), CASES)
    def test_messages_are_understood(self, venue: Venue, raw: bytes, message: FeedMessage) -> None:
        assert venue.read(raw) == message

    @VENUE
    @pytest.mark.parametrize("broken", ["", "7", "[]", "{}", '"pong"', '{"x":' * 50_000, "\x00", "ping!", "nul"])
    def test_what_is_no_message_is_called_unreadable(self, venue: str, broken: str) -> None:
        assert isinstance(VENUES[venue]().read(broken.encode()), Unreadable)

    @VENUE
    @pytest.mark.parametrize("number", [b'"x"', b"-7", b"7.5", b"9" * 40, b"null", b"true", b"[]"])
    def test_a_trade_whose_id_is_none_is_unreadable(self, venue: str, number: bytes) -> None:
        raw = trade(PAIR[venue][0], 777_777_777)
        broken = raw.replace(b'"777777777"', number).replace(b"777777777", number)
        assert broken != raw
        assert isinstance(VENUES[venue]().read(broken), Unreadable)

    @VENUE
    def test_a_message_that_is_cut_or_not_utf_8_is_unreadable(self, venue: str) -> None:
        raw = trade(PAIR[venue][0], 7)
        assert isinstance(VENUES[venue]().read(raw[:-1]), Unreadable)
        assert isinstance(VENUES[venue]().read(raw.replace(b"BTC", b"\xff\xfe")), Unreadable)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
MEMBERS = [
    "channel", "method", "success", "symbol", "error", "data", "result", "e", "s", "t", "stream", "id", "code", "msg",
    "event", "arg", "instId", "tradeId", "trade_id", "count", "type",
]  # fmt: skip
WORDS = st.sampled_from(["trade", "trades-all", "subscribe", "error", "pong", "BTC/USD", "BTCUSDT", "BTC-USDT", "7"])
KNOWN = st.recursive(
    WORDS | st.integers(-1, 9) | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(MEMBERS), inner, max_size=5),
    max_leaves=12,
)
GARBAGE = st.binary() | JSON.map(lambda value: json.dumps(value).encode()) | KNOWN.map(lambda v: json.dumps(v).encode())


class TestGarbage:
    @given(GARBAGE, st.sampled_from(sorted(VENUES)))
    def test_nothing_makes_a_venue_raise(self, raw: bytes, venue: str) -> None:
        assert isinstance(VENUES[venue]().read(raw), FeedMessage)

    @given(st.lists(GARBAGE, max_size=8), st.sampled_from(sorted(VENUES)))
    def test_a_session_takes_anything_and_still_follows_its_trades(self, messages: list[bytes], venue: str) -> None:
        session = live_session(venue)
        for raw in messages:
            assert session.receive(raw, S) in (*PAIR[venue], f"@{venue}")
        before = session.trades
        assert session.receive(trade(PAIR[venue][0], 10**15), S) == PAIR[venue][0]
        assert session.state is State.LIVE
        assert session.trades == before + 1


class TestConfirmation:
    @EACH
    def test_a_session_is_live_only_when_each_product_is_confirmed(self, venue: str) -> None:
        session = session_of(venue)
        first, second = answers(*PAIR[venue])
        session.receive(first, 1 * S)
        session.receive(first, 2 * S)  # the same one again
        assert (session.state, session.take_events()) == (State.SUBSCRIBING, [])
        session.receive(second, 3 * S)
        assert (session.state, session.take_events()) == (State.LIVE, [Subscribed(PAIR[venue], ())])

    @EACH
    @pytest.mark.parametrize("is_refused_first", [True, False])
    def test_a_product_that_is_refused_by_name_keeps_no_other_out(self, venue: str, is_refused_first: bool) -> None:
        good, bad = PAIR[venue]
        messages = [refusal(bad), *answers(good)]
        session = session_of(venue)
        for raw in messages if is_refused_first else messages[::-1]:
            session.receive(raw, S)
        told, live = sorted(session.take_events(), key=lambda event: isinstance(event, Subscribed))
        assert isinstance(told, ServerError)
        assert live == Subscribed((good,), (bad,))
        assert session.state is State.LIVE
        assert session.refused_products == (bad,)

    @EACH
    def test_one_that_is_refused_without_its_name_costs_only_the_time_of_confirmation(self, venue: str) -> None:
        good, bad = PAIR[venue]
        session = session_of(venue)
        session.receive(refusal(bad, is_named=False), 1 * S)
        session.receive(answers(good)[0], 2 * S)
        session.take_events()
        session.tick(CONFIRM_NS - 1)
        assert session.state is State.SUBSCRIBING
        assert session.deadline_ns == CONFIRM_NS
        session.tick(CONFIRM_NS)
        assert session.take_events() == [Subscribed((good,), (bad,))]
        assert session.state is State.LIVE

    @EACH
    def test_where_each_product_is_refused_nothing_is_confirmed(self, venue: str) -> None:
        session = session_of(venue)
        for product in PAIR[venue]:
            session.receive(refusal(product), S)
        session.take_events()
        assert run_to(session, 1, 6) == [Stale("subscription not confirmed within 5 s")]

    @VENUE
    def test_an_answer_about_other_products_confirms_nothing(self, venue: str) -> None:
        session = session_of(venue)
        for raw in answers({"kraken": "A/B@kraken", "binance": "AB@binance", "okx": "A-B@okx"}[venue]):
            session.receive(raw, S)
        assert run_to(session, 1, 7) == [Stale("subscription not confirmed within 5 s")]

    @EACH
    def test_a_product_that_is_confirmed_late_is_recorded_and_not_called_refused(self, venue: str) -> None:
        session = session_of(venue)
        first, second = answers(*PAIR[venue])
        session.receive(first, 1 * S)
        session.tick(CONFIRM_NS)
        session.receive(second, CONFIRM_NS + S)
        assert session.receive(trade(PAIR[venue][1], 7), CONFIRM_NS + S) == PAIR[venue][1]
        assert session.refused_products == ()

    @EACH
    def test_a_refusal_of_a_live_product_ends_nothing(self, venue: str) -> None:
        session = live_session(venue)
        session.receive(refusal(PAIR[venue][0]), S)
        (event,) = session.take_events()
        assert isinstance(event, ServerError)
        assert session.state is State.LIVE

    @VENUE
    def test_each_connection_must_be_confirmed_anew(self, venue: str) -> None:
        session = live_session(venue)
        session.disconnected()
        session.connected(9 * S)
        assert session.frames_to_send() == VENUES[venue]().subscribe_frames(PAIR[venue])
        session.receive(answers(*PAIR[venue])[0], 9 * S)
        assert session.state is State.SUBSCRIBING

    def test_binance_is_live_when_it_lists_the_streams(self) -> None:
        session = session_of("binance")
        done, listed = answers(*PAIR["binance"])
        session.receive(done, S)
        assert session.state is State.SUBSCRIBING
        session.receive(listed, S)
        assert session.take_events() == [Subscribed(PAIR["binance"], ())]

    def test_a_stream_that_binance_does_not_list_is_refused(self) -> None:
        session = session_of("binance")
        for raw in answers(PAIR["binance"][0]):
            session.receive(raw, S)
        assert session.take_events() == [Subscribed(PAIR["binance"][:1], PAIR["binance"][1:])]

    def test_a_request_that_binance_refuses_is_made_in_halves(self) -> None:
        products = ["A@binance", "B@binance", "C@binance"]
        session = session_of("binance", products)
        for at_s in range(9):
            for frame in map(json.loads, session.frames_to_send()):
                if frame["method"] == "SUBSCRIBE" and "c@trade" in frame["params"]:
                    session.receive(b'{"code":2,"msg":"Invalid request"}', at_s)
                elif frame["method"] == "SUBSCRIBE":
                    for raw in answers(*(f"{name.partition('@')[0].upper()}@binance" for name in frame["params"])):
                        session.receive(raw, at_s)
        assert session.state is State.LIVE
        assert session.refused_products == ("C@binance",)

    def test_each_half_is_requested_at_once_on_the_same_connection(self, tmp_path: Path) -> None:
        streams: set[str] = set()

        async def refuses_one_name(peer: Peer) -> None:
            while True:
                request = await peer.requests.get()
                if request["method"] == "LIST_SUBSCRIPTIONS":
                    peer.send(json.dumps({"result": sorted(streams), "id": request["id"]}).encode())
                elif "c@trade" in request["params"]:
                    peer.send(b'{"code":2,"msg":"Invalid request"}')
                else:
                    streams.update(request["params"])
                    peer.send(b'{"result":null,"id":1}')

        async def scenario() -> None:
            exchange = ScriptedExchange(refuses_one_name)
            async with exchange.listening() as url:
                products = [f"{name}@binance" for name in "ABCD"]
                settings = Settings.model_validate(
                    {"feed": {"products": products}, "binance": {"websocket_url": url}, "healing": {"enabled": False}}
                )
                log = SqliteLog(tmp_path / "log.db", 256 * MB)
                async with producing(settings, log) as running:
                    start_s = time.monotonic()
                    state = await running.until(lambda state: state["connections"] == 1)
                log.close()
                assert state["connection_states"][0]["refused"] == ["C@binance"]
                assert len(exchange.peers) == 1
                assert time.monotonic() - start_s < CONFIRM_NS / S

        asyncio.run(scenario())


class TestSignsOfLife:
    @VENUE
    def test_a_connection_without_any_is_stale(self, venue: str) -> None:
        assert run_to(live_session(venue), 0, 6) == [Stale("no trade or heartbeat for 5 s")]

    @VENUE
    def test_answers_every_second_keep_a_quiet_connection_alive(self, venue: str) -> None:
        session = live_session(venue)
        assert run_to(session, 0, 120, HEARTBEATS[venue]) == []
        assert session.state is State.LIVE
        assert run_to(session, 121, 126) == [Stale("no trade or heartbeat for 5 s")]

    @VENUE
    def test_trades_alone_keep_it_alive(self, venue: str) -> None:
        session = live_session(venue)
        assert run_to(session, 0, 30, trade(PAIR[venue][0], 7)) == []

    @VENUE
    def test_an_answer_of_another_kind_does_not(self, venue: str) -> None:
        session = live_session(venue)
        assert run_to(session, 0, 6, answers(*PAIR[venue])[0]) == [Stale("no trade or heartbeat for 5 s")]

    @pytest.mark.parametrize(("venue", "request_"), [("binance", "LIST_SUBSCRIPTIONS"), ("okx", "ping")])
    def test_a_venue_that_sends_none_by_itself_is_asked_every_second(self, venue: str, request_: str) -> None:
        session = live_session(venue)
        run_to(session, 0, 60, HEARTBEATS[venue])
        frames = session.frames_to_send()
        assert 55 <= len(frames) <= 61
        assert all(request_.encode() in frame for frame in frames)

    def test_kraken_is_asked_for_nothing(self) -> None:
        session = live_session("kraken")
        run_to(session, 0, 60, HEARTBEATS["kraken"])
        assert session.frames_to_send() == []

    @VENUE
    def test_nobody_is_asked_before_the_confirmation_or_after_the_end(self, venue: str) -> None:
        session = session_of(venue)
        session.frames_to_send()
        run_to(session, 0, 4)
        assert session.frames_to_send() == []
        session.disconnected()
        run_to(session, 5, 20)
        assert session.frames_to_send() == []

    def test_a_second_has_at_most_five_frames_for_binance(self) -> None:
        """It ends a connection that sends more, pongs included."""
        session = live_session("binance")
        number = 0
        for second in range(1, 400):
            if second <= 150:
                number += 1
                messages = [trade(product, number) for product in PAIR["binance"]]
            else:
                messages = [HEARTBEATS["binance"]]  # both products fall silent
            run_to(session, second, second, *messages)
            assert len(session.frames_to_send()) <= 4

    @VENUE
    def test_a_product_that_falls_silent_is_subscribed_again_while_others_go_on(self, venue: str) -> None:
        session = live_session(venue)
        frames: list[bytes] = []
        for second in range(1, 400):
            quiet = [trade(PAIR[venue][1], second)] if second <= 150 else []
            run_to(session, second, second, trade(PAIR[venue][0], second), *quiet)
            frames += session.frames_to_send()
        for frame in VENUES[venue]().resubscribe_frames(PAIR[venue][1:]):
            assert frame in frames
        assert session.state is State.LIVE
        assert session.silent == [PAIR[venue][1]]


class TestTrades:
    @VENUE
    def test_a_message_is_kept_under_its_symbol_or_its_venue(self, venue: str) -> None:
        session = live_session(venue)
        assert session.receive(trade(PAIR[venue][0], 7), S) == PAIR[venue][0]
        others = [trade(f"X@{venue}", 7), HEARTBEATS[venue], b"garbage", *answers(*PAIR[venue])]
        assert {session.receive(raw, S) for raw in others} == {f"@{venue}"}

    def test_a_message_about_several_symbols_is_kept_under_the_venue(self) -> None:
        session = live_session("kraken")
        both = {"channel": "trade", "data": [{"symbol": own(p), "trade_id": 7} for p in PAIR["kraken"]]}
        assert session.receive(json.dumps(both).encode(), S) == "@kraken"
        assert session.trades == 2

    @VENUE
    def test_a_skipped_id_is_a_hole_of_its_product(self, venue: str) -> None:
        session = live_session(venue)
        for number in (7, 10):
            session.receive(trade(PAIR[venue][0], number), S)
        session.receive(trade(PAIR[venue][1], 20), S)
        assert run_to(session, 1, 3) == [HoleFound(PAIR[venue][0], 8, 9, "trade")]

    @VENUE
    def test_the_first_trade_of_a_new_connection_shows_what_was_missed(self, venue: str) -> None:
        session = live_session(venue)
        session.receive(trade(PAIR[venue][0], 7), S)
        session.disconnected()
        session.connected(2 * S)
        session.receive(trade(PAIR[venue][0], 9), 3 * S)
        session.tick(4 * S)
        assert session.take_events() == [HoleFound(PAIR[venue][0], 8, 8, "trade")]

    def test_krakens_last_trades_after_a_cut_close_what_they_cover(self) -> None:
        product = PAIR["kraken"][0]
        session = live_session("kraken")
        session.receive(trade(product, 7), S)
        session.disconnected()
        session.connected(2 * S)
        rows = [{"symbol": own(product), "trade_id": number} for number in range(5, 12)]
        session.receive(json.dumps({"channel": "trade", "type": "snapshot", "data": rows[::-1]}).encode(), 2 * S)
        assert run_to(session, 2, 4) == []

    @VENUE
    def test_an_id_far_beyond_is_refused_as_garbage(self, venue: str) -> None:
        session = live_session(venue)
        session.receive(trade(PAIR[venue][0], 7), S)
        session.receive(trade(PAIR[venue][0], 10**17), S)
        (event,) = session.take_events()
        assert isinstance(event, Malformed)


def lines_of(path: str) -> list[bytes]:
    return (CAPTURES / path).read_bytes().splitlines()


class TestRecordings:
    pytestmark = needs_captures

    def test_krakens_minute_is_read_as_it_was_counted(self) -> None:
        messages = [KRAKEN.read(line) for line in lines_of("kraken-2026-07-07/live-btc-eth.ndjson")]
        kinds = Counter(type(message) for message in messages)
        assert kinds == {TradesMessage: 10, Heartbeat: 23, Subscriptions: 4, Other: 1 + 2 + 2960}
        trades = [one for message in messages if isinstance(message, TradesMessage) for one in message.ids]
        assert len(set(trades)) == len(trades) == 17
        assert sorted(trades) == [
            *(("BTC/USD@kraken", number) for number in range(103436768, 103436780)),
            *(("ETH/USD@kraken", number) for number in range(64175815, 64175820)),
        ]

    def test_binances_minute_is_read_as_it_was_counted(self) -> None:
        messages = [BINANCE.read(line) for line in lines_of("binance-2026-07-07/live-btc-eth.ndjson")]
        assert Counter(map(type, messages)) == {TradesMessage: 1163, Other: 900}
        trades = [one for message in messages if isinstance(message, TradesMessage) for one in message.ids]
        assert sorted(trades) == [
            *(("BTCUSDT@binance", number) for number in range(6486989273, 6486990021)),
            *(("ETHUSDT@binance", number) for number in range(4197008353, 4197008768)),
        ]

    def test_okx_is_read_as_it_was_counted(self) -> None:
        """Of the recorded channel each message has one trade, as those of the channel that is asked for."""
        lines = [line.partition(b": ")[2] for line in lines_of("okx-2022-05-13/OKX.ws.1.0")[4:] if line]
        messages = [OKX.read(line.replace(b'"channel":"trades"', b'"channel":"trades-all"')) for line in lines]
        kinds = Counter(type(message) for message in messages)
        assert kinds == {TradesMessage: 74, Subscriptions: 18, Other: 28 + 290}
        trades = [one for message in messages if isinstance(message, TradesMessage) for one in message.ids]
        assert len(set(trades)) == 74
        assert {number for product, number in trades if product == "BTC-USDT@okx"} == set(range(338476307, 338476376))

    @pytest.mark.parametrize(
        ("path", "venue"),
        [
            ("kraken-2026-07-07/live-btc-eth.ndjson", "kraken"),
            ("binance-2026-07-07/live-btc-eth.ndjson", "binance"),
        ],
    )
    def test_a_session_finds_no_hole_in_a_recording_and_the_missing_one_if_a_trade_is_left_out(
        self, path: str, venue: str
    ) -> None:
        lines = lines_of(path)
        dialect = VENUES[venue]()
        products = {
            product
            for message in map(dialect.read, lines)
            if isinstance(message, TradesMessage)
            for product, _ in message.ids
        }
        whole, torn = (session_of(venue, sorted(products)) for _ in range(2))
        read = [dialect.read(line) for line in lines]
        is_trades = [number for number, message in enumerate(read) if isinstance(message, TradesMessage)]
        left_out = is_trades[len(is_trades) // 2]
        for number, line in enumerate(lines):
            whole.receive(line, S)
            if number != left_out:
                torn.receive(line, S)
        for session in (whole, torn):
            session.tick(3 * S)
        assert [event for event in whole.take_events() if isinstance(event, HoleFound | Malformed)] == []
        message = read[left_out]
        assert isinstance(message, TradesMessage)
        holes = [event for event in torn.take_events() if isinstance(event, HoleFound)]
        missed = {(one.product, n) for one in holes for n in range(one.first_missing, one.last_missing + 1)}
        assert missed == set(message.ids)


PAGES = {
    "kraken": '{"error":[],"result":{"XBTUSD":[%s],"last":"1"}}',
    "binance": "[%s]",
    "okx": '{"code":"0","data":[%s]}',
}
ROWS = {
    "kraken": '["1","1",1783465157.5,"b","l","",%d]',
    "binance": '{"id":%d,"price":"1","qty":"1","time":1783465157897,"isBuyerMaker":true}',
    "okx": '{"tradeId":"%d","px":"1","sz":"1","side":"buy","ts":"1783465157897"}',
}


@pytest.mark.parametrize("product", [pair[0] for pair in PAIR.values()])
def test_the_next_producer_knows_what_the_log_ends_with_and_lacks(product: str, tmp_path: Path) -> None:
    venue = product.partition("@")[2]
    body = (PAGES[venue] % ",".join(ROWS[venue] % number for number in (4, 5, 6))).encode()
    sent = [message(trade(product, 1), key=product), message(trade(product, 10), key=f"@{venue}")]
    log = SqliteLog(tmp_path / "log.db", 16 << 20)
    log.append(pa.Table.from_pylist([*sent, message(body, "rest", product)], schema=MESSAGE_SCHEMA))
    end, watch = log_end(log), IdWatch([product])
    log.close()
    later = [(body, at_s * 10 * S, name) for at_s, (body, _, name) in enumerate(end.live)]
    resumed = resume(watch, end._replace(live=later))
    assert resumed.held == {product: Intervals([(1, 1), (4, 6), (10, 10)])}
    assert end.paged == {product: Intervals([(4, 6)])}
    assert watch.ids[product].highest == 10
