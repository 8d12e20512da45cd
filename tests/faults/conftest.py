"""Fixtures of the fault tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tally import TALLY

_SEED = os.environ.pop("CRYPTOPULSE_TEST_SEED", None)  # no setting of the program, which would refuse it


@pytest.fixture(autouse=True)
def _tally(record_property: Callable[[str, object], None]) -> Iterator[None]:
    TALLY.clear()
    yield
    for name, count in TALLY.items():
        record_property(name, count)


@pytest.fixture
def seed() -> int:
    """What a test draws from; printed, so that CRYPTOPULSE_TEST_SEED can repeat it."""
    chosen = time.time_ns() % 1_000_000 if _SEED is None else int(_SEED)
    print(f"CRYPTOPULSE_TEST_SEED={chosen}")
    return chosen


@pytest.fixture(scope="session")
def interposer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """interposer.c as a library for LD_PRELOAD; skips where it can't be built."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux") or compiler is None:
        pytest.skip("needs Linux and a C compiler (cc or gcc)")
    library = tmp_path_factory.mktemp("interposer") / "interposer.so"
    source = Path(__file__).with_name("interposer.c")
    command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o", library, source, "-ldl", "-lpthread"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"interposer.c can't be built here: {built.stderr.splitlines()[0]}")
    return library
