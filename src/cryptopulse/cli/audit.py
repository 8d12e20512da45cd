"""`audit`: whether anything is missing or inconsistent, with the proof."""

from __future__ import annotations

import shlex
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from cryptopulse.cli.options import Config, Json, Lake, RestUrl, settings_from
from cryptopulse.cli.output import print_json, print_table, progress_bar

if TYPE_CHECKING:
    from cryptopulse.audit import Report

INCOMPLETE = 8
"""Exit code of an audit that found something."""

_KIND_LINES_MAX = 20  # more of them look the same, and are in the JSON
_INTERVAL_LINES_MAX = 5
_COLUMNS = {
    "product": "symbol",
    "first id": "first_trade_id",
    "last id": "last_trade_id",
    "expected": "expected_ids",
    "held": "held_ids",
    "healed": "healed_ids",
    "absent": "absent_ids",
    "let go": "let_go_ids",
    "on their way": "on_their_way_ids",
    "missing": "missing_ids",
    "witness": "witness",
    "grade": "grade",
}


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog="Example: cryptopulse audit --product BTC-USD --from 2026-07-07T12:00 --json")(audit)


def audit(
    lake: Lake = None,
    config: Config = None,
    product: Annotated[
        list[str] | None, typer.Option("--product", metavar="ID", help="Only this one; may be repeated.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Start (inclusive), as in 2026-07-07T22:00 (UTC).")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="End (exclusive).")] = None,
    candles: Annotated[
        bool, typer.Option("--candles", help="Compare complete bars with the exchange's own candles, over REST.")
    ] = False,
    rest_url: RestUrl = None,
    json: Json = False,
) -> None:
    """Say what is missing or does not agree, and how to repair it. Exits 8 if anything is missing or inconsistent."""
    from cryptopulse.audit import AuditScope, Repairs, Resources
    from cryptopulse.audit import audit as check
    from cryptopulse.feed.venue_rest import rest_client

    settings = settings_from(lake, config, rest_url=rest_url)
    scope = AuditScope.of(product or (), start, end)
    processing = settings.processing
    same_lake = {"--lake": lake, "--config": config}  # for the repair commands that are shown
    exchange = partial(rest_client, settings) if candles else None
    with progress_bar("audit") as progress:
        report = check(
            settings.location,
            scope,
            Resources(processing.memory_max_mb, processing.threads, exchange),
            Repairs("".join(f" {name} {shlex.quote(str(value))}" for name, value in same_lake.items() if value)),
            progress,
        )
    if json:
        print_json(report.as_json())
    else:
        _print_report(report)
    if not report.is_complete:
        raise typer.Exit(INCOMPLETE)


def _print_report(report: Report) -> None:
    from cryptopulse.audit.report import moment
    from cryptopulse.text import ids_text

    since = f" from {moment(report.from_time)}" if report.from_time else ""
    until = f" to {moment(report.to_time)}" if report.to_time else ""
    typer.echo(f"Lake {report.lake}{since}{until}")
    # A column in which every product has a 0 says nothing.
    always = {"product", "first id", "last id", "expected", "held", "missing", "witness"}
    columns = {
        title: name
        for title, name in _COLUMNS.items()
        if title in always or any(getattr(ledger, name) not in (0, "ids") for ledger in report.ledgers)
    }
    rows = [[getattr(ledger, name) for name in columns.values()] for ledger in report.ledgers]
    if rows:
        print_table(list(columns), rows, frozenset(columns) - {"product", "witness", "grade"})

    for ledger in report.ledgers:  # what was healed, and what is absent at the exchange
        for healed in ledger.healed[:_INTERVAL_LINES_MAX]:
            times = " to ".join(dict.fromkeys((moment(healed.first_time), moment(healed.last_time))))
            ids = ids_text(healed.first_trade_id, healed.last_trade_id)
            typer.echo(f"healed  {ledger.symbol}: {ids} by {healed.source}, traded {times}")
        for absent in ledger.absent[:_INTERVAL_LINES_MAX]:
            typer.echo(
                f"absent  {ledger.symbol}: {ids_text(absent.first_trade_id, absent.last_trade_id)} left out by the "
                f"exchange, as the message at partition {absent.partition}, offset {absent.offset} of bronze shows"
            )
        for name, parts in (("healed", ledger.healed), ("absent", ledger.absent)):
            more = len(parts) + ledger.left_out.get(name, 0) - _INTERVAL_LINES_MAX
            if more > 0:
                typer.echo(f"{name}  {ledger.symbol}: {more:,} more intervals (see --json)")

    for gone in report.let_go:
        days = f"{len(gone['days']):,} day{'s' * (len(gone['days']) != 1)}"
        typer.echo(f"let go on purpose: {days} of {gone['table']}, until {gone['last_day']} ({gone['rows']:,} rows)")

    words = {kind: kind.replace("_", " ") for kind in report.findings.counts}
    for kind, count in report.findings.counts.items():
        found = [finding for finding in report.findings.listed if finding.kind == kind][:_KIND_LINES_MAX]
        for finding in found:
            typer.echo(f"{words[kind]}  {finding.text}. Repair: {finding.repair}.")
        if count > len(found):
            typer.echo(f"{words[kind]}  {count - len(found):,} more of this kind (see --json).")
    checks = (
        f"{check.count:,} {check.name}" + (f" ({check.skipped:,} not judged)" if check.skipped else "")
        for check in report.checks
    )
    typer.echo(f"Checked: {', '.join(checks)}.")

    refused = f"; {report.refused_ids:,} more were received and refused (see silver.quarantined_messages)"
    beside = refused if report.refused_ids else ""
    if not report.is_complete:
        missing = sum(ledger.missing_ids for ledger in report.ledgers)
        kinds = ", ".join(f"{words[kind]}: {count:,}" for kind, count in report.findings.counts.items())
        typer.echo(f"NOT COMPLETE: {missing:,} ids missing{beside}; findings by kind: {kinds}")
    elif not report.ledgers:
        typer.echo("COMPLETE: there are no trades")
    else:
        expected = sum(ledger.expected_ids for ledger in report.ledgers)
        counts = {
            "held once": sum(ledger.held_ids for ledger in report.ledgers),
            "absent at the exchange": sum(ledger.absent_ids for ledger in report.ledgers),
            "let go on purpose": sum(ledger.let_go_ids for ledger in report.ledgers),
            "on their way": sum(ledger.on_their_way_ids for ledger in report.ledgers),
        }
        ids = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count or what == "held once")
        products = len(report.ledgers)
        typer.echo(f"COMPLETE: of {expected:,} ids of {products} products {ids}; nothing is missing{beside}")
    if weak := [ledger.symbol for ledger in report.ledgers if ledger.grade != "ids"]:
        typer.echo(f"The ids of {', '.join(weak)} may have gaps of the exchange's own: they prove less (grade).")
