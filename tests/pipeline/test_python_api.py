"""`cryptopulse.open`: the rows that are meant, in order, exact, and no file opened that can't hold them."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import cryptopulse
from cryptopulse.errors import ConfigurationError, LakeDamaged, LakeUnreachable, QueryStopped, RowsGone
from cryptopulse.lake import dataset, table_rows
from cryptopulse.lake.dialect import delta_time
from cryptopulse.lake.result import Rows
from cryptopulse.lake.tables import ALERTS, BARS, BRONZE, SILVER, TABLES
from support import Lake, Trade, at, micros, model_bars

SYMBOLS = ("BTC-USD", "ETH-USD", "SOL-USD")
Reader = dataset.Lake


def market(seed: int, trades: int = 900, hours: float = 30) -> list[Trade]:
    """Trades of three products over `hours`, in order, some ids missing, several at one moment."""
    chance = random.Random(seed)
    found, ids = [], dict.fromkeys(SYMBOLS, 1000)
    times = sorted(round(chance.random() * hours * 3600, 3) for _ in range(trades))
    for number, seconds in enumerate(times):
        symbol = chance.choice(SYMBOLS)
        ids[symbol] += 1 if chance.random() > 0.03 else 2
        found.append(
            Trade(
                symbol,
                ids[symbol],
                at(times[number - 1] if number and chance.random() < 0.3 else seconds),
                price=f"{chance.randint(9_000, 11_000) / 100}",
                size=f"{Decimal(chance.randint(1, 10**9)).scaleb(-9):f}",
                side=chance.choice(("BUY", "SELL")),
            )
        )
    # Times follow ids within a product.
    last: dict[str, datetime] = {}
    ordered = []
    for trade in found:
        last[trade.symbol] = max(trade.time, last.get(trade.symbol, trade.time))
        ordered.append(Trade(trade.symbol, trade.trade_id, last[trade.symbol], trade.price, trade.size, trade.side))
    return ordered


TRADES = market(7)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """A lake with TRADES in several commits, and two bad messages."""
    lake = Lake(tmp_path_factory.mktemp("api") / "my lake")
    for place in range(0, len(TRADES), 150):
        lake.take_in([trade.match() for trade in TRADES[place : place + 150]])
    lake.take_in([TRADES[0].match(price=bad) for bad in ("cheap", "dear")])
    yield lake
    lake.close()


@pytest.fixture
def reader(filled: Lake) -> Iterator[Reader]:
    with cryptopulse.open(filled.path) as lake:
        yield lake


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tens of slices where there would be one."""
    monkeypatch.setattr(table_rows, "_SLICE_ROWS_MAX", 50)
    monkeypatch.setattr(table_rows, "_SLICE_ROWS_MIN", 10)


def plain(trades: list[Trade]) -> list[tuple[str, int]]:
    """Trades in the order in which they are read."""
    return [(t.symbol, t.trade_id) for t in sorted(trades, key=lambda t: (t.time, t.symbol, t.trade_id))]


def read(rows: Rows) -> list[tuple[str, int]]:
    table = rows.arrow()
    return list(zip(table["symbol"].to_pylist(), table["trade_id"].to_pylist(), strict=True))


# Which rows


def test_trades_come_by_time_product_and_id(reader: Reader) -> None:
    assert read(reader.trades()) == plain(TRADES)
    assert read(reader.trades().reversed()) == plain(TRADES)[::-1]


def test_products_are_one_several_or_all(reader: Reader) -> None:
    assert read(reader.trades("ETH-USD")) == plain([t for t in TRADES if t.symbol == "ETH-USD"])
    assert read(reader.trades(["SOL-USD", "BTC-USD"])) == plain([t for t in TRADES if t.symbol != "ETH-USD"])
    assert reader.trades("DOGE-USD").arrow().num_rows == 0


@pytest.mark.parametrize(
    "start",
    [
        at(3600),
        at(3600).replace(tzinfo=None),
        at(3600).astimezone(timezone(timedelta(hours=-5))),
        "2026-07-07T13:00",
        "2026-07-07T13:00:00Z",
        "2026-07-07T15:00+02:00",
        pd.Timestamp("2026-07-07T13:00", tz="UTC"),
        pd.Timestamp("2026-07-07T13:00").to_datetime64(),
    ],
    ids=repr,
)
def test_a_time_is_utc_however_it_is_written(reader: Reader, start: Any) -> None:
    assert read(reader.trades(start=start)) == plain([t for t in TRADES if t.time >= at(3600)])


def test_a_date_is_its_first_moment(reader: Reader) -> None:
    day = datetime(2026, 7, 8, tzinfo=UTC)
    assert read(reader.trades(end=date(2026, 7, 8))) == plain([t for t in TRADES if t.time < day])


def test_a_range_holds_its_start_and_not_its_end(reader: Reader) -> None:
    first, last = TRADES[100].time, TRADES[300].time
    assert read(reader.trades(start=first, end=last)) == plain([t for t in TRADES if first <= t.time < last])
    assert reader.trades(start=first, end=first).count() == 0


def test_trades_are_found_by_id(reader: Reader) -> None:
    wanted = [t for t in TRADES if t.symbol == "BTC-USD" and 1050 <= t.trade_id <= 1060]
    assert read(reader.trades("BTC-USD", first_id=1050, last_id=1060)) == plain(wanted)


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_pages_in_either_direction_hold_every_row_once(reader: Reader, filled: Lake, table: Any) -> None:
    for rows in (reader.table(table.qualified), reader.table(table.qualified).reversed()):
        found, key = [], None
        while page := list((rows if key is None else rows.after(*key)).limit(37)):
            found += page
            key = [page[-1][name] for name in rows.order]
        keys = [tuple(row[name] for name in rows.order) for row in found]
        assert keys == sorted(keys, reverse=rows.selection.is_reversed)
        assert sorted(map(str, found)) == sorted(map(str, filled.arrow(table).to_pylist()))


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("grain", ["1s", "1m", "15m", "1d"])
def test_pages_of_bars_hold_every_bar_once(reader: Reader, grain: str) -> None:
    bars, found, key = reader.bars(grain=grain), [], None
    while page := list((bars if key is None else bars.after(*key)).limit(20)):
        found += page
        key = page[-1]["window_start"], page[-1]["symbol"]
    assert found == list(bars)
    assert found[::-1] == list(bars.reversed())


def test_limits_and_counts_agree_with_what_is_read(reader: Reader) -> None:
    for rows in (
        reader.trades(),
        reader.trades("BTC-USD", start=at(7200)),
        reader.trades().after(TRADES[400].time, "ETH-USD", 0),
        reader.trades().limit(7).limit(100),
        reader.trades(columns=["price"]).limit(5),
        reader.bars(grain="1h"),
        reader.bars(grain="5s").limit(3),
        reader.coverage(),
        reader.sql("SELECT * FROM gold.dm_trade_bars").limit(4),
    ):
        assert len(rows) == rows.arrow().num_rows > 0
        assert rows


def test_alerts_are_chosen_by_their_columns(filled: Lake, reader: Reader) -> None:
    stored = filled.arrow(ALERTS).to_pylist()
    assert len(stored) > 3
    for name, value in (("severity", "HIGH"), ("alert_type", "FLASH_CRASH"), ("state", "CLOSED")):
        wanted = {row["alert_id"] for row in stored if row[name] == value}
        assert wanted
        assert {row["alert_id"] for row in reader.alerts(**{name: value})} == wanted  # type: ignore[arg-type]
    assert reader.alerts(severity=["WARNING", "HIGH", "CRITICAL"]).count() == len(stored)
    assert reader.alerts(rule="it's").count() == 0


def test_products_tell_what_is_held(reader: Reader) -> None:
    ids = [t.trade_id for t in TRADES if t.symbol == "BTC-USD"]
    row = next(row for row in reader.products() if row["symbol"] == "BTC-USD")
    assert (row["first_trade_id"], row["last_trade_id"], row["trades"]) == (min(ids), max(ids), len(ids))
    assert row["ids_not_held"] == max(ids) - min(ids) + 1 - len(ids) > 0


# Bars


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("grain", ["1s", "7200ms", "90s", "1m", "5m", "1h", "4h", "1d"])
def test_bars_of_any_grain_are_those_of_a_plain_model(reader: Reader, grain: str) -> None:
    seconds = {"1s": 1, "7200ms": 7200, "90s": 90, "1m": 60, "5m": 300, "1h": 3600, "4h": 14_400, "1d": 86_400}[grain]
    rows = list(reader.bars(grain=timedelta(seconds=7200) if grain == "7200ms" else grain))
    wanted = sorted(model_bars(TRADES, seconds), key=lambda bar: (bar["window_start"], bar["symbol"]))
    for row, bar in zip(rows, wanted, strict=True):
        assert row.pop("vwap") == pytest.approx(float(bar["notional"] / bar["volume"]), rel=1e-12)
        assert row == bar
    assert any(bar["is_complete"] for bar in wanted) or seconds > 14_000
    assert not all(bar["is_complete"] for bar in wanted)


def test_a_bar_starts_in_the_range_and_holds_all_its_trades(reader: Reader) -> None:
    wanted = [b for b in model_bars(TRADES, 3600) if at(1800) <= b["window_start"] < at(9000)]
    found = list(reader.bars(start=at(1800), end=at(9000), grain="1h", columns=["window_start", "trade_count"]))
    assert {b["window_start"] for b in wanted} == {at(3600), at(7200)} == {row["window_start"] for row in found}
    assert sum(b["trade_count"] for b in wanted) == sum(row["trade_count"] for row in found)


def test_a_bar_in_progress_is_not_complete_though_its_minutes_are(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    trades = [Trade("BTC-USD", 100 + number, at(number * 30)) for number in range(8)]  # minutes 0, 1, 2, 3
    lake.take_in([trade.match() for trade in trades])
    with cryptopulse.open(lake.path) as reader:
        stored = list(reader.bars(columns=["is_complete"]))
        coarse = list(reader.bars(grain="5m", columns=["is_complete"]))
        # The bars of a lake in which the third minute's trades are not in gold yet.
        torn = lake.delta(BARS)
        torn.delete(f"window_start >= {delta_time(micros(at(120)))}")
        behind = list(reader.bars(grain="5m", columns=["is_complete", "trade_count"]))
    assert [row["is_complete"] for row in stored] == [False, True, True, False]
    assert not coarse[0]["is_complete"]
    assert behind == [{"is_complete": False, "trade_count": 4}]
    lake.close()


@pytest.mark.parametrize("grain", ["", "7m", "0s", "1w", "2d", "m", -60, 0, 1.5, timedelta(milliseconds=500)])
def test_a_grain_that_does_not_divide_a_day_is_refused(reader: Reader, grain: Any) -> None:
    with pytest.raises(ConfigurationError, match="divides a day"):
        reader.bars(grain=grain)


# In which form


def test_arrow_has_the_types_of_the_tables(reader: Reader) -> None:
    for table in TABLES:
        assert reader.table(table.qualified).arrow().schema == table.arrow_schema
        assert reader.table(table.qualified).schema == table.arrow_schema
    for grain in ("1s", "1m", "1h"):
        assert reader.bars(grain=grain).arrow().schema == reader.bars().schema


def test_decimals_are_exact_in_arrow_and_polars_and_as_one_likes_in_pandas(reader: Reader) -> None:
    wanted = [Decimal(t.size) for t in sorted(TRADES, key=lambda t: (t.time, t.symbol, t.trade_id))]
    rows = reader.trades(columns=["trade_size", "event_time"])
    assert rows.arrow()["trade_size"].to_pylist() == wanted
    assert rows.polars()["trade_size"].to_list() == wanted
    exact, quick = rows.pandas(decimals="exact"), rows.pandas()
    assert list(exact["trade_size"]) == wanted
    assert quick["trade_size"].dtype == "float64"
    assert list(quick["trade_size"]) == [float(size) for size in wanted]
    assert str(quick["event_time"].dtype) == "datetime64[us, UTC]"


def test_a_lazy_frame_reads_what_its_query_needs(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    stream = type(reader.trades()).stream

    def watched(self: Any, columns: Any, rows_max: int) -> Iterator[pa.RecordBatch]:
        asked.append((columns, self.selection.rows_max))
        return stream(self, columns, rows_max)

    monkeypatch.setattr(type(reader.trades()), "stream", watched)
    lazy = reader.trades().polars(lazy=True)
    assert not asked
    frame = lazy.filter(pl.col("side") == "BUY").select(pl.col("price").sum()).collect()
    assert frame.item() == sum(Decimal(t.price) for t in TRADES if t.side == "BUY")
    assert set(asked[0][0]) == {"side", "price"}
    assert lazy.head(5).collect().equals(reader.trades().polars().head(5))
    assert asked[1] == (None, 5)
    assert lazy.select(pl.len()).collect().item() == len(TRADES)
    assert lazy.select("trade_id", "symbol").collect().columns == ["trade_id", "symbol"]


def test_batches_are_no_larger_than_asked_and_other_libraries_read_them(reader: Reader) -> None:
    batches = list(reader.trades().batches(rows_max=100))
    assert max(batch.num_rows for batch in batches) <= 100
    assert pa.Table.from_batches(batches).equals(reader.trades().arrow())
    assert pl.DataFrame(reader.trades()).equals(reader.trades().polars())


def test_a_stream_does_not_hold_what_it_gives() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _STREAMING], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    rows, grown_mb = map(int, done.stdout.split())
    assert rows == 20_000_000
    assert grown_mb < 200  # all of them are 480 MB


_STREAMING = """
import resource, sys, tempfile
sys.path.insert(0, ".")
import cryptopulse
from support import Lake, Trade
lake = Lake(tempfile.mkdtemp() + "/lake")
lake.take_in([Trade("BTC-USD", 1).match()])
reader = cryptopulse.open(lake.path)
text = "SELECT t.price, range FROM silver.fact_crypto_trades AS t, range($rows)"
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
reader.sql(text, {"rows": 10}).arrow()
before = used()
print(sum(batch.num_rows for batch in reader.sql(text, {"rows": 20_000_000}).batches()), used() - before)
"""


# Which version, and which files


@pytest.fixture(scope="module")
def two_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with trades of two days in some commits. To be copied, not changed."""
    lake = Lake(tmp_path_factory.mktemp("days") / "lake")
    for symbol, seconds in (("BTC-USD", 0), ("ETH-USD", 10), ("BTC-USD", 86_400), ("ETH-USD", 86_410)):
        lake.take_in([Trade(symbol, 1 + seconds + number, at(seconds + number)).match() for number in range(5)])
    lake.close()
    return lake.path


@pytest.fixture
def own(two_days: Path, tmp_path: Path) -> Iterator[Lake]:
    """A copy of `two_days` of the test's own."""
    lake = Lake(shutil.copytree(two_days, tmp_path / "lake"))
    yield lake
    lake.close()


def test_a_call_sees_the_newest_version_and_its_rows_stay_as_they_were(own: Lake) -> None:
    with cryptopulse.open(own.path) as reader:
        before, asked, moment = reader.trades(), reader.sql("SELECT * FROM gold.dm_trade_bars"), reader.snapshot()
        bars = asked.count()
        own.take_in([Trade("SOL-USD", 1, at(9)).match()])
        assert reader.trades().count() == len(reader.trades().arrow()) == 21
        assert reader.sql("SELECT * FROM gold.dm_trade_bars").count() == bars + 1
        assert len(before.arrow()) == before.count() == moment.trades().count() == 20
        assert asked.count() == bars == moment.bars().count()


def test_a_table_that_is_made_anew_is_noticed(own: Lake) -> None:
    with cryptopulse.open(own.path) as reader:
        assert reader.trades().count() == 20
        for table in TABLES:
            if table is not BRONZE:
                shutil.rmtree(own.folder(table))
        with pytest.raises(LakeUnreachable, match="is gone"):
            reader.trades().count()
        own.rebuild()
        assert reader.trades().count() == 20
        assert len(reader.trades().arrow()) == 20


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize(
    ("ask", "of"),
    [
        (lambda lake: lake.trades(start=at(80_000)), "event_date=2026-07-08/"),
        (lambda lake: lake.trades(end="2026-07-08"), "event_date=2026-07-07/"),
        (lambda lake: lake.trades().reversed().limit(3), "event_date=2026-07-08/"),
        (lambda lake: lake.trades().after(at(50_000), "X-USD", 0).limit(3), "event_date=2026-07-08/"),
        (lambda lake: lake.trades().reversed().after(at(50_000), "X-USD", 0), "event_date=2026-07-07/"),
        (lambda lake: lake.trades("BTC-USD"), "BTC-USD"),
        (lambda lake: lake.trades(first_id=80_000), "event_date=2026-07-08/"),
        (lambda lake: lake.bars("ETH-USD", grain="10s"), "ETH-USD"),
        (lambda lake: lake.sql("SELECT * FROM silver.fact_crypto_trades WHERE event_date = '2026-07-08'"), "-08/"),
    ],
)
def test_no_file_is_opened_that_cannot_hold_a_row(own: Lake, ask: Callable[[Reader], Rows], of: str) -> None:
    with cryptopulse.open(own.path) as reader:
        wanted = ask(reader).arrow()
        assert wanted.num_rows
    actions = pa.table(own.delta(SILVER).get_add_actions(flatten=True)).to_pylist()
    others = [a for a in actions if of not in a["path"] and of != a["min.symbol"]]
    assert others
    for action in others:
        (own.folder(SILVER) / action["path"]).write_bytes(b"not to be read")
    with cryptopulse.open(own.path) as reader:
        assert ask(reader).arrow().equals(wanted)
        with pytest.raises(LakeDamaged, match="can't be read"):
            reader.trades().arrow()


def test_rows_whose_files_were_cleaned_up_say_so_and_asking_again_helps(own: Lake) -> None:
    with cryptopulse.open(own.path) as reader:
        held, asked = reader.trades(), reader.sql("SELECT symbol, price FROM silver.fact_crypto_trades")
        delta = own.delta(SILVER)
        delta.optimize.compact()
        delta.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
        for rows in (held, asked):
            with pytest.raises(RowsGone, match="Ask again") as told:
                rows.arrow()
            assert "\n" not in str(told.value)
        assert len(reader.trades().arrow()) == 20


def test_several_threads_read_one_lake_while_it_grows(own: Lake) -> None:
    failures: list[BaseException] = []
    counts: list[list[int]] = []
    is_over = threading.Event()

    def work() -> None:
        seen: list[int] = []
        counts.append(seen)
        try:
            while not is_over.is_set():
                seen.append(shared.trades().arrow().num_rows)
                assert shared.bars(grain="1h").arrow()["trade_count"].to_pylist()
                total = shared.sql("SELECT count(*) AS n FROM silver.fact_crypto_trades").arrow()["n"][0].as_py()
                assert total >= seen[-1]
                is_over.wait(0.05)  # the pipeline shares the interpreter with them
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    with cryptopulse.open(own.path) as shared:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for number in range(2):
            own.take_in([Trade("SOL-USD", 1 + number, at(100_000 + number)).match()])
        is_over.set()
        for thread in threads:
            thread.join(60)
        assert not failures
        assert all(seen and seen == sorted(seen) for seen in counts)
        assert shared.trades().count() == 22


@pytest.mark.usefixtures("small_slices")
def test_activity_bars_of_any_range_are_the_same_bars(reader: Reader) -> None:
    whole = list(reader.activity_bars(by="volume", size="2.5"))
    assert sum(bar["trade_count"] for bar in whole) == len(TRADES)
    assert [(bar["window_start"], bar["symbol"]) for bar in whole] == sorted(
        (bar["window_start"], bar["symbol"]) for bar in whole
    )
    assert all(bar["volume"] >= Decimal("2.5") for bar in whole if bar["is_closed"])
    assert {bar["is_closed"] for bar in whole} == {bar["is_complete"] for bar in whole} == {True, False}
    for first, end in ((0, 3 * 3600), (3 * 3600, 11.9 * 3600), (11.9 * 3600, 40 * 3600)):
        some = reader.activity_bars("ETH-USD", at(first), at(end), by="volume", size=2.5)
        expected = [bar for bar in whole if bar["symbol"] == "ETH-USD" and at(first) <= bar["window_start"] < at(end)]
        assert list(some) == expected
        assert some.count() == len(some.reversed().arrow()) == len(expected)
        assert list(some.reversed().limit(2)) == expected[::-1][:2]
    key = [whole[5][name] for name in ("window_start", "symbol", "first_trade_id")]
    assert list(reader.activity_bars(by="volume", size="2.5").after(*key).limit(3)) == whole[6:9]


# What is refused


def test_no_lake_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no lake at"):
        cryptopulse.open(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda lake: lake.trades("btcusd"), "Invalid product id 'btcusd'"),
        (lambda lake: lake.trades(["BTC-USD", "x' OR 'a"]), "Invalid product id"),
        (lambda lake: lake.trades([]), "leave it out"),
        (lambda lake: lake.trades(start="yesterday"), "start: 'yesterday' is no time"),
        (lambda lake: lake.trades(end=5), "end: '5' is no time"),
        (lambda lake: lake.trades(start=at(10), end=at(5)), "lies before start"),
        (lambda lake: lake.trades(first_id="x"), "no whole number"),
        (lambda lake: lake.trades(columns=["prize"]), "no column 'prize'; there are trade_id"),
        (lambda lake: lake.trades(columns=[]), "leave it out"),
        (lambda lake: lake.trades().after(at(5)), "event_time, symbol, trade_id"),
        (lambda lake: lake.trades().after("x", "BTC-USD", 1), "is no time"),
        (lambda lake: lake.trades().limit(0), "above 0"),
        (lambda lake: lake.trades().batches(0), "above 0"),
        (lambda lake: lake.trades().pandas(decimals="no"), "'float' or 'exact'"),
        (lambda lake: lake.table("gold.bars"), "There is no table"),
        (lambda lake: lake.table("silver.trade_id_coverage", start="2026-07-07"), "not by time"),
        (lambda lake: lake.table("bronze.coinbase_raw_trades", "BTC-USD"), "not by product"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_write(reader: Reader, ask: Callable[[Reader], Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as told:
        ask(reader)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SELEC 1",
        "SELECT 1; SELECT 2",
        "SELECT * FROM gold.nothing",
        "SELECT $x",
        "COPY (SELECT 1) TO 'out.csv'",
        "CREATE TABLE t AS SELECT 1",
        "SET memory_limit = '1TB'",
        "ATTACH 'x.db'",
        "INSTALL httpfs",
        "PRAGMA database_list",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_csv('{lake}/_cryptopulse/processing.json')",
        "SELECT * FROM read_text('{lake}/silver/fact_crypto_trades/_delta_log/00000000000000000000.json')",
        "SELECT * FROM reader",
        "SELECT * FROM query('COPY (SELECT 1) TO ''out.csv''')",
    ],
)
def test_sql_reads_the_tables_and_nothing_else(
    reader: Reader, filled: Lake, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"^SQL: ") as told:
        reader.sql(text.format(lake=filled.path)).arrow()
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_sql_takes_values_by_name_or_in_order(reader: Reader) -> None:
    by_name = reader.sql("SELECT count(*) AS n FROM silver.fact_crypto_trades WHERE symbol = $one", {"one": "BTC-USD"})
    in_order = reader.sql("SELECT count(*) AS n FROM silver.fact_crypto_trades WHERE symbol = ?", ["BTC-USD"])
    assert list(by_name) == list(in_order) == [{"n": sum(t.symbol == "BTC-USD" for t in TRADES)}]


def test_sql_finds_a_table_whose_name_is_made_up(reader: Reader) -> None:
    rows = reader.sql("SELECT count(*) AS n FROM query_table('gold.dm_trade' || '_bars')")
    assert list(rows) == [{"n": reader.bars().count()}]
    assert len(reader.sql("SHOW ALL TABLES")) == len(TABLES)


@pytest.mark.parametrize("way", [lambda rows: rows.arrow(), lambda rows: rows.count(), list])
def test_a_query_is_stopped_when_its_time_is_over(reader: Reader, way: Callable[[Rows], Any]) -> None:
    rows = reader.sql("SELECT a.range FROM range(1000000) AS a, range(1000000) AS b WHERE a.range * b.range = -1")
    with pytest.raises(QueryStopped, match=r"stopped after 0\.3 s"):  # by itself it would take hours
        way(rows.within(0.3))
    assert reader.trades().within(60).count() == len(TRADES)


def test_the_time_of_the_reader_between_batches_does_not_count(reader: Reader) -> None:
    found = 0
    for batch in reader.sql("SELECT range FROM range(400000)").within(3.0).batches(100_000):
        time.sleep(1)
        found += batch.num_rows
    assert found == 400_000


def test_too_much_memory_is_one_line(filled: Lake) -> None:
    with cryptopulse.open(filled.path, memory_max_mb=50) as reader:
        rows = reader.sql("SELECT length(list(repeat('x', 1000) || range)::VARCHAR) FROM range(1000000)")
        with pytest.raises(ConfigurationError, match="more than 50 MB of memory") as told:
            rows.arrow()
    assert "\n" not in str(told.value)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, cryptopulse; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cryptopulse" in done.stdout.split()
    assert not {"duckdb", "pyarrow", "deltalake", "polars", "pydantic"} & set(done.stdout.split())


def test_what_is_asked_can_be_seen_without_reading_it(reader: Reader) -> None:
    assert repr(reader.trades("BTC-USD")).startswith("<Rows of silver.fact_crypto_trades, BTC-USD, version ")
    assert "1 s" in repr(reader.bars(grain="1s"))
    assert repr(reader.sql("SELECT\n  1")) == "<Rows of SQL 'SELECT 1', not read yet>"
    assert "my lake" in repr(reader)
