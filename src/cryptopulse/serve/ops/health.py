"""Liveness (`/healthz`) and readiness (`/readyz`)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from cryptopulse.errors import CryptoPulseError
from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.follower import NewestVersions
from cryptopulse.lake.tables import ALERTS, BARS, SILVER, STATS
from cryptopulse.serve.http.problems import Problem
from cryptopulse.serve.http.query_pool import QueryPool
from cryptopulse.serve.live.hub import Live
from cryptopulse.serve.ops.lake import TableFigures

_SHOWN: Final = (SILVER, BARS, STATS, ALERTS)
_INSPECT_EVERY_S: Final = 1.0  # at most so often, because anybody may request it
_TICK_S: Final = 0.5
_TICKS_KEPT: Final = 120  # a minute


class LoopWatch:
    """Lag of the event loop: every request waits at least this long."""

    def __init__(self) -> None:
        """Watches nothing yet."""
        self._lags_s: deque[float] = deque(maxlen=_TICKS_KEPT)

    @property
    def lag_s(self) -> float:
        """Largest lag in the last minute, in seconds."""
        return max(self._lags_s, default=0.0)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watches the running loop while the context lasts."""

        async def tick() -> None:
            while True:
                due_s = time.monotonic() + _TICK_S
                await asyncio.sleep(_TICK_S)
                self._lags_s.append(max(0.0, time.monotonic() - due_s))

        task = asyncio.create_task(tick())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@dataclass(frozen=True)
class ReadinessCheck:
    """One condition of readiness."""

    name: str
    ok: bool
    detail: str
    """For people: what was found, and what to do."""


class Readiness:
    """Checks a lake, at most once a second for any number of requests."""

    def __init__(self, lake: Lake, versions: NewestVersions, pool: QueryPool, fresh_s: float) -> None:
        """`fresh_s`: the lake is fresh if its newest trade was loaded at most this many seconds ago."""
        self._lake = lake
        self._versions = versions
        self._pool = pool
        self._fresh_s = fresh_s
        self._lock = asyncio.Lock()
        self._found: list[ReadinessCheck] = []
        self._found_at_s: float | None = None

    async def checks(self) -> list[ReadinessCheck]:
        """The checks, at most a second old."""
        async with self._lock:
            if self._found_at_s is None or time.monotonic() > self._found_at_s + _INSPECT_EVERY_S:
                try:
                    self._found = await self._pool.run(self._inspect)
                except Problem as problem:
                    self._found = [ReadinessCheck("lake", ok=False, detail=problem.detail)]
                self._found_at_s = time.monotonic()
            return self._found

    def _inspect(self) -> list[ReadinessCheck]:
        try:
            figures = {table: TableFigures.of(self._versions.files(table)) for table in _SHOWN}
            if missing := [table.qualified for table, its in figures.items() if its.version < 0]:
                detail = f"Table {missing[0]} not found in {self._lake.location}: start the pipeline, or name the lake."
                return [ReadinessCheck("lake", ok=False, detail=detail)]
            self._lake.bars().reversed().limit(1).arrow()
        except CryptoPulseError as error:
            return [ReadinessCheck("lake", ok=False, detail=str(error))]
        found, trades = [ReadinessCheck("lake", ok=True, detail=str(self._lake.location))], figures[SILVER]
        if not trades.rows or trades.loaded_at_s is None:
            return [*found, ReadinessCheck("fresh", ok=False, detail="The lake has no trades yet.")]
        age_s = time.time() - trades.loaded_at_s
        detail, is_fresh = f"The newest trade was loaded {age_s:.1f} s ago", age_s <= self._fresh_s
        if not is_fresh:
            detail += f", which is more than serve.fresh_s = {self._fresh_s:g}; see `cryptopulse status`"
        return [*found, ReadinessCheck("fresh", is_fresh, f"{detail}.")]


router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """200 when process and event loop work and the thread that follows the lake makes progress; else 503."""
    watch: LoopWatch = request.app.state.loop_watch
    live: Live = request.app.state.live
    content = {"status": "ok" if live.is_healthy else "stuck", "loop_lag_s": round(watch.lag_s, 3)}
    return _json(200 if live.is_healthy else 503, {**content, "live_busy_s": round(live.busy_s, 3)})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """200 when the lake can be read and followed and is fresh, else 503; with the token it lists the checks."""
    readiness: Readiness = request.app.state.readiness
    live: Live = request.app.state.live
    followed = ReadinessCheck("live", live.is_healthy, f"The live thread has been busy for {live.busy_s:.1f} s.")
    checks = [*await readiness.checks(), followed]
    is_ready = all(check.ok for check in checks)
    content: dict[str, Any] = {"status": "ready" if is_ready else "not ready"}
    if request.state.is_trusted:
        content["checks"] = [asdict(check) for check in checks]
    return _json(200 if is_ready else 503, content)


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), status, {"Cache-Control": "no-store"}, "application/json")
