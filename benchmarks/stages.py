"""Where the time of a catch-up goes: the pipeline's stages, each with the time in which it was at work.

The pipeline runs its stages on three threads at once, so busy times add up to more than the time that has passed, and
shares are shares of the busy time. A stage within another one (the parsing within silver) counts for itself alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from cryptopulse.engine.session import Session
from cryptopulse.lake.tables import TABLES, Table
from cryptopulse.pipeline import Pipeline

_TABLE_STAGES = {
    "fact_crypto_trades": "silver",
    "quarantined_messages": "quarantine",
    "absent_trade_ids": "absent",
    "trade_id_coverage": "coverage",
    "dm_market_alerts": "alerts",
    "dm_trade_bars": "bars",
    "dm_crypto_price_stats": "stats",
    "dm_completeness": "completeness",
}
STAGES = ("log read", "bronze", "parse", *_TABLE_STAGES.values(), "refresh", "telemetry", "maintenance")
"""In the order of the way. `refresh`: handles that are opened anew; `telemetry`: rates and latencies."""


class StageClock:
    """Adds up busy seconds by stage. Any thread may use it."""

    def __init__(self) -> None:
        """Nothing was busy yet."""
        self.busy_s = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()
        self._of_thread = threading.local()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its time counted as `stage`, without that of stages called within."""

        def call(*arguments: Any, **named: Any) -> Any:
            inner: list[float] = getattr(self._of_thread, "inner", [])
            self._of_thread.inner = [*inner, 0.0]
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                took = time.perf_counter() - begun
                within = self._of_thread.inner[-1]
                self._of_thread.inner = inner
                if inner:
                    inner[-1] += took
                with self._lock:
                    self.busy_s[stage] += took - within

        return call

    def attach(self, pipeline: Pipeline, log: Any) -> None:
        """Times this pipeline's stages from now on. `log` is the one it reads from."""
        engine = pipeline.engine
        log.read = self.timed("log read", log.read)
        by_table = {
            table.qualified: self.timed(_TABLE_STAGES[table.name], engine.advance)
            for table in TABLES
            if table.name in _TABLE_STAGES
        }

        def advance(table: Table) -> Any:
            return by_table[table.qualified](table)

        # The objects' public methods are replaced on the objects, not on their classes: other pipelines stay as they
        # are. Sessions are made anew for each lane, so there the class is the only place.
        for target, name, replacement in (
            (engine, "store", self.timed("bronze", engine.store)),
            (engine, "advance", advance),
            (engine, "refresh", self.timed("refresh", engine.refresh)),
            (pipeline.telemetry, "committed", self.timed("telemetry", pipeline.telemetry.committed)),
            (pipeline.maintenance, "run_due", self.timed("maintenance", pipeline.maintenance.run_due)),
            (Session, "derive", self._derive(Session.derive)),
        ):
            setattr(target, name, replacement)

    def _derive(self, derive: Callable[..., Any]) -> Callable[..., Any]:
        parse = self.timed("parse", derive)

        def call(session: Session, name: str, inputs: Any) -> Any:
            return (parse if name == "silver.parsed_trades" else derive)(session, name, inputs)

        return call
