"""The generated DDL and the dashboards' queries, run by a real Spark with Delta Lake."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from spark_session import spark_conf

from cryptopulse import cli
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.dataset import read
from cryptopulse.lake.ddl import create_schemas, create_tables, table_name
from cryptopulse.lake.dialect import duckdb_query
from cryptopulse.lake.queries import load_queries
from cryptopulse.lake.tables import BARS, TABLES, Table
from cryptopulse.settings import load_settings
from dashboard_lake import fill
from support import Lake

pytestmark = pytest.mark.cluster

CATALOG = "spark_catalog"
QUERIES = load_queries()


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A session with a warehouse of its own, and the time zone of a Databricks SQL warehouse."""
    conf = spark_conf()
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("databricks")
    own = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse")),
        "spark.sql.session.timeZone": "UTC",
        "spark.databricks.delta.snapshotPartitions": "2",  # of 50, for tables of a few files
    }
    for name, value in {**conf, **own}.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    yield session
    session.stop()


@pytest.fixture(scope="module")
def created(spark: Any) -> Iterator[dict[str, DeltaTable]]:
    """The tables as the DDL makes them, opened without Spark."""
    for statement in [*create_schemas(CATALOG), *create_tables(CATALOG)]:
        spark.sql(statement)
    yield {table.qualified: DeltaTable(location(spark, table)) for table in TABLES}
    drop_schemas(spark)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """A lake of the embedded engine with something in every table."""
    lake = Lake(tmp_path_factory.mktemp("embedded") / "lake")
    fill(lake)
    yield lake
    lake.close()


def location(spark: Any, table: Table) -> str:
    found = spark.sql(f"DESCRIBE DETAIL {table_name(CATALOG, table)}").first()["location"]
    return unquote(urlparse(found).path)


def drop_schemas(spark: Any) -> None:
    for row in spark.sql("SHOW SCHEMAS").collect():
        if row[0] != "default":
            spark.sql(f"DROP SCHEMA `{row[0]}` CASCADE")


def fields(table: DeltaTable) -> list[tuple[str, Any, bool]]:
    return [(one["name"], one["type"], one["nullable"]) for one in json.loads(table.schema().to_json())["fields"]]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.qualified)
def test_spark_makes_the_table_of_the_contract(table: Table, spark: Any, created: dict[str, DeltaTable]) -> None:
    made = created[table.qualified]
    assert pa.schema(made.schema().to_arrow()).equals(table.arrow_schema)
    assert tuple(made.metadata().partition_columns) == table.partition_by
    assert made.metadata().configuration.items() >= table.properties.items()
    assert made.metadata().description == table.comment
    comments = {
        row["col_name"]: row["comment"] for row in spark.sql(f"DESCRIBE {table_name(CATALOG, table)}").collect()
    }
    assert {column.name: comments[column.name] for column in table.columns} == {
        c.name: c.comment for c in table.columns
    }


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.qualified)
def test_spark_and_the_embedded_engine_make_the_same_table(
    table: Table, created: dict[str, DeltaTable], embedded: Lake
) -> None:
    made, other = created[table.qualified], embedded.delta(table)
    assert fields(made) == fields(other)
    assert made.metadata().partition_columns == other.metadata().partition_columns
    statistics = "delta.dataSkippingStatsColumns"
    assert made.metadata().configuration[statistics] == other.metadata().configuration[statistics]


def test_the_ddl_changes_nothing_the_second_time(spark: Any, created: dict[str, DeltaTable]) -> None:
    for statement in [*create_schemas(CATALOG), *create_tables(CATALOG)]:
        spark.sql(statement)
    for table in TABLES:
        assert DeltaTable(location(spark, table)).version() == created[table.qualified].version() == 0


def test_without_unity_catalog_the_command_says_so_in_one_line(
    spark: Any, created: dict[str, DeltaTable], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["ddl", "--run", "--catalog", CATALOG]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cryptopulse: CREATE VOLUME IF NOT EXISTS `spark_catalog`.`operations`.`checkpoints`: ")
    assert error.count("\n") == 1


def test_a_table_of_another_version_is_refused_in_one_line(spark: Any, tmp_path: Path) -> None:
    from cryptopulse.engine.spark.tables import SparkTables

    settings = load_settings(lake=tmp_path / "lake")
    older = BARS.arrow_schema.remove(BARS.arrow_schema.get_field_index("rest_count"))
    DeltaTable.create(settings.location.table_url(BARS), older, partition_by=list(BARS.partition_by))
    with pytest.raises(ConfigurationError, match="was made by another version") as told:
        SparkTables(settings).create(spark)
    assert "dm_trade_bars" in str(told.value)
    assert "it lacks rest_count" in str(told.value)
    assert "checkpoints" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.fixture(scope="module")
def in_catalog(spark: Any, embedded: Lake) -> Iterator[None]:
    """The embedded engine's tables under their names in Spark."""
    drop_schemas(spark)
    for table in TABLES:
        spark.sql(f"CREATE SCHEMA IF NOT EXISTS `{table.schema}`")
        spark.sql(f"CREATE TABLE {table.qualified} USING DELTA LOCATION '{embedded.folder(table)}'")
    yield
    drop_schemas(spark)


@pytest.mark.parametrize("name", QUERIES)
def test_spark_and_duckdb_answer_a_query_alike(name: str, spark: Any, in_catalog: None, embedded: Lake) -> None:
    from cryptopulse.engine.spark.session import collected

    sql = QUERIES[name].sql
    expected = read(embedded.settings.location, duckdb_query(sql))
    found = collected(spark.sql(sql))
    assert found.schema.names == expected.schema.names == QUERIES[name].columns
    assert found.num_rows == expected.num_rows > 0
    for left, right in zip(found.to_pylist(), expected.to_pylist(), strict=True):
        for column, value in left.items():
            if column == "age_s":  # by the clock, and they did not look at once
                assert value == pytest.approx(right[column], abs=300)
            elif isinstance(value, float):
                assert value == pytest.approx(right[column], rel=1e-12)
            else:
                assert value == right[column], column
