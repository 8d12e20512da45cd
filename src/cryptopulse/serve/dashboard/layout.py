"""The frame of every page: a header with navigation, search, state of the data, theme and time zone, and the main part.

A page is a function that makes its content::

    @page("/alerts", "Alerts")
    def alerts() -> None:
        View("alerts")

and an entry in NAVIGATION. `browser/frame.js` makes the header's parts work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

from nicegui import ui
from nicegui.element import Element

from cryptopulse.serve.dashboard.assets import FOLDER, address

TITLE: Final = "CryptoPulse"

FAVICON: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#10151f"/>'
    '<path d="M4 18h6l3-9 5 15 3-10 2 4h5" fill="none" stroke="#3ddbb0" stroke-width="2.6" stroke-linecap="round" '
    'stroke-linejoin="round"/></svg>'
)


@dataclass(frozen=True)
class Entry:
    """A page in the navigation."""

    path: str
    title: str
    key: str
    """`g` and then this key opens the page."""
    icon: str
    """SVG path data of a stroked 24 × 24 icon."""


NAVIGATION: Final = (
    Entry("/", "Market", "m", "M4 19V9m5 10V5m5 14v-7m5 7V8"),
    Entry("/alerts", "Alerts", "a", "M6 16V11a6 6 0 0 1 12 0v5l1.5 2h-15zM10 20.5h4"),
    Entry("/completeness", "Completeness", "c", "M5 5h4v4H5zm5.5 0h4v4h-4zM16 5h3v4h-3zM5 11h4v8H5zm7 5 2.5 2.5L20 13"),
    Entry("/pipeline", "Pipeline", "p", "M3 13h4l3-8 4 14 3-6h4"),
)
"""The pages, in the order of the header."""

# Runs before anything is painted, so that a page never flashes in the other theme.
_THEME_FIRST = (
    "<script>(()=>{let t=null;try{t=localStorage.getItem('cryptopulse.theme')}catch(e){}"
    "const d=t==='dark'||(t!=='light'&&matchMedia('(prefers-color-scheme: dark)').matches);"
    "document.documentElement.dataset.theme=d?'dark':'light'})()</script>"
)


# Pages don't use NiceGUI's socket. With it a page would reload after a restart of the server, which no longer knows it,
# and the viewer would lose position and input.
_NO_SOCKET = (
    "<script>Object.defineProperty(window,'io',{set(){},get:()=>()=>"
    "({on(){},emit(){},io:{on(){},opts:{},engine:{}}})})</script>"
)
_FORGOTTEN_S = 1.0


class View(Element, component="view.js"):
    """A part of a page that is drawn in the browser by the module `browser/<module>.js`.

    The module's function `mount(element, options)` draws, and may return an object with `unmount`.
    """

    def __init__(self, module: str, **options: Any) -> None:
        """`options` are passed to the module; their values must fit into JSON."""
        super().__init__()
        assert (FOLDER / f"{module}.js").is_file(), module
        self._props["module"] = f"{address()}/{module}.js"
        self._props["options"] = options


def add_head(assets: str) -> None:
    """Adds style sheet and theme to the head of all pages. `assets`: path of the files in `browser/`."""
    modules = ("frame", "live", "format", "theme")
    preloads = "".join(f'<link rel="modulepreload" href="{assets}/{name}.js">' for name in modules)
    ui.add_head_html(
        f'{_THEME_FIRST}{_NO_SOCKET}<link rel="stylesheet" href="{assets}/dashboard.css">{preloads}'
        '<meta name="theme-color" content="#0c1017">',
        shared=True,
    )


def page(path: str, title: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: makes a page at `path`, in the frame, of a function that makes its content. The function may take the
    path's parameters.
    """

    def decorated(build: Callable[..., None]) -> Callable[..., None]:
        @wraps(build)
        def framed(*values: Any, **named: Any) -> None:
            with frame(path):
                build(*values, **named)
            # NiceGUI would keep the page's elements, some 75 kB, for a minute, for a socket that never connects.
            asyncio.get_running_loop().call_later(_FORGOTTEN_S, ui.context.client.delete)

        ui.page(path, title=f"{title} · {TITLE}")(framed)
        return framed

    return decorated


@contextmanager
def frame(path: str) -> Iterator[None]:
    """Makes the header; elements made in the context go into the main part. `path` is marked in the navigation."""
    links = "".join(
        f'<a href="{entry.path}"{_current(entry, path)} title="{entry.title} (g {entry.key})">{entry.title}'
        f"{_badge(entry)}</a>"
        for entry in NAVIGATION
    )
    header = (
        '<a class="cp-skip" href="#main">Skip to content</a>'
        f'<a class="cp-brand" href="/" aria-label="CryptoPulse, market">{FAVICON}<span>CryptoPulse</span></a>'
        f'<nav class="cp-nav" aria-label="Pages">{links}</nav>'
        '<div class="cp-search" role="search"><input id="cp-search" type="search" placeholder="Go to product" '
        'autocomplete="off" spellcheck="false" role="combobox" aria-expanded="false" aria-controls="cp-found" '
        'aria-label="Go to product"><kbd>/</kbd><ul id="cp-found" role="listbox" hidden></ul></div>'
        '<div class="cp-state" id="cp-state" data-state="loading" role="status" title="State of the data">'
        '<i aria-hidden="true"></i><span>Loading</span></div>'
        '<button class="cp-button" id="cp-zone" type="button" title="Times in UTC or local time (u)">UTC</button>'
        '<button class="cp-button cp-icon" id="cp-theme" type="button" title="Theme (t)"></button>'
        '<button class="cp-button cp-icon" id="cp-help" type="button" title="Keyboard shortcuts (?)" '
        'aria-label="Keyboard shortcuts">?</button>'
    )
    ui.html(header, sanitize=False, tag="header").classes("cp-header")
    View("frame", path=path).classes("cp-hidden")
    with ui.element("main").props('id="main" tabindex="-1"').classes("cp-main"):
        ui.html("", sanitize=False, tag="p").classes("cp-as-of").props('id="cp-as-of" role="note" hidden')
        yield
    tabs = "".join(  # the navigation of a narrow screen, at its bottom
        f'<a href="{entry.path}"{_current(entry, path)}><svg viewBox="0 0 24 24" aria-hidden="true">'
        f'<path d="{entry.icon}"/></svg><span>{entry.title}</span>{_badge(entry)}</a>'
        for entry in NAVIGATION
    )
    ui.html(tabs, sanitize=False, tag="nav").classes("cp-tabs").props('aria-label="Pages"')


def _current(entry: Entry, path: str) -> str:
    is_within = path == entry.path or (entry.path == "/" and path.startswith("/product"))
    return ' aria-current="page"' if is_within else ""


def _badge(entry: Entry) -> str:
    return '<b class="cp-badge" data-badge="open_alerts" hidden></b>' if entry.path == "/alerts" else ""
