"""`replay` and `rebuild`: fill the tables from a recording, or from bronze."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryptopulse.cli.options import BatchMessages, Config, Json, Lake, check_venue, settings_from
from cryptopulse.cli.output import print_conflicts, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from cryptopulse.log import Log
    from cryptopulse.settings import Settings


_VENUES = "Whose messages these are: coinbase, kraken, binance, binance-aggregates or okx."


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command(epilog="Example: cryptopulse replay messages.jsonl --lake lake")(replay)
    app.command(epilog="Example: cryptopulse rebuild --lake lake")(rebuild)


def replay(
    file: Annotated[Path, typer.Argument(help="One raw message a line, or {recv, raw}; also .gz, .zst, a pipe, or -.")],
    lake: Lake = None,
    config: Config = None,
    venue: Annotated[str, typer.Option("--venue", metavar="NAME", help=_VENUES)] = "coinbase",
    batch_messages: BatchMessages = 50_000,
    json: Json = False,
) -> None:
    """Bring a recording of raw messages into the tables."""
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.recording import STANDARD_INPUT
    from cryptopulse.settings import load_settings

    if file != STANDARD_INPUT and (not file.exists() or file.is_dir()):  # a pipe will do
        raise ConfigurationError(f"There is no recording {file}.")

    from cryptopulse.replay import replay as replay_file

    check_venue(venue)
    settings = load_settings(config, lake=lake, processing={"batch_messages_max": batch_messages})
    with _opened_log(settings) as log, progress_bar("messages") as progress:
        result = replay_file(settings, log, file, batch_messages, progress, venue)
    _print_result(result, json, f"Replayed {file} into {settings.lake}")


def rebuild(lake: Lake = None, config: Config = None, json: Json = False) -> None:
    """Make silver and gold again from bronze, with the rules and the SQL of today."""
    settings = settings_from(lake, config)

    from cryptopulse import pipeline
    from cryptopulse.lake.storage import existing_tables

    existing_tables(settings.location)
    with _opened_log(settings) as log, progress_bar("messages") as progress:
        result = pipeline.rebuild(settings, log, progress)
    _print_result(result, json, f"Made silver and gold of {settings.lake} again")


@contextmanager
def _opened_log(settings: Settings) -> Iterator[Log]:
    """The open log. Limits this process to log events from WARNING on (but see `configure_quiet`)."""
    from cryptopulse import logging_setup
    from cryptopulse.deployment import without_pandas
    from cryptopulse.log.opening import open_log

    logging_setup.configure_quiet(settings.logging)
    without_pandas(settings)
    with closing(open_log(settings)) as log:
        yield log


def _print_result(result: dict[str, Any], json: bool, what: str) -> None:
    if json:
        print_json(result)
        return
    typer.echo(f"{what} in {result['seconds']:.1f} s: {result['messages']:,} messages")
    rows = [(symbol, f"{trades:,}") for symbol, trades in sorted(result["symbols"].items())]
    print_table(("product", "trades held"), rows, frozenset({"trades held"}))
    typer.echo(
        f"{result['trades']:,} new trades, {result['duplicates']:,} repeated, {result['missing_ids']:,} ids "
        f"missing, {result['quarantined']:,} messages quarantined"
    )
    print_conflicts(result["conflicts"])
