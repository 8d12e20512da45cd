"""Messages of a simulated market, byte by byte as the exchange sends them, for filling a log without a socket."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.simulator.market import SimulatedMarket, Trades
from cryptopulse.simulator.messages import Writer
from cryptopulse.simulator.products import catalogue

PRODUCTS = 20
_ON_THE_WAY_US = 20_000  # a message comes off the socket about so long after its trade


def message_batches(messages: int, batch_messages: int, rate: float, seed: int = 7) -> Iterator[pa.Table]:
    """`messages` match messages (MESSAGE_SCHEMA) in batches of `batch_messages`, the last one smaller.

    The market trades 20 products at `rate` a second and began so long ago that its last trade is now at the latest.
    """
    products = catalogue(PRODUCTS, seed)
    # A tenth more time than is needed: the market's pace breathes.
    start_us = time.time_ns() // 1000 - int(messages / rate * 1.1e6) - 10_000_000
    writer = Writer(products, start_us)
    names = np.array([product.product_id for product in products], dtype=object)
    waiting: list[pa.Table] = []
    held = made = 0
    for block in SimulatedMarket(products, rate, seed).blocks():
        trades = block[: messages - made]
        made += len(trades)
        waiting.append(table_of(trades, writer, names))
        held += len(trades)
        if held >= batch_messages or made == messages:
            yield from _cut(pa.concat_tables(waiting), batch_messages, made == messages)
            rest = 0 if made == messages else held % batch_messages
            waiting = [pa.concat_tables(waiting).slice(held - rest)]
            held = rest
        if made == messages:
            return


def _cut(table: pa.Table, rows: int, to_the_end: bool) -> Iterator[pa.Table]:
    end = table.num_rows if to_the_end else table.num_rows - table.num_rows % rows
    for start in range(0, end, rows):
        yield table.slice(start, min(rows, end - start))


def table_of(trades: Trades, writer: Writer, names: np.ndarray[tuple[int], np.dtype[np.object_]]) -> pa.Table:
    """Trades as messages (MESSAGE_SCHEMA), received 20 ms after their own time; `names`: the products' ids."""
    received_us = trades["time_us"] + writer.start_us + _ON_THE_WAY_US
    columns = [
        pa.array(names[trades["product"]], pa.string()),
        pa.array(received_us, pa.int64()).cast(MESSAGE_SCHEMA.field("received_time").type),
        pa.repeat("websocket", len(trades)),
        pa.array(writer.matches(trades), pa.binary()),
    ]
    return pa.table(columns, schema=MESSAGE_SCHEMA)
