"""What silver holds, in memory: the intervals of trade ids and the newest trades; and which ids are proved absent.

All of it can be read again.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from cryptopulse.engine.delta import LOAD, NOTHING_YET, DeltaHandle, read_table, utc_literal
from cryptopulse.engine.recent import MICROS, RecentTrades
from cryptopulse.engine.session import Session
from cryptopulse.engine.windows import between_us
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import ABSENT, COVERAGE, SILVER

_MINUTE_US = 60 * MICROS
_COVER_ROWS = 1_000_000  # some 40 MB
_INTERVALS_SCHEMA = pa.schema([("symbol", pa.string()), ("first_trade_id", pa.int64()), ("last_trade_id", pa.int64())])
_COLUMNS = ", ".join(SILVER.arrow_schema.names)
_INTERVAL = ", ".join(_INTERVALS_SCHEMA.names)

logger = structlog.get_logger()


class Held:
    """Silver as the other tables need it. The fast lane changes it, any thread may read it."""

    def __init__(
        self, lake: LakeLocation, session: Session, handles: Mapping[str, DeltaHandle], seen_to: int, keep_s: int
    ) -> None:
        """Reads what silver and its coverage hold.

        `seen_to`: the last load_timestamp (µs UTC) of silver that a table derived from it has taken in; `keep_s`: how
        many seconds of trades stay in memory.
        """
        silver, coverage = handles[SILVER.qualified], handles[COVERAGE.qualified]
        self._lake = lake
        self._session = session
        self._keep_s = keep_s
        last = silver.read("max(load_timestamp) AS at")["at"]
        silver.skip_to(LOAD, max(silver.position(LOAD), pc.cast(last, pa.int64())[0].as_py() or NOTHING_YET))
        # Gold may have kept what silver lost; news must come after what gold has seen, even if the clock went back.
        silver.skip_to(LOAD, max(silver.position(LOAD), seen_to))
        self.position = silver.position(LOAD)
        """load_timestamp of silver's newest commit, µs UTC."""
        self.holes_changed = 0
        """Grows when a hole comes, goes or is proved absent. Read it before the intervals: then none is overlooked."""
        self._intervals: tuple[pa.Table, dict[str, tuple[int, int]]]
        """All intervals but each product's newest, and those."""
        self._load_coverage(silver, coverage)
        newest = pc.cast(silver.read("max(event_time) AS at", "event_time <= now()")["at"], pa.int64())[0].as_py()
        self.watermark_us: int = newest or 0
        """Newest event time (µs UTC) of silver that is not in the future."""
        self.absent = handles[ABSENT.qualified].read(f"DISTINCT {_INTERVAL}").cast(_INTERVALS_SCHEMA)
        """Intervals of ids that pages proved absent; they may overlap, and some of their ids may be held after all."""
        self.recent = RecentTrades(keep_s)
        self._load_recent(silver)

    def add(self, trades: pa.Table, position: int) -> None:
        """Takes in the rows of silver's commit at `position`."""
        self._cover(trades.select(["symbol", "trade_id"]))
        self.recent.add(trades, position)
        newest = pc.cast(pc.max(trades["event_time"]), pa.int64()).as_py()
        self.watermark_us = max(self.watermark_us, min(newest, position))
        self.position = position

    def add_absent(self, proofs: pa.Table) -> None:
        """Takes in new rows of silver.absent_trade_ids."""
        both = pa.concat_tables([self.absent, proofs.select(_INTERVALS_SCHEMA.names).cast(_INTERVALS_SCHEMA)])
        self.absent = both.group_by(_INTERVALS_SCHEMA.names).aggregate([])
        self.holes_changed += 1

    def since(self, position: int) -> pa.Table | None:
        """Silver's rows after `position`, from memory or else from the table; None when there are none."""
        if position >= self.position:
            return None
        news = self.recent.since(position)
        if news is None:
            news = self.read(after(position))
        return news if news.num_rows else None

    def read(self, where: str) -> pa.Table:
        """Silver's rows on disk that match `where`."""
        return read_table(self._lake, SILVER, _COLUMNS, where)

    @property
    def coverage(self) -> pa.Table:
        """The intervals of the ids held (symbol, first_trade_id, last_trade_id), as few as they can be."""
        earlier, newest = self._intervals
        rows = [list(newest), [first for first, _ in newest.values()], [last for _, last in newest.values()]]
        arrays = [pa.array(r, field.type) for r, field in zip(rows, _INTERVALS_SCHEMA, strict=True)]
        return pa.concat_tables([earlier, pa.table(arrays, schema=_INTERVALS_SCHEMA)])

    def _cover(self, ids: pa.Table) -> None:
        """Adds `ids` (symbol, trade_id). In order they lengthen a product's newest interval: no SQL is needed."""
        if ids.num_rows == 0:
            return
        dense, gappy = id_spans(ids)
        spans = list(zip(*(column.to_pylist() for column in dense.columns), strict=True))
        if gappy.num_rows == 0 and all(
            first > self._intervals[1].get(symbol, (0, -1))[1] for symbol, first, _ in spans
        ):
            self._lengthen(spans)
            return
        inputs = {SILVER.qualified: ids, COVERAGE.qualified: self.coverage}
        self._split(self._session.derive(COVERAGE.qualified, inputs).cast(_INTERVALS_SCHEMA))
        self.holes_changed += 1

    def _lengthen(self, spans: list[tuple[str, int, int]]) -> None:
        earlier, newest, left = self._intervals[0], dict(self._intervals[1]), []
        for symbol, first, last in spans:
            known = newest.get(symbol)
            if known is not None and known[1] + 1 < first:
                left.append({"symbol": symbol, "first_trade_id": known[0], "last_trade_id": known[1]})
            joins = known is not None and known[1] + 1 == first
            newest[symbol] = (known[0] if known is not None and joins else first, last)
        if left:
            earlier = pa.concat_tables([earlier, pa.Table.from_pylist(left, schema=_INTERVALS_SCHEMA)])
        self._intervals = (earlier, newest)
        self.holes_changed += len(left)

    def _split(self, intervals: pa.Table) -> None:
        """Takes each product's newest interval apart from the earlier ones, which seldom change."""
        ordered = intervals.sort_by([("symbol", "ascending"), ("first_trade_id", "ascending")])
        symbols = ordered["symbol"].to_numpy()
        is_newest = np.append(symbols[1:] != symbols[:-1], True) if len(symbols) else np.zeros(0, dtype=bool)
        newest = ordered.filter(pa.array(is_newest))
        by_symbol: dict[str, tuple[int, int]] = {
            symbol: (first, last) for symbol, first, last in zip(*(c.to_pylist() for c in newest.columns), strict=True)
        }
        # One assignment: another thread sees both or neither.
        self._intervals = (ordered.filter(pa.array(~is_newest)).combine_chunks(), by_symbol)

    def _load_coverage(self, silver: DeltaHandle, coverage: DeltaHandle) -> None:
        """Reads the intervals, and covers what silver took in since they were written.

        They must count as many ids as silver has rows. They don't when a power cut, a restore or a deletion took rows
        of silver and left the intervals, which would claim ids that are gone and keep them out for ever: then all are
        made again. (No row of silver is ever missing in them: what is newer than they are is read from silver.)
        """
        self._split(coverage.read("symbol, first_trade_id, last_trade_id").cast(_INTERVALS_SCHEMA))
        self._cover_rows(silver, after(coverage.position("silver")))
        intervals = self.coverage
        widths = pc.add(pc.subtract(intervals["last_trade_id"], intervals["first_trade_id"]), 1)
        if (pc.sum(widths).as_py() or 0) != silver.rows():
            logger.warning("coverage_made_again", rows=silver.rows(), ids_claimed=pc.sum(widths).as_py())
            coverage.replace(COVERAGE.arrow_schema.empty_table(), None, {"silver": NOTHING_YET})
            self._split(_INTERVALS_SCHEMA.empty_table())
            self._cover_rows(silver)

    def _cover_rows(self, silver: DeltaHandle, where: str = "true") -> None:
        # After a power cut it may be all that there are.
        for ids in silver.read_parts("symbol, trade_id", where, _COVER_ROWS):
            self._cover(ids)

    def _load_recent(self, silver: DeltaHandle) -> None:
        first = (self.watermark_us - self._keep_s * MICROS) // _MINUTE_US * _MINUTE_US
        if self.position == NOTHING_YET:
            self.recent.load(SILVER.arrow_schema.empty_table(), np.iinfo(np.int64).min, self.position)
            return
        far = self.watermark_us + 366 * 86_400 * MICROS
        trades = silver.read(_COLUMNS, between_us("event_time", "event_date", max(first, 0), far))
        self.recent.load(trades, first, self.position)


def id_spans(trades: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Splits new `trades`: products without a gap as (symbol, first, last), the trades of the others as they are."""
    found = trades.group_by("symbol").aggregate([("trade_id", "min"), ("trade_id", "max"), ("trade_id", "count")])
    found = found.select(["symbol", "trade_id_min", "trade_id_max", "trade_id_count"])
    width = pc.add(pc.subtract(found["trade_id_max"], found["trade_id_min"]), 1)
    is_dense = pc.equal(width, found["trade_id_count"])
    dense = found.filter(is_dense).select([0, 1, 2]).rename_columns(["symbol", "first", "last"])
    gappy = found.filter(pc.invert(is_dense))["symbol"]
    ids = trades.select(["symbol", "trade_id"])
    return dense, ids.filter(pc.is_in(ids["symbol"], gappy.combine_chunks())) if len(gappy) else ids.slice(0, 0)


def after(position: int) -> str:
    """SQL for silver's (or bars') rows that were loaded after `position`, µs UTC."""
    return f"load_timestamp > {utc_literal(position)}"
