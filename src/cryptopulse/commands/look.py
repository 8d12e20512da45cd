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
    "ids_healed": "healed",
    "ids_absent": "absent at the exchange",
    "lost_messages": "lost",
    "trades_per_s": "trades/s",
    "log_lag_messages": "messages behind",
    "messages_expired_total": "expired unread",
    "quarantined_total": "quarantined",
    "notifications_sent": "sent",
    "notifications_failed": "failed",
    "notifications_waiting": "waiting",
}
"""Which figures of a report `status` shows, and its words for them; --json shows all."""


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command(epilog="Example: cryptopulse status --lake lake || echo 'not all is well'")(status)
    app.command(epilog='Example: cryptopulse sql "SELECT symbol, last_trade_id FROM silver.trade_id_coverage"')(sql)


def status(
    lake: Lake = None,
    config: Config = None,
    process: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Only producer, processing, notifier or dashboard: a container's health check."
        ),
    ] = None,
    written_within: Annotated[
        str | None, typer.Option(metavar="TIME", help="The log must have taken something of the producer within it.")
    ] = None,
    json: Json = False,
) -> None:
    """Show whether all processes run, and how they fare. Exit code 3: not all do."""
    from cryptopulse.durations import parse_duration
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.status import ALL_PROCESSES, DASHBOARD, processes_of, read_status

    if process not in (None, *ALL_PROCESSES):
        raise ConfigurationError(f"--process {process}: write {' or '.join(ALL_PROCESSES)}.")
    unwritten_max_s = parse_duration(written_within) if written_within else None
    settings = settings_from(lake, config)
    processes = [read_status(settings.state_dir, name) for name in ([process] if process else processes_of(settings))]
    if process is None:  # a lake can do without one; that one has died is worth knowing
        processes = [one for one in processes if one.name != DASHBOARD or one.state not in ("absent", "stopped")]
    healthy = all(_is_well(process, unwritten_max_s) for process in processes)
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
        print_json(read(settings.location, query).to_pylist())
        return
    found = read(settings.location, query, rows_max=rows + 1)
    shown = found.slice(0, rows).to_pydict()
    print_table(found.column_names, list(zip(*shown.values(), strict=True)), _number_columns(found.schema))
    if found.num_rows > rows:
        typer.echo(f"Only the first {rows:,} rows are shown; --rows shows more.", err=True)


def _is_well(process: Any, unwritten_max_s: float | None) -> bool:
    if unwritten_max_s is None or process.name != "producer":
        return bool(process.healthy)
    return process.healthy and process.unwritten_s is not None and process.unwritten_s <= unwritten_max_s


def _row(process: Any) -> tuple[object, ...]:
    since = process.started_at and f"{process.started_at:%Y-%m-%d %H:%M:%S}"
    age = process.age_s is not None and f"{process.age_s:.1f} s ago"
    figures = process.error or ", ".join(
        f"{value:,.0f} {words}" for name, words in _FIGURES.items() if (value := process.report.get(name)) is not None
    )
    for target in process.report.get("targets", ()):
        if target["is_failing"]:
            figures += f"; target {target['target']}: {target['last_error']}"
    return process.name, process.state, process.pid, since, process.restarts, age or "never", figures


def _number_columns(schema: Any) -> frozenset[str]:
    import pyarrow as pa

    is_number = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return frozenset(field.name for field in schema if any(test(field.type) for test in is_number))
