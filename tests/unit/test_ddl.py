"""The DDL says what the contracts say, to Spark and to Unity Catalog."""

from __future__ import annotations

import pytest
import sqlglot
from sqlglot import exp

from cryptopulse import cli
from cryptopulse.lake.ddl import catalog_statements, create_table, create_tables, grants, quoted
from cryptopulse.lake.tables import TABLES, Table

STATEMENTS = catalog_statements("market", "data-engineers", "analysts")


def parsed(sql: str) -> exp.Create:
    tree = sqlglot.parse_one(sql, read="databricks")
    assert isinstance(tree, exp.Create)
    return tree


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.qualified)
def test_a_statement_has_the_columns_of_the_contract(table: Table) -> None:
    columns = list(parsed(create_table(table, "t")).find_all(exp.ColumnDef))
    assert [column.name for column in columns] == [column.name for column in table.columns]
    for made, column in zip(columns, table.columns, strict=True):
        assert made.args["kind"] == exp.DataType.build(column.type, dialect="databricks")
        assert bool(made.find(exp.NotNullColumnConstraint)) is not column.nullable
        assert made.find(exp.CommentColumnConstraint).this.name == column.comment  # type: ignore[union-attr]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.qualified)
def test_a_statement_has_partitions_comment_and_properties_of_the_contract(table: Table) -> None:
    tree = parsed(create_table(table, "t", {"delta.logRetentionDuration": "interval 30 days"}))
    days = tree.find(exp.PartitionedByProperty)
    assert tuple(name.name for name in (days.this.expressions if days else ())) == table.partition_by
    assert tree.find(exp.SchemaCommentProperty).this.name == table.comment  # type: ignore[union-attr]
    assert tree.find(exp.FileFormatProperty).this.name.upper() == "DELTA"  # type: ignore[union-attr]
    properties = {
        one.this.name: one.args["value"].name for one in tree.find_all(exp.Property) if type(one) is exp.Property
    }
    assert properties == {**table.properties, "delta.logRetentionDuration": "interval 30 days"}


def test_every_table_of_the_contracts_is_created_upstream_first() -> None:
    names = [parsed(sql).find(exp.Table).sql("databricks") for sql in create_tables("market")]  # type: ignore[union-attr]
    assert names == [f"`market`.`{table.schema}`.`{table.name}`" for table in TABLES]


def test_a_schema_is_there_before_its_tables_and_a_table_before_its_key() -> None:
    seen: list[str] = []
    for sql in STATEMENTS:
        for table in TABLES:
            if f"`{table.schema}`.`{table.name}`" in sql and sql.startswith("CREATE TABLE"):
                assert f"CREATE SCHEMA IF NOT EXISTS `market`.`{table.schema}`" in "".join(seen)
            if f"`{table.schema}`.`{table.name}`" in sql and sql.startswith("ALTER TABLE"):
                assert f"CREATE TABLE IF NOT EXISTS `market`.`{table.schema}`.`{table.name}`" in "".join(seen)
        seen.append(sql)


def test_every_statement_may_be_run_again() -> None:
    dropped = ""
    for sql in STATEMENTS:
        if " ADD CONSTRAINT " in sql:
            assert dropped == sql.split(" ADD ")[0]
        else:
            assert sql.startswith("GRANT ") or " IF NOT EXISTS " in sql or sql.endswith(" DROP PRIMARY KEY IF EXISTS")
        dropped = sql.split(" DROP ")[0]


def test_keys_are_those_of_the_contracts() -> None:
    keys = [sql for sql in STATEMENTS if "PRIMARY KEY (" in sql]
    assert len(keys) == len(TABLES)
    for sql, table in zip(keys, TABLES, strict=True):
        assert f"`{table.schema}`.`{table.name}` ADD" in sql
        assert sql.endswith(f"({', '.join(f'`{name}`' for name in table.key)})")


def test_analysts_can_only_read_and_not_bronze() -> None:
    granted = [sql for sql in STATEMENTS if sql.endswith("TO `analysts`")]
    assert len(granted) == 3
    for sql in granted:
        rights = {right.strip() for right in sql.removeprefix("GRANT ").split(" ON ")[0].split(",")}
        assert rights <= {"USE CATALOG", "USE SCHEMA", "SELECT"}
        assert "SELECT" not in rights or " SCHEMA `market`.`silver`" in sql or " SCHEMA `market`.`gold`" in sql


def test_nobody_gets_rights_unless_named() -> None:
    assert grants("market") == []
    assert not any(sql.startswith("GRANT") for sql in catalog_statements("market"))


def test_names_and_texts_can_not_end_their_quotes() -> None:
    assert quoted("a`b") == "`a``b`"
    sql = catalog_statements("m`x", managed_location="abfss://it's\\here")[0]
    assert "`m``x`" in sql
    assert r"'abfss://it\'s\\here'" in sql
    assert all("TO `a``; DROP`" in statement for statement in grants("m", "a`; DROP"))


def test_the_command_prints_what_can_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ddl", "--catalog", "market", "--engineers", "data-engineers", "--analysts", "analysts"]
    assert cli.run(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.rstrip("\n").removesuffix(";").split(";\n\n") == STATEMENTS
