"""The Python API: a lake's trades, bars and alerts as Arrow, Polars or pandas, read lazily."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Self

import duckdb
import pyarrow as pa

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.activity_bars import ACTIVITY_BARS, BarSize, Measure
from cryptopulse.lake.as_of import DERIVED, sources_of
from cryptopulse.lake.database import Database, Limits, Params
from cryptopulse.lake.files import Files, time_of
from cryptopulse.lake.follower import NewestVersions, PinnedVersions, Versions
from cryptopulse.lake.grains import COLUMNS as BAR_COLUMNS
from cryptopulse.lake.grains import grain_seconds
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.products import GRADE_SQL
from cryptopulse.lake.retention import SETTINGS, check_let_go, let_go
from cryptopulse.lake.scan import (
    Moment,
    Selection,
    chosen,
    equalities,
    id_range,
    moment_of,
    moment_us,
    product_ids,
    time_range,
)
from cryptopulse.lake.sql_rows import Past, SqlRows, check_reads, sandbox, tables_named
from cryptopulse.lake.storage import existing_tables, open_table
from cryptopulse.lake.table_rows import TableRows
from cryptopulse.lake.tables import (
    ABSENT,
    ALERTS,
    BARS,
    BY_NAME,
    COMPLETENESS,
    COVERAGE,
    QUARANTINE,
    SILVER,
    STATS,
    TABLES,
    Table,
)

Judge = Callable[["Lake", datetime], pa.Table]
"""Judges a lake's alerts as of a moment: `cryptopulse.engine.as_of.episodes_as_of` with rules."""
Symbols = str | Iterable[str] | None
"""One product id, several, or None for all."""

_PRODUCTS = f"""
    SELECT
        symbol,
        min(first_trade_id) AS first_trade_id,
        max(last_trade_id) AS last_trade_id,
        CAST(sum(last_trade_id - first_trade_id + 1) AS BIGINT) AS trades,
        CAST(max(last_trade_id) - min(first_trade_id) + 1 - sum(last_trade_id - first_trade_id + 1) AS BIGINT)
            AS ids_not_held,
        venue(symbol) AS venue,
        base(symbol) AS base,
        quote(symbol) AS quote,
        market(symbol) AS market,
        {GRADE_SQL} AS grade
    FROM {COVERAGE.qualified} GROUP BY symbol ORDER BY symbol
"""  # noqa: S608 - a name of our own


class Lake:
    """A lake opened for reading. Create it with `cryptopulse.open`.

    Each method returns lazy `Rows` at once, over the newest versions of the tables at that moment; their methods read
    them. Nothing here writes, and reading works while the pipeline runs. Several threads can share a Lake.

    Common to the methods: `symbol` is a product id, several, or None for all. `start` (included) and `end` (not
    included) are datetimes, dates, or ISO text; without an offset they are UTC, and None means unbounded. `columns`:
    return only these. All raise ConfigurationError for an invalid argument, LakeUnreachable when the storage does not
    answer, and LakeDamaged for a table that can't be opened. A table that does not exist yet has no rows.
    """

    def __init__(  # noqa: PLR0913 - a name for each
        self,
        location: LakeLocation,
        *,
        memory_max_mb: int = 1024,
        threads: int | None = None,
        timeout_s: float | None = None,
        versions: Versions | None = None,
        judge: Judge | None = None,
        as_of_us: int | None = None,
        database: Database | None = None,
    ) -> None:
        """Opens nothing yet. See `cryptopulse.open`; `versions`: which files to read, None for the newest. `judge`: how
        to get the alerts of the past. `as_of_us`: the moment to read (µs UTC), None for now. `database`: one to share.
        """
        limits = Limits(memory_max_mb, threads)
        self.location = location
        self._timeout_s = timeout_s
        self._versions = versions or NewestVersions(location)
        self._limits = limits
        self._judge = judge
        self._as_of_us = as_of_us
        self._database = database or Database(location, limits)
        self._is_own = database is None

    def trades(
        self,
        symbol: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        first_id: int | None = None,
        last_id: int | None = None,
        columns: Iterable[str] | None = None,
    ) -> TableRows:
        """Trades ordered by time, product and id (silver.fact_crypto_trades); `first_id` and `last_id` are included."""
        low, high = id_range(first_id, last_id)
        return self._rows(SILVER, symbol, start, end, columns=columns, first_id=low, last_id=high)

    def bars(
        self,
        symbol: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        grain: str | int | timedelta = "1m",
        columns: Iterable[str] | None = None,
    ) -> TableRows:
        """Bars that start from `start` to before `end`, ordered by time and product, each of all its trades.

        `grain`: `"1s"` … `"1d"`, seconds, or a timedelta; it must divide a day, and bars start at its multiples (UTC).
        Bars of whole minutes come from gold.dm_trade_bars, others from the trades. No trades, no bar.
        """
        seconds = grain_seconds(grain)
        is_stored = seconds % BARS.window_seconds == 0 and self._as_of_us is None
        source = BARS if is_stored else SILVER
        files = self._versions.files_of([source, COVERAGE] if source is SILVER else [source])
        first_us, end_us = time_range(start, end)
        return TableRows(
            selection=Selection(
                BARS, chosen(BAR_COLUMNS, columns), product_ids(symbol), first_us=first_us, end_us=end_us
            ),
            files=files[source],
            coverage=files.get(COVERAGE),
            versions=self._versions,
            database=self._database,
            timeout_s=self._timeout_s,
            grain_s=0 if is_stored and seconds == BARS.window_seconds else seconds,
            as_of_us=self._as_of_us,
        )

    def activity_bars(
        self,
        symbol: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        by: Measure,
        size: Decimal | str | float,
        columns: Iterable[str] | None = None,
    ) -> TableRows:
        """Bars that end once `by` reaches `size`, and with the UTC day. Those whose first trade is from `start` to
        before `end`, ordered by its time, product and id.

        `by`: `"trades"` (their number), `"volume"` (base quantity), `"notional"` (quote amount), `"trade_imbalance"`
        or `"volume_imbalance"` (how far buyers and sellers differ), or `"range"` (highest minus lowest price). A bar
        ends with the trade that reaches the size; see `cryptopulse.lake.activity_bars`.
        """
        files = self._versions.files_of([SILVER, COVERAGE])
        first_us, end_us = time_range(start, end)
        names = chosen(ACTIVITY_BARS.arrow_schema.names, columns)
        return TableRows(
            selection=Selection(ACTIVITY_BARS, names, product_ids(symbol), first_us=first_us, end_us=end_us),
            files=files[SILVER],
            coverage=files[COVERAGE],
            versions=self._versions,
            database=self._database,
            timeout_s=self._timeout_s,
            bar_size=BarSize.of(by, size),
            as_of_us=self._as_of_us,
        )

    def stats(
        self,
        symbol: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        columns: Iterable[str] | None = None,
    ) -> TableRows:
        """5-minute statistics, ordered by time and product (gold.dm_crypto_price_stats)."""
        return self._rows(STATS, symbol, start, end, columns=columns)

    def alerts(  # noqa: PLR0913 - one name for each thing to choose by
        self,
        symbol: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        rule: Symbols = None,
        alert_type: Symbols = None,
        severity: Symbols = None,
        state: Symbols = None,
        columns: Iterable[str] | None = None,
    ) -> TableRows:
        """Alert episodes opened from `start` to before `end`, ordered by that time (gold.dm_market_alerts).

        `rule`, `alert_type` (FLASH_CRASH and so on), `severity` (WARNING, HIGH, CRITICAL) and `state` (OPEN,
        CLOSED): one value or several.
        """
        equal = {"rule": rule, "alert_type": alert_type, "severity": severity, "state": state}
        return self._rows(ALERTS, symbol, start, end, columns=columns, equals=equalities(equal))

    def completeness(
        self,
        symbol: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        columns: Iterable[str] | None = None,
    ) -> TableRows:
        """Ids expected, held, healed and missing per hour and product, ordered by these (gold.dm_completeness)."""
        return self._rows(COMPLETENESS, symbol, start, end, columns=columns)

    def coverage(self, symbol: Symbols = None) -> TableRows:
        """The closed intervals of trade ids held, ordered by product and id (silver.trade_id_coverage)."""
        return self._rows(COVERAGE, symbol)

    def absent(self, symbol: Symbols = None) -> TableRows:
        """The closed intervals of ids that the exchange does not have, with the proof (silver.absent_trade_ids)."""
        return self._rows(ABSENT, symbol)

    def quarantine(
        self, start: Moment | None = None, end: Moment | None = None, *, columns: Iterable[str] | None = None
    ) -> TableRows:
        """Refused messages, ordered by receive time (silver.quarantined_messages)."""
        return self._rows(QUARANTINE, None, start, end, columns=columns)

    def table(
        self,
        name: str,
        symbol: Symbols = None,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        columns: Iterable[str] | None = None,
    ) -> TableRows:
        """Rows of the table `name`, such as `gold.dm_trade_bars`, with all its columns as they are stored."""
        if name not in BY_NAME:
            raise ConfigurationError(f"There is no table {name!r}; there are {', '.join(BY_NAME)}.")
        return self._rows(BY_NAME[name], symbol, start, end, columns=columns)

    def retention(self) -> SqlRows:
        """Tables of which retention let days go on purpose: `table`, `first_day` and `last_day` that went, `kept_from`
        (the first day kept), and how many `rows` went. Days are UTC, in ISO form.
        """
        files = self._versions.files_of(SETTINGS)
        there = (table for table in SETTINGS if files[table].version >= 0)
        gone = [found for table in there if (found := let_go(self.location, table)) is not None]
        rows = ", ".join(
            f"('{one.table.qualified}', '{one.first_day}', '{one.last_day}', '{one.kept_from}', {one.rows})"
            for one in gone
        )
        values = f"VALUES {rows}" if gone else "SELECT '', '', '', '', 0 WHERE false"
        names = '"table", first_day, last_day, kept_from, rows'
        return self.sql(f"SELECT * REPLACE (rows::BIGINT AS rows) FROM ({values}) AS gone({names})")  # noqa: S608 - ours

    def products(self) -> SqlRows:
        """Products with trades: lowest and highest id, trades held, ids in between that are not held, venue, base and
        quote (null for futures), market (the pair with dollar coins as the dollar: BTC/USD), and the grade of proof:
        `ids`, `sequence` or `none` (see `GRADE_SQL` in lake/products.py)."""
        return self.sql(_PRODUCTS)

    def sql(self, text: str, params: Params = None) -> SqlRows:
        """The rows of one read-only statement in DuckDB's SQL; tables are `bronze.…`, `silver.…`, `gold.…`.

        `params`: values by name for `$name`, or a list for `?`. It can read only the lake's tables. Raises
        ConfigurationError, in one line, for any other statement; other errors show when the rows are read.
        """
        with self._database.cursor() as parser:
            check_reads(parser, text)
        tables, past = tables_named(text), None
        if self._as_of_us is not None:
            past = Past(self._as_of_us, tables, self._episodes() if ALERTS in tables else None)
            tables = sources_of(tables)
        files = self._versions.files_of(tables)
        return SqlRows(
            text, params, self.location, tuple(files.values()), self._versions, self._limits, self._timeout_s, past=past
        )

    def as_of(self, moment: Moment) -> Lake:
        """This lake as it was known at `moment`: all tables hold what had been loaded until then, also trades that were
        healed or backfilled, and what follows from them.

        Made from load times, so it reaches back to the first one; `rebuild` loads all rows again. Bars, statistics,
        completeness and coverage are derived again from the trades, which reads more than the stored rows would;
        alerts are judged again by the configured rules. `load_timestamp` is the moment where rows are derived.

        Raises ConfigurationError when retention has let go of days of silver.
        """
        us = moment_us("as_of", moment)
        check_let_go(let_go(self.location, SILVER), "The tables as of a moment are made of all trades")
        us = us if self._as_of_us is None else min(us, self._as_of_us)
        return self._like(as_of_us=us, database=self._database)

    def _episodes(self) -> pa.Table:
        """The rows of gold.dm_market_alerts as of the moment. Raises ConfigurationError when nobody can judge them."""
        assert self._as_of_us is not None
        if self._judge is None:
            raise ConfigurationError("Alerts of the past need the rules: open the lake with cryptopulse.open.")
        pinned = PinnedVersions(self._versions.files_of(TABLES))
        now = self._like(as_of_us=None, versions=pinned, database=self._database)
        return self._judge(now, moment_of(self._as_of_us))

    def _like(self, **other: Any) -> Lake:
        """A Lake as this one, but for `other` arguments."""
        given: dict[str, Any] = {
            "memory_max_mb": self._limits.memory_max_mb,
            "threads": self._limits.threads,
            "timeout_s": self._timeout_s,
            "versions": self._versions,
            "judge": self._judge,
            "as_of_us": self._as_of_us,
        }
        return Lake(self.location, **given | other)

    def snapshot(self) -> Lake:
        """This lake at this moment: rows of the returned Lake are consistent across tables, and do not change.

        Files that compaction replaces are deleted after `maintenance.vacuum_retention_hours`; from then on reading it
        may raise RowsGone.
        """
        return self._like(versions=PinnedVersions(self._versions.files_of(TABLES)))

    def close(self) -> None:
        """Releases memory. Reads in progress run to their end."""
        if self._is_own:
            self._database.close()

    def __enter__(self) -> Self:
        """Returns itself; `close` is called at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """Its address, without credentials."""
        return f"<Lake {self.location}>"

    def _rows(
        self,
        table: Table,
        symbol: Symbols,
        start: Moment | None = None,
        end: Moment | None = None,
        *,
        columns: Iterable[str] | None = None,
        **more: Any,
    ) -> TableRows:
        """`more`: fields of `Selection`."""
        symbols, (first_us, end_us) = product_ids(symbol), time_range(start, end)
        names = table.arrow_schema.names
        if symbols is not None and "symbol" not in names:
            raise ConfigurationError(f"{table.qualified} is not by product: leave out symbol.")
        if time_of(table) is None and not (start is None and end is None):
            raise ConfigurationError(f"{table.qualified} is not by time: leave out start and end.")
        source, is_past = table, self._as_of_us is not None
        if is_past and table in DERIVED:
            source = SILVER
        files = self._versions.files_of([source, ABSENT] if source is not table else [source])
        return TableRows(
            selection=Selection(
                table,
                chosen(names, columns),
                symbols,
                first_us=first_us,
                end_us=end_us,
                **more,
            ),
            files=files[source],
            coverage=None,
            versions=self._versions,
            database=self._database,
            timeout_s=self._timeout_s,
            as_of_us=self._as_of_us,
            absent=None if source is table else files[ABSENT],
            rows=self._episodes() if is_past and table is ALERTS else None,
        )


def open_lake(
    location: LakeLocation,
    *,
    memory_max_mb: int,
    threads: int | None,
    timeout_s: float | None,
    judge: Judge | None = None,
    as_of: Moment | None = None,
) -> Lake:
    """See `cryptopulse.open`."""
    existing_tables(location)
    lake = Lake(location, memory_max_mb=memory_max_mb, threads=threads, timeout_s=timeout_s, judge=judge)
    return lake if as_of is None else lake.as_of(as_of)


def connect(lake: LakeLocation) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    """A DuckDB connection for a `with` statement, with the views `bronze.…`, `silver.…`, `gold.…` over the newest
    version of each table.

    Times are UTC. The views show the moment of the call: connect again to see newer rows. The connection can't read
    anything else or write: file access is disabled once the views exist. Raises ConfigurationError when `lake` holds
    no table.
    """
    return sandbox(lake, [Files.of(lake, table, open_table(lake, table)) for table in existing_tables(lake)], Limits())


def read(
    lake: LakeLocation,
    sql: str,
    rows_max: int | None = None,
    *,
    judge: Judge | None = None,
    as_of: Moment | None = None,
) -> pa.Table:
    """The rows of one SQL statement over `lake`, at most `rows_max`. `judge` and `as_of`: see `Lake`.

    Raises ConfigurationError, in one line, for SQL that doesn't run or doesn't only read, and when `lake` holds no
    table.
    """
    existing_tables(lake)
    with Lake(lake, judge=judge) as reader:
        rows = (reader if as_of is None else reader.as_of(as_of)).sql(sql)
        return (rows if rows_max is None else rows.limit(rows_max)).arrow()
