"""Which products the lake knows: for the list of them, and so that a mistyped one is told from one without trades."""

from __future__ import annotations

import time
from collections.abc import Iterable
from threading import Lock

import pyarrow as pa

from cryptopulse.lake.dataset import Lake
from cryptopulse.serve.problems import Problem

_FRESH_S = 1.0  # the products are asked for at most so often, whoever asks


class Catalog:
    """The products of a lake. For several threads."""

    def __init__(self, lake: Lake) -> None:
        """Reads nothing yet."""
        self._lake = lake
        self._lock = Lock()
        self._rows: pa.Table | None = None
        self._symbols: frozenset[str] = frozenset()
        self._read_at_s = 0.0

    def products(self) -> pa.Table:
        """The products by name, as `Lake.products` has them, at most a second old."""
        with self._lock:
            now_s = time.monotonic()
            if self._rows is None or now_s > self._read_at_s + _FRESH_S:
                self._rows = self._lake.products().arrow()
                self._symbols = frozenset(self._rows["symbol"].to_pylist())
                self._read_at_s = now_s
            return self._rows

    def check(self, symbols: Iterable[str] | None) -> None:
        """Raises Problem (404) when the lake holds no trades of one of `symbols`."""
        if symbols is None or self._symbols.issuperset(symbols):  # products come, but don't go
            return
        self.products()
        if unknown := [symbol for symbol in symbols if symbol not in self._symbols]:
            raise Problem(
                404,
                "unknown_product",
                f"There are no trades of {unknown[0]} in this lake; GET /api/products lists what there is.",
                parameters=[("symbol", f"{symbol} is not known") for symbol in unknown],
            )
