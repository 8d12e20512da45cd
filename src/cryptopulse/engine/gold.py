"""Windows of gold: bars from trades, statistics from bars. One thread at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import StepResult
from cryptopulse.engine.coverage import Coverage, id_spans
from cryptopulse.engine.rows import (
    distinct_windows,
    in_windows,
    kept_windows,
    newest_load_us,
    shaped,
    stamped,
    touched_windows,
    window_starts,
)
from cryptopulse.engine.session import SqlSession
from cryptopulse.engine.trade_values import VALUE, VALUE_SQL, with_values
from cryptopulse.lake.tables import BARS, COVERAGE, SILVER, STATS
from cryptopulse.store.table_tail import TableTail
from cryptopulse.store.table_writer import LOAD, TableWriter
from cryptopulse.text import MICROS

_NEIGHBOURS = "silver.neighbour_ids"
_APART_WINDOWS = 60
_SPANS_MAX = 16  # each is a read of the table when it is not in memory


class WindowSteps:
    """Brings bars and statistics up to date."""

    def __init__(
        self,
        tables: Mapping[str, TableWriter],
        session: SqlSession,
        trades: TableTail,
        bars: TableTail,
        coverage: Coverage,
    ) -> None:
        """`session` belongs to this lane alone; `bars` is kept up to date here."""
        self._bars, self._stats = tables[BARS.qualified], tables[STATS.qualified]
        self._session = session
        self._trades = trades
        self._recent_bars = bars
        self._coverage = coverage
        self._minutes = TouchedMinutes(self._bars.read)

    def advance_bars(self) -> StepResult | None:
        """Silver → bars: derives every minute with new trades or neighbours of new trades; None if there are none."""
        news = self._trades.since(self._bars.position("silver"))
        if news is None:
            return None
        coverage = self._coverage.table
        position = {"silver": newest_load_us(news)}
        minutes = self._minutes.of(news, coverage, self._session.derive)
        while True:
            kept_from_us = self._trades.kept_from_us
            touched = kept_windows(minutes, kept_from_us)
            if touched.num_rows == 0:
                self._bars.append(BARS.empty, position)
                return StepResult(BARS, BARS.empty, news.num_rows, received=news["ingestion_time"])
            trades = rows_of(self._trades, touched, BARS.window_seconds)
            if self._trades.kept_from_us == kept_from_us:  # else some of them may just have gone
                break
        if touched_windows(trades, "event_time", BARS.window_seconds).num_rows > touched.num_rows:
            # A span of minutes also has minutes of products that did not change: don't derive those again.
            starts = window_starts(trades["event_time"], BARS.window_seconds)
            windows = pa.table({"symbol": trades["symbol"], "window_start": starts})
            trades = trades.filter(in_windows(windows, touched))
        inputs = {SILVER.qualified: with_values(trades), COVERAGE.qualified: coverage}
        derived = self._session.derive(BARS.qualified, inputs, {VALUE_SQL: VALUE})
        rows = replace_windows(self._bars, derived, touched, position)
        self._minutes.note(rows)
        if rows.num_rows:
            self._recent_bars.add(rows, self._bars.position(LOAD))
        return StepResult(BARS, rows, news.num_rows, received=news["ingestion_time"])

    def advance_stats(self) -> StepResult | None:
        """Bars → statistics: derives every 5 minutes with changed bars; None if there are none."""
        news = self._recent_bars.since(self._stats.position("bars"))
        if news is None:
            return None
        touched = touched_windows(news, "window_start", STATS.window_seconds)
        bars = rows_of(self._recent_bars, touched, STATS.window_seconds)
        derived = self._session.derive(STATS.qualified, {BARS.qualified: bars})
        rows = replace_windows(self._stats, derived, touched, {"bars": newest_load_us(news)})
        return StepResult(STATS, rows, news.num_rows)


class TouchedMinutes:
    """Finds the bars that new trades change: their own, and those of neighbours, which may become complete."""

    def __init__(self, read: Callable[[str, str], pa.Table]) -> None:
        """`read`: (columns, where) → rows of the bars written so far."""
        self._read = read
        self._tails: dict[str, tuple[int, int]] = {}
        """Product → last trade id in the bars, and start of its window (µs UTC)."""
        newest = "max(last_trade_id) AS last_trade_id, max(window_start) AS window_start"
        self.note(read(f"symbol, {newest}", "true GROUP BY symbol"))

    def of(
        self, news: pa.Table, coverage: pa.Table, derive: Callable[[str, Mapping[str, pa.Table]], pa.Table]
    ) -> pa.Table:
        """(symbol, window_us) of the minutes of the trades `news`, and of those whose first or last trade is the
        neighbour of one.

        `coverage`: the intervals of ids held, with `news`; `derive` runs a canonical statement. When trades come in
        order, the neighbour is the last trade of the product's newest bar. Any other neighbour lies in a touched
        window, or is the first or last trade of a bar in the table (times follow ids).
        """
        touched = touched_windows(news, "event_time", BARS.window_seconds)
        dense, gappy = id_spans(news)
        at_tails, elsewhere = [], set(pc.unique(gappy["symbol"]).to_pylist())
        for symbol, first, _last in zip(*(column.to_pylist() for column in dense.columns), strict=True):
            tail, window_us = self._tails.get(symbol, (first - 2, 0))
            if tail == first - 1:
                at_tails.append({"symbol": symbol, "window_us": window_us})
            elif tail >= first:
                elsewhere.add(symbol)
        parts = [touched, pa.Table.from_pylist(at_tails, schema=touched.schema)]
        if elsewhere:
            ids = news.select(["symbol", "trade_id"])
            late = ids.filter(pc.is_in(ids["symbol"], pa.array(sorted(elsewhere), pa.string())))
            found = derive(_NEIGHBOURS, {SILVER.qualified: late, COVERAGE.qualified: coverage})
            if found.num_rows:
                edges = ", ".join(map(str, pc.unique(found["trade_id"]).to_pylist()))
                symbols = ", ".join(f"'{symbol}'" for symbol in pc.unique(found["symbol"]).to_pylist())
                where = f"symbol IN ({symbols}) AND (first_trade_id IN ({edges}) OR last_trade_id IN ({edges}))"
                bars = self._read("symbol, window_start", where)
                parts.append(touched_windows(bars, "window_start", BARS.window_seconds).cast(touched.schema))
        return distinct_windows(pa.concat_tables(parts))

    def note(self, bars: pa.Table) -> None:
        """Tells of `bars` (symbol, last_trade_id, window_start) that were written."""
        columns = (bars["symbol"], bars["last_trade_id"], pc.cast(bars["window_start"], pa.int64()))
        for symbol, last, window_us in zip(*(column.to_pylist() for column in columns), strict=True):
            self._tails[symbol] = max(self._tails.get(symbol, (-1, 0)), (last, window_us))


def rows_of(tail: TableTail, touched: pa.Table, seconds: int) -> pa.Table:
    """At least the rows of `tail` in the `touched` windows (symbol, window_us), each `seconds` long.

    Windows far apart are read separately, so that late trades don't load all the time in between.
    """
    length_us = seconds * MICROS
    starts = np.unique(touched["window_us"].to_numpy())
    gaps = np.diff(starts)
    widest = np.argsort(gaps)[-_SPANS_MAX:]
    cuts = np.sort(widest[gaps[widest] > _APART_WINDOWS * length_us]) + 1
    parts = []
    for run in np.split(starts, cuts):
        is_in_run = pc.and_(
            pc.greater_equal(touched["window_us"], run[0]), pc.less_equal(touched["window_us"], run[-1])
        )
        symbols = pc.unique(touched.filter(is_in_run)["symbol"]).to_pylist()
        parts.append(tail.between(int(run[0]), int(run[-1]) + length_us - 1, symbols))
    return pa.concat_tables(parts)


def replace_windows(
    writer: TableWriter, derived: pa.Table, touched: pa.Table, positions: Mapping[str, int]
) -> pa.Table:
    """Replaces the rows of the `touched` windows (symbol, window_us) by those of `derived`, in one commit.

    Returns the new rows as they are in the table.
    """
    table, load = writer.table, writer.next_load()
    rows = shaped(stamped(derived.filter(in_windows(derived, touched)), load), table)
    first_us, last_us = pc.min_max(touched["window_us"]).as_py().values()
    first, last = (pa.scalar(us, pa.timestamp("us", "UTC")).as_py() for us in (first_us, last_us))
    within = {"window_start": (first, last), table.partition_by[0]: (first.date(), last.date())}
    writer.replace(rows, {**positions, LOAD: load}, is_replaced=lambda rows: in_windows(rows, touched), within=within)
    return rows
