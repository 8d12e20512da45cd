"""Finds exactly which trade ids silver holds, in one pass over a few of its columns.

DuckDB makes a bit mask of every 64 ids, so ids need not be sorted, and a copy shows as more rows than the mask has
bits. Days are read one by one, so that memory does not grow with the lake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.audit.id_set import MASK_IDS, IdSet
from cryptopulse.audit.report import id_range, utc
from cryptopulse.audit.retention import kept_from, kept_from_us
from cryptopulse.audit.scope import DAY_US, AuditScope, day_start_us
from cryptopulse.audit.snapshot import BRONZE, SILVER, LakeSnapshot
from cryptopulse.text import ids_text

_NONE = IdSet.of()
BIT = "1::UBIGINT << ({} & 63)::UBIGINT"
"""SQL: the bit of an id in its mask."""
CONTENT_HASH = (
    "hash(hash(trade_id, try_cast({price} AS DECIMAL(24, 12)), try_cast({size} AS DECIMAL(28, 12)), {is_buy}, "
    "epoch_us({time})))"
)
"""SQL: a 64-bit hash of a trade's id and content. It is hashed twice: with the inner hash alone, two trades with
swapped prices would cancel each other out.
"""


@dataclass
class SilverIds:
    """The ids of one product in silver."""

    all: IdSet = _NONE
    rest: IdSet = _NONE
    """Ids that came over REST."""
    late: IdSet = _NONE
    """Ids that the tables derived from silver may not have consumed."""
    doubled: IdSet = _NONE
    unproven: IdSet = _NONE
    """Ids whose messages bronze has let go on purpose."""
    past: IdSet = _NONE
    """Ids of days that silver has let go: they came late, and gold leaves such days as they were."""
    earlier: IdSet = _NONE
    """Ids of trades before the audited time."""
    later: IdSet = _NONE
    """Ids of trades after it."""
    days: list[tuple[date | None, int, int]] = field(default_factory=list)
    """(day, lowest id, highest id)."""


def held_ids(snapshot: LakeSnapshot, scope: AuditScope, settled_us: int) -> dict[str, SilverIds]:
    """Product → ids in silver, of all time. Reports ids that occur more than once, and trades in the wrong day."""
    found: dict[str, SilverIds] = {}
    if SILVER not in snapshot.tables:
        return found
    rebuild = f"run `{snapshot.repairs.rebuild}`"
    proven_us, first_day = kept_from_us(snapshot, BRONZE), kept_from(snapshot, SILVER)
    for day in sorted({file.day for file in snapshot.files(SILVER)}, key=str):
        files = [file for file in snapshot.files(SILVER) if file.day == day]
        masks = snapshot.rows(_masks_sql(scope, day, settled_us, proven_us), {SILVER: files})
        for symbol, rows in by_product(masks):
            held = found.setdefault(symbol, SilverIds())
            ids = of_masks(rows, "held")
            held.doubled |= held.all & ids
            held.all |= ids
            held.rest |= of_masks(rows, "rest")
            held.late |= of_masks(rows, "late")
            held.days.append((day, ids.first, ids.last))
            held.unproven |= of_masks(rows, "unproven")
            if day is not None and day < first_day:
                held.past |= ids
            held.earlier |= of_masks(rows, "earlier")
            held.later |= of_masks(rows, "later")

        if misplaced := pc.sum(masks["misplaced"]).as_py():
            text = f"{SILVER}: {misplaced:,} trades of the partition {day} were made on another day"
            details = {"rows": misplaced, "day": str(day)}
            snapshot.report("trades_misplaced", SILVER, text, rebuild, details=details)

        # A mask with fewer bits than rows has ids that occur more than once.
        held_masks = np.ascontiguousarray(_numbers(masks, "held").astype(np.uint64))
        bits = np.unpackbits(held_masks.view(np.uint8)).reshape(-1, 64).sum(axis=1)  # NumPy 1 has no function for it
        suspects = masks.filter(pa.array(_numbers(masks, "copies") > bits)).select(["symbol", "chunk"])
        if suspects.num_rows:
            rows = snapshot.rows(
                "SELECT t.symbol, t.trade_id FROM fact_crypto_trades AS t "
                "SEMI JOIN suspects AS s ON s.symbol = t.symbol AND s.chunk = t.trade_id >> 6 "
                "GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL",
                {SILVER: files},
                {"suspects": suspects},
            )
            for symbol, doubled in by_product(rows):
                numbers = doubled["trade_id"].to_numpy()
                found[symbol].doubled |= IdSet.of_arrays(numbers, numbers)

    for symbol, held in sorted(found.items()):
        for first, last in held.doubled:
            text = f"{symbol}: {ids_text(first, last)} more than once in {SILVER}"
            snapshot.report("ids_doubled", SILVER, text, rebuild, symbol, id_range(first, last))
    return found


def by_product(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each product, from a table sorted by `symbol`."""
    start = 0
    for counted in pc.value_counts(rows["symbol"].combine_chunks()).to_pylist():
        yield counted["values"], rows.slice(start, counted["counts"])
        start += counted["counts"]


def of_masks(rows: pa.Table, column: str) -> IdSet:
    """The ids in a column of masks; `rows` also has the column `chunk`."""
    masks = _numbers(rows, column).astype(np.uint64)
    is_any = masks != 0
    return IdSet.of_masks(_numbers(rows, "chunk")[is_any].astype(np.int64), masks[is_any])


def times_of(
    snapshot: LakeSnapshot, held: Mapping[str, SilverIds], wanted: Mapping[str, set[int]]
) -> dict[tuple[str, int], datetime]:
    """(product, id) → event time (UTC) of the `wanted` trades, which silver holds. Reads only the days with them."""
    by_day: dict[date | None, list[dict[str, object]]] = {}
    for symbol, ids in wanted.items():
        for day, first, last in held[symbol].days:
            near = [trade_id for trade_id in ids if first <= trade_id <= last]
            by_day.setdefault(day, []).extend({"symbol": symbol, "trade_id": trade_id} for trade_id in near)
    found: dict[tuple[str, int], datetime] = {}
    for day, points in by_day.items():
        files = [file for file in snapshot.files(SILVER) if file.day == day]
        if not points or not files:
            continue
        rows = snapshot.rows(
            "SELECT t.symbol, t.trade_id, min(epoch_us(t.event_time)) AS us FROM fact_crypto_trades AS t "
            "SEMI JOIN points AS p ON p.symbol = t.symbol AND p.trade_id = t.trade_id GROUP BY ALL",
            {SILVER: files},
            {"points": pa.Table.from_pylist(points, schema=_POINTS)},
        )
        found |= {(row["symbol"], row["trade_id"]): utc(row["us"]) for row in rows.to_pylist()}
    return found


_POINTS = pa.schema([("symbol", pa.string()), ("trade_id", pa.int64())])


def _masks_sql(scope: AuditScope, day: date | None, settled_us: int, proven_us: int) -> str:
    misplaced = "false"
    if day is not None:
        start_us = day_start_us(day)
        misplaced = f"event_us < {start_us} OR event_us >= {start_us + DAY_US}"
    earlier = "false" if scope.from_us is None else f"event_us < {scope.from_us}"
    later = "false" if scope.to_us is None else f"event_us >= {scope.to_us}"
    return f"""
        SELECT
            symbol, trade_id >> 6 AS chunk, count(*) AS copies, bit_or(bit) AS held,
            bit_or(bit) FILTER (source = 'rest') AS rest, bit_or(bit) FILTER (load_us > {settled_us}) AS late,
            bit_or(bit) FILTER (received_us < {proven_us}) AS unproven,
            bit_or(bit) FILTER ({earlier}) AS earlier, bit_or(bit) FILTER ({later}) AS later,
            count(*) FILTER ({misplaced}) AS misplaced
        FROM (
            SELECT
                symbol, trade_id, source, epoch_us(event_time) AS event_us, epoch_us(load_timestamp) AS load_us,
                epoch_us(ingestion_time) AS received_us, {BIT.format("trade_id")} AS bit
            FROM fact_crypto_trades
            WHERE {scope.has_product()}
        )
        GROUP BY symbol, chunk
        ORDER BY symbol, chunk"""


def _numbers(rows: pa.Table, column: str) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = pc.fill_null(rows[column], 0).to_numpy()
    return found


assert MASK_IDS == 64, "the SQL above shifts by 6 and masks by 63"
