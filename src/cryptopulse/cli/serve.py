"""`serve`: the dashboard and the HTTP API."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Annotated

import typer

from cryptopulse.cli.options import Config, Lake, LogFile, Supervised, settings_from

_END_WITHIN_S = 0.5


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog="Example: cryptopulse serve --lake lake --port 8050")(serve)


def serve(
    lake: Lake = None,
    config: Config = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Address to listen on. [default: serve.host]")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", metavar="N", help="Port to listen on; 0: any. [default: serve.port]")
    ] = None,
    supervised: Supervised = None,
    log_file: LogFile = None,
) -> None:
    """Show the dashboard and answer the HTTP API, over a lake that may be written elsewhere: until Ctrl-C."""
    from cryptopulse.deployment import process_context
    from cryptopulse.status import DASHBOARD, read_status

    settings = settings_from(lake, config, serve={"host": host, "port": port})
    before = read_status(settings.state_dir, DASHBOARD).report.get("port")
    with process_context(settings, DASHBOARD, supervised, log_file) as report:
        from cryptopulse.serve.server import serve as run

        if supervised is None:
            run(settings, [settings.serve.port], report, lambda url: typer.echo(f"Dashboard: {url}"))
        else:  # a taken port must not stop the recording; browsers return to the port from before a restart
            run(settings, [settings.serve.port, *([before] if isinstance(before, int) else []), 0], report)
    # Reading threads may wait minutes for a storage that does not answer. They write nothing, so they can be killed.
    end_s = time.monotonic() + _END_WITHIN_S
    others = [one for one in threading.enumerate() if one is not threading.main_thread() and not one.daemon]
    for one in others:
        one.join(max(0.0, end_s - time.monotonic()))
    if any(one.is_alive() for one in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
