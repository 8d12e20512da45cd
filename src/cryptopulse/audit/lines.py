"""Reads imported lines: the second line of such a message is a line of a file, the first names its columns as JSON.

Plain lines of CSV are read by SQL, all others one by one.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.audit.report import utc

_MAKERS = {"buy": "sell", "sell": "buy"}
_BUYERS = {"true": "buy", "false": "sell"}  # whether the buyer is the maker → the maker's side
_POWERS = {"time_s": 6, "time_ms": 3, "time_us": 0, "time_ns": -3}
_MOMENT = re.compile(r"([0-9-]{10})[T ]([0-9:]{8}(?:\.[0-9]+)?) ?(?:Z|UTC|([+-])([0-9]{2}):?([0-9]{2}))?")
_SCHEMA = pa.schema([(name, pa.string()) for name in ("symbol", "trade_id", "price", "size", "side", "time")])


def is_plain(messages: pa.Table) -> pa.Array:
    """For each of the imported `messages` whether `columns_sql` can read it: CSV without a quote below the layout."""
    return pc.match_substring_regex(messages["body"], r'\A\[[^\n]*\n[^"\n]*\z')


def columns_sql() -> str:
    """SQL: columns `h` (names) and `f` (texts) of a plain line `m.body`."""
    text = "try(decode(m.body))"
    head = f"split_part({text}, chr(10), 1)"
    return f"try(from_json({head}, '[\"VARCHAR\"]')) AS h, string_split(split_part({text}, chr(10), 2), ',') AS f"


def _field(name: str) -> str:
    return f"trim(f[list_position(h, '{name}')])"


def trade_sql() -> dict[str, str]:
    """Column → SQL over the columns of `columns_sql` and partition_key; side is the maker's, time a TIMESTAMP."""
    times = " ".join(
        f"WHEN list_contains(h, '{name}') THEN try(make_timestamp(floor(try_cast({_field(name)} AS DECIMAL(38, 9)) * "
        f"1e{power})::BIGINT))"
        for name, power in _POWERS.items()
    )
    side, maker = f"lower({_field('side')})", f"lower({_field('maker_side')})"
    maker = f"CASE {maker} WHEN 'true' THEN 'buy' WHEN 'false' THEN 'sell' ELSE {maker} END"
    product, venue = _field("product_id"), "coalesce(regexp_extract(partition_key, '@.*'), '')"
    named = f"CASE WHEN contains({product}, '@') THEN {product} ELSE {product} || {venue} END"
    return {
        "symbol": f"CASE WHEN list_contains(h, 'product_id') THEN {named} ELSE partition_key END",
        "trade_id": _field("trade_id"),
        "price": _field("price"),
        "size": _field("size"),
        "side": f"CASE {side} WHEN 'buy' THEN 'sell' WHEN 'sell' THEN 'buy' ELSE {maker} END",
        "time": f"CASE {times} ELSE try_cast({_field('time')} AS TIMESTAMP) END",
    }


def line_trades(messages: pa.Table) -> pa.Table:
    """The columns of _SCHEMA for each of the imported `messages`, null where one can't be read; side is the maker's."""
    pairs = zip(messages["body"].to_pylist(), messages["partition_key"].to_pylist(), strict=True)
    return pa.Table.from_pylist([line_trade(body, key) for body, key in pairs], schema=_SCHEMA)


def line_trade(body: bytes, key: str | None) -> dict[str, str]:
    """The trade of one imported line, with names as in `_SCHEMA`; without those that can't be read."""
    head, _, line = body.partition(b"\n")
    try:
        names, text = json.loads(head), line.decode()
        values: dict[str, Any]
        if isinstance(names, list):
            cells = next(csv.reader([text], skipinitialspace=True), [])
            values = {name: cell.strip() for name, cell in zip(names, cells, strict=True) if name is not None}
        else:
            row = json.loads(text, parse_float=str, parse_int=str)
            values = {field: row.get(member) for member, field in names.items()}
    except (ValueError, TypeError, AttributeError, RecursionError, csv.Error):
        return {}
    found = {"symbol": key}
    if "product_id" in values:
        venue = "".join((key or "").partition("@")[1:])
        product = values["product_id"]
        found["symbol"] = f"{product}{'' if '@' in product else venue}" if isinstance(product, str) else None
    found |= {name: values.get(name) for name in ("trade_id", "price", "size")}
    side = str(values.get("side", values.get("maker_side"))).lower()
    found["side"] = _MAKERS.get(side) if "side" in values else _BUYERS.get(side, side)
    found["time"] = _time_text(values)
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _time_text(values: Mapping[str, Any]) -> str | None:
    try:
        for name, power in _POWERS.items():
            if name in values:
                return f"{utc(int(Decimal(values[name]).scaleb(power) // 1)):%Y-%m-%dT%H:%M:%S.%fZ}"
        found = _MOMENT.fullmatch(values["time"])
        if found is None:
            return None
        date, clock, sign, hours, minutes = found.groups()
        if not sign:
            return f"{date}T{clock}Z"
        away = timedelta(hours=int(hours), minutes=int(minutes)) * int(f"{sign}1")
        return f"{datetime.fromisoformat(f'{date}T{clock}') - away:%Y-%m-%dT%H:%M:%S.%fZ}"
    except (KeyError, TypeError, ValueError, OverflowError, InvalidOperation):
        return None
