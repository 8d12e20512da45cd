"""`/metrics` for Prometheus: base units, names with the prefix `cryptopulse_`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fastapi import APIRouter, Request
from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.responses import Response

from cryptopulse import __version__
from cryptopulse.serve.api.service import Service
from cryptopulse.serve.http.connections import Connections
from cryptopulse.serve.http.query_pool import QueryPool
from cryptopulse.serve.ops.health import LoopWatch
from cryptopulse.serve.ops.lake import LakeCollector
from cryptopulse.serve.ops.processes import ProcessesCollector
from cryptopulse.serve.ops.requests import Requests
from cryptopulse.settings import Settings

__all__ = ["Metrics", "ServerCollector", "router"]


# They add a series with its creation time to each series: twice as many, and nobody uses them.
disable_created_metrics()  # type: ignore[no-untyped-call]


class ServerCollector(Collector):
    """Version, queries in progress, lag of the event loop, connections cut."""

    def __init__(self, queries: QueryPool, loop_watch: LoopWatch, connections: Connections) -> None:
        """All are read at every scrape."""
        self._queries = queries
        self._connections = connections
        self._loop_watch = loop_watch

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        built = GaugeMetricFamily("cryptopulse_build_info", "The version that answers.", labels=["version"])
        built.add_metric([__version__], 1)
        yield built
        yield GaugeMetricFamily("cryptopulse_api_questions_open", "Queries that run or wait.", value=self._queries.open)
        yield CounterMetricFamily(
            "cryptopulse_api_questions_refused",
            "Queries that were refused because the queue was full.",
            value=self._queries.refused,
        )
        yield GaugeMetricFamily(
            "cryptopulse_event_loop_lag_seconds",
            "By how much the server was late at the worst moment of the last minute.",
            value=self._loop_watch.lag_s,
        )
        yield CounterMetricFamily(
            "cryptopulse_http_connections_cut",
            "Connections that were cut: too many, too slow, too large, or in the way of others.",
            value=self._connections.cut,
        )


class Metrics:
    """All metrics of a deployment."""

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
        self._registry.register(LakeCollector(service.lake, service.versions, settings.alerts.rules))

    async def text(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that the header `accept` asks for, and its media type. Raises Problem when the lake
        does not answer in time.
        """
        encode, media_type = choose_encoder(accept)
        return await self._service.monitoring.run(lambda: encode(self._registry)), media_type


router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Everything, in Prometheus' text format."""
    its: Metrics = request.app.state.metrics
    content, media_type = await its.text(request.headers.get("accept", ""))
    return Response(content, 200, {"Cache-Control": "no-store", "Content-Type": media_type})
