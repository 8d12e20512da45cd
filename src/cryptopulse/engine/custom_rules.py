"""Alert rules in SQL: a statement over the bars of the last minutes says which products are over the threshold.

It is run for each minute that is over, on the bars of the look-back that ends with it, so what it finds depends on
nothing else, and late trades let the minutes that they touch be judged again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from threading import Timer
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from cryptopulse.engine.episodes import EpisodePart
from cryptopulse.engine.scopes import MINUTE_US, JudgeScope, columns_for
from cryptopulse.engine.session import SqlSession
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.tables import BARS, COVERAGE, SILVER
from cryptopulse.settings import AlertRule
from cryptopulse.text import MICROS

logger = structlog.get_logger()

_TIME_MAX_S = 2.0  # for one minute; a statement that takes longer finds nothing in it
_LATE_MAX = 3  # so often in one go, before the rest is not tried
_MEMORY_MAX_MB = 256
_COLUMNS = [
    *("symbol", "window_start", "open", "high", "low", "close", "volume", "notional", "vwap", "buy_volume"),
    *("sell_volume", "trade_count", "buy_count", "first_trade_id", "last_trade_id"),
]
"""Those of gold.dm_trade_bars that the statement sees, as `bars`."""


def check_custom_rules(rules: Sequence[AlertRule]) -> None:
    """Raises ConfigurationError, in one line, for a custom rule whose statement can't work."""
    for rule in rules:
        if rule.kind == "custom":
            with _Statement(rule) as statement:
                try:
                    statement.run(pa.table({name: BARS.empty[name] for name in _COLUMNS}))
                except duckdb.Error as error:
                    raise ConfigurationError(f"Alert rule {rule.name}: {_first_line(error)}") from error


def custom_parts(trades: pa.Table, scopes: Sequence[JudgeScope], watermark_us: int) -> Iterator[EpisodePart]:
    """The parts of episodes that the rule of `scopes`, one for all, finds in the minutes that were over at
    `watermark_us` (µs UTC). `trades` (`columns_for` the rule): all that the scopes need.
    """
    rule = scopes[0].rule
    products = pa.array(sorted({symbol for scope in scopes for symbol in scope.products}))
    bars = _bars(trades.filter(pc.is_in(trades["symbol"], products)).select(columns_for([rule])))
    minutes = bars["minute_us"].to_numpy()
    todo = np.zeros(len(minutes), np.bool_)
    for first_us, last_us in {(scope.first_us, scope.needs_to_us) for scope in scopes}:
        todo |= (minutes >= first_us) & (minutes <= min(last_us, watermark_us - MINUTE_US))
    with _Statement(rule) as statement:
        for minute in np.unique(minutes[todo]).tolist():
            begin, end = np.searchsorted(minutes, (minute + MINUTE_US - rule.reach_s * MICROS, minute + 1))
            seen = bars.slice(begin, end - begin)
            if statement.late >= _LATE_MAX:
                break
            for symbol, value in _found(statement, rule, seen.select(_COLUMNS)):
                own = seen.filter(pc.equal(seen["symbol"], symbol)).to_pylist()
                if own and own[-1]["minute_us"] == minute:
                    yield _part(rule, own[0], own[-1], value)


def _bars(trades: pa.Table) -> pa.Table:
    """The bars of `trades`, by time; with their start and the times of their first and last trade as µs UTC."""
    session = SqlSession(_MEMORY_MAX_MB, 1)
    try:
        inputs = {SILVER.qualified: trades, COVERAGE.qualified: COVERAGE.empty}
        bars = session.derive(BARS.qualified, inputs).select(_COLUMNS)
        return session.query(
            "SELECT b.*, epoch_us(b.window_start) AS minute_us, epoch_us(f.event_time) AS first_us, "
            "epoch_us(l.event_time) AS last_us FROM bars AS b "
            "JOIN trades AS f ON f.symbol = b.symbol AND f.trade_id = b.first_trade_id "
            "JOIN trades AS l ON l.symbol = b.symbol AND l.trade_id = b.last_trade_id "
            "ORDER BY b.window_start, b.symbol",
            {"bars": bars, "trades": trades.select(["symbol", "trade_id", "event_time"])},
        )
    finally:
        session.close()


def _found(statement: _Statement, rule: AlertRule, bars: pa.Table) -> list[tuple[str, float]]:
    """The products over the threshold, and their values."""
    try:
        rows = statement.run(bars)
    except duckdb.Error as error:
        logger.warning("custom_rule_failed", rule=rule.name, error=_first_line(error))
        return []
    values: dict[str, float] = {}
    for symbol, value in rows:
        if symbol is not None and value is not None and math.isfinite(value) and value >= rule.threshold_pct:
            values[symbol] = max(value, values.get(symbol, value))
    return sorted(values.items())


def _part(rule: AlertRule, first: dict[str, Any], last: dict[str, Any], value: float) -> EpisodePart:
    trigger = int(last["last_trade_id"])
    times = [first["first_us"], *[last["last_us"]] * 3]
    prices: tuple[Decimal, Decimal] = first["open"], last["close"]
    ids = [int(first["first_trade_id"]), trigger, trigger, trigger]
    return EpisodePart.found(str(last["symbol"]), "CUSTOM", rule, (*prices, value), (times, ids))


class _Statement:
    """A rule's statement, in a database that can read nothing else."""

    def __init__(self, rule: AlertRule) -> None:
        """Raises ConfigurationError when it is not one statement that only reads."""
        from cryptopulse.lake.sql_rows import check_reads  # noqa: PLC0415 - half a second, 40 MB; few have such rules

        self.late = 0
        """How often it took too long."""
        self._db = duckdb.connect(":memory:")
        try:
            check_reads(self._db, rule.sql)
        except ConfigurationError as error:
            self._db.close()
            raise ConfigurationError(f"Alert rule {rule.name}: {error}") from error
        for setting in (
            f"memory_limit = '{_MEMORY_MAX_MB}MB'",
            *("threads = 1", "TimeZone = 'UTC'", "temp_directory = ''"),
            *("enable_external_access = false", "lock_configuration = true"),
        ):
            self._db.execute(f"SET {setting}")
        sql = rule.sql.strip().rstrip(";")
        self._sql = f"SELECT CAST(symbol AS VARCHAR), CAST(value AS DOUBLE) FROM (\n{sql}\n)"  # noqa: S608 - checked, and in a database of its own

    def __enter__(self) -> _Statement:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def run(self, bars: pa.Table) -> list[tuple[str | None, float | None]]:
        """(symbol, value) of its rows. Raises duckdb.Error, also when it takes too long."""
        self._db.register("bars", bars)
        timer = Timer(_TIME_MAX_S, self._db.interrupt)
        timer.start()
        try:
            return self._db.execute(self._sql).fetchall()
        except duckdb.InterruptException:
            self.late += 1
            raise
        finally:
            timer.cancel()
            self._db.unregister("bars")


def _first_line(error: duckdb.Error) -> str:
    return str(error).partition("\n")[0] if not isinstance(error, duckdb.InterruptException) else "took too long"
