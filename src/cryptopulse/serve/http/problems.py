"""HTTP errors as `application/problem+json` (RFC 9457), always in the same shape."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response

MEDIA_TYPE: Final = "application/problem+json"

_log = structlog.get_logger()


class Problem(Exception):
    """An error that is answered to the client. May be raised anywhere below a route of the API."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        parameters: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`code`: for programs, in lower case; `detail`: one sentence for people, with what to do.

        `parameters`: names of parameters, and what is wrong with each.
        """
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.parameters = tuple(parameters)
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The HTTP response."""
        content: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.parameters:
            content["parameters"] = [{"name": name, "detail": detail} for name, detail in self.parameters]
        headers = {"Cache-Control": "no-store", **self.headers}
        return Response(msgspec.json.encode(content), self.status, headers, MEDIA_TYPE)


def defect(path: str, error: Exception) -> Problem:
    """The answer to an unexpected error. Logs its traceback under a number, which the answer contains."""
    number = secrets.token_hex(4)
    _log.error("unexpected_error", number=number, path=path, error=f"{type(error).__name__}: {error}", exc_info=error)
    return Problem(500, "defect", f"Internal error; the server's log has the details under number {number}.")


def handle_errors(app: FastAPI) -> None:
    """Makes `app` answer exceptions raised below its routes, and invalid parameters and bodies, with problems."""

    async def unexpected(request: Request, error: Exception) -> Response:
        request.state.is_logged = True
        return defect(request.url.path, error).response()

    async def problem(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.response()

    async def invalid(_request: Request, error: Exception) -> Response:
        # Does not repeat the input as FastAPI's own answer does: JSON can't express all that Python reads (NaN, half a
        # surrogate pair).
        assert isinstance(error, RequestValidationError)
        parameters = []
        for one in error.errors():
            name = next((part for part in one["loc"][1:] if isinstance(part, str)), "request")
            is_unknown = one["type"] == "extra_forbidden"
            detail = "unknown parameter" if is_unknown else str(one["msg"]).removeprefix("Value error, ")
            parameters.append((name, detail))
        name, detail = parameters[0]
        return Problem(422, "bad_parameter", f"{name}: {detail}", parameters=parameters).response()

    app.exception_handler(Exception)(unexpected)
    app.exception_handler(Problem)(problem)
    app.exception_handler(RequestValidationError)(invalid)


SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "description": "What was wrong (RFC 9457).",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Always about:blank: `code` says more."},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "code": {
            "type": "string",
            "description": "What was wrong, for programs; it does not change between versions.",
            "examples": ["unknown_product"],
        },
        "detail": {
            "type": "string",
            "description": "What was wrong and what helps, in a sentence for people.",
            "examples": ["Unknown product DOGE-EUR: the lake has no trades of it; GET /api/products lists all."],
        },
        "parameters": {
            "type": "array",
            "description": "The parameters that were wrong.",
            "items": {
                "type": "object",
                "required": ["name", "detail"],
                "properties": {"name": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}
"""JSON schema of a problem, for the OpenAPI document."""
