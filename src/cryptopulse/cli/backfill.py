"""`backfill`: fetches the history of products."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from cryptopulse.cli.options import Config, Json, Lake, RestUrl, Supervised, settings_from
from cryptopulse.cli.output import print_conflicts, print_json, progress_bar

if TYPE_CHECKING:
    from cryptopulse.errors import CryptoPulseError
    from cryptopulse.healing.backfill import Backfill, Filled, Plan


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog="Example: cryptopulse backfill BTC-USD --from 2026-11-01 --lake lake")(backfill)


def backfill(
    products: Annotated[list[str], typer.Argument(metavar="PRODUCT…", help="As in BTC-USD ETH-USD.")],
    start: Annotated[
        str, typer.Option("--from", metavar="TIME", help="Start (inclusive), as in 2026-11-01T12:00 (UTC).")
    ],
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="End (exclusive). [default: now]")] = None,
    lake: Lake = None,
    config: Config = None,
    rest_url: RestUrl = None,
    json: Json = False,
    supervised: Supervised = None,
) -> None:
    """Fetch the trades of the past that the lake does not hold. Resumable: rerun the same command.

    A product that the exchange refuses (exit code 2) or says nothing useful about (9) is reported; others continue.
    """
    import asyncio

    from cryptopulse.errors import ERROR_PREFIX, ConfigurationError, CryptoPulseError, NotFetched, UnknownProduct
    from cryptopulse.lake.products import invalid_product_id, is_symbol, venue_of
    from cryptopulse.settings import RECORDED_VENUES
    from cryptopulse.text import parse_trade_time

    settings = settings_from(lake, config, rest_url=rest_url)
    from_time, to_time = parse_trade_time(start), parse_trade_time(end) if end else None
    if to_time is not None and to_time <= from_time:
        raise ConfigurationError(f"--to {end} is not after --from {start}.")
    for product in products:
        if not is_symbol(product) or venue_of(product) not in ("", *RECORDED_VENUES):
            raise ConfigurationError(invalid_product_id(product))
    if rest_url is not None and all(map(venue_of, products)):
        raise ConfigurationError(
            f"--rest-url is Coinbase's: set {venue_of(products[0])}.rest_url for {products[0]} (cryptopulse config)."
        )

    from cryptopulse import logging_setup
    from cryptopulse.healing.backfill import Backfill
    from cryptopulse.lake.retention import let_go
    from cryptopulse.lake.tables import SILVER
    from cryptopulse.log.opening import open_log
    from cryptopulse.supervisor import stop_with_parent

    gone = let_go(settings.location, SILVER)
    if gone is not None and from_time.date() < gone.kept_from:
        typer.echo(
            f"{gone}: only ids never held are fetched of them; their trades make no bars, and go again.", err=True
        )
    logging_setup.configure_quiet(settings.logging)
    if supervised is not None:
        stop_with_parent()
    show = (lambda _plan: None) if json else _print_plan
    done: dict[str, tuple[Plan, Filled] | CryptoPulseError] = {}
    exit_code = 0
    with closing(open_log(settings)) as log:
        work = Backfill(settings, log)
        try:
            for product in dict.fromkeys(products):
                try:
                    with progress_bar(product) as progress:
                        done[product] = asyncio.run(work.run(product, from_time, to_time, show, progress))
                except (UnknownProduct, NotFetched) as error:  # of this product only; shown now: the end may be far off
                    typer.echo(f"{ERROR_PREFIX}{' '.join(str(error).split())}", err=True)
                    done[product] = error
                    exit_code = max(exit_code, error.exit_code)
        except (KeyboardInterrupt, CryptoPulseError):
            if done:
                with suppress(CryptoPulseError):
                    _report(work, done, json)
            raise
        _report(work, done, json)
    if exit_code:
        raise typer.Exit(exit_code)


def _report(work: Backfill, done: Mapping[str, tuple[Plan, Filled] | CryptoPulseError], json: bool) -> None:
    """Stores what was fetched, and prints what the tables hold of it."""
    from cryptopulse.errors import CryptoPulseError

    is_stored = work.store()
    found: list[dict[str, object]] = []
    for product, result in done.items():
        if isinstance(result, CryptoPulseError):
            found.append({"product": product, "error": str(result), "stored": is_stored})
            continue
        wanted, filled = result
        in_tables = work.in_tables(wanted) if is_stored else None
        found.append(
            {
                "product": product,
                "first_trade_id": wanted.first_trade_id,
                "last_trade_id": wanted.last_trade_id,
                "trades": wanted.trades,
                "held_before": wanted.trades - wanted.to_fetch,
                "fetched": filled.fetched,
                "absent": filled.absent,
                "in_tables": in_tables,
                "stored": is_stored,
                "conflicts": work.conflicts[product],
            }
        )
        if not json:
            _print_result(wanted, filled, in_tables)
    if json:
        print_json(found)
    else:
        print_conflicts(work.conflicts.total())


def _print_plan(wanted: Plan) -> None:
    if not wanted.trades:
        typer.echo(f"{wanted.product}: the exchange has no trades of that time.")
        return
    if not wanted.to_fetch:
        typer.echo(f"{wanted.product}: all {wanted.trades:,} trades of that time are held already.")
        return
    seconds = wanted.to_fetch / wanted.ids_per_second
    about = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{math.ceil(seconds / 60)} min"
    typer.echo(
        f"{wanted.product}: trades {wanted.first_trade_id} to {wanted.last_trade_id}, of which "
        f"{wanted.to_fetch:,} of {wanted.trades:,} are to be fetched: about {about}. Ctrl-C stops; the same command "
        "goes on."
    )


def _print_result(wanted: Plan, filled: Filled, in_tables: int | None) -> None:
    if not wanted.to_fetch:
        return
    absent = f", {filled.absent:,} the exchange itself does not have" if filled.absent else ""
    if in_tables is None:
        where = "they are in the log; the pipeline of this lake brings them into the tables"
    elif in_tables >= filled.fetched:
        where = "they are in the tables"
    else:
        where = f"the tables hold {in_tables:,} of them, `cryptopulse audit` shows why not the others"
    typer.echo(f"{wanted.product}: {filled.fetched:,} trades fetched{absent}; {where}.")
