"""Makes DDL statements from table contracts, for Spark with Delta Lake and for Unity Catalog.

`create_table`, `create_schemas` and `create_tables` run on open-source Spark and on Databricks. Catalogs, volumes, keys
and grants exist in Unity Catalog only. Every statement can be run again: it changes nothing, but recreates keys.
"""

from __future__ import annotations

from collections.abc import Mapping

from cryptopulse.lake.tables import TABLES, Column, Table

OPERATIONS = "operations"
"""The schema for what is not data: its volume holds the checkpoints."""

VOLUMES = {
    "checkpoints": "What each streaming query has done. Deleting it makes the queries look at everything again.",
}
"""Volumes of `operations`, and what is in them."""

_SCHEMAS = {
    "bronze": "Raw messages, as received.",
    "silver": "Clean trades, messages that are none, and which trades are held.",
    "gold": "Bars, price statistics and alerts.",
    OPERATIONS: "Checkpoints of the jobs.",
}
_READ_BY_ANALYSTS = ("silver", "gold")
_ENGINEERS_MAY = (
    "USE CATALOG, USE SCHEMA, CREATE SCHEMA, CREATE TABLE, CREATE VOLUME, SELECT, MODIFY, READ VOLUME, WRITE VOLUME, "
    "MANAGE"  # so that each of them may change what another made
)


def create_table(table: Table, name: str, properties: Mapping[str, str] | None = None) -> str:
    """The statement that creates `table` unless it exists.

    `name`: the name in SQL, such as `` `cat`.`gold`.`bars` `` or ``delta.`/lake/gold/bars` ``. `properties`: table
    properties on top of the contract's.
    """
    columns = ",\n".join(f"  {_column(column)}" for column in table.columns)
    days = f"\nPARTITIONED BY ({_listed(table.partition_by)})" if table.partition_by else ""
    pairs = {**table.properties, **(properties or {})}
    settings = ",\n".join(f"  {_text(key)} = {_text(value)}" for key, value in pairs.items())
    return (
        f"CREATE TABLE IF NOT EXISTS {name} (\n{columns}\n)\nUSING DELTA{days}\n"
        f"COMMENT {_text(table.comment)}\nTBLPROPERTIES (\n{settings}\n)"
    )


def catalog_statements(
    catalog: str, engineers: str | None = None, analysts: str | None = None, managed_location: str | None = None
) -> list[str]:
    """All statements for Unity Catalog, in order.

    `engineers` and `analysts`: groups (or users, or service principals) that get rights; None: no grants.
    `managed_location`: URL where the catalog keeps its tables; None: the metastore's location.
    """
    location = f"\nMANAGED LOCATION {_text(managed_location)}" if managed_location else ""
    volumes = [
        f"CREATE VOLUME IF NOT EXISTS {quoted(catalog, OPERATIONS, name)}\nCOMMENT {_text(comment)}"
        for name, comment in VOLUMES.items()
    ]
    keys = []  # for readers: Unity Catalog does not enforce them
    for table in TABLES:
        alter = f"ALTER TABLE {table_name(catalog, table)}"
        key = f"CONSTRAINT {quoted(f'{table.name}_key')} PRIMARY KEY ({_listed(table.key)})"
        keys += [f"{alter} DROP PRIMARY KEY IF EXISTS", f"{alter} ADD {key}"]
    return [
        f"CREATE CATALOG IF NOT EXISTS {quoted(catalog)}{location}\nCOMMENT 'CryptoPulse: every trade, once.'",
        *create_schemas(catalog),
        *volumes,
        *create_tables(catalog),
        *keys,
        *grants(catalog, engineers, analysts),
    ]


def create_schemas(catalog: str) -> list[str]:
    """The statements that create the schemas."""
    return [
        f"CREATE SCHEMA IF NOT EXISTS {quoted(catalog, name)}\nCOMMENT {_text(comment)}"
        for name, comment in _SCHEMAS.items()
    ]


def create_tables(catalog: str) -> list[str]:
    """The statements that create the tables, upstream before downstream."""
    return [create_table(table, table_name(catalog, table)) for table in TABLES]


def grants(catalog: str, engineers: str | None = None, analysts: str | None = None) -> list[str]:
    """The statements that let `engineers` read and write everything and `analysts` read silver and gold (Unity
    Catalog only)."""
    statements = []
    if engineers:
        statements.append(f"GRANT {_ENGINEERS_MAY} ON CATALOG {quoted(catalog)} TO {quoted(engineers)}")
    if analysts:
        statements.append(f"GRANT USE CATALOG ON CATALOG {quoted(catalog)} TO {quoted(analysts)}")
        statements += [
            f"GRANT USE SCHEMA, SELECT ON SCHEMA {quoted(catalog, schema)} TO {quoted(analysts)}"
            for schema in _READ_BY_ANALYSTS
        ]
    return statements


def table_name(catalog: str, table: Table) -> str:
    """The table's name in SQL, catalog included."""
    return quoted(catalog, table.schema, table.name)


def quoted(*parts: str) -> str:
    """A name in SQL, with its parts quoted."""
    return ".".join("`" + part.replace("`", "``") + "`" for part in parts)


def _column(column: Column) -> str:
    needed = "" if column.nullable else " NOT NULL"
    return f"{quoted(column.name)} {column.type}{needed} COMMENT {_text(column.comment)}"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(quoted(name) for name in names)


def _text(value: str) -> str:
    """A SQL text literal. Spark joins adjacent literals, so a quote is escaped, not doubled."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
