"""`replay` and `rebuild`: the tables from what was recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cryptopulse.commands.common import (
    Config,
    Json,
    Lake,
    print_json,
    print_table,
    progress_bar,
    quiet,
    require_lake,
    settings_from,
)


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command(epilog="Example: cryptopulse replay messages.jsonl --lake lake")(replay)
    app.command(epilog="Example: cryptopulse rebuild --lake lake")(rebuild)


def replay(
    file: Annotated[Path, typer.Argument(help="Recording: one raw message a line, or {recv, raw}.")],
    lake: Lake = None,
    config: Config = None,
    batch_messages: Annotated[
        int, typer.Option(min=1, max=1_000_000, metavar="N", help="Messages in a batch; changes no row.")
    ] = 50_000,
    json: Json = False,
) -> None:
    """Bring a recording of raw messages into the tables."""
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.settings import load_settings

    if not file.is_file():
        raise ConfigurationError(f"There is no recording {file}.")

    from cryptopulse.log.opening import open_log
    from cryptopulse.replay import replay as replay_file

    settings = load_settings(config, lake=lake, processing={"batch_messages_max": batch_messages})
    quiet(settings)
    log = open_log(settings)
    try:
        with progress_bar("messages") as progress:
            result = replay_file(settings, log, file, batch_messages, progress)
    finally:
        log.close()
    _print_result(result, json, f"Replayed {file} into {settings.lake}")


def rebuild(lake: Lake = None, config: Config = None, json: Json = False) -> None:
    """Make silver and gold again from bronze, with the rules and the SQL of today."""
    settings = settings_from(lake, config)
    require_lake(settings)

    from cryptopulse import pipeline
    from cryptopulse.log.opening import open_log

    quiet(settings)
    log = open_log(settings)
    try:
        with progress_bar("messages") as progress:
            result = pipeline.rebuild(settings, log, progress)
    finally:
        log.close()
    _print_result(result, json, f"Made silver and gold of {settings.lake} again")


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
