"""Reads the dashboards' queries from `dashboards/queries.sql`. The top of that file explains its format."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import sqlglot

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_HEADER = re.compile(r"-- (title|description|chart): (.+)")
_CONTINUED = re.compile(r"--   (.+)")
_CHART = re.compile(r"(line|bar|table)((?: (?:x|y|color)=[\w,]+)*)")


@dataclass(frozen=True)
class Chart:
    """How to draw a query's rows."""

    kind: str
    """line, bar or table."""
    x: str | None = None
    y: tuple[str, ...] = ()
    color: str | None = None
    """Column with one line, or one part of a bar, for each of its values."""


@dataclass(frozen=True)
class Query:
    """One query; `sql` is Spark SQL, without a semicolon."""

    name: str
    title: str
    description: str
    chart: Chart
    sql: str

    @property
    def columns(self) -> list[str]:
        """The names of the columns that it returns, in their order."""
        tree = sqlglot.parse_one(self.sql, read="databricks")
        assert isinstance(tree, sqlglot.exp.Query)
        return [str(name) for name in tree.named_selects]


@cache
def load_queries() -> dict[str, Query]:
    """All queries by name, in the order of the file."""
    return {query.name: query for query in parse_queries(_text())}


def parse_queries(text: str) -> list[Query]:
    """The queries of a file's text. Raises ValueError, with the query's name, for a malformed one."""
    places = [(found[1], found.start(), found.end()) for found in _NAME.finditer(text)]
    ends = [start for _, start, _ in places[1:]] + [len(text)]
    queries = [_query(name, text[start:end]) for (name, _, start), end in zip(places, ends, strict=True)]
    names = [query.name for query in queries]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"Query {', '.join(sorted(twice))}: there are two of that name")
    return queries


def _text() -> str:
    """The file's text: from the package or, in a checkout, from `dashboards/`."""
    packaged = resources.files(__package__).joinpath("queries.sql")
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[3] / "dashboards" / "queries.sql").read_text(encoding="utf-8")


def _query(name: str, text: str) -> Query:
    lines = text.strip().splitlines()
    header: dict[str, str] = {}
    last = ""
    while lines and lines[0].startswith("--"):
        line = lines.pop(0)
        if found := _HEADER.fullmatch(line):
            last = found[1]
            header[last] = found[2].strip()
        elif last and (more := _CONTINUED.fullmatch(line)):
            header[last] += f" {more[1].strip()}"
        else:
            raise ValueError(f"Query {name}: {line!r} is neither title, description nor chart")
    sql, semicolon, rest = ("\n".join(lines).rstrip() + "\n").partition(";\n")
    if not semicolon or rest or not sql.strip():
        raise ValueError(f"Query {name}: write one statement, with a semicolon at its end")
    if missing := [key for key in ("title", "description", "chart") if key not in header]:
        raise ValueError(f"Query {name}: {missing[0]} is missing")
    drawn = _CHART.fullmatch(header["chart"])
    if not drawn:
        raise ValueError(f"Query {name}: chart {header['chart']!r} can't be read")
    given = dict(part.split("=") for part in drawn[2].split())
    chart = Chart(drawn[1], given.get("x"), tuple(filter(None, given.get("y", "").split(","))), given.get("color"))
    if chart.kind != "table" and not (chart.x and chart.y):
        raise ValueError(f"Query {name}: a {chart.kind} needs x and y")
    return Query(name, header["title"], header["description"], chart, sql.strip())
