"""What each room of the code may import: the table in docs/architecture.md, compared with the imports themselves."""

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


def named(cell: str) -> set[str]:
    return set(re.findall(r"`([a-z_/]+(?:/|\.py))`", cell))


def rooms_of_the_table() -> tuple[dict[str, set[str]], set[str]]:
    """By room (`serve/api/`, `retry.py`) the rooms that it may import; and those that everybody may."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("## What each room may touch")[1].split("\n\n")[2]
    rows = [line.split("|") for line in table.splitlines()[2:]]
    shared = next(named(row[1]) for row in rows if "`errors.py`" in row[1])
    return {room: named(row[4]) for row in rows for room in named(row[1])}, shared


ALLOWED, SHARED = rooms_of_the_table()


def room_of(module: str) -> str:
    """The innermost room of the table that holds a module, as in `serve.api.app`."""
    path = MODULES[module].relative_to(SOURCE).as_posix()
    found = [room for room in ALLOWED if path == room or (room.endswith("/") and path.startswith(room))]
    assert found, f"{path} is in no room of docs/architecture.md"
    return max(found, key=len)


def module_of(name: str) -> str | None:
    """The module behind `name`, as in `serve.api` or "" (the package itself); None when it is none of ours."""
    return next((module for module in (name, f"{name}.__init__".lstrip(".")) if module in MODULES), None)


def imports() -> dict[str, set[str]]:
    """By room the other rooms that its modules import, also within functions."""
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
                if target and (room := room_of(target)) != room_of(module):
                    found[room_of(module)].add(room)
    return found


IMPORTS = imports()


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_what_the_table_says_and_nothing_else(room: str) -> None:
    assert IMPORTS[room] - SHARED == ALLOWED[room]


def test_no_room_imports_one_that_imports_it() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of rooms: {' → '.join(error.args[1])}")
