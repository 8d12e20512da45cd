"""However a stream is cut into batches, and however late or often a trade comes: the same tables."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryptopulse.lake.tables import BARS, COMPLETENESS, COVERAGE, SILVER, STATS
from support import (
    Lake,
    Message,
    Trade,
    advanced,
    at,
    message,
    model_bars,
    model_completeness,
    model_coverage,
    model_stats,
    page,
    some,
)

RULES = {"rules": [{"threshold_pct": "1.0", "lookback_s": 30, "cool_down_s": 15}, {"name": "long", "lookback_s": 200}]}
NO_QUOTIENTS = ("vwap", "window_date")
STATS_FLOATS = ("avg_price", "vwap", "volatility")


def _market(chance: random.Random) -> list[Trade]:
    """Trades of three products, busy and thin; times grow with ids within a product."""
    trades = []
    for symbol, pace in (("BTC-USD", [0, 0, 1, 5, 20]), ("ETH-USD", [0, 7, 59, 61]), ("THIN-USD", [60, 3600, 90_000])):
        seconds, price = 0.0, Decimal(100)
        for trade_id in range(50, 50 + chance.randint(1, 25)):
            seconds += chance.choice(pace)
            price += Decimal(chance.choice([-2, -1, 0, 0, 1, 2])) / chance.choice([1, 10])
            size = chance.choice(["0.000000000001", "1.5", "3"])
            trades.append(Trade(symbol, trade_id, at(seconds), str(price), size, chance.choice(["BUY", "SELL"])))
    return trades


def _stream(chance: random.Random, trades: Sequence[Trade]) -> list[Message]:
    """Messages of both feeds and of REST that hold `trades`, some twice, some late, with junk between."""
    todo = [trade for trade in trades if chance.random() < 0.85]
    chance.shuffle(todo) if chance.random() < 0.3 else todo.sort(key=lambda t: (t.time, t.trade_id))
    held_back = [trade for trade in trades if trade not in todo and chance.random() < 0.7]
    messages: list[Message] = []
    for group in (todo, held_back, chance.sample(trades, min(5, len(trades)))):
        rest = list(group)
        while rest:
            take, rest = rest[: (count := chance.choice([1, 1, 1, 4]))], rest[count:]
            kind = chance.choice(["match", "advanced", "page"])
            if kind == "match":
                messages += [trade.match(chance.choice(["match", "last_match"])) for trade in take]
            elif kind == "advanced":
                messages.append(advanced(take))
            else:
                messages += [page([t for t in take if t.symbol == s]) for s in sorted({t.symbol for t in take})]
            if chance.random() < 0.1:
                junk = [b"junk", b'{"type":"heartbeat"}', trades[0].match(price="-1")["body"]]
                messages.append(message(chance.choice(junk)))
    return messages


def _ids(one: Message) -> Iterator[tuple[str, int]]:
    """The trades (symbol, id) of a message: found by text, apart from the pipeline's parsing."""
    if one["body"] == b"junk":
        return
    body = json.loads(one["body"])
    rows = body if isinstance(body, list) else body.get("events", [{"trades": [body]}])[0]["trades"]
    for row in rows:
        if "trade_id" in row and row["price"] != "-1":
            yield row.get("product_id") or one["partition_key"], int(row["trade_id"])


def _told(messages: Sequence[Message], trades: Sequence[Trade]) -> list[Trade]:
    """The trades that some message holds, with the source of the first one that does."""
    sources: dict[tuple[str, int], str] = {}
    for one in messages:
        for key in _ids(one):
            sources.setdefault(key, one["source"])
    keyed = {(trade.symbol, trade.trade_id): trade for trade in trades}
    return [replace(trade, source=sources[key]) for key, trade in keyed.items() if key in sources]


def _skipped(messages: Sequence[Message]) -> set[tuple[str, int]]:
    """The ids between two that stand beside each other on a page."""
    pages = [sorted(_ids(one)) for one in messages if one["source"] == "rest"]
    return {
        (symbol, gone)
        for ids in pages
        for (symbol, below), (_, above) in pairwise(ids)
        for gone in range(below + 1, above)
    }


def _check_against_models(lake: Lake, trades: Sequence[Trade], absent: set[tuple[str, int]]) -> None:
    assert [(r["symbol"], r["trade_id"]) for r in lake.rows(SILVER)] == [(t.symbol, t.trade_id) for t in sorted(trades)]
    assert lake.rows(COVERAGE) == model_coverage(trades)
    assert lake.rows(BARS, *NO_QUOTIENTS) == model_bars(trades)
    stats = lake.rows(STATS, "window_date")
    close = [row | {name: pytest.approx(row[name], abs=1e-9) for name in STATS_FLOATS} for row in stats]
    assert model_stats(trades) == close
    assert lake.rows(COMPLETENESS, "window_date") == model_completeness(trades, absent)


_CUTTING = given(
    seed=st.integers(0, 2**32), cuts=st.lists(st.integers(1, 40), max_size=5), batch=st.sampled_from([1000, 13, 5])
)


@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@_CUTTING
def test_some_cuttings_of_a_stream_give_the_same_tables(seed: int, cuts: list[int], batch: int) -> None:
    check_cutting(seed, cuts, batch)


@pytest.mark.long
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@_CUTTING
def test_any_cutting_of_a_stream_gives_the_same_tables(seed: int, cuts: list[int], batch: int) -> None:
    check_cutting(seed, cuts, batch)


def check_cutting(seed: int, cuts: list[int], batch: int) -> None:
    """A random stream, taken in whole and in pieces."""
    chance = random.Random(seed)
    trades = _market(chance)
    stream = _stream(chance, trades)
    with tempfile.TemporaryDirectory() as folder:
        whole, pieces = (Lake(Path(folder) / name, alerts=RULES) for name in ("whole", "pieces"))
        whole.take_in(stream)
        _check_against_models(whole, _told(stream, trades), _skipped(stream))
        rest = list(stream)
        for cut in [*cuts, len(rest)]:
            now, rest = rest[:cut], rest[cut:]
            pieces.append(now)
            if chance.random() < 0.6 or not rest:
                pieces.drain(batch if len(now) < 60 else None)
        assert pieces.contents() == whole.contents()
        whole.close()
        pieces.close()


def test_a_rebuild_takes_few_pages_at_once_and_gives_the_same_tables(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the REST interface holds up to a thousand trades: a batch is bounded by pages as well."""
    monkeypatch.setattr("cryptopulse.engine.bronze._PAGES_MAX", 2)
    trades = [Trade("BTC-USD", n, at(n), "5") for n in range(1, 41)]
    pages = [page(trades[start : start + 5]) for start in range(20, 40, 5)]
    lake.take_in([*(trade.match() for trade in trades[:20]), *pages])
    before = lake.contents()
    lake.rebuild()
    assert lake.contents() == before
    loads = lake.arrow(SILVER)["load_timestamp"].unique()
    assert len(loads) == 2  # twenty messages with two pages, then the other two


def test_the_same_stream_twice_changes_nothing_but_bronze(lake: Lake) -> None:
    chance = random.Random(5)
    stream = _stream(chance, _market(chance))
    lake.take_in(one for one in stream if one["body"] != b"junk" and b'"-1"' not in one["body"])
    files = _files(lake)
    lake.take_in(one for one in stream if one["body"] != b"junk" and b'"-1"' not in one["body"])
    assert _files(lake) == files


def _files(lake: Lake) -> dict[str, list[str]]:
    """What was written, take-overs aside."""
    return {
        table.qualified: sorted(lake.delta(table).file_uris())
        for table in (SILVER, COVERAGE, BARS, STATS, COMPLETENESS)
    }


def _bar(lake: Lake) -> dict[str, bool]:
    return {f"{row['symbol'][0]}{row['first_trade_id']}": row["is_complete"] for row in lake.rows(BARS)}


def test_a_bar_is_complete_once_both_neighbours_are_held_however_far_away(lake: Lake) -> None:
    """The neighbours of a thin product's bar lie hours away, and days."""
    trades = [Trade("THIN-USD", n, at(n * 50_000.0), "5") for n in range(1, 6)]
    lake.take_in([trades[0].match()])
    assert _bar(lake) == {"T1": False}
    lake.take_in([trades[1].match()])
    lake.take_in([trades[2].match()])
    assert _bar(lake) == {"T1": False, "T2": True, "T3": False}
    lake.take_in([trades[4].match()])
    lake.take_in([trades[3].match()])
    assert _bar(lake) == {"T1": False, "T2": True, "T3": True, "T4": True, "T5": False}


@pytest.mark.parametrize("missing", some(2, [[3, 4], [4], [3], [2, 3, 4, 5]]))
def test_a_hole_at_the_edge_of_a_minute_makes_bars_incomplete_until_it_is_filled(
    lake: Lake, missing: list[int]
) -> None:
    """Ids 1, 2, 3 are in the first minute, 4, 5, 6 in the second, 7 in the third."""
    times = [1, 2, 59.9, 60, 61, 119, 120]
    trades = [Trade("BTC-USD", 1 + n, at(when), "5") for n, when in enumerate(times)]
    lake.take_in(trade.match() for trade in trades if trade.trade_id not in missing)
    late = [Trade("ETH-USD", 1, at(100_000), "5")]
    lake.take_in(trade.match() for trade in late)  # lets the minutes leave the memory
    assert lake.rows(BARS, *NO_QUOTIENTS) == model_bars([*late, *(t for t in trades if t.trade_id not in missing)])
    for one in missing:
        lake.take_in([trades[one - 1].match()])
    assert lake.rows(BARS, *NO_QUOTIENTS) == model_bars([*late, *trades])
    assert _bar(lake) == {"B1": False, "B4": True, "B7": False, "E1": False}


def test_deduplication_reaches_over_all_history(lake: Lake) -> None:
    trades = [Trade("BTC-USD", n, at(n * 86_400.0 * 30), "5") for n in range(1, 5)]
    for trade in trades:
        lake.append([trade.match()])
        lake.drain(1)
    other_price = [Trade("BTC-USD", t.trade_id, t.time, "6") for t in trades]
    lake.take_in([*(t.match() for t in other_price), page(other_price), advanced(other_price)])
    assert [row["price"] for row in lake.rows(SILVER)] == [5] * 4
    assert len(lake.rows(COVERAGE)) == 1


def test_thousands_of_minutes_that_are_no_neighbours_go_through_in_one_batch(lake: Lake) -> None:
    """Thin products after a long stop: each minute was once a condition of its own, which overflowed the stack."""
    chance = random.Random(1)
    first = [Trade("P0-USD", 1, at(-86_000), "5"), Trade("P1-USD", 400, at(86_400), "5")]
    lake.take_in(trade.match() for trade in first)
    trades = [
        Trade(f"P{product}-USD", 2 + place, at(minute * 60.0), "5")
        for product in range(10)
        for place, minute in enumerate(sorted(chance.sample(range(1440), 150)))
    ]
    lake.take_in(trade.match() for trade in trades)
    assert lake.rows(BARS, *NO_QUOTIENTS) == model_bars([*first, *trades])
