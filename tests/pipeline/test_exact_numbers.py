"""Numbers survive exactly, and no filter on any column loses a row."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from deltalake import QueryBuilder

from cryptopulse.lake import reader
from cryptopulse.lake.tables import ALERTS, BARS, SILVER, STATS, TABLES, Table
from support import Lake, Trade, at

EXTREME = [
    ("0.000000000001", "1"), ("0.000000000003", "999999999999.999999999999"),
    ("99999999999.123456789012", "0.000000000001"),
    ("123456.789012345678", "0.987654321098"), ("0.1", "0.2"), ("0.3", "0.7"), ("1.000000000001", "1000000000000"),
]  # fmt: skip


def _trades() -> list[Trade]:
    return [Trade("ODD-USD", n, at(n * 7.0), price, size) for n, (price, size) in enumerate(EXTREME * 6, 1)]


@pytest.fixture(scope="module", params=["as written", "compacted"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    lake = Lake(tmp_path_factory.mktemp("exact") / "my lake's")
    for third in range(3):
        lake.take_in(trade.match() for trade in _trades()[third * 14 : third * 14 + 14])
    if request.param == "compacted":
        for table in TABLES:
            lake.delta(table).optimize.compact()
    yield lake
    lake.close()


def test_the_smallest_prices_and_the_largest_sizes_survive_exactly(filled: Lake) -> None:
    found = [(row["price"], row["trade_size"]) for row in filled.rows(SILVER)]
    assert found == [(Decimal(price), Decimal(size)) for price, size in EXTREME * 6]
    assert sum(row["volume"] for row in filled.rows(BARS)) == sum(Decimal(size) for _, size in EXTREME) * 6


COLUMNS = [(t, c.name) for t in (SILVER, BARS, STATS, ALERTS) for c in t.columns if c.type not in {"BINARY", "BOOLEAN"}]


@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=lambda value: getattr(value, "name", value))
def test_no_filter_loses_a_row(filled: Lake, table: Table, column: str) -> None:
    rows = filled.arrow(table).to_pylist()
    values = sorted({row[column] for row in rows})
    sample = [values[0], values[len(values) // 2], values[-1]]
    dataset, field = filled.delta(table).to_pyarrow_dataset(), ds.field(column)
    for value in sample:
        for condition, holds in (
            (field == value, lambda row, v=value: row[column] == v),
            (field < value, lambda row, v=value: row[column] < v),
            (field > value, lambda row, v=value: row[column] > v),
        ):
            assert dataset.count_rows(filter=condition) == sum(map(holds, rows))
    assert dataset.count_rows(filter=field.isin(sample)) == sum(row[column] in sample for row in rows)
    between = (field >= sample[0]) & (field <= sample[1])
    assert dataset.count_rows(filter=between) == sum(sample[0] <= row[column] <= sample[1] for row in rows)


@pytest.mark.parametrize("column", ["price", "trade_size"])
def test_sql_engines_find_every_decimal_too(filled: Lake, column: str) -> None:
    fusion = QueryBuilder().register("t", filled.delta(SILVER))
    with reader.connect(filled.settings.location) as duck:
        for value in {row[column] for row in filled.rows(SILVER)}:
            expected = sum(row[column] == value for row in filled.rows(SILVER))
            where = f"{column} = CAST('{value:f}' AS DECIMAL(38,12))"
            assert (
                duck.sql(f"SELECT * FROM silver.fact_crypto_trades WHERE {where}").to_arrow_table().num_rows == expected
            )
            assert fusion.execute(f"SELECT * FROM t WHERE {where}").read_all().num_rows == expected


def test_no_table_has_statistics_of_decimals(filled: Lake) -> None:
    for table in TABLES:
        types = {column.name: column.type for column in table.columns}
        assert table.stats
        assert not [name for name in table.stats if types[name].startswith("DECIMAL")]
        configured = filled.delta(table).metadata().configuration["delta.dataSkippingStatsColumns"]
        assert configured == ",".join(table.stats)
    assert Path(filled.path).is_dir()
