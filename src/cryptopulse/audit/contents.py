"""Compares each trade in silver with its messages in bronze: price, size, side and time.

First 64 ids are compared at a time: hashes of the contents, combined by `xor` on both sides, are equal if all contents
are. Where they differ, or an id came again, each trade's own hash is compared; and for those that differ the message
itself is parsed exactly, which decides.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.audit.id_set import MASK_IDS, IdSet
from cryptopulse.audit.ids import BIT, CONTENT_HASH, SilverIds
from cryptopulse.audit.lines import line_trade
from cryptopulse.audit.messages import ReceivedIds, TradeReader, kept_messages, messages_since
from cryptopulse.audit.progress import Progress
from cryptopulse.audit.report import micros, moment, utc
from cryptopulse.audit.scope import AuditScope
from cryptopulse.audit.snapshot import BRONZE, QUARANTINE, SILVER, LakeSnapshot
from cryptopulse.audit.venues import venue_trades
from cryptopulse.text import decimal_text

_CHUNKS_AT_ONCE = 10_000  # 640,000 trades, some 60 MB
_NUMBERS = ("price", "size")
_FIELDS = ("price", "trade_size", "side", "event_time")
_HASH = CONTENT_HASH.format(price="price", size="trade_size", is_buy="side = 'BUY'", time="event_time")
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,6})?")
_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?Z")
_TAKER = {"sell": "BUY", "SELL": "BUY", "buy": "SELL", "BUY": "SELL"}

_Content = tuple[Decimal, Decimal, str, int]
"""Price, size, taker's side, event time (µs UTC)."""


@dataclass
class _Differing:
    """The trades of one product whose messages differ from silver."""

    count: int = 0
    ids: list[int] = field(default_factory=list)
    example: tuple[int, int, int, _Content, _Content] | None = None
    """The one with the lowest offset: offset, partition, trade id, content in silver, content in the message."""


class Contents:
    """The comparison: collects hashes of the messages while bronze is read, then reads silver."""

    def __init__(self, snapshot: LakeSnapshot, scope: AuditScope, progress: Progress) -> None:
        """Reads nothing yet."""
        self._snapshot = snapshot
        self._scope = scope
        self._progress = progress
        self._has_news = False
        self._found: dict[tuple[str, str], _Differing] = {}

    def add(self, masks: pa.Table) -> None:
        """Adds the masks and hashes of some messages; see `received`."""
        columns = ["symbol", "chunk", "any", "mark", "versions", "first_offset", "last_offset"]
        self._snapshot.keep("received", masks.filter(pc.is_valid(masks["chunk"])).select(columns))
        self._has_news = True

    def compare(self, held: Mapping[str, SilverIds], received: Mapping[str, ReceivedIds]) -> None:
        """Reports trades whose message differs from silver, by product."""
        if not self._has_news or not held:
            return
        # The days of silver that can have trades of the messages read.
        days = {
            day
            for symbol, product in held.items()
            for day, first, last in product.days
            if symbol in received and received[symbol].any.touch([first], [last])[0]
        }
        for day in sorted(days, key=str):
            files = [file for file in self._snapshot.files(SILVER) if file.day == day]
            marks = self._snapshot.rows(
                f"""
                SELECT symbol, trade_id >> 6 AS chunk, bit_or({BIT.format("trade_id")}) AS ids, bit_xor({_HASH}) AS mark
                FROM fact_crypto_trades
                WHERE {self._scope.has_product()}
                GROUP BY symbol, chunk""",
                {SILVER: files},
            )
            self._snapshot.keep("kept_marks", marks)
        suspects = self._snapshot.rows(_SUSPECTS)
        reader = TradeReader(
            self._snapshot,
            self._progress,
            kept_messages(self._snapshot),
            lambda trades: (
                f"""
                SELECT t.symbol, t.trade_id, p, o, is_refused, is_kept, is_beyond, h.price, h.trade_size, h.side, h.us
                FROM ({trades}) AS t
                LEFT JOIN held AS h ON h.symbol = t.symbol AND h.trade_id = t.trade_id
                WHERE t.symbol IS NULL OR h.held_mark IS DISTINCT FROM t.mark AND h.symbol IS NOT NULL"""
            ),
        )
        for start in range(0, suspects.num_rows, _CHUNKS_AT_ONCE):
            # The trades of some chunks, one by one.
            part = suspects.slice(start, _CHUNKS_AT_ONCE)
            chunks = part["chunk"].to_numpy()
            ends = int(chunks.min()) * MASK_IDS, int(chunks.max()) * MASK_IDS + MASK_IDS - 1
            files = [file for file in self._snapshot.files(SILVER) if file.may_hold("trade_id", *ends)]
            trades = self._snapshot.rows(_HELD, {SILVER: files}, {"suspects": part})
            places = IdSet.of_arrays(part["first_offset"].to_numpy(), part["last_offset"].to_numpy())
            for messages in messages_since(self._snapshot, self._scope, (places.first, places.last)):
                offsets = messages["offset"].to_numpy()
                near = messages.filter(pa.array(places.touch(offsets, offsets)))
                for differing in reader.read(near, {"held": trades}):
                    self._read_exactly(near, differing)
        for (kind, symbol), found in sorted(self._found.items()):
            self._report(kind, symbol, found)

    def _report(self, kind: str, symbol: str, found: _Differing) -> None:
        assert found.example is not None
        offset, partition, trade_id, *both = found.example
        stored, received = (
            (decimal_text(price), decimal_text(size), side, moment(utc(us))) for price, size, side, us in both
        )
        columns = {
            name: {"stored": ours, "received": theirs}
            for name, ours, theirs in zip(_FIELDS, stored, received, strict=True)
            if ours != theirs
        }
        ids = IdSet.of_arrays(found.ids, found.ids)
        pairs = ", ".join(f"{name} {pair['received']} instead of {pair['stored']}" for name, pair in columns.items())
        where = f"the first, id {trade_id} at partition {partition}, offset {offset} of bronze, has {pairs}"
        details = {
            "trades": found.count, "first_trade_id": ids.first, "last_trade_id": ids.last, "ids": ids.count,
            "trade_id": trade_id, "partition": partition, "offset": offset, "columns": columns,
        }  # fmt: skip
        text = f"{symbol}: {found.count:,} trades of {BRONZE} have other content in {SILVER}; {where}"
        repair = f"run `{self._snapshot.repairs.rebuild}`"
        if kind == "trades_conflict":
            text = f"{symbol}: {found.count:,} trades came again with other content than {SILVER} holds; {where}"
            repair = (
                f"see {QUARANTINE}; the first copies are kept, and a recording of another market needs its own lake"
            )
        self._snapshot.report(kind, SILVER, text, repair, symbol, details)

    def _read_exactly(self, messages: pa.Table, differing: pa.Table) -> None:
        """Parses exactly the messages whose trades seem to differ, and notes those that do."""
        wanted: dict[tuple[int, int], dict[tuple[str, int], dict[str, Any]]] = {}
        for row in differing.to_pylist():
            wanted.setdefault((row["p"], row["o"]), {})[row["symbol"], row["trade_id"]] = row
        if not wanted:
            return
        scope, offsets = self._scope, pa.array({offset for _, offset in wanted}, pa.int64())
        for message in messages.filter(pc.is_in(messages["offset"], offsets)).to_pylist():
            partition, offset = message["partition"], message["offset"]
            rows = wanted.get((partition, offset), {})
            # A refused message may also have trades that are not the reason of its refusal.
            is_venues = "@" in (message["partition_key"] or "") and message["source"] != "import"
            has_several = is_venues or message["source"] == "rest" or b'"market_trades"' in message["body"]
            for symbol, trade_id, received in _contents(message) if rows else ():
                row = rows.get((symbol, trade_id))
                if row is None or (row["is_refused"] and not has_several):
                    continue
                held = (row["price"], row["trade_size"], row["side"], row["us"])
                is_same = held == received
                if symbol.endswith("@kraken"):  # whose pages have times in fractions of a microsecond, its feed has not
                    is_same = held[:3] == received[:3] and abs(held[3] - received[3]) <= 1
                if is_same or not any(
                    (scope.from_us is None or us >= scope.from_us) and (scope.to_us is None or us < scope.to_us)
                    for us in (held[3], received[3])
                ):
                    continue
                # Quarantine may not have a message yet that silver has just consumed.
                is_known = row["is_kept"] or row["is_beyond"] or self._progress.is_midway
                kind = "trades_conflict" if is_known else "trades_differ"
                found = self._found.setdefault((kind, symbol), _Differing())
                found.count += 1
                found.ids.append(trade_id)
                if found.example is None or (offset, partition, trade_id) < found.example[:3]:
                    found.example = (offset, partition, trade_id, held, received)


_SUSPECTS = """
    SELECT t.symbol, t.chunk, t.first_offset, t.last_offset
    FROM (
        SELECT
            symbol, chunk, bit_or("any") AS ids, bit_xor(mark) AS mark, sum(versions) AS versions,
            min(first_offset) AS first_offset, max(last_offset) AS last_offset
        FROM received GROUP BY symbol, chunk
    ) AS t
    JOIN (
        SELECT symbol, chunk, bit_or(ids) AS ids, bit_xor(mark) AS mark FROM kept_marks GROUP BY symbol, chunk
    ) AS h ON h.symbol = t.symbol AND h.chunk = t.chunk
    WHERE (t.ids & h.ids) <> 0 AND (t.ids <> h.ids OR t.mark <> h.mark OR t.versions <> bit_count(t.ids))
    ORDER BY t.first_offset"""

_HELD = f"""
    SELECT
        t.symbol, t.trade_id, t.price, t.trade_size, t.side, epoch_us(t.event_time) AS us, {_HASH} AS held_mark
    FROM fact_crypto_trades AS t
    SEMI JOIN suspects AS s ON s.symbol = t.symbol AND s.chunk = t.trade_id >> 6"""


def _contents(message: Mapping[str, Any]) -> Iterator[tuple[str, int, _Content]]:
    """Product, id and content of each readable trade of a message."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """An object without the members that occur more than once: their value is ambiguous."""
        names = Counter(name for name, _ in pairs)
        return {name: value for name, value in pairs if names[name] == 1}

    value: Any
    try:
        if message["source"] == "import":
            line = line_trade(message["body"], message["partition_key"])
            value = {**line, "product_id": line.get("symbol")}
        elif "@" in (message["partition_key"] or ""):
            is_page = message["source"] == "rest"
            found = venue_trades(message["body"], message["partition_key"], is_page=is_page)
            value = [{**trade, "product_id": trade["symbol"]} for trade in found]
        else:
            value = json.loads(message["body"], parse_float=str, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return
    trades = value if isinstance(value, list) else [value]
    if isinstance(value, dict) and value.get("channel") == "market_trades":
        events = value.get("events")
        parts = [event.get("trades") for event in events if isinstance(event, dict)] if isinstance(events, list) else []
        trades = [trade for part in parts if isinstance(part, list) for trade in part]
    for trade in trades:
        if not isinstance(trade, dict):
            continue
        symbol = message["partition_key"] if message["source"] == "rest" else trade.get("product_id")
        numbers = [str(number) if isinstance(number := trade.get(name), int | str) else "" for name in _NUMBERS]
        side, time = _TAKER.get(str(trade.get("side"))), trade.get("time")
        moment_of = _TIME.fullmatch(time) if isinstance(time, str) else None
        trade_id = str(trade.get("trade_id"))
        if not (isinstance(symbol, str) and trade_id.isdecimal() and side and moment_of):
            continue
        if not all(map(_NUMBER.fullmatch, numbers)):
            continue
        price, size = map(Decimal, numbers)
        try:
            second = datetime.fromisoformat(moment_of[1]).replace(tzinfo=UTC)
        except ValueError:
            continue
        us = micros(second) + int((moment_of[2] or "")[:6].ljust(6, "0"))
        if price and size:
            yield symbol, int(trade_id), (price, size, side, us)


def _shown(content: _Content) -> tuple[str, str, str, str]:
    price, size, side, us = content
    return decimal_text(price), decimal_text(size), side, moment(utc(us))
