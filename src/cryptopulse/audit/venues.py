"""Reads the trades in messages of venues beside Coinbase; `@venue` in a message's key says whose it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_MICROS_DIGITS = 15
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SCHEMA = pa.schema([(name, pa.string()) for name in ("symbol", "trade_id", "price", "size", "side", "time")])


def is_venues(messages: pa.Table) -> pa.Array:
    """For each message whether another venue than Coinbase sent it."""
    is_named = pc.fill_null(pc.match_substring(messages["partition_key"], "@"), fill_value=False)
    return pc.and_not(is_named, pc.equal(messages["source"], "import"))


def venue_rows(messages: pa.Table) -> pa.Table:
    """A row for each trade that can be read, with the columns of its message but the body, and those of `_SCHEMA`."""
    found = [
        (place, trade)
        for place, (body, key) in enumerate(
            zip(*(messages[c].to_pylist() for c in ("body", "partition_key")), strict=True)
        )
        for trade in venue_trades(body, key)
    ]
    rows = messages.drop_columns(["body"]).take(pa.array([place for place, _ in found], pa.int64()))
    trades = pa.Table.from_pylist([trade for _, trade in found], schema=_SCHEMA)
    for name in _SCHEMA.names:
        rows = rows.append_column(name, trades[name])
    return rows


def venue_trades(body: bytes, key: str) -> Iterator[dict[str, str]]:
    """The trades of one message, with names as in `_SCHEMA`, without what can't be read but the symbol and the id.

    Side is the maker's, time ISO 8601.
    """
    venue = key.rpartition("@")[2]
    try:
        message = json.loads(body, parse_float=str, parse_int=str, object_pairs_hook=_unambiguous)
        rows = _ROWS[venue](message)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    members = _MEMBERS[venue.partition("-")[0]]
    for row in rows:
        if isinstance(row, dict):
            found = dict(zip(_SCHEMA.names, map(row.get, members), strict=True))
            found |= {
                "symbol": f"{found['symbol']}@{venue}",
                "side": _MAKERS.get(str(found["side"])),
                "time": _time(found),
            }
            if isinstance(found["trade_id"], str):
                yield {name: value for name, value in found.items() if isinstance(value, str)}


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a member is there twice")
    return dict(pairs)


def _kraken_rows(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(message["data"]) if message["channel"] == "trade" else []


def _binance_rows(kind: str) -> Callable[[Mapping[str, Any]], list[Mapping[str, Any]]]:
    def rows(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        event = message["data"] if "stream" in message else message
        return [{**event, "id": event["t" if kind == "trade" else "a"]}] if event["e"] == kind else []

    return rows


def _okx_rows(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    is_trades = message["arg"]["channel"] in ("trades", "trades-all") and "event" not in message
    rows = list(message["data"]) if is_trades else []
    return rows if all(row.get("count", "1") == "1" for row in rows) else []


_ROWS = {
    "kraken": _kraken_rows,
    "binance": _binance_rows("trade"),
    "binance-aggregates": _binance_rows("aggTrade"),
    "okx": _okx_rows,
}


_MEMBERS = {
    "kraken": ("symbol", "trade_id", "price", "qty", "side", "timestamp"),
    "binance": ("s", "id", "p", "q", "m", "T"),
    "okx": ("instId", "tradeId", "px", "sz", "side", "ts"),
}
_MAKERS = {"buy": "sell", "sell": "buy", "True": "buy", "False": "sell"}  # Binance tells whether the buyer is the maker


def _time(trade: Mapping[str, Any]) -> str | None:
    """The time of a trade as ISO 8601; numbers count milliseconds, with 15 or more digits microseconds."""
    text = trade["time"]
    if not isinstance(text, str):
        return None
    try:
        us = int(Decimal(text).scaleb(0 if len(text) >= _MICROS_DIGITS else 3) // 1)
        return f"{_EPOCH + timedelta(microseconds=us):%Y-%m-%dT%H:%M:%S.%fZ}"
    except (ValueError, OverflowError, InvalidOperation):
        return text
