"""What the pages' scripts compute without a page: candles, axes, formats. Node's own runner tests it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_what_scripts_compute_is_right() -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("Node is not installed; on Debian or Ubuntu: apt install nodejs")
    command = [node, "--test", "tests/javascript/"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
