"""Trades of one product as the event array of hftbacktest (.npz), which `BacktestAsset().data([file])` reads.

Layout and flags are those of its `hftbacktest.types`; https://hftbacktest.readthedocs.io/en/latest/data.html says how
events are ordered. Prices and sizes are float64 there: the nearest to the exact decimals.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.receive_order import in_receive_order

_EVENT: Final = np.dtype(
    [
        ("ev", "<u8"),
        ("exch_ts", "<i8"),
        ("local_ts", "<i8"),
        ("px", "<f8"),
        ("qty", "<f8"),
        ("order_id", "<u8"),
        ("ival", "<i8"),
        ("fval", "<f8"),
    ],
    align=True,
)
_TRADE, _SELL, _BUY, _LOCAL, _EXCHANGE = 2, 1 << 28, 1 << 29, 1 << 30, 1 << 31


def write_events(rows: pa.RecordBatchReader, sink: Any, scratch: Path | None, progress: Callable[[int], None]) -> int:
    """Writes the trades to `sink`; returns how many. `scratch`: a folder with room for 64 bytes a trade; None: the
    system's.

    Times are ns since 1970 (UTC): the exchange's, and the local one of `in_receive_order`. BUY and SELL are the taker.
    Events valid for the exchange are ordered by the one, those valid for the local side by the other, so a trade that
    was overtaken on its way is two events, one of each. Raises ConfigurationError for rows of several products and as
    `in_receive_order`.
    """
    count = events = 0
    reached, product = -1, None  # the last place whose exchange event is written
    with tempfile.TemporaryFile(dir=scratch) as spool:  # a file's head says how many events follow
        for received, waiting in in_receive_order(rows, "hftbacktest"):
            symbols = {product, *pc.unique(received["symbol"]).to_pylist(), *pc.unique(waiting["symbol"]).to_pylist()}
            if len(symbols - {None}) > 1:
                several = " and ".join(sorted(symbols - {None})[:2])
                raise ConfigurationError(f"hftbacktest's arrays are of one product; choose one of {several}.")
            product = next(iter(symbols - {None}), None)
            if not received.num_rows:
                continue
            # In the order of reception, a trade behind all those before it in the exchange's order is one event. Those
            # that it has overtaken are the exchange's events just before it, and local ones where they are received.
            place = received["place"].to_numpy()
            before = np.maximum.accumulate(np.concatenate([[reached], place]))
            is_one, next_reached = place > before[:-1], before[-1]
            both = pa.concat_tables([received, waiting])
            places = both["place"].to_numpy()
            is_overtaken = (places > reached) & (places < next_reached)
            is_overtaken[: len(place)] &= ~is_one
            overtaken = np.flatnonzero(is_overtaken)
            overtaken_at = np.flatnonzero(is_one)[np.searchsorted(place[is_one], places[overtaken])]
            # Overtaken ones first, in their order; then the one that is received.
            order = np.lexsort(
                (
                    np.append(np.full(len(place), next_reached), places[overtaken]),
                    np.append(np.arange(len(place)), overtaken_at),
                )
            )
            source = np.append(np.arange(len(place)), overtaken)[order]
            valid = np.where(is_one, _EXCHANGE | _LOCAL, _LOCAL)
            valid = np.append(valid, np.full(len(overtaken), _EXCHANGE))[order]
            reached = int(next_reached)

            trades, found = both.combine_chunks().take(source), np.zeros(len(source), _EVENT)
            side = np.where(pc.equal(trades["side"], "BUY").to_numpy(), _BUY, _SELL)
            found["ev"] = side | valid | _TRADE
            found["exch_ts"], found["local_ts"] = trades["exchange_ns"].to_numpy(), trades["local_ns"].to_numpy()
            for name, column in (("px", "price"), ("qty", "trade_size")):
                # By way of text the nearest float64; Arrow's own cast is off by a bit for one in a hundred (measured).
                found[name] = trades[column].cast(pa.string()).cast(pa.float64()).to_numpy()
            spool.write(found.data)
            events += len(found)
            progress(count := count + received.num_rows)
        spool.seek(0)
        with (
            zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("data.npy", "w", force_zip64=True) as array,
        ):
            head = {"descr": np.lib.format.dtype_to_descr(_EVENT), "fortran_order": False, "shape": (events,)}
            np.lib.format.write_array_header_1_0(array, head)
            shutil.copyfileobj(spool, array, 1 << 20)
    return count
