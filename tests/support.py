"""Lakes for tests, messages as the exchange writes them, and plain models to compare the tables with."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from cryptopulse import pipeline
from cryptopulse.lake.tables import (
    ABSENT,
    ALERTS,
    BARS,
    BRONZE,
    COMPLETENESS,
    COVERAGE,
    QUARANTINE,
    SILVER,
    STATS,
    Table,
)
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.opening import open_log
from cryptopulse.settings import Settings, load_settings

START = datetime(2026, 7, 7, 12, 0, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LOADS = {"load_timestamp", "detected_at"}
"""Columns that say when something was done here, and so differ from run to run."""

_UNIT = Decimal("1e-12")  # a trade's quote amount is rounded to it

Message = dict[str, Any]


def some(keep: int, cases: Iterable[Any]) -> list[Any]:
    """Cases for `parametrize`: the first `keep` always, the others only in the long tests. A tuple: several values."""
    return [
        case if number < keep else pytest.param(*(case if isinstance(case, tuple) else [case]), marks=pytest.mark.long)
        for number, case in enumerate(cases)
    ]


def at(seconds: float) -> datetime:
    """START and some seconds."""
    return START + timedelta(microseconds=round(seconds * 1_000_000))


def text_of(when: datetime) -> str:
    """A time as Coinbase writes it."""
    return when.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def message(body: bytes, source: str = "websocket", key: str = "", received: datetime = START) -> Message:
    """A message as the feed hands it to the log."""
    return {"partition_key": key, "received_time": received, "source": source, "body": body}


@dataclass(frozen=True, order=True)
class Trade:
    """A trade as the exchange would tell it; `side` is the taker's, `source` the way on which it came first."""

    symbol: str
    trade_id: int
    time: datetime = field(default=START, compare=False)
    price: str = field(default="100", compare=False)
    size: str = field(default="1", compare=False)
    side: str = field(default="BUY", compare=False)
    source: str = field(default="websocket", compare=False)

    @property
    def maker_side(self) -> str:
        return "SELL" if self.side == "BUY" else "BUY"

    def fields(self) -> dict[str, Any]:
        names = {"trade_id": self.trade_id, "price": self.price, "size": self.size}
        return names | {"side": self.maker_side.lower(), "time": text_of(self.time)}

    def match(self, kind: str = "match", **changes: Any) -> Message:
        """The Exchange feed's message; `changes` replace members, None leaves one out."""
        body = {"type": kind, "product_id": self.symbol, "sequence": 1, **self.fields(), **changes}
        present = {name: value for name, value in body.items() if value is not None}
        return message(json.dumps(present).encode(), key=self.symbol, received=self.time)


def advanced(trades: Sequence[Trade], **changes: Any) -> Message:
    """The Advanced Trade feed's message: all members are texts, newest first."""
    rows = [
        trade.fields() | {"trade_id": str(trade.trade_id), "side": trade.maker_side, "product_id": trade.symbol}
        for trade in reversed(trades)
    ]
    body = {"channel": "market_trades", "sequence_num": 0, "events": [{"type": "update", "trades": rows}], **changes}
    return message(json.dumps(body).encode(), received=START)


def page(trades: Sequence[Trade]) -> Message:
    """A page of the REST interface: one product's trades, newest first."""
    return message(json.dumps([t.fields() for t in reversed(trades)]).encode(), "rest", trades[0].symbol)


def orders(*answers: Mapping[str, Any], rows: Mapping[str, Mapping[int, Any]] | None = None) -> bytes:
    """What `POST /simulator/rest` takes: answers (`simulator.orders.Answer`), and rows by product and id."""
    given = [
        {**answer, "body": base64.b64encode(answer["body"]).decode()} if "body" in answer else answer
        for answer in answers
    ]
    return json.dumps({"answers": given, "rows": rows or {}}).encode()


def bronze(messages: Sequence[Message], partition: int = 0, first: int = 0) -> pa.Table:
    """Messages as bronze holds them."""
    rows = [
        {**one, "partition": partition, "offset": first + n, "enqueued_time": one["received_time"]}
        | {"bronze_ingestion_time": one["received_time"], "received_date": one["received_time"].date()}
        for n, one in enumerate(messages)
    ]
    return pa.Table.from_pylist(rows, BRONZE.arrow_schema)


class Lake:
    """A lake and its log, driven in this process."""

    def __init__(self, path: Path | str, **options: Any) -> None:
        self.settings: Settings = load_settings(lake=path, **options)
        self.path = Path(path)
        """The folder, for a lake in one."""
        self.log = open_log(self.settings)

    def append(self, messages: Iterable[Message]) -> None:
        self.log.append(pa.Table.from_pylist(list(messages), schema=MESSAGE_SCHEMA))

    def drain(self, batch: int | None = None) -> dict[str, Any]:
        settings = self.settings
        if batch is not None:
            processing = settings.processing.model_copy(update={"batch_messages_max": batch})
            settings = settings.model_copy(update={"processing": processing})
        return pipeline.drain(settings, self.log, lambda _done, _total: None)

    def take_in(self, messages: Iterable[Message]) -> dict[str, Any]:
        self.append(messages)
        return self.drain()

    def rebuild(self) -> dict[str, Any]:
        return pipeline.rebuild(self.settings, self.log, lambda _done, _total: None)

    def folder(self, table: Table) -> Path:
        return self.path / table.schema / table.name

    def delta(self, table: Table) -> DeltaTable:
        location = self.settings.location
        return DeltaTable(location.table_url(table), storage_options=location.storage_options)

    def arrow(self, table: Table) -> pa.Table:
        """What the table holds, read with nothing but deltalake."""
        return self.delta(table).to_pyarrow_table()

    def rows(self, table: Table, *without: str) -> list[dict[str, Any]]:
        """Rows in the order of the key, without the columns that say when they were loaded."""
        leave = LOADS.union(without)
        found = self.arrow(table).sort_by([(name, "ascending") for name in table.key])
        return found.drop_columns([name for name in found.column_names if name in leave]).to_pylist()

    def contents(self) -> dict[str, list[dict[str, Any]]]:
        """Everything that must not depend on how the stream was cut."""
        tables = (SILVER, QUARANTINE, COVERAGE, ABSENT, BARS, STATS, COMPLETENESS, ALERTS)
        # A log that was made at another moment starts at another offset.
        return {t.qualified: self.rows(t, *(("offset",) if t in (QUARANTINE, ABSENT) else ())) for t in tables}

    def close(self) -> None:
        self.log.close()


def micros(when: datetime) -> int:
    """µs UTC since 1970, exactly."""
    return (when - EPOCH) // timedelta(microseconds=1)


def intervals(ids: Iterable[int]) -> list[tuple[int, int]]:
    """A set of ids as closed intervals."""
    found: list[tuple[int, int]] = []
    for one in sorted(set(ids)):
        if found and found[-1][1] == one - 1:
            found[-1] = (found[-1][0], one)
        else:
            found.append((one, one))
    return found


def model_coverage(trades: Iterable[Trade]) -> list[dict[str, Any]]:
    """What silver.trade_id_coverage must hold."""
    ids: dict[str, set[int]] = {}
    for trade in trades:
        ids.setdefault(trade.symbol, set()).add(trade.trade_id)
    return [
        {"symbol": symbol, "first_trade_id": first, "last_trade_id": last}
        for symbol in sorted(ids)
        for first, last in intervals(ids[symbol])
    ]


def _windows(trades: Iterable[Trade], seconds: int) -> Mapping[tuple[str, datetime], list[Trade]]:
    windows: dict[tuple[str, datetime], list[Trade]] = {}
    for trade in sorted(trades):
        start = micros(trade.time) // (seconds * 1_000_000) * seconds
        windows.setdefault((trade.symbol, EPOCH + timedelta(seconds=start)), []).append(trade)
    return dict(sorted(windows.items()))


def model_bars(trades: Iterable[Trade], seconds: int = 60) -> list[dict[str, Any]]:
    """What gold.dm_trade_bars must hold of distinct trades, but for the quotients; or bars of another length."""
    trades = list(trades)
    held = model_coverage(trades)
    rows = []
    for (symbol, start), inside in _windows(trades, seconds).items():
        prices = [Decimal(t.price) for t in inside]
        bought = [t for t in inside if t.side == "BUY"]
        first, last = inside[0].trade_id, inside[-1].trade_id
        rows.append(
            {
                "symbol": symbol,
                "window_start": start,
                "open": prices[0],
                "high": max(prices),
                "low": min(prices),
                "close": prices[-1],
                "volume": sum(Decimal(t.size) for t in inside),
                "notional": sum((Decimal(t.price) * Decimal(t.size)).quantize(_UNIT, ROUND_HALF_UP) for t in inside),
                "buy_volume": sum((Decimal(t.size) for t in bought), Decimal(0)),
                "sell_volume": sum((Decimal(t.size) for t in inside if t.side == "SELL"), Decimal(0)),
                "trade_count": len(inside),
                "buy_count": len(bought),
                "rest_count": sum(t.source == "rest" for t in inside),
                "price_sum": sum(prices),
                "first_trade_id": first,
                "last_trade_id": last,
                "is_complete": any(
                    one["symbol"] == symbol and one["first_trade_id"] < first and last < one["last_trade_id"]
                    for one in held
                ),
            }
        )
    return rows


def model_stats(trades: Iterable[Trade]) -> list[dict[str, Any]]:
    """What gold.dm_crypto_price_stats must hold of distinct trades; floats to be compared approximately."""
    rows = []
    for (symbol, start), inside in _windows(trades, 300).items():
        prices = [Decimal(t.price) for t in inside]
        volume = sum(Decimal(t.size) for t in inside)
        notional = sum((Decimal(t.price) * Decimal(t.size)).quantize(_UNIT, ROUND_HALF_UP) for t in inside)
        minutes = [[Decimal(t.price) for t in bar] for bar in _windows(inside, 60).values()]
        closes = [minutes[0][0], *(bar[-1] for bar in minutes)]
        squares = [(b.ln() - a.ln()) ** 2 for a, b in pairwise(closes)]
        rows.append(
            {
                "symbol": symbol,
                "window_start": start,
                "window_end": start + timedelta(minutes=5),
                "avg_price": float(sum(prices) / len(prices)),
                "max_price": max(prices),
                "min_price": min(prices),
                "total_trade_volume": volume,
                "trade_count": len(inside),
                "vwap": float(notional / volume),
                "open_price": prices[0],
                "close_price": prices[-1],
                "volatility": float(sum(squares, Decimal(0)).sqrt()),
            }
        )
    return rows


def model_completeness(trades: Iterable[Trade], absent: Iterable[tuple[str, int]] = ()) -> list[dict[str, Any]]:
    """What gold.dm_completeness must hold of distinct trades, when pages proved the ids `absent` (symbol, id)."""
    trades, proved = list(trades), set(absent)
    held: dict[str, set[int]] = {}
    for trade in trades:
        held.setdefault(trade.symbol, set()).add(trade.trade_id)
    rows = []
    for (symbol, start), inside in _windows(trades, 3600).items():
        lowest, last = inside[0].trade_id, inside[-1].trade_id
        first = max((one + 1 for one in held[symbol] if one < lowest), default=lowest)
        lacking = last - first + 1 - sum(first <= one <= last for one in held[symbol])
        gone = sum(of == symbol and first <= one <= last and one not in held[symbol] for of, one in proved)
        healed = sum(trade.source == "rest" for trade in inside)
        rows.append(
            {
                "symbol": symbol,
                "window_start": start,
                "window_end": start + timedelta(hours=1),
                "first_trade_id": first,
                "last_trade_id": last,
                "expected_ids": last - first + 1,
                "held_ids": last - first + 1 - lacking,
                "healed_ids": healed,
                "absent_ids": gone,
                "missing_ids": lacking - gone,
                "healed_from": "rest" if healed else None,
                "witness": "trade" if healed or lacking else None,
                "is_complete": lacking == gone,
            }
        )
    return rows
