"""Options that several commands share, and the settings made from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptopulse.errors import ConfigurationError

if TYPE_CHECKING:
    from cryptopulse.settings import Settings

Lake = Annotated[
    str | None,
    typer.Option("--lake", metavar="PLACE", help="Where the tables are: folder, s3://… or abfss://… [default: ./lake]"),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file. [default: ./cryptopulse.toml]"),
]
Products = Annotated[
    str | None,
    typer.Option("--products", metavar="IDS", help='Products, as in BTC-USD,ETH-USD; "" for all of a currency.'),
]
Feed = Annotated[
    str | None, typer.Option("--feed", metavar="exchange|advanced|both", help="Which of Coinbase's public feeds.")
]
WebsocketUrl = Annotated[
    str | None,
    typer.Option("--websocket-url", metavar="URL", help="Another WebSocket address: a simulator's."),
]
RestUrl = Annotated[str | None, typer.Option("--rest-url", metavar="URL", help="Another REST address: a simulator's.")]
Dashboard = Annotated[bool, typer.Option("--dashboard/--no-dashboard", help="Show it in browsers as well.")]
DayTrades = Annotated[
    int | None, typer.Option("--trades", metavar="N", help="Trades of the crash day. [default: 1600000]")
]
BatchMessages = Annotated[
    int, typer.Option(min=1, max=1_000_000, metavar="N", help="Batch size; does not affect results.")
]
Json = Annotated[bool, typer.Option("--json", help="For scripts: JSON on standard output.")]
AsOf = Annotated[
    str | None, typer.Option("--as-of", metavar="TIME", help="As it was known then (UTC), without what came later.")
]
Supervised = Annotated[int | None, typer.Option("--supervised", hidden=True)]
LogFile = Annotated[Path | None, typer.Option("--log-file", hidden=True)]


def no_option(file: Path | None) -> Path | None:
    """Refuses a file to write that looks like an option: `--out --help` means the help."""
    if file is not None and str(file).startswith("-"):
        raise typer.BadParameter(f"{file} looks like an option; write ./{file} if it is a file")
    return file


def leave_out(option: str, others: Mapping[str, object]) -> None:
    """Refuses options that make no sense beside `option`; `others`: their values by name, None for those not given.

    Raises ConfigurationError.
    """
    if given := [name for name, value in others.items() if value is not None]:
        raise ConfigurationError(f"{option} has its own: leave out {', '.join(given)}.")


def settings_from(
    lake: str | None,
    config: Path | None,
    products: str | None = None,
    feed: str | None = None,
    engine: str | None = None,
    serve: Mapping[str, object] | None = None,
    **urls: str | None,
) -> Settings:
    """All settings, overridden by the given options.

    `serve`: options of the section `serve`. `urls`: `websocket_url` and `rest_url`. Raises ConfigurationError.
    """
    from cryptopulse.settings import load_settings

    feed_options = {"products": products, "dialect": feed, **urls}
    return load_settings(config, lake=lake, feed=feed_options, processing={"engine": engine}, serve=serve)


def check_venue(venue: str | None) -> None:
    """Raises ConfigurationError for a venue whose messages nobody can read."""
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.venues.registry import COINBASE, MESSAGES

    if venue not in (None, COINBASE, *MESSAGES):
        raise ConfigurationError(f"Unknown venue {venue!r} (expected {', '.join((COINBASE, *MESSAGES))}).")
