"""Whether the server lives (`/healthz`), and whether it has something to show (`/readyz`)."""

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
from cryptopulse.lake.newest import Newest
from cryptopulse.lake.tables import ALERTS, BARS, SILVER, STATS
from cryptopulse.serve.figures import TableFigures
from cryptopulse.serve.gate import Gate
from cryptopulse.serve.problems import Problem

_SHOWN: Final = (SILVER, BARS, STATS, ALERTS)
_ASKED_EVERY_S: Final = 1.0  # anybody may ask, so the lake is looked at no more often
_TICK_S: Final = 0.5
_TICKS_KEPT: Final = 120  # a minute


class LoopWatch:
    """How late the event loop is: everybody waits for as long whom it serves."""

    def __init__(self) -> None:
        """Watches nothing yet."""
        self._lags_s: deque[float] = deque(maxlen=_TICKS_KEPT)

    @property
    def lag_s(self) -> float:
        """By how much it was late at the worst moment of the last minute."""
        return max(self._lags_s, default=0.0)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watches the running loop in here."""
        task = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _tick(self) -> None:
        while True:
            due_s = time.monotonic() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self._lags_s.append(max(0.0, time.monotonic() - due_s))


@dataclass(frozen=True)
class Check:
    """One thing that must be so."""

    name: str
    ok: bool
    said: str
    """For people: how it is, and what helps when it is not as it must be."""


class Readiness:
    """Looks at a lake, at most once a second, whoever asks."""

    def __init__(self, lake: Lake, versions: Newest, gate: Gate, fresh_s: float) -> None:
        """`fresh_s`: the newest trade may have been loaded so many seconds ago."""
        self._lake = lake
        self._versions = versions
        self._gate = gate
        self._fresh_s = fresh_s
        self._lock = asyncio.Lock()
        self._found: list[Check] = []
        self._found_at_s: float | None = None

    async def checks(self) -> list[Check]:
        """What was found, at most a second ago."""
        async with self._lock:
            if self._found_at_s is None or time.monotonic() > self._found_at_s + _ASKED_EVERY_S:
                try:
                    self._found = await self._gate.ask(self._look)
                except Problem as problem:
                    self._found = [Check("lake", ok=False, said=problem.detail)]
                self._found_at_s = time.monotonic()
            return self._found

    def _look(self) -> list[Check]:
        try:
            figures = {table: TableFigures.of(self._versions.files(table)) for table in _SHOWN}
            if missing := [table.qualified for table, its in figures.items() if its.version < 0]:
                said = f"There is no {missing[0]} at {self._lake.location}: start the pipeline, or name the lake."
                return [Check("lake", ok=False, said=said)]
            self._lake.bars().reversed().limit(1).arrow()
        except CryptoPulseError as error:
            return [Check("lake", ok=False, said=str(error))]
        return [Check("lake", ok=True, said=str(self._lake.location)), self._fresh(figures[SILVER])]

    def _fresh(self, trades: TableFigures) -> Check:
        if not trades.rows or trades.loaded_at_s is None:
            return Check("fresh", ok=False, said="The lake holds no trade yet.")
        age_s = time.time() - trades.loaded_at_s
        said = f"The newest trade was loaded {age_s:.1f} s ago"
        if age_s <= self._fresh_s:
            return Check("fresh", ok=True, said=f"{said}.")
        return Check(
            "fresh",
            ok=False,
            said=f"{said}, which is more than serve.fresh_s = {self._fresh_s:g}: see `cryptopulse status`.",
        )


router = APIRouter(include_in_schema=False)


@router.get("/healthz")
async def healthz(request: Request) -> Response:
    """That this is answered says that the process lives and its event loop turns."""
    watch: LoopWatch = request.app.state.loop_watch
    return _json(200, {"status": "ok", "loop_lag_s": round(watch.lag_s, 3)})


@router.get("/readyz")
async def readyz(request: Request) -> Response:
    """200 when the lake can be read and is fresh, else 503; what is not so is told to who has the token."""
    readiness: Readiness = request.app.state.readiness
    checks = await readiness.checks()
    is_ready = all(check.ok for check in checks)
    content: dict[str, Any] = {"status": "ready" if is_ready else "not ready"}
    if request.state.is_trusted:
        content["checks"] = [asdict(check) for check in checks]
    return _json(200 if is_ready else 503, content)


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), status, {"Cache-Control": "no-store"}, "application/json")
