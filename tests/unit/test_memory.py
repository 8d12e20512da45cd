"""Long-running processes return memory that they have freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

_FREED_IN_PIECES = """
import psutil
from cryptopulse.deployment import return_freed_memory
pieces = [bytearray(4096) for _ in range(20_000)]
kept = pieces[::100]
del pieces
before = psutil.Process().memory_info().rss
return_freed_memory()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such function")
def test_memory_freed_between_pieces_in_use_goes_back_to_the_system() -> None:
    said = subprocess.run([sys.executable, "-c", _FREED_IN_PIECES], capture_output=True, text=True, check=True)
    assert int(said.stdout) > 60_000_000
