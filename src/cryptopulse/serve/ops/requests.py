"""Request metrics: a middleware around the whole application, including the guard."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PATHS: Final = frozenset(
    {
        *("/api/" + name for name in ("products", "trades", "bars", "stats", "alerts", "completeness", "events")),
        *("/api/openapi.json", "/api/docs", "/healthz", "/readyz", "/metrics", "/login", "/logout"),
    }
)
_STREAM: Final = "/api/events"
_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Requests:
    """Counts requests by handler. The set of labels is fixed, whatever visitors request."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers its metrics."""
        self._requests = Counter(
            "cryptopulse_http_requests",
            "Requests that were answered.",
            ["method", "handler", "status"],
            registry=registry,
        )
        self._duration = Histogram(
            "cryptopulse_http_request_duration_seconds",
            "Time from a request to the end of its answer; without streams of events.",
            ["handler"],
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._open = Gauge(
            "cryptopulse_http_connections_open",
            "WebSockets of pages and streams of events that are open.",
            ["kind"],
            registry=registry,
        )

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """`app`, counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                with self._open.labels("websocket").track_inprogress():
                    await app(scope, receive, send)
                return
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            path, status, started_s = scope["path"], 500, time.perf_counter()
            handler = path if path in _PATHS else "/api" if path.startswith("/api/") else "dashboard"

            async def sending(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                if handler == _STREAM:
                    with self._open.labels("events").track_inprogress():
                        await app(scope, receive, sending)
                else:
                    await app(scope, receive, sending)
            finally:
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._requests.labels(method, handler, str(status)).inc()
                if handler != _STREAM:
                    self._duration.labels(handler).observe(time.perf_counter() - started_s)

        return counted
