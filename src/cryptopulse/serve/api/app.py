"""The API as an application of its own, below `/api`: its errors are its own, whatever the pages beside it do."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cryptopulse import __version__
from cryptopulse.serve.api.document import described
from cryptopulse.serve.api.events import Events
from cryptopulse.serve.api.routes import router
from cryptopulse.serve.api.service import Service
from cryptopulse.serve.problems import Problem
from cryptopulse.settings_serve import ServeSettings

_log = structlog.get_logger()

_CODES = {404: "no_such_address", 405: "method_not_allowed"}


def create_api(service: Service, events: Events, settings: ServeSettings) -> FastAPI:
    """The API over the lake of `service`."""
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    api.state.service = service
    api.state.events = events
    api.include_router(router)
    api.exception_handler(Problem)(_problem)
    api.exception_handler(RequestValidationError)(_bad_parameters)
    api.exception_handler(HTTPException)(_http_error)
    api.exception_handler(Exception)(_defect)
    document = described(api, __version__, is_guarded=settings.token is not None)
    api.add_api_route("/openapi.json", lambda: document, include_in_schema=False)
    return api


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _bad_parameters(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    parameters = [_parameter(one) for one in error.errors()]
    name, detail = parameters[0]
    return Problem(422, "bad_parameter", f"{name}: {detail}", parameters=parameters).response()


def _parameter(error: dict[str, Any]) -> tuple[str, str]:
    name = next((str(part) for part in error["loc"][1:]), "request")
    if error["type"] == "extra_forbidden":
        return name, "there is no such parameter"
    return name, str(error["msg"]).removeprefix("Value error, ")


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = "There is nothing at this address; GET /api/openapi.json describes what there is."
    said = detail if error.status_code == 404 else str(error.detail)
    code = _CODES.get(error.status_code, "refused")
    return Problem(error.status_code, code, said, headers=error.headers).response()


async def _defect(request: Request, error: Exception) -> Response:
    _log.error("request_failed", path=request.url.path, error=f"{type(error).__name__}: {error}")
    return Problem(500, "defect", "That is a defect of the server; its log says more.").response()
