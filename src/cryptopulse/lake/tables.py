"""The contracts of the tables. Their names, columns and keys are declared only here.

A contract says what a row is, and does not depend on the engine. Types are Spark SQL's, so that the same contract
gives the DDL of Unity Catalog, a Delta schema and an Arrow schema. To add a column: add it here and where the table's
rows are made. To add a table: add it here, to TABLES in the order of derivation, and give it a step.
docs/architecture.md says where.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from importlib import resources
from typing import Any

import pyarrow as pa

from cryptopulse.lake.alerts import KINDS, THRESHOLDS
from cryptopulse.lake.products import PRODUCT_ID_MAX


@dataclass(frozen=True)
class Domain:
    """The values that a column may have. A message with another one is quarantined.

    Every derived table can hold all values of the domain.
    """

    text: str
    """Description of the values."""
    lowest: Any = None
    """Included."""
    highest: Any = None
    """Included."""


@dataclass(frozen=True)
class Column:
    """One column; `type` is a Spark SQL type."""

    name: str
    type: str
    comment: str
    nullable: bool = False
    domain: Domain | None = None
    """None: any value of the type."""

    @property
    def arrow_field(self) -> pa.Field:
        """The same as an Arrow field."""
        return pa.field(self.name, arrow_type(self.type), nullable=self.nullable)


@dataclass(frozen=True)
class Table:
    """One table's contract."""

    schema: str
    name: str
    comment: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    partition_by: tuple[str, ...] = ()
    stats: tuple[str, ...] = ()
    """Columns with file statistics. Never decimals: delta-rs keeps those as float64, and filters lose rows."""
    time: str | None = None
    """Column with the time of a row's event; windows are cut by it."""
    window_seconds: int = 0
    """Length of a window, which starts at a multiple of it (UTC). Changed windows are replaced. 0: no windows."""

    @property
    def qualified(self) -> str:
        """`schema.name`."""
        return f"{self.schema}.{self.name}"

    def domain(self, column: str) -> Domain:
        """The domain of `column`. Raises KeyError when it has none."""
        return {each.name: each.domain for each in self.columns if each.domain is not None}[column]

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """The columns as an Arrow schema."""
        return pa.schema([column.arrow_field for column in self.columns])

    @cached_property
    def empty(self) -> pa.Table:
        """An Arrow table without rows. Cached: a step without new rows needs it several times."""
        return self.arrow_schema.empty_table()

    @property
    def properties(self) -> dict[str, str]:
        """Delta table properties that every engine sets."""
        return {"delta.dataSkippingStatsColumns": ",".join(self.stats)}


def read_sql(name: str) -> str:
    """The text of `lake/sql/<name>.sql`."""
    return resources.files(__package__).joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


_SIMPLE_TYPES = {
    "BIGINT": pa.int64(),
    "INT": pa.int32(),
    "STRING": pa.string(),
    "BINARY": pa.binary(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
}


def arrow_type(sql_type: str) -> pa.DataType:
    """The Arrow type of a Spark SQL type. Raises ValueError for one that no table uses."""
    if decimal := re.fullmatch(r"DECIMAL\((\d+),(\d+)\)", sql_type):
        return pa.decimal128(int(decimal[1]), int(decimal[2]))
    if sql_type not in _SIMPLE_TYPES:
        raise ValueError(f"Unknown column type {sql_type}")
    return _SIMPLE_TYPES[sql_type]


# Coinbase's finest tick is 1e-12 and its largest sizes are near 1e12 units. Both types have scale 12, so price times
# size is exact in 24 decimals, and sums have 26 digits before the point.
PRICE = "DECIMAL(24,12)"
SIZE = "DECIMAL(28,12)"
SUM = "DECIMAL(38,12)"

# Half of the range of 64 bits, as ids are added to, subtracted and counted.
_TRADE_ID = Domain("1 to 2^62", 1, 2**62)
_SYMBOL = Domain(f"product ids of two or three parts, or SYMBOL@venue; at most {PRODUCT_ID_MAX} letters")
_PRICE = Domain("over 0, under 1e12", Decimal("1e-12"), Decimal("999999999999.999999999999"))
_SIZE = Domain(
    "over 0, under 1e16; price × trade_size under 1e13", Decimal("1e-12"), Decimal("9999999999999999.999999999999")
)
# From 1970, as windows are cut by a remainder, which needs times that are not negative; to a year that every reader can
# hold (nanoseconds in 64 bits end in 2262).
_EVENT_TIME = Domain(
    "1970-01-01 to the end of 2199",
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2199, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
)
_SIDE = Domain("BUY or SELL")
TRADE_VALUE_END = Decimal("1e13")
"""Price × size must be less: the exact product has 24 decimals of 38 digits."""

LOAD_TIMESTAMP = "load_timestamp"
"""Column that grows with every commit: rows above the last value consumed are new for a derived table."""
_LOADED = Column(LOAD_TIMESTAMP, "TIMESTAMP", "When the commit that wrote this row was cut (UTC); grows with each.")

BRONZE = Table(
    schema="bronze",
    name="coinbase_raw_trades",
    comment="One raw message of the feed, as received.",
    columns=(
        Column("body", "BINARY", "The message exactly as received; of an import a line as it is, below its layout."),
        Column("partition", "INT", "Partition of the log."),
        Column("offset", "BIGINT", "Place in the partition; dense."),
        Column(
            "partition_key",
            "STRING",
            "Product id, or empty for a message of none or several; with @venue for another venue than Coinbase.",
        ),
        Column("enqueued_time", "TIMESTAMP", "When the log took the message (UTC)."),
        Column("received_time", "TIMESTAMP", "When the message came off the socket, or was read from a file (UTC)."),
        Column("source", "STRING", "websocket, rest or import."),
        Column("bronze_ingestion_time", "TIMESTAMP", "When the commit that wrote this row was cut (UTC)."),
        Column("received_date", "DATE", "UTC day of received_time; partitions the table."),
    ),
    key=("partition", "offset"),
    partition_by=("received_date",),
    stats=("partition", "offset", "received_time"),
)

SILVER = Table(
    schema="silver",
    name="fact_crypto_trades",
    comment="One trade, once.",
    columns=(
        Column("trade_id", "BIGINT", "The venue's id: dense and in order within a product.", domain=_TRADE_ID),
        Column("symbol", "STRING", "Product id, such as BTC-USD, or of another venue BTC/USD@kraken.", domain=_SYMBOL),
        Column("price", PRICE, "Price in the quote currency.", domain=_PRICE),
        Column("trade_size", SIZE, "Quantity in the base currency.", domain=_SIZE),
        Column("side", "STRING", "The taker's side: BUY (up-tick) or SELL.", domain=_SIDE),
        Column("event_time", "TIMESTAMP", "When the exchange matched it (UTC).", domain=_EVENT_TIME),
        Column("ingestion_time", "TIMESTAMP", "When its message came off the socket, or was read from a file (UTC)."),
        _LOADED,
        Column("source", "STRING", "websocket, rest or import."),
        Column("event_date", "DATE", "UTC day of event_time; partitions the table."),
    ),
    key=("symbol", "trade_id"),
    partition_by=("event_date",),
    time="event_time",
    stats=("symbol", "trade_id", "event_time", "load_timestamp"),
)

CONFLICT = "trade_id is held with another price, size, side or time"
"""Reason of a message that contradicts the first copy of a trade."""

QUARANTINE = Table(
    schema="silver",
    name="quarantined_messages",
    comment="One message that can't be a trade and isn't a known control message, or that tells a held trade with "
    "another price, size, side or time than the first copy, which stays; with the reason.",
    columns=(
        Column("partition", "INT", "Partition of the log."),
        Column("offset", "BIGINT", "Place in the partition."),
        Column(
            "partition_key",
            "STRING",
            "Product id that the feed saw, or empty; with @venue for another venue's message.",
        ),
        Column("reason", "STRING", "What is wrong with it."),
        Column("body", "BINARY", "The message exactly as received."),
        Column("received_time", "TIMESTAMP", "When the message came off the socket, or was read from a file (UTC)."),
        Column("source", "STRING", "websocket, rest or import."),
        _LOADED,
        Column("received_date", "DATE", "UTC day of received_time; partitions the table."),
    ),
    key=("partition", "offset"),
    partition_by=("received_date",),
    stats=("partition", "offset", "received_time", "load_timestamp"),
)

COVERAGE = Table(
    schema="silver",
    name="trade_id_coverage",
    comment="One closed interval of trade ids that silver holds; a gap between two intervals is a hole.",
    columns=(
        Column("symbol", "STRING", "Product id."),
        Column("first_trade_id", "BIGINT", "First id of the interval."),
        Column("last_trade_id", "BIGINT", "Last id of the interval, included."),
        _LOADED,
    ),
    key=("symbol", "first_trade_id"),
    stats=("symbol", "first_trade_id", "last_trade_id"),
)

ABSENT = Table(
    schema="silver",
    name="absent_trade_ids",
    comment="One closed interval of trade ids that the exchange itself does not have, and the page that proves it.",
    columns=(
        Column("symbol", "STRING", "Product id."),
        Column("first_trade_id", "BIGINT", "First absent id; the page holds the trade before it."),
        Column("last_trade_id", "BIGINT", "Last absent id, included; the page holds the trade after it."),
        Column("partition", "INT", "Proof: the page's partition of the log."),
        Column("offset", "BIGINT", "Proof: the page's place in the partition."),
        Column("received_time", "TIMESTAMP", "When the page was received (UTC)."),
        _LOADED,
        Column("received_date", "DATE", "UTC day of received_time; partitions the table."),
    ),
    key=("partition", "offset", "first_trade_id"),
    partition_by=("received_date",),
    stats=("symbol", "first_trade_id", "last_trade_id", "partition", "offset", "load_timestamp"),
)

BARS = Table(
    schema="gold",
    name="dm_trade_bars",
    comment="One product and minute.",
    columns=(
        Column("symbol", "STRING", "Product id."),
        Column("window_start", "TIMESTAMP", "Start of the minute (UTC), included."),
        Column("open", PRICE, "Price of the trade with the lowest id."),
        Column("high", PRICE, "Highest price."),
        Column("low", PRICE, "Lowest price."),
        Column("close", PRICE, "Price of the trade with the highest id."),
        Column("volume", SUM, "Base quantity traded."),
        Column("notional", SUM, "Quote amount traded; each trade's rounded half up to 12 decimals."),
        Column("vwap", "DOUBLE", "notional / volume."),
        Column("buy_volume", SUM, "Base quantity of trades with a buying taker."),
        Column("sell_volume", SUM, "Base quantity of trades with a selling taker."),
        Column("trade_count", "BIGINT", "Number of trades."),
        Column("buy_count", "BIGINT", "Number of trades with a buying taker."),
        Column("rest_count", "BIGINT", "Number of trades that came over REST: healed or backfilled."),
        Column("price_sum", SUM, "Sum of the trades' prices, for exact averages over longer windows."),
        Column("first_trade_id", "BIGINT", "Lowest id in the minute."),
        Column("last_trade_id", "BIGINT", "Highest id in the minute."),
        Column("is_complete", "BOOLEAN", "True when every id from the one before to the one after is held."),
        _LOADED,
        Column("window_date", "DATE", "UTC day of window_start; partitions the table."),
    ),
    key=("symbol", "window_start"),
    partition_by=("window_date",),
    stats=("symbol", "window_start", "load_timestamp", "first_trade_id", "last_trade_id"),
    time="window_start",
    window_seconds=60,
)

STATS = Table(
    schema="gold",
    name="dm_crypto_price_stats",
    comment="One product and 5-minute window.",
    columns=(
        Column("symbol", "STRING", "Product id."),
        Column("window_start", "TIMESTAMP", "Start of the window (UTC), included."),
        Column("window_end", "TIMESTAMP", "End of the window (UTC), not included."),
        Column("avg_price", "DOUBLE", "Mean of the trades' prices, each trade counting once."),
        Column("max_price", PRICE, "Highest price."),
        Column("min_price", PRICE, "Lowest price."),
        Column("total_trade_volume", SUM, "Base quantity traded."),
        Column("trade_count", "BIGINT", "Number of trades."),
        Column("vwap", "DOUBLE", "Volume-weighted average price."),
        Column("open_price", PRICE, "First price by trade id."),
        Column("close_price", PRICE, "Last price by trade id."),
        Column("volatility", "DOUBLE", "Realised volatility: root of the summed squared log returns of its minutes."),
        _LOADED,
        Column("window_date", "DATE", "UTC day of window_start; partitions the table."),
    ),
    key=("symbol", "window_start"),
    partition_by=("window_date",),
    stats=("symbol", "window_start", "load_timestamp"),
    time="window_start",
    window_seconds=300,
)

COMPLETENESS = Table(
    schema="gold",
    name="dm_completeness",
    comment="One product and hour: which trade ids it answers for, how many are held, and what is known of the others.",
    columns=(
        Column("symbol", "STRING", "Product id."),
        Column("window_start", "TIMESTAMP", "Start of the hour (UTC), included."),
        Column("window_end", "TIMESTAMP", "End of the hour (UTC), not included."),
        Column(
            "first_trade_id",
            "BIGINT",
            "The id after the newest one held below; the lowest held where the record begins.",
        ),
        Column("last_trade_id", "BIGINT", "Highest id held in the hour."),
        Column("expected_ids", "BIGINT", "Number of ids from first to last."),
        Column("held_ids", "BIGINT", "How many of them silver holds."),
        Column("healed_ids", "BIGINT", "How many of the hour's trades came over REST."),
        Column(
            "absent_ids", "BIGINT", "How many are not held because the exchange does not have them, as a page proved."
        ),
        Column("missing_ids", "BIGINT", "How many are neither held nor proved absent."),
        Column("healed_from", "STRING", "Where healed trades came from: rest; NULL for none.", nullable=True),
        Column(
            "witness", "STRING", "What shows that ids were missing: trade, a later id; NULL for none.", nullable=True
        ),
        Column("is_complete", "BOOLEAN", "True when missing_ids is 0."),
        _LOADED,
        Column("window_date", "DATE", "UTC day of window_start; partitions the table."),
    ),
    key=("symbol", "window_start"),
    partition_by=("window_date",),
    stats=("symbol", "window_start", "load_timestamp", "first_trade_id", "absent_ids", "missing_ids"),
    time="window_start",
    window_seconds=3600,
)

ALERTS = Table(
    schema="gold",
    name="dm_market_alerts",
    comment="One episode: what a rule measures of a product's look-back reached the rule's threshold.",
    columns=(
        Column("alert_id", "STRING", "rule:type:symbol:trigger_trade_id; the same for the same trades."),
        Column("symbol", "STRING", "Product id."),
        Column("alert_type", "STRING", f"{', '.join(KINDS)}."),
        Column("rule", "STRING", "Name of the rule."),
        Column("threshold_pct", "DECIMAL(8,4)", "What opens an episode, in percent: a change, or as price_change_pct."),
        Column("lookback_s", "INT", "How far a trade looks back, in seconds."),
        Column("cool_down_s", "INT", "Quiet time that closes an episode, in seconds."),
        Column(
            "severity",
            "STRING",
            f"WARNING, HIGH from {THRESHOLDS['HIGH']} thresholds, CRITICAL from {THRESHOLDS['CRITICAL']}.",
        ),
        Column("state", "STRING", "OPEN or CLOSED."),
        Column(
            "price_change_pct",
            "DOUBLE",
            "Deepest change of the price, negative for a crash, in percent; of other types the highest measure: see "
            "docs/alerts.md.",
        ),
        Column("start_price", PRICE, "Price that the change is measured from; of other types: the look-back's first."),
        Column("end_price", PRICE, "Price at the deepest change, or at the peak."),
        Column("window_start", "TIMESTAMP", "Time of the trade with start_price (UTC)."),
        Column("window_end", "TIMESTAMP", "Time of the trade with end_price (UTC)."),
        Column("opened_at", "TIMESTAMP", "Time of the first trade over the threshold (UTC)."),
        Column("last_trigger_at", "TIMESTAMP", "Time of the last trade over the threshold (UTC)."),
        Column("start_trade_id", "BIGINT", "Evidence: the trade with start_price."),
        Column("trigger_trade_id", "BIGINT", "Evidence: the first trade over the threshold."),
        Column("end_trade_id", "BIGINT", "Evidence: the trade with end_price."),
        Column("last_trigger_trade_id", "BIGINT", "Evidence: the last trade over the threshold."),
        Column("detected_at", "TIMESTAMP", "When this episode was first seen here (UTC)."),
        _LOADED,
    ),
    key=("alert_id",),
    stats=("symbol", "opened_at", "last_trigger_at"),
)

TABLES: tuple[Table, ...] = (BRONZE, SILVER, QUARANTINE, COVERAGE, ABSENT, ALERTS, BARS, STATS, COMPLETENESS)
"""All tables, upstream before downstream."""
BY_NAME: dict[str, Table] = {table.qualified: table for table in TABLES}
"""Tables by `schema.name`."""


def app_id(table: Table, source: str) -> str:
    """The `txn` application id under which Delta keeps the position of `source` in `table`."""
    return f"cryptopulse:{table.qualified}:{source}"


def other_columns(table: Table, found: pa.Schema) -> str:
    """Text on how the columns `found` differ from the contract's; "" when they don't. Order does not count."""
    wanted = {field.name: field.type for field in table.arrow_schema}
    there = {field.name: field.type for field in found}
    parts = {
        "it lacks": [name for name in wanted if name not in there],
        "it has also": [name for name in there if name not in wanted],
        "of another type:": [name for name in wanted if name in there and there[name] != wanted[name]],
    }
    return "; ".join(f"{what} {', '.join(names)}" for what, names in parts.items() if names)
