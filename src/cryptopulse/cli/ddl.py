"""`ddl`: the statements that make the tables in a Unity Catalog, printed or run."""

from __future__ import annotations

from typing import Annotated

import typer

from cryptopulse.cli.options import Config, settings_from


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command(epilog="Example: cryptopulse ddl --catalog market --engineers data-engineers > market.sql")(ddl)


def ddl(
    catalog: Annotated[
        str,
        typer.Option(metavar="NAME", help="The catalog that holds the schemas bronze, silver, gold and operations."),
    ] = "cryptopulse_catalog",
    engineers: Annotated[str | None, typer.Option(metavar="GROUP", help="Who may read and write everything.")] = None,
    analysts: Annotated[str | None, typer.Option(metavar="GROUP", help="Who may read silver and gold.")] = None,
    managed_location: Annotated[
        str | None, typer.Option(metavar="URL", help="Where the catalog keeps its tables. [default: the metastore's]")
    ] = None,
    run: Annotated[bool, typer.Option("--run", help="Run them in this machine's Spark, on Databricks.")] = False,
    config: Config = None,
) -> None:
    """Print the SQL that makes catalog, schemas, volume, tables, keys and grants on Databricks; may be run again."""
    from cryptopulse.lake.ddl import catalog_statements

    statements = catalog_statements(catalog, engineers or None, analysts or None, managed_location or None)
    if not run:
        typer.echo(";\n\n".join(statements) + ";")
        return

    from cryptopulse.errors import ConfigurationError
    from cryptopulse.lake.ddl import quoted

    settings = settings_from(None, config)
    try:
        from pyspark.errors import PySparkException

        from cryptopulse.engine.spark.session import spark_session
    except ImportError as error:
        raise ConfigurationError(
            "--run needs Spark: run it on Databricks, or print the SQL and run that there."
        ) from error
    session = spark_session(settings)
    keyed = []
    if catalog in {row[0] for row in session.sql("SHOW CATALOGS").collect()}:
        statements = statements[1:]  # without the right to create catalogs it fails even if the catalog exists
        # Only Unity Catalog has it. Elsewhere Spark would log the refused query; a statement below fails in one line.
        if "information_schema" in {row[0] for row in session.sql(f"SHOW SCHEMAS IN {quoted(catalog)}").collect()}:
            keyed = session.sql(
                f"SELECT table_schema, table_name FROM {quoted(catalog)}.information_schema.table_constraints "  # noqa: S608
                "WHERE constraint_type = 'PRIMARY KEY'"
            ).collect()
    # Existing keys stay: recreating one takes it from readers for a moment, and needs rights that users may lack.
    for schema, name in keyed:
        table = f"ALTER TABLE {quoted(catalog, schema, name)} "
        statements = [statement for statement in statements if not statement.startswith(table)]
    for statement in statements:
        first_line = statement.splitlines()[0]
        try:
            session.sql(statement)
        except PySparkException as error:
            why = str(error).strip().splitlines()[0]
            raise ConfigurationError(f"{first_line.removesuffix(' (')}: {why}") from error
        typer.echo(first_line.removesuffix(" ("))
