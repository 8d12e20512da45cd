"""Distributions of latencies: of the last 10 seconds, and of the whole run."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_WINDOW_S = 10.0
_OLDER_MAX = 100  # batches that left the window and are not counted yet
# 100 buckets a decade from 0.01 ms to 1e7 ms: percentiles of the whole run are exact to 2.4 %.
_BUCKETS_A_DECADE = 100
_EDGES = np.logspace(-2, 7, 9 * _BUCKETS_A_DECADE + 1)

Milliseconds = npt.NDArray[np.float64]


def elapsed_ms(since: pa.ChunkedArray, until: pa.ChunkedArray | int) -> Milliseconds:
    """Milliseconds from each of the times `since` (µs UTC) to `until`: also times (µs UTC), or one time in ns UTC."""
    start = since.cast(pa.int64()).to_numpy()
    end = until / 1000 if isinstance(until, int) else until.cast(pa.int64()).to_numpy()
    return np.asarray((end - start) / 1000, dtype=np.float64)


class Latency:
    """The distribution of one hop. One thread adds values, any thread may read it.

    Adding only keeps the values. Batches that leave the window are counted a hundred at a time, because small batches
    come a hundred times a second and are read twice a second.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self._lock = threading.Lock()
        self._window: deque[tuple[float, Milliseconds]] = deque()
        self._older: list[Milliseconds] = []
        self._counts = np.zeros(len(_EDGES) + 1, dtype=np.int64)
        self._max = float("-inf")

    def add(self, values: Milliseconds) -> None:
        """Adds a batch of latencies in ms (negative when clocks differ)."""
        if values.size == 0:
            return
        now = time.monotonic()
        with self._lock:
            self._window.append((now, values))
            while self._window[0][0] < now - _WINDOW_S:
                self._older.append(self._window.popleft()[1])
            if len(self._older) >= _OLDER_MAX:
                self._count_older()

    def lately(self) -> dict[str, float | int | None]:
        """p50, p99 and max (ms) and the number of values (n) of the last 10 seconds."""
        oldest = time.monotonic() - _WINDOW_S
        with self._lock:
            recent = [values for at, values in self._window if at >= oldest]
        if not recent:
            return {"p50": None, "p99": None, "max": None, "n": 0}
        values = np.concatenate(recent)
        p50, p99 = np.percentile(values, [50, 99])
        return {"p50": _rounded(p50), "p99": _rounded(p99), "max": _rounded(values.max()), "n": int(values.size)}

    def overall(self) -> dict[str, float | int | None]:
        """The same since the start; percentiles are exact to 2.4 %."""
        with self._lock:
            self._count_older()
            counts, most = self._counts.copy(), self._max
            recent = [values for _, values in self._window]
        if recent:
            values = np.concatenate(recent)
            counts += _counted(values)
            most = max(most, float(values.max()))
        total = int(counts.sum())
        if total == 0:
            return {"p50": None, "p99": None, "max": None, "n": 0}
        upper = np.append(_EDGES, most)
        cumulative = np.cumsum(counts)
        p50, p99 = (float(upper[np.searchsorted(cumulative, total * share)]) for share in (0.5, 0.99))
        return {"p50": _rounded(p50), "p99": _rounded(p99), "max": _rounded(most), "n": total}

    def _count_older(self) -> None:
        if self._older:
            values = np.concatenate(self._older)
            self._counts += _counted(values)
            self._max = max(self._max, float(values.max()))
            self._older.clear()


def _counted(values: Milliseconds) -> npt.NDArray[np.int64]:
    """How many of `values` lie in each bucket."""
    return np.bincount(np.searchsorted(_EDGES, values), minlength=len(_EDGES) + 1)


def _rounded(value: float) -> float:
    return round(float(value), 2)
