"""Going on where the producer before ended, from the newest messages of the log."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from cryptopulse.feed.protocol import FeedSession, HoleFound
from cryptopulse.feed.recovery import LogEnd, log_end, resume
from cryptopulse.feed.sequence_gaps import IdWatch
from cryptopulse.intervals import Intervals
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.venues.coinbase_exchange import ExchangeDialect
from support import Message, Trade, advanced, message, page

S = 1_000_000_000
A = "BTC-USD"


def end_of(*messages: tuple[Message, int]) -> LogEnd:
    """A log that holds these messages, and the second in which each came."""
    return LogEnd([(m["body"], at_s * S, "") for m, at_s in messages], {}, is_all=True)


def heartbeat(last_trade_id: int) -> Message:
    body = b'{"type":"heartbeat","product_id":"BTC-USD","last_trade_id":%d}' % last_trade_id
    return message(body, key=A)


def match(trade_id: int) -> Message:
    return Trade(A, trade_id).match()


def holes_after(session: FeedSession, first: int, at_s: int) -> list[tuple[int, int]]:
    """What `session` reports when the next connection's first trade is `first`."""
    session.connected(at_s * S)
    session.receive(Trade(A, first).match("last_match")["body"], at_s * S)
    session.tick((at_s + 2) * S)
    return [(e.first_missing, e.last_missing) for e in session.take_events() if isinstance(e, HoleFound)]


def session_of(watch: IdWatch) -> FeedSession:
    return FeedSession(ExchangeDialect(), [A], heartbeats_missed_max=5, watch=watch)


def in_log(tmp_path: Path, messages: Iterable[Message]) -> SqliteLog:
    log = SqliteLog(tmp_path / "log.db", 16 << 20)
    for one in messages:
        log.append(pa.Table.from_pylist([one], schema=MESSAGE_SCHEMA))
    return log


def test_a_new_producer_finds_the_newest_messages_however_eagerly_the_log_is_trimmed(tmp_path: Path) -> None:
    log = in_log(tmp_path, (match(i) for i in (1, 2, 3)))
    log.trim(0, log.bounds(0)[1])
    watch = IdWatch([A])
    resumed = resume(watch, log_end(log))
    log.close()
    assert (resumed.held, resumed.holes, resumed.is_all) == ({A: Intervals([(1, 3)])}, {}, True)
    assert holes_after(session_of(watch), 7, 0) == [(4, 6)]


def test_a_log_of_which_only_the_end_was_read_is_not_all_known(tmp_path: Path) -> None:
    log = in_log(tmp_path, (match(i) for i in range(1, 21)))
    end = log_end(log, messages_max=5)
    log.close()
    assert [json.loads(body)["trade_id"] for body, _, _ in end.live] == [16, 17, 18, 19, 20]
    assert not end.is_all


def test_a_hole_whose_grace_ran_when_the_producer_died_is_reported_by_the_next() -> None:
    watch = IdWatch([A])
    resumed = resume(watch, end_of((match(1), 0), (match(3), 10), (match(5), 20)))
    assert resumed.holes == {A: [(2, 2)]}  # reported long before, and still to be healed
    assert holes_after(session_of(watch), 5, 21) == [(4, 4)]


def test_holes_that_a_page_in_the_log_has_healed_are_none(tmp_path: Path) -> None:
    trades = [Trade(A, i) for i in (4, 5, 6)]
    log = in_log(tmp_path, [match(1), match(10), heartbeat(10), page(trades), match(11)])
    end = log_end(log)
    log.close()
    assert (end.paged, end.is_all) == ({A: Intervals([(4, 6)])}, True)
    assert [json.loads(body).get("trade_id") for body, _, _ in end.live] == [1, 10, None, 11]
    later = [(body, at_s * 10 * S, venue) for at_s, (body, _, venue) in enumerate(end.live)]
    resumed = resume(IdWatch([A]), end._replace(live=later))
    assert resumed.held == {A: Intervals([(1, 1), (4, 6), (10, 11)])}
    assert resumed.holes == {A: [(2, 3), (7, 9)]}


def test_a_heartbeat_shows_trades_that_never_came() -> None:
    watch = IdWatch([A])
    resumed = resume(watch, end_of((match(1), 0), (heartbeat(4), 5), (heartbeat(4), 10)))
    assert resumed.holes == {A: [(2, 4)]}
    assert watch.ids[A].highest == 4


def test_a_product_with_heartbeats_alone_has_no_holes_and_begins_behind_them() -> None:
    watch = IdWatch([A])
    resumed = resume(watch, end_of((heartbeat(100), 0), (heartbeat(100), 10)))
    assert (resumed.held, resumed.holes) == ({}, {})
    assert (watch.ids[A].first, watch.ids[A].highest) == (101, 100)
    assert holes_after(session_of(watch), 103, 20) == [(101, 102)]


@pytest.mark.parametrize(
    "strange",
    [
        *(message(b"{"), message(b"[]", "rest", "X-USD"), message(b"garbage", "rest", A), message(b"[{}]", "rest", A)),
        match(9) | {"source": "import"},
    ],
)
def test_messages_of_either_feed_count_and_others_do_not_disturb(strange: Message, tmp_path: Path) -> None:
    log = in_log(tmp_path, [match(1), strange, advanced([Trade(A, 2), Trade("X-USD", 9), Trade(A, 3)])])
    resumed = resume(IdWatch([A]), log_end(log))
    log.close()
    assert (resumed.held, resumed.holes) == ({A: Intervals([(1, 3)])}, {})
