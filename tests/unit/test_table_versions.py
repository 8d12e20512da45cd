"""A table whose columns are those of another version: one line that says what to do, and doing it helps."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.dataset import read
from cryptopulse.lake.tables import ABSENT, BARS, BRONZE, COMPLETENESS, Table, other_columns
from support import Lake, Trade, at


def made_otherwise(lake: Lake, table: Table, change: Callable[[pa.Table], pa.Table]) -> None:
    """Puts a changed copy in the place of a table."""
    rows = change(lake.arrow(table))
    shutil.rmtree(lake.folder(table))
    write_deltalake(str(lake.folder(table)), rows, partition_by=list(table.partition_by))


@pytest.fixture
def older(lake: Lake) -> Lake:
    """A lake of the time before hours and absent ids were kept."""
    lake.take_in(Trade("BTC-USD", n, at(n * 100.0)).match() for n in range(1, 30))
    made_otherwise(lake, BARS, lambda bars: bars.drop_columns(["rest_count"]))
    for table in (ABSENT, COMPLETENESS):
        shutil.rmtree(lake.folder(table))
    return lake


def told(error: pytest.ExceptionInfo[ConfigurationError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_lake_of_an_older_version_is_refused_until_the_table_is_made_again(older: Lake) -> None:
    for work in (older.drain, older.rebuild, lambda: read(older.settings.location, "SELECT 1")):
        with pytest.raises(ConfigurationError) as error:
            work()
        line = told(error)
        assert "gold.dm_trade_bars was made by another version" in line
        assert "it lacks rest_count" in line
        assert f"delete {older.folder(BARS)} and run `cryptopulse rebuild --lake {older.path}`" in line
    shutil.rmtree(older.folder(BARS))
    older.rebuild()
    assert sum(row["trade_count"] for row in older.rows(BARS)) == 29
    assert [row["is_complete"] for row in older.rows(COMPLETENESS)] == [True]


def test_bronze_of_another_version_is_never_to_be_deleted(lake: Lake) -> None:
    lake.take_in([Trade("BTC-USD", 1).match()])
    made_otherwise(lake, BRONZE, lambda rows: rows.append_column("more", pa.array([1] * rows.num_rows)))
    with pytest.raises(ConfigurationError, match="it has also more") as error:
        lake.drain()
    assert "delete" not in told(error)


def test_what_differs_is_named_whatever_the_order() -> None:
    columns = list(BARS.arrow_schema)
    assert other_columns(BARS, pa.schema(reversed(columns))) == ""
    changed = [*columns[2:], pa.field("open", pa.float64()), pa.field("new", pa.int64())]
    found = pa.schema([field for field in changed if field.name != "open" or field.type == pa.float64()])
    assert other_columns(BARS, found) == "it lacks symbol, window_start; it has also new; of another type: open"
