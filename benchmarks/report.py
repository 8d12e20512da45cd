"""Shows the tables: on the terminal, as Markdown, as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.results import Results, targets_of
from benchmarks.tables import Table


def show(tables: Sequence[Table], console: Console) -> None:
    """Prints `tables`."""
    for table in tables:
        shown = RichTable(
            title=table.title,
            title_justify="left",
            title_style="bold",
            caption=Text(table.note) if table.note else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_header=any(table.columns),
        )
        plain = not any(table.columns)
        for number, column in enumerate(table.columns):
            shown.add_column(column, justify="left" if number == 0 or plain else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        console.print(shown)


_STYLES = {"met": "green", "MISSED": "bold red"}


def markdown(tables: Sequence[Table]) -> str:
    """`tables` as Markdown, for docs/benchmarks.md."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    plain = not any(table.columns)
    rule = ["---" if number == 0 or plain else "---:" for number in range(len(table.columns))]
    lines = [table.columns, rule, *table.rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = f"\n{table.note}\n" if table.note else ""
    return f"### {table.title}\n\n{body}\n{note}"


def write_json(results: Results, path: Path) -> None:
    """All figures, and the targets with what was reached, into `path`."""
    targets = [{**asdict(target), "met": target.met} for target in targets_of(results)]
    path.write_text(json.dumps({**asdict(results), "targets": targets}, indent=2) + "\n")
