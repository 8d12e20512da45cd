"""Trades as a client received them, and what backtests must get of them, by a plain model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa

from cryptopulse.lake.tables import SILVER
from support import at, micros

Row = dict[str, Any]
"""A row of silver.fact_crypto_trades."""


def row(
    number: int, event: float, received: float, symbol: str = "BTC-USD", source: str = "websocket", **other: Any
) -> Row:
    """A trade; times in seconds after START."""
    given = {"price": "100.5", "trade_size": "0.25", "side": "SELL" if number % 3 else "BUY", **other}
    times = {"event_time": at(event), "ingestion_time": at(received), "load_timestamp": at(received)}
    return {"trade_id": number, "symbol": symbol, "source": source, "event_date": at(event).date(), **times, **given}


def silver(rows: Sequence[Row], cuts: Iterable[int] = ()) -> pa.RecordBatchReader:
    """The rows in batches that start at `cuts`."""
    schema = pa.schema([(field.name, field.type) for field in SILVER.arrow_schema])
    text = pa.schema([field.with_type(pa.string()) if pa.types.is_decimal(field.type) else field for field in schema])
    table = pa.Table.from_pylist(list(rows), text).cast(schema)
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    parts = [table[first:last].combine_chunks() for first, last in pairwise(edges)]
    return pa.RecordBatchReader.from_batches(schema, [batch for part in parts for batch in part.to_batches()])


def with_local_times(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """Each row with its local time (ns UTC), in the order of reception: by the rule of docs/reading.md."""
    found, last = [], {}
    for one in rows:
        event, symbol = micros(one["event_time"]), one["symbol"]
        if one["source"] != "websocket":
            local = max(event, last.get(symbol, 0))
        else:
            local = last[symbol] = max(event, micros(one["ingestion_time"]))
        found.append((local * 1000, one))
    return sorted(found, key=lambda pair: pair[0])
