"""A stretch of time, cut into slices of about as many rows as wanted: ordered reading that neither opens nor holds all.

Sorting a large table by time would read all of it, also for the first thousand rows. Its files say which times they
hold, and so about how many rows lie between two moments. One slice is read and sorted after the other, and a reader who
has enough stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from cryptopulse.lake.files import TIME_MAX_US, Files

ROWS_MAX = 2_000_000
"""Rows of a slice when all are wanted: some 300 MB while they are sorted."""
_ROWS_MIN = 50_000  # fewer cost as much: what takes the time is opening files
_GROWTH = 4  # a slice had too few rows of the product wanted: the next one looks at this many times as many


def slices(files: Files, first_us: int, end_us: int, step_us: int, rows: int | None) -> Iterator[tuple[int, int]]:
    """Consecutive (start, end) in [first_us, end_us), µs UTC, in order; both are multiples of `step_us`.

    The first slice is cut for `rows` rows, those after it for more and more. None: all rows are wanted.
    """
    start, stop = _outermost(files, first_us, end_us, step_us)
    expect = _expectation(files)
    target = ROWS_MAX if rows is None else max(2 * rows, _ROWS_MIN)
    while start < stop:
        end = start + _steps(lambda end: expect(start, end), start, stop, step_us, target)  # noqa: B023 - called here
        yield start, min(end, stop)
        start, target = end, min(target * _GROWTH, 2 * ROWS_MAX)


def slices_back(files: Files, first_us: int, end_us: int, step_us: int, rows: int | None) -> Iterator[tuple[int, int]]:
    """As `slices`, from the newest to the oldest."""
    start, stop = _outermost(files, first_us, end_us, step_us)
    expect = _expectation(files)
    target = ROWS_MAX if rows is None else max(2 * rows, _ROWS_MIN)
    while start < stop:
        length = _steps(lambda end: expect(start + stop - end, stop), start, stop, step_us, target)  # noqa: B023
        yield max(stop - length, start), stop
        stop, target = stop - length, min(target * _GROWTH, 2 * ROWS_MAX)


def _outermost(files: Files, first_us: int, end_us: int, step_us: int) -> tuple[int, int]:
    """The least stretch with all rows of `files` in [first_us, end_us), widened to whole steps."""
    if not files.actions.num_rows:
        return 0, 0
    start = max(first_us, int(files.first_us.min()), 0) // step_us * step_us
    end = min(end_us, int(files.last_us.max()) + 1, TIME_MAX_US)
    return start, -(-end // step_us) * step_us


def _expectation(files: Files) -> Callable[[int, int], float]:
    """About how many rows lie between two moments, by taking each file's as spread evenly."""
    low, high = files.first_us.astype(float), files.last_us.astype(float) + 1
    density = np.maximum(files.counts, 0) / (high - low)

    def expect(start: int, end: int) -> float:
        overlap = np.minimum(high, end) - np.maximum(low, start)
        return float((np.maximum(overlap, 0) * density).sum())

    return expect


def _steps(expect: Callable[[int], float], start: int, stop: int, step_us: int, target: int) -> int:
    """The shortest length, in whole steps, of a slice from `start` in which `target` rows are expected."""
    low, high = 1, (stop - start) // step_us
    while low < high:
        middle = (low + high) // 2
        if expect(start + middle * step_us) >= target:
            high = middle
        else:
            low = middle + 1
    return low * step_us
