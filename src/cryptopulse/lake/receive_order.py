"""Trades in the order in which a client receives them, as backtests replay them; streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.tables import SILVER

_NEEDED: Final = ("trade_id", "symbol", "price", "trade_size", "side", "event_time", "ingestion_time", "source")


def in_receive_order(rows: pa.RecordBatchReader, purpose: str) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Reads trades that are ordered by `event_time`, and gives (received, waiting) after each batch.

    `received`: the next trades in order of their receive time; together they are all rows, each once. `waiting`: those
    read, but received after a trade that may still come. Both with the columns `trade_id`, `symbol`, `price`,
    `trade_size`, `side`, and `place` (0, 1, … in the order of `rows`), `exchange_ns`, `local_ns` (ns since 1970, UTC).

    A trade's local time is when its WebSocket message was received, but never before the exchange's time, whose clock
    may be ahead. When one was fetched over REST or imported says nothing of when a client would have had it: its local
    time is the exchange's, but not before the trade before it of its product was received. `purpose`: the format, for
    messages. Raises ConfigurationError for rows that are no trades, or in another order.
    """
    for name in _NEEDED:
        kind = SILVER.arrow_schema.field(name).type
        found = rows.schema.field(name).type if name in rows.schema.names else None
        if found != kind:
            fault = f"has no column {name}" if found is None else f"has {name} as {found}, not {kind}"
            raise ConfigurationError(f"{purpose} takes trades with all their columns; what is to be written {fault}.")
    numbers: dict[str, int] = {}
    last_received = np.zeros(0, np.int64)  # by a product's number: its last trade over the WebSocket
    waiting, count, newest = None, 0, 0
    for batch in rows:
        if not batch.num_rows:
            continue
        for name in _NEEDED:
            if batch[name].null_count:
                raise ConfigurationError(f"{purpose} takes trades with all their columns; a {name} is missing.")
        exchange = _nanoseconds(batch["event_time"])
        if exchange[0] < newest or (np.diff(exchange) < 0).any():
            raise ConfigurationError(f"{purpose} takes trades ordered by event_time; these are not.")
        newest = int(exchange[-1])

        symbols = batch["symbol"].dictionary_encode()
        names = symbols.dictionary.to_pylist()
        for name in names:
            numbers.setdefault(name, len(numbers))
        last_received = np.append(last_received, np.zeros(len(numbers) - len(last_received), np.int64))
        product = np.array([numbers[name] for name in names])[symbols.indices.to_numpy()]

        # One product after the other: for each trade the last one before it, or itself, that came over the WebSocket.
        order = np.argsort(product, kind="stable")
        product, is_live = product[order], pc.equal(batch["source"], "websocket").to_numpy(zero_copy_only=False)[order]
        local = np.maximum(_nanoseconds(batch["ingestion_time"]), exchange)[order]
        live = np.maximum.accumulate(np.where(is_live, np.arange(len(order)), -1))
        received = np.where(live >= np.searchsorted(product, product), local[live], last_received[product])
        local = np.where(is_live, local, np.maximum(exchange[order], received))
        last_received[product] = received  # of several for one product the last one counts
        in_place = np.empty_like(local)
        in_place[order] = local

        table = pa.Table.from_batches([batch]).select(["trade_id", "symbol", "price", "trade_size", "side"])
        table = table.append_column("place", pa.array(np.arange(count, count + len(order))))
        table = table.append_column("exchange_ns", pa.array(exchange)).append_column("local_ns", pa.array(in_place))
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        count += len(order)
        # Who comes later is received later than `newest`, as nothing is received before the exchange has it.
        order = np.argsort(waiting["local_ns"].to_numpy(), kind="stable")
        waiting = waiting.combine_chunks().take(order)
        done = int(np.searchsorted(waiting["local_ns"].to_numpy(), newest, side="right"))
        received_rows, waiting = waiting[:done], waiting[done:]
        yield received_rows, waiting
    if waiting is not None:
        yield waiting, waiting[:0]


def _nanoseconds(times: pa.Array) -> Any:
    """Times (µs UTC) as nanoseconds since 1970, int64."""
    return times.cast(pa.int64()).to_numpy() * 1000
