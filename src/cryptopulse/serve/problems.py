"""What is said when a request can't be answered: `application/problem+json` (RFC 9457), always in the same shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.responses import Response

MEDIA_TYPE: Final = "application/problem+json"


class Problem(Exception):
    """A request that is answered with an error. Raised anywhere below a route of the API."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        parameters: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`code`: for programs, lower case; `detail`: one sentence for people, with what helps.

        `parameters`: names, and what is wrong with each.
        """
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.parameters = tuple(parameters)
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """It as the answer."""
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
            "examples": ["There are no trades of DOGE-EUR in this lake; GET /api/products lists what there is."],
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
"""Its JSON schema, for the OpenAPI document."""
