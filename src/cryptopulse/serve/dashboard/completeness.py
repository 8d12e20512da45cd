"""The completeness: per product and hour what is held, healed, absent and missing; the holes, and what helps."""

from __future__ import annotations

from cryptopulse.serve.dashboard.layout import page
from cryptopulse.serve.dashboard.view import View
from cryptopulse.settings import Settings


def add_page(settings: Settings) -> None:
    """Puts the page at `/completeness`."""

    @page("/completeness", "Completeness")
    def completeness() -> None:
        View("completeness", lake=str(settings.location))
