"""The web application: the HTTP API, what machines ask of its state, and, at the other paths, the dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.responses import Response

from cryptopulse import __version__
from cryptopulse.serve.api.app import create_api
from cryptopulse.serve.api.events import Events
from cryptopulse.serve.api.service import Service
from cryptopulse.serve.guard import Guard
from cryptopulse.serve.health import LoopWatch, Readiness
from cryptopulse.serve.health import router as health_router
from cryptopulse.serve.live.live import Live
from cryptopulse.serve.metrics import Metrics
from cryptopulse.serve.metrics import router as metrics_router
from cryptopulse.serve.metrics.server import ServerCollector
from cryptopulse.serve.problems import Problem
from cryptopulse.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """The HTTP API over the lake of `settings`. As many as one likes may live in a process."""
    service = Service(settings.location, settings.serve)
    live = Live(settings.location, settings.serve.poll_ms / 1000, settings.state_dir)
    events = Events(live, service)
    loop_watch = LoopWatch()
    metrics = Metrics(settings, service, ServerCollector(service.gate, loop_watch))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        """Follows the lake while the application runs, once for all who look."""
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
    app.state.live = live
    app.state.events = events
    app.state.loop_watch = loop_watch
    app.state.metrics = metrics
    app.state.readiness = Readiness(service.lake, service.versions, service.watch_gate, settings.serve.fresh_s)
    app.include_router(health_router)
    app.include_router(metrics_router)
    app.mount("/api", create_api(service, events, settings.serve))
    app.exception_handler(Problem)(_problem)
    app.add_middleware(Guard, settings=settings.serve)
    app.add_middleware(metrics.requests.around)
    return app


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


def with_dashboard(app: FastAPI) -> FastAPI:
    """`app`, with the dashboard at `/`. Once in a process: NiceGUI has one set of pages for all of it."""
    from cryptopulse.serve.dashboard import add_pages  # noqa: PLC0415 - NiceGUI takes half a second

    add_pages(app)
    return app
