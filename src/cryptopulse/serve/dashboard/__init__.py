"""The dashboard: web pages about the tables of gold and silver.

The server makes the frame of a page; the modules in `browser/` draw figures, tables and charts in the browser. They get
the data over one WebSocket (`cryptopulse.serve.live.socket`), so that a commit is one small message, encoded once for
all viewers.
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
    """Adds the pages to `app`, at all paths for which it has no route yet."""
    live: Live = app.state.live

    @app.websocket(PATH)
    async def topics(socket: WebSocket) -> None:
        await serve_socket(socket, live)

    add_head(add_assets(app))
    add_pages(app.state.settings)
    nicegui_app.on_shutdown(add_handlers(app).close)
    app.mount("/_nicegui_ws", Router())  # hides NiceGUI's socket: pages don't use it (`layout`), so nobody else should
    # No Tailwind, because each browser would run its compiler; no loop over bindings, because there are none.
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
