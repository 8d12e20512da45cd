"""The audit is independent: it shares no code with what it checks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cryptopulse.audit as package

MODULES = sorted(Path(package.__file__).parent.glob("*.py"))
ALLOWED = {
    "cryptopulse.errors": None,
    "cryptopulse.text": {"decimal_text", "ids_text", "parse_trade_time"},
    "cryptopulse.lake.storage": {"delta_table", "file_system", "storage"},  # how to get there, and what storages say
    "cryptopulse.lake.location": None,
    "cryptopulse.lake.products": {
        "as_written",
        "invalid_product_id",
        "is_product_id",
        "is_symbol",
    },  # what a person asks
    "cryptopulse.feed.rest": {"RestClient"},
    "cryptopulse.venues": {"Candle"},
    "cryptopulse.retry": None,
}


def imports(module: Path) -> Iterator[tuple[str, str]]:
    """What a module takes from where."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_no_module_of_the_audit_takes_anything_from_the_pipeline(module: Path) -> None:
    for source, name in imports(module):
        if not source.startswith("cryptopulse") or source.startswith("cryptopulse.audit"):
            continue
        assert source in ALLOWED, f"{module.name} imports {source}"
        names = ALLOWED[source]
        assert names is None or name in names, f"{module.name} takes {name} from {source}"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_no_statement_of_the_pipeline_is_read(module: Path) -> None:
    assert "read_sql" not in module.read_text()
    assert ".sql(" not in module.read_text().replace("self._db.sql(", "")
