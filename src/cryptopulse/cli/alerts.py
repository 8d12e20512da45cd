"""`alerts list`, `alerts backtest`, `alerts test-notify`: episodes found, episodes of a trial rule, test messages."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryptopulse.cli.options import Config, Json, Lake, settings_from
from cryptopulse.cli.output import print_json, print_table, progress_bar

if TYPE_CHECKING:
    from cryptopulse.settings import AlertRule

_Products = Annotated[str | None, typer.Option("--products", metavar="IDS", help="Only these, as in BTC-USD,ETH-USD.")]
_COLUMNS = (
    "opened_at",
    "symbol",
    "alert_type",
    "rule",
    "severity",
    "state",
    "price_change_pct",
    "start_price",
    "end_price",
)
_NUMBERS = frozenset({"price_change_pct", "start_price", "end_price"})


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    group = typer.Typer(help="Crashes and surges: those found, and those that a rule would find.")
    group.command("list", epilog="Example: cryptopulse alerts list --products BTC-USD --json")(list_alerts)
    group.command(
        epilog="Example: cryptopulse alerts backtest --rule 'threshold_pct=0.5,lookback_s=60,products=*-USD'"
    )(backtest)
    group.command("test-notify", epilog="Example: cryptopulse alerts test-notify --target 1")(try_targets)
    app.add_typer(group, name="alerts", epilog="Example: cryptopulse alerts list")


def list_alerts(
    lake: Lake = None,
    config: Config = None,
    products: _Products = None,
    rows: Annotated[int, typer.Option(min=1, max=10**9, metavar="N", help="How many, the newest first.")] = 50,
    json: Json = False,
) -> None:
    """List the episodes found, the newest first."""
    import duckdb

    from cryptopulse.lake.dataset import connect

    settings = settings_from(lake, config)
    wanted = _ids(products)
    query = (
        "SELECT * FROM gold.dm_market_alerts WHERE len($wanted) = 0 OR list_contains($wanted, symbol) "
        "ORDER BY opened_at DESC LIMIT $rows"
    )
    with connect(settings.location) as connection:
        try:
            result = connection.sql(query, params={"wanted": wanted, "rows": rows})
            found = result.to_arrow_table().to_pylist()
        except duckdb.CatalogException:  # a new lake does not have this table yet
            found = []
    _print_alerts(found, json)


def backtest(
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,…",
            help="As in threshold_pct=0.5,lookback_s=60; may be repeated.",
        ),
    ] = None,
    lake: Lake = None,
    config: Config = None,
    products: _Products = None,
    start: Annotated[
        str | None, typer.Option(metavar="TIME", help="Start (inclusive), as in 2026-07-07T22:00 (UTC).")
    ] = None,
    end: Annotated[str | None, typer.Option(metavar="TIME", help="End (exclusive).")] = None,
    json: Json = False,
) -> None:
    """Judge the stored trades by a rule, without storing anything. Without --rule: by the rules in force."""
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.text import parse_trade_time

    settings = settings_from(lake, config)
    rules = [parse_rule(text) for text in rule or ()] or settings.alerts.rules
    wanted = _ids(products)
    from_time, to_time = (parse_trade_time(text) if text else None for text in (start, end))
    if from_time and to_time and from_time >= to_time:
        raise ConfigurationError(f"--start {start} is not before --end {end}.")

    from cryptopulse.engine.backtest import backtest as judge_history

    hours = 0
    with progress_bar("hours") as progress:

        def count(done: int, total: int) -> None:
            nonlocal hours
            hours = done
            progress(done, total)

        found = judge_history(settings.location, rules, wanted, from_time, to_time, count)
    if not hours:
        raise ConfigurationError("Nothing was judged: the lake has no trades of these products in this time.")
    _print_alerts(found.to_pylist(), json)


def try_targets(
    lake: Lake = None,
    config: Config = None,
    target: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only this one: 1 is the first of notify.targets.")
    ] = None,
    json: Json = False,
) -> None:
    """Send a test message to the targets of `notify.targets`. Exit code 1: a target refused it."""
    from cryptopulse import logging_setup
    from cryptopulse.notify.notifier import send_test

    settings = settings_from(lake, config)
    logging_setup.configure_quiet(settings.logging)
    results = send_test(settings, target)
    if json:
        print_json([{"target": name, "accepted": error is None, "error": error} for name, error in results])
    else:
        print_table(("target", "test message"), [(name, error or "accepted") for name, error in results])
    if any(error for _, error in results):
        raise typer.Exit(1)


def parse_rule(text: str) -> AlertRule:
    """A rule from `threshold_pct=0.5,lookback_s=60,products=BTC-USD|ETH-*,types=FLASH_CRASH`.

    Omitted names have their defaults. Raises ConfigurationError that names the wrong part.
    """
    from pydantic import ValidationError

    from cryptopulse.errors import ConfigurationError
    from cryptopulse.settings import AlertRule

    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in AlertRule.model_fields:
            names = ", ".join(AlertRule.model_fields)
            raise ConfigurationError(f"Rule part '{part}': write NAME=VALUE with one of {names}.")
        if name in given:
            raise ConfigurationError(f"Rule part '{part}': {name} is given twice.")
        given[name] = value.split("|") if name in ("products", "types") else value
    try:
        return AlertRule(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(f"Rule, {first['loc'][0]}: {first['msg'].removeprefix('Value error, ')}.") from error


def _print_alerts(alerts: list[dict[str, Any]], json: bool) -> None:
    if json:
        print_json(alerts)
        return
    if not alerts:
        typer.echo("No alerts.")
        return

    from cryptopulse.text import price_text

    def cell(value: Any) -> object:
        if isinstance(value, datetime):
            return f"{value:%Y-%m-%d %H:%M:%S}"
        if isinstance(value, float):
            return f"{value:+.2f}"
        return price_text(value) if isinstance(value, Decimal) else value

    print_table(_COLUMNS, [[cell(alert[name]) for name in _COLUMNS] for alert in alerts], _NUMBERS)


def _ids(products: str | None) -> list[str]:
    from cryptopulse.lake.products import as_written
    from cryptopulse.lake.scan import product_ids

    return list(product_ids(map(as_written, products.split(","))) or ()) if products else []
