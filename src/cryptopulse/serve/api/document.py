"""The OpenAPI document except for parameters: rows, pages, formats, problems. Rows come from the table contracts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from cryptopulse.lake.grains import COLUMNS as BAR_COLUMNS
from cryptopulse.lake.tables import BARS, Table
from cryptopulse.serve.api.formats import CSV, FORMATS, JSON, Format
from cryptopulse.serve.http import problems

Schema = dict[str, Any]
Responses = dict[int | str, dict[str, Any]]

_PROBLEM: Final = "Problem"
_BEARER: Final = "token"
_DESCRIPTION = """
What a CryptoPulse lake holds, read only.

- **Times** are UTC, ISO 8601 with microseconds; a range includes its start and not its end.
- **Prices and amounts** are exact decimals: texts in JSON (`"63250.12"`), decimals in Arrow and Parquet.
- **Formats**: JSON, CSV, Arrow IPC stream or Parquet, by `Accept` or `?format=`.
- **Pages**: an answer has at most `limit` rows, in a stable order, and names the next page: `next` in JSON, the header
  `Link: <…>; rel="next"` and the schema's metadata `next` in every format. A page without it is the last.
- **Errors** are `application/problem+json`. 503 comes with `Retry-After`.
"""

_PROBLEMS: Final = {
    400: "Semantically invalid request: no such time, an end before the start, a cursor of another query.",
    401: "The token is missing or wrong.",
    403: "Cross-site request.",
    404: "Unknown product or path.",
    405: "Method not allowed.",
    406: "None of the accepted formats is offered.",
    421: "Unrecognized Host header (serve.allowed_hosts).",
    422: "Unknown or invalid parameter; `parameters` names it.",
    429: "Too many wrong tokens.",
    500: "Internal error.",
    503: "Busy, or the lake can't be read now.",
    504: "Query timed out (serve.query_timeout_s).",
}

PRODUCT_ROW: Final[Schema] = {
    "type": "object",
    "required": [
        *("symbol", "first_trade_id", "last_trade_id", "trades", "ids_not_held"),
        *("venue", "base", "quote", "market", "grade"),
    ],
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
        "venue": {"type": "string", "description": "The exchange.", "examples": ["coinbase"]},
        "base": {"type": ["string", "null"], "description": "What is traded; null for futures.", "examples": ["BTC"]},
        "quote": {"type": ["string", "null"], "description": "For which currency.", "examples": ["USDT"]},
        "market": {
            "type": ["string", "null"],
            "description": "Base and quote, dollar coins as the dollar: the same at all venues.",
            "examples": ["BTC/USD"],
        },
        "grade": {
            "type": "string",
            "enum": ["ids", "sequence", "none"],
            "description": "What proves completeness: dense ids, the numbers of a connection's messages, or nothing.",
        },
    },
    "additionalProperties": False,
}


RETENTION_ROW: Final[Schema] = {
    "type": "object",
    "required": ["table", "first_day", "last_day", "kept_from", "rows"],
    "properties": {
        "table": {"type": "string", "description": "Its name.", "examples": ["bronze.coinbase_raw_trades"]},
        "first_day": {"type": "string", "format": "date", "description": "First day (UTC) that was let go."},
        "last_day": {"type": "string", "format": "date", "description": "Last day that was let go."},
        "kept_from": {"type": "string", "format": "date", "description": "First day that is kept."},
        "rows": {"type": "integer", "format": "int64", "description": "Rows that were let go."},
    },
    "additionalProperties": False,
}


def stored_columns(table: Table) -> list[str]:
    """The columns of `table` without partition columns."""
    return [column.name for column in table.columns if column.name not in table.partition_by]


def row_of(table: Table) -> Schema:
    """JSON schema of a row of `table`."""
    return _row(table, stored_columns(table))


def bar_row() -> Schema:
    """JSON schema of a bar of any grain."""
    return _row(BARS, BAR_COLUMNS)


def page_responses(name: str, row: Schema) -> Responses:
    """The responses of a resource with pages. `name`: of a row, `row`: its schema."""
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
    contents: dict[Format, Schema] = {JSON: {"schema": schema}, CSV: {"schema": {"type": "string"}}}
    link = {"description": 'Where the next page is: `<…>; rel="next"`.', "schema": {"type": "string"}}
    found: Responses = {
        200: {
            "description": "A page.",
            "content": {form.media_type: contents.get(form, binary) for form in FORMATS.values()},
            "headers": {"Link": link},
        }
    }
    return found | problem_responses()


def event_responses() -> Responses:
    """The responses of the stream of events."""
    example = 'event: alert\nid: 1795790817953000\ndata: {"alert_id":"…","symbol":"BTC-USD","state":"OPEN",…}\n\n'
    content = {"text/event-stream": {"schema": {"type": "string"}, "example": example}}
    found: Responses = {200: {"description": "Events, without an end.", "content": content}}
    return found | {status: answer for status, answer in problem_responses().items() if status != 406}


def problem_responses() -> Responses:
    """The errors that every resource may answer with."""
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{_PROBLEM}"}}}
    seconds = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}}
    return {
        status: {
            "description": description,
            "content": content,
            **({"headers": {"Retry-After": seconds}} if status in (429, 503) else {}),
        }
        for status, description in _PROBLEMS.items()
    }


def openapi_document(app: FastAPI, version: str, is_guarded: bool) -> Schema:
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
    for unused in ("HTTPValidationError", "ValidationError"):  # our errors have another shape
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
    properties: dict[str, Schema] = {}
    for column in (by_name[name] for name in names):
        kind = _DECIMAL if column.type.startswith("DECIMAL") else _TYPES[column.type]
        properties[column.name] = {"description": column.comment, **kind}
        if column.nullable:
            properties[column.name]["type"] = [kind["type"], "null"]
    return {
        "type": "object",
        "description": table.comment,
        "required": list(properties),
        "properties": properties,
        "additionalProperties": False,
    }


_DECIMAL: Final[Schema] = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$", "examples": ["63250.12"]}
_TYPES: Final[dict[str, Schema]] = {
    "BIGINT": {"type": "integer", "format": "int64"},
    "INT": {"type": "integer", "format": "int32"},
    "STRING": {"type": "string"},
    "DOUBLE": {"type": "number", "format": "double"},
    "BOOLEAN": {"type": "boolean"},
    "TIMESTAMP": {"type": "string", "format": "date-time", "examples": ["2026-11-27T12:00:00.000000Z"]},
}
