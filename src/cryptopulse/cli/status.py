"""`status`: whether all processes run, and their main figures."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cryptopulse.cli.options import Config, Json, Lake, settings_from
from cryptopulse.cli.output import print_conflicts, print_json, print_table

_FIGURES = {
    "connections": "connections",
    "messages_per_s": "messages/s",
    "reconnects": "reconnects",
    "products_silent": "products silent",
    "products_refused": "products refused",
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
"""The figures of a report that `status` shows, with their labels; --json shows all."""


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog="Example: cryptopulse status --lake lake || echo 'not all is well'")(status)


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
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.status import ALL_PROCESSES, DASHBOARD, PRODUCER, read_status, shown_processes
    from cryptopulse.text import parse_duration

    settings = settings_from(lake, config)
    shown = shown_processes(settings)
    if process not in (None, *ALL_PROCESSES, *shown):
        raise ConfigurationError(f"--process {process}: write {' or '.join(ALL_PROCESSES)}.")
    unwritten_max_s = parse_duration(written_within) if written_within else None
    processes = [read_status(settings.state_dir, name) for name in ([process] if process else shown)]
    if process is None:  # a missing or stopped one is fine, a dead one is shown
        processes = [one for one in processes if one.name != DASHBOARD or one.state not in ("absent", "stopped")]
    healthy = True
    rows = []
    for one in processes:
        healthy &= one.healthy and one.unconnected_s is None
        if one.name == PRODUCER and unwritten_max_s is not None:
            healthy &= one.unwritten_s is not None and one.unwritten_s <= unwritten_max_s
        since = one.started_at and f"{one.started_at:%Y-%m-%d %H:%M:%S}"
        age = "never" if one.age_s is None else f"{one.age_s:.1f} s ago"
        figures = one.error or ", ".join(
            f"{value:,.0f} {words}" for name, words in _FIGURES.items() if (value := one.report.get(name)) is not None
        )
        if one.unconnected_s is not None and one.state == "running":
            figures += f"; nothing received for {one.unconnected_s:.0f} s"
        targets: Any = one.report.get("targets", ())
        for target in targets:
            if target["is_failing"]:
                figures += f"; target {target['target']}: {target['last_error']}"
        rows.append((one.name, one.state, one.pid, since, one.restarts, age, figures))
    if json:
        print_json({"lake": settings.lake, "healthy": healthy, "processes": [vars(one) for one in processes]})
    else:
        typer.echo(f"Lake {settings.lake}")
        print_table(("process", "state", "pid", "since (UTC)", "restarts", "last news", "figures"), rows)
        tables: Any = next((one.report["tables"] for one in processes if "tables" in one.report), {})
        for name, table in tables.items():
            if "kept_from" in table:
                typer.echo(f"{name} keeps days from {table['kept_from']} on (retention)")
        counts = [one.report.get("conflicts_total") for one in processes]
        print_conflicts(sum(count for count in counts if isinstance(count, int)))
    if not healthy:
        raise typer.Exit(3)
