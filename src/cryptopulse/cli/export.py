"""`export`: rows of the tables as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cryptopulse.cli.options import AsOf, Config, Json, Lake, no_option, settings_from
from cryptopulse.cli.output import print_json, progress_bar

if TYPE_CHECKING:
    from cryptopulse.lake.table_rows import TableRows

_TABLES = Literal["trades", "bars", "activity-bars", "stats", "alerts", "completeness"]


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    example = "cryptopulse export trades btc.parquet --products BTC-USD --from 2026-11-28 --to 2026-11-29 --lake lake"
    app.command(epilog=f"Example: {example}")(export)


def export(
    what: Annotated[_TABLES, typer.Argument(help="Which rows.")],
    file: Annotated[
        Path,
        typer.Argument(
            help="Its name tells the format: .csv (also .csv.gz, .csv.zst), .parquet, .arrow, .npz; - is standard "
            "output.",
            callback=lambda file: file if str(file) == "-" else no_option(file),
        ),
    ],
    products: Annotated[str | None, typer.Option(metavar="IDS", help="As in BTC-USD,ETH-USD; all without it.")] = None,
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Start (inclusive), UTC.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="End (exclusive), UTC.")] = None,
    grain: Annotated[str, typer.Option(metavar="TIME", help="Length of bars, as in 10s, 1m, 1h.")] = "1m",
    by: Annotated[
        Literal["trades", "volume", "notional", "trade_imbalance", "volume_imbalance", "range"] | None,
        typer.Option(help="What ends an activity bar, once it reaches --size."),
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="NUMBER", help="As in --by volume --size 100.")] = None,
    columns: Annotated[str | None, typer.Option(metavar="NAMES", help="Only these, as in event_time,price.")] = None,
    form: Annotated[
        Literal["csv", "parquet", "arrow", "kdb", "hftbacktest", "nautilus"] | None,
        typer.Option(
            "--format",
            help="Format whatever the name; kdb: CSV for kdb+; hftbacktest: trades of one product (.npz); nautilus: "
            "trades or bars, and instruments, a folder.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if there is one.")] = False,
    as_of: AsOf = None,
    lake: Lake = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Write trades, bars and other rows to a file: exact decimals, times in UTC, ordered by time."""
    from cryptopulse.engine.as_of import judging_by
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.lake.dataset import open_lake
    from cryptopulse.lake.export import STANDARD_OUTPUT, kdb_types, write_batches
    from cryptopulse.lake.products import as_written
    from cryptopulse.lake.retention import let_go
    from cryptopulse.lake.tables import SILVER
    from cryptopulse.text import parse_time

    settings = settings_from(lake, config)
    limits = settings.processing
    if grain != "1m" and what != "bars":
        raise ConfigurationError("--grain is for bars.")
    given = [by is not None, size is not None]
    if not (all(given) if what == "activity-bars" else not any(given)):
        raise ConfigurationError("activity-bars take --by and --size, as in --by volume --size 100; nothing else does.")
    symbols = [as_written(one) for one in products.split(",")] if products else None
    chosen = [one.strip() for one in columns.split(",")] if columns else None
    with open_lake(
        settings.location,
        memory_max_mb=limits.memory_max_mb,
        threads=limits.threads,
        timeout_s=None,
        judge=judging_by(settings.alerts.rules),
        as_of=as_of,
    ) as reader:
        rows: TableRows
        if what == "bars":
            rows = reader.bars(symbols, start, end, grain=grain, columns=chosen)
        elif by is not None and size is not None:
            rows = reader.activity_bars(symbols, start, end, by=by, size=size, columns=chosen)
        else:
            rows = getattr(reader, what)(symbols, start, end, columns=chosen)
        with progress_bar("rows") as progress:
            total = rows.count()
            written = write_batches(
                rows.batches(),
                file,
                form,
                overwrite=overwrite,
                progress=lambda done: progress(done, total),
                bar_step=rows.bar_step if form == "nautilus" else None,
            )
        # What is said must not end up between the rows.
        is_piped = file == STANDARD_OUTPUT or not (file.is_file() or file.is_dir())
        gone = let_go(settings.location, SILVER) if what in ("trades", "activity-bars") else None
        if gone is not None and (start is None or parse_time(start).date() < gone.kept_from):
            typer.echo(f"{gone}: none of them is in the file.", err=True)
        if json and not is_piped:
            print_json({"file": str(file), "rows": written, "columns": rows.schema.names})
            return
        name = what.replace("-", " ")
        text = f"{written:,} {name if written != 1 else name.removesuffix('s')} written to {file}"
        typer.echo(text if written else f"{text}: the lake has none of these", err=is_piped)
        if form == "kdb":
            typer.echo(f'Load it: ("{kdb_types(rows.schema)}";enlist csv) 0: hsym `$"{file}"', err=is_piped)
