"""The step that keeps the table of episodes, over trades and a table in memory."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptopulse.engine import alerts
from cryptopulse.engine.alerts import AlertStep
from cryptopulse.engine.scopes import reach_max_s
from cryptopulse.lake.tables import ALERTS, SILVER
from cryptopulse.settings import AlertRule
from support import EPOCH, Trade, at
from support_alerts import ALL, RULES, expected, venues, walk

ONE = AlertRule(types=["FLASH_CRASH"])


def micros(moment: datetime) -> int:
    return round((moment - EPOCH).total_seconds() * 1_000_000)


class Silver:
    """Silver's trades; a commit's position is its number."""

    def __init__(self) -> None:
        self.rows = SILVER.arrow_schema.empty_table()
        self.watermark_us = self.kept_from_us = 0
        self.fetched = 0
        """Rows that were asked for by their time."""
        self._commits = 0

    def add(self, trades: Iterable[Trade]) -> None:
        self._commits += 1
        rows = [
            {
                "trade_id": trade.trade_id,
                "symbol": trade.symbol,
                "price": Decimal(trade.price),
                "trade_size": Decimal(trade.size),
                "side": trade.side,
                "event_time": trade.time,
                "ingestion_time": trade.time,
                "load_timestamp": self._commits,
                "source": trade.source,
                "event_date": trade.time.date(),
            }
            for trade in trades
        ]
        self.rows = pa.concat_tables([self.rows, pa.Table.from_pylist(rows, schema=SILVER.arrow_schema)])
        self.watermark_us = pc.max(pc.cast(self.rows["event_time"], pa.int64())).as_py()

    @property
    def products(self) -> list[str]:
        return pc.unique(self.rows["symbol"]).to_pylist()

    def since(self, position: int) -> pa.Table | None:
        news = self.rows.filter(pc.greater(pc.cast(self.rows["load_timestamp"], pa.int64()), position))
        return news if news.num_rows else None

    def between(self, first_us: int, last_us: int, symbols: Sequence[str] | None = None) -> pa.Table:
        when = pc.cast(self.rows["event_time"], pa.int64())
        found = self.rows.filter(pc.and_(pc.greater_equal(when, first_us), pc.less_equal(when, last_us)))
        if symbols is not None:
            found = found.filter(pc.is_in(found["symbol"], pa.array(symbols)))
        self.fetched += found.num_rows
        return found


class Table:
    """The table of episodes, with the position that its commits carry."""

    def __init__(self) -> None:
        self.rows = ALERTS.arrow_schema.empty_table()
        self.commits: list[str] = []
        self._recorded: dict[str, int] = {}
        self._positions: dict[str, int] = {}

    def reopened(self) -> Table:
        """As the next process finds it."""
        other = Table()
        other.rows, other._recorded, other._positions = self.rows, dict(self._recorded), dict(self._recorded)
        return other

    def position(self, source: str) -> int:
        return self._positions.get(source, -1)

    def recorded(self, source: str) -> int:
        return self._recorded.get(source, -1)

    def next_load(self) -> int:
        return self.position("load") + 1

    def skip_to(self, source: str, position: int) -> None:
        self._positions[source] = position

    def append(self, rows: pa.Table, positions: Mapping[str, int]) -> None:
        self.commits.append("append")
        self.rows = pa.concat_tables([self.rows, rows])
        assert len(pc.unique(self.rows["alert_id"])) == self.rows.num_rows
        self._recorded |= positions
        self._positions |= positions

    def replace(
        self,
        rows: pa.Table,
        positions: Mapping[str, int],
        *,
        is_replaced: Callable[[pa.Table], pa.Array],
        within: Mapping[str, tuple[Any, Any]],
    ) -> None:
        mask = is_replaced(self.rows)
        for name, (lowest, highest) in within.items():
            values = pc.cast(self.rows.filter(mask)[name], pa.int64())
            assert lowest <= pc.min(values).as_py() <= pc.max(values).as_py() <= highest
        self.rows = self.rows.filter(pc.invert(mask))
        self.append(rows, positions)
        self.commits[-1] = "replace"

    def read(self, columns: str, where: str = "true") -> pa.Table:
        assert where == "true"
        return self.rows.select(columns.split(", "))

    def found(self) -> list[dict[str, Any]]:
        rows = self.rows.drop_columns(["detected_at", "load_timestamp"]).to_pylist()
        return sorted(rows, key=lambda row: row["alert_id"])


_ARRIVAL = given(
    seed=st.integers(0, 2**32), watched_max=st.sampled_from([0, 20, 1_000]), lateness=st.sampled_from([0, 0.05, 1])
)


@settings(max_examples=8, deadline=None, derandomize=True)
@_ARRIVAL
def test_some_arrivals_of_trades_give_the_episodes_of_the_brute_force(
    seed: int, watched_max: int, lateness: float
) -> None:
    check_arrival(seed, watched_max, lateness)


@pytest.mark.long
@settings(max_examples=150, deadline=None, print_blob=True)
@_ARRIVAL
def test_any_arrival_of_trades_gives_the_episodes_of_the_brute_force(
    seed: int, watched_max: int, lateness: float
) -> None:
    check_arrival(seed, watched_max, lateness)


def check_arrival(seed: int, watched_max: int, lateness: float) -> None:
    """Watched or in bulk, in any cuts, in order or late, held back or not, with restarts between."""
    chance = random.Random(seed)
    market = walk(chance, 120) + walk(chance, 60, "BBB-USD") + venues(chance, 120)
    late = [trade for trade in market if chance.random() < lateness]
    arriving = sorted((trade for trade in market if trade not in late), key=lambda trade: (trade.time, trade.trade_id))
    for trade in late:
        arriving.insert(chance.randint(0, len(arriving)), trade)
    silver, table = Silver(), Table()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alerts, "_WATCHED_MAX", watched_max)
        step = AlertStep(table, silver, ALL, silver.products)
        done = 0
        while done < len(arriving):
            cut = arriving[done : done + chance.choice([1, 3, 10, 60])]
            done += len(cut)
            silver.add(cut)
            step.max_delay_s = chance.choice([0, 1_000])
            for _ in range(chance.choice([0, 1, 2])):
                step.advance()
            if chance.random() < 0.1:
                table = table.reopened()
                step = AlertStep(table, silver, ALL, silver.products)
        step.max_delay_s = 0
        step.advance()
        assert step.advance() is None
    assert table.found() == expected(market, ALL)
    assert [row["alert_id"] for row in table.found()] == sorted(step.episodes["alert_id"].to_pylist())


@pytest.fixture
def silver() -> Silver:
    return Silver()


@pytest.fixture
def table() -> Table:
    return Table()


def ticks(*prices: float, start: float = 0, first_id: int = 1) -> Iterator[Trade]:
    """A trade a second."""
    return (Trade("BTC-USD", first_id + n, at(start + n), str(price)) for n, price in enumerate(prices))


def test_an_episode_is_appended_at_once_and_its_news_wait_together(silver: Silver, table: Table) -> None:
    step = AlertStep(table, silver, [ONE], silver.products)
    silver.add(ticks(100, 100))
    step.advance()
    silver.add(ticks(98, start=2, first_id=3))
    opened = step.advance()
    assert opened is not None
    assert (table.commits, opened.rows["trigger_trade_id"].to_pylist()) == (["append"], [3])
    for n in range(4, 9):
        silver.add(ticks(98 - n / 10, start=n, first_id=n))
        waiting = step.advance()
        assert waiting is not None
        assert (waiting.rows.num_rows, waiting.consumed) == (0, 0)
    assert table.commits == ["append"]
    step.max_delay_s = 0
    step.advance()
    assert table.commits == ["append", "replace"]
    assert table.rows["end_trade_id"].to_pylist() == [8]


def test_another_episode_does_not_wait_for_the_news_of_the_first(silver: Silver, table: Table) -> None:
    step = AlertStep(table, silver, [AlertRule()], silver.products)
    silver.add(ticks(100, 98))
    step.advance()
    silver.add(ticks(97, 99, start=2, first_id=3))  # deeper, and then a surge from there
    step.advance()
    assert table.rows["alert_type"].to_pylist() == ["FLASH_CRASH", "PRICE_SURGE"]
    assert table.rows["end_trade_id"].to_pylist() == [3, 4]


def test_what_waits_is_judged_by_the_next_process(silver: Silver, table: Table) -> None:
    step = AlertStep(table, silver, [ONE], silver.products)
    silver.add(ticks(100, 98))
    step.advance()
    silver.add(ticks(97, start=2, first_id=3))
    step.advance()
    after = table.reopened()
    step = AlertStep(after, silver, [ONE], silver.products)
    step.max_delay_s = 0
    step.advance()
    assert after.rows["end_trade_id"].to_pylist() == [3]


def test_an_episode_closes_when_another_product_trades_after_its_cool_down(silver: Silver, table: Table) -> None:
    step = AlertStep(table, silver, [ONE], silver.products)
    silver.add(ticks(100, 98))
    step.advance()
    for seconds, state in ((121, "OPEN"), (121.000001, "CLOSED")):
        silver.add([Trade("ETH-USD", round(seconds * 1e6), at(seconds), "5")])
        step.advance()
        assert table.rows["state"].to_pylist() == [state]


def test_while_nothing_happens_no_trade_is_fetched_and_nothing_is_written(silver: Silver, table: Table) -> None:
    step = AlertStep(table, silver, [AlertRule(), AlertRule(name="long", lookback_s=3600)], silver.products)
    silver.add(ticks(*[100 + n % 7 / 10 for n in range(300)]))
    step.advance()
    fetched = silver.fetched
    for n in range(300, 320):
        silver.add(ticks(100, start=n, first_id=n + 1))
        commit = step.advance()
        assert commit is not None
        assert (commit.rows.num_rows, commit.consumed) == (0, 1)
    assert silver.fetched == fetched
    assert table.commits == []
    assert step.advance() is None


def test_a_position_that_moved_half_a_minute_is_written_without_rows(
    silver: Silver, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "_MARKER_US", 3)  # commits: their positions here
    step = AlertStep(table, silver, [ONE], silver.products)
    for n in range(10):
        silver.add(ticks(100, start=n, first_id=n + 1))
        step.advance()
    assert table.commits == ["append", "append"]
    assert table.rows.num_rows == 0
    assert table.recorded("silver") == 7


def test_trades_later_than_the_episodes_in_memory_join_those_in_the_table(silver: Silver, table: Table) -> None:
    step = AlertStep(table, silver, [ONE], silver.products)
    step.max_delay_s = 0
    silver.add(ticks(100, 98))
    step.advance()
    silver.add([Trade("BTC-USD", 9, at(400_000), "98")])
    step.advance()
    silver.add([Trade("BTC-USD", 10, at(600_000), "98"), Trade("BTC-USD", 11, at(600_001), "97")])
    step.advance()
    assert step.episodes["trigger_trade_id"].to_pylist() == [11]
    silver.add([Trade("BTC-USD", 3, at(2), "97")])
    step.advance()
    assert sorted(table.rows["trigger_trade_id"].to_pylist()) == [2, 11]
    assert sorted(table.rows["end_trade_id"].to_pylist()) == [3, 11]


def test_a_trade_far_in_the_future_blinds_nobody(silver: Silver, table: Table) -> None:
    market = [*ticks(100, 99.9), Trade("BTC-USD", 3, at(2_000_000_000), "100"), *ticks(98.9, 98, start=3, first_id=4)]
    step = AlertStep(table, silver, [ONE], silver.products)
    step.max_delay_s = 0
    for trade in market:
        silver.add([trade])
        silver.watermark_us = micros(at(10))  # as one that knows what time it is
        step.advance()
    (found,), (wanted,) = table.found(), expected(market, [ONE])
    assert found == wanted | {"state": "OPEN"}


def test_the_longest_look_back_is_what_must_stay_in_memory() -> None:
    assert reach_max_s(RULES) == 60
    assert reach_max_s([]) == 0


def test_an_episode_whose_first_trades_are_gone_stays_as_it_was(silver: Silver, table: Table) -> None:
    rule = AlertRule(name="v", types=["VOLATILITY"], threshold_pct=Decimal(1), lookback_s=60, cool_down_s=60)
    step = AlertStep(table, silver, [rule], silver.products)
    step.max_delay_s = 0
    for second in (0, 50, 100, 150):
        silver.add(ticks(100, 102, start=second, first_id=second + 1))
        step.advance()
    before = table.found()
    assert [(row["trigger_trade_id"], row["last_trigger_trade_id"]) for row in before] == [(2, 152)]
    silver.kept_from_us = micros(at(60))
    is_kept = pc.greater_equal(pc.cast(silver.rows["event_time"], pa.int64()), silver.kept_from_us)
    silver.rows = silver.rows.filter(is_kept)
    silver.add([Trade("BTC-USD", 140, at(140), "90")])  # late: its look-back is kept, the episode's beginning is not
    step.advance()
    assert table.found() == before


def test_of_trades_whose_look_backs_are_partly_gone_the_others_are_judged(silver: Silver, table: Table) -> None:
    silver.kept_from_us = micros(at(60))
    step = AlertStep(table, silver, [ONE], silver.products)
    silver.add([*ticks(100, start=170), *ticks(100, 98, start=181, first_id=2)])
    step.advance()
    assert table.rows["trigger_trade_id"].to_pylist() == [3]


def test_silence_is_found_while_it_lasts_and_withdrawn_when_the_trade_was_late(silver: Silver, table: Table) -> None:
    rule = AlertRule(name="quiet", types=["SILENCE"], threshold_pct=Decimal(300), lookback_s=10, baseline_windows=3)
    step = AlertStep(table, silver, [rule], silver.products)
    step.max_delay_s = 0
    steady = [Trade("BTC-USD", n, at(2 * n), "100") for n in range(60)]
    silver.add(steady)
    step.advance()
    assert table.found() == []
    for seconds in (127, 128):  # the last trade came at 118 s
        silver.add([Trade("ETH-USD", seconds, at(seconds), "1")])
        step.advance()
    (row,) = table.found()
    assert (row["trigger_trade_id"], row["opened_at"], row["price_change_pct"]) == (59, at(128), 500)
    silver.add([Trade("BTC-USD", 60, at(120), "100")])
    step.advance()
    assert table.found() == []


def test_a_venue_that_leaves_the_others_is_found_within_two_seconds(silver: Silver, table: Table) -> None:
    """What compares venues is judged together with what came since, as it reads the trades of all of them."""
    rule = AlertRule(name="apart", types=["DISLOCATION"], lookback_s=5)
    step = AlertStep(table, silver, [rule], silver.products)
    names = ("BTC-USD", "BTC/USD@kraken", "BTCUSDT@binance")
    for second in range(20):
        own = "100" if second < 8 else "100.9" if second < 10 else "101"
        prices = dict.fromkeys(names, "100") | {names[2]: own}
        silver.add(Trade(name, second, at(second), price) for name, price in prices.items())
        step.advance()
    assert table.found() == []
    step.max_delay_s = 0
    step.advance()
    (row,) = table.found()
    assert (row["symbol"], row["trigger_trade_id"]) == (names[2], 16)
    assert (row["start_price"], row["end_price"], row["price_change_pct"]) == (100, 101, 1.0)


def test_a_trade_of_a_wrong_clock_hides_no_silence(silver: Silver, table: Table) -> None:
    rule = AlertRule(name="quiet", types=["SILENCE"], threshold_pct=Decimal(300), lookback_s=10, baseline_windows=3)
    step = AlertStep(table, silver, [rule], silver.products)
    step.max_delay_s = 0
    steady = [Trade("BTC-USD", n, at(2 * n), "100") for n in range(60)]
    for seconds, trades in (
        (118, [*steady, Trade("BTC-USD", 999, at(10**8), "100")]),
        (120, [Trade("BTC-USD", 1000, at(120), "100")]),
        (140, [Trade("ETH-USD", 1, at(140), "1")]),
    ):
        silver.add(trades)
        silver.watermark_us = micros(at(seconds))  # as a table's tail, which leaves out the future
        step.advance()
    assert [row["trigger_trade_id"] for row in table.found()] == [1000]


def test_a_venue_that_joins_while_others_wait_to_be_judged_counts(silver: Silver, table: Table) -> None:
    rule = AlertRule(name="apart", types=["DISLOCATION"], lookback_s=5)
    step = AlertStep(table, silver, [rule], silver.products)
    for names in ((("BTC-USD", "100"), ("BTCUSDT@binance", "101.5")), (("BTC/USD@kraken", "100"),)):
        silver.add(Trade(name, n, at(n), price) for name, price in names for n in range(12))
        step.advance()
    step.max_delay_s = 0
    step.advance()
    assert [row["symbol"] for row in table.found()] == ["BTCUSDT@binance"]
