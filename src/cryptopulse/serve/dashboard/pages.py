"""The pages. The module of its `View` draws each page in the browser."""

from __future__ import annotations

import nicegui.elements.echart  # noqa: F401 - names ECharts in the import map of the pages
from nicegui import ui

from cryptopulse.lake.products import as_written
from cryptopulse.serve.dashboard.handlers import PATH
from cryptopulse.serve.dashboard.layout import TITLE, View, page
from cryptopulse.serve.live.candles import GRAINS
from cryptopulse.serve.live.dashboard_queries import BODY_BYTES_MAX
from cryptopulse.settings import Settings


def add_pages(settings: Settings) -> None:
    """Registers all pages. The backtest form starts with the first rule of `settings`."""
    rules = [rule.model_dump(mode="json") for rule in settings.alerts.rules]

    @page("/", "Market")
    def market() -> None:
        View("market")

    @page("/product/{symbol:path}", "Product")
    def product(symbol: str) -> None:
        symbol = as_written(symbol)
        ui.page_title(f"{symbol} · {TITLE}")
        View("product", symbol=symbol, grains=list(GRAINS.items()), path=PATH)

    @page("/alerts", "Alerts")
    def alerts() -> None:
        View("alerts", path=PATH, rules=rules)

    @page("/completeness", "Completeness")
    def completeness() -> None:
        View("completeness", lake=str(settings.location), path=PATH)

    @page("/pipeline", "Pipeline")
    def pipeline() -> None:
        View("pipeline", body_max=BODY_BYTES_MAX)
