"""A lake that an earlier version filled with values beyond their domains opens again after `rebuild`."""

from __future__ import annotations

from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from cryptopulse.lake.tables import BARS, COVERAGE, SILVER
from support import Lake, Trade, at, model_bars, model_coverage

TRADES = [Trade("BTC-USD", number, at(number * 20.0)) for number in range(1, 10)]
YEAR_0_US = -62_167_219_200_000_000
YEAR_MINUS_1_US = YEAR_0_US - 365 * 86_400_000_000


@pytest.mark.parametrize(
    ("trade_id", "time_us"),
    [(10, YEAR_0_US), (10, YEAR_MINUS_1_US), (2**63 - 1, None), (10, -1), (10, -62_135_596_800_000_000)],
    ids=["year 0", "year -1", "largest id", "before 1970", "year 1"],
)
def test_a_trade_beyond_the_domains_in_silver_is_gone_after_a_rebuild(
    lake: Lake, trade_id: int, time_us: int | None
) -> None:
    lake.take_in(trade.match() for trade in TRADES)
    row = lake.arrow(SILVER).slice(0, 1)
    row = row.set_column(0, SILVER.arrow_schema.field("trade_id"), pa.array([trade_id]))
    if time_us is not None:
        times = pa.array(np.array([time_us], dtype="datetime64[us]"), pa.timestamp("us", "UTC"))
        at_column = row.schema.get_field_index("event_time")
        row = row.set_column(at_column, SILVER.arrow_schema.field("event_time"), times)
        row = row.set_column(row.schema.get_field_index("event_date"), "event_date", pa.array([date(1, 1, 1)]))
    write_deltalake(str(lake.folder(SILVER)), row, mode="append")
    lake.rebuild()
    assert lake.rows(COVERAGE) == model_coverage(TRADES)
    assert lake.rows(BARS, "vwap", "window_date") == model_bars(TRADES)
    lake.take_in([Trade("BTC-USD", 11, at(300)).match()])
    assert lake.arrow(SILVER).num_rows == len(TRADES) + 1
