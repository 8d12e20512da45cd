"""`demo`: the whole pipeline against the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryptopulse.cli.options import Dashboard, DayTrades, Feed, leave_out


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog="Example: cryptopulse demo --for 60s --rate 1000")(demo)


def demo(
    lake: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the tables; a demo's folder is emptied first.")
    ] = Path("demo-lake"),
    duration: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="TIME", help="End after that, as in 60s. [default: at Ctrl-C, or when the day is over]"
        ),
    ] = None,
    real_shape: Annotated[
        bool, typer.Option("--real-shape", help="Play a crash day of 20 products, instead of a market, in a minute.")
    ] = False,
    trades: DayTrades = None,
    rate: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=50_000,
            metavar="N",
            help="Trades a second, all products together. [default: 300; --real-shape: all in a minute]",
        ),
    ] = None,
    products: Annotated[
        int | None, typer.Option(min=2, max=500, metavar="N", help="How many products. [default: 12]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same trades.")] = 1,
    venues: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Trade at these: coinbase,kraken,binance,okx. [default: coinbase]"),
    ] = None,
    feed: Feed = None,
    notify: Annotated[
        bool, typer.Option("--notify", help="Tell the targets of notify.targets of the demo's alerts.")
    ] = False,
    past: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Fetch this much of the market's past first; 0: nothing. [default: 25h; with other venues 30m]",
        ),
    ] = None,
    dashboard: Dashboard = True,
) -> None:
    """See it work: a simulated exchange, its past, the whole pipeline, a flash crash; then a check of every trade."""
    from cryptopulse.demo import DemoOptions, run_demo
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.settings import load_settings
    from cryptopulse.simulator.crash_day import PLAYED_S, TRADES
    from cryptopulse.simulator.options import SimulatorOptions
    from cryptopulse.text import parse_duration

    if trades is not None and not real_shape:
        raise ConfigurationError("--trades are those of a crash day: add --real-shape.")
    if real_shape:
        leave_out("--real-shape", {"--products": products, "--past": past, "--venues": venues})
    traded_at = _venues("coinbase" if venues is None else venues)
    if feed is not None and "coinbase" not in traded_at:
        raise ConfigurationError("--feed is of Coinbase: add coinbase to --venues, or leave out --feed.")
    seconds = None if duration is None else parse_duration(duration)
    past_s = 0.0 if real_shape else parse_duration("25h" if past is None else past, may_be_zero=True)
    day_trades = None
    if real_shape:
        day_trades = TRADES if trades is None else trades
    usual_rate = 300.0 if day_trades is None else max(day_trades / PLAYED_S, 1.0)
    rate = usual_rate if rate is None else rate
    products = 12 if products is None else products
    # Refuses what the simulator would, before anything is deleted.
    SimulatorOptions(products, rate, seed, past_s=past_s, crash_day_trades=day_trades)
    options = DemoOptions(
        lake=lake.absolute(),
        duration_s=seconds,
        rate=rate,
        products=products,
        seed=seed,
        feed=feed or "exchange",
        notify=load_settings().notify if notify else None,
        dashboard=dashboard,
        past_s=past_s,
        crash_day_trades=day_trades,
        venues=traded_at,
    )
    raise typer.Exit(0 if run_demo(options) else 1)


def _venues(text: str) -> list[str]:
    """The venues of `--venues`. Raises ConfigurationError."""
    from cryptopulse.errors import ConfigurationError
    from cryptopulse.simulator.other_venues import SYMBOLS
    from cryptopulse.venues.registry import COINBASE

    known = (COINBASE, *SYMBOLS)
    named = [part.strip().lower() for part in text.split(",") if part.strip()]
    if not named:
        raise ConfigurationError(f"--venues names none: write some of {', '.join(known)}.")
    for venue in named:
        if venue not in known:
            raise ConfigurationError(f"--venues: unknown venue {venue!r} (expected {', '.join(known)}).")
        if named.count(venue) > 1:
            raise ConfigurationError(f"--venues names {venue} twice: name each venue once.")
    return named
