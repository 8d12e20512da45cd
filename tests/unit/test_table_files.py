"""DuckDB's threads share an open file: what one of them reads must not depend on where another one is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cryptopulse.lake.table_files import TableFiles

CONTENT = bytes(range(256)) * 8


def test_each_thread_reads_from_its_own_position(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(CONTENT)
    with TableFiles({"lake://t/part": str(tmp_path / "part")}).open("lake://t/part") as file:
        assert (file.seek(100), file.tell()) == (100, 100)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(file.tell).result() == 0
            assert other.submit(file.seek, -300, 2).result() == len(CONTENT) - 300
            assert file.read(3) == CONTENT[100:103]
            assert other.submit(file.read).result() == CONTENT[-300:]
        assert (file.seek(-1, 1), file.read(5), file.tell()) == (102, CONTENT[102:107], 107)
        file.seek(len(CONTENT) + 10)
        assert file.read(5) == b""


def test_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(CONTENT)
    with pytest.raises(PermissionError):
        TableFiles({"lake://t/part": str(tmp_path / "part")}).open("lake://t/part", "wb")
