"""What backtests are given: each trade once, exactly, in the order in which a client received it.

Read here by the rules of the formats alone; tests/cluster/test_backtest_libraries.py has the libraries themselves.
"""

from __future__ import annotations

import tempfile
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.dataset import open_lake
from cryptopulse.lake.export import write_batches
from support import Lake, Trade, at, micros
from support_backtests import Row, row, silver, with_local_times

BUY, SELL, LOCAL, EXCHANGE = 1 << 29, 1 << 28, 1 << 30, 1 << 31


def export(rows: list[Row], target: Path, form: str, cuts: list[int] | None = None, **options: Any) -> Path:
    assert write_batches(silver(rows, cuts or ()), target, form, **options) == len(rows)
    return target


def number(raw: bytes) -> Decimal:
    """A fixed-point number of NautilusTrader, 128 bits."""
    return Decimal(int.from_bytes(raw, "little", signed=True)).scaleb(-16)


def ticks(catalog: Path) -> dict[str, list[tuple[Any, ...]]]:
    """By instrument what its file holds, in order; its name is checked."""
    found = {}
    for file in (catalog / "data" / "trade_tick").glob("*/*"):
        table = pq.read_table(file, partitioning=None)
        rows = table.to_pylist()
        assert file.name == f"{file_time(rows[0]['ts_init'])}_{file_time(rows[-1]['ts_init'])}.parquet"
        instrument = table.schema.metadata[b"instrument_id"].decode()
        assert file.parent.name == instrument
        found[instrument] = [
            (
                one["trade_id"],
                number(one["price"]),
                number(one["size"]),
                one["aggressor_side"],
                one["ts_event"],
                one["ts_init"],
            )
            for one in rows
        ]
    return found


def file_time(ns: int) -> str:
    text = str(np.datetime64(ns, "ns"))
    return text.replace(":", "-").replace(".", "-") + "Z"


def expected_ticks(rows: list[Row]) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = {}
    for local, one in with_local_times(rows):
        price, size = Decimal(one["price"]), Decimal(one["trade_size"])
        side = {"BUY": 1, "SELL": 2}[one["side"]]
        event = micros(one["event_time"]) * 1000
        found.setdefault(f"{one['symbol']}.COINBASE", []).append(
            (str(one["trade_id"]), price, size, side, event, local)
        )
    return found


def events(file: Path) -> np.ndarray:
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ["data.npy"]
    return np.load(file)["data"]


def check_events(file: Path, rows: list[Row]) -> int:
    """Both sides see each trade once, in their own order; returns how many events there are."""
    found = events(file)
    local = [(at, one) for at, one in with_local_times(rows)]
    by_id = {one["trade_id"]: at for at, one in local}
    seen = [(one["exch_ts"], one["local_ts"], one["px"], one["qty"]) for one in found[found["ev"] & LOCAL != 0]]
    assert seen == [
        (micros(one["event_time"]) * 1000, at, float(one["price"]), float(one["trade_size"])) for at, one in local
    ]
    matched = [(one["exch_ts"], one["local_ts"], one["px"]) for one in found[found["ev"] & EXCHANGE != 0]]
    assert matched == [(micros(one["event_time"]) * 1000, by_id[one["trade_id"]], float(one["price"])) for one in rows]
    sides = found["ev"][found["ev"] & EXCHANGE != 0]
    assert [bool(side & BUY) for side in sides] == [one["side"] == "BUY" for one in rows]
    assert ((found["ev"] & BUY != 0) != (found["ev"] & SELL != 0)).all()
    assert (found["ev"] & 0xFF == 2).all()
    return len(found)


DELAYS = st.integers(-2, 6)


@st.composite
def histories(draw: st.DrawFn, symbols: tuple[str, ...]) -> list[Row]:
    """Trades in the order of the exchange: received soon, late, too early, or fetched or imported days later."""
    rows, event = [], 0
    for place in range(draw(st.integers(1, 14))):
        event += draw(st.integers(0, 2))
        source = draw(st.sampled_from(["websocket", "rest", "import"]))
        received = event + (draw(DELAYS) if source == "websocket" else 86_400)
        symbol, price = draw(st.sampled_from(symbols)), f"{place + 1}.{place:02}"
        rows.append(row(place, event, received, symbol, source, price=price))
    return rows


@settings(max_examples=40)
@given(rows=histories(("BTC-USD", "ETH-USD", "PEPE-EUR")), cuts=st.lists(st.integers(0, 14)))
def test_a_catalog_has_each_trade_in_the_order_of_reception(rows: list[Row], cuts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert ticks(export(rows, Path(folder) / "catalog", "nautilus", cuts)) == expected_ticks(rows)


@settings(max_examples=40)
@given(rows=histories(("BTC-USD",)), cuts=st.lists(st.integers(0, 14)))
def test_both_sides_of_hftbacktest_see_each_trade_once_in_their_order(rows: list[Row], cuts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = check_events(export(rows, Path(folder) / "x.npz", "hftbacktest", cuts), rows)
    assert len(rows) <= found < 2 * len(rows)  # nobody overtakes the last one


def test_only_a_trade_that_was_overtaken_is_two_events(tmp_path: Path) -> None:
    rows = [row(1, 0, 0.1), row(2, 1, 9), row(3, 2, 2.1), row(4, 3, 3.1), row(5, 4, 86400, source="rest")]
    export(rows, tmp_path / "x.npz", "hftbacktest", [1, 2, 3])
    assert [event["ev"] >> 30 for event in events(tmp_path / "x.npz")] == [3, 2, 3, 3, 3, 1]


@pytest.mark.parametrize(
    ("price", "size", "digits", "increments"),
    [
        ("62893.12", "1", (2, 0), ("0.01", "1")),
        ("62893", "1e-8", (0, 8), ("1", "0.00000001")),
        ("0.01", "34028236692092.997003865646", (2, 12), ("0.01", "0.000000000001")),
        ("999999999999.999999999999", "0.000000000001", (12, 12), ("0.000000000001", "0.000000000001")),
    ],
)
def test_an_instrument_has_as_many_digits_as_its_trades(
    tmp_path: Path, price: str, size: str, digits: tuple[int, int], increments: tuple[str, str]
) -> None:
    rows = [row(1, 0, 0, price=price, trade_size=size), row(2, 1, 1, price="1", trade_size="1")]
    export(rows, tmp_path / "catalog", "nautilus")
    assert ticks(tmp_path / "catalog") == expected_ticks(rows)
    (file,) = (tmp_path / "catalog" / "data" / "currency_pair" / "BTC-USD.COINBASE").iterdir()
    (pair,) = pq.read_table(file, partitioning=None).to_pylist()
    assert (pair["price_precision"], pair["size_precision"]) == digits
    assert (pair["price_increment"], pair["size_increment"]) == increments
    assert (pair["base_currency"], pair["quote_currency"]) == ("BTC", "USD")


@pytest.mark.parametrize(
    ("rows", "form", "told"),
    [
        ([row(1, 0, 0, trade_size="34028236692092.997003865647")], "nautilus", "can't hold a size of BTC-USD"),
        ([row(1, 0, 0), row(2, 1, 1, "BTC-PERP-INTX")], "nautilus", "pairs of Coinbase only; leave out BTC-PERP-INTX"),
        ([row(1, 0, 0, "BTC-USDT@okx")], "nautilus", "pairs of Coinbase only; leave out BTC-USDT@okx"),
        ([row(1, 0, 0), row(2, 1, 1, "ETH-USD")], "hftbacktest", "choose one of BTC-USD and ETH-USD"),
        ([row(1, 1, 1), row(2, 0, 1)], "hftbacktest", "ordered by event_time"),
        ([row(1, 0, 0) | {"price": None}], "nautilus", "a price is missing"),
    ],
)
def test_what_a_format_cant_hold_is_one_line_and_leaves_nothing(
    tmp_path: Path, rows: list[Row], form: str, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told) as raised:
        write_batches(silver(rows), tmp_path / "x", form)
    assert "\n" not in str(raised.value)
    assert not [*tmp_path.iterdir()]


def test_no_trades_are_an_empty_catalog_and_an_empty_array(tmp_path: Path) -> None:
    export([], tmp_path / "catalog", "nautilus")
    assert not ticks(tmp_path / "catalog")
    export([], tmp_path / "x.npz", "hftbacktest")
    assert check_events(tmp_path / "x.npz", []) == 0


def test_a_catalog_is_replaced_whole_and_nothing_else_with_it(tmp_path: Path) -> None:
    catalog, rows = tmp_path / "catalog", [row(1, 0, 0)]
    (catalog / "backtest").mkdir(parents=True)  # results of earlier runs
    export(rows, catalog, "nautilus")
    with pytest.raises(ConfigurationError, match="data exists; choose another name, or allow --overwrite"):
        write_batches(silver(rows), catalog, "nautilus")

    def stopped() -> Any:
        yield silver([row(2, 0, 0)]).read_next_batch()
        raise KeyboardInterrupt

    cut = pa.RecordBatchReader.from_batches(silver(rows).schema, stopped())
    with pytest.raises(KeyboardInterrupt):
        write_batches(cut, catalog, "nautilus", overwrite=True)
    assert ticks(catalog) == expected_ticks(rows)
    newer = [row(3, 0, 0, "ETH-USD")]
    export(newer, catalog, "nautilus", overwrite=True)
    assert ticks(catalog) == expected_ticks(newer)
    assert sorted(one.name for one in catalog.iterdir()) == ["backtest", "data"]

    (catalog / "data" / "quote_tick").mkdir()
    with pytest.raises(ConfigurationError, match="has more than an export"):
        write_batches(silver(rows), catalog, "nautilus", overwrite=True)
    assert ticks(catalog) == expected_ticks(newer)


def test_a_catalog_of_bars_has_each_bar_exactly_at_its_end(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    trades = [
        Trade(symbol, n, at(25 * n), f"{n}.{n:02}", "0.5") for symbol in ("BTC-USD", "ETH-USD") for n in (1, 2, 3, 9)
    ]
    lake.take_in(trade.match() for trade in trades)
    with open_lake(lake.settings.location, memory_max_mb=256, threads=1, timeout_s=None) as reader:
        for rows, step in (
            (reader.bars(), "1-MINUTE"),
            (reader.bars(grain="5s"), "5-SECOND"),
            (reader.activity_bars(by="trades", size=2), "2-TICK"),
        ):
            catalog = tmp_path / step
            assert rows.write(catalog, "nautilus") == rows.count()
            for symbol in ("BTC-USD", "ETH-USD"):
                name = f"{symbol}.COINBASE-{step}-LAST-EXTERNAL"
                (file,) = (catalog / "data" / "bar" / name).iterdir()
                table = pq.read_table(file, partitioning=None)
                assert table.schema.metadata[b"bar_type"].decode() == name
                expected = [row for row in rows if row["symbol"] == symbol]
                length = {"1-MINUTE": 60, "5-SECOND": 5}.get(step, 0)
                ends = [micros(row.get("window_end", row["window_start"])) * 1000 + length * 10**9 for row in expected]
                assert table["ts_init"].to_pylist() == table["ts_event"].to_pylist() == ends
                for column in ("open", "high", "low", "close", "volume"):
                    assert [number(raw) for raw in table[column].to_pylist()] == [row[column] for row in expected]
        for size in ({"by": "range", "size": 2}, {"by": "volume", "size": "0.5"}):
            with pytest.raises(ConfigurationError, match="nautilus has no bars by"):
                reader.activity_bars(**size).write(tmp_path / "x", "nautilus")
        with pytest.raises(ConfigurationError, match="takes bars in their order"):
            reader.bars(grain="5s").reversed().write(tmp_path / "x", "nautilus")
        with pytest.raises(ConfigurationError, match="what is to be written lacks high"):
            reader.bars(columns=["symbol", "window_start", "open"]).write(tmp_path / "x", "nautilus")
    lake.close()
