"""Runs queries in threads of a pool, and reads a whole page before it is sent.

So a client that reads slowly does not block other queries, and a response that has begun can't fail any more. A page
is bounded by `limit`: some 20 MB.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc
import structlog

from cryptopulse.errors import CryptoPulseError, LakeUnreachable, QueryStopped, RowsGone, TransientError
from cryptopulse.lake.dataset import Judge, Lake
from cryptopulse.lake.files import Files
from cryptopulse.lake.follower import NewestVersions
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.table_rows import TableRows
from cryptopulse.lake.tables import ALERTS, COVERAGE
from cryptopulse.serve.api import paging
from cryptopulse.serve.api.document import stored_columns
from cryptopulse.serve.api.formats import RowsPage
from cryptopulse.serve.api.parameters import PageParams, RowsParams
from cryptopulse.serve.http.problems import Problem
from cryptopulse.serve.http.query_pool import QueryPool, Result, query_timeout
from cryptopulse.settings.serve import ServeSettings

_log = structlog.get_logger()

_MEMORY_MAX_MB = 512  # of all queries together; beyond it they spill to disk
_PRODUCTS_FRESH_S = 1.0  # the products are read at most this often
_THREADS = 2  # of all queries together: the pipeline may be on the same machine
_RETRY_AFTER_S = 5
_SENDING_MAX = 256 * 1024 * 1024  # bytes of pages that are read and not sent yet: slow clients hold them


class Service:
    """Runs the API's queries over one lake."""

    def __init__(self, location: LakeLocation, settings: ServeSettings, judge: Judge | None = None) -> None:
        """Opens nothing yet; the lake need not be there. `judge`: see `Lake`."""
        self.versions = NewestVersions(location)
        self.lake = Lake(
            location,
            memory_max_mb=_MEMORY_MAX_MB,
            threads=_THREADS,
            timeout_s=settings.query_timeout_s,
            versions=self.versions,
            judge=judge,
        )
        self.queries = QueryPool(settings.queries_at_once, settings.query_timeout_s)
        self.monitoring = QueryPool(1, settings.query_timeout_s)
        """For health checks, metrics and alerts of event streams, so that visitors' queries can't delay them."""
        self._products_lock = Lock()
        self._products: pa.Table | None = None
        self._symbols: frozenset[str] = frozenset()
        self._products_at_s = 0.0
        self._alerts_lock = asyncio.Lock()
        self._alerts: tuple[int, pa.Table] | None = None
        self._timeout_s = settings.query_timeout_s
        self._sending = 0

    def reserve(self, size: int) -> None:
        """Counts a page of `size` bytes until `release`. Raises Problem when too many bytes are being sent."""
        if self._sending and self._sending + size > _SENDING_MAX:
            headers = {"Retry-After": str(_RETRY_AFTER_S)}
            raise Problem(503, "busy", "Too many responses are being sent; retry later.", headers=headers)
        self._sending += size

    def release(self, size: int) -> None:
        """Ends the count of a page of `size` bytes: it was sent, or its client is gone."""
        self._sending -= size

    def close(self) -> None:
        """Closes the pools and the lake."""
        self.queries.close()
        self.monitoring.close()
        self.lake.close()

    async def page(self, params: RowsParams, rows_of: Callable[[Lake], TableRows]) -> RowsPage:
        """The page that `params` asks for, of the rows that `rows_of` returns. Raises Problem."""

        def read() -> RowsPage:
            rows = rows_of(self.lake if params.moment is None else self.lake.as_of(params.moment))
            if params.order == "desc":
                rows = rows.reversed()
            if params.cursor is not None:
                types = (rows.selection.table.arrow_schema.field(name).type for name in rows.order)
                kinds = [
                    datetime if pa.types.is_timestamp(kind) else str if pa.types.is_string(kind) else int
                    for kind in types
                ]
                rows = rows.after(*paging.decode_cursor(params.query, params.cursor, kinds))
                _check_exists(rows.files)
            self._check_symbols(params.symbols)
            found = rows.limit(params.limit + 1).arrow()
            if found.num_rows <= params.limit:
                return RowsPage(found, None)
            kept = found.slice(0, params.limit)
            key = [kept[name][-1].as_py() for name in rows.order]
            return RowsPage(kept, paging.encode_cursor(params.query, key))

        return await self._run(read)

    async def products(self, params: PageParams) -> RowsPage:
        """A page of the products. Raises Problem."""

        def read() -> RowsPage:
            query = paging.query_digest("products")
            found = self._read_products()
            if params.cursor is not None:
                (last,) = paging.decode_cursor(query, params.cursor, [str])
                _check_exists(self.versions.files(COVERAGE))
                found = found.filter(pc.greater(found["symbol"], last))
            kept = found.slice(0, params.limit)
            is_last = kept.num_rows == found.num_rows
            return RowsPage(kept, None if is_last else paging.encode_cursor(query, [kept["symbol"][-1].as_py()]))

        return await self._run(read)

    async def retention(self) -> RowsPage:
        """The tables that have let days go: a handful, on one page. Raises Problem."""
        return await self._run(lambda: RowsPage(self.lake.retention().arrow(), None))

    async def alerts(self, symbols: list[str] | None) -> pa.Table:
        """All alert episodes of `symbols`, read once per version for all listeners. Raises Problem."""

        def read() -> pa.Table:
            self._check_symbols(symbols)
            version = self.versions.files(ALERTS).version
            if self._alerts is None or self._alerts[0] != version:
                self._alerts = version, self.lake.alerts(columns=stored_columns(ALERTS)).arrow()
            table = self._alerts[1]
            return table if symbols is None else table.filter(pc.is_in(table["symbol"], pa.array(symbols)))

        async with self._alerts_lock:  # one at a time, so that a hundred listeners don't fill the queue
            return await self._run(read, self.monitoring)

    def _read_products(self) -> pa.Table:
        """The rows of `Lake.products`, at most a second old. Thread-safe."""
        with self._products_lock:
            now_s = time.monotonic()
            if self._products is None or now_s > self._products_at_s + _PRODUCTS_FRESH_S:
                self._products = self.lake.products().arrow()
                self._symbols = frozenset(self._products["symbol"].to_pylist())
                self._products_at_s = now_s
            return self._products

    def _check_symbols(self, symbols: Sequence[str] | None) -> None:
        """Raises Problem (404) when the lake has no trades of one of `symbols`: it may be mistyped."""
        if symbols is None or self._symbols.issuperset(symbols):  # products are added, but never removed
            return
        self._read_products()
        if unknown := [symbol for symbol in symbols if symbol not in self._symbols]:
            raise Problem(
                404,
                "unknown_product",
                f"Unknown product {unknown[0]}: the lake has no trades of it; GET /api/products lists all.",
                parameters=[("symbol", f"unknown product {symbol}") for symbol in unknown],
            )

    async def _run(self, read: Callable[[], Result], pool: QueryPool | None = None) -> Result:
        """What `read` returns. Raises Problem for errors of the lake."""

        def query() -> Result:
            try:
                try:
                    return read()
                except RowsGone:  # the files were cleaned up after the version was looked up
                    return read()
            except QueryStopped:
                raise query_timeout(self._timeout_s) from None
            except CryptoPulseError as error:
                _log.warning("query_failed", error=str(error))
                passes = isinstance(error, TransientError)
                headers = {"Retry-After": str(_RETRY_AFTER_S)} if passes else {}
                code = "lake_unreachable" if passes else "lake_unusable"
                raise Problem(503, code, str(error), headers=headers) from None

        return await (pool or self.queries).run(query)


def _check_exists(files: Files) -> None:
    """Raises LakeUnreachable when the table of a cursor is gone, for example after a restart without its disk."""
    if files.version < 0:
        raise LakeUnreachable(
            f"Table {files.table.qualified} is gone: was the lake {files.lake} moved since that page?"
        )
