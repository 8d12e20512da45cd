"""Messages for lakes that are to be harmed, and what a lake holds of them to which nothing happened."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

from support import Lake, Message, Trade, at, message, page

Contents = dict[str, list[dict[str, object]]]


def stream(start: int, count: int = 5) -> list[Message]:
    """`count` trades of a busy product with a crash in every third, as many of a sparse one, and one bad message."""
    trades = [
        Trade("BTC-USD", n, at(n * 20.0), str(100 - (n % 3) * 2), side="BUY" if n % 2 else "SELL")
        for n in range(start, start + count)
    ]
    sparse = [Trade("ETH-USD", n * 100, at(n * 1000.0)) for n in range(start, start + count)]
    return [*(trade.match() for trade in trades), message(f"junk {start}".encode()), page(sparse)]


@functools.cache
def untouched(count: int) -> Contents:
    """What the tables hold of the first `count` trades, in streams of five. Made once; it depends on nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(Path(folder) / "lake")
        for start in range(1, count, 5):
            lake.append(stream(start))
        lake.drain()
        lake.close()
        return lake.contents()


def filled_in(folder: Path, count: int) -> Path:
    """Fills the lake `lake` of `folder` with the first `count` trades, a drain for every five; where it lies."""
    lake = Lake(folder / "lake")
    for start in range(1, count, 5):
        lake.take_in(stream(start))
    lake.close()
    return lake.path


def copied(lake: Path, folder: Path) -> Lake:
    """A copy of a closed lake, `lake` in `folder`: quicker than filling another, and just like it."""
    shutil.copytree(lake, folder / "lake")
    return Lake(folder / "lake")
