"""`backfill`: history, on request."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from cryptopulse.commands.common import Config, Json, Lake, RestUrl, print_json, progress_bar, quiet, settings_from

if TYPE_CHECKING:
    from cryptopulse.completeness.history import Filled, Plan


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog="Example: cryptopulse backfill BTC-USD --from 2026-11-01 --lake lake")(backfill)


def backfill(
    products: Annotated[list[str], typer.Argument(metavar="PRODUCT…", help="As in BTC-USD ETH-USD.")],
    start: Annotated[str, typer.Option("--from", metavar="TIME", help="From then, as in 2026-11-01T12:00 (UTC).")],
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Before then. [default: now]")] = None,
    lake: Lake = None,
    config: Config = None,
    rest_url: RestUrl = None,
    json: Json = False,
) -> None:
    """Fetch the trades of the past that the lake does not hold. Stopped? The same command goes on where it was."""
    import asyncio

    from cryptopulse.durations import parse_trade_time
    from cryptopulse.errors import ConfigurationError

    settings = settings_from(lake, config, rest_url=rest_url)
    from_time, to_time = parse_trade_time(start), parse_trade_time(end) if end else None
    if to_time is not None and to_time <= from_time:
        raise ConfigurationError(f"--to {end} is not after --from {start}.")

    from cryptopulse.completeness.backfill import Backfill
    from cryptopulse.log.opening import open_log

    quiet(settings)
    log = open_log(settings)
    found = []
    try:
        for product in dict.fromkeys(products):
            work = Backfill(settings, log)
            with progress_bar(product) as progress:
                planned = _say_plan if not json else _say_nothing
                wanted, filled = asyncio.run(work.run(product, from_time, to_time, planned, progress))
            found.append(_as_dict(wanted, filled, stored=work.stored))
            if not json:
                _say_result(wanted, filled, stored=work.stored)
    finally:
        log.close()
    if json:
        print_json(found)


def _say_nothing(_wanted: Plan) -> None:
    """For --json, whose output is one object at the end."""


def _say_plan(wanted: Plan) -> None:
    from cryptopulse.completeness.backfill import REQUESTS_PER_SECOND
    from cryptopulse.completeness.history import SPAN

    if not wanted.trades:
        typer.echo(f"{wanted.product}: the exchange has no trades of that time.")
        return
    if not wanted.to_fetch:
        typer.echo(f"{wanted.product}: all {wanted.trades:,} trades of that time are held already.")
        return
    seconds = wanted.to_fetch / SPAN / REQUESTS_PER_SECOND
    about = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{math.ceil(seconds / 60)} min"
    typer.echo(
        f"{wanted.product}: trades {wanted.first_trade_id} to {wanted.last_trade_id}, of which "
        f"{wanted.to_fetch:,} of {wanted.trades:,} are to be fetched: about {about}. Ctrl-C stops; the same command "
        "goes on."
    )


def _say_result(wanted: Plan, filled: Filled, *, stored: bool) -> None:
    if not wanted.to_fetch:
        return
    absent = f", {filled.absent:,} the exchange itself does not have" if filled.absent else ""
    where = "they are in the tables" if stored else "the pipeline of this lake brings them into the tables"
    typer.echo(f"{wanted.product}: {filled.fetched:,} trades fetched{absent}; {where}.")


def _as_dict(wanted: Plan, filled: Filled, *, stored: bool) -> dict[str, object]:
    return {
        "product": wanted.product,
        "first_trade_id": wanted.first_trade_id,
        "last_trade_id": wanted.last_trade_id,
        "trades": wanted.trades,
        "held_before": wanted.trades - wanted.to_fetch,
        "fetched": filled.fetched,
        "absent": filled.absent,
        "stored": stored,
    }
