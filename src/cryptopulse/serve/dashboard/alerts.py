"""The alerts: episodes live and of the past, the evidence of each, and trying a rule on the stored trades."""

from __future__ import annotations

import nicegui.elements.echart  # noqa: F401 - names ECharts in the import map of the pages

from cryptopulse.serve.dashboard.layout import page
from cryptopulse.serve.dashboard.view import View
from cryptopulse.serve.desk.requests import PATH
from cryptopulse.settings import Settings


def add_page(settings: Settings) -> None:
    """Puts the page at `/alerts`. The form begins with the first rule of `settings`."""
    rules = [rule.model_dump(mode="json") for rule in settings.alerts.rules]

    @page("/alerts", "Alerts")
    def alerts() -> None:
        View("alerts", path=PATH, rules=rules)
