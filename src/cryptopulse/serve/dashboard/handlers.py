"""HTTP requests of pages about what one viewer wants to see: evidence, the past, holes, backtests of rules.

JSON in and out. Queries run in a few threads of their own, behind a bounded queue. Programs should use the public API
under `/api`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Body, FastAPI, Query
from fastapi.responses import JSONResponse
from starlette.responses import Response

from cryptopulse.errors import CryptoPulseError, TransientError
from cryptopulse.lake.activity_bars import BarSize
from cryptopulse.lake.dataset import Lake
from cryptopulse.serve.dashboard.backtest_jobs import EPISODES_MAX, BacktestJob, BacktestJobs, FormRejected, parse_form
from cryptopulse.serve.dashboard.candles import candles_page
from cryptopulse.serve.dashboard.episodes import EpisodesQuery, episodes_page, moment, moment_or_none
from cryptopulse.serve.dashboard.evidence import evidence_of, prices
from cryptopulse.serve.dashboard.holes import holes_of_ids, holes_of_time
from cryptopulse.serve.http.problems import Problem, defect
from cryptopulse.serve.http.query_pool import QueryPool
from cryptopulse.serve.live.candles import GRAINS
from cryptopulse.serve.live.episodes import plain_episodes
from cryptopulse.settings import Settings

PATH: Final = "/pages"
"""Prefix of all paths."""

_AT_ONCE = 2
_MEMORY_MAX_MB = 256
_THREADS = 2

At = Annotated[float, Query(ge=0, le=4e12)]
"""ms since 1970."""
Moment = Annotated[float | None, Query(ge=0, le=4e12)]
TradeId = Annotated[int, Query(ge=0, le=2**62)]


class Handlers:
    """Answers requests of pages, a few at a time."""

    def __init__(self, settings: Settings) -> None:
        """Opens nothing yet."""
        timeout_s = settings.serve.query_timeout_s
        self.lake = Lake(settings.location, memory_max_mb=_MEMORY_MAX_MB, threads=_THREADS, timeout_s=timeout_s)
        self.backtests = BacktestJobs(settings.location)
        self._queries = QueryPool(_AT_ONCE, timeout_s)

    async def respond(self, query: Callable[[], Any]) -> Response:
        """Runs `query` in another thread; responds with its result as JSON (NaN as null), or the error in `detail`."""
        try:
            body = await self._queries.run(lambda: msgspec.json.encode(query()))
            return Response(body, media_type="application/json")
        except Problem as problem:
            return JSONResponse({"detail": problem.detail}, problem.status)
        except FormRejected as rejected:
            return JSONResponse({"detail": str(rejected), "faults": rejected.faults}, 422)
        except CryptoPulseError as error:
            return JSONResponse({"detail": str(error)}, 503 if isinstance(error, TransientError) else 400)
        except Exception as error:  # noqa: BLE001 - it is in the log, and the page can say where
            return JSONResponse({"detail": defect(PATH, error).detail}, 500)

    def close(self) -> None:
        """Ends the threads, after their current queries."""
        self.backtests.close()
        self._queries.close()
        self.lake.close()


def add_handlers(app: FastAPI) -> Handlers:
    """Adds the routes to `app`. The caller must close the handlers at the end."""
    handlers = Handlers(app.state.settings)
    lake, backtests, respond = handlers.lake, handlers.backtests, handlers.respond
    router = APIRouter(prefix=PATH, include_in_schema=False)

    @router.get("/episodes")
    async def episodes(query: Annotated[EpisodesQuery, Query()]) -> Response:
        return await respond(lambda: episodes_page(lake, query))

    @router.post("/evidence")
    async def evidence(episode: Annotated[dict[str, Any], Body()]) -> Response:
        return await respond(lambda: evidence_of(lake, episode))

    @router.get("/prices/{symbol:path}")
    async def around(symbol: str, start: Moment = None, end: Moment = None) -> Response:
        return await respond(lambda: prices(lake, symbol, moment_or_none(start), moment_or_none(end)))

    @router.get("/candles/{symbol:path}/{grain}")
    async def candles(symbol: str, grain: str, before: Moment = None, start: Moment = None) -> Response:
        measure, is_by_activity, size = grain.partition(":")
        if grain not in GRAINS and not is_by_activity:
            return JSONResponse({"detail": f"Unknown grain {grain!r} (expected {', '.join(GRAINS)})."}, 404)
        edges = moment_or_none(before), moment_or_none(start)
        return await respond(
            lambda: candles_page(lake, symbol, BarSize.of(measure, size) if is_by_activity else GRAINS[grain], *edges)
        )

    @router.get("/holes/{symbol:path}/time")
    async def holes_in_time(symbol: str, start: At, end: At) -> Response:
        return await respond(lambda: holes_of_time(lake, symbol, moment(start), moment(end)))

    @router.get("/holes/{symbol:path}/ids")
    async def holes_in_ids(symbol: str, first: TradeId, last: TradeId) -> Response:
        return await respond(lambda: holes_of_ids(lake, symbol, first, last))

    @router.post("/trials")
    async def start_backtest(form: Annotated[dict[str, Any], Body()]) -> Response:
        def start() -> dict[str, Any]:
            products = lake.products().arrow()
            trades = dict(zip(products["symbol"].to_pylist(), products["trades"].to_pylist(), strict=True))
            return _job_state(backtests.start(parse_form(form, trades)))

        return await respond(start)

    @router.get("/trials/{job_id}")
    async def get_backtest(job_id: str) -> Response:
        job = backtests.find(job_id)
        if job is None:
            return JSONResponse({"detail": "Backtest not found; start it again."}, 404)
        return await respond(lambda: _job_state(job))

    @router.delete("/trials/{job_id}")
    async def cancel_backtest(job_id: str) -> JSONResponse:
        backtests.cancel(job_id)
        return JSONResponse({})

    app.include_router(router)
    return handlers


def _job_state(job: BacktestJob) -> dict[str, Any]:
    state: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "done": job.done,
        "steps": job.steps,
        "detail": job.message,
    }
    if job.episodes is not None:
        state |= {
            "episodes": plain_episodes(job.episodes.slice(0, EPISODES_MAX)),
            "found": job.episodes.num_rows,
            "took_s": job.took_s,
        }
    return state
