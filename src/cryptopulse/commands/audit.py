"""`audit`: whether anything is missing, and the proof."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryptopulse.commands.common import (
    Config,
    Json,
    Lake,
    RestUrl,
    print_json,
    print_table,
    progress_bar,
    settings_from,
)

if TYPE_CHECKING:
    from cryptopulse.completeness.audit import Report

INCOMPLETE = 8
"""Exit code of an audit that found something."""

_KIND_LINES_MAX = 20  # what follows looks the same, and is in the JSON
_INTERVAL_LINES_MAX = 5
_COLUMNS = {
    "product": "symbol",
    "first id": "first_trade_id",
    "last id": "last_trade_id",
    "expected": "expected_ids",
    "held": "held_ids",
    "healed": "healed_ids",
    "absent": "absent_ids",
    "on their way": "on_their_way_ids",
    "missing": "missing_ids",
    "witness": "witness",
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
        str | None, typer.Option("--from", metavar="TIME", help="Trades since then, as in 2026-07-07T22:00 (UTC).")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Trades before then.")] = None,
    candles: Annotated[
        bool, typer.Option("--candles", help="Compare complete bars with the exchange's own candles, over REST.")
    ] = False,
    rest_url: RestUrl = None,
    json: Json = False,
) -> None:
    """Say what is missing or does not agree, and how to repair it. Exit code 8: something is or doesn't."""
    from cryptopulse.completeness.audit import Exchange, Repairs, Resources, Scope
    from cryptopulse.completeness.audit import audit as check

    settings = settings_from(lake, config, rest_url=rest_url)
    scope = Scope.of(product or (), start, end)
    processing = settings.processing
    asked = Exchange(settings.feed.rest_url, settings.rest_allowance) if candles else None
    with progress_bar("audit") as progress:
        report = check(
            settings.location,
            scope,
            Resources(processing.memory_max_mb, processing.threads, asked),
            Repairs(_options(lake, config)),
            progress,
        )
    if json:
        print_json(report.as_json())
    else:
        _print_report(report)
    if not report.is_complete:
        raise typer.Exit(INCOMPLETE)


def _options(lake: str | None, config: Path | None) -> str:
    """What another command needs to find the same lake."""
    given = {"--lake": lake, "--config": config}
    return "".join(f" {name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None)


def _print_report(report: Report) -> None:
    from cryptopulse.completeness.audit.report import moment

    since = f" from {moment(report.from_time)}" if report.from_time else ""
    until = f" to {moment(report.to_time)}" if report.to_time else ""
    typer.echo(f"Lake {report.lake}{since}{until}")
    # A column in which every product has a 0 says nothing.
    always = {"product", "first id", "last id", "expected", "held", "missing", "witness"}
    columns = {
        title: name
        for title, name in _COLUMNS.items()
        if title in always or any(getattr(ledger, name) for ledger in report.ledgers)
    }
    rows = [[getattr(ledger, name) for name in columns.values()] for ledger in report.ledgers]
    if rows:
        print_table(list(columns), rows, frozenset(columns) - {"product", "witness"})
    for line in _interval_lines(report):
        typer.echo(line)
    for line in _finding_lines(report):
        typer.echo(line)
    checked = ", ".join(_checked(check) for check in report.checks)
    typer.echo(f"Checked: {checked}.")
    typer.echo(_verdict(report))


def _interval_lines(report: Report) -> list[str]:
    """What was healed, and what is absent at the exchange."""
    from cryptopulse.completeness.audit.report import moment, span

    lines = []
    for ledger in report.ledgers:
        lines += [
            f"healed  {ledger.symbol}: {span(part.first_trade_id, part.last_trade_id)} by {part.source}, traded "
            + " to ".join(dict.fromkeys((moment(part.first_time), moment(part.last_time))))
            for part in ledger.healed[:_INTERVAL_LINES_MAX]
        ]
        lines += [
            f"absent  {ledger.symbol}: {span(part.first_trade_id, part.last_trade_id)} left out by the exchange, as "
            f"the message at partition {part.partition}, offset {part.offset} of bronze shows"
            for part in ledger.absent[:_INTERVAL_LINES_MAX]
        ]
        for name, parts in (("healed", ledger.healed), ("absent", ledger.absent)):
            more = len(parts) + ledger.left_out.get(name, 0) - _INTERVAL_LINES_MAX
            lines += [f"{name}  {ledger.symbol}: {more:,} more stretches (see --json)"] if more > 0 else []
    return lines


def _finding_lines(report: Report) -> list[str]:
    """Findings of a kind together, and what repairs them."""
    lines = []
    for kind, count in report.findings.counts.items():
        found = [finding for finding in report.findings.listed if finding.kind == kind][:_KIND_LINES_MAX]
        lines += [f"{_word(kind)}  {finding.text}. Repair: {finding.repair}." for finding in found]
        if count > len(found):
            lines.append(f"{_word(kind)}  {count - len(found):,} more of this kind (see --json).")
    return lines


def _word(kind: str) -> str:
    return kind.replace("_", " ")


def _checked(check: Any) -> str:
    skipped = f" ({check.skipped:,} not judged)" if check.skipped else ""
    return f"{check.count:,} {check.name}{skipped}"


def _verdict(report: Report) -> str:
    if not report.is_complete:
        missing = sum(ledger.missing_ids for ledger in report.ledgers)
        kinds = ", ".join(f"{_word(kind)}: {count:,}" for kind, count in report.findings.counts.items())
        return f"NOT COMPLETE: {missing:,} ids missing; findings by kind: {kinds}"
    if not report.ledgers:
        return "COMPLETE: there are no trades"
    expected = sum(ledger.expected_ids for ledger in report.ledgers)
    parts = {
        "held once": sum(ledger.held_ids for ledger in report.ledgers),
        "absent at the exchange": sum(ledger.absent_ids for ledger in report.ledgers),
        "on their way": sum(ledger.on_their_way_ids for ledger in report.ledgers),
    }
    said = ", ".join(f"{count:,} {what}" for what, count in parts.items() if count or what == "held once")
    return f"COMPLETE: of {expected:,} ids of {len(report.ledgers)} products {said}; nothing is missing"
