"""Trades, or bars, as a catalog of NautilusTrader, which its `ParquetDataCatalog(folder)` reads.

Written as its version 1.221 does with 128-bit numbers, the default on Linux and macOS: below `data/` a folder for each
type and instrument, in it Parquet files named by the first and last `ts_init`. Prices and sizes are whole multiples of
1e-16 in 16 bytes, little endian, so nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.activity_bars import BarSize, Measure
from cryptopulse.lake.products import is_product_id
from cryptopulse.lake.receive_order import in_receive_order
from cryptopulse.text import decimal_text

PARTS: Final = ("trade_tick", "bar", "currency_pair")
"""The folders below `data/`."""

_VENUE = "COINBASE"
_SCALE = 16  # digits after the point of a fixed-point number
_SIZE_MAX = Decimal("34028236692092.9970038656466944")  # its QUANTITY_RAW_MAX; prices end below its PRICE_RAW_MAX
_SPOOLED_ROWS = 4_096  # of a product in memory, before they go to its file
_GROUP_ROWS = 65_536
_BUYER, _SELLER = 1, 2  # the side of the aggressor, who is the taker

_SECONDS: Final = {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86_400}
_AGGREGATIONS: Final[dict[Measure, str]] = {
    "trades": "TICK",
    "volume": "VOLUME",
    "notional": "VALUE",
    "trade_imbalance": "TICK_IMBALANCE",
    "volume_imbalance": "VOLUME_IMBALANCE",
}

_SPOOLED = np.dtype(
    [("price", "V16"), ("size", "V16"), ("side", "u1"), ("trade_id", "<i8"), ("event", "<i8"), ("init", "<i8")]
)
_SPOOLED_BAR = np.dtype(
    [*((name, "V16") for name in ("open", "high", "low", "close", "volume")), ("event", "<i8"), ("init", "<i8")]
)
_TICKS = pa.schema(
    [
        pa.field("price", pa.binary(16), nullable=False),
        pa.field("size", pa.binary(16), nullable=False),
        pa.field("aggressor_side", pa.uint8(), nullable=False),
        pa.field("trade_id", pa.string(), nullable=False),
        pa.field("ts_event", pa.uint64(), nullable=False),
        pa.field("ts_init", pa.uint64(), nullable=False),
    ]
)
_BARS = pa.schema(
    [
        *(pa.field(name, pa.binary(16), nullable=False) for name in ("open", "high", "low", "close", "volume")),
        pa.field("ts_event", pa.uint64(), nullable=False),
        pa.field("ts_init", pa.uint64(), nullable=False),
    ]
)
_NAME, _WORD = pa.dictionary(pa.int64(), pa.string()), pa.dictionary(pa.int16(), pa.string())
_PAIR = pa.schema(
    [
        ("id", _NAME),
        ("raw_symbol", pa.string()),
        ("base_currency", _WORD),
        ("quote_currency", _WORD),
        ("price_precision", pa.uint8()),
        ("size_precision", pa.uint8()),
        *((name, _WORD) for name in ("price_increment", "size_increment", "multiplier", "lot_size")),
        *((f"{bound}_{what}", _WORD) for what in ("quantity", "notional", "price") for bound in ("max", "min")),
        *((name, pa.string()) for name in ("margin_init", "margin_maint", "maker_fee", "taker_fee")),
        ("info", pa.binary()),
        ("ts_event", pa.uint64()),
        ("ts_init", pa.uint64()),
    ],
    metadata={"class": "CurrencyPair"},
)


@dataclass
class _SpooledRows:
    """A product's rows on their way: its precisions are known only after the last one."""

    symbol: str
    spool: Path
    dtype: np.dtype[Any]
    """That of the rows: _SPOOLED or _SPOOLED_BAR."""
    price_digits: int = 0
    size_digits: int = 0
    newest: int = 0
    """Of bars: id of the first trade, or time, of the newest one."""
    newest_ns: int = 0
    parts: list[np.ndarray[Any, Any]] = field(default_factory=list)

    def add(self, numbers: dict[str, pa.ChunkedArray], size: str, others: dict[str, Any]) -> None:
        """Takes further rows, in the order of their local times: decimals, of them one a size, and other columns."""
        for name, column in numbers.items():
            if name == size:
                self.size_digits = _digits(column, self.size_digits)
            else:
                self.price_digits = _digits(column, self.price_digits)
        if (most := pc.max(numbers[size]).as_py()) > _SIZE_MAX:
            raise ConfigurationError(
                f"nautilus can't hold a size of {self.symbol}: {decimal_text(most)} is over {_SIZE_MAX}."
            )
        part = np.empty(len(numbers[size]), self.dtype)
        for name, column in numbers.items():
            part[name] = _fixed(column)
        for name, values in others.items():
            part[name] = values
        self.parts.append(part)
        if sum(map(len, self.parts)) >= _SPOOLED_ROWS:
            self.flush()

    def flush(self) -> None:
        """Moves them from memory to the file, which is closed again: there may be a thousand products."""
        with self.spool.open("ab") as file:
            for part in self.parts:
                file.write(part.data)
        self.parts.clear()

    def write(self, data: Path, bar_step: str = "") -> None:
        """Writes the instrument and its rows below `data`, and deletes the spooled file. `bar_step`: of bars."""
        self.flush()
        rows = self.spool.stat().st_size // self.dtype.itemsize
        spooled = np.memmap(self.spool, self.dtype, "r", shape=(rows,))
        instrument, first, last = f"{self.symbol}.{_VENUE}", int(spooled[0]["init"]), int(spooled[-1]["init"])
        about = {"instrument_id": instrument}
        about |= {"price_precision": str(self.price_digits), "size_precision": str(self.size_digits)}
        kind, name, schema = "trade_tick", instrument, _TICKS
        if bar_step:
            kind, name, schema = "bar", f"{instrument}-{bar_step}-LAST-EXTERNAL", _BARS
            about["bar_type"] = name
        schema = schema.with_metadata(about)
        with pq.ParquetWriter(_file(data, kind, name, first, last), schema, compression="zstd") as writer:
            for start in range(0, rows, _GROUP_ROWS):
                part = spooled[start : start + _GROUP_ROWS]
                names = self.dtype.names or ()
                columns = [_column(part[name], wanted.type) for name, wanted in zip(names, schema, strict=True)]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        base, quote = self.symbol.split("-")
        pair = {
            "id": instrument,
            "raw_symbol": self.symbol,
            "base_currency": base,
            "quote_currency": quote,
            "price_precision": self.price_digits,
            "size_precision": self.size_digits,
            "price_increment": f"{Decimal(1).scaleb(-self.price_digits):f}",
            "size_increment": f"{Decimal(1).scaleb(-self.size_digits):f}",
            "multiplier": "1",
            **dict.fromkeys(("margin_init", "margin_maint", "maker_fee", "taker_fee"), "0"),
            "info": b"null",
            "ts_event": first,
            "ts_init": first,
        }
        with pq.ParquetWriter(_file(data, "currency_pair", instrument, first, first), _PAIR) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist([pair], _PAIR))
        self.spool.unlink()


def write_catalog(rows: pa.RecordBatchReader, data: Path, progress: Callable[[int], None]) -> int:
    """Writes the trades and their instruments below the new folder `data`; returns how many trades.

    An instrument is a CurrencyPair such as BTC-USD.COINBASE with as many digits after the point as its trades need.
    `ts_event` is the exchange's time, `ts_init` the local one of `in_receive_order`, by which a backtest replays.
    Raises ConfigurationError for numbers that the format can't hold, for products that are no currency pairs, and as
    `in_receive_order`.
    """
    data.mkdir()
    products: dict[str, _SpooledRows] = {}
    count = 0
    for received, _ in in_receive_order(rows, "nautilus"):
        for product, part in _by_product(received, products, data, _SPOOLED):
            side = np.where(pc.equal(part["side"], "BUY").to_numpy(), _BUYER, _SELLER)
            times = {"event": part["exchange_ns"].to_numpy(), "init": part["local_ns"].to_numpy()}
            others = {"side": side, "trade_id": part["trade_id"].to_numpy(), **times}
            product.add({"price": part["price"], "size": part["trade_size"]}, "size", others)
        progress(count := count + received.num_rows)
    for product in products.values():
        product.write(data)
    return count


def write_bar_catalog(rows: pa.RecordBatchReader, data: Path, step: str, progress: Callable[[int], None]) -> int:
    """Writes bars, ordered by time, and their instruments below the new folder `data`; returns how many bars.

    `step`: what ends a bar, in the library's words, as in `1-MINUTE` or `100-TICK`. `ts_event` and `ts_init` are the
    end of the bar. Raises ConfigurationError for numbers that the format can't have, for products that are no currency
    pairs, and for rows that lack a column.
    """
    needed, end = ["symbol", *_BARS.names[:5]], "window_start"
    if "window_end" in rows.schema.names:  # of activity bars
        needed, end = [*needed, "first_trade_id"], "window_end"
    for name in (*needed, end):
        if name not in rows.schema.names:
            raise ConfigurationError(f"nautilus takes bars with all their columns; what is to be written lacks {name}.")
    length_ns = 0
    if end == "window_start":
        number, _, unit = step.partition("-")
        length_ns = int(number) * _SECONDS[unit] * 10**9
    data.mkdir()
    products: dict[str, _SpooledRows] = {}
    count = 0
    for batch in rows:
        for product, part in _by_product(pa.Table.from_batches([batch]), products, data, _SPOOLED_BAR):
            ends = pc.cast(part[end], pa.int64()).to_numpy() * 1000 + length_ns
            order = ends if length_ns else part["first_trade_id"].to_numpy()  # times of trades may cross, ids can't
            if order[0] < product.newest or (np.diff(order) < 0).any():
                raise ConfigurationError("nautilus takes bars in their order; these are not.")
            product.newest = int(order[-1])
            # Clocks may go back from one activity bar to the next; a backtest does not.
            times = np.maximum.accumulate(np.append(product.newest_ns, ends))[1:]
            product.newest_ns = int(times[-1])
            product.add({name: part[name] for name in _BARS.names[:5]}, "volume", {"event": times, "init": times})
        progress(count := count + batch.num_rows)
    for product in products.values():
        product.write(data, step)
    return count


def time_step(seconds: int) -> str:
    """The library's words for bars of so many seconds, in the largest unit: `5-SECOND`, `1-MINUTE`, `1-DAY`."""
    unit = next(unit for unit, length in reversed(_SECONDS.items()) if seconds % length == 0)
    return f"{seconds // _SECONDS[unit]}-{unit}"


def activity_step(size: BarSize) -> str:
    """The same for bars that end by what was traded, as in `100-TICK`. Raises ConfigurationError if there is none."""
    if size.measure not in _AGGREGATIONS or size.size != int(size.size):
        raise ConfigurationError(
            f"nautilus has no bars by {size.measure} of {decimal_text(size.size)}; it takes whole numbers by "
            f"{', '.join(_AGGREGATIONS)}."
        )
    return f"{int(size.size)}-{_AGGREGATIONS[size.measure]}"


def _by_product(
    rows: pa.Table, products: dict[str, _SpooledRows], data: Path, dtype: np.dtype[Any]
) -> Iterator[tuple[_SpooledRows, pa.Table]]:
    """The rows of each product, in their order; new products are added to `products`."""
    symbols = rows["symbol"].combine_chunks().dictionary_encode()
    codes = symbols.indices.to_numpy()
    ordered = rows.take(np.argsort(codes, kind="stable"))
    bounds = np.searchsorted(np.sort(codes), np.arange(len(symbols.dictionary) + 1))
    for number, symbol in enumerate(symbols.dictionary.to_pylist()):
        if symbol.count("-") != 1 or not is_product_id(symbol):
            raise ConfigurationError(
                f"nautilus takes currency pairs of Coinbase only; leave out {symbol} with --products."
            )
        product = products.setdefault(symbol, _SpooledRows(symbol, data / f"{symbol}.part", dtype))
        yield product, ordered[bounds[number] : bounds[number + 1]].combine_chunks()


def _column(values: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    """A spooled column as the schema has it."""
    if values.dtype.kind == "V":
        return pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(values.tobytes())])
    return pa.array(np.ascontiguousarray(values)).cast(kind)


def _digits(numbers: pa.ChunkedArray, least: int) -> int:
    """How many digits after the point hold all `numbers`, `least` or more."""
    for digits in range(least, _SCALE):
        try:
            numbers.cast(pa.decimal128(38, digits))
        except pa.ArrowInvalid:  # something would be lost
            continue
        return digits
    return _SCALE


def _fixed(numbers: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """`numbers` as the format has them."""
    (fixed,) = numbers.cast(pa.decimal128(38, _SCALE)).chunks
    return np.frombuffer(fixed.buffers()[1], "V16", count=len(fixed), offset=16 * fixed.offset)


def _file(data: Path, kind: str, instrument: str, first_ns: int, last_ns: int) -> Path:
    """The new file of these times (ns since 1970, UTC), in its folder."""
    folder = data / kind / instrument
    folder.mkdir(parents=True)

    def text(ns: int) -> str:
        seconds, fraction = divmod(ns, 10**9)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H-%M-%S}-{fraction:09d}Z"

    return folder / f"{text(first_ns)}_{text(last_ns)}.parquet"
