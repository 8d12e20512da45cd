"""Every setting, its default and its meaning; nowhere else.

Sources, the later one wins: `cryptopulse.toml`, environment variables `CRYPTOPULSE_*` (nested names joined
by two underscores: `CRYPTOPULSE_FEED__PRODUCTS='["BTC-USD"]'`), the file `.env`, command-line options.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cryptopulse.errors import ConfigurationError

CONFIG_FILE = "cryptopulse.toml"
ENVIRONMENT_PREFIX = "CRYPTOPULSE_"

AlertType = Literal["FLASH_CRASH", "PRICE_SURGE"]


def _split_products(value: str | list[str]) -> list[str]:
    """`"btc-usd, ETH-USD"`, a list, or a list as JSON → unique upper-case product ids in the given order."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("write products as a list of texts, or as one text separated by commas")
    return list(dict.fromkeys(item.strip().upper() for item in items if item.strip()))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FeedSettings(_Section):
    """Where raw messages come from."""

    dialect: Literal["exchange", "advanced"] = "exchange"
    """Which of Coinbase's public feeds: `exchange` (matches and heartbeats) or `advanced` (Advanced
    Trade)."""
    products: Annotated[list[str], NoDecode] = ["BTC-USD", "ETH-USD"]
    """Products to record, as a list or separated by commas. Empty: all online products of
    `quote_currency`."""
    quote_currency: str = "USD"
    """With an empty `products`: record every online product quoted in this currency."""
    websocket_url: str | None = None
    """WebSocket address. Unset: the dialect's public address."""
    rest_url: str = "https://api.exchange.coinbase.com"
    """Address of the REST interface (products, trades, candles)."""
    products_per_connection_max: int = Field(default=100, ge=1, le=1000)
    """More products than this are spread over several connections."""
    heartbeats_missed_max: int = Field(default=5, ge=2)
    """A connection is stale after this many seconds without a heartbeat, and is replaced."""
    connect_timeout_s: float = Field(default=10.0, gt=0)
    """Give up a connection attempt after this time and try again."""
    backoff_max_s: float = Field(default=30.0, gt=0)
    """Longest pause between two connection attempts; pauses double from 0.25 s, with jitter."""
    buffer_max_mb: int = Field(default=64, ge=1)
    """Bound of messages held in memory while the log is slow. Beyond it messages are counted as a loss and
    the hole is recorded; the feed never blocks."""

    @field_validator("products", mode="before")
    @classmethod
    def _products(cls, value: str | list[str]) -> list[str]:
        return _split_products(value)

    @field_validator("products")
    @classmethod
    def _are_product_ids(cls, products: list[str]) -> list[str]:
        for product in products:
            if not re.fullmatch(r"[A-Z0-9]+-[A-Z0-9]+", product):
                raise ValueError(f"'{product}' is no product id; they look like BTC-USD")
        return products


class LogSettings(_Section):
    """The durable buffer between feed and lake."""

    url: str | None = None
    """`sqlite:PATH`. Unset: `_cryptopulse/log.db` inside the lake."""
    size_max_mb: int = Field(default=8192, ge=1)
    """Largest size of the log. When it is reached appending fails with a clear error: nothing is
    overwritten."""
    group_commit_ms: int = Field(default=5, ge=1, le=50)
    """Messages that arrive within this time share one synced write."""


class ProcessingSettings(_Section):
    """How the lake is kept up to date."""

    batch_messages_max: int = Field(default=200_000, ge=1)
    """Largest micro-batch, used when behind. When idle a batch is whatever has arrived."""
    gold_interval_ms: int = Field(default=500, ge=0)
    """Bars and statistics are brought up to date at most this often while keeping up. Alerts do not wait."""
    poll_ms: int = Field(default=5, ge=1)
    """How often the log is asked for news when there was none."""
    memory_max_mb: int = Field(default=1024, ge=128)
    """Memory that the SQL engine may use before it spills to disk."""
    threads: int = Field(default_factory=lambda: min(max((os.cpu_count() or 1) // 2, 1), 8), ge=1)
    """Threads of the SQL engine for one statement. Half the cores by default: statements run beside each other, and
    small ones are slower with more (on two cores a live step took 56 ms with two threads, 50 ms with one)."""


class AlertRule(_Section):
    """One rule, for the products that it names.

    Rules of different names are judged independently. Among rules of one name the first that matches a
    product is the product's rule: put special products before `*`.
    """

    name: str = Field(default="price-move", pattern=r"^[A-Za-z0-9._-]+$")
    """Part of an episode's identity: letters, digits, `.`, `_` and `-`."""
    products: Annotated[list[str], NoDecode] = ["*"]
    """Product ids or shell patterns (`*-USD`)."""
    types: list[AlertType] = ["FLASH_CRASH", "PRICE_SURGE"]
    """What to look for: a fall, a rise, or both."""
    threshold_pct: Decimal = Field(default=Decimal("1.0"), gt=0, lt=100, max_digits=8, decimal_places=4)
    """Fall (rise) in percent from the highest (lowest) price of the look-back that opens an episode."""
    lookback_s: int = Field(default=120, ge=1, le=3600)
    """How far a trade looks back for that price, in seconds of exchange time."""
    cool_down_s: int = Field(default=120, ge=0, le=86_400)
    """An episode closes when no trade was over the threshold for this long."""
    min_volume: Decimal = Field(default=Decimal(0), ge=0)
    """Base-currency volume that the look-back must have for its trades to count."""
    min_trades: int = Field(default=2, ge=2)
    """Number of trades that the look-back must have (a change needs two)."""

    @field_validator("products", mode="before")
    @classmethod
    def _products(cls, value: str | list[str]) -> list[str]:
        return _split_products(value)

    def applies_to(self, symbol: str) -> bool:
        """Whether `symbol` matches one of the rule's patterns."""
        return any(fnmatchcase(symbol, pattern) for pattern in self.products)


class AlertSettings(_Section):
    """What counts as a crash or a surge."""

    rules: list[AlertRule] = [AlertRule()]
    """The rules, tables `[[alerts.rules]]` in the configuration file."""


class MaintenanceSettings(_Section):
    """Keeps tables fast to write and to read; one owner, the processing."""

    compact_commits: int = Field(default=100, ge=8)
    """Small files of a table are merged after this many commits."""
    checkpoint_commits: int = Field(default=50, ge=5)
    """Delta log checkpoints are written after this many commits."""
    log_retention_s: int = Field(default=30, ge=10)
    """Delta log entries older than this and covered by a checkpoint are removed. Each entry kept makes a
    commit about 8 µs slower (measured), so a table with ten commits a second can't keep them for long."""
    vacuum_retention_hours: int = Field(default=1, ge=1)
    """Files that compaction replaced are deleted after this time: readers may work on an old snapshot so
    long."""


class LoggingSettings(_Section):
    """What the processes say."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least serious events that are still written."""
    format: Literal["auto", "human", "json"] = "auto"
    """`auto`: for people on a terminal, JSON lines otherwise."""


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _lake_folder(path: Path) -> Path:
    absolute = _absolute(path)
    if set("[]") & set(str(absolute)):
        raise ValueError("a lake's path can't have [ or ] in it (Delta readers take it for a URL)")
    return absolute


class _DotEnv(DotEnvSettingsSource):
    """The file `.env`, of which other programs' variables are none of our business."""

    def __call__(self) -> dict[str, Any]:
        known = self.settings_cls.model_fields
        return {
            name: value
            for name, value in super().__call__().items()
            if name in known or name.startswith(ENVIRONMENT_PREFIX.lower())
        }


class Settings(BaseSettings):
    """All settings of one deployment."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter="__",
        env_file=".env",
        env_file_encoding="utf-8",
        toml_file=CONFIG_FILE,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    lake: Annotated[Path, AfterValidator(_lake_folder)] = Path("lake")
    """Folder of the tables: `<lake>/<schema>/<table>`."""
    feed: FeedSettings = FeedSettings()
    log: LogSettings = LogSettings()
    processing: ProcessingSettings = ProcessingSettings()
    alerts: AlertSettings = AlertSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    logging: LoggingSettings = LoggingSettings()

    @property
    def state_dir(self) -> Path:
        """Folder of everything beside the tables: the log, locks and the processes' status."""
        return self.lake / "_cryptopulse"

    @property
    def log_path(self) -> Path:
        """File of the embedded log."""
        url = self.log.url
        return _absolute(Path(url.removeprefix("sqlite:"))) if url else self.state_dir / "log.db"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- the base class's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Highest first: options, `.env`, environment, `cryptopulse.toml`."""
        return init_settings, _DotEnv(settings_cls), env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(config: Path | None = None, **options: Any) -> Settings:
    """Reads and checks all sources.

    `config` is read instead of `cryptopulse.toml` in the working directory, and must exist. `options` are
    command-line options by section: `lake=Path("x"), feed={"products": "BTC-USD"}`; None values are left out,
    here and inside sections.

    Raises ConfigurationError with one line that names the setting and what is wrong with it.
    """
    given = {name: _without_none(value) for name, value in options.items() if value is not None}
    if config is not None and not config.is_file():
        raise ConfigurationError(f"There is no configuration file {config}; `cryptopulse init` writes one.")
    _check_environment()
    try:
        return _settings_class(config)(**{name: value for name, value in given.items() if value != {}})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "configuration"
        unknown = first["type"] == "extra_forbidden"
        what = "there is no such setting" if unknown else first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"Setting {where}: {what} (see `cryptopulse config`).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{config or CONFIG_FILE} is not valid TOML: {error}.") from error
    except ValueError as error:
        raise ConfigurationError(f"Configuration can't be read: {error} (see `cryptopulse config`).") from error


def _check_environment() -> None:
    """pydantic-settings looks only for the names it knows, so it would not see a mistyped one."""
    for name in os.environ:
        section = name.removeprefix(ENVIRONMENT_PREFIX).split("__")[0].lower()
        if name.startswith(ENVIRONMENT_PREFIX) and section not in Settings.model_fields:
            raise ConfigurationError(f"Environment variable {name}: no such setting (see `cryptopulse config`).")


def _settings_class(config: Path | None) -> type[Settings]:
    if config is None:
        return Settings

    class SettingsFromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    return SettingsFromFile


def _without_none(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
