"""Decides which small files of a table are merged, level by level, so that each row is rewritten only a few times.

A file's size determines its level. When a level of a partition is full, its files are merged into one of a higher
level. So a row is rewritten once per level, however many commits there were, and few files wait in each level.
(Merging all files below a target size, as delta-rs does, rewrites the half-full file in each run.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set

from cryptopulse.store.delta_log import DataFile

Partition = tuple[tuple[str, str], ...]
"""A file's partition columns and their values."""

_KB, _MB = 1 << 10, 1 << 20
_LEVELS = (8 * _KB, 128 * _KB, 2 * _MB, 32 * _MB)  # files above the last one stay as they are
_FAN_IN = 16
_MERGE_BYTES_MAX = 128 * _MB  # per file, and for all merges of one round
_NEWEST_KEPT = 1 / 16  # share of `fresh_max`: these hold rows that are about to be replaced; merging them is in vain


def partition_of(file: DataFile) -> Partition:
    """A file's partition; only files of the same one can be merged."""
    return tuple(file.partition.items())


def merges(files: Iterable[DataFile], fresh_max: int, busy: Set[Partition]) -> list[list[DataFile]]:
    """Groups of `files` (oldest first) to merge now, each into one file.

    `fresh_max`: number of files that fills the lowest level. `busy`: partitions that still grow; in the others two
    files fill a level.
    """
    by_partition: dict[Partition, list[DataFile]] = defaultdict(list)
    for file in files:
        by_partition[partition_of(file)].append(file)
    due, left, newest = [], _MERGE_BYTES_MAX, int(fresh_max * _NEWEST_KEPT)
    for partition, held in by_partition.items():
        is_busy = partition in busy
        levels: list[list[DataFile]] = [[] for _ in _LEVELS]
        for file in held[: len(held) - newest] if is_busy else held:
            level = next((number for number, bound in enumerate(_LEVELS) if file.size < bound), None)
            if level is not None:
                levels[level].append(file)
        for level, waiting in enumerate(levels):
            full = 2 if not is_busy else fresh_max if level == 0 else _FAN_IN
            if len(waiting) < full:
                continue
            group: list[DataFile] = []
            for file in waiting:
                if file.size > left:
                    break
                group.append(file)
                left -= file.size
            if len(group) > 1:
                due.append(group)
    return due
