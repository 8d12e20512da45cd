"""The past of a product as it is read from a real lake."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import dashboard_lake
from cryptopulse.lake.tables import SILVER
from cryptopulse.serve.live.candles import CANDLES, COLUMNS, GRAINS, candles_of
from cryptopulse.serve.live.history import history_of, newest_us
from cryptopulse.serve.live.market import Market
from support import Lake, micros

SYMBOL = "BTC-USD"
OWN = sorted(trade for trade in dashboard_lake.TRADES if trade.symbol == SYMBOL)
NOW_US = max(micros(trade.time) for trade in dashboard_lake.TRADES)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    made = Lake(tmp_path_factory.mktemp("history") / "lake")
    dashboard_lake.fill(made)
    yield made
    made.close()


@pytest.mark.parametrize("grain", GRAINS)
def test_the_past_of_a_product_is_that_of_a_plain_count(lake: Lake, grain: str) -> None:
    seconds = GRAINS[grain]
    rows = history_of(lake.settings.location, SYMBOL, seconds, NOW_US, NOW_US * 2)
    found = candles_of(0, seconds, Market()).past(rows)
    expected: dict[int, list[float]] = {}
    for trade in OWN:
        price, size, start = float(trade.price), float(trade.size), micros(trade.time) // 10**6 // seconds * seconds
        bought = size if trade.side == "BUY" else 0.0
        one = expected.setdefault(start, [price, price, price, price, 0, 0, 0, 0])
        one[1], one[2], one[3] = max(one[1], price), min(one[2], price), price
        one[4:] = [one[4] + size, one[5] + price * size, one[6] + bought, one[7] + 1]
    last = NOW_US // 10**6 // seconds * seconds if seconds < 60 else max(expected)
    wanted = [[start, *row] for start, row in sorted(expected.items()) if start > last - CANDLES * seconds]
    np.testing.assert_allclose(found[:, : COLUMNS.index("average_1h")], np.array(wanted), rtol=1e-9)
    if seconds >= 60:
        last_hour = [
            float(t.price) for t in OWN if micros(t.time) // 60_000_000 > micros(OWN[-1].time) // 60_000_000 - 60
        ]
        assert found[-1, COLUMNS.index("average_1h")] == pytest.approx(sum(last_hour) / len(last_hour))


def test_trades_of_later_commits_are_left_out_as_they_come_as_news(lake: Lake) -> None:
    assert history_of(lake.settings.location, SYMBOL, 1, NOW_US, 0).num_rows == 0


def test_the_newest_time_is_known_without_reading_a_file(lake: Lake) -> None:
    newest = newest_us(lake.delta(SILVER), "event_time")
    assert newest is not None
    assert 0 <= newest - NOW_US <= 1000
