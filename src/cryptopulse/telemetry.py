"""What the processing says of itself: rates, latencies per hop, newest prices and alerts."""

from __future__ import annotations

import threading
import time
from collections import deque
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import Commit
from cryptopulse.engine.held import Held
from cryptopulse.engine.session import Session
from cryptopulse.lake.tables import ALERTS, BARS, BRONZE, QUARANTINE, SILVER
from cryptopulse.latency import Latency, elapsed_ms

HOPS = (
    "exchange_to_receive",
    "receive_to_log",
    "receive_to_bronze",
    "receive_to_silver",
    "receive_to_alert",
    "receive_to_gold",
)
"""Hops in the order of the way. Each ends when the commit has returned; `receive_to_log` when the log took the
message (its sync follows and is part of `receive_to_bronze`)."""

_PRODUCTS_MAX = 50
_ALERTS_MAX = 20
_BARS_KEPT = 6  # minutes that a product's price is compared over
_RATE_WINDOW_S = 5.0
_HELD_SQL = """
SELECT symbol, sum(last_trade_id - first_trade_id + 1)::BIGINT AS held,
       (max(last_trade_id) - min(first_trade_id) + 1 - sum(last_trade_id - first_trade_id + 1))::BIGINT AS missing,
       (count(*) - 1)::BIGINT AS holes
FROM coverage GROUP BY symbol ORDER BY symbol
"""


class Telemetry:
    """Collects from the pipeline's commits; asked for its state by the reporting thread."""

    def __init__(self, session: Session, held: Held) -> None:
        """`session` is this object's own."""
        self._session = session
        self._held = held
        self._latency = {hop: Latency() for hop in HOPS}
        self._totals = {"messages": 0, "trades": 0, "duplicates": 0, "quarantined": 0, "commits": 0}
        self._rate: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._newest_bars: dict[str, dict[datetime, dict[str, Any]]] = {}
        self._detection_ms: dict[str, float] = {}
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def committed(self, commit: Commit) -> None:
        """Takes note of a step that has just ended."""
        now_ns = time.time_ns()
        with self._lock:
            self._totals["commits"] += commit.rows.num_rows > 0
            match commit.table:
                case t if t is BRONZE:
                    self._bronze(commit, now_ns)
                case t if t is SILVER:
                    self._silver(commit, now_ns)
                case t if t is QUARANTINE:
                    self._totals["quarantined"] += commit.rows.num_rows
                case t if t is ALERTS:
                    self._alerts(commit, now_ns)
                case t if t is BARS:
                    self._bars(commit, now_ns)

    def _bronze(self, commit: Commit, now_ns: int) -> None:
        received = commit.rows["received_time"]
        self._latency["receive_to_log"].add(elapsed_ms(received, commit.rows["enqueued_time"]))
        self._latency["receive_to_bronze"].add(elapsed_ms(received, now_ns))

    def _silver(self, commit: Commit, now_ns: int) -> None:
        self._totals["messages"] += commit.consumed
        self._totals["trades"] += commit.rows.num_rows
        self._totals["duplicates"] += commit.skipped
        received = commit.rows["ingestion_time"]
        self._latency["exchange_to_receive"].add(elapsed_ms(commit.rows["event_time"], received))
        self._latency["receive_to_silver"].add(elapsed_ms(received, now_ns))

    def _alerts(self, commit: Commit, now_ns: int) -> None:
        if commit.received is not None:
            self._latency["receive_to_alert"].add(elapsed_ms(commit.received, now_ns))
        for alert in commit.rows.select(["alert_id", "symbol", "trigger_trade_id", "opened_at"]).to_pylist():
            if alert["alert_id"] not in self._detection_ms:
                received_ns = self._received_ns(alert)
                if received_ns is not None:
                    self._detection_ms[alert["alert_id"]] = round((now_ns - received_ns) / 1e6, 1)

    def _received_ns(self, alert: dict[str, object]) -> int | None:
        """When the trade that opened the episode came off the socket; None when it is no longer in memory."""
        opened = alert["opened_at"]
        assert isinstance(opened, datetime)
        opened_us = round(opened.timestamp() * 1e6)
        trades = self._held.recent.between(opened_us, opened_us)
        is_trigger = pc.and_(
            pc.equal(trades["symbol"], alert["symbol"]), pc.equal(trades["trade_id"], alert["trigger_trade_id"])
        )
        found = trades.filter(is_trigger)["ingestion_time"]
        return int(pc.cast(found, pa.int64())[0].as_py()) * 1000 if len(found) else None

    def state(self, episodes: pa.Table, lag_messages: int) -> dict[str, object]:
        """Everything, ready for JSON. `episodes`: alerts that are near; `lag_messages`: what waits in the log."""
        with self._lock:
            lately = {hop: latency.lately() for hop, latency in self._latency.items()}
            return {
                **{f"{name}_total": count for name, count in self._totals.items()},
                "trades_per_s": self._trades_per_s(),
                "log_lag_messages": lag_messages,
                "latency_ms": lately,
                "latency_total_ms": {hop: latency.overall() for hop, latency in self._latency.items()},
                "products": self._products(),
                "alerts": self._newest(episodes),
            }

    def summary(self) -> dict[str, object]:
        """What was done since the start, and what the lake holds now, for a person who waited for it."""
        held = self._session.query(_HELD_SQL, {"coverage": self._held.coverage}).to_pylist()
        return {
            **{name: self._totals[name] for name in ("messages", "trades", "duplicates", "quarantined")},
            "symbols": {row["symbol"]: row["held"] for row in held},
            "holes": sum(row["holes"] for row in held),
            "missing_ids": sum(row["missing"] for row in held),
            "seconds": round(time.monotonic() - self._started, 3),
        }

    def _bars(self, commit: Commit, now_ns: int) -> None:
        if commit.received is not None:
            self._latency["receive_to_gold"].add(elapsed_ms(commit.received, now_ns))
        columns = ["symbol", "window_start", "open", "close", "volume", "trade_count"]
        for bar in commit.rows.select(columns).sort_by("window_start").to_pylist():
            bars = self._newest_bars.setdefault(bar["symbol"], {})
            bars[bar["window_start"]] = bar
            if len(bars) > _BARS_KEPT:
                del bars[min(bars)]

    def _products(self) -> dict[str, dict[str, Any]]:
        """The newest price of the most traded products, beside that of some minutes ago."""
        products: dict[str, dict[str, Any]] = {}
        for symbol, bars in self._newest_bars.items():
            first, last = bars[min(bars)], bars[max(bars)]
            products[symbol] = {
                "price": f"{last['close'].normalize():f}",
                "open": f"{first['open'].normalize():f}",
                "time": last["window_start"].isoformat(),
                "volume": f"{sum(bar['volume'] for bar in bars.values()).normalize():f}",
                "trades": sum(bar["trade_count"] for bar in bars.values()),
            }
        most_traded = sorted(products.items(), key=lambda item: (-item[1]["trades"], item[0]))
        return dict(most_traded[:_PRODUCTS_MAX])

    def _trades_per_s(self) -> float:
        now = time.monotonic()
        self._rate.append((now, self._totals["trades"]))
        while len(self._rate) > 2 and self._rate[0][0] < now - _RATE_WINDOW_S:
            self._rate.popleft()
        (first_at, first), (last_at, last) = self._rate[0], self._rate[-1]
        return round((last - first) / max(last_at - first_at, 1e-9), 1)

    def _newest(self, episodes: pa.Table) -> list[dict[str, object]]:
        columns = ["alert_id", "symbol", "alert_type", "severity", "state", "price_change_pct", "opened_at"]
        columns += ["detected_at", "start_price", "end_price"]
        newest = episodes.sort_by([("opened_at", "descending")]).slice(0, _ALERTS_MAX).select(columns)
        alerts = []
        for row in newest.to_pylist():
            times = {name: row[name].isoformat() for name in ("opened_at", "detected_at")}
            prices = {name: f"{row[name].normalize():f}" for name in ("start_price", "end_price")}
            alerts.append(row | times | prices | {"latency_ms": self._detection_ms.get(row["alert_id"])})
        return alerts
