"""CryptoPulse: a real-time lakehouse for crypto trades. `open` gives its tables to Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
) -> Lake:
    """Opens the tables of a lake for reading.

    `lake`: a folder, `s3://…` or `abfss://…`; None for the one that the configuration names. `config`: a configuration
    file, None for `cryptopulse.toml` in the working directory, if there is one; it and the environment also give the
    credentials for a lake elsewhere. `memory_max_mb`: memory of all queries together, and of each statement of `sql`,
    before they spill to disk. `threads`: how many DuckDB uses, None for one a core. `timeout_s`: stops each reading
    after so many seconds of work.

    Raises ConfigurationError when there is no lake, or a setting is wrong, and LakeUnreachable when its storage does
    not answer.
    """
    # Here, so that a command which only shows its help need not wait for them.
    from cryptopulse.lake.dataset import open_lake  # noqa: PLC0415
    from cryptopulse.settings import load_settings  # noqa: PLC0415

    location = load_settings(config, lake=lake).location
    return open_lake(location, memory_max_mb=memory_max_mb, threads=threads, timeout_s=timeout_s)
