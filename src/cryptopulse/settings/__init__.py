"""Loads the settings of a deployment. The modules `sections`, `notify` and `serve` declare them.

Sources, in rising order of priority: `cryptopulse.toml`, environment variables `CRYPTOPULSE_*` (nested names joined
by two underscores: `CRYPTOPULSE_FEED__PRODUCTS='["BTC-USD"]'`), the file `.env`, command-line options.
"""

from __future__ import annotations

import codecs
import logging
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.location import LakeLocation
from cryptopulse.settings.notify import NotifySettings
from cryptopulse.settings.sections import (
    RECORDED_VENUES,
    AlertRule,
    AlertSettings,
    FeedSettings,
    HealingSettings,
    LoggingSettings,
    LogSettings,
    MaintenanceSettings,
    ProcessingSettings,
    RetentionSettings,
    SparkSettings,
    StorageSettings,
    VenueSettings,
)
from cryptopulse.settings.serve import ServeSettings

__all__ = [
    "CONFIG_FILE",
    "ENVIRONMENT_PREFIX",
    "RECORDED_VENUES",
    "STEPS",
    "AlertRule",
    "AlertSettings",
    "FeedSettings",
    "HealingSettings",
    "LogSettings",
    "LoggingSettings",
    "MaintenanceSettings",
    "NotifySettings",
    "ProcessingSettings",
    "RetentionSettings",
    "ServeSettings",
    "Settings",
    "SparkSettings",
    "StorageSettings",
    "VenueSettings",
    "load_settings",
]

CONFIG_FILE = "cryptopulse.toml"
ENVIRONMENT_PREFIX = "CRYPTOPULSE_"
_EVENT_HUB_NAMES = {"EVENT_HUB_CONNECTION_STRING": "eventhub_connection_string", "EVENT_HUB_NAME": "eventhub_name"}
_RENAMED = {"healing.look_interval_s": "healing.table_check_interval_s"}

STEPS = ("bronze", "silver", "alerts", "prices")
"""The Spark engine's steps, upstream first: each is a streaming query of its own."""


def _state_home() -> Path:
    home = os.environ.get("XDG_STATE_HOME", "")  # must be absolute, says the XDG base directory specification
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "state") / "cryptopulse"


def _absolute(path: Path) -> Path:
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - Path's own raises for ~name of no user


class _DotEnv(DotEnvSettingsSource):
    """Reads the file `.env`, and ignores other programs' variables in it."""

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
        hide_input_in_errors=True,  # it may be a secret
    )

    lake: Annotated[
        str,
        BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value),
        AfterValidator(lambda text: LakeLocation.of(text).url),
    ] = "lake"
    """Where the tables are, `<lake>/<schema>/<table>`: a local folder, `s3://bucket/prefix` or
    `abfss://container@account.dfs.core.windows.net/prefix`."""
    state: Path | None = None
    """Local folder for what a lake on S3 or Azure has besides its tables: the embedded log, locks, the processes'
    status. Unset: one folder per lake in `$XDG_STATE_HOME/cryptopulse` (`~/.local/state/cryptopulse`). A lake in a
    local folder always uses its own subfolder `_cryptopulse`."""
    feed: FeedSettings = FeedSettings()
    kraken: VenueSettings = VenueSettings()
    binance: VenueSettings = VenueSettings()
    okx: VenueSettings = VenueSettings()
    healing: HealingSettings = HealingSettings()
    log: LogSettings = LogSettings()
    processing: ProcessingSettings = ProcessingSettings()
    spark: SparkSettings = SparkSettings()
    alerts: AlertSettings = AlertSettings()
    notify: NotifySettings = NotifySettings()
    serve: ServeSettings = ServeSettings()
    maintenance: MaintenanceSettings = MaintenanceSettings()
    retention: RetentionSettings = RetentionSettings()
    storage: StorageSettings = StorageSettings()
    logging: LoggingSettings = LoggingSettings()

    @model_validator(mode="after")
    def _retention_is_applied(self) -> Self:
        if self.processing.engine == "spark" and (chosen := self.retention.model_dump(exclude_none=True)):
            raise ValueError(
                f"retention.{next(iter(chosen))} needs processing.engine = embedded: Spark lets no day go, so unset it"
            )
        return self

    @property
    def location(self) -> LakeLocation:
        """Where the tables are, with the storage options."""
        return LakeLocation.of(self.lake, self.storage.options)

    @property
    def state_dir(self) -> Path:
        """Local folder of everything beside the tables: the log, locks and the processes' status."""
        location = self.location
        if location.folder:
            return location.folder / "_cryptopulse"
        if self.state:
            return _absolute(self.state)
        return _state_home() / location.slug

    def venue(self, name: str) -> VenueSettings:
        """The settings of a venue beside Coinbase."""
        found: VenueSettings = getattr(self, name)
        return found

    def rest_allowance(self, rest_url: str, venue: str = "") -> Path:
        """File through which processes share the request limit of `rest_url`. The limit is per IP address, so all lakes
        of this user share one file. With a simulator (`http://`) each lake has its own.
        """
        if not rest_url.startswith("https:"):
            return self.state_dir / (f"rest-{venue}.allowance" if venue else "rest.allowance")
        host = rest_url.partition("//")[2].partition("/")[0].rpartition("@")[2]
        host = re.sub(r"[^a-z0-9.-]", "-", host.lower())
        return _state_home() / f"rest-{host}.allowance"

    @property
    def log_path(self) -> Path:
        """File of the embedded log. Raises ConfigurationError when `log.url` is a broker's address."""
        url = self.log.url
        if not url:
            return self.state_dir / "log.db"
        if "://" in url:
            scheme = url.partition("://")[0]
            raise ConfigurationError(
                f"Setting log.url: {scheme}:// is no file; write sqlite:PATH or kafka://host:port/topic."
            )
        return _absolute(Path(url.removeprefix("sqlite:")))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 -- the base class's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Highest priority first: options, `.env`, environment, environment with Azure's names, `cryptopulse.toml`."""
        given = {**os.environ, **dotenv_values(".env", encoding="utf-8")}
        hub = {setting: given[name] for name, setting in _EVENT_HUB_NAMES.items() if given.get(name)}
        azure = InitSettingsSource(settings_cls, {"log": hub} if hub else {})
        return init_settings, _DotEnv(settings_cls), env_settings, azure, TomlConfigSettingsSource(settings_cls)


def load_settings(config: Path | None = None, **options: Any) -> Settings:
    """Reads and checks all sources.

    `config` is read instead of `cryptopulse.toml` in the working directory, and must exist. `options` are
    command-line options by section: `lake="x", feed={"products": "BTC-USD"}`; None values are left out,
    here and inside sections.

    Raises ConfigurationError with one line that names the setting and what is wrong with it.
    """
    given: dict[str, Any] = {}
    for name, value in options.items():
        part = {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
        if part not in (None, {}):
            given[name] = part
    if config is not None and not config.is_file():
        raise ConfigurationError(f"There is no configuration file {config}; `cryptopulse init` writes one.")
    for (
        variable
    ) in os.environ:  # pydantic-settings looks only for the names it knows, so it would not see a mistyped one
        section = variable.removeprefix(ENVIRONMENT_PREFIX).split("__")[0].lower()
        if variable.startswith(ENVIRONMENT_PREFIX) and section not in Settings.model_fields:
            raise ConfigurationError(f"Environment variable {variable}: no such setting (see `cryptopulse config`).")
    logging.getLogger("dotenv").setLevel(logging.ERROR)  # it warns about other programs' lines
    try:  # else the error would not say which file it is about
        dotenv_values(".env", encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The file .env can't be read: {error}.") from error
    kind = Settings
    if config is not None:

        class SettingsFromFile(Settings):
            model_config = SettingsConfigDict(toml_file=config)

        kind = SettingsFromFile
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "configuration"
        unknown = first["type"] == "extra_forbidden"
        what = "there is no such setting" if unknown else first["msg"].removeprefix("Value error, ")
        if unknown and where in _RENAMED:
            what = f"it is called {_RENAMED[where]} now"
        raise ConfigurationError(f"Setting {where}: {what} (see `cryptopulse config`).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        file = config or Path(CONFIG_FILE)
        has_mark = file.read_bytes().startswith(codecs.BOM_UTF8)
        why = "it begins with a byte order mark; save it as UTF-8 without one" if has_mark else error
        raise ConfigurationError(f"{file} is not valid TOML: {why}.") from error
    except ValueError as error:
        raise ConfigurationError(f"Configuration can't be read: {error} (see `cryptopulse config`).") from error
