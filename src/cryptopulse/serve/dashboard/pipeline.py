"""The pipeline: latency of each hop, rates, lag and freshness, the processes, and what could not be read."""

from __future__ import annotations

import nicegui.elements.echart  # noqa: F401 - names ECharts in the import map of the pages

from cryptopulse.serve.dashboard.layout import page
from cryptopulse.serve.dashboard.view import View
from cryptopulse.serve.live.questions import BODY_BYTES_MAX


def add_page() -> None:
    """Puts the page at `/pipeline`."""

    @page("/pipeline", "Pipeline")
    def pipeline() -> None:
        View("pipeline", body_max=BODY_BYTES_MAX)
