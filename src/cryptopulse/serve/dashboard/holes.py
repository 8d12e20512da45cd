"""Which trade ids are missing in an hour, a day or one hole of a product, when, and which came later over REST."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.intervals import Intervals
from cryptopulse.lake.dataset import Lake
from cryptopulse.serve.live.market import int64

RUNS_MAX: Final = 100
"""Most runs of ids that are listed, the first ones; all ids are counted."""

_MILLI_US = 1000
_LOOKUPS_MAX = 20  # lookups of single trades, each a few milliseconds
_SUMS = ("expected_ids", "held_ids", "healed_ids", "absent_ids", "missing_ids")
_TRADE = ("trade_id", "event_time", "source")


def holes_of_time(lake: Lake, symbol: str, start: datetime, end: datetime) -> dict[str, Any]:
    """The ids that a product lacks in the hours from `start` to before `end`, as gold.dm_completeness counts them: a
    hole belongs to the hour of the next trade above it.

    `first_id`, `last_id`: the range of ids of these hours, None without trades; `expected_ids` and so on: their sums.
    `holes`: the runs of ids that are not stored, at most RUNS_MAX of `holes_found`; each with `first_id`, `last_id`,
    how many ids are `absent`, and the times of the stored trades below and above it (`since`, `until`: ms since 1970,
    None if unknown). `healed`: the runs of ids that came over REST, at most RUNS_MAX.
    """
    hours = lake.completeness(symbol, start, end, columns=("first_trade_id", "last_trade_id", *_SUMS)).arrow()
    first_id, last_id = pc.min(hours["first_trade_id"]).as_py(), pc.max(hours["last_trade_id"]).as_py()
    sums = {name: pc.sum(hours[name]).as_py() or 0 for name in _SUMS}
    if first_id is None:
        return {"first_id": None, "last_id": None, **sums, "holes": [], "holes_found": 0, "healed": []}
    trades = lake.trades(symbol, start, end, columns=_TRADE).arrow()
    rest = trades.filter(pc.equal(trades["source"], "rest"))["trade_id"].to_pylist()
    healed = list(Intervals((one, one) for one in rest))[:RUNS_MAX]
    return {**_holes(lake, symbol, first_id, last_id, trades), **sums, "healed": healed}


def holes_of_ids(lake: Lake, symbol: str, first_id: int, last_id: int) -> dict[str, Any]:
    """The ids from `first_id` to `last_id` that a product lacks; see `holes_of_time`."""
    nothing = lake.trades(symbol, columns=_TRADE).schema.empty_table()
    return {**_holes(lake, symbol, first_id, last_id, nothing), "healed": []}


def _holes(lake: Lake, symbol: str, first_id: int, last_id: int, trades: pa.Table) -> dict[str, Any]:
    """`trades`: trades that have been read already, for the times."""
    stored, absent = (
        Intervals(zip(rows["first_trade_id"].to_pylist(), rows["last_trade_id"].to_pylist(), strict=True))
        for rows in (lake.coverage(symbol).arrow(), lake.absent(symbol).arrow())
    )
    holes = stored.gaps(first_id, last_id)
    shown = holes[:RUNS_MAX]
    # Times of the stored trades next to the holes; only some that `trades` lacks are looked up.
    edges = [edge for first, last in shown for edge in (first - 1, last + 1)]
    times = _times(trades.filter(pc.is_in(trades["trade_id"], pa.array(edges, pa.int64()))))
    for edge in [edge for edge in edges if edge not in times][:_LOOKUPS_MAX]:
        times |= _times(lake.trades(symbol, first_id=edge, last_id=edge, columns=_TRADE).arrow())
    return {
        "first_id": first_id,
        "last_id": last_id,
        "holes": [
            {
                "first_id": first,
                "last_id": last,
                "absent": Intervals(absent.within(first, last)).count,
                "since": times.get(first - 1),
                "until": times.get(last + 1),
            }
            for first, last in shown
        ],
        "holes_found": len(holes),
    }


def _times(trades: pa.Table) -> dict[int, float]:
    """ms since 1970, by trade id."""
    return dict(zip(trades["trade_id"].to_pylist(), (int64(trades["event_time"]) / _MILLI_US).tolist(), strict=True))
