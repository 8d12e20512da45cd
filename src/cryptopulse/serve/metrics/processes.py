"""Figures of the other processes, from their status files: where they run on the same machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cryptopulse.status import ALIVE, ALL_PROCESSES, ProcessStatus, read_status

_MS = 1000.0
_QUANTILES = {"p50": "0.5", "p99": "0.99"}


class ProcessesCollector(Collector):
    """Reads the status files at every scrape."""

    def __init__(self, state_dir: Path) -> None:
        """`state_dir`: see `Settings.state_dir`."""
        self._state_dir = state_dir

    def describe(self) -> list[Metric]:
        """Nothing: so nothing is read when it is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics now; none of a process that never ran on this lake."""
        found = {name: read_status(self._state_dir, name) for name in ALL_PROCESSES}
        found = {name: status for name, status in found.items() if status.state != "absent"}
        yield from _processes(found)
        for name, figures in FIGURES.items():
            if name in found:
                yield from _figures(found[name].report, figures)
        if "processing" in found:
            yield from _latency(found["processing"].report.get("latency_ms"))


def _processes(found: Mapping[str, ProcessStatus]) -> Iterator[Metric]:
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
        if (used := _used(status)) is not None:
            cpu.add_metric([name], used[0])
            memory.add_metric([name], used[1])
    yield from (up, restarts, started, reported, cpu, memory)


def _used(status: ProcessStatus) -> tuple[float, float] | None:
    """Processor seconds and bytes of memory of a process, if it is one of this machine."""
    if status.state not in ALIVE or status.pid is None:
        return None
    try:
        process = psutil.Process(status.pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss
    except psutil.Error:
        return None


def _figures(report: Mapping[str, Any], figures: Mapping[str, tuple[str, str]]) -> Iterator[Metric]:
    for name, (metric, said) in figures.items():
        value = report.get(name)
        if not isinstance(value, int | float):
            continue
        if metric.endswith("_total"):
            yield CounterMetricFamily(f"cryptopulse_{metric}", said, value=value)
        else:
            yield GaugeMetricFamily(f"cryptopulse_{metric}", said, value=value)


def _latency(latency: object) -> Iterator[Metric]:
    quantiles = GaugeMetricFamily(
        "cryptopulse_hop_latency_seconds",
        "Latency of a hop of the pipeline in the last 10 seconds.",
        labels=["hop", "quantile"],
    )
    largest = GaugeMetricFamily(
        "cryptopulse_hop_latency_max_seconds", "Longest latency of a hop in the last 10 seconds.", labels=["hop"]
    )
    hops = latency if isinstance(latency, dict) else {}
    for hop, figures in hops.items():
        for name, quantile in _QUANTILES.items():
            if isinstance(figures.get(name), int | float):
                quantiles.add_metric([hop, quantile], figures[name] / _MS)
        if isinstance(figures.get("max"), int | float):
            largest.add_metric([hop], figures["max"] / _MS)
    yield from (quantiles, largest)


def _gauge(name: str, said: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cryptopulse_{name}", said, labels=["process"])


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
        "messages_total": ("processing_messages_total", "Messages that were taken in."),
        "trades_total": ("processing_trades_total", "Trades that were stored."),
        "duplicates_total": ("processing_duplicates_total", "Trades that were held already."),
        "quarantined_total": ("processing_quarantined_total", "Messages that could not be read."),
        "commits_total": ("processing_commits_total", "Commits to tables."),
        "messages_expired_total": ("processing_messages_expired_total", "Messages that left the log unread."),
        "trades_per_s": ("processing_trades_per_second", "Trades stored a second, in the last 5 seconds."),
        "log_lag_messages": ("log_lag_messages", "Messages of the log that are not taken in yet."),
    },
    "notifier": {
        "notifications_sent": ("notifications_sent_total", "Messages that were sent to targets."),
        "notifications_failed": ("notifications_failed_total", "Tries to send that failed."),
        "notifications_waiting": ("notifications_waiting", "Messages that are to be sent."),
    },
}
