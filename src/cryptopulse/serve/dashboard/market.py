"""The market: every product, its last price, its changes, volume and the last hour, live."""

from __future__ import annotations

from cryptopulse.serve.dashboard.layout import page
from cryptopulse.serve.dashboard.view import View


def add_page() -> None:
    """Puts the page at `/`."""

    @page("/", "Market")
    def market() -> None:
        View("market")
