"""`sql`: questions to the tables."""

from __future__ import annotations

from typing import Annotated

import typer

from cryptopulse.cli.options import Config, Json, Lake, settings_from
from cryptopulse.cli.output import print_json, print_table


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog='Example: cryptopulse sql "SELECT symbol, last_trade_id FROM silver.trade_id_coverage"')(sql)


def sql(
    query: Annotated[str, typer.Argument(help="In DuckDB's SQL; tables are bronze.…, silver.…, gold.….")],
    lake: Lake = None,
    config: Config = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of the table to print.")] = 100,
    json: Json = False,
) -> None:
    """Ask the tables a question; read-only. With --json all rows are printed, as a list of objects."""
    import pyarrow as pa

    from cryptopulse.lake.dataset import read

    settings = settings_from(lake, config)
    if json:
        print_json(read(settings.location, query).to_pylist())
        return
    found = read(settings.location, query, rows_max=rows + 1)
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    numbers = frozenset(field.name for field in found.schema if any(test(field.type) for test in is_number))
    print_table(found.column_names, list(zip(*found.slice(0, rows).to_pydict().values(), strict=True)), numbers)
    if found.num_rows > rows:
        typer.echo(f"Only the first {rows:,} rows are shown; --rows shows more.", err=True)
