"""What each part of the code may import: the table in docs/architecture.md, compared with the imports themselves."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "cryptopulse"
MODULES = {".".join(file.relative_to(SOURCE).with_suffix("").parts): file for file in SOURCE.rglob("*.py")}


DEFINED = {
    name
    for file in MODULES.values()
    for top in ast.parse(file.read_text(encoding="utf-8")).body
    if isinstance(top, ast.ClassDef | ast.FunctionDef)
    for name in [
        top.name,
        file.stem + "." + top.name,
        *(f"{top.name}.{inner.name}" for inner in getattr(top, "body", []) if isinstance(inner, ast.FunctionDef)),
    ]
}
"""Functions and classes as docs name them: `parse`, `pipeline.process`, `Bronze.store`."""


def named(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z_/]+(?:/|\.py))`", cell))


def parts_of_the_table() -> tuple[dict[str, set[str]], set[str]]:
    """By part (`serve/api/`, `retry.py`) the parts that it may import; and those that everybody may."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## What each part may import")[1].split("\n\n")[2]
    rows = [line.split("|") for line in table.splitlines()[2:]]
    shared = next(named(row[1]) for row in rows if "`errors.py`" in row[1])
    return {part: named(row[4]) for row in rows for part in named(row[1])}, shared


ALLOWED, SHARED = parts_of_the_table()


def part_of(module: str) -> str:
    """The innermost part of the table that holds a module, as in `serve.api.app`."""
    path = MODULES[module].relative_to(SOURCE).as_posix()
    found = [part for part in ALLOWED if path == part or (part.endswith("/") and path.startswith(part))]
    assert found, f"{path} is in no part of docs/architecture.md"
    return max(found, key=len)


def module_of(name: str) -> str | None:
    """The module behind `name`, as in `serve.api` or "" (the package itself); None when it is none of ours."""
    return next((module for module in (name, f"{name}.__init__".lstrip(".")) if module in MODULES), None)


def imports() -> dict[str, set[str]]:
    """By part the other parts that its modules import, also within functions."""
    found = defaultdict(set)
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cryptopulse":
                inner = (node.module or "")[len("cryptopulse.") :]
                submodules = [f"{inner}.{alias.name}".lstrip(".") for alias in node.names]
                names = [name if module_of(name) else inner for name in submodules]
            elif isinstance(node, ast.Import):
                names = [alias.name.removeprefix("cryptopulse.") for alias in node.names]
            for name in names:
                target = module_of(name)
                if target and (part := part_of(target)) != part_of(module):
                    found[part_of(module)].add(part)
    return found


IMPORTS = imports()


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_a_room_imports_what_the_table_says_and_nothing_else(part: str) -> None:
    assert IMPORTS[part] - SHARED == ALLOWED[part]


def test_no_room_imports_one_that_imports_it() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of parts: {' → '.join(error.args[1])}")


def test_the_calls_from_socket_to_gold_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| from … to | functions |")[1].split("\n\n")[0]
    calls = re.findall(r"`([A-Za-z_.]+)`", table)
    assert len(calls) > 20
    assert set(calls) - DEFINED == {"replace"}  # the second of two of one class
