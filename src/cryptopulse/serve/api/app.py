"""The API as an application of its own below `/api`, so that its error handling is independent of the pages."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from cryptopulse import __version__
from cryptopulse.serve.api.document import openapi_document
from cryptopulse.serve.api.events import Events
from cryptopulse.serve.api.routes import router
from cryptopulse.serve.api.service import Service
from cryptopulse.serve.http.problems import Problem, handle_errors
from cryptopulse.settings.serve import ServeSettings

_CODES = {404: "no_such_address", 405: "method_not_allowed"}


def create_api(service: Service, events: Events, settings: ServeSettings) -> FastAPI:
    """The API over the lake of `service`."""
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    api.state.service = service
    api.state.events = events
    api.include_router(router)
    handle_errors(api)

    @api.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        detail = str(error.detail)
        if error.status_code == 404:
            detail = "Not found; GET /api/openapi.json describes the API."
        code = _CODES.get(error.status_code, "refused")
        return Problem(error.status_code, code, detail, headers=error.headers).response()

    document = openapi_document(api, __version__, is_guarded=settings.token is not None)
    api.add_api_route("/openapi.json", lambda: document, include_in_schema=False)
    return api
