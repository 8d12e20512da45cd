"""`certify` and `verify`: a day's trades as a small document, and whether another lake has the same."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptopulse.cli.audit import INCOMPLETE
from cryptopulse.cli.options import Config, Json, Lake, no_option, settings_from
from cryptopulse.cli.output import print_json

if TYPE_CHECKING:
    from cryptopulse.lake.dataset import Lake as Reader
    from cryptopulse.settings import Settings

_LINES_MAX = 50


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command(epilog="Example: cryptopulse certify BTC-USD --day 2026-11-28 --out btc.json --lake lake")(certify)
    app.command(epilog="Example: cryptopulse verify btc.json --lake lake")(verify)


def certify(
    product: Annotated[str, typer.Argument(help="As in BTC-USD.")],
    day: Annotated[str, typer.Option(metavar="DAY", help="UTC, as in 2026-11-28.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write it here, and print one line.", callback=no_option)
    ] = None,
    lake: Lake = None,
    config: Config = None,
) -> None:
    """Make a certificate of a product's trades of one day, which `verify` compares with another lake."""
    from cryptopulse.certificate import certify as make
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.lake.products import as_written

    settings = settings_from(lake, config)
    try:
        wanted = date.fromisoformat(day)
    except ValueError as error:
        raise ConfigurationError(f"'{day}' is no day; write it like 2026-11-28.") from error
    with _reader(settings) as reader:
        made = make(reader, as_written(product), wanted)
    if out is None:
        print_json(made.as_json())
        return
    try:
        out.write_text(made.as_text(), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{out} can't be written: {error.strerror}.") from error
    missing = sum(last - first + 1 for first, last in made.missing)
    typer.echo(
        f"{made.product} {made.day}: {made.trades:,} trades, ids {made.first_trade_id} to {made.last_trade_id}, "
        f"{missing:,} missing, sha256 {made.sha256}"
    )


def verify(
    certificate: Annotated[Path, typer.Argument(help="A file that `certify` wrote.")],
    lake: Lake = None,
    config: Config = None,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Check this export instead of a lake.")] = None,
    json: Json = False,
) -> None:
    """Check a lake, or a Parquet export, against a certificate. Exits 8 if a trade is missing, doubled or different."""
    from cryptopulse.certificate import read_certificate, verify_lake, verify_parquet

    expected = read_certificate(certificate)
    if parquet is not None:
        found = verify_parquet(expected, parquet)
    else:
        with _reader(settings_from(lake, config)) as reader:
            found = verify_lake(expected, reader)
    if json:
        print_json({"agrees": not found, "sha256": expected.sha256, "differences": found})
    else:
        for text in found[:_LINES_MAX]:
            typer.echo(f"{expected.product}: {text}")
        if len(found) > _LINES_MAX:
            typer.echo(f"… and {len(found) - _LINES_MAX:,} more; --json shows all.")
        differences = "difference" if len(found) == 1 else "differences"
        said = f"differs ({len(found):,} {differences})" if found else f"all {expected.trades:,} trades are the same"
        typer.echo(f"{expected.product} {expected.day}: {said}")
    if found:
        raise typer.Exit(INCOMPLETE)


def _reader(settings: Settings) -> Reader:
    from cryptopulse.lake.dataset import open_lake

    limits = settings.processing
    return open_lake(settings.location, memory_max_mb=limits.memory_max_mb, threads=limits.threads, timeout_s=None)
