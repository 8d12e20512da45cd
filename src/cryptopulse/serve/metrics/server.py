"""Figures of the server itself."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cryptopulse import __version__
from cryptopulse.serve.gate import Gate
from cryptopulse.serve.health import LoopWatch


class ServerCollector(Collector):
    """Version, questions that are worked on, and how late the event loop is."""

    def __init__(self, gate: Gate, loop_watch: LoopWatch) -> None:
        """Asked at every scrape."""
        self._gate = gate
        self._loop_watch = loop_watch

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        built = GaugeMetricFamily("cryptopulse_build_info", "The version that answers.", labels=["version"])
        built.add_metric([__version__], 1)
        yield built
        yield GaugeMetricFamily(
            "cryptopulse_api_questions_open", "Questions that are worked on or wait.", value=self._gate.taken
        )
        yield CounterMetricFamily(
            "cryptopulse_api_questions_refused",
            "Questions that were told to come back, because too many waited.",
            value=self._gate.refused,
        )
        yield GaugeMetricFamily(
            "cryptopulse_event_loop_lag_seconds",
            "By how much the server was late at the worst moment of the last minute.",
            value=self._loop_watch.lag_s,
        )
