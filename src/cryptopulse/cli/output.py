"""What commands print: JSON, tables, progress."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal

import typer

from cryptopulse.text import decimal_text


def print_json(value: object) -> None:
    """Prints `value` as indented JSON. Times, decimals, bytes, and numbers that JSON lacks (`NaN`, `Infinity`) become
    text."""

    def as_text(value: object) -> str:
        return value.isoformat() if isinstance(value, datetime) else cell_text(value)

    def finite(value: object) -> object:
        if isinstance(value, dict):
            return {name: finite(part) for name, part in value.items()}
        if isinstance(value, list):
            return [finite(part) for part in value]
        return json.dumps(value) if isinstance(value, float) and not math.isfinite(value) else value

    sys.stdout.write(json.dumps(finite(value), indent=2, default=as_text) + "\n")


def cell_text(value: object) -> str:
    """One value of a printed table: decimals without trailing zeros, bytes decoded as UTF-8."""
    if isinstance(value, Decimal):
        return decimal_text(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: frozenset[str] = frozenset()
) -> None:
    """Prints a table. `numbers`: the columns to align right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # In a file or pipe only tables wider than 1,000 characters are folded.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell_text(value)) for value in row))
    with console.capture() as capture:
        console.print(table)
    sys.stdout.writelines(line.rstrip() + "\n" for line in capture.get().strip("\n").splitlines())


def print_conflicts(trades: int) -> None:
    """Prints a line about trades that came again with other content, if there are any."""
    if trades:
        came = "trade" if trades == 1 else "trades"
        typer.echo(
            f"{trades:,} {came} came again with other content (first copies kept; see silver.quarantined_messages)"
        )


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function to call with (done, total). Draws on standard error, and only if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
