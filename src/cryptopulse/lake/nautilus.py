"""Trades as a catalog of NautilusTrader, which its `ParquetDataCatalog(folder)` reads.

Written as its version 1.221 does with 128-bit numbers, the default on Linux and macOS: below `data/` a folder for each
type and instrument, in it Parquet files named by the first and last `ts_init`. Prices and sizes are whole multiples of
1e-16 in 16 bytes, little endian, so nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
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
from cryptopulse.lake.products import is_product_id
from cryptopulse.lake.receive_order import in_receive_order
from cryptopulse.text import decimal_text

PARTS: Final = ("trade_tick", "currency_pair")
"""The folders below `data/`."""

_VENUE = "COINBASE"
_SCALE = 16  # digits after the point of a fixed-point number
_SIZE_MAX = Decimal("34028236692092.9970038656466944")  # its QUANTITY_RAW_MAX; prices end below its PRICE_RAW_MAX
_SPOOLED_ROWS = 4_096  # of a product in memory, before they go to its file
_GROUP_ROWS = 65_536
_BUYER, _SELLER = 1, 2  # the side of the aggressor, who is the taker

_SPOOLED = np.dtype(
    [("price", "V16"), ("size", "V16"), ("side", "u1"), ("trade_id", "<i8"), ("event", "<i8"), ("init", "<i8")]
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
class _Product:
    """A product's trades on their way: its precisions are known only after the last one."""

    symbol: str
    spool: Path
    price_digits: int = 0
    size_digits: int = 0
    parts: list[np.ndarray[Any, Any]] = field(default_factory=list)

    def add(self, trades: pa.Table) -> None:
        """Takes further trades, in the order of their local times."""
        self.price_digits = _digits(trades["price"], self.price_digits)
        self.size_digits = _digits(trades["trade_size"], self.size_digits)
        part = np.empty(trades.num_rows, _SPOOLED)
        if (most := pc.max(trades["trade_size"]).as_py()) > _SIZE_MAX:
            raise ConfigurationError(
                f"nautilus can't hold a size of {self.symbol}: {decimal_text(most)} is over {_SIZE_MAX}."
            )
        part["price"], part["size"] = _fixed(trades["price"]), _fixed(trades["trade_size"])
        part["side"] = np.where(pc.equal(trades["side"], "BUY").to_numpy(), _BUYER, _SELLER)
        for name, column in (("trade_id", "trade_id"), ("event", "exchange_ns"), ("init", "local_ns")):
            part[name] = trades[column].to_numpy()
        self.parts.append(part)
        if sum(map(len, self.parts)) >= _SPOOLED_ROWS:
            self.flush()

    def flush(self) -> None:
        """Moves them from memory to the file, which is closed again: there may be a thousand products."""
        with self.spool.open("ab") as file:
            for part in self.parts:
                file.write(part.data)
        self.parts.clear()

    def write(self, data: Path) -> None:
        """Writes the instrument and its ticks below `data`, and deletes the spooled file."""
        self.flush()
        rows = self.spool.stat().st_size // _SPOOLED.itemsize
        spooled = np.memmap(self.spool, _SPOOLED, "r", shape=(rows,))
        instrument, first, last = f"{self.symbol}.{_VENUE}", int(spooled[0]["init"]), int(spooled[-1]["init"])
        digits = {"price_precision": str(self.price_digits), "size_precision": str(self.size_digits)}
        schema = _TICKS.with_metadata({"instrument_id": instrument, **digits})
        with pq.ParquetWriter(_file(data, "trade_tick", instrument, first, last), schema, compression="zstd") as writer:
            for start in range(0, rows, _GROUP_ROWS):
                part = spooled[start : start + _GROUP_ROWS]
                columns = [
                    *(_sixteen_bytes(part[name]) for name in ("price", "size")),
                    pa.array(part["side"]),
                    pa.array(part["trade_id"]).cast(pa.string()),
                    *(pa.array(part[name].astype(np.uint64)) for name in ("event", "init")),
                ]
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
    products: dict[str, _Product] = {}
    count = 0
    for received, _ in in_receive_order(rows, "nautilus"):
        symbols = received["symbol"].combine_chunks().dictionary_encode()
        codes = symbols.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        ordered, bounds = received.take(order), np.searchsorted(codes[order], np.arange(len(symbols.dictionary) + 1))
        for number, symbol in enumerate(symbols.dictionary.to_pylist()):
            if symbol.count("-") != 1 or not is_product_id(symbol):
                raise ConfigurationError(
                    f"nautilus takes currency pairs of Coinbase only; leave out {symbol} with --products."
                )
            if symbol not in products:
                products[symbol] = _Product(symbol, data / f"{symbol}.part")
            products[symbol].add(ordered[bounds[number] : bounds[number + 1]].combine_chunks())
        progress(count := count + received.num_rows)
    for product in products.values():
        product.write(data)
    return count


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


def _sixteen_bytes(numbers: np.ndarray[Any, Any]) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(numbers), [None, pa.py_buffer(numbers.tobytes())])


def _file(data: Path, kind: str, instrument: str, first_ns: int, last_ns: int) -> Path:
    """The new file of these times (ns since 1970, UTC), in its folder."""
    folder = data / kind / instrument
    folder.mkdir(parents=True)

    def text(ns: int) -> str:
        seconds, fraction = divmod(ns, 10**9)
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H-%M-%S}-{fraction:09d}Z"

    return folder / f"{text(first_ns)}_{text(last_ns)}.parquet"
