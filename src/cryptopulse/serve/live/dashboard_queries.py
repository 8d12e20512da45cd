"""The queries that pages show: some of `dashboards/queries.sql`, and a few others.

A result has `columns` and `rows`, lists of plain values: times in ms since 1970, decimals as floats.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.dialect import duckdb_query
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.queries import load_queries
from cryptopulse.lake.tables import CONFLICT
from cryptopulse.serve.live.query_cache import CachedQuery
from cryptopulse.status import ALL_PROCESSES, read_status

EVERY_S: Final[Mapping[str, float]] = {
    "volume_by_asset": 15,
    "sentiment": 15,
    "latency_by_hop": 15,
    "data_freshness": 5,
    "completeness": 10,
    "holes": 10,
    "incomplete_hours": 15,
}
"""Queries of the file that pages show as they are, and the least seconds between two runs."""

BODY_BYTES_MAX: Final = 2000
"""How much of a quarantined message is shown."""

_QUARANTINED_MAX = 50
_ROWS_MAX = 50_000  # 500 products and 60 days are 30,000; some 2 MB
_MEMORY_MAX_MB = 256
_TIMEOUT_S = 30.0
_LONG_FIGURES = frozenset({"products", "alerts", "connection_states"})  # of a process report; shown elsewhere
_ELSEWHERE_EVERY_S = 30.0  # on S3 and Azure each query makes several requests, which cost money

_MINUTES = """
    WITH minutes AS ({query}),
    largest AS (SELECT symbol FROM minutes GROUP BY symbol ORDER BY SUM(trade_count) DESC, symbol LIMIT 4)
    SELECT
        CASE WHEN symbol IN (SELECT symbol FROM largest) THEN symbol ELSE 'others' END AS symbol,
        window_start, CAST(SUM(trade_count) AS BIGINT) AS trade_count, SUM(notional) AS notional
    FROM minutes GROUP BY ALL ORDER BY window_start, symbol
"""
"""The four largest products and the sum of the others: nobody can read 500 lines of 500 products."""

_LEDGER = """
    WITH hours AS (
        SELECT
            symbol, window_start, window_end, healed_ids, absent_ids, missing_ids,
            LAG(window_start) OVER (PARTITION BY symbol ORDER BY window_start) AS hour_before
        FROM gold.dm_completeness
    )
    SELECT
        symbol,
        MIN(COALESCE(hour_before, window_start)) FILTER (missing_ids > 0) AS missing_from,
        MAX(window_end) FILTER (missing_ids > 0) AS missing_to,
        CAST(SUM(healed_ids) AS BIGINT) AS healed_ids, CAST(SUM(absent_ids) AS BIGINT) AS absent_ids
    FROM hours GROUP BY symbol ORDER BY symbol
"""
"""A hole counts in the hour of the trade above it. The trade below is in that hour or in the last one with trades."""

_CONFLICTS = f"""
    SELECT REGEXP_REPLACE(partition_key, '^@.*', '') AS symbol, COUNT(*) AS messages
    FROM silver.quarantined_messages WHERE reason = '{CONFLICT}' GROUP BY ALL ORDER BY symbol
"""  # noqa: S608 - a text of our own
"""The symbol is empty for a message that may have several products: it is unknown which of them is in conflict."""

_GRID = """
    WITH newest AS (
        SELECT MAX(window_start) AS hour FROM gold.dm_completeness WHERE window_start <= CURRENT_TIMESTAMP
    )
    SELECT
        symbol, DATE_TRUNC('{unit}', window_start) AS start,
        CAST(SUM(expected_ids) AS BIGINT) AS expected_ids, CAST(SUM(held_ids) AS BIGINT) AS held_ids,
        CAST(SUM(healed_ids) AS BIGINT) AS healed_ids, CAST(SUM(absent_ids) AS BIGINT) AS absent_ids,
        CAST(SUM(missing_ids) AS BIGINT) AS missing_ids
    FROM gold.dm_completeness
    WHERE window_date >= (SELECT CAST(hour - INTERVAL {span} AS DATE) FROM newest)
        AND window_start > (SELECT DATE_TRUNC('{unit}', hour) - INTERVAL {span} FROM newest)
        AND window_start <= (SELECT hour FROM newest)
    GROUP BY ALL ORDER BY symbol, start
"""

_QUARANTINED = f"""
    SELECT received_time, reason, source, partition_key, "partition", "offset", octet_length(body) AS bytes,
        body[1:{BODY_BYTES_MAX}] AS body
    FROM silver.quarantined_messages ORDER BY received_time DESC, "partition", "offset" LIMIT {_QUARANTINED_MAX}
"""  # noqa: S608 - numbers of our own
_REASONS = """
    SELECT reason, COUNT(*) AS messages, MIN(received_time) AS first, MAX(received_time) AS last
    FROM silver.quarantined_messages GROUP BY reason ORDER BY messages DESC, reason LIMIT 20
"""


class DashboardQueries:
    """All queries, for one lake."""

    def __init__(self, location: LakeLocation, state_dir: Path | None = None) -> None:
        """Opens nothing yet; the lake need not exist. `state_dir`: of the processes of this machine."""
        self._lake = Lake(location, memory_max_mb=_MEMORY_MAX_MB, threads=1, timeout_s=_TIMEOUT_S)
        least_s = 0.0 if location.folder else _ELSEWHERE_EVERY_S

        def query(sql: Callable[[], str], every_s: float) -> CachedQuery:
            # Translated when it runs, because that takes a while and a server should start at once.
            return CachedQuery(
                lambda: plain_rows(self._lake.sql(sql()).limit(_ROWS_MAX).arrow()), max(every_s, least_s)
            )

        self.all: dict[str, CachedQuery] = {
            **{name: query(partial(_of_file, name), every_s) for name, every_s in EVERY_S.items()},
            "trades_a_minute": query(lambda: _MINUTES.format(query=_of_file("trades_a_minute")), 10),
            "ledger": query(lambda: _LEDGER, 10),
            "retention": CachedQuery(lambda: plain_rows(self._lake.retention().arrow()), max(30.0, least_s)),
            "conflicts": query(lambda: _CONFLICTS, 15),
            "hours": query(lambda: _GRID.format(unit="hour", span="'48' HOUR"), 10),
            "days": query(lambda: _GRID.format(unit="day", span="'60' DAY"), 30),
            "quarantine": CachedQuery(self._quarantine, max(5.0, least_s)),
            "processes": CachedQuery(lambda: process_rows(state_dir), 1.0, is_quick=True),
        }
        """The queries by name."""

    def close(self) -> None:
        """Closes the lake."""
        self._lake.close()

    def _quarantine(self) -> Mapping[str, Any]:
        found = self._lake.sql(_QUARANTINED).arrow()
        texts = pa.array([body.decode("utf-8", "backslashreplace") for body in found["body"].to_pylist()], pa.string())
        reasons = plain_rows(self._lake.sql(_REASONS).arrow())
        rows = plain_rows(found.set_column(found.schema.get_field_index("body"), "body", texts))
        return {**rows, "reasons": reasons}


def process_rows(state_dir: Path | None) -> Mapping[str, Any]:
    """Status and figures of all processes that have ever run here, from their status files; `processes` is empty when
    they run elsewhere.
    """
    statuses = [] if state_dir is None else [read_status(state_dir, name) for name in ALL_PROCESSES]
    processes = [
        {
            "name": status.name,
            "state": status.state,
            "pid": status.pid,
            "started_at": None if status.started_at is None else status.started_at.timestamp() * 1000,
            "updated_at": None if status.updated_at is None else status.updated_at.timestamp() * 1000,
            "restarts": status.restarts,
            "error": status.error,
            "report": {name: value for name, value in status.report.items() if name not in _LONG_FIGURES},
        }
        for status in statuses
        if status.state != "absent"
    ]
    return {"at_ms": time.time() * 1000, "processes": processes}


def _of_file(name: str) -> str:
    return duckdb_query(load_queries()[name].sql)


def plain_rows(table: pa.Table) -> dict[str, Any]:
    """The rows as values for JSON: `columns` and `rows`; times in ms since 1970, decimals as floats."""
    columns = []
    for column in table.columns:
        if pa.types.is_timestamp(column.type):
            micros = pc.cast(pc.cast(column, pa.timestamp("us", column.type.tz)), pa.int64())
            column = pc.divide(pc.cast(micros, pa.float64(), safe=False), 1000.0)  # noqa: PLW2901 - of a far year no µs
        elif pa.types.is_decimal(column.type):
            column = pc.cast(column, pa.float64())  # noqa: PLW2901
        columns.append(column.to_pylist())
    return {"columns": table.column_names, "rows": list(zip(*columns, strict=True))}
