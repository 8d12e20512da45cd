"""The dashboard: pages in the browser, made of the tables of gold and silver.

The server makes the frame of a page; figures, tables and charts are drawn in the browser by the modules in `browser/`,
which get the data over one WebSocket (`cryptopulse.serve.live.socket`). So a commit is one small message that is made
once for all viewers.
"""

from __future__ import annotations

from fastapi import FastAPI, WebSocket
from nicegui import app as nicegui_app
from nicegui import ui
from starlette.routing import Router

from cryptopulse.serve.dashboard.assets import add_assets
from cryptopulse.serve.dashboard.handlers import add_handlers
from cryptopulse.serve.dashboard.layout import FAVICON, TITLE, add_head
from cryptopulse.serve.dashboard.pages import add_pages
from cryptopulse.serve.live.hub import Live
from cryptopulse.serve.live.socket import PATH, serve_socket


def add_dashboard(app: FastAPI) -> None:
    """Puts the pages into `app`, at every path that it has no route for yet."""
    live: Live = app.state.live

    @app.websocket(PATH)
    async def topics(socket: WebSocket) -> None:
        await serve_socket(socket, live)

    add_head(add_assets(app))
    add_pages(app.state.settings)
    nicegui_app.on_shutdown(add_handlers(app).close)
    app.mount("/_nicegui_ws", Router())  # nobody needs it (`layout`), so that it is no way in
    # Neither Tailwind, whose compiler each browser would run, nor a loop over bindings, of which there are none.
    ui.run_with(
        app,
        title=TITLE,
        favicon=FAVICON,
        dark=None,
        language="en-US",
        tailwind=False,
        binding_refresh_interval=None,
        show_welcome_message=False,
    )
