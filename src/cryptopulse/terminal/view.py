"""The pipeline in the terminal: a live view, or plain lines where there is no terminal.

Both show the figures in the processes' status files (`cryptopulse.status`) and the warnings in their log files.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cryptopulse.lake.alerts import measured_text
from cryptopulse.status import NOTIFIER, PROCESSES
from cryptopulse.terminal.snapshot import (
    PipelineSnapshot,
    Watcher,
    alert_words,
    change_pct,
    clock_text,
    hop_words,
    ms_text,
    number,
    state_word,
)
from cryptopulse.text import price_text, to_decimal

_REFRESH_S = 0.5  # as often as the processes report
_PLAIN_EVERY_S = 3.0
_HISTORY_LENGTH = 24
_LATENCY_HEIGHT = 9
_BARS = "▁▂▃▄▅▆▇█"
_STATE_STYLES = {"running": "green", "stopped": "dim", "absent": "yellow", "silent": "yellow"}


class LiveView:
    """A full-screen view. Use it as a context manager and call `refresh` often."""

    def __init__(self, state_dir: Path, title: str = "CryptoPulse", processes: Sequence[str] = PROCESSES) -> None:
        self._watcher = Watcher(state_dir, title, processes)
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, screen=True)
        self._history: dict[str, deque[Decimal]] = {}
        self._next = 0.0
        self.note = "Ctrl-C ends"
        """Shown in the last line."""

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def refresh(self) -> None:
        """Draws the current state, at most twice a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _REFRESH_S
        snapshot = self._watcher.snapshot()
        for symbol, product in snapshot.products.items():
            self._history.setdefault(symbol, deque(maxlen=_HISTORY_LENGTH)).append(to_decimal(product["price"]))
        width, height = self._console.size
        self._live.update(render(snapshot, self._history, self.note, width, height), refresh=True)


class PlainView:
    """Writes a line every few seconds, and one for each alert; for files, pipes and machines."""

    def __init__(self, state_dir: Path, title: str = "CryptoPulse", processes: Sequence[str] = PROCESSES) -> None:
        self._watcher = Watcher(state_dir, title, processes)
        self._next = 0.0
        self._printed: set[str] = set()
        self._warned: set[str] = set()
        self._dashboard_url: str | None = None
        self.note = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._print_news(self._watcher.snapshot())

    def refresh(self) -> None:
        """Prints what is new."""
        snapshot = self._watcher.snapshot()
        self._print_news(snapshot)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PLAIN_EVERY_S
            _print(snapshot.elapsed_s, plain_line(snapshot))

    def _print_news(self, snapshot: PipelineSnapshot) -> None:
        if snapshot.dashboard_url not in (None, self._dashboard_url):
            self._dashboard_url = snapshot.dashboard_url
            _print(snapshot.elapsed_s, f"dashboard: {snapshot.dashboard_url}")
        for alert in snapshot.alerts:
            if alert["alert_id"] not in self._printed:
                self._printed.add(alert["alert_id"])
                _print(snapshot.elapsed_s, f"ALERT  {alert_words(alert)}")
        for warning in snapshot.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                _print(snapshot.elapsed_s, warning)


def plain_line(snapshot: PipelineSnapshot) -> str:
    """The state in one line."""
    report = snapshot.processing
    if not report:
        states = ", ".join(f"{name} {state_word(status)}" for name, status in snapshot.processes.items())
        return f"waiting for the first trades ({states})"
    latency = (report.get("latency_ms") or {}).get("receive_to_silver") or {}
    first = next(iter(snapshot.products.items()), None)
    price = f" | {first[0]} {price_text(first[1]['price'])} {change_pct(first[1]):+.2f} %" if first else ""
    return (
        f"{number(report, 'trades_per_s'):5,.0f} trades/s | {number(report, 'trades_total'):9,.0f} trades"
        f" | receive→silver p50 {ms_text(latency.get('p50'))} p99 {ms_text(latency.get('p99'))} ms | "
        f"lag {number(report, 'log_lag_messages'):,.0f} messages{price}"
    )


def render(
    snapshot: PipelineSnapshot, history: Mapping[str, deque[Decimal]], note: str, width: int, height: int
) -> RenderableType:
    """The whole view for a terminal of `width` columns and `height` lines."""
    wide = width >= 110
    alert_rows = 3 if height < 30 else 8
    producer, processing, notifier = snapshot.producer, snapshot.processing, snapshot.notifier

    minutes, seconds = divmod(int(snapshot.elapsed_s), 60)
    title = Text.assemble((snapshot.title, "bold cyan"), f"   {minutes:02}:{seconds:02}")
    states = Text("   ").join(
        Text.assemble(
            ("● ", _STATE_STYLES.get(status.state, "red")),
            name,
            ("" if status.healthy else f" {state_word(status)}", "dim"),
        )
        for name, status in snapshot.processes.items()
    )
    totals = Text.assemble(
        (f"{number(processing, 'trades_per_s'):,.0f}", "bold"),
        " trades/s   ",
        (f"{number(processing, 'trades_total'):,.0f}", "bold"),
        " trades   ",
        (f"{number(processing, 'duplicates_total'):,.0f}", "bold"),
        " repeated   ",
        (f"{number(processing, 'quarantined_total'):,.0f}", "bold"),
        " quarantined",
    )
    lag = Text.assemble("lag ", (f"{number(processing, 'log_lag_ms'):,.0f} ms", "bold"))
    headline = Padding(Group(_two_sided(title, states), _two_sided(totals, lag)), (0, 1, 1, 1))

    figures = [
        ("messages/s", f"{number(producer, 'messages_per_s'):,.0f}"),
        ("connections", f"{number(producer, 'connections'):,.0f}"),
        ("reconnects", f"{number(producer, 'reconnects'):,.0f}"),
        ("ids missing / healed", f"{number(producer, 'ids_missing'):,.0f} / {number(producer, 'ids_healed'):,.0f}"),
        ("commits", f"{number(processing, 'commits_total'):,.0f}"),
        ("restarts", f"{sum(status.restarts for status in snapshot.processes.values()):,}"),
    ]
    if NOTIFIER in snapshot.processes:
        figures += [
            ("notified", f"{number(notifier, 'notifications_sent'):,.0f}"),
            ("to be notified", f"{number(notifier, 'notifications_waiting'):,.0f}"),
            ("tries failed", f"{number(notifier, 'notifications_failed'):,.0f}"),
        ]
    wanted_height = max(len(snapshot.products) + 3, _LATENCY_HEIGHT + len(figures) + 2)
    body_height = max(min(height - 3 - (alert_rows + 2) - 1, wanted_height), 6)

    latency = _table()
    for column in ("hop, ms", "p50", "p99", *(("max",) if wide else ())):
        latency.add_column(column, justify="left" if column == "hop, ms" else "right", no_wrap=True)
    for hop, its in (processing.get("latency_ms") or {}).items():
        values = [its.get("p50"), its.get("p99"), *([its.get("max")] if wide else [])]
        latency.add_row(hop_words(hop), *(ms_text(value) for value in values))
    pipeline: RenderableType = Text()
    if (rows_max := body_height - _LATENCY_HEIGHT - 2) > 0:
        table = _table()
        table.show_header = False
        table.add_column()
        table.add_column(justify="right")
        for figure in figures[:rows_max]:
            table.add_row(*figure)
        pipeline = _panel(table, "pipeline", rows_max + 2)

    body = Table.grid(expand=True)
    body.add_column(ratio=1)
    body.add_column(width=46 if wide else 35)
    right = Group(_panel(latency, "latency", _LATENCY_HEIGHT), pipeline)
    body.add_row(_products_panel(snapshot, history, wide, body_height), right)

    alerts = [_alert_line(alert, wide) for alert in snapshot.alerts[-alert_rows:]] or [Text("none yet", style="dim")]
    left = Text(f" {note}", style="dim")
    if snapshot.warnings and snapshot.products:  # without products the warning is shown in their panel
        left = Text(f" {snapshot.warnings[-1]}", style="yellow", no_wrap=True, overflow="ellipsis")
    return Group(
        headline,
        body,
        _panel(Padding(Group(*alerts), (0, 1)), "alerts", alert_rows + 2),
        _two_sided(left, Text(f"{snapshot.dashboard_url or ''} ", style="cyan")),
    )


def _two_sided(left: Text, right: Text) -> Table:
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True, ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(left, right)
    return grid


def _products_panel(
    snapshot: PipelineSnapshot, history: Mapping[str, deque[Decimal]], wide: bool, height: int
) -> RenderableType:
    table = _table()
    table.add_column("product", no_wrap=True)
    table.add_column("price", justify="right", no_wrap=True)
    table.add_column("change", justify="right", no_wrap=True)
    if wide:
        table.add_column("last seconds", no_wrap=True)
    table.add_column("trades", justify="right", no_wrap=True)
    for symbol, product in list(snapshot.products.items())[: max(height - 3, 1)]:
        change = change_pct(product)
        style = "green" if change > 0 else "red" if change < 0 else ""
        cells = [Text(symbol), Text(price_text(product["price"])), Text(f"{change:+.2f} %", style=style)]
        if wide:
            prices = [float(price) for price in history.get(symbol, ())]
            low, high = min(prices, default=0.0), max(prices, default=0.0)
            heights = [(price - low) / (high - low) if high > low else 3 / 7 for price in prices]
            sparkline = "".join(_BARS[round(share * (len(_BARS) - 1))] for share in heights)
            cells.append(Text(sparkline, style=style or "dim"))
        table.add_row(*cells, Text(f"{product['trades']:,}"))
    if snapshot.products:
        return _panel(table, "prices", height)
    waiting = snapshot.warnings[-1] if snapshot.warnings else "waiting for the first trade"
    return _panel(Padding(Text(waiting, style="yellow"), (0, 1)), "prices", height)


_COLORS = {"FLASH_CRASH": "red", "SELL_IMBALANCE": "red", "PRICE_SURGE": "green", "BUY_IMBALANCE": "green"}


def _alert_line(alert: Mapping[str, Any], wide: bool) -> Text:
    style = f"bold {_COLORS.get(alert['alert_type'], 'yellow')}"
    line = Text.assemble(
        f"{clock_text(alert['opened_at'])} ",
        (f"{alert['alert_type']:<11}", style),
        f" {alert['symbol']:<14} ",
        (measured_text(alert["alert_type"], float(alert["price_change_pct"])), style),
        f"  {price_text(alert['start_price'])} → {price_text(alert['end_price'])}",
        no_wrap=True,
        overflow="ellipsis",
    )
    if wide:
        line.append(f"  {str(alert['severity']).lower()}, {str(alert['state']).lower()}")
    if alert.get("latency_ms") is not None:
        line.append(f"  {ms_text(alert['latency_ms'])} ms", style="dim")
    return line


def _panel(content: RenderableType, title: str, height: int) -> Panel:
    return Panel(
        content,
        box=box.ROUNDED,
        border_style="dim",
        title=title,
        title_align="left",
        padding=(0, 0),
        height=height,
    )


def _table() -> Table:
    return Table(box=None, expand=True, padding=(0, 1), header_style="dim", pad_edge=True)


def _print(elapsed_s: float, text: str) -> None:
    sys.stdout.write(f"{elapsed_s:6.1f} s  {text}\n")
    sys.stdout.flush()
