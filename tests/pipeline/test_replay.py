"""Replaying a recording: all of it or nothing."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.tables import BRONZE, SILVER
from cryptopulse.replay import replay
from support import Lake, Trade

LINES = [bytes(Trade("BTC-USD", number).match()["body"]) for number in range(1, 11)]


def replayed(lake: Lake, file: Path, batch_messages: int = 2) -> dict[str, object]:
    return replay(lake.settings, lake.log, file, batch_messages, lambda _done, _total: None)


@pytest.mark.parametrize("broken", [1, 5, 9])
def test_a_broken_line_leaves_nothing_and_the_next_try_doubles_nothing(lake: Lake, tmp_path: Path, broken: int) -> None:
    file = tmp_path / "recording.jsonl"
    file.write_bytes(b"\n".join([*LINES[:broken], b"oops", *LINES[broken:]]) + b"\n")
    first = lake.log.bounds(0)
    with pytest.raises(ConfigurationError, match=f"line {broken + 1} "):
        replayed(lake, file)
    assert lake.log.bounds(0) == first
    file.write_bytes(b"\n".join(LINES) + b"\n")
    result = replayed(lake, file)
    assert (result["messages"], result["trades"], result["duplicates"]) == (10, 10, 0)
    assert [row["body"] for row in lake.rows(BRONZE)] == LINES


@pytest.mark.parametrize("pack", [gzip.compress, lambda text: gzip.compress(text)[:-9]], ids=["line", "end"])
def test_a_compressed_recording_that_is_not_whole_leaves_nothing(
    lake: Lake, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / "recording.jsonl.gz"
    file.write_bytes(pack(b"\n".join([*LINES * 3000, b"oops", *LINES])))
    first = lake.log.bounds(0)
    with pytest.raises(ConfigurationError, match=r"line 30001 |can't be read"):
        replayed(lake, file)
    assert lake.log.bounds(0) == first
    assert not lake.folder(BRONZE).exists()


@pytest.mark.parametrize("size", [1, 3, 7, 10, 50_000])
def test_how_many_messages_share_a_batch_changes_no_row(lake: Lake, tmp_path: Path, size: int) -> None:
    file = tmp_path / "recording.jsonl"
    file.write_bytes(b"\n".join(LINES) + b'\n{"type":"mat')
    assert replayed(lake, file, size)["trades"] == 10
    assert [row["trade_id"] for row in lake.rows(SILVER)] == list(range(1, 11))
    assert {path.name for path in lake.settings.state_dir.iterdir()} >= {"log.db"}
    assert not [path for path in lake.settings.state_dir.iterdir() if path.name.startswith("tmp")]


def test_a_recording_comes_through_standard_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cryptopulse", "replay", "-", "--lake", str(tmp_path / "lake"), "--json"]
    packed = gzip.compress(b"\r\n".join(LINES))
    done = subprocess.run(command, input=packed, capture_output=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["trades"] == 10
