"""`ddl`: the statements that make the tables in a Unity Catalog, printed or run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cryptopulse.commands.common import Config, settings_from


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
    if run:
        _run(statements, catalog, config)
    else:
        typer.echo(";\n\n".join(statements) + ";")


def _run(statements: list[str], catalog: str, config: Path | None) -> None:
    from cryptopulse.errors import ConfigurationError

    settings = settings_from(None, config)
    try:
        from pyspark.errors import PySparkException

        from cryptopulse.engine.spark.session import spark_session
    except ImportError as error:
        raise ConfigurationError(
            "--run needs Spark: run it on Databricks, or print the SQL and run that there."
        ) from error
    session = spark_session(settings)
    if catalog in {row[0] for row in session.sql("SHOW CATALOGS").collect()}:
        statements = statements[1:]  # who may not create catalogs may not even ask for one that exists
    for statement in statements:
        first_line = statement.splitlines()[0]
        try:
            session.sql(statement)
        except PySparkException as error:
            why = str(error).strip().splitlines()[0]
            raise ConfigurationError(f"{first_line.removesuffix(' (')}: {why}") from error
        typer.echo(first_line.removesuffix(" ("))
