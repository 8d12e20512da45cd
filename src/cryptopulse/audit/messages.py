"""Reads bronze: which ids are in its messages, with what content, and which id the exchange named as the last.

The bodies are read with the audit's own SQL, some megabytes at a time: a page of REST is as large as a thousand
messages of the feed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.audit.id_set import IdSet
from cryptopulse.audit.ids import BIT, CONTENT_HASH, by_product, of_masks
from cryptopulse.audit.lines import columns_sql, is_plain, line_trades, trade_sql
from cryptopulse.audit.progress import Progress
from cryptopulse.audit.report import micros, utc
from cryptopulse.audit.scope import AuditScope
from cryptopulse.audit.snapshot import BRONZE, QUARANTINE, LakeSnapshot
from cryptopulse.audit.venues import is_venues, venue_rows

_NONE = IdSet.of()
_MASKS_MAX = 500_000  # rows of masks that wait to be merged, some 30 MB
_QUARANTINE_S = 3.0  # the step of alerts runs before quarantine's, and takes a second at most
_SKEW = timedelta(hours=1)  # a message is received after its trade, but clocks differ
_COLUMNS = ["body", "partition", "offset", "partition_key", "source", "received_time", "bronze_ingestion_time"]
CONFLICT = "trade_id is held with another price, size, side or time"
_KEPT = pa.schema([("kept_partition", pa.int32()), ("kept_offset", pa.int64()), ("is_refused", pa.bool_())])
NONE_KEPT = _KEPT.empty_table()
"""The result of `kept_messages` for an empty quarantine."""

_CONTENT = ("price", "size", "side", "time")
_NAMES = ("type", "product_id", "trade_id", "last_trade_id", *_CONTENT)
_MEMBERS = [f"$.{name}" for name in _NAMES]
_TRADE = ", ".join(f'"{name}": "VARCHAR"' for name in ("product_id", "trade_id", *_CONTENT))
_BATCH = f'{{"channel": "VARCHAR", "events": [{{"trades": [{{{_TRADE}}}]}}]}}'


@dataclass
class ReceivedIds:
    """The ids of one product in messages."""

    any: IdSet = _NONE
    """Ids in any message, even a refused one."""
    settled: IdSet = _NONE
    """Ids that silver must hold by now."""
    beyond: IdSet = _NONE
    """Ids in messages that silver may not have consumed yet."""
    waiting: IdSet = _NONE
    """The part of `beyond` that is older than PATIENCE_US."""
    heartbeat_id: int | None = None
    """The last trade id that the newest heartbeat names."""
    heartbeat_us: int = 0
    """Receive time of that heartbeat, µs UTC."""


@dataclass
class BronzeMessages:
    """Number of bronze's messages, and the ids in them by product."""

    count: int = 0
    products: dict[str, ReceivedIds] = field(default_factory=dict)


def received(
    snapshot: LakeSnapshot,
    scope: AuditScope,
    progress: Progress,
    on_batch: Callable[[pa.Table], None],
    on_masks: Callable[[pa.Table], None],
) -> BronzeMessages:
    """Reads bronze's messages: since the start of the audited time, or of all time.

    `on_batch` gets every batch of messages (body, partition, offset, partition_key, source, …). `on_masks` gets rows
    per 64 ids: `symbol`, `chunk`, `any` (mask of the ids), `mark` (hash of their contents), `versions` (number of
    distinct contents), `first_offset`, `last_offset`. Several rows may be about the same chunk.
    """
    reading = _Reading(snapshot, scope, progress, kept_messages(snapshot), on_masks)
    for batch in messages_since(snapshot, scope):
        on_batch(batch)
        reading.add(batch)
    return reading.finish()


def messages_since(
    snapshot: LakeSnapshot, scope: AuditScope, offsets: tuple[int, int] | None = None
) -> Iterator[pa.Table]:
    """Bronze's messages, some megabytes at a time, from the files with messages received since the audited time began.

    Trades that were fetched later were received later. `offsets`: only files with offsets from the first to the last.
    """
    start_us = None if scope.from_us is None else micros(utc(scope.from_us) - _SKEW)
    for file in snapshot.files(BRONZE):
        if start_us is not None and 0 <= file.latest_us("received_time") < start_us:
            continue
        if file.is_sound and (offsets is None or file.may_hold("offset", *offsets)):
            yield from snapshot.batches(BRONZE, file, _COLUMNS)


def refused_meanwhile(snapshot: LakeSnapshot, scope: AuditScope, progress: Progress) -> dict[str, IdSet]:
    """Product → ids of messages that were quarantined after the snapshot was taken.

    Silver consumes a batch a moment before quarantine does, so a refused message can look like a lost one. Waits that
    moment if a pipeline seems to be between the two.
    """
    if progress.is_midway:
        time.sleep(_QUARANTINE_S)
    before, table = kept_messages(snapshot), snapshot.newest(QUARANTINE)
    if table is None:
        return {}
    snapshot.tables[QUARANTINE] = table
    known = set(zip(*before.to_pydict().values(), strict=True))
    news = [row for row in zip(*kept_messages(snapshot).to_pydict().values(), strict=True) if row not in known]
    if not news:
        return {}
    offsets = [offset for _, offset, _ in news]
    only = pa.Table.from_pylist([dict(zip(_KEPT.names, row, strict=True)) for row in news], schema=_KEPT)
    reading = _Reading(snapshot, scope, progress, only)
    for file in snapshot.files(BRONZE):
        if file.is_sound and file.may_hold("offset", min(offsets), max(offsets)):
            for batch in snapshot.batches(BRONZE, file, _COLUMNS):
                reading.add(batch.filter(pc.is_in(batch["offset"], pa.array(offsets))))
    return {symbol: of.any - of.settled - of.beyond for symbol, of in reading.finish().products.items()}


def page_ids(body: bytes) -> list[int] | None:
    """The trade ids of a page of REST, in its order; None if `body` is not a page."""
    try:
        return [int(trade.trade_id) for trade in _page.decode(body)]
    except (TypeError, ValueError):  # msgspec's errors are ValueErrors
        return None


_ID = "CASE WHEN regexp_full_match({0}, '[0-9]+') THEN try_cast({0} AS BIGINT) END"
"""SQL: a string as an id. A cast alone would round 1.5 to 2, an id that never came."""


class _PageRow(msgspec.Struct):
    trade_id: Any
    price: Any = None
    size: Any = None
    side: Any = None
    time: Any = None


_page = msgspec.json.Decoder(list[_PageRow], float_hook=str)
_page_trade = msgspec.json.Decoder(_PageRow, float_hook=str)
_rows = msgspec.json.Decoder(list[msgspec.Raw])


class TradeReader:
    """Runs a statement over the trades in messages of any kind."""

    def __init__(
        self, snapshot: LakeSnapshot, progress: Progress, kept: pa.Table, statement: Callable[[str], str]
    ) -> None:
        """`kept`: see `kept_messages`; `statement` makes the SQL from a subquery.

        The subquery has a row for each trade and heartbeat: symbol, trade_id, named_id (in a heartbeat), mark (hash of
        the content), received_us, p and o (partition and offset), is_refused, is_kept (in quarantine), is_beyond,
        is_waiting. The statement must pass rows without a symbol: messages that must be read in another way.
        """
        self._snapshot = snapshot
        self._kept = kept

        # Messages of the Exchange feed: one trade or heartbeat each. Messages without a type give rows without a
        # symbol. `unnest` keeps DuckDB from parsing a body again for each of its members.
        members = f"unnest([try(json_extract_string(try(decode(m.body)), {_MEMBERS}))]) AS f"
        single = f"""
            SELECT
                CASE WHEN f[1] IS NOT NULL THEN f[2] END AS symbol,
                CASE WHEN f[1] <> 'heartbeat' THEN {_ID.format("f[3]")} END AS trade_id,
                CASE WHEN f[1] = 'heartbeat' THEN {_ID.format("f[4]")} END AS named_id,
                f[5] AS price, f[6] AS size, f[7] AS side, f[8] AS time, {_PLACE}
            FROM ({_messages_sql(progress, members)})
            WHERE f IS NULL OR f[1] IS NULL OR f[1] IN ('match', 'last_match', 'heartbeat')"""

        # Messages of the Advanced Trade feed: each has events with trades.
        batch = f"unnest([try(from_json(try(decode(m.body)), '{_BATCH}'))]) AS b"
        batches = f"""
            SELECT
                t.product_id AS symbol, {_ID.format("t.trade_id")} AS trade_id, NULL::BIGINT AS named_id,
                t.price AS price, t.size AS size, t.side AS side, t.time AS time, {_PLACE}
            FROM (
                SELECT {_PLACE}, unnest(flatten(list_transform(b.events, lambda e: coalesce(e.trades, [])))) AS t
                FROM ({_messages_sql(progress, batch)})
                WHERE b.channel = 'market_trades'
            )
            WHERE t.product_id IS NOT NULL"""

        # Pages of the REST interface, a row for each trade; the product is the message's.
        pages = f"""
            SELECT
                partition_key AS symbol, trade_id, NULL::BIGINT AS named_id, price, size, side, time, {_PLACE}
            FROM ({_messages_sql(progress, "m.trade_id, m.price, m.size, m.side, m.time")})"""

        # Imported lines, a trade each: plain ones, and others that were read one by one, as other venues' messages are.
        column = trade_sql() | {"trade_id": _ID.format(trade_sql()["trade_id"])}
        named = ", ".join(f"{sql} AS {name}" for name, sql in column.items())
        plain = f"""
            SELECT {named}, NULL::BIGINT AS named_id, {_PLACE} FROM ({_messages_sql(progress, columns_sql())})"""
        read = ", ".join(f"m.{name}" for name in ("symbol", "trade_id", *_CONTENT))
        lines = f"""
            SELECT
                symbol, {_ID.format("trade_id")} AS trade_id, NULL::BIGINT AS named_id, price, size, side, time,
                {_PLACE}
            FROM ({_messages_sql(progress, read)})"""

        # The exchange names the maker's side, silver the taker's.
        is_buy, time = "lower(side) = 'sell'", "try_cast(time AS TIMESTAMP)"
        mark = CONTENT_HASH.format(price="price", size="size", is_buy=is_buy, time=time)
        self._single, self._batches, self._pages, self._plain, self._lines = (
            statement(f"SELECT symbol, trade_id, named_id, {mark} AS mark, {_PLACE} FROM ({trades})")
            for trades in (single, batches, pages, plain, lines)
        )

    def read(self, messages: pa.Table, beside: Mapping[str, pa.Table] | None = None) -> Iterator[pa.Table]:
        """The statement's rows for the trades in `messages`; `beside`: more tables for it."""
        beside = {**(beside or {}), "kept": self._kept}
        others = is_venues(messages)
        if pc.any(others).as_py():
            found = self._snapshot.rows(self._lines, beside={**beside, "messages": venue_rows(messages.filter(others))})
            yield found.filter(pc.is_valid(found["symbol"]))
            messages = messages.filter(pc.invert(others))
        is_page = pc.equal(messages["source"], "rest")
        pages = messages.filter(is_page)
        if pages.num_rows:
            messages = messages.filter(pc.invert(is_page))
            yield self._snapshot.rows(self._pages, beside={**beside, "messages": _page_rows(pages)})
        is_line = pc.equal(messages["source"], "import")
        if pc.any(is_line).as_py():
            imported, messages = messages.filter(is_line), messages.filter(pc.invert(is_line))
            plain = is_plain(imported)
            found = self._snapshot.rows(self._plain, beside={**beside, "messages": imported.filter(plain)})
            yield found.filter(pc.is_valid(found["symbol"]))
            if (others := imported.filter(pc.invert(plain))).num_rows:
                rows = line_trades(others)
                others = others.drop_columns(["body"])
                for name in rows.column_names:
                    others = others.append_column(name, rows[name])
                found = self._snapshot.rows(self._lines, beside={**beside, "messages": others})
                yield found.filter(pc.is_valid(found["symbol"]))
        if messages.num_rows == 0:
            return
        beside["messages"] = messages
        found = self._snapshot.rows(self._single, beside=beside)
        is_known = pc.is_valid(found["symbol"])
        yield found.filter(is_known)
        if pc.any(pc.invert(is_known)).as_py():
            found = self._snapshot.rows(self._batches, beside=beside)
            yield found.filter(pc.is_valid(found["symbol"]))


class _Reading:
    """Combines the ids and heartbeats of batches of messages."""

    def __init__(
        self,
        snapshot: LakeSnapshot,
        scope: AuditScope,
        progress: Progress,
        kept: pa.Table,
        on_masks: Callable[[pa.Table], None] = lambda _masks: None,
    ) -> None:
        self._snapshot = snapshot
        self._on_masks = on_masks
        self._reader = TradeReader(snapshot, progress, kept, lambda trades: _masks_sql(trades, scope, progress))
        self._waiting: list[pa.Table] = []
        self._found = BronzeMessages()

    def add(self, messages: pa.Table) -> None:
        self._found.count += messages.num_rows
        self._waiting += self._reader.read(messages)
        if sum(waiting.num_rows for waiting in self._waiting) > _MASKS_MAX:
            self._merge()

    def finish(self) -> BronzeMessages:
        self._merge()
        return self._found

    def _merge(self) -> None:
        if not self._waiting:
            return
        masks = self._snapshot.rows(_MERGED, beside={"masks": pa.concat_tables(self._waiting)})
        self._waiting = []
        self._on_masks(masks)
        for symbol, rows in by_product(masks):
            product = self._found.products.setdefault(symbol, ReceivedIds())
            product.any |= of_masks(rows, "any")
            product.settled |= of_masks(rows, "settled")
            product.beyond |= of_masks(rows, "beyond")
            product.waiting |= of_masks(rows, "waiting")
            beats = [(beat["us"], beat["id"]) for beat in rows["heartbeat"].to_pylist() if beat is not None]
            newest = max([*beats, (product.heartbeat_us, product.heartbeat_id or -1)])
            if newest in beats:
                product.heartbeat_us, product.heartbeat_id = newest


_MERGED = """
    SELECT
        symbol, chunk, bit_or("any") AS "any", bit_or(settled) AS settled, bit_or(beyond) AS beyond,
        bit_or(waiting) AS waiting, max(heartbeat) AS heartbeat, bit_xor(mark) AS mark,
        sum(versions)::BIGINT AS versions, min(first_offset) AS first_offset, max(last_offset) AS last_offset
    FROM masks
    GROUP BY symbol, chunk
    ORDER BY symbol, chunk"""


def kept_messages(snapshot: LakeSnapshot) -> pa.Table:
    """(kept_partition, kept_offset, is_refused) of the messages in quarantine.

    A message that is there only for a conflict is not refused: silver must hold all its trades.
    """
    if QUARANTINE not in snapshot.tables:
        return NONE_KEPT
    sql = (
        'SELECT "partition" AS kept_partition, "offset" AS kept_offset, '
        f"reason IS DISTINCT FROM '{CONFLICT}' AS is_refused FROM quarantined_messages"
    )
    return snapshot.rows(sql, {QUARANTINE: snapshot.files(QUARANTINE)}).cast(_KEPT)


def _page_rows(pages: pa.Table) -> pa.Table:
    """A row for each trade of the pages, with the columns of its page. Rows with an unreadable id are left out."""
    found: list[list[_PageRow]] = []
    for body in pages["body"].to_pylist():
        trades = []
        with suppress(ValueError, RecursionError):
            for row in _rows.decode(body):
                with suppress(TypeError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
                    trade = _page_trade.decode(row)
                    text = str(trade.trade_id)
                    if text.isascii() and text.isdigit() and 0 < int(text) < 2**63:
                        trades.append(trade)
        found.append(trades)
    of_page = np.repeat(np.arange(len(found)), [len(trades) for trades in found])
    rows = pages.drop_columns(["body"]).take(pa.array(of_page))
    ids = pa.array([int(trade.trade_id) for trades in found for trade in trades], pa.int64())
    rows = rows.append_column("trade_id", ids)
    for name in _CONTENT:
        values = [getattr(trade, name) for trades in found for trade in trades]
        texts = [str(value) if isinstance(value, str | int) else None for value in values]
        rows = rows.append_column(name, pa.array(texts, pa.string()))
    return rows


def _messages_sql(progress: Progress, more: str) -> str:
    """SQL: each message with its state in quarantine and silver, and `more` columns."""
    return f"""
        SELECT
            m."partition" AS p, m."offset" AS o, m.partition_key, epoch_us(m.received_time) AS received_us,
            epoch_us(m.bronze_ingestion_time) AS ingested_us, coalesce(k.is_refused, false) AS is_refused,
            k.kept_offset IS NOT NULL AS is_kept, {more},
            {progress.is_beyond()} AS is_beyond, {progress.is_waiting()} AS is_waiting
        FROM messages AS m
        LEFT JOIN kept AS k ON k.kept_partition = m."partition" AND k.kept_offset = m."offset\""""


_PLACE = "received_us, p, o, is_refused, is_kept, is_beyond, is_waiting"


def _masks_sql(trades: str, scope: AuditScope, progress: Progress) -> str:
    """SQL: masks of the ids in `trades`, hashes of their contents, and the newest heartbeat."""
    # In 2020 every heartbeat named 0. If several came at once, as in a recording without times, the highest id counts.
    counts = f"named_id > 0 AND received_us <= {progress.heartbeats_until_us}"
    # An equal copy of a trade, as a second connection brings it, does not count as another version.
    return f"""
        SELECT
            symbol, trade_id >> 6 AS chunk, bit_or(bit) AS "any",
            bit_or(bit) FILTER (NOT is_refused AND NOT is_beyond) AS settled,
            bit_or(bit) FILTER (NOT is_refused AND is_beyond) AS beyond,
            bit_or(bit) FILTER (NOT is_refused AND is_beyond AND is_waiting) AS waiting,
            max({{'us': received_us, 'id': named_id}}) FILTER ({counts}) AS heartbeat,
            bit_xor(DISTINCT mark) AS mark, count(DISTINCT mark) AS versions,
            min(o) AS first_offset, max(o) AS last_offset
        FROM (SELECT *, {BIT.format("trade_id")} AS bit FROM ({trades}))
        WHERE symbol IS NULL OR {scope.has_product()}
        GROUP BY symbol, chunk"""
