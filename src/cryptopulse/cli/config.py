"""`init` and `config`: the settings as a file to edit, and the values in force."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryptopulse.cli.options import Config, Json, Lake, settings_from
from cryptopulse.cli.output import print_json, print_table


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command(epilog="Example: cryptopulse init --force")(init)
    app.command(epilog="Example: CRYPTOPULSE_FEED__DIALECT=advanced cryptopulse config --json")(config)


def init(
    file: Annotated[Path, typer.Argument(help="Where to write.")] = Path("cryptopulse.toml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a configuration file with every setting, its default and its meaning."""
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.settings.text import as_toml

    if file.exists() and not force:
        raise ConfigurationError(f"{file} exists already; --force replaces it.")
    try:
        file.write_text(as_toml(), encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"Can't write {file}: {error.strerror}.") from error
    typer.echo(f"Wrote {file}. Every line in it is a default: change what you want to be different.")


def config(lake: Lake = None, config_file: Config = None, json: Json = False) -> None:
    """Show every setting: its value in force, its default, its meaning."""
    from cryptopulse.settings.text import described

    settings = described(settings_from(lake, config_file))
    if json:
        print_json([setting.__dict__ for setting in settings])
        return
    rows = [(s.name, s.value, "" if s.value == s.default else s.default, s.meaning) for s in settings]
    print_table(("setting", "value", "default, if other", "meaning"), rows)
