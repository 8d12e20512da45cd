"""What pages are put together from: panels, figures, tables, charts, and what to say when there is nothing.

A table or chart is made with rows and later gets others by `replace` or `change`; the browser draws what differs, and
sorting, filter and zoom stay. Numbers go to the browser as numbers, times as ms since 1970, and are formatted there, in
the viewer's time zone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from typing import Any, Final, Literal

import nicegui.elements.echart  # noqa: F401 - names ECharts in the import map of the pages
from nicegui import ui

from cryptopulse.serve.dashboard.view import View

Kind = Literal["text", "symbol", "price", "percent", "amount", "count", "share", "time", "seconds", "badge"]
"""How a column is shown: `price` with the row's `decimals`, `percent` with a sign and a colour, `amount` as 12.3 M,
`share` as a bar, `time` from ms since 1970, `seconds` as an age, `badge` as a tag that is coloured by its value."""

PRODUCT_PAGE: Final = "/product/{symbol}"
"""`href` of a table whose rows lead to their products."""


@dataclass(frozen=True)
class Column:
    """A column of a table; `key` names the value in a row."""

    key: str
    label: str
    kind: Kind = "text"
    title: str | None = None
    hide: Literal["phone", "tablet"] | None = None
    """The width at and below which it is left out."""
    decimals: int | None = None
    sortable: bool = True


@dataclass(frozen=True)
class Figure:
    """A number with its name, as text."""

    label: str
    text: str
    direction: Literal["up", "down", "flat"] | None = None
    title: str | None = None


@dataclass(frozen=True)
class Line:
    """A line or the bars of a chart; `points` are (x, y), `color` a name of the style sheet, as in `up` or `line-1`."""

    name: str
    points: Sequence[tuple[float | str, float | None]]
    color: str | None = None


@contextmanager
def panel(title: str) -> Iterator[None]:
    """A framed part of the page with a title."""
    with ui.element("section").classes("cp-panel").props(f'aria-label="{escape(title)}"'):
        ui.html(escape(title), sanitize=False, tag="h2")
        yield


def empty(text: str) -> None:
    """What is said in the place of content that is not there."""
    ui.html(escape(text), sanitize=False, tag="p").classes("cp-empty")


def figures(values: Iterable[Figure]) -> View:
    """A row of figures; `change_figures` gives it others."""
    return View("parts", figures=[asdict(value) for value in values])


def change_figures(view: View, values: Iterable[Figure]) -> None:
    """Other figures for what `figures` made."""
    view.change({"figures": [asdict(value) for value in values]})


@dataclass(frozen=True)
class Listing:
    """What a table of rows is."""

    key: str
    """The column whose values are unique."""
    label: str
    """What it shows, for those who can't see it."""
    href: str | None = None
    """The path that a row leads to, as PRODUCT_PAGE."""
    sort: tuple[str, bool] | None = None
    """By which column it is sorted at first, and whether downwards."""
    empty: str = "Nothing here."
    """What is said when there are no rows."""


@dataclass(frozen=True)
class Look:
    """How a chart looks."""

    kind: Literal["line", "bar"] = "line"
    x: Literal["time", "name"] = "time"
    """Over time, ms since 1970, or over names."""
    unit: Literal["ms", "count", "amount", "percent", "price"] = "count"
    """How its numbers are written."""
    stack: bool = False
    height: int = 220
    """In pixels."""
    empty: str = "Nothing to show yet."
    """What is said when there are no points."""


class DataTable:
    """A table of rows that the server hands over: sorted by clicking, moved in by keyboard."""

    def __init__(self, columns: Sequence[Column], listing: Listing, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """`rows` have the columns' keys."""
        sort = listing.sort and {"key": listing.sort[0], "down": listing.sort[1]}
        self._view = View(
            "table",
            columns=[{name: value for name, value in asdict(one).items() if value is not None} for one in columns],
            rows=[plain(row) for row in rows],
            **{**asdict(listing), "sort": sort},
        )

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """These rows and no others."""
        self._view.call("replace", [plain(row) for row in rows])

    def update(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows that are new, or stand in the place of those with their keys."""
        self._view.call("update", [plain(row) for row in rows])

    def filter(self, text: str) -> None:
        """Shows only rows in whose texts `text` is."""
        self._view.call("filter", text)


class Chart:
    """Lines or bars over time or names."""

    def __init__(self, lines: Iterable[Line], look: Look) -> None:
        """`lines`: a line, or the bars of one colour, each."""
        self._view = View("plot", **asdict(look), series=_series(lines))

    def change(self, lines: Iterable[Line]) -> None:
        """Other points; a zoom stays."""
        self._view.change({"series": _series(lines)})


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the browser takes it: times as ms since 1970, decimals as numbers."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.timestamp() * 1000
    if value is None or isinstance(value, str | bool | int | float | list | dict):
        return value
    return float(value)


def _series(lines: Iterable[Line]) -> list[dict[str, Any]]:
    return [{"name": one.name, "points": [list(point) for point in one.points], "color": one.color} for one in lines]
