"""What bronze says: which ids came in its messages, and which the exchange named as the last.

The bodies are read with SQL of the audit's own, some megabytes at a time: a page of REST is as large as a thousand
messages of the feed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.completeness.audit.files import DataFile
from cryptopulse.completeness.audit.ids import BIT, by_product, of_masks
from cryptopulse.completeness.audit.intervals import Intervals
from cryptopulse.completeness.audit.progress import Progress
from cryptopulse.completeness.audit.report import micros, utc
from cryptopulse.completeness.audit.scope import Scope
from cryptopulse.completeness.audit.snapshot import BRONZE, QUARANTINE, Snapshot

_NONE = Intervals.of()
_MASKS_MAX = 500_000  # rows of masks that wait to be put together, some 30 MB
_QUARANTINE_S = 3.0  # alerts come before it, and take a second at most
_SKEW = timedelta(hours=1)  # a message is received after its trade was made, but clocks differ
_COLUMNS = ["body", "partition", "offset", "partition_key", "source", "received_time", "bronze_ingestion_time"]
_REFUSED = pa.schema([("refused_partition", pa.int32()), ("refused_offset", pa.int64())])

_MEMBERS = "['$.type', '$.product_id', '$.trade_id', '$.last_trade_id']"
_BATCH = '{"channel": "VARCHAR", "events": [{"trades": [{"product_id": "VARCHAR", "trade_id": "VARCHAR"}]}]}'


@dataclass
class Received:
    """What came of one product."""

    any: Intervals = _NONE
    """Ids in any message, refused ones as well."""
    settled: Intervals = _NONE
    """Ids that silver must hold by now."""
    beyond: Intervals = _NONE
    """Ids in messages that silver may not have taken in yet."""
    waiting: Intervals = _NONE
    """Those of them that have been there for long."""
    heartbeat_id: int | None = None
    """The last trade id that the newest heartbeat names."""
    heartbeat_us: int = 0
    """When that heartbeat came, µs UTC."""


@dataclass
class Messages:
    """What bronze holds."""

    count: int = 0
    products: dict[str, Received] = field(default_factory=dict)


def received(
    snapshot: Snapshot, scope: Scope, progress: Progress, look: Callable[[pa.Table], None] = lambda _batch: None
) -> Messages:
    """By product what came in bronze's messages: since the audited time began, or of all time.

    `look` is shown every batch of messages on the way (body, partition, offset, partition_key, source, …).
    """
    reading = _Reading(snapshot, scope, progress, _refused(snapshot))
    for file in _since(snapshot.files(BRONZE), scope):
        if file.is_sound:
            for batch in snapshot.batches(BRONZE, file, _COLUMNS):
                look(batch)
                reading.take_in(batch)
    return reading.finish()


def refused_meanwhile(snapshot: Snapshot, scope: Scope, progress: Progress) -> dict[str, Intervals]:
    """By product the ids of messages that went into quarantine after the snapshot's version of it.

    Silver takes in a batch a moment before quarantine does, so a refused message can look like a lost one. Waits for
    that moment when a pipeline seems to be in the middle of it.
    """
    if progress.is_midway:
        time.sleep(_QUARANTINE_S)
    before, table = _refused(snapshot), snapshot.newest(QUARANTINE)
    if table is None:
        return {}
    snapshot.tables[QUARANTINE] = table
    known = set(zip(*before.to_pydict().values(), strict=True))
    news = [row for row in zip(*_refused(snapshot).to_pydict().values(), strict=True) if row not in known]
    if not news:
        return {}
    offsets = [offset for _, offset in news]
    only = pa.Table.from_pylist([dict(zip(_REFUSED.names, row, strict=True)) for row in news], schema=_REFUSED)
    reading = _Reading(snapshot, scope, progress, only)
    for file in snapshot.files(BRONZE):
        if file.is_sound and file.may_hold("offset", min(offsets), max(offsets)):
            for batch in snapshot.batches(BRONZE, file, _COLUMNS):
                reading.take_in(batch.filter(pc.is_in(batch["offset"], pa.array(offsets))))
    return {symbol: of.any - of.settled - of.beyond for symbol, of in reading.finish().products.items()}


def page_ids(body: bytes) -> list[int] | None:
    """The trade ids of a page of REST, in its order; None when it is none."""
    try:
        return [int(trade.trade_id) for trade in _page.decode(body)]
    except (TypeError, ValueError):  # msgspec's errors are ValueErrors
        return None


class _PageTrade(msgspec.Struct):
    trade_id: Any


_page = msgspec.json.Decoder(list[_PageTrade])


class _Reading:
    """Puts together what batches of messages say."""

    def __init__(self, snapshot: Snapshot, scope: Scope, progress: Progress, refused: pa.Table) -> None:
        self._snapshot = snapshot
        self._refused = refused
        self._single = _single_sql(scope, progress)
        self._batches = _batches_sql(scope, progress)
        self._pages = _pages_sql(scope, progress)
        self._waiting: list[pa.Table] = []
        self._found = Messages()

    def take_in(self, messages: pa.Table) -> None:
        self._found.count += messages.num_rows
        is_page = pc.equal(messages["source"], "rest")
        pages = messages.filter(is_page)
        if pages.num_rows:
            messages = messages.filter(pc.invert(is_page))
            self._ask(self._pages, _exploded(pages))
        if messages.num_rows and self._ask(self._single, messages):
            self._ask(self._batches, messages)

    def finish(self) -> Messages:
        self._put_together()
        return self._found

    def _ask(self, sql: str, messages: pa.Table) -> bool:
        """Keeps the masks that `sql` makes of messages; whether some of those are of no product."""
        masks = self._snapshot.rows(sql, beside={"messages": messages, "refused": self._refused})
        self._waiting.append(masks.filter(pc.is_valid(masks["symbol"])))
        if sum(waiting.num_rows for waiting in self._waiting) > _MASKS_MAX:
            self._put_together()
        return bool(masks["symbol"].null_count)

    def _put_together(self) -> None:
        if not self._waiting:
            return
        masks = self._snapshot.rows(_MERGED, beside={"masks": pa.concat_tables(self._waiting)})
        self._waiting = []
        for symbol, rows in by_product(masks):
            product = self._found.products.setdefault(symbol, Received())
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
        bit_or(waiting) AS waiting, max(heartbeat) AS heartbeat
    FROM masks
    GROUP BY symbol, chunk
    ORDER BY symbol, chunk"""


def _since(files: Sequence[DataFile], scope: Scope) -> list[DataFile]:
    """The files that can hold messages about the audited time. A trade that was fetched later came later."""
    if scope.from_us is None:
        return list(files)
    start_us = micros(utc(scope.from_us) - _SKEW)
    return [file for file in files if not 0 <= file.latest_us("received_time") < start_us]


def _refused(snapshot: Snapshot) -> pa.Table:
    """(partition, offset) of the messages in quarantine."""
    if QUARANTINE not in snapshot.tables:
        return _REFUSED.empty_table()
    sql = 'SELECT "partition" AS refused_partition, "offset" AS refused_offset FROM quarantined_messages'
    return snapshot.rows(sql, {QUARANTINE: snapshot.files(QUARANTINE)}).cast(_REFUSED)


def _exploded(pages: pa.Table) -> pa.Table:
    """A row for each trade of some pages, with the place of its page."""
    found: Iterable[list[int] | None] = (page_ids(body) for body in pages["body"].to_pylist())
    ids = [[] if numbers is None else numbers for numbers in found]
    of_page = np.repeat(np.arange(len(ids)), [len(numbers) for numbers in ids])
    rows = pages.drop_columns(["body"]).take(pa.array(of_page))
    return rows.append_column("trade_id", pa.array([one for numbers in ids for one in numbers], pa.int64()))


def _messages_sql(progress: Progress, more: str) -> str:
    """Each message with what is known of it, and `more` columns."""
    return f"""
        SELECT
            m."partition" AS p, m."offset" AS o, m.partition_key, epoch_us(m.received_time) AS received_us,
            epoch_us(m.bronze_ingestion_time) AS ingested_us, r.refused_offset IS NOT NULL AS is_refused, {more},
            {progress.is_beyond()} AS is_beyond, {progress.is_waiting()} AS is_waiting
        FROM messages AS m
        LEFT JOIN refused AS r ON r.refused_partition = m."partition" AND r.refused_offset = m."offset\""""


def _grouped_sql(trades: str, scope: Scope, heartbeat: str = "NULL::STRUCT(us BIGINT, id BIGINT)") -> str:
    """Masks of the ids in `trades` (symbol, trade_id, is_refused, is_beyond, is_waiting)."""
    return f"""
        SELECT
            symbol, trade_id >> 6 AS chunk, bit_or(bit) AS "any",
            bit_or(bit) FILTER (NOT is_refused AND NOT is_beyond) AS settled,
            bit_or(bit) FILTER (NOT is_refused AND is_beyond) AS beyond,
            bit_or(bit) FILTER (NOT is_refused AND is_beyond AND is_waiting) AS waiting,
            {heartbeat} AS heartbeat
        FROM (SELECT *, {BIT.format("trade_id")} AS bit FROM ({trades}))
        WHERE symbol IS NULL OR {scope.has_product()}
        GROUP BY symbol, chunk"""


def _single_sql(scope: Scope, progress: Progress) -> str:
    """Messages of the Exchange feed: a trade or a heartbeat each. Those without a type are rows without a symbol."""
    # `unnest` keeps DuckDB from reading a body again for each of its members.
    members = f"unnest([try(json_extract_string(try(decode(m.body)), {_MEMBERS}))]) AS f"
    trades = f"""
        SELECT
            CASE WHEN f[1] IS NOT NULL THEN f[2] END AS symbol,
            CASE WHEN f[1] <> 'heartbeat' THEN try_cast(f[3] AS BIGINT) END AS trade_id,
            CASE WHEN f[1] = 'heartbeat' THEN try_cast(f[4] AS BIGINT) END AS named_id,
            received_us, is_refused, is_beyond, is_waiting
        FROM ({_messages_sql(progress, members)})
        WHERE f IS NULL OR f[1] IS NULL OR f[1] IN ('match', 'last_match', 'heartbeat')"""
    # In 2020 every heartbeat named 0.
    counts = f"named_id > 0 AND received_us <= {progress.heartbeats_until_us}"
    # Of several that came at once, as in a recording without times, the one that names the latest trade.
    beat = f"max({{'us': received_us, 'id': named_id}}) FILTER ({counts})"
    return _grouped_sql(trades, scope, beat)


def _batches_sql(scope: Scope, progress: Progress) -> str:
    """Messages of the Advanced Trade feed, with the trades of some events each."""
    batch = f"unnest([try(from_json(try(decode(m.body)), '{_BATCH}'))]) AS b"
    return _grouped_sql(
        f"""
        SELECT t.product_id AS symbol, try_cast(t.trade_id AS BIGINT) AS trade_id, is_refused, is_beyond, is_waiting
        FROM (
            SELECT
                is_refused, is_beyond, is_waiting,
                unnest(flatten(list_transform(b.events, lambda e: coalesce(e.trades, [])))) AS t
            FROM ({_messages_sql(progress, batch)})
            WHERE b.channel = 'market_trades'
        )
        WHERE t.product_id IS NOT NULL""",
        scope,
    )


def _pages_sql(scope: Scope, progress: Progress) -> str:
    """Trades of pages of the REST interface; the product is the message's."""
    return _grouped_sql(
        "SELECT partition_key AS symbol, trade_id, is_refused, is_beyond, is_waiting "
        f"FROM ({_messages_sql(progress, 'm.trade_id')})",
        scope,
    )
