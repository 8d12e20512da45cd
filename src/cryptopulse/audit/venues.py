"""Reads the trades in messages and pages of venues beside Coinbase; `@venue` in the key says whose they are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_MICROS_DIGITS = 15
_COUNT_MAX = 10_000
_SECONDS = re.compile(r"[0-9]{1,30}(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SCHEMA = pa.schema([(name, pa.string()) for name in ("symbol", "trade_id", "price", "size", "side", "time")])


def can_be_fetched(symbol: str) -> bool:
    """Whether there is a REST interface to ask for trades of `symbol`."""
    return "@" not in symbol or symbol.rpartition("@")[2] in _PAGES


def grade_of(symbol: str) -> str:
    """How far ids prove that no trade of `symbol` is missing: `ids` (they are dense), `sequence` (nobody knows), or
    `none` (nothing is known of the venue)."""
    if symbol.endswith("-CDE"):  # Coinbase's futures
        return "sequence"
    return "ids" if "@" not in symbol or symbol.rpartition("@")[2] in _ROWS else "none"


def is_venues(messages: pa.Table) -> pa.Array:
    """For each message whether another venue than Coinbase sent it."""
    is_named = pc.fill_null(pc.match_substring(messages["partition_key"], "@"), fill_value=False)
    return pc.and_not(is_named, pc.equal(messages["source"], "import"))


def venue_rows(messages: pa.Table) -> pa.Table:
    """A row for each trade that can be read, with the columns of its message but the body, and those of `_SCHEMA`."""
    found = [
        (place, trade)
        for place, (body, key, source) in enumerate(
            zip(*(messages[c].to_pylist() for c in ("body", "partition_key", "source")), strict=True)
        )
        for trade in venue_trades(body, key, is_page=source == "rest")
    ]
    rows = messages.drop_columns(["body"]).take(pa.array([place for place, _ in found], pa.int64()))
    trades = pa.Table.from_pylist([trade for _, trade in found], schema=_SCHEMA)
    for name in _SCHEMA.names:
        rows = rows.append_column(name, trades[name])
    return rows


def venue_page_ids(body: bytes, key: str) -> list[int] | None:
    """The trade ids of a page of REST, newest first; None if `body` is not a page, or an id can't be read."""
    symbol, _, venue = key.rpartition("@")
    try:
        return sorted((int(row[_MEMBERS[venue][1]]) for row in _PAGES[venue](_decoded(body), symbol)), reverse=True)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


def _decoded(body: bytes) -> Any:
    return json.loads(body, parse_float=_JsonNumber, parse_int=_JsonNumber, object_pairs_hook=_unambiguous)


def venue_trades(body: bytes, key: str, *, is_page: bool = False) -> Iterator[dict[str, str]]:
    """The trades of one message, with names as in `_SCHEMA`, without what can't be read but the symbol and the id.

    Side is the maker's, time ISO 8601. `is_page`: of REST, about the symbol that `key` names.
    """
    symbol, _, venue = key.rpartition("@")
    try:
        rows = _PAGES[venue](_decoded(body), symbol) if is_page else _ROWS[venue](_decoded(body))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return
    members = _MEMBERS[venue.partition("-")[0]]
    for row in rows:
        if isinstance(row, dict):
            found = dict(zip(_SCHEMA.names, map(row.get, members), strict=True))
            if type(found["symbol"]) is not str or not isinstance(found["trade_id"], str):
                continue
            side, time = _MAKERS.get(str(found["side"])), _time(found["time"], venue)
            found |= {"symbol": f"{found['symbol']}@{venue}", "side": side, "time": time}
            yield {name: value for name, value in found.items() if isinstance(value, str)}


class _JsonNumber(str):
    """A JSON number as it is written."""

    __slots__ = ()


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a member is there twice")
    return dict(pairs)


def _binance_rows(kind: str) -> Callable[[Mapping[str, Any]], list[Mapping[str, Any]]]:
    def rows(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        event = message["data"] if "stream" in message else message
        return [{**event, "id": event["t" if kind == "trade" else "a"]}] if event["e"] == kind else []

    return rows


def _okx_rows(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Trades; of a row that stands for several, which the parser refuses, the ids alone."""
    if message["arg"]["channel"] not in ("trades", "trades-all") or "event" in message:
        return []
    found: list[Mapping[str, Any]] = []
    for row in message["data"]:
        count = int(row.get("count", "1"))
        if count == 1:
            found.append(row)
        else:
            last = int(row["tradeId"])
            ids = range(max(last - min(count, _COUNT_MAX) + 1, 1), last + 1)
            found += [{"instId": row["instId"], "tradeId": str(number)} for number in ids]
    return found


_ROWS: Mapping[str, Callable[[Any], list[Mapping[str, Any]]]] = {
    "kraken": lambda message: list(message["data"]) if message["channel"] == "trade" else [],
    "binance": _binance_rows("trade"),
    "binance-aggregates": _binance_rows("aggTrade"),
    "okx": _okx_rows,
}


def _kraken_page(page: Mapping[str, Any], symbol: str) -> list[Mapping[str, Any]]:
    (rows,) = (rows for name, rows in page["result"].items() if name != "last")
    sides = {"b": "buy", "s": "sell"}
    return [
        {"symbol": symbol, "trade_id": row[6], "price": row[0], "qty": row[1], "side": sides.get(str(row[3])),
         "timestamp": _seconds(row[2])}
        for row in rows
    ]  # fmt: skip


def _seconds(text: Any) -> str | None:
    if not isinstance(text, str) or not _SECONDS.fullmatch(text):
        return None
    try:
        return f"{_EPOCH + timedelta(microseconds=int(Fraction(text) * 1_000_000 // 1)):%Y-%m-%dT%H:%M:%S.%fZ}"
    except (ValueError, OverflowError):
        return None


def _binance_page(page: list[Mapping[str, Any]], symbol: str) -> list[Mapping[str, Any]]:
    return [
        {"s": symbol, "id": row.get("id"), "p": row.get("price"), "q": row.get("qty"), "m": row.get("isBuyerMaker"),
         "T": row.get("time")}
        for row in page
    ]  # fmt: skip


_PAGES: Mapping[str, Callable[[Any, str], list[Mapping[str, Any]]]] = {
    "kraken": _kraken_page,
    "binance": _binance_page,
    "okx": lambda page, symbol: [{**row, "instId": symbol} for row in page["data"]],
}

_MEMBERS = {
    "kraken": ("symbol", "trade_id", "price", "qty", "side", "timestamp"),
    "binance": ("s", "id", "p", "q", "m", "T"),
    "okx": ("instId", "tradeId", "px", "sz", "side", "ts"),
}
_MAKERS = {"buy": "sell", "sell": "buy", "True": "buy", "False": "sell"}  # Binance tells whether the buyer is the maker


def _time(value: Any, venue: str) -> str | None:
    """A time as ISO 8601. Kraken writes it so; the others count milliseconds, Binance, with 15 digits, microseconds."""
    if venue == "kraken" or not isinstance(value, str):
        return value if isinstance(value, str) and value.endswith("Z") else None
    if not value.isdecimal():
        return None
    is_micros = venue != "okx" and len(value.lstrip("0")) >= _MICROS_DIGITS
    try:
        return f"{_EPOCH + timedelta(microseconds=int(value) * (1 if is_micros else 1000)):%Y-%m-%dT%H:%M:%S.%fZ}"
    except (ValueError, OverflowError):
        return None
