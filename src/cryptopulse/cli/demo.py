"""`demo`: the whole pipeline against the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryptopulse.cli.options import Dashboard, Feed


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog="Example: cryptopulse demo --for 60s --rate 1000")(demo)


def demo(
    lake: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of the tables; a demo's folder is emptied first.")
    ] = Path("demo-lake"),
    duration: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="End after that, as in 60s. [default: at Ctrl-C]"),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=1, max=20_000, metavar="N", help="Trades a second, all products together.")
    ] = 300.0,
    products: Annotated[int, typer.Option(min=2, max=500, metavar="N", help="How many products.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same trades.")] = 1,
    feed: Feed = None,
    notify: Annotated[
        bool, typer.Option("--notify", help="Tell the targets of notify.targets of the demo's alerts.")
    ] = False,
    past: Annotated[
        str, typer.Option(metavar="TIME", help="Fetch this much of the market's past first; 0: nothing.")
    ] = "25h",
    dashboard: Dashboard = True,
) -> None:
    """See it work: a simulated exchange, its past, the whole pipeline, a flash crash; then a check of every trade."""
    from cryptopulse.demo import DemoOptions, run_demo
    from cryptopulse.settings import load_settings
    from cryptopulse.simulator.options import SimulatorOptions
    from cryptopulse.text import parse_duration

    seconds = None if duration is None else parse_duration(duration)
    past_s = parse_duration(past, may_be_zero=True)
    SimulatorOptions(
        products, rate, seed, past_s=past_s
    )  # refuses what the simulator would, before anything is deleted
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
    )
    raise typer.Exit(0 if run_demo(options) else 1)
