"""`playback`: plays a window of a lake again, as the exchange."""

from __future__ import annotations

import json as json_text
from typing import TYPE_CHECKING, Annotated

import typer

from cryptopulse.cli.options import Config, Json, Lake, Products, settings_from

if TYPE_CHECKING:
    from cryptopulse.playback.window import Window


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    example = "cryptopulse playback --from 2026-11-28T21:00 --to 2026-11-28T22:00 --speed 10 --lake lake"
    app.command(epilog=f"Example: {example}")(playback)


def playback(
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Start (inclusive), UTC.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="End (exclusive), UTC.")] = None,
    speed: Annotated[
        float, typer.Option(metavar="N", help="Seconds of the past in a second; 0: as fast as it is read.")
    ] = 1.0,
    products: Products = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8766,
    lake: Lake = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Play a time of a lake again as the exchange: the same messages over WebSocket, pages and candles over REST."""
    from cryptopulse import logging_setup
    from cryptopulse.lake.dataset import open_lake
    from cryptopulse.lake.products import as_written
    from cryptopulse.lake.scan import moment_of, time_range
    from cryptopulse.playback import PlaybackOptions, run

    settings = settings_from(lake, config)
    logging_setup.configure(settings.logging, "playback")
    limits = settings.processing
    first_us, end_us = time_range(start, end)
    symbols = [as_written(one) for one in products.split(",")] if products else None
    options = PlaybackOptions(first_us, end_us, speed, symbols, host, port)

    def announce(bound: int, window: Window) -> None:
        place = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        addresses = {
            "exchange_url": f"ws://{place}/exchange",
            "advanced_url": f"ws://{place}/advanced",
            "rest_url": f"http://{place}",
        }
        first, last = (moment_of(us).isoformat() for us in (window.first_us, window.last_us))
        if json:
            told = {**addresses, "products": window.products, "first": first, "last": last}
            typer.echo(json_text.dumps(told))  # one line, as a program that starts this one reads
        else:
            typer.echo(
                f"Messages received from {first} to {last}, of {len(window.products)} products\n"
                f"Exchange feed        {addresses['exchange_url']}\n"
                f"Advanced Trade feed  {addresses['advanced_url']}\n"
                f"REST                 {addresses['rest_url']}\n"
                "It begins with the first subscription; Ctrl-C ends it."
            )

    with open_lake(
        settings.location, memory_max_mb=limits.memory_max_mb, threads=limits.threads, timeout_s=None
    ) as reader:
        run(reader, options, announce)
