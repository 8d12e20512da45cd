"""The tables as they were known at a moment: made of the rows that were loaded until then.

Rows that are only ever added say themselves when they were loaded. Windows and intervals of ids are replaced, so they
are derived again, by the statements that the pipeline uses, from the trades that were there; their `load_timestamp` is
the moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cryptopulse.lake.dialect import bound_name, duckdb_sql, time_literal
from cryptopulse.lake.reading import quoted
from cryptopulse.lake.tables import (
    ABSENT,
    ALERTS,
    BARS,
    BRONZE,
    COMPLETENESS,
    COVERAGE,
    LOAD_TIMESTAMP,
    SILVER,
    STATS,
    TABLES,
    Table,
)

DERIVED = (COVERAGE, BARS, STATS, COMPLETENESS)
"""Tables that are derived again, in this order."""

_NOTHING_HELD = (
    "SELECT CAST(NULL AS VARCHAR) AS symbol, CAST(NULL AS BIGINT) AS first_trade_id, "
    "CAST(NULL AS BIGINT) AS last_trade_id WHERE false"
)


def sources_of(tables: Iterable[Table]) -> list[Table]:
    """The tables whose files are needed for `tables` as they were; without that of alerts, which are judged again."""
    wanted = set(tables)
    needed = wanted - {*DERIVED, ALERTS}
    return [table for table in TABLES if table in needed or (table in (SILVER, ABSENT) and wanted & {*DERIVED})]


def is_loaded(table: Table, us: int) -> str:
    """SQL condition: a row of `table` was there at `us` (µs UTC)."""
    name = "bronze_ingestion_time" if table is BRONZE else LOAD_TIMESTAMP
    return f"{name} <= {time_literal(us)}"


def coverage_sql(trades: str) -> str:
    """SQL for the intervals of ids (symbol, first_trade_id, last_trade_id) that all `trades` (SQL) are."""
    return (
        f"WITH {bound_name(COVERAGE.qualified)} AS ({_NOTHING_HELD}), {bound_name(SILVER.qualified)} AS ({trades}) "  # noqa: S608
        f"SELECT * FROM ({duckdb_sql(COVERAGE.qualified, is_bulk=True)})"
    )


def derived_sql(table: Table, us: int, trades: str, all_trades: str, absent: str) -> str:
    """SQL for the rows of `table`, one of DERIVED. All arguments are SQL for rows that were there at `us` (µs UTC).

    `trades`: those of whole windows; the rows are those of these windows. `all_trades`: all of the same products.
    `absent`: silver.absent_trade_ids.
    """
    inputs = {SILVER: trades, ABSENT: absent, COVERAGE: coverage_sql(all_trades)}
    inputs |= {each: duckdb_sql(each.qualified, is_bulk=True) for each in DERIVED if each is not COVERAGE}
    known = (SILVER, ABSENT, *DERIVED[: DERIVED.index(table) + 1])
    parts = ", ".join(f"{bound_name(each.qualified)} AS ({inputs[each]})" for each in known)
    return f"WITH {parts} SELECT *, {time_literal(us)} AS {LOAD_TIMESTAMP} FROM {bound_name(table.qualified)}"  # noqa: S608


def view_sql(table: Table, us: int, relations: Mapping[Table, str]) -> str:
    """SQL for all rows of `table` as they were at `us` (µs UTC). `relations`: SQL for all rows of its `sources_of`."""
    there = {source: f"SELECT * FROM ({sql}) WHERE {is_loaded(source, us)}" for source, sql in relations.items()}  # noqa: S608
    if table not in DERIVED:
        return there[table]
    derived = derived_sql(table, us, there[SILVER], there[SILVER], there[ABSENT])
    return f"SELECT {quoted(table.arrow_schema.names)} FROM ({derived})"  # noqa: S608
