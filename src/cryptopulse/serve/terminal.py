"""The pipeline in the terminal: a live view, or plain lines where there is no terminal.

Both show what the processes say of themselves in their status files (`cryptopulse.status`), and the
warnings that they write to their log files.
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

from cryptopulse.serve.snapshot import (
    Snapshot,
    Watcher,
    alert_words,
    change_pct,
    clock_text,
    hop_words,
    ms_text,
    number,
    price_text,
    state_word,
    to_decimal,
)
from cryptopulse.status import NOTIFIER, PROCESSES, ProcessStatus

_REFRESH_S = 0.5  # as often as the processes report
_PLAIN_EVERY_S = 3.0
_HISTORY_LENGTH = 24
_LATENCY_HEIGHT = 9
_BARS = "▁▂▃▄▅▆▇█"
_STATE_STYLES = {"running": "green", "stopped": "dim", "absent": "yellow", "silent": "yellow"}


class LiveView:
    """Draws over itself on a terminal. Use as a context manager and call `refresh` often."""

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
        """Draws the present state, at most twice a second."""
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
        self._told: set[str] = set()
        self._warned: set[str] = set()
        self._dashboard_url: str | None = None
        self.note = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell(self._watcher.snapshot())

    def refresh(self) -> None:
        """Says what is new."""
        snapshot = self._watcher.snapshot()
        self._tell(snapshot)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _PLAIN_EVERY_S
            _say(snapshot.elapsed_s, plain_line(snapshot))

    def _tell(self, snapshot: Snapshot) -> None:
        if snapshot.dashboard_url not in (None, self._dashboard_url):
            self._dashboard_url = snapshot.dashboard_url
            _say(snapshot.elapsed_s, f"dashboard: {snapshot.dashboard_url}")
        for alert in snapshot.alerts:
            if alert["alert_id"] not in self._told:
                self._told.add(alert["alert_id"])
                _say(snapshot.elapsed_s, f"ALERT  {alert_words(alert)}")
        for warning in snapshot.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                _say(snapshot.elapsed_s, warning)


def plain_line(snapshot: Snapshot) -> str:
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
    snapshot: Snapshot, history: Mapping[str, deque[Decimal]], note: str, width: int, height: int
) -> RenderableType:
    """The whole view for a terminal of `width` columns and `height` lines."""
    wide = width >= 110
    alert_rows = 3 if height < 30 else 8
    figures = _pipeline_figures(snapshot)
    wanted_height = max(len(snapshot.products) + 3, _LATENCY_HEIGHT + len(figures) + 2)
    body_height = max(min(height - 3 - (alert_rows + 2) - 1, wanted_height), 6)
    body = Table.grid(expand=True)
    body.add_column(ratio=1)
    body.add_column(width=46 if wide else 35)
    right = Group(_latency_panel(snapshot, wide), _pipeline_panel(figures, body_height - _LATENCY_HEIGHT - 2))
    body.add_row(_products_panel(snapshot, history, wide, body_height), right)
    return Group(
        _headline(snapshot),
        body,
        _alerts_panel(snapshot, alert_rows, wide),
        _last_line(snapshot, note),
    )


def _headline(snapshot: Snapshot) -> RenderableType:
    report = snapshot.processing
    minutes, seconds = divmod(int(snapshot.elapsed_s), 60)
    first = Text.assemble((snapshot.title, "bold cyan"), f"   {minutes:02}:{seconds:02}")
    states = Text("   ").join(
        Text.assemble(("● ", _state_style(status)), name, ("" if status.healthy else f" {state_word(status)}", "dim"))
        for name, status in snapshot.processes.items()
    )
    figures = Text.assemble(
        (f"{number(report, 'trades_per_s'):,.0f}", "bold"),
        " trades/s   ",
        (f"{number(report, 'trades_total'):,.0f}", "bold"),
        " trades   ",
        (f"{number(report, 'duplicates_total'):,.0f}", "bold"),
        " repeated   ",
        (f"{number(report, 'quarantined_total'):,.0f}", "bold"),
        " quarantined",
    )
    lag = Text.assemble("lag ", (f"{number(report, 'log_lag_ms'):,.0f} ms", "bold"))
    return Padding(Group(_two_sided(first, states), _two_sided(figures, lag)), (0, 1, 1, 1))


def _two_sided(left: Text, right: Text) -> Table:
    grid = Table.grid(expand=True)
    grid.add_column(no_wrap=True, ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(left, right)
    return grid


def _products_panel(
    snapshot: Snapshot, history: Mapping[str, deque[Decimal]], wide: bool, height: int
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
            cells.append(Text(_sparkline(history.get(symbol, ())), style=style or "dim"))
        table.add_row(*cells, Text(f"{product['trades']:,}"))
    content = table if snapshot.products else Padding(Text(_waiting(snapshot), style="yellow"), (0, 1))
    return _panel(content, "prices", height)


def _latency_panel(snapshot: Snapshot, wide: bool) -> RenderableType:
    table = _table()
    for column in ("hop, ms", "p50", "p99", *(("max",) if wide else ())):
        table.add_column(column, justify="left" if column == "hop, ms" else "right", no_wrap=True)
    for hop, figures in (snapshot.processing.get("latency_ms") or {}).items():
        values = [figures.get("p50"), figures.get("p99"), *([figures.get("max")] if wide else [])]
        table.add_row(hop_words(hop), *(ms_text(value) for value in values))
    return _panel(table, "latency", _LATENCY_HEIGHT)


def _pipeline_figures(snapshot: Snapshot) -> list[tuple[str, str]]:
    producer, processing = snapshot.producer, snapshot.processing
    healing = f"{number(producer, 'ids_missing'):,.0f} / {number(producer, 'ids_healed'):,.0f}"
    rows = [
        ("messages/s", f"{number(producer, 'messages_per_s'):,.0f}"),
        ("connections", f"{number(producer, 'connections'):,.0f}"),
        ("reconnects", f"{number(producer, 'reconnects'):,.0f}"),
        ("ids missing / healed", healing),
        ("commits", f"{number(processing, 'commits_total'):,.0f}"),
        ("restarts", f"{sum(status.restarts for status in snapshot.processes.values()):,}"),
    ]
    if NOTIFIER in snapshot.processes:
        notifier = snapshot.notifier
        rows += [
            ("notified", f"{number(notifier, 'notifications_sent'):,.0f}"),
            ("to be notified", f"{number(notifier, 'notifications_waiting'):,.0f}"),
            ("tries failed", f"{number(notifier, 'notifications_failed'):,.0f}"),
        ]
    return rows


def _pipeline_panel(figures: Sequence[tuple[str, str]], rows_max: int) -> RenderableType:
    table = _table()
    table.show_header = False
    table.add_column()
    table.add_column(justify="right")
    for row in figures[: max(rows_max, 0)]:
        table.add_row(*row)
    if rows_max <= 0:
        return Text()
    return _panel(table, "pipeline", rows_max + 2)


def _alerts_panel(snapshot: Snapshot, rows_max: int, wide: bool) -> RenderableType:
    lines = [_alert_line(alert, wide) for alert in snapshot.alerts[-rows_max:]] or [Text("none yet", style="dim")]
    return _panel(Padding(Group(*lines), (0, 1)), "alerts", rows_max + 2)


def _alert_line(alert: Mapping[str, Any], wide: bool) -> Text:
    style = "bold red" if alert["alert_type"] == "FLASH_CRASH" else "bold green"
    line = Text.assemble(
        f"{clock_text(alert['opened_at'])} ",
        (f"{alert['alert_type']:<11}", style),
        f" {alert['symbol']:<9} ",
        (f"{float(alert['price_change_pct']):+.2f} %", style),
        f"  {price_text(alert['start_price'])} → {price_text(alert['end_price'])}",
        no_wrap=True,
        overflow="ellipsis",
    )
    if wide:
        line.append(f"  {str(alert['severity']).lower()}, {str(alert['state']).lower()}")
    if alert.get("latency_ms") is not None:
        line.append(f"  {ms_text(alert['latency_ms'])} ms", style="dim")
    return line


def _last_line(snapshot: Snapshot, note: str) -> RenderableType:
    left = Text(f" {note}", style="dim")
    if snapshot.warnings and snapshot.products:  # without products the warning stands in their place
        left = Text(f" {snapshot.warnings[-1]}", style="yellow", no_wrap=True, overflow="ellipsis")
    return _two_sided(left, Text(f"{snapshot.dashboard_url or ''} ", style="cyan"))


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


def _waiting(snapshot: Snapshot) -> str:
    return snapshot.warnings[-1] if snapshot.warnings else "waiting for the first trade"


def _state_style(status: ProcessStatus) -> str:
    return _STATE_STYLES.get(status.state, "red")


def _sparkline(prices: Any) -> str:
    values = [float(price) for price in prices]
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high == low:
        return _BARS[3] * len(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)


def _say(elapsed_s: float, text: str) -> None:
    sys.stdout.write(f"{elapsed_s:6.1f} s  {text}\n")
    sys.stdout.flush()
