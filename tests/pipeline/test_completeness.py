"""Each hour says which trade ids it answers for, and what is known of every one of them."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptopulse.lake.tables import ABSENT, COMPLETENESS, COVERAGE, QUARANTINE, SILVER
from cryptopulse.pipeline import Pipeline
from support import Lake, Message, Trade, at, message, model_completeness, page

HOUR_S = 3600.0
SYMBOLS = ("BTC-USD", "ETH-USD")


def trade(trade_id: int, hours: float, symbol: str = "BTC-USD") -> Trade:
    return Trade(symbol, trade_id, at(hours * HOUR_S))


def hours(lake: Lake, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in columns) for row in lake.rows(COMPLETENESS)]


def proofs(lake: Lake) -> list[tuple[str, int, int]]:
    return [(row["symbol"], row["first_trade_id"], row["last_trade_id"]) for row in lake.rows(ABSENT)]


class Exchange:
    """What an exchange has: some ids of some products never existed, and times need not follow ids."""

    def __init__(self, chance: random.Random) -> None:
        self.trades: dict[str, list[Trade]] = {}
        for symbol in SYMBOLS:
            ids = [one for one in range(100, 100 + chance.randint(3, 30)) if chance.random() < 0.85] or [100]
            seconds = sorted(chance.choice([600.0, 3600.0, 7200.0]) * chance.randint(0, 12) for _ in ids)
            if chance.random() < 0.3:
                chance.shuffle(seconds)
            self.trades[symbol] = [Trade(symbol, *both) for both in zip(ids, map(at, seconds), strict=True)]

    def page(self, chance: random.Random) -> list[Trade]:
        """A stretch of one product's trades without a gap."""
        trades = self.trades[chance.choice(SYMBOLS)]
        start = chance.randrange(len(trades))
        return trades[start : start + chance.choice([1, 2, 3, 10])]


class Told:
    """What messages have told so far, by a count of its own."""

    def __init__(self) -> None:
        self.trades: dict[tuple[str, int], Trade] = {}
        self.absent: set[tuple[str, int]] = set()

    def match(self, one: Trade) -> Message:
        self.trades.setdefault((one.symbol, one.trade_id), one)
        return one.match()

    def page(self, trades: Sequence[Trade]) -> Message:
        symbol, ids = trades[0].symbol, [one.trade_id for one in trades]
        self.absent |= {(symbol, one) for one in range(ids[0], ids[-1]) if one not in ids}
        for one in trades:
            self.trades.setdefault((symbol, one.trade_id), replace(one, source="rest"))
        return page(trades)

    def rows(self) -> list[dict[str, Any]]:
        return model_completeness(self.trades.values(), self.absent)


def arrivals(chance: random.Random, exchange: Exchange) -> list[Trade | list[Trade]]:
    """Single trades from the feed, mostly in order, and pages from anywhere, some of them twice."""
    singles = [one for trades in exchange.trades.values() for one in trades if chance.random() < 0.6]
    singles.sort(key=lambda one: one.time if chance.random() < 0.9 else at(chance.random() * 20 * HOUR_S))
    todo: list[Trade | list[Trade]] = list(singles)
    for _ in range(chance.randint(0, 12)):
        todo.insert(chance.randint(0, len(todo)), exchange.page(chance))
    return [*todo, *chance.sample(todo, min(len(todo), 3))]


_COURSE = given(
    seed=st.integers(0, 2**32), cuts=st.lists(st.integers(1, 15), max_size=6), lives=st.lists(st.booleans())
)


@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@_COURSE
def test_every_hour_is_right_after_every_batch_in_some_orders(seed: int, cuts: list[int], lives: list[bool]) -> None:
    check_course(seed, cuts, lives)


@pytest.mark.long
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@_COURSE
def test_every_hour_is_right_after_every_batch_whatever_comes_in_whatever_order(
    seed: int, cuts: list[int], lives: list[bool]
) -> None:
    check_course(seed, cuts, lives)


def check_course(seed: int, cuts: list[int], lives: list[bool]) -> None:
    """Batches, restarts between them, healing from above and from below, proofs before and after the trades."""
    chance, told = random.Random(seed), Told()
    rest = arrivals(chance, Exchange(chance))
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder) / "lake")
        pipeline = Pipeline(lake.settings, lake.log)
        for number, cut in enumerate([*cuts, len(rest)]):
            now, rest = rest[:cut], rest[cut:]
            lake.append(told.match(one) if isinstance(one, Trade) else told.page(one) for one in now)
            pipeline.drain(lambda _done, _total: None)
            assert lake.rows(COMPLETENESS, "window_date") == told.rows()
            if number < len(lives) and not lives[number]:
                pipeline.__exit__()
                pipeline = Pipeline(lake.settings, lake.log)
        pipeline.rederive(lambda _done, _total: None)
        assert lake.rows(COMPLETENESS, "window_date") == told.rows()
        pipeline.__exit__()
        lake.close()


def test_the_hours_of_a_product_answer_for_each_id_of_its_record_once(lake: Lake) -> None:
    chance = random.Random(3)
    trades = [trade(1000 + n, n * 0.13) for n in range(200)]
    held = [trades[0], *(one for one in trades[1:-1] if chance.random() < 0.7), trades[-1]]
    for start in range(0, len(held), 50):
        lake.take_in(one.match() for one in reversed(held[start : start + 50]))
    rows = lake.rows(COMPLETENESS)
    assert len(rows) == 26
    assert [row["first_trade_id"] for row in rows] == [1000, *(row["last_trade_id"] + 1 for row in rows[:-1])]
    assert sum(row["expected_ids"] for row in rows) == 200
    assert sum(row["held_ids"] for row in rows) == len(held)
    assert sum(row["missing_ids"] for row in rows) == 200 - len(held)


def test_a_hole_between_two_hours_is_counted_in_the_later_one_until_it_is_healed(lake: Lake) -> None:
    trades = [trade(10 + n, n * 0.25) for n in range(8)]  # ids 10 to 13 in the first hour, 14 to 17 in the second
    figures = ("first_trade_id", "last_trade_id", "expected_ids", "held_ids", "healed_ids", "missing_ids", "witness")
    lake.take_in(one.match() for one in trades if one.trade_id not in (13, 14))
    assert hours(lake, *figures) == [(10, 12, 3, 3, 0, 0, None), (13, 17, 5, 3, 0, 2, "trade")]
    lake.take_in([page(trades[2:4])])  # 12 and 13, the latter new
    assert hours(lake, *figures) == [(10, 13, 4, 4, 1, 0, "trade"), (14, 17, 4, 3, 0, 1, "trade")]
    lake.take_in([page(trades[4:6])])
    assert hours(lake, *figures) == [(10, 13, 4, 4, 1, 0, "trade"), (14, 17, 4, 4, 1, 0, "trade")]
    assert hours(lake, "healed_from", "is_complete") == [("rest", True)] * 2


def test_a_trade_that_comes_late_has_no_hours_written_again_but_those_around_it(lake: Lake) -> None:
    trades = [trade(10 + n, n) for n in range(6)]
    lake.take_in(one.match() for one in trades if one.trade_id != 12)
    first = lake.arrow(COMPLETENESS)["load_timestamp"][0].as_py()
    lake.take_in([trades[2].match()])
    rows = lake.arrow(COMPLETENESS).sort_by("window_start").to_pylist()
    assert [row["load_timestamp"] > first for row in rows] == [False, True, True, True, False, False]


def test_an_id_that_no_page_has_between_its_neighbours_is_absent_and_not_missing(lake: Lake) -> None:
    lake.take_in(one.match() for one in (trade(10, 0), trade(14, 1), trade(20, 2)))
    figures = ("first_trade_id", "last_trade_id", "held_ids", "absent_ids", "missing_ids", "is_complete")
    assert hours(lake, *figures)[1:] == [(11, 14, 1, 0, 3, False), (15, 20, 1, 0, 5, False)]
    lake.take_in([page([trade(10, 0), trade(14, 1)])])  # nothing new for silver
    assert proofs(lake) == [("BTC-USD", 11, 13)]
    assert hours(lake, *figures)[1:] == [(11, 14, 1, 3, 0, True), (15, 20, 1, 0, 5, False)]
    lake.take_in([page([trade(10, 0), trade(14, 1)]), page([trade(14, 1), trade(16, 1.5), trade(20, 2)])])
    assert proofs(lake) == [("BTC-USD", 11, 13)] * 2 + [("BTC-USD", 15, 15), ("BTC-USD", 17, 19)]
    assert hours(lake, *figures)[1:] == [(11, 16, 2, 4, 0, True), (17, 20, 1, 3, 0, True)]


def test_a_trade_that_comes_after_all_is_held_whatever_a_page_proved(lake: Lake) -> None:
    lake.take_in([page([trade(10, 0), trade(14, 1)])])
    assert hours(lake, "held_ids", "absent_ids", "missing_ids") == [(1, 0, 0), (1, 3, 0)]
    lake.take_in([trade(12, 0.5).match()])
    assert hours(lake, "held_ids", "absent_ids", "missing_ids") == [(2, 1, 0), (1, 1, 0)]


def test_an_older_trade_makes_a_hole_below_what_was_the_beginning_of_the_record(lake: Lake) -> None:
    lake.take_in([trade(10, 5).match(), trade(11, 6).match()])
    assert hours(lake, "first_trade_id", "missing_ids") == [(10, 0), (11, 0)]
    lake.take_in([trade(7, 0).match()])
    assert hours(lake, "first_trade_id", "missing_ids") == [(7, 0), (8, 2), (11, 0)]


def test_a_refused_row_of_a_page_shows_that_its_id_is_there(lake: Lake) -> None:
    rows = page([trade(10, 0), trade(12, 0), trade(15, 0)])
    lake.take_in(
        [rows | {"body": rows["body"].replace(b'"trade_id": 12, "price": "100"', b'"trade_id": 12, "price": "-1"')}]
    )
    assert len(lake.rows(QUARANTINE)) == 1
    assert len(lake.rows(SILVER)) == 2
    assert proofs(lake) == [("BTC-USD", 11, 11), ("BTC-USD", 13, 14)]
    assert hours(lake, "expected_ids", "held_ids", "absent_ids", "missing_ids") == [(6, 2, 3, 1)]


@pytest.mark.parametrize("unreadable", [b'"12"x', b'"12.0"', b'"-12"', b"null", b'"99999999999999999999"', b'" 12"'])
def test_a_page_with_an_id_that_can_not_be_read_proves_nothing(lake: Lake, unreadable: bytes) -> None:
    rows = page([trade(10, 0), trade(12, 0), trade(15, 0)])
    lake.take_in([rows | {"body": rows["body"].replace(b'"trade_id": 12', b'"trade_id": ' + unreadable)}])
    assert len(lake.rows(QUARANTINE)) == 1
    assert proofs(lake) == []


def test_a_page_with_more_than_trades_or_of_no_product_proves_nothing(lake: Lake) -> None:
    body = page([trade(10, 0), trade(12, 0)])["body"]
    bodies = [(b"[null," + body[1:], "BTC-USD"), (body[:-1] + b",5]", "BTC-USD"), (body, ""), (body, "BTC")]
    lake.take_in(message(one, "rest", key) for one, key in bodies)
    assert proofs(lake) == []


def test_messages_of_the_feed_prove_nothing_and_cost_the_table_no_commit(lake: Lake) -> None:
    lake.take_in([trade(10, 0).match()])
    before = lake.delta(ABSENT).version()
    lake.take_in(one.match() for one in (trade(12, 0), trade(15, 0)))
    assert proofs(lake) == []
    assert lake.delta(ABSENT).version() == before + 1  # by which the next pipeline took the table over


def live(lake: Lake, batches: Iterable[list[Message]]) -> int:
    """Works off `batches` as the live pipeline does; returns how often the table was written before the end."""
    with Pipeline(lake.settings, lake.log) as pipeline:
        for batch in batches:
            lake.append(batch)
            pipeline.step(0)
            pipeline.gold()
        written = lake.delta(COMPLETENESS).version()
        pipeline.drain(lambda _done, _total: None)
    return written


def test_live_work_writes_the_hours_seldom_and_all_of_them_at_the_end(lake: Lake) -> None:
    trades = [trade(10 + n, n / 10) for n in range(40)]
    assert live(lake, [[one.match()] for one in trades]) < len(trades) / 2
    assert lake.rows(COMPLETENESS, "window_date") == model_completeness(trades)
    assert len(lake.rows(COVERAGE)) == 1
