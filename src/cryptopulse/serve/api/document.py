"""What the OpenAPI document says beside the parameters: rows, pages, formats, problems. Made of the table contracts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from cryptopulse.lake.grains import COLUMNS as BAR_COLUMNS
from cryptopulse.lake.tables import BARS, Column, Table
from cryptopulse.serve import problems
from cryptopulse.serve.api.formats import ARROW, JSON, PARQUET

Schema = dict[str, Any]

_PROBLEM: Final = "Problem"
_BEARER: Final = "token"
_DESCRIPTION = """
What a CryptoPulse lake holds, read only.

- **Times** are UTC, ISO 8601 with microseconds; a range includes its start and not its end.
- **Prices and amounts** are exact decimals: texts in JSON (`"63250.12"`), decimals in Arrow and Parquet.
- **Formats**: JSON, Arrow IPC stream or Parquet, by `Accept` or `?format=`.
- **Pages**: an answer has at most `limit` rows, in a stable order, and names the next page: `next` in JSON, the header
  `Link: <…>; rel="next"` and the schema's metadata `next` in every format. A page without it is the last.
- **Errors** are `application/problem+json`. 503 comes with `Retry-After`.
"""

_PROBLEMS: Final = {
    400: "Well written, but it means nothing here: no such time, an end before the start, a foreign cursor.",
    401: "The token is missing or wrong.",
    403: "Asked by a page of another site.",
    404: "A product of which there are no trades here, or no such address.",
    405: "Only GET.",
    406: "No such format.",
    421: "Called by a name that the server does not know (serve.allowed_hosts).",
    422: "A parameter that is unknown or breaks its rule; `parameters` names it.",
    429: "Too many wrong tokens.",
    500: "A defect of the server.",
    503: "Busy, or the lake can't be read just now.",
    504: "The question took too long (serve.query_timeout_s).",
}

PRODUCT_ROW: Final[Schema] = {
    "type": "object",
    "required": ["symbol", "first_trade_id", "last_trade_id", "trades", "ids_not_held"],
    "properties": {
        "symbol": {"type": "string", "description": "Product id.", "examples": ["BTC-USD"]},
        "first_trade_id": {"type": "integer", "format": "int64", "description": "Lowest trade id held."},
        "last_trade_id": {"type": "integer", "format": "int64", "description": "Highest trade id held."},
        "trades": {"type": "integer", "format": "int64", "description": "Trades held."},
        "ids_not_held": {
            "type": "integer",
            "format": "int64",
            "description": "Ids between lowest and highest that are not held: missing, or absent at the exchange.",
        },
    },
    "additionalProperties": False,
}


def stored_columns(table: Table) -> list[str]:
    """The columns of `table` that say something: not the one that only sorts its rows into folders."""
    return [column.name for column in table.columns if column.name not in table.partition_by]


def row_of(table: Table) -> Schema:
    """JSON schema of a row of `table`."""
    return _row(table, stored_columns(table))


def bar_row() -> Schema:
    """JSON schema of a bar of any grain."""
    return _row(BARS, BAR_COLUMNS)


def answers(name: str, row: Schema) -> dict[int | str, dict[str, Any]]:
    """What a resource of pages may answer; `name`: that of a row."""
    schema = {
        "type": "object",
        "required": ["data", "next"],
        "properties": {
            "data": {"type": "array", "items": {**row, "title": name}},
            "next": {"type": ["string", "null"], "description": "The cursor of the next page; null on the last."},
        },
        "additionalProperties": False,
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    link = {"description": 'Where the next page is: `<…>; rel="next"`.', "schema": {"type": "string"}}
    found: dict[int | str, dict[str, Any]] = {
        200: {
            "description": "A page.",
            "content": {JSON.media_type: {"schema": schema}, ARROW.media_type: binary, PARQUET.media_type: binary},
            "headers": {"Link": link},
        }
    }
    return found | problem_answers()


def event_answers() -> dict[int | str, dict[str, Any]]:
    """What the stream of events may answer."""
    example = 'event: alert\nid: 1795790817953000\ndata: {"alert_id":"…","symbol":"BTC-USD","state":"OPEN",…}\n\n'
    content = {"text/event-stream": {"schema": {"type": "string"}, "example": example}}
    found: dict[int | str, dict[str, Any]] = {200: {"description": "Events, without an end.", "content": content}}
    return found | {status: answer for status, answer in problem_answers().items() if status != 406}


def problem_answers() -> dict[int | str, dict[str, Any]]:
    """The errors that every resource may answer."""
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{_PROBLEM}"}}}
    seconds = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}
    return {
        status: {
            "description": said,
            "content": content,
            **({"headers": {"Retry-After": seconds}} if status in (429, 503) else {}),
        }
        for status, said in _PROBLEMS.items()
    }


def described(app: FastAPI, version: str, is_guarded: bool) -> Schema:
    """The OpenAPI document of `app`. `is_guarded`: whether a token is needed."""
    document = get_openapi(
        title="CryptoPulse",
        version=version,
        summary="Trades, bars, alerts and completeness of a lake.",
        description=_DESCRIPTION,
        routes=app.routes,
        servers=[{"url": "/api"}],
        license_info={"name": "Apache-2.0"},
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # ours is another shape
        schemas.pop(unused, None)
    schemas[_PROBLEM] = problems.SCHEMA
    if is_guarded:
        document["components"]["securitySchemes"] = {
            _BEARER: {"type": "http", "scheme": "bearer", "description": "serve.token"}
        }
        document["security"] = [{_BEARER: []}]
    return document


def _row(table: Table, names: Iterable[str]) -> Schema:
    by_name = {column.name: column for column in table.columns}
    columns = [by_name[name] for name in names]
    return {
        "type": "object",
        "description": table.comment,
        "required": [column.name for column in columns],
        "properties": {column.name: _column(column) for column in columns},
        "additionalProperties": False,
    }


def _column(column: Column) -> Schema:
    schema: Schema = {"description": column.comment, **_type(column.type)}
    if column.nullable:
        schema["type"] = [schema["type"], "null"]
    return schema


def _type(sql_type: str) -> Schema:
    if sql_type.startswith("DECIMAL"):
        return {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$", "examples": ["63250.12"]}
    return dict(_TYPES[sql_type])


_TYPES: Final[dict[str, Schema]] = {
    "BIGINT": {"type": "integer", "format": "int64"},
    "INT": {"type": "integer", "format": "int32"},
    "STRING": {"type": "string"},
    "DOUBLE": {"type": "number", "format": "double"},
    "BOOLEAN": {"type": "boolean"},
    "TIMESTAMP": {"type": "string", "format": "date-time", "examples": ["2026-11-27T12:00:00.000000Z"]},
}
