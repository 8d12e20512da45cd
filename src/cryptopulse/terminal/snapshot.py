"""What the terminal shows of a running pipeline: figures from status files, warnings from log files."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptopulse.lake.alerts import measured_text
from cryptopulse.status import DASHBOARD, NOTIFIER, PROCESSES, ProcessStatus, read_status
from cryptopulse.text import price_text, to_decimal

_STATE_WORDS = {"absent": "starting"}


@dataclass
class PipelineSnapshot:
    """The pipeline at one moment."""

    title: str
    elapsed_s: float
    processes: dict[str, ProcessStatus]
    warnings: list[str] = field(default_factory=list)

    @property
    def producer(self) -> Mapping[str, Any]:
        """The producer's figures."""
        return self.processes["producer"].report

    @property
    def processing(self) -> Mapping[str, Any]:
        """The processing's figures."""
        return self.processes["processing"].report

    @property
    def notifier(self) -> Mapping[str, Any]:
        """The notifier's figures; empty without a notifier."""
        return self.processes[NOTIFIER].report if NOTIFIER in self.processes else {}

    @property
    def dashboard_url(self) -> str | None:
        """The dashboard's URL; None when there is no dashboard, or it does not listen yet."""
        status = self.processes.get(DASHBOARD)
        return str(status.report["url"]) if status and status.healthy and "url" in status.report else None

    @property
    def products(self) -> dict[str, dict[str, Any]]:
        """By product: price, open, trades, volume."""
        return dict(self.processing.get("products") or {})

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """Alert episodes, the newest last."""
        return sorted(self.processing.get("alerts") or [], key=lambda alert: str(alert["opened_at"]))


class Watcher:
    """Reads status files and log files of one lake."""

    def __init__(self, state_dir: Path, title: str, processes: Sequence[str] = PROCESSES) -> None:
        """`state_dir`: see `Settings.state_dir`. Processes that started before now are ignored."""
        self._state_dir = state_dir
        self._title = title
        self._processes = processes
        self._started = time.monotonic()
        self._started_at = datetime.now(UTC)
        self._positions: dict[Path, int] = {}
        self._warnings: deque[str] = deque(maxlen=8)
        for path in self._log_files():  # skips what was logged before this start
            self._positions[path] = path.stat().st_size

    def snapshot(self) -> PipelineSnapshot:
        """The state now."""
        for path in self._log_files():
            position = self._positions.get(path, 0)
            if path.stat().st_size < position:  # the file was rotated
                position = 0
            with path.open("rb") as file:
                file.seek(position)
                data = file.read(1 << 20)
            complete = data.rfind(b"\n") + 1
            self._positions[path] = position + complete
            for line in data[:complete].splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(event, dict) or event.get("level") not in ("warning", "error", "critical"):
                    continue
                shown = ("timestamp", "level", "process", "event", "exception")
                details = " ".join(f"{name}={value}" for name, value in event.items() if name not in shown)
                words = str(event.get("event", "")).replace("_", " ")
                told = f"{clock_text(event.get('timestamp', ''))} {event.get('process', '')}: {words} {details}"
                self._warnings.append(told.rstrip())
        processes = {name: read_status(self._state_dir, name) for name in self._processes}
        for name, status in processes.items():
            if status.started_at is not None and status.started_at < self._started_at:  # from an earlier run
                processes[name] = ProcessStatus(name, "absent")
        return PipelineSnapshot(
            title=self._title,
            elapsed_s=time.monotonic() - self._started,
            processes=processes,
            warnings=list(self._warnings),
        )

    def _log_files(self) -> list[Path]:
        return sorted((self._state_dir / "logs").glob("*.log"))


def alert_words(alert: Mapping[str, Any]) -> str:
    """An alert in one line."""
    latency = alert.get("latency_ms")
    after = "" if latency is None else f", stored {ms_text(latency)} ms after its trade was received"
    measured = measured_text(alert["alert_type"], float(alert["price_change_pct"]))
    return (
        f"{alert['alert_type']} {alert['symbol']} {measured}: "
        f"{price_text(alert['start_price'])} → {price_text(alert['end_price'])}{after}"
    )


def hop_words(hop: str) -> str:
    """`receive_to_silver` → `receive → silver`."""
    return hop.replace("_to_", " → ")


def state_word(status: ProcessStatus) -> str:
    """The state of a process for people."""
    return _STATE_WORDS.get(status.state, status.state)


def change_pct(product: Mapping[str, Any]) -> float:
    """Change of a product's price in percent."""
    opened, price = to_decimal(product["open"]), to_decimal(product["price"])
    return float((price / opened - 1) * 100) if opened else 0.0


def ms_text(value: object) -> str:
    """Milliseconds for people, a dash for none."""
    if not isinstance(value, int | float):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.1f}"


def number(report: Mapping[str, Any], name: str) -> float:
    """A figure of a report: the length of a list or dict, 0 when it is missing."""
    value = report.get(name)
    if isinstance(value, list | dict):
        return float(len(value))
    return float(value) if isinstance(value, int | float) else 0.0


def clock_text(time_text: object) -> str:
    """Hours, minutes and seconds of an ISO time."""
    text = str(time_text).replace("T", " ")
    return text.split(" ")[1][:8] if " " in text else text
