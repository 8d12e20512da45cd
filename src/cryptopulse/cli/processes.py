"""`run`, `produce`, `process` and `notify`: from the feed to the tables and to the receivers of alerts."""

from __future__ import annotations

from typing import Annotated

import typer

from cryptopulse.cli.options import (
    Config,
    Dashboard,
    Feed,
    Lake,
    LogFile,
    Products,
    RestUrl,
    Supervised,
    WebsocketUrl,
    settings_from,
)

_Engine = Annotated[
    str | None, typer.Option("--engine", metavar="NAME", help="embedded or spark. [default: processing.engine]")
]
_Steps = Annotated[
    str | None,
    typer.Option(
        "--steps", metavar="LIST", help="Only these of Spark's: bronze, silver, alerts, prices. [default: all]"
    ),
]
_Once = Annotated[bool, typer.Option("--once", help="Process the backlog, then exit.")]
_View = Annotated[bool | None, typer.Option("--view/--no-view", help="The live view. [default: only on a terminal]")]


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command(epilog="Example: cryptopulse run --products BTC-USD,ETH-USD --lake lake")(run)
    app.command(epilog="Example: cryptopulse produce --feed advanced --lake lake")(produce)
    app.command(epilog="Example: cryptopulse process --lake lake --once")(process)
    app.command(epilog="Example: cryptopulse notify --lake lake")(notify)


def run(
    lake: Lake = None,
    config: Config = None,
    products: Products = None,
    feed: Feed = None,
    websocket_url: WebsocketUrl = None,
    rest_url: RestUrl = None,
    view: _View = None,
    dashboard: Dashboard = True,
) -> None:
    """Keep the tables up to date with the live feed, until Ctrl-C."""
    from cryptopulse.deployment import Deployment, run_until_stopped
    from cryptopulse.status import DASHBOARD, processes_of

    settings = settings_from(lake, config, products, feed, websocket_url=websocket_url, rest_url=rest_url)
    options = {
        "--lake": settings.lake,
        "--config": config and config.absolute(),
        "--products": products,
        "--feed": feed,
        "--websocket-url": websocket_url,
        "--rest-url": rest_url,
    }
    processes = [name for name in processes_of(settings) if dashboard or name != DASHBOARD]
    run_until_stopped(settings, Deployment(settings.state_dir, options, processes=processes), view)


def produce(
    lake: Lake = None,
    config: Config = None,
    products: Products = None,
    feed: Feed = None,
    websocket_url: WebsocketUrl = None,
    rest_url: RestUrl = None,
    supervised: Supervised = None,
    log_file: LogFile = None,
) -> None:
    """Write the live feed to the log: the first half of `run`, alone."""
    from cryptopulse.deployment import process_context, run_producer

    settings = settings_from(lake, config, products, feed, websocket_url=websocket_url, rest_url=rest_url)
    with process_context(settings, "producer", supervised, log_file) as report:
        from cryptopulse.log.opening import open_log

        run_producer(settings, open_log(settings), report)


def process(
    lake: Lake = None,
    config: Config = None,
    engine: _Engine = None,
    steps: _Steps = None,
    once: _Once = False,
    supervised: Supervised = None,
    log_file: LogFile = None,
) -> None:
    """Bring the log's messages into the tables: the second half of `run`, alone."""
    from cryptopulse.deployment import drain_log, process_context, run_processing
    from cryptopulse.settings import STEPS

    settings = settings_from(lake, config, engine=engine)
    chosen = tuple(step.strip() for step in steps.split(",")) if steps else STEPS
    # Several jobs may share the steps of one lake; each has its own status.
    name = "processing" if chosen == STEPS else f"processing-{'-'.join(chosen)}"
    with process_context(settings, name, supervised, log_file) as report:
        from cryptopulse.log.opening import open_log

        if once:
            try:
                report(drain_log(settings, open_log(settings), chosen))
            except SystemExit as ended:  # by SIGTERM: an orderly end, but the backlog is not done
                raise SystemExit(143) from ended
        else:
            run_processing(settings, open_log(settings), report, chosen)


def notify(
    lake: Lake = None,
    config: Config = None,
    supervised: Supervised = None,
    log_file: LogFile = None,
) -> None:
    """Tell the targets of `notify.targets` of alerts: `run` starts it by itself when there are any."""
    from cryptopulse.deployment import process_context, run_notifier

    settings = settings_from(lake, config)
    with process_context(settings, "notifier", supervised, log_file) as report:
        run_notifier(settings, report)
