"""`sql`: queries over the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cryptopulse.cli.options import AsOf, Config, Json, Lake, settings_from
from cryptopulse.cli.output import print_json, print_table

if TYPE_CHECKING:
    import pyarrow as pa


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog='Example: cryptopulse sql "SELECT symbol, last_trade_id FROM silver.trade_id_coverage"')(sql)


def sql(
    query: Annotated[str, typer.Argument(help="In DuckDB's SQL; tables are bronze.…, silver.…, gold.….")],
    lake: Lake = None,
    config: Config = None,
    rows: Annotated[int, typer.Option(min=1, max=10**9, metavar="N", help="Rows of the table to print.")] = 100,
    as_of: AsOf = None,
    json: Json = False,
) -> None:
    """Ask the tables a question; read-only. With --json all rows are printed, as a list of objects."""
    import pyarrow as pa

    from cryptopulse.engine.as_of import judging_by
    from cryptopulse.lake.dataset import read

    settings = settings_from(lake, config)
    judge = judging_by(settings.alerts.rules)
    found = _printable(read(settings.location, query, None if json else rows + 1, judge=judge, as_of=as_of))
    if json:
        print_json(found.to_pylist())
        return
    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    numbers = frozenset(field.name for field in found.schema if any(test(field.type) for test in is_number))
    print_table(found.column_names, list(zip(*found.slice(0, rows).to_pydict().values(), strict=True)), numbers)
    if found.num_rows > rows:
        typer.echo(f"Only the first {rows:,} rows are shown; --rows shows more.", err=True)


def _printable(found: pa.Table) -> pa.Table:
    """The same rows, with unique column names (`a`, `a_1`), and times outside Python's calendar as text."""
    import duckdb
    import pyarrow as pa

    names: list[str] = []
    columns = []
    for name, column in zip(found.column_names, found.columns, strict=True):
        count = 0
        while (distinct := f"{name}_{count}" if count else name) in names:
            count += 1
        names.append(distinct)
        columns.append(column)
        if not (pa.types.is_temporal(column.type) or pa.types.is_nested(column.type)):
            continue
        try:
            column.to_pylist()
        except (OverflowError, ValueError):
            columns[-1] = duckdb.from_arrow(pa.table({"c": column})).project("c::VARCHAR AS c").to_arrow_table()["c"]
    return pa.table(columns, names=names)
