"""What the cluster tests need beside Python, and what happens where it is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]
REQUIRED = "CLUSTER_TESTS_REQUIRED"
"""Set to 1 where a missing prerequisite must fail instead of skip: in CI, and in `make test-cluster`."""


def missing(what: str) -> NoReturn:
    """Skips the test and says what is missing; fails it where everything must be there."""
    text = f"{what} is missing; `make cluster` installs what can be installed"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(text)
    pytest.skip(text)


def jars(name: str) -> list[Path]:
    """The jars in `.jars/<name>`, fetched from Maven by coordinates (tests/cluster/jars/<name>.xml)."""
    if shutil.which("java") is None:
        missing("Java 17 or newer")
    found = sorted((Path(os.environ.get("CLUSTER_JARS", ROOT / ".jars")) / name).glob("*.jar"))
    if not found:
        missing(f"The folder .jars/{name}")
    return found
