"""What the pages ask for by HTTP, because it is one viewer's alone: evidence, the past, trials of rules.

JSON in and out. Reading is done in a few threads of its own; whoever comes when too many wait is told so. The public
interface for programs is another one, under `/api`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, FastAPI, Query
from fastapi.responses import JSONResponse

from cryptopulse.errors import CryptoPulseError, TransientError
from cryptopulse.serve.desk.evidence import EpisodesAsked, Evidence
from cryptopulse.serve.desk.trial import EPISODES_MAX, Refused, Trial, Trials, read_form
from cryptopulse.serve.gate import Gate
from cryptopulse.serve.live.episodes import plain_episodes
from cryptopulse.serve.problems import Problem
from cryptopulse.settings import Settings

PATH: Final = "/pages"
"""What all of them begin with."""

_AT_ONCE = 2

Moment = Annotated[float | None, Query(ge=0, le=4e12)]
"""ms since 1970."""


class Desk:
    """Reads for visitors, a few at a time."""

    def __init__(self, settings: Settings) -> None:
        """Opens nothing yet."""
        self.evidence = Evidence(settings.location, settings.serve.query_timeout_s)
        self.trials = Trials(settings.location)
        self._gate = Gate(_AT_ONCE, settings.serve.query_timeout_s)

    async def read(self, work: Callable[[], Any]) -> JSONResponse:
        """What `work`, which runs in another thread, returns; or what is wrong, in `said`."""
        try:
            return JSONResponse(await self._gate.ask(work))
        except Problem as problem:
            return JSONResponse({"said": problem.detail}, problem.status)
        except Refused as refused:
            return JSONResponse({"said": str(refused), "faults": refused.faults}, 422)
        except CryptoPulseError as error:
            return JSONResponse({"said": str(error)}, 503 if isinstance(error, TransientError) else 400)

    def close(self) -> None:
        """Ends; what is being read is read to its end."""
        self.trials.close()
        self._gate.close()
        self.evidence.close()


def add_requests(app: FastAPI) -> Desk:
    """Adds the routes to `app`. The desk must be closed at the end."""
    desk = Desk(app.state.settings)
    router = APIRouter(prefix=PATH, include_in_schema=False)
    _add_reading(router, desk)
    _add_trials(router, desk)
    app.include_router(router)
    return desk


def _add_reading(router: APIRouter, desk: Desk) -> None:
    @router.get("/episodes")
    async def episodes(asked: Annotated[EpisodesAsked, Query()]) -> JSONResponse:
        return await desk.read(lambda: desk.evidence.episodes(asked))

    @router.post("/evidence")
    async def evidence(episode: Annotated[dict[str, Any], Body()]) -> JSONResponse:
        return await desk.read(lambda: desk.evidence.of_episode(episode))

    @router.get("/prices/{symbol}")
    async def prices(symbol: str, start: Moment = None, end: Moment = None) -> JSONResponse:
        return await desk.read(lambda: desk.evidence.prices(symbol, _moment(start), _moment(end)))


def _add_trials(router: APIRouter, desk: Desk) -> None:
    @router.post("/trials")
    async def begin(form: Annotated[dict[str, Any], Body()]) -> JSONResponse:
        def begun() -> dict[str, Any]:
            return _told(desk.trials.start(read_form(form, desk.evidence.trades_held())))

        return await desk.read(begun)

    @router.get("/trials/{name}")
    async def look(name: str) -> JSONResponse:
        trial = desk.trials.find(name)
        if trial is None:
            return JSONResponse({"said": "There is no such trial any more: start it again."}, 404)
        return await desk.read(lambda: _told(trial))

    @router.delete("/trials/{name}")
    async def end(name: str) -> JSONResponse:
        desk.trials.cancel(name)
        return JSONResponse({})


def _told(trial: Trial) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": trial.id,
        "state": trial.state,
        "done": trial.done,
        "steps": trial.steps,
        "said": trial.said,
    }
    if trial.episodes is not None:
        told |= {
            "episodes": plain_episodes(trial.episodes.slice(0, EPISODES_MAX)),
            "found": trial.episodes.num_rows,
            "took_s": trial.took_s,
        }
    return told


def _moment(ms: float | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
