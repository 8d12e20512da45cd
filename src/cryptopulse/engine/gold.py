"""Gold's windows: bars from trades, statistics from bars. One thread at a time."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine import Commit
from cryptopulse.engine.delta import LOAD, DeltaHandle
from cryptopulse.engine.held import Held, after, id_spans
from cryptopulse.engine.recent import MICROS
from cryptopulse.engine.rows import shaped, stamped
from cryptopulse.engine.session import Session
from cryptopulse.engine.windows import Runs, between_us, distinct_windows, in_windows, touched_windows
from cryptopulse.lake.tables import BARS, COVERAGE, SILVER, STATS

_STATS_US = STATS.window_seconds * MICROS
_BARS_KEPT_US = 3 * _STATS_US  # live statistics are made of the bars of the open window, late ones of the one before
_FAR_US = 4_102_444_800 * MICROS  # 2100-01-01
_BARS_COLUMNS = ", ".join(f'"{name}"' for name in BARS.arrow_schema.names)
_NEIGHBOURS = "silver.neighbour_ids"


class WindowSteps:
    """Brings bars and statistics up to date."""

    def __init__(self, handles: Mapping[str, DeltaHandle], session: Session, held: Held) -> None:
        """`session` belongs to this lane alone."""
        self._bars, self._stats = handles[BARS.qualified], handles[STATS.qualified]
        self._session = session
        self._held = held
        self._tails: dict[str, tuple[int, int]] = {}
        """By product the last trade id that bars hold, and the window (µs UTC) that it lies in."""
        newest = "max(last_trade_id) AS last_trade_id, max(window_start) AS window_start"
        self._note_tails(self._bars.read(f"symbol, {newest}", "true GROUP BY symbol"))
        self._changed = [self._bars.read("symbol, window_start", after(self._stats.position("bars")))]
        """Bars that the statistics have not taken in."""
        self._kept_from_us = (held.watermark_us - _BARS_KEPT_US) // _STATS_US * _STATS_US
        kept = between_us("window_start", "window_date", max(self._kept_from_us, 0), _FAR_US)
        self._kept = self._bars.read(_BARS_COLUMNS, kept).select(BARS.arrow_schema.names)
        """The newest bars: all from `_kept_from_us` on."""

    def advance_bars(self) -> Commit | None:
        """Silver → bars: every minute that new trades, or the neighbours of new trades, lie in."""
        news = self._held.since(self._bars.position("silver"))
        if news is None:
            return None
        coverage = self._held.coverage
        touched = touched_windows(news, "event_time", BARS.window_seconds)
        touched = self._with_neighbours(touched, news, coverage)
        trades = self._trades_of(touched)
        inputs = {SILVER.qualified: trades, COVERAGE.qualified: coverage}
        position = pc.cast(pc.max(news["load_timestamp"]), pa.int64()).as_py()
        rows = self._replace(self._bars, touched, inputs, {"silver": position})
        self._note_tails(rows)
        self._changed.append(rows.select(["symbol", "window_start"]))
        self._keep(rows, touched)
        return Commit(BARS, rows, news.num_rows, received=news["ingestion_time"])

    def advance_stats(self) -> Commit | None:
        """Bars → statistics: every 5 minutes that changed bars lie in."""
        news = pa.concat_tables(self._changed)
        if news.num_rows == 0:
            return None
        touched = touched_windows(news, "window_start", STATS.window_seconds)
        bars = self._kept
        if pc.min(touched["window_us"]).as_py() < self._kept_from_us:
            runs = Runs(touched, STATS.window_seconds)
            bars = self._bars.read(_BARS_COLUMNS, runs.condition("window_start", "window_date"))
        rows = self._replace(self._stats, touched, {BARS.qualified: bars}, {"bars": self._bars.position(LOAD)})
        self._changed = [news.slice(0, 0)]
        return Commit(STATS, rows, news.num_rows)

    def _keep(self, rows: pa.Table, touched: pa.Table) -> None:
        """Takes new bars into memory, and forgets the oldest."""
        times = pc.cast(rows["window_start"], pa.int64())
        horizon = (pc.max(times).as_py() - _BARS_KEPT_US) // _STATS_US * _STATS_US
        self._kept_from_us = max(self._kept_from_us, min(horizon, self._held.watermark_us))
        kept = pa.concat_tables([self._kept.filter(pc.invert(in_windows(self._kept, touched))), rows])
        is_new = pc.greater_equal(pc.cast(kept["window_start"], pa.int64()), self._kept_from_us)
        self._kept = kept.filter(is_new)

    def _with_neighbours(self, touched: pa.Table, news: pa.Table, coverage: pa.Table) -> pa.Table:
        """`touched` and the windows whose first or last trade is the neighbour of a new one.

        In order the neighbour is the last trade of a product's newest bar. A neighbour elsewhere lies in a touched
        window, or at an edge of a bar that the table knows (times follow ids).
        """
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
            parts.append(self._neighbours(late, coverage).cast(touched.schema))
        return distinct_windows(pa.concat_tables(parts))

    def _neighbours(self, ids: pa.Table, coverage: pa.Table) -> pa.Table:
        """The windows of bars that begin or end with the neighbour of one of the new trades `ids`."""
        found = self._session.derive(_NEIGHBOURS, {SILVER.qualified: ids, COVERAGE.qualified: coverage})
        if found.num_rows == 0:
            return pa.table({"symbol": pa.array([], pa.string()), "window_us": pa.array([], pa.int64())})
        edges = ", ".join(map(str, pc.unique(found["trade_id"]).to_pylist()))
        symbols = ", ".join(f"'{symbol}'" for symbol in pc.unique(found["symbol"]).to_pylist())
        where = f"symbol IN ({symbols}) AND (first_trade_id IN ({edges}) OR last_trade_id IN ({edges}))"
        return touched_windows(self._bars.read("symbol, window_start", where), "window_start", BARS.window_seconds)

    def _note_tails(self, bars: pa.Table) -> None:
        columns = (bars["symbol"], bars["last_trade_id"], pc.cast(bars["window_start"], pa.int64()))
        for symbol, last, window_us in zip(*(column.to_pylist() for column in columns), strict=True):
            self._tails[symbol] = max(self._tails.get(symbol, (-1, 0)), (last, window_us))

    def _trades_of(self, touched: pa.Table) -> pa.Table:
        """At least all trades of the `touched` minutes: the recent ones from memory, older ones from the table."""
        since_us = self._held.recent.complete_from_us
        complete_from = max(since_us, -(2**62))
        is_recent = pc.greater_equal(touched["window_us"], pa.scalar(complete_from))
        recent, older = touched.filter(is_recent), touched.filter(pc.invert(is_recent))
        parts = []
        if recent.num_rows:
            runs = Runs(recent, BARS.window_seconds)
            parts.append(self._held.recent.between(runs.first_us, runs.last_us))
        if older.num_rows:
            condition = Runs(older, BARS.window_seconds).condition("event_time", "event_date")
            parts.append(self._held.read(condition))
        if self._held.recent.complete_from_us != since_us:
            return self._trades_of(touched)  # the other lane has forgotten old trades meanwhile
        return pa.concat_tables(parts)

    def _replace(
        self, handle: DeltaHandle, touched: pa.Table, inputs: Mapping[str, pa.Table], positions: Mapping[str, int]
    ) -> pa.Table:
        """Derives the rows of the `touched` windows and puts them in the place of the old ones."""
        derived = self._session.derive(handle.table.qualified, inputs)
        return replace_windows(handle, derived.filter(in_windows(derived, touched)), touched, positions)


def replace_windows(
    handle: DeltaHandle, derived: pa.Table, touched: pa.Table, positions: Mapping[str, int]
) -> pa.Table:
    """Puts the rows `derived` in the place of those of the `touched` windows; returns them as they are in the table."""
    table, load = handle.table, handle.next_load()
    rows = shaped(stamped(derived, load), table)
    runs = Runs(touched, table.window_seconds)
    condition = runs.condition("window_start", "window_date")
    written = rows if runs.are_exact else pa.concat_tables([rows, _others(handle, touched, condition)])
    handle.replace(written, condition, {**positions, LOAD: load})
    return rows


def _others(handle: DeltaHandle, touched: pa.Table, condition: str) -> pa.Table:
    """The rows that match `condition` but are of other windows: they stay as they are."""
    names = ", ".join(f'"{name}"' for name in handle.table.arrow_schema.names)
    matching = handle.read(names, condition)
    return shaped(matching.filter(pc.invert(in_windows(matching, touched))), handle.table)
