"""`simulate`: serves a simulated exchange."""

from __future__ import annotations

import json as json_text
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cryptopulse.cli.options import DayTrades, Json, LogFile, Supervised, leave_out, no_option
from cryptopulse.cli.output import print_json, print_table

if TYPE_CHECKING:
    from cryptopulse.simulator.options import SimulatorOptions, Start

STARTS: tuple[Start, ...] = ("at_once", "first_subscription", "all_subscribed")


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog="Example: cryptopulse simulate --products 20 --rate 500 --episode crash:BTC-USD@20s:3%")(
        simulate
    )


def simulate(
    products: Annotated[
        str | None,
        typer.Option(metavar="N|IDS", help="How many products, or which: BTC-USD,ETH-USD. [default: 20]"),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="N", help="Trades a second, all products together. [default: 100; --real-shape: all in a minute]"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same trades.")] = 1,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0: for other containers as well.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any free one.")] = 8765,
    speed: Annotated[float, typer.Option(help="Market seconds in a second; 0: as fast as it is read.")] = 1.0,
    episode: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND:ID@TIME:DEPTH", help="As in crash:BTC-USD@20s:3%; may be repeated."),
    ] = None,
    faults: Annotated[
        str, typer.Option(metavar="NAME=VALUE,…", help="As in drop=0.01,disconnect=30s,rest-429=0.2.")
    ] = "",
    recording: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Serve this recording instead of a market.")
    ] = None,
    start: Annotated[
        str,
        typer.Option(metavar="WHEN", help="Trading starts: at_once, first_subscription or all_subscribed."),
    ] = "at_once",
    start_feeds: Annotated[
        str,
        typer.Option(metavar="NAMES", help="With all_subscribed: on each of these feeds, as in exchange,kraken."),
    ] = "",
    past: Annotated[
        str, typer.Option(metavar="TIME", help="How long it has traded before the start, for REST, as in 25h.")
    ] = "0",
    rest_limit: Annotated[bool, typer.Option(help="Answer 429 beyond 10 requests a second.")] = True,
    real_shape: Annotated[
        bool, typer.Option("--real-shape", help="Serve a crash day instead of a market, at an even rate.")
    ] = False,
    crash_day: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Serve nothing: write a recording of a crash day, for replay.", callback=no_option
        ),
    ] = None,
    trades: DayTrades = None,
    json: Json = False,
    supervised: Supervised = None,
    log_file: LogFile = None,
) -> None:
    """Serve a simulated exchange: WebSocket feeds and REST as of Coinbase, Kraken, Binance and OKX."""
    from cryptopulse import logging_setup
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.simulator.crash_day import PLAYED_S, TRADES

    if trades is not None and crash_day is None and not real_shape:
        raise ConfigurationError("--trades are those of a crash day: add --real-shape or --crash-day.")
    if crash_day is not None:
        if real_shape:
            raise ConfigurationError("--crash-day writes a file, --real-shape serves the day: give one of them.")
        _write_crash_day(crash_day, TRADES if trades is None else trades, seed, json)
        return
    day_trades = None
    if real_shape:
        day_trades = TRADES if trades is None else trades
        leave_out("--real-shape", {"--products": products, "--recording": recording, "--episode": episode})

    from cryptopulse.settings import LoggingSettings
    from cryptopulse.simulator.episodes import parse_episode
    from cryptopulse.simulator.faults import Faults
    from cryptopulse.simulator.options import SimulatorOptions
    from cryptopulse.simulator.server import run
    from cryptopulse.supervisor import stop_with_parent
    from cryptopulse.text import parse_duration

    if start not in STARTS:
        raise ConfigurationError(f"--start {start}: write {', '.join(STARTS)}.")
    wanted = "20" if products is None else products
    usual_rate = 100.0 if day_trades is None else max(day_trades / PLAYED_S, 1.0)
    ids = [part.strip().upper() for part in wanted.split(",") if part.strip()]
    options = SimulatorOptions(
        products=int(wanted) if wanted.isdecimal() else ids,
        rate=usual_rate if rate is None else rate,
        seed=seed,
        host=host,
        port=port,
        speed=speed,
        episodes=[parse_episode(text) for text in episode or ()],
        faults=Faults.parse(faults),
        recording=recording,
        crash_day_trades=day_trades,
        start=start,
        start_feeds=[part.strip().lower() for part in start_feeds.split(",") if part.strip()],
        past_s=parse_duration(past, may_be_zero=True),
        rest_limit=rest_limit,
    )
    file = logging_setup.BoundedFile(log_file, descriptor=2) if log_file else None
    logging_setup.configure(LoggingSettings(), "simulator", file)
    if supervised is not None:
        stop_with_parent()
    run(options, on_ready=lambda bound: _announce(options, bound, json))


def _write_crash_day(path: Path, trades: int, seed: int, as_json: bool) -> None:
    """Writes the recording and prints what it holds."""
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.simulator.crash_day import CrashDay

    try:
        summary = CrashDay(trades, seed).write(path)
    except OSError as error:
        raise ConfigurationError(f"Recording {path} can't be written: {error.strerror}.") from error
    if as_json:
        print_json(asdict(summary))
        return
    rows = [
        (name, f"{held.trades:,}", f"{held.missing_ids:,}", f"{held.holes:,}")
        for name, held in summary.products.items()
    ]
    print_table(("product", "trades", "missing ids", "holes"), rows, frozenset({"trades", "missing ids", "holes"}))
    typer.echo(
        f"{path} holds {summary.messages:,} messages of {summary.connections} connections: {summary.trades:,} trades, "
        f"{summary.repeated:,} repeated, {summary.missing_ids:,} ids missing in {summary.holes:,} holes"
    )


def _announce(options: SimulatorOptions, port: int, as_json: bool) -> None:
    """Prints the exchange's addresses and how to point a pipeline at them."""
    from cryptopulse.simulator.options import FEEDS
    from cryptopulse.simulator.other_venues import SYMBOLS

    rest_url = f"http://{options.host}:{port}"
    addresses = {f"{feed}_url": f"ws://{options.host}:{port}/{feed}" for feed in FEEDS} | {"rest_url": rest_url}
    products = [product.product_id for product in options.catalogue()]
    if as_json:
        sys.stdout.write(json_text.dumps({**addresses, "port": port, "products": products}) + "\n")
    else:
        symbols = [products[0], *(f"{symbol(products[0])}@{venue}" for venue, symbol in SYMBOLS.items())]
        others = "".join(
            f"  export CRYPTOPULSE_{venue.upper()}__WEBSOCKET_URL={addresses[f'{venue}_url']}\n"
            f"  export CRYPTOPULSE_{venue.upper()}__REST_URL={rest_url}\n"
            for venue in SYMBOLS
        )
        sys.stdout.write(
            f"Exchange feed        {addresses['exchange_url']}\n"
            f"Advanced Trade feed  {addresses['advanced_url']}\n"
            f"Kraken feed          {addresses['kraken_url']}\n"
            f"Binance feed         {addresses['binance_url']}\n"
            f"OKX feed             {addresses['okx_url']}\n"
            f"REST                 {rest_url}\n"
            f"To record it:\n"
            f"  export CRYPTOPULSE_FEED__WEBSOCKET_URL={addresses['exchange_url']}\n"
            f"  export CRYPTOPULSE_FEED__REST_URL={rest_url}\n"
            f"  cryptopulse run --products {','.join(products[:3])}\n"
            f"To record it at other venues as well:\n"
            f"{others}"
            f"  cryptopulse run --products {','.join(symbols)}\n"
        )
    sys.stdout.flush()
