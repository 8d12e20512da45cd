"""`run`, `produce` and `process`: the way from the feed to the tables."""

from __future__ import annotations

from typing import Annotated

import typer

from cryptopulse.commands.common import (
    Config,
    Feed,
    Lake,
    LogFile,
    Products,
    RestUrl,
    Supervised,
    WebsocketUrl,
    open_log,
    reported,
    settings_from,
)

_View = Annotated[bool | None, typer.Option("--view/--no-view", help="The live view. [default: only on a terminal]")]


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command(epilog="Example: cryptopulse run --products BTC-USD,ETH-USD --lake lake")(run)
    app.command(epilog="Example: cryptopulse produce --feed advanced --lake lake")(produce)
    app.command(epilog="Example: cryptopulse process --lake lake")(process)


def run(
    lake: Lake = None,
    config: Config = None,
    products: Products = None,
    feed: Feed = None,
    websocket_url: WebsocketUrl = None,
    rest_url: RestUrl = None,
    view: _View = None,
) -> None:
    """Keep the tables up to date with the live feed, until Ctrl-C."""
    from cryptopulse.deployment import Deployment, run_until_stopped

    settings = settings_from(lake, config, products, feed, websocket_url=websocket_url, rest_url=rest_url)
    options = {
        "--lake": settings.lake,
        "--config": config and config.absolute(),
        "--products": products,
        "--feed": feed,
        "--websocket-url": websocket_url,
        "--rest-url": rest_url,
    }
    run_until_stopped(settings, Deployment(settings.state_dir, options), view)


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
    settings = settings_from(lake, config, products, feed, websocket_url=websocket_url, rest_url=rest_url)
    with reported(settings, "producer", supervised, log_file) as report:
        from cryptopulse.deployment import run_producer

        run_producer(settings, open_log(settings), report)


def process(
    lake: Lake = None,
    config: Config = None,
    supervised: Supervised = None,
    log_file: LogFile = None,
) -> None:
    """Bring the log's messages into the tables: the second half of `run`, alone."""
    settings = settings_from(lake, config)
    with reported(settings, "processing", supervised, log_file) as report:
        from cryptopulse.deployment import run_processing

        run_processing(settings, open_log(settings), report)
