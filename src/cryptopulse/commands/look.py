"""`status` and `sql`: what is going on, and what the tables say."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cryptopulse.commands.common import Config, Json, Lake, print_json, print_table, settings_from

_FIGURES = {
    "connections": "connections",
    "messages_per_s": "messages/s",
    "reconnects": "reconnects",
    "ids_missing": "ids missing",
    "lost_messages": "lost",
    "trades_per_s": "trades/s",
    "log_lag_messages": "messages behind",
    "quarantined_total": "quarantined",
}
"""Which figures of a report `status` shows, and its words for them; --json shows all."""


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command(epilog="Example: cryptopulse status --lake lake || echo 'not all is well'")(status)
    app.command(epilog='Example: cryptopulse sql "SELECT symbol, last_trade_id FROM silver.trade_id_coverage"')(sql)


def status(lake: Lake = None, config: Config = None, json: Json = False) -> None:
    """Show whether producer and processing run, and how they fare. Exit code 3: not both do."""
    from cryptopulse.status import PROCESSES, read_status

    settings = settings_from(lake, config)
    processes = [read_status(settings.state_dir, name) for name in PROCESSES]
    healthy = all(process.healthy for process in processes)
    if json:
        print_json({"lake": settings.lake, "healthy": healthy, "processes": [vars(process) for process in processes]})
    else:
        typer.echo(f"Lake {settings.lake}")
        rows = [_row(process) for process in processes]
        print_table(("process", "state", "pid", "since (UTC)", "restarts", "last news", "figures"), rows)
    if not healthy:
        raise typer.Exit(3)


def sql(
    query: Annotated[str, typer.Argument(help="In DuckDB's SQL; tables are bronze.…, silver.…, gold.….")],
    lake: Lake = None,
    config: Config = None,
    rows: Annotated[int, typer.Option(min=1, metavar="N", help="Rows of the table to print.")] = 100,
    json: Json = False,
) -> None:
    """Ask the tables a question; read-only. With --json all rows are printed, as a list of objects."""
    from cryptopulse.lake.reader import read

    settings = settings_from(lake, config)
    if json:
        print_json(read(settings.lake, query).to_pylist())
        return
    found = read(settings.lake, query, rows_max=rows + 1)
    shown = found.slice(0, rows).to_pydict()
    print_table(found.column_names, list(zip(*shown.values(), strict=True)), _number_columns(found.schema))
    if found.num_rows > rows:
        typer.echo(f"Only the first {rows:,} rows are shown; --rows shows more.", err=True)


def _row(process: Any) -> tuple[object, ...]:
    since = process.started_at and f"{process.started_at:%Y-%m-%d %H:%M:%S}"
    age = process.age_s is not None and f"{process.age_s:.1f} s ago"
    figures = process.error or ", ".join(
        f"{value:,.0f} {words}" for name, words in _FIGURES.items() if (value := process.report.get(name)) is not None
    )
    return process.name, process.state, process.pid, since, process.restarts, age or "never", figures


def _number_columns(schema: Any) -> frozenset[str]:
    import pyarrow as pa

    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return frozenset(field.name for field in schema if any(test(field.type) for test in is_number))
