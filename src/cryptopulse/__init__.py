"""CryptoPulse: a real-time lakehouse for crypto trades. `open` opens its tables in Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date, datetime
    from pathlib import Path

    from cryptopulse.lake.dataset import Lake

__all__ = ["__version__", "open"]
__version__ = "0.1.0"


def open(  # noqa: A001 - read as cryptopulse.open
    lake: str | Path | None = None,
    *,
    config: Path | None = None,
    memory_max_mb: int = 1024,
    threads: int | None = None,
    timeout_s: float | None = None,
    as_of: datetime | date | str | None = None,
) -> Lake:
    """Opens the tables of a lake for reading.

    `lake`: a folder, `s3://…` or `abfss://…`; None: the one in the configuration. `config`: a configuration file; None:
    `cryptopulse.toml` in the working directory, if there is one. Credentials for a lake on S3 or Azure come from it or
    the environment. `memory_max_mb`: memory of all queries together, and of each statement of `sql`, before they spill
    to disk. `threads`: threads of DuckDB; None: one per core. `timeout_s`: stops a query after this many seconds of
    work. `as_of`: a moment, UTC without an offset; all tables are read as they were known then, see `Lake.as_of`.

    Raises ConfigurationError when there is no lake, or a setting is wrong, and LakeUnreachable when its storage does
    not answer.
    """
    # Imported here, so that a command that only shows its help need not wait for them.
    from cryptopulse.engine.as_of import judging_by  # noqa: PLC0415
    from cryptopulse.lake.dataset import open_lake  # noqa: PLC0415
    from cryptopulse.settings import load_settings  # noqa: PLC0415

    settings = load_settings(config, lake=lake)
    return open_lake(
        settings.location,
        memory_max_mb=memory_max_mb,
        threads=threads,
        timeout_s=timeout_s,
        judge=judging_by(settings.alerts.rules),
        as_of=as_of,
    )
