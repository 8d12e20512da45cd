"""Long-running processes return memory that they have freed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cryptopulse import deployment

_FREED_IN_PIECES = """
import psutil
from cryptopulse.deployment import FreedMemory
freed = FreedMemory()
pieces = [bytearray(4096) for _ in range(20_000)]
kept = pieces[::100]
del pieces
before = psutil.Process().memory_info().rss
freed.return_it()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such function")
def test_memory_freed_between_pieces_in_use_goes_back_to_the_system() -> None:
    said = subprocess.run([sys.executable, "-c", _FREED_IN_PIECES], capture_output=True, text=True, check=True)
    assert int(said.stdout) > 60_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such function")
def test_nothing_is_done_until_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    resident, calls = [100 << 20], []
    monkeypatch.setattr(deployment, "_resident_bytes", lambda: resident[0])
    freed = deployment.FreedMemory()
    monkeypatch.setattr(freed, "_trim", calls.append)
    for megabytes, expected in ((100, 1), (107, 1), (109, 2), (60, 2), (67, 2), (69, 3)):
        resident[0] = megabytes << 20
        freed.return_it()
        assert len(calls) == expected, megabytes
