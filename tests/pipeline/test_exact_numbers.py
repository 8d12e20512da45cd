"""Numbers survive exactly, and no filter on any column loses a row."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from deltalake import QueryBuilder

from cryptopulse.lake.dataset import connect
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


@pytest.mark.parametrize("table", [SILVER, BARS, STATS, ALERTS], ids=lambda table: table.name)
def test_no_filter_on_any_column_loses_a_row(filled: Lake, table: Table) -> None:
    dataset, rows = filled.delta(table).to_pyarrow_dataset(), filled.arrow(table).to_pylist()
    for column in (column.name for column in table.columns if column.type != "BOOLEAN"):
        held = [row[column] for row in rows]
        for condition, count in conditions(ds.field(column), held):
            assert dataset.count_rows(filter=condition) == count, column


def conditions(field: ds.Expression, held: list[Any]) -> Iterator[tuple[ds.Expression, int]]:
    """Filters on a column that holds these values, and how many rows each keeps."""
    values = sorted(set(held))
    sample = [values[0], values[len(values) // 2], values[-1]]
    for value in sample:
        yield field == value, held.count(value)
        yield field < value, sum(one < value for one in held)
        yield field > value, sum(one > value for one in held)
    yield field.isin(sample), sum(one in sample for one in held)
    between = (field >= sample[0]) & (field <= sample[1])
    yield between, sum(sample[0] <= one <= sample[1] for one in held)


@pytest.mark.parametrize("column", ["price", "trade_size"])
def test_sql_engines_find_every_decimal_too(filled: Lake, column: str) -> None:
    fusion = QueryBuilder().register("t", filled.delta(SILVER))
    with connect(filled.settings.location) as duck:
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
