"""`/metrics`: what Prometheus reads. Base units, names that begin with `cryptopulse_`."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from cryptopulse.serve.api.service import Service
from cryptopulse.serve.metrics.lake import LakeCollector
from cryptopulse.serve.metrics.processes import ProcessesCollector
from cryptopulse.serve.metrics.requests import Requests
from cryptopulse.serve.metrics.server import ServerCollector
from cryptopulse.settings import Settings

__all__ = ["Metrics", "router"]


# They are a series for the birth of each other series: twice as many, of use to nobody.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All that is told of a deployment."""

    def __init__(self, settings: Settings, service: Service, server: ServerCollector) -> None:
        """Reads nothing yet."""
        self._registry: Final = CollectorRegistry()
        self.requests = Requests(self._registry)
        self._service = service
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(server)
        self._registry.register(ProcessesCollector(settings.state_dir))
        self._registry.register(LakeCollector(service.lake, service.versions))

    async def text(self, accept: str) -> tuple[bytes, str]:
        """All of it in the format that `accept` (the header) asks for, and its media type. Raises Problem when the lake
        does not answer in time.
        """
        encode, media_type = choose_encoder(accept)
        return await self._service.watch_gate.ask(lambda: encode(self._registry)), media_type


router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Everything, in Prometheus' text format."""
    told: Metrics = request.app.state.metrics
    content, media_type = await told.text(request.headers.get("accept", ""))
    return Response(content, 200, {"Cache-Control": "no-store", "Content-Type": media_type})
