"""The web application: the HTTP API, health, metrics, and at all other paths the dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from cryptopulse import __version__
from cryptopulse.engine.as_of import judging_by
from cryptopulse.serve.api.app import create_api
from cryptopulse.serve.api.events import Events
from cryptopulse.serve.api.service import Service
from cryptopulse.serve.http.connections import Connections
from cryptopulse.serve.http.guard import Guard
from cryptopulse.serve.http.problems import handle_errors
from cryptopulse.serve.live.hub import Live
from cryptopulse.serve.ops import Metrics, ServerCollector
from cryptopulse.serve.ops import router as metrics_router
from cryptopulse.serve.ops.health import LoopWatch, Readiness
from cryptopulse.serve.ops.health import router as health_router
from cryptopulse.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """HTTP API, health and metrics over the lake of `settings`. A process may have several."""
    service = Service(settings.location, settings.serve, judging_by(settings.alerts.rules))
    live = Live(settings.location, settings.serve.poll_ms / 1000, settings.state_dir)
    events = Events(live, service)
    loop_watch = LoopWatch()
    connections = Connections(settings.serve)
    metrics = Metrics(settings, service, ServerCollector(service.queries, loop_watch, connections))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        """Follows the lake while the application runs, once for all viewers."""
        live.start()
        try:
            async with loop_watch.watching():
                yield
        finally:
            await asyncio.to_thread(live.close)
            service.close()

    app = FastAPI(
        title="CryptoPulse", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.state.settings = settings
    app.state.connections = connections
    app.state.live = live
    app.state.events = events
    app.state.loop_watch = loop_watch
    app.state.metrics = metrics
    app.state.readiness = Readiness(service.lake, service.versions, service.monitoring, settings.serve.fresh_s)
    app.include_router(health_router)
    app.include_router(metrics_router)
    app.mount("/api", create_api(service, events, settings.serve))
    handle_errors(app)
    app.add_middleware(Guard, settings=settings.serve, state_dir=settings.state_dir)
    app.add_middleware(metrics.requests.middleware)
    return app


def with_dashboard(app: FastAPI) -> FastAPI:
    """`app` with the dashboard at `/`. Call it once per process: NiceGUI's pages are global."""
    from cryptopulse.serve.dashboard import add_dashboard  # noqa: PLC0415 - NiceGUI takes half a second

    add_dashboard(app)
    return app
