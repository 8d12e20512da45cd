"""Figures of the processing for its status file: rates, latencies per hop, newest prices and alerts."""

from __future__ import annotations

import threading
import time
from collections import deque
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import StepResult
from cryptopulse.engine.embedded import EmbeddedEngine
from cryptopulse.lake.tables import ALERTS, BARS, BRONZE, QUARANTINE, SILVER
from cryptopulse.latency import Latency, elapsed_ms
from cryptopulse.text import decimal_text

HOPS = (
    "exchange_to_receive",
    "receive_to_log",
    "receive_to_bronze",
    "receive_to_silver",
    "receive_to_alert",
    "receive_to_gold",
)
"""Hops in the order of the data's path. Each ends when the commit has returned; `receive_to_log` when the log took the
message (the log's sync follows and is part of `receive_to_bronze`)."""

_PRODUCTS_MAX = 50
_ALERTS_MAX = 20
_BARS_KEPT = 6  # minutes over which a price change is shown
_RATE_WINDOW_S = 5.0


class Telemetry:
    """Collects figures of the pipeline's commits; the reporting thread reads them."""

    def __init__(self, engine: EmbeddedEngine) -> None:
        """Starts counting; trades, conflicts and coverage are read from `engine`."""
        self._engine = engine
        self._latency = {hop: Latency() for hop in HOPS}
        self._totals = {"messages": 0, "trades": 0, "duplicates": 0, "quarantined": 0, "commits": 0}
        self._rate: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._newest_bars: dict[str, dict[datetime, dict[str, Any]]] = {}
        self._detection_ms: dict[str, float] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def add(self, result: StepResult) -> None:
        """Counts a step that has just ended."""
        now_ns = time.time_ns()
        with self._lock:
            self._totals["commits"] += result.rows.num_rows > 0
            match result.table:
                case t if t is BRONZE:
                    received = result.rows["received_time"]
                    self._latency["receive_to_log"].add(elapsed_ms(received, result.rows["enqueued_time"]))
                    self._latency["receive_to_bronze"].add(elapsed_ms(received, now_ns))
                case t if t is SILVER:
                    self._totals["messages"] += result.consumed
                    self._totals["trades"] += result.rows.num_rows
                    self._totals["duplicates"] += result.skipped
                    received = result.rows["ingestion_time"]
                    self._latency["exchange_to_receive"].add(elapsed_ms(result.rows["event_time"], received))
                    self._latency["receive_to_silver"].add(elapsed_ms(received, now_ns))
                case t if t is QUARANTINE:
                    self._totals["quarantined"] += result.rows.num_rows
                case t if t is ALERTS:
                    self._alerts(result, now_ns)
                case t if t is BARS:
                    self._bars(result, now_ns)

    def _alerts(self, result: StepResult, now_ns: int) -> None:
        if result.received is not None:
            self._latency["receive_to_alert"].add(elapsed_ms(result.received, now_ns))
        for alert in result.rows.select(["alert_id", "symbol", "trigger_trade_id", "opened_at"]).to_pylist():
            if alert["alert_id"] not in self._detection_ms:
                # Counted from the receipt of the trade that opened the episode, if the trade is still in memory.
                opened_us = round(alert["opened_at"].timestamp() * 1e6)
                trades = self._engine.trades.between(opened_us, opened_us, [alert["symbol"]])
                found = trades.filter(pc.equal(trades["trade_id"], alert["trigger_trade_id"]))["ingestion_time"]
                if len(found):
                    received_ns = pc.cast(found, pa.int64())[0].as_py() * 1000
                    self._detection_ms[alert["alert_id"]] = round((now_ns - received_ns) / 1e6, 1)

    def state(self, episodes: pa.Table, lag_messages: int) -> dict[str, object]:
        """All figures, ready for JSON. `episodes`: recent alerts; `lag_messages`: messages that wait in the log."""
        now_s = time.monotonic()
        with self._lock:
            self._rate.append((now_s, self._totals["trades"]))
            while len(self._rate) > 2 and self._rate[0][0] < now_s - _RATE_WINDOW_S:
                self._rate.popleft()
            (first_at, first), (last_at, last) = self._rate[0], self._rate[-1]
            lately = {hop: latency.lately() for hop, latency in self._latency.items()}
            return {
                **{f"{name}_total": count for name, count in self._totals.items()},
                "conflicts_total": sum(self._engine.conflicts.values()),
                "conflicts": dict(self._engine.conflicts),
                "trades_per_s": round((last - first) / max(last_at - first_at, 1e-9), 1),
                "log_lag_messages": lag_messages,
                "latency_ms": lately,
                "latency_total_ms": {hop: latency.overall() for hop, latency in self._latency.items()},
                "products": self._products(),
                "alerts": self._newest(episodes),
            }

    def summary(self) -> dict[str, object]:
        """Counts since the start, and what the lake holds now, for the summary of a command."""
        intervals: dict[str, list[tuple[int, int]]] = {}
        for symbol, first, last in zip(*(c.to_pylist() for c in self._engine.coverage.table.columns), strict=True):
            intervals.setdefault(symbol, []).append((first, last))
        counts = {symbol: sum(last - first + 1 for first, last in spans) for symbol, spans in intervals.items()}
        return {
            **{name: self._totals[name] for name in ("messages", "trades", "duplicates", "quarantined")},
            "symbols": counts,
            "conflicts": sum(self._engine.conflicts.values()),
            "holes": sum(len(spans) - 1 for spans in intervals.values()),
            "missing_ids": sum(spans[-1][1] - spans[0][0] + 1 - counts[symbol] for symbol, spans in intervals.items()),
            "seconds": round(time.monotonic() - self._started, 3),
        }

    def _bars(self, result: StepResult, now_ns: int) -> None:
        if result.received is not None:
            self._latency["receive_to_gold"].add(elapsed_ms(result.received, now_ns))
        columns = ["symbol", "window_start", "open", "close", "volume", "trade_count"]
        for bar in result.rows.select(columns).sort_by("window_start").to_pylist():
            bars = self._newest_bars.setdefault(bar["symbol"], {})
            bars[bar["window_start"]] = bar
            if len(bars) > _BARS_KEPT:
                del bars[min(bars)]

    def _products(self) -> dict[str, dict[str, Any]]:
        """Newest price of the most traded products, and the price some minutes ago."""
        products: dict[str, dict[str, Any]] = {}
        for symbol, bars in self._newest_bars.items():
            first, last = bars[min(bars)], bars[max(bars)]
            products[symbol] = {
                "price": decimal_text(last["close"]),
                "open": decimal_text(first["open"]),
                "time": last["window_start"].isoformat(),
                "volume": decimal_text(sum(bar["volume"] for bar in bars.values())),
                "trades": sum(bar["trade_count"] for bar in bars.values()),
            }
        most_traded = sorted(products.items(), key=lambda item: (-item[1]["trades"], item[0]))
        return dict(most_traded[:_PRODUCTS_MAX])

    def _newest(self, episodes: pa.Table) -> list[dict[str, object]]:
        columns = ["alert_id", "symbol", "alert_type", "severity", "state", "price_change_pct", "opened_at"]
        columns += ["detected_at", "start_price", "end_price"]
        newest = episodes.sort_by([("opened_at", "descending")]).slice(0, _ALERTS_MAX).select(columns)
        alerts = []
        for row in newest.to_pylist():
            times = {name: row[name].isoformat() for name in ("opened_at", "detected_at")}
            prices = {name: decimal_text(row[name]) for name in ("start_price", "end_price")}
            alerts.append(row | times | prices | {"latency_ms": self._detection_ms.get(row["alert_id"])})
        return alerts
