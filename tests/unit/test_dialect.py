"""The canonical SQL: valid in Spark, and in step with the table contracts."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlglot
from sqlglot import exp
from sqlglot.expressions import Query

from cryptopulse.engine.session import SqlSession
from cryptopulse.lake import tables
from cryptopulse.lake.dialect import bound_name, duckdb_sql
from cryptopulse.lake.tables import BRONZE, BY_NAME, TABLES, Table, arrow_type, read_sql

FILES = sorted(Path(tables.__file__).with_name("sql").glob("*.sql"))
DERIVED = [BY_NAME[file.stem] for file in FILES if file.stem in BY_NAME and file.stem != BRONZE.qualified]


@pytest.mark.parametrize("dialect", ["spark", "databricks"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_sql_file_is_one_statement_of_spark(file: Path, dialect: str) -> None:
    (tree,) = sqlglot.parse(file.read_text(), read=dialect)
    assert isinstance(tree, exp.Query)


@pytest.mark.parametrize("table", DERIVED, ids=lambda table: table.qualified)
def test_a_sql_file_returns_exactly_the_columns_of_its_table(table: Table) -> None:
    tree = sqlglot.parse_one(read_sql(table.qualified), read="spark")
    assert isinstance(tree, Query)
    assert {*tree.named_selects, "load_timestamp"} == set(table.arrow_schema.names)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.qualified)
def test_a_contract_names_only_columns_that_it_has(table: Table) -> None:
    names = {*table.key, *table.stats, *table.partition_by, table.time} - {None}
    assert names <= set(table.arrow_schema.names)
    assert len(table.columns) == len(table.arrow_schema.names)


def test_tables_are_bound_by_name_and_every_with_is_worked_out_once_for_many_rows() -> None:
    assert bound_name("silver.fact_crypto_trades") in duckdb_sql("gold.dm_trade_bars")
    assert "MATERIALIZED" in duckdb_sql("gold.dm_trade_bars", is_bulk=True)
    assert "MATERIALIZED" not in duckdb_sql("gold.dm_trade_bars")


@pytest.mark.parametrize("table", DERIVED, ids=lambda table: table.qualified)
def test_duckdb_runs_what_sqlglot_would_make_of_a_file(table: Table) -> None:
    """Keys are never NULL, so where an order puts NULLs does not matter; one function is a macro."""
    canonical = sqlglot.parse_one(read_sql(table.qualified), read="databricks")
    for place in canonical.find_all(exp.Table):
        if place.db:
            place.replace(exp.to_table(bound_name(f"{place.db}.{place.name}"), alias=place.alias or None))
    translated = canonical.sql(dialect="duckdb", comments=False).replace(" NULLS FIRST", "")
    ours = sqlglot.parse_one(duckdb_sql(table.qualified), read="duckdb").sql(dialect="duckdb", comments=False)
    assert ours.replace("UNIX_MICROS(", "EPOCH_US(") == translated


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown column type"):
        arrow_type("INTERVAL")


def test_a_session_works_in_utc() -> None:
    session = SqlSession()
    assert session.query("SELECT timestamp_micros(0)::VARCHAR AS t", {})["t"].to_pylist() == ["1970-01-01 00:00:00+00"]
    session.close()
