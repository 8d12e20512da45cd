"""One product, live: candles with volume, averages and the pressure of buyers and sellers, its figures, its alerts."""

from __future__ import annotations

import nicegui.elements.echart  # noqa: F401 - names ECharts in the import map of the pages
from nicegui import ui

from cryptopulse.serve.dashboard.layout import TITLE, page
from cryptopulse.serve.dashboard.view import View
from cryptopulse.serve.live.candles import GRAINS


def add_page() -> None:
    """Puts the page at `/product/<product>`."""

    @page("/product/{symbol}", "Product")
    def product(symbol: str) -> None:
        symbol = symbol.upper()
        ui.page_title(f"{symbol} · {TITLE}")
        View("product", symbol=symbol, grains=list(GRAINS.items()))
