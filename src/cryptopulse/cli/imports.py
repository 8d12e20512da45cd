"""`import`: fills the tables from files that other programs wrote."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptopulse.cli.options import BatchMessages, Config, Json, Lake, check_venue
from cryptopulse.cli.output import print_conflicts, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from cryptopulse.replay import Import


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("import", epilog="Example: cryptopulse import coinbase_trades_*.csv.gz --lake lake")(import_files)


def import_files(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE…", help="CSV, JSON lines, recordings (also .gz, .zst, .zip), Parquet, Arrow."),
    ],
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="FIELD=NAME", help="Which column is what, as in trade_id=id; repeatable."),
    ] = None,
    product: Annotated[
        str | None, typer.Option(metavar="ID", help="Product of files that do not name it in a column.")
    ] = None,
    venue: Annotated[
        str | None,
        typer.Option("--venue", metavar="NAME", help="Whose trades these are. [default: what the file says]"),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Also what was imported before.")] = False,
    lake: Lake = None,
    config: Config = None,
    batch_messages: BatchMessages = 50_000,
    json: Json = False,
) -> None:
    """Bring files of trades into the tables: tardis.dev's, Binance's archives, exports, recordings. Resumable.

    Fields are product_id, trade_id, price, size, side (the taker's) or maker_side, and time (ISO 8601 or a number since
    1970; time_s, time_ms, time_us and time_ns say the unit).
    """
    from contextlib import closing

    from cryptopulse import logging_setup
    from cryptopulse.deployment import without_pandas
    from cryptopulse.errors import ERROR_PREFIX, ConfigurationError, CryptoPulseError
    from cryptopulse.log.opening import open_log
    from cryptopulse.replay import Import
    from cryptopulse.settings import load_settings
    from cryptopulse.trade_files import open_trade_file
    from cryptopulse.venues.imported import FIELDS

    columns: dict[str, str] = {}
    for text in column or ():
        field, equals, name = text.partition("=")
        if field not in FIELDS or not equals or not name:
            raise ConfigurationError(f"--column {text}: expected FIELD=NAME, with a field of {', '.join(FIELDS)}.")
        columns[field] = name
    check_venue(venue)
    settings = load_settings(config, lake=lake, processing={"batch_messages_max": batch_messages})
    opened = [open_trade_file(path, columns, product or "", venue) for path in _paths(files)]

    logging_setup.configure_quiet(settings.logging)
    without_pandas(settings)
    with closing(open_log(settings)) as log:
        work = Import(settings, log, batch_messages)
        try:
            with progress_bar("lines") as progress:
                work.run(opened, progress, again=again)
        except (KeyboardInterrupt, CryptoPulseError):
            if appended := sum(result.lines for result in work.results):
                in_tables = work.summary.get("messages", 0)
                typer.echo(
                    f"Stopped: {appended:,} lines are stored, {in_tables:,} of them in the tables; the others follow "
                    "with the next command or pipeline. The same command goes on.",
                    err=True,
                )
            raise
    _print(work, f"Imported into {settings.lake}", json)
    failed = [result for result in work.results if result.error is not None]
    for result in failed:
        before = " What came before is stored." if result.lines + result.earlier else ""
        typer.echo(f"{ERROR_PREFIX}{result.error}{before}", err=True)
    if failed:
        raise typer.Exit(ConfigurationError.exit_code)


def _paths(texts: list[str]) -> list[Path]:
    """The files, each once; what is no file and has * ? or [ is a pattern."""
    found: dict[Path, Path] = {}
    for text in texts:
        matches = [text] if Path(text).exists() else sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - of any folder
        for path in map(Path, matches or [text]):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _print(work: Import, what: str, json: bool) -> None:
    summary = work.summary
    if json:
        files = [
            {
                "file": str(result.file.path),
                "kind": result.file.kind,
                "lines": result.lines,
                "imported_before": result.earlier,
                "error": None if result.error is None else str(result.error),
            }
            for result in work.results
        ]
        print_json({**summary, "files": files})
        return
    typer.echo(f"{what} in {summary['seconds']:.1f} s: {summary['messages']:,} lines")
    rows = [(result.file.path, f"{result.lines:,}", f"{result.earlier:,}") for result in work.results]
    print_table(("file", "lines", "imported before"), rows, frozenset({"lines", "imported before"}))
    typer.echo(
        f"{summary['trades']:,} new trades, {summary['duplicates']:,} repeated, {summary['quarantined']:,} lines "
        "quarantined"
    )
    print_conflicts(summary["conflicts"])
