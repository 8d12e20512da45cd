"""Metrics of the other processes, from their status files, if they run on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cryptopulse.status import ALIVE, ALL_PROCESSES, read_status

_MS = 1000.0
_QUANTILES = {"p50": "0.5", "p99": "0.99"}


class ProcessesCollector(Collector):
    """Reads the status files at every scrape."""

    def __init__(self, state_dir: Path) -> None:
        """`state_dir`: see `Settings.state_dir`."""
        self._state_dir = state_dir

    def describe(self) -> list[Metric]:
        """Empty, so that registering it reads nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics now, without processes that never ran on this lake."""
        found = {name: read_status(self._state_dir, name) for name in ALL_PROCESSES}
        found = {name: status for name, status in found.items() if status.state != "absent"}

        up = _gauge("process_up", "1 when the process does its work, else 0.")
        restarts = CounterMetricFamily(
            "cryptopulse_process_restarts", "How often the supervisor has started it again.", labels=["process"]
        )
        started = _gauge("process_start_time_seconds", "When it started.")
        reported = _gauge("process_last_report_timestamp_seconds", "When it last wrote its status file.")
        cpu = CounterMetricFamily("cryptopulse_process_cpu_seconds", "Processor time that it used.", labels=["process"])
        memory = _gauge("process_resident_memory_bytes", "Memory that it holds.")
        for name, status in found.items():
            up.add_metric([name], status.healthy)
            restarts.add_metric([name], status.restarts)
            if status.started_at is not None:
                started.add_metric([name], status.started_at.timestamp())
            if status.updated_at is not None:
                reported.add_metric([name], status.updated_at.timestamp())
            if status.state in ALIVE and status.pid is not None:
                with suppress(psutil.Error):  # not a process of this machine
                    process = psutil.Process(status.pid)
                    times, resident = process.cpu_times(), process.memory_info().rss
                    cpu.add_metric([name], times.user + times.system)
                    memory.add_metric([name], resident)
        yield from (up, restarts, started, reported, cpu, memory)

        for name, figures in FIGURES.items():
            report = found[name].report if name in found else {}
            for field, (metric, documentation) in figures.items():
                value = report.get(field)
                if isinstance(value, int | float):
                    family = CounterMetricFamily if metric.endswith("_total") else GaugeMetricFamily
                    yield family(f"cryptopulse_{metric}", documentation, value=value)

        if "processing" in found:
            quantiles = GaugeMetricFamily(
                "cryptopulse_hop_latency_seconds",
                "Latency of a hop of the pipeline in the last 10 seconds.",
                labels=["hop", "quantile"],
            )
            largest = GaugeMetricFamily(
                "cryptopulse_hop_latency_max_seconds",
                "Longest latency of a hop in the last 10 seconds.",
                labels=["hop"],
            )
            latency = found["processing"].report.get("latency_ms")
            for hop, its in (latency if isinstance(latency, dict) else {}).items():
                for name, quantile in _QUANTILES.items():
                    if isinstance(its.get(name), int | float):
                        quantiles.add_metric([hop, quantile], its[name] / _MS)
                if isinstance(its.get("max"), int | float):
                    largest.add_metric([hop], its["max"] / _MS)
            yield from (quantiles, largest)


def _gauge(name: str, documentation: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cryptopulse_{name}", documentation, labels=["process"])


FIGURES: dict[str, dict[str, tuple[str, str]]] = {
    "producer": {
        "connections": ("feed_connections", "Connections to the exchange that are live."),
        "messages_total": ("feed_messages_total", "Messages that were received."),
        "bytes_total": ("feed_received_bytes_total", "Bytes that were received."),
        "trades_total": ("feed_trades_total", "Trades among the messages."),
        "messages_logged": ("feed_messages_logged_total", "Messages that the log took."),
        "lost_messages": ("feed_lost_messages_total", "Messages that were lost before the log took them."),
        "malformed": ("feed_malformed_messages_total", "Messages that could not be read."),
        "reconnects": ("feed_reconnects_total", "Connections that replaced another."),
        "products_silent": ("feed_products_silent", "Products without a sign of life while others have one."),
        "products_refused": ("feed_products_refused", "Products that the exchange left out of a subscription."),
        "buffer_messages": ("feed_buffer_messages", "Messages that wait for the log."),
        "buffer_bytes": ("feed_buffer_bytes", "Size of the messages that wait for the log."),
        "last_message_age_s": ("feed_last_message_age_seconds", "Time since the newest message came."),
        "holes": ("feed_holes_total", "Holes in the trade ids that were seen."),
        "ids_missing": ("feed_ids_missing", "Trade ids that are to be fetched over REST."),
        "ids_healed": ("feed_ids_healed_total", "Trade ids that were missing and came."),
        "ids_absent": ("feed_ids_absent_total", "Trade ids that the exchange does not have."),
        "rest_requests": ("rest_requests_total", "Requests to the exchange's REST interface."),
        "rest_failures": ("rest_failures_total", "Requests to the exchange's REST interface that failed."),
    },
    "processing": {
        "messages_total": ("processing_messages_total", "Messages that were processed."),
        "trades_total": ("processing_trades_total", "Trades that were stored."),
        "duplicates_total": ("processing_duplicates_total", "Trades that were stored already."),
        "quarantined_total": ("processing_quarantined_total", "Messages that could not be read."),
        "commits_total": ("processing_commits_total", "Commits to tables."),
        "messages_expired_total": ("processing_messages_expired_total", "Messages that left the log unread."),
        "trades_per_s": ("processing_trades_per_second", "Trades stored a second, in the last 5 seconds."),
        "log_lag_messages": ("log_lag_messages", "Messages of the log that are not processed yet."),
    },
    "notifier": {
        "notifications_sent": ("notifications_sent_total", "Messages that were sent to targets."),
        "notifications_failed": ("notifications_failed_total", "Tries to send that failed."),
        "notifications_waiting": ("notifications_waiting", "Messages that are to be sent."),
    },
}
