"""The simulated market: repeatable, dense, calm, and moved only by its script."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from cryptopulse.errors import ConfigurationError
from cryptopulse.simulator import SimulatorOptions, StagedEpisode, parse_episode
from cryptopulse.simulator.history import PRODUCT_TRADES_MIN, History
from cryptopulse.simulator.market import _WAVES, SimulatedMarket, Trades
from cryptopulse.simulator.products import catalogue


def trades_until(market: SimulatedMarket, until_s: float) -> Trades:
    blocks = []
    for block in market.blocks():
        blocks.append(block)
        if block["time_us"][-1] >= until_s * 1e6:
            break
    return np.concatenate(blocks)


def widest_two_minutes(time_us: np.ndarray, price: np.ndarray) -> float:
    """The widest range of prices within any two minutes, as a share of the lowest."""
    second = time_us // 1_000_000
    seconds, starts = np.unique(second, return_index=True)
    low = np.full(int(seconds[-1]) + 1, np.inf)
    high = np.full(int(seconds[-1]) + 1, -np.inf)
    low[seconds] = np.minimum.reduceat(price, starts)
    high[seconds] = np.maximum.reduceat(price, starts)
    width = min(121, len(low))
    lows = np.lib.stride_tricks.sliding_window_view(low, width).min(axis=1)
    highs = np.lib.stride_tricks.sliding_window_view(high, width).max(axis=1)
    ranges = highs / lows - 1
    return float(ranges[np.isfinite(ranges)].max())


def test_the_same_seed_gives_the_same_trades() -> None:
    first, again = (trades_until(SimulatedMarket(catalogue(30, 5), 2000, 5), 5) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, trades_until(SimulatedMarket(catalogue(30, 6), 2000, 6), 5)[: len(first)])


def test_trade_ids_are_dense_and_times_never_go_back_within_a_product() -> None:
    products = catalogue(40, 2)
    trades = trades_until(SimulatedMarket(products, 5000, 2), 5)
    assert (np.diff(trades["time_us"]) >= 0).all()
    for number, product in enumerate(products):
        own = trades[trades["product"] == number]
        assert own["trade_id"].tolist() == list(range(product.first_trade_id, product.first_trade_id + len(own)))
        assert (np.diff(own["sequence"]) > 0).all()
    assert (trades["price"] > 0).all()
    assert (trades["size"] > 0).all()


def test_the_fills_of_an_order_share_time_and_side_and_walk_the_book_one_way() -> None:
    trades = trades_until(SimulatedMarket(catalogue(3, 9), 3000, 9), 20)
    longest = 0
    for number in range(3):
        own = trades[trades["product"] == number]
        for fills in np.split(own, np.flatnonzero(np.diff(own["taker"])) + 1):
            longest = max(longest, len(fills))
            assert len(set(fills["time_us"])) == len(set(fills["maker_sell"])) == 1
            assert fills["taker"][0] == fills["trade_id"][0]
            steps = np.diff(fills["price"])
            assert (steps >= 0).all() if fills["maker_sell"][0] else (steps <= 0).all()
    assert longest >= 32  # what a recording of a quiet minute has


def test_the_rate_is_what_was_asked_for_and_popular_products_trade_more() -> None:
    trades = trades_until(SimulatedMarket(catalogue(50, 1), 1000, 1), 120)
    assert len(trades) / (trades["time_us"][-1] / 1e6) == pytest.approx(1000, rel=0.01)
    counts = np.bincount(trades["product"], minlength=50)
    assert counts[0] > 10 * counts[20] > 0


def test_prices_and_sizes_span_what_the_exchange_has() -> None:
    products = catalogue(300, 1)
    assert {product.product_id for product in products[:3]} == {"BTC-USD", "ETH-USD", "SOL-USD"}
    assert min(product.price_ticks * product.tick for product in products) < 1e-8
    assert {product.price_decimals for product in products} >= {2, 8, 12}
    cheapest = products.index(next(p for p in products if p.product_id == "ZILCH-USD"))
    trades = trades_until(SimulatedMarket(products, 20_000, 1), 20)
    sizes = trades["size"][trades["product"] == cheapest] / 10 ** products[cheapest].size_decimals
    assert sizes.max() > 1e11


@pytest.mark.parametrize(("rate", "hours", "seed"), [(100, 1.0, 1), (10, 6.0, 2), (5000, 0.04, 3)])
def test_the_market_is_calm_without_a_script(rate: float, hours: float, seed: int) -> None:
    products = catalogue(14, seed)
    trades = trades_until(SimulatedMarket(products, rate, seed), hours * 3600)
    for number in range(len(products)):
        own = trades[trades["product"] == number]
        assert 0.0001 < widest_two_minutes(own["time_us"], own["price"]) < 0.005


def test_two_minutes_of_calm_hold_for_every_product_and_any_time_by_arithmetic() -> None:
    waves = sum(2 * height * min(1.0, 120 / spacing_s) for spacing_s, height in _WAVES)
    for product in catalogue(1000, 4):
        # A sweep on either side of the spread, the spread itself and a rounding.
        ticks = 2 * max(0.0003 * product.price_ticks, 1) + 2
        assert waves + ticks / product.price_ticks < 0.0050


def test_a_scripted_crash_falls_by_its_depth_and_stays() -> None:
    episode = StagedEpisode("SOL-USD", at_s=30, depth_pct=3, duration_s=8)
    market = SimulatedMarket(catalogue(20, 3), 200, 3, [episode])
    trades = trades_until(market, 60)
    own = trades[trades["product"] == 2]
    second, price = own["time_us"] / 1e6, own["price"]
    before = price[(second > 20) & (second < 30)].mean()
    after = price[(second > 38) & (second < 60)].mean()
    assert after / before - 1 == pytest.approx(-0.03, abs=0.005)
    assert ((second > 30) & (second < 38)).sum() > 50
    moving = own[(second >= 30) & (second <= 38)]["trade_id"]
    assert market.played[0].first_trade_id == moving[0]
    assert market.played[0].last_trade_id == moving[-1]
    others = trades[trades["product"] == 0]
    assert widest_two_minutes(others["time_us"], others["price"]) < 0.005


def test_a_v_shaped_surge_comes_back() -> None:
    episode = StagedEpisode("BTC-USD", at_s=10, kind="surge", depth_pct=2, duration_s=5, recovery="v")
    trades = trades_until(SimulatedMarket(catalogue(1, 3), 300, 3, [episode]), 40)
    second, price = trades["time_us"] / 1e6, trades["price"]
    before = price[second < 10].mean()
    assert price[(second > 14.8) & (second < 15.2)].mean() / before == pytest.approx(1.02, abs=0.004)
    assert price[second > 20].mean() / before == pytest.approx(1, abs=0.004)


def test_a_script_changes_nothing_before_it_starts() -> None:
    quiet = trades_until(SimulatedMarket(catalogue(2, 3), 1000, 3), 10)
    moved = trades_until(SimulatedMarket(catalogue(2, 3), 1000, 3, [StagedEpisode("BTC-USD", at_s=5)]), 10)
    early = int((quiet["time_us"] < 4e6).sum())
    assert np.array_equal(quiet[:early], moved[:early])


def test_episodes_are_read_from_their_short_form() -> None:
    assert parse_episode("crash:BTC-USD@20s:3%") == StagedEpisode("BTC-USD", 20, "crash", 3, 8, "step")
    assert parse_episode("surge:ETH-USD@1.5:2.5%/10s/v") == StagedEpisode("ETH-USD", 1.5, "surge", 2.5, 10, "v")
    for wrong in (
        "crash",
        "boom:BTC-USD@1s",
        "crash:BTC-USD@-1s",
        "crash:BTC-USD@1s:99%",
        "crash:BTC-USD@1.2.3s",
    ):
        with pytest.raises(ConfigurationError):
            parse_episode(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"products": 0},
        {"products": ["btc"]},
        {"products": ["BTC-USD", "BTC-USD"]},
        {"rate": 0},
        {"seed": -1},
        {"port": 70000},
        {"speed": -1},
        {"history": 0},
        {"trades_max": 0},
        {"episodes": [StagedEpisode("XYZ-USD", 1)]},
    ],
)
def test_options_that_can_not_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        SimulatorOptions(**wrong)  # type: ignore[arg-type]


def test_history_keeps_the_newest_trades_and_shows_only_what_is_published() -> None:
    products = catalogue(3, 1)
    history = History(products, 6000)
    blocks = [block for block, _ in zip(SimulatedMarket(products, 2000, 1).blocks(), range(40), strict=False)]
    for block in blocks[:-1]:
        history.add(block)
        history.publish(block)
    history.add(blocks[-1])
    trades = np.concatenate(blocks[:-1])
    for number in range(3):
        own = trades[trades["product"] == number]
        assert history.last_id(number) == own["trade_id"][-1]
        kept = history.newest(number, 10**9)
        assert len(kept) >= PRODUCT_TRADES_MIN - 1000
        assert np.array_equal(kept, own[-len(kept) :])
    assert history.count() == len(trades)
    assert all(a < b for a, b in pairwise(history.newest(0, 100)["trade_id"].tolist()))
