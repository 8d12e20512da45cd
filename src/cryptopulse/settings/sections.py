"""The sections of the settings, each declared with its defaults and meanings."""

from __future__ import annotations

import json
import math
import os
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import NoDecode

from cryptopulse.lake.alerts import KINDS, AlertType, Kind
from cryptopulse.lake.location import OPTION_NAME
from cryptopulse.lake.products import as_written, invalid_product_id, is_symbol, venue_of

_WINDOWS_BESIDE: dict[Kind, int] = {"volume": 2, "silence": 3}
"""Kinds that compare with what is usual → how many windows they need beside those of the baseline."""
_DISLOCATED_MAX_S = 1200  # three times this is in memory: these rules read it all the time
_REACH_MAX_S = 7200  # trades of this time are read when a rule over a longer history has something to judge


def _split_products(value: str | list[str]) -> list[str]:
    """`"btc-usd, ETH-USD"`, a list, or a list as JSON → unique product ids in their order, Coinbase's in capitals."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("write products as a list of texts, or as one text separated by commas")
    return list(dict.fromkeys(as_written(item) for item in items if item.strip()))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FeedSettings(_Section):
    """Where raw messages come from."""

    dialect: Literal["exchange", "advanced", "both"] = "exchange"
    """Which of Coinbase's public feeds: `exchange` (matches and heartbeats), `advanced` (Advanced Trade), or
    `both` at once."""
    products: Annotated[list[str], NoDecode] = ["BTC-USD", "ETH-USD"]
    """Products to record, as a list or separated by commas; those of other venues with their venue, as in
    `BTC/USD@kraken`, `BTCUSDT@binance`, `BTC-USDT@okx`. Empty: all online products of `quote_currency` at Coinbase."""
    quote_currency: str = "USD"
    """With an empty `products`: record every online product quoted in this currency."""
    products_refresh_s: float = Field(default=3600.0, gt=0)
    """With an empty `products`: time between two requests for the list of products. New products are recorded, too."""
    connections: int = Field(default=1, ge=1, le=4)
    """Connections that record each product at the same time, on each feed. With two, losing one loses no trade. Each
    trade is then recorded twice, and counts once."""
    websocket_url: str | None = None
    """WebSocket address; with `both` that of the Exchange feed. Unset: the dialect's public address."""
    advanced_url: str | None = None
    """With `both`: WebSocket address of the Advanced Trade feed. Unset: its public address."""
    rest_url: str = "https://api.exchange.coinbase.com"
    """Address of the REST interface (products, trades, candles)."""
    rest_requests_per_second: float = Field(default=10.0, ge=1, le=10_000)
    """Most REST requests a second; the default is Coinbase's limit for an IP address. Lower it where other programs use
    the same address. A backfill makes at most seven tenths of them."""
    products_per_connection_max: int = Field(default=100, ge=1, le=1000)
    """More products than this are spread over several connections."""
    heartbeats_missed_max: int = Field(default=5, ge=2)
    """A connection is replaced after this many seconds without a trade or heartbeat. A single product that is silent
    for as long is subscribed again."""
    connect_timeout_s: float = Field(default=10.0, gt=0)
    """Give up a connection attempt after this time and try again."""
    backoff_max_s: float = Field(default=30.0, gt=0)
    """Longest pause between two connection attempts; pauses double from 0.25 s, with jitter."""
    buffer_max_mb: int = Field(default=64, ge=1)
    """Memory for messages that wait for a slow log. Beyond it messages are dropped and counted as lost, and
    the hole is recorded; the feed never blocks."""

    @field_validator("products", mode="before")
    @classmethod
    def _products(cls, value: str | list[str]) -> list[str]:
        return _split_products(value)

    @field_validator("products")
    @classmethod
    def _are_product_ids(cls, products: list[str]) -> list[str]:
        for product in products:
            if not is_symbol(product):
                raise ValueError(invalid_product_id(product).removesuffix("."))
            if (venue := venue_of(product)) not in ("", *RECORDED_VENUES):
                raise ValueError(f"{product}: {venue} can't be recorded; {', '.join(RECORDED_VENUES)} can")
        return products


RECORDED_VENUES = ("kraken", "binance", "okx")
"""The venues beside Coinbase that have a feed here, each with a section of settings."""


class VenueSettings(_Section):
    """Addresses of a venue beside Coinbase."""

    websocket_url: str | None = None
    """WebSocket address. Unset: the public one."""
    rest_url: str | None = None
    """Address of the REST interface, from which missing trades are fetched. Unset: the public one."""
    rest_requests_per_second: float | None = Field(default=None, gt=0, le=10_000)
    """Most REST requests a second. Unset: what the venue allows, with a margin."""


class HealingSettings(_Section):
    """Missing trades are fetched over REST, within `rest_requests_per_second` of each venue."""

    enabled: bool = True
    """Off: holes are only reported."""
    wait_s: float = Field(default=3.0, ge=0)
    """A new hole is not fetched before this time: trades may come late, and the exchange's newest pages are some
    seconds old."""
    table_check_interval_s: float = Field(default=60.0, ge=1)
    """How often the producer checks the tables for holes that it does not know of."""


class LogSettings(_Section):
    """The durable buffer between feed and lake."""

    url: str | None = None
    """`sqlite:PATH`, or `kafka://host:port,…/topic?security_protocol=…&sasl_mechanism=…`. Unset: the Event Hub when
    there is a connection string, else `_cryptopulse/log.db` inside the lake."""
    size_max_mb: int = Field(default=8192, ge=1)
    """Largest size of the log. When it is reached appending fails with a clear error: nothing is
    overwritten."""
    group_commit_ms: int = Field(default=10, ge=1, le=50)
    """Shortest time between the starts of two synced writes; messages that arrive in between share one write. A message
    after a pause waits only 2 ms."""
    epoch: int = Field(default=0, ge=0, le=200_000)
    """Raise by one when the log's offsets start over: a recreated topic, a failover to another region, a lake that
    moves to another log. Bronze's `partition` is `epoch` · 10,000 + Kafka's partition."""
    kafka_username: str | None = None
    """User for SASL, with `kafka_password`."""
    kafka_password: SecretStr | None = None
    """Password for SASL; better set as `CRYPTOPULSE_LOG__KAFKA_PASSWORD` than written into a file."""
    kafka_options: dict[str, SecretStr] = {}
    """More options of the Kafka client, by librdkafka's names: `{ "client.id" = "eu-1" }`. Their values are secret."""
    kafka_partitions: int = Field(default=1, ge=1, le=10_000)
    """Partitions of the topic if it is missing and has to be created. An Event Hub is never created."""
    eventhub_connection_string: SecretStr | None = None
    """Connection string of an Azure Event Hubs namespace; also the environment variable
    `EVENT_HUB_CONNECTION_STRING`."""
    eventhub_name: str = "coinbase-raw-trades"
    """The hub, unless the connection string names it (`EntityPath`); also `EVENT_HUB_NAME`."""

    @field_validator("kafka_options", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """Booleans and numbers as text that librdkafka reads."""
        if not isinstance(value, dict):
            return value
        return {name: str(v).lower() if isinstance(v, bool | int | float) else v for name, v in value.items()}


class ProcessingSettings(_Section):
    """How the lake is kept up to date."""

    engine: Literal["embedded", "spark"] = "embedded"
    """What runs the steps: `embedded` (this process) or `spark` (needs the extra `spark`)."""
    batch_messages_max: int = Field(default=200_000, ge=1)
    """Largest micro-batch, reached when behind. Otherwise a batch is whatever has arrived."""
    gold_interval_ms: int = Field(default=1000, ge=0)
    """Shortest time between two updates of bars and statistics while keeping up. Alerts do not wait."""
    step_interval_ms: int = Field(default=20, ge=0)
    """Shortest time between two steps that read new messages. On S3 and Azure each step makes four or more paid
    requests."""
    step_interval_max_ms: int = Field(default=200, ge=1)
    """Longest time that a few messages wait for more: a step costs a few milliseconds, however few it processes."""
    memory_max_mb: int = Field(default=1024, ge=128)
    """Memory that the SQL engine, which makes bars, statistics and completeness, may use before it spills to disk."""
    threads: int = Field(default_factory=lambda: min(max((os.cpu_count() or 1) // 2, 1), 8), ge=1)
    """Threads of the SQL engine for one statement. Half the cores by default: it works beside the live steps, and small
    statements are slower with more."""


class SparkSettings(_Section):
    """The Spark engine; see docs/scale-out.md."""

    catalog: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$")
    """Catalog of the tables, `<catalog>.<schema>.<table>`. Unset: they are where `lake` says, without a catalog."""
    checkpoints: str | None = None
    """URL of the folder of all checkpoints. Unset: `_cryptopulse/checkpoints` inside the lake."""
    messages_per_batch_max: int = Field(default=1_000_000, ge=1)
    """Largest micro-batch from Kafka to bronze. When keeping up a batch is whatever has arrived."""
    files_per_batch_max: int = Field(default=1_000, ge=1)
    """Largest micro-batch of the other steps, in files of the table that they read."""
    trigger_interval_s: float = Field(default=0, ge=0)
    """Shortest time from the start of a batch to the next. 0: at once. Each batch costs commits, and these cost money
    on object storage. Bars, statistics and completeness wait 20 s at least."""
    conf: dict[str, str] = {}
    """Spark's own settings, for a session that has to be created: `{"spark.master" = "local[4]"}`. When they name no
    jars or packages, Delta Lake and the Kafka source come from Maven Central."""


class AlertRule(_Section):
    """One rule, for the products that it names.

    Rules with different names are judged independently. Of several rules with the same name, the first
    that matches a product applies: put special products before `*`.
    """

    name: str = Field(default="price-move", pattern=r"^[A-Za-z0-9._-]+$")
    """Part of an episode's identity: letters, digits, `.`, `_` and `-`."""
    products: Annotated[list[str], NoDecode, Field(min_length=1)] = ["*"]
    """Product ids or shell patterns (`*-USD`)."""
    types: list[AlertType] = ["FLASH_CRASH", "PRICE_SURGE"]
    """What to look for: a fall, a rise, or both; or `VOLUME_SURGE`, `BUY_IMBALANCE`, `SELL_IMBALANCE`, `VOLATILITY`,
    `DISLOCATION`, `SILENCE`, `CUSTOM`. The types of a rule share its threshold, so they are of one kind."""
    threshold_pct: Decimal = Field(default=Decimal("1.0"), gt=0, max_digits=8, decimal_places=4, validate_default=True)
    """What opens an episode, in percent: a fall (rise) from the highest (lowest) price of the look-back (under 100);
    volume as a share of the usual (over 100); volume of buyers less that of sellers as a share of both (up to 100);
    realised volatility; distance from the price at other venues; silence as a share of the usual gap between trades
    (over 100); the value of a custom rule."""
    lookback_s: int = Field(default=120, ge=1, le=3600, validate_default=True)
    """How far a trade looks back, in seconds of exchange time. For `DISLOCATION` and `SILENCE`: how long it must last;
    for `CUSTOM`, in whole minutes: the bars that the statement sees."""
    baseline_windows: int = Field(default=30, ge=3, le=200, validate_default=True)
    """For `VOLUME_SURGE` and `SILENCE`: what is usual is the median of this many windows before the look-back, each as
    long."""
    cool_down_s: int = Field(default=120, ge=0, le=86_400)
    """An episode closes when no trade was over the threshold for this long."""
    min_volume: Decimal = Field(default=Decimal(0), ge=0)
    """Least base-currency volume in the look-back; with less, its trades don't count."""
    min_trades: int = Field(default=2, ge=2)
    """Least number of trades in the look-back (a change needs two)."""
    sql: str = Field(default="", max_length=20_000, validate_default=True)
    """For `CUSTOM`: one SELECT over `bars`, the minute bars of the look-back, with the columns `symbol` and `value`. A
    product is over the threshold in a minute when its `value` is `threshold_pct` or more."""

    @field_validator("products", mode="before")
    @classmethod
    def _products(cls, value: str | list[str]) -> list[str]:
        return _split_products(value)

    @field_validator("types")
    @classmethod
    def _are_of_one_kind(cls, types: list[AlertType]) -> list[AlertType]:
        if len({KINDS[name] for name in types}) > 1:
            raise ValueError(f"{' and '.join(types)} can't share a threshold; write a rule for each")
        return types

    @field_validator("threshold_pct")
    @classmethod
    def _suits_the_types(cls, threshold: Decimal, info: ValidationInfo) -> Decimal:
        for name in info.data.get("types", ()):
            if KINDS[name] == "price" and threshold >= 100:
                raise ValueError("a price can't fall by 100 percent: write less than 100")
            if KINDS[name] == "imbalance" and threshold > 100:
                raise ValueError("an imbalance is at most 100 percent: write 100 or less")
            if name in ("VOLUME_SURGE", "SILENCE") and threshold <= 100:
                what = "volume" if name == "VOLUME_SURGE" else "gap"
                raise ValueError(f"100 percent is the usual {what}: write more, as in 500 for five times the usual")
        return threshold

    @field_validator("lookback_s")
    @classmethod
    def _lasts_in_reach(cls, lookback_s: int, info: ValidationInfo) -> int:
        if "DISLOCATION" in info.data.get("types", ()) and lookback_s > _DISLOCATED_MAX_S:
            raise ValueError(f"a dislocation is known by three times lookback_s: write {_DISLOCATED_MAX_S} or less")
        return lookback_s

    @field_validator("baseline_windows")
    @classmethod
    def _is_in_reach(cls, windows: int, info: ValidationInfo) -> int:
        types, lookback_s = info.data.get("types", ()), info.data.get("lookback_s", 0)
        more = _WINDOWS_BESIDE.get(KINDS[types[0]] if types else "price")
        if more is not None and (windows + more) * lookback_s > _REACH_MAX_S:
            most = _REACH_MAX_S // lookback_s - more
            hint = f"write {most} or less" if most >= 3 else f"lower lookback_s to {_REACH_MAX_S // (3 + more)} or less"
            raise ValueError(f"(baseline_windows + {more}) × lookback_s is at most {_REACH_MAX_S} seconds: {hint}")
        return windows

    @field_validator("sql")
    @classmethod
    def _is_of_a_custom_rule(cls, sql: str, info: ValidationInfo) -> str:
        if ("CUSTOM" in info.data.get("types", ())) != bool(sql.strip()):
            raise ValueError('types = ["CUSTOM"] and sql belong together: write both or none')
        return sql

    @property
    def kind(self) -> Kind:
        """What its types measure."""
        return KINDS[self.types[0]] if self.types else "price"

    @property
    def reach_s(self) -> int:
        """How old a trade can be that judging another one needs, in seconds."""
        if self.kind == "custom":
            return -(-self.lookback_s // 60) * 60
        if (more := _WINDOWS_BESIDE.get(self.kind)) is not None:
            return self.lookback_s * (self.baseline_windows + more)
        return self.lookback_s * (3 if self.kind == "dislocation" else 1)

    @property
    def least_volume(self) -> int:
        """`min_volume` in the units of the column `trade_size`, rounded up."""
        return math.ceil(Fraction(self.min_volume) * 10**12)

    def applies_to(self, symbol: str) -> bool:
        """Whether `symbol` matches one of the rule's patterns."""
        return any(fnmatchcase(symbol, pattern) for pattern in self.products)


class AlertSettings(_Section):
    """What raises an alert."""

    rules: list[AlertRule] = [AlertRule()]
    """The rules, tables `[[alerts.rules]]` in the configuration file."""


class MaintenanceSettings(_Section):
    """Keeps tables fast to write and to read. Only the processing does this."""

    compact_commits: int = Field(default=100, ge=8)
    """Small files of a table are merged after this many commits."""
    checkpoint_commits: int = Field(default=50, ge=5)
    """Delta log checkpoints are written after this many commits, or later when they have grown large: they list each
    file that was replaced in the last minute."""
    log_retention_s: int = Field(default=30, ge=10)
    """Delta log entries older than this and covered by a checkpoint are removed. Each entry kept makes opening the
    table about 1 µs slower (measured on a local disk)."""
    vacuum_retention_hours: int = Field(default=1, ge=1)
    """Files that compaction replaced are deleted after this time. Until then readers can use an old snapshot."""


class RetentionSettings(_Section):
    """How many days (UTC) a table keeps; not set: all, for ever. Whole days go, once a day, for good, and only after
    every table derived from them has consumed them. Gold, the intervals of ids held and the proofs of absent ids are
    always kept."""

    bronze_days: int | None = Field(default=None, ge=1, le=100_000)
    """Days that `bronze.coinbase_raw_trades` keeps, by the time of receipt. Once a day has gone, `rebuild` is
    refused."""
    silver_days: int | None = Field(default=None, ge=2, le=100_000)
    """Days that `silver.fact_crypto_trades` keeps, by the time of the trade. Once a day has gone, its bars and alerts
    stay as they are."""
    quarantine_days: int | None = Field(default=None, ge=1, le=100_000)
    """Days that `silver.quarantined_messages` keeps, by the time of receipt; at least `bronze_days`, which must be
    set."""

    @model_validator(mode="before")
    @classmethod
    def _are_known(cls, given: Any) -> Any:
        for name in set(given) - set(cls.model_fields) if isinstance(given, dict) else ():
            raise ValueError(
                f"there is no {name}; days can go from bronze (bronze_days), silver's trades (silver_days) and "
                "quarantine (quarantine_days), all other tables are kept for ever"
            )
        return given

    @model_validator(mode="after")
    def _quarantine_outlives_bronze(self) -> Self:
        if self.quarantine_days is not None and self.quarantine_days < (self.bronze_days or math.inf):
            raise ValueError(
                "quarantine_days must be at least bronze_days, which must be set: a message without the reason of its "
                "refusal looks like a lost trade"
            )
        return self


class StorageSettings(_Section):
    """Access to a lake on S3 or Azure. The usual environment variables (AWS_*, AZURE_STORAGE_*) work as well; values
    given here win."""

    options: dict[str, SecretStr] = {}
    """Options by delta-rs' names, as in `aws_endpoint_url` or `azure_storage_account_key`. Their values are secret:
    no log, no error and no command shows them."""

    @field_validator("options", mode="before")
    @classmethod
    def _are_texts(cls, options: Any) -> Any:
        if not isinstance(options, dict):
            return options
        for name, value in options.items():
            if isinstance(value, float):  # a float may not keep the digits as written
                raise ValueError(f"write {name} as a text, in quotes")  # noqa: TRY004 - what pydantic reports
        # delta-rs takes texts; TOML and the environment give numbers and booleans.
        return {
            str(name).lower(): str(value).lower() if isinstance(value, bool | int) else value
            for name, value in options.items()
        }

    @field_validator("options")
    @classmethod
    def _are_known(cls, options: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name in options:
            if not OPTION_NAME.fullmatch(name):
                raise ValueError(f"{name} is no storage option; they are called aws_… or azure_…")
        return options


class LoggingSettings(_Section):
    """Log events of the processes."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Lowest severity that is written."""
    format: Literal["auto", "human", "json"] = "auto"
    """`auto`: for people on a terminal, JSON lines otherwise."""
