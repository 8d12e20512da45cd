"""The recording of a crash day: it has the shape of a real one, and holds exactly what its summary says."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from simulator_server import receive, run, simulator, subscribe
from typer.testing import CliRunner
from websockets.exceptions import ConnectionClosed

from cryptopulse import cli
from cryptopulse.errors import ConfigurationError
from cryptopulse.recording import read_recording
from cryptopulse.replay import replay
from cryptopulse.simulator.crash_day import TRADES_MIN, CrashDay
from cryptopulse.venues import Subscriptions, TradesMessage
from cryptopulse.venues.coinbase_exchange import ExchangeDialect
from support import Lake

SMALL = 30_000


@pytest.fixture(scope="module")
def day() -> CrashDay:
    """A whole day, 1.6 million trades."""
    return CrashDay()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small day as a file."""
    path = tmp_path_factory.mktemp("crash-day") / "recording.jsonl"
    CrashDay(SMALL).write(path)
    return path


def test_the_same_seed_gives_the_same_bytes(recording: Path, tmp_path: Path) -> None:
    hashes = [hashlib.sha256(recording.read_bytes()).hexdigest()]
    for seed in (1, 2):
        CrashDay(SMALL, seed).write(tmp_path / "again.jsonl")
        hashes.append(hashlib.sha256((tmp_path / "again.jsonl").read_bytes()).hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_summary_counts_what_the_file_holds(recording: Path) -> None:
    summary = CrashDay(SMALL).summary
    messages = [ExchangeDialect().read(body) for _, body in read_recording(recording)]
    assert len(messages) == summary.messages
    assert sum(isinstance(message, Subscriptions) for message in messages) == summary.connections
    told = [pair for message in messages if isinstance(message, TradesMessage) for pair in message.ids]
    assert len(told) == summary.messages - summary.connections
    assert (len(set(told)), len(told) - len(set(told))) == (summary.trades, summary.repeated)
    for product, held in summary.products.items():
        ids = np.array(sorted({trade_id for name, trade_id in told if name == product}))
        steps = np.diff(ids)
        assert (len(ids), ids[0], ids[-1]) == (held.trades, held.first_trade_id, held.last_trade_id)
        assert ((steps > 1).sum(), (steps - 1).sum()) == (held.holes, held.missing_ids)
    assert summary.trades + summary.missing_ids == SMALL


def test_messages_come_in_the_order_of_receipt_and_of_ids_within_a_product(recording: Path) -> None:
    received, highest, went_back = [], {}, 0
    newest_us = np.datetime64("2025-01-01")
    for received_ns, body in read_recording(recording):
        received.append(received_ns)
        message = json.loads(body)
        if message["type"] == "match":
            product, time = message["product_id"], np.datetime64(message["time"].removesuffix("Z"))
            assert message["trade_id"] > highest.get(product, 0)
            highest[product] = message["trade_id"]
            went_back += time < newest_us
            newest_us = max(newest_us, time)
    assert received == sorted(received)
    assert went_back > 100  # across products


def test_a_lake_holds_after_replay_what_the_summary_says(recording: Path, tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    result = replay(lake.settings, lake.log, recording, 10_000, lambda _done, _total: None)
    lake.close()
    summary = CrashDay(SMALL).summary
    assert result["symbols"] == {product: held.trades for product, held in summary.products.items()}
    assert [result[name] for name in ("messages", "trades", "duplicates", "missing_ids", "quarantined")] == [
        summary.messages,
        summary.trades,
        summary.repeated,
        summary.missing_ids,
        0,
    ]


def test_rates_lie_a_factor_of_a_thousand_apart_and_holes_hit_many_products_at_once(day: CrashDay) -> None:
    summary = day.summary
    trades = [held.trades for held in summary.products.values()]
    assert len(trades) == 20
    assert 400_000 < max(trades) < 600_000
    assert 300 < min(trades) < 600
    assert summary.trades + summary.missing_ids == 1_600_000
    assert 60 <= summary.holes <= 100
    assert summary.holes >= 3 * (summary.connections - 1)


def test_trades_burst_on_the_crash_and_one_order_fills_nine_hundred_at_one_microsecond(day: CrashDay) -> None:
    time_us = day.trades["time_us"][day.trades["time_us"] >= 0]
    per_second = np.bincount(time_us // 1_000_000)
    assert 900 < np.sort(per_second)[-5] < 1_600
    assert (per_second > 500).nonzero()[0].min() >= 21 * 3600
    assert 5 < per_second[: 20 * 3600].mean() < 15
    _, together = np.unique(day.trades["time_us"] * 32 + day.trades["product"], return_counts=True)
    assert together.max() == 900


def test_prices_and_sizes_span_what_the_exchange_has(day: CrashDay) -> None:
    price, size, product = (day.trades[name] for name in ("price", "size", "product"))
    prices = [price[product == number] * one.tick for number, one in enumerate(day.products)]
    assert max(prices[0]) > 110_000
    assert min(few.min() for few in prices) < 1e-8
    assert len({(one.price_decimals, one.size_decimals) for one in day.products}) > 8
    assert size[product == 0].min() == 1  # 1e-8 of a bitcoin
    for number, few in enumerate(prices):
        assert few.max() / few.min() > 1.1, day.products[number].product_id


def test_delays_have_a_long_tail_on_the_crash_and_some_messages_come_before_their_time(day: CrashDay) -> None:
    delay_s = (day.received_us - day.trades["time_us"]) / 1e6
    assert 0.03 < np.median(delay_s) < 0.05
    assert -0.06 < delay_s.min() < 0
    assert 10 < delay_s.max() < 12.5
    tails = [np.percentile(delay_s[day.trades["product"] == number], 99) for number in range(20)]
    assert 2 < max(tails) < 8


def test_the_command_writes_the_recording_and_tells_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    done = CliRunner().invoke(cli.app, ["simulate", "--crash-day", str(path), "--trades", str(SMALL), "--json"])
    assert json.loads(done.stdout)["trades"] == CrashDay(SMALL).summary.trades
    assert path.stat().st_size > 1_000_000


@pytest.mark.parametrize("wrong", [{"trades": 100}, {"trades": 10**9}, {"seed": -1}])
def test_a_day_that_can_not_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError):
        CrashDay(**wrong)


def test_the_day_is_played_whole_up_to_now_and_cut_off_where_its_recorder_was() -> None:
    """What a reader receives is what the recording holds."""

    async def played() -> None:
        summary = CrashDay(TRADES_MIN).summary
        received: set[tuple[str, int]] = set()
        newest, connections = "", 0
        options = {"crash_day_trades": TRADES_MIN, "rate": 200_000, "start": "all_subscribed", "start_time_ns": None}
        begun = datetime.now(UTC)
        async with simulator(products=20, **options) as running:
            while (ledger := await running.ledger())["trading"] or not connections:
                connections += 1
                with suppress(ConnectionClosed):
                    async with running.connect() as client:
                        await client.send(subscribe(*summary.products))
                        while len(received) < summary.trades:
                            message = await receive(client)
                            if message["type"] in ("match", "last_match"):
                                received.add((message["product_id"], message["trade_id"]))
                                newest = max(newest, message["time"])
        held = {name: product.trades for name, product in summary.products.items()}
        assert Counter(product for product, _ in received) == held
        assert connections == summary.connections
        assert ledger["trades"] == TRADES_MIN
        age = begun - datetime.fromisoformat(newest)
        assert timedelta(0) <= age < timedelta(minutes=3)

    run(played)
