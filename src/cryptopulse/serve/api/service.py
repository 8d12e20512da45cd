"""From a question to its page: asked in a thread of the gate, read as a whole, and only then sent.

So a visitor who reads slowly keeps no query waiting, and an answer that has begun can't fail any more. A page is
bounded by `limit`: some 20 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import pyarrow as pa
import structlog

from cryptopulse.errors import CryptoPulseError, QueryStopped, RowsGone, TransientError
from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.newest import Newest
from cryptopulse.lake.table_rows import TableRows
from cryptopulse.lake.tables import ALERTS
from cryptopulse.serve.api import paging
from cryptopulse.serve.api.catalog import Catalog
from cryptopulse.serve.api.document import stored_columns
from cryptopulse.serve.api.formats import Page
from cryptopulse.serve.api.parameters import PageAsked, RowsAsked
from cryptopulse.serve.gate import Answer, Gate, too_slow
from cryptopulse.serve.problems import Problem
from cryptopulse.settings_serve import ServeSettings

_log = structlog.get_logger()

_MEMORY_MAX_MB = 512  # of all queries together; then they spill to the disk
_THREADS = 2  # of all queries together: the pipeline may be on the same machine
_RETRY_AFTER_S = 5


class Service:
    """Answers questions about one lake."""

    def __init__(self, location: LakeLocation, settings: ServeSettings) -> None:
        """Opens nothing yet; the lake need not be there."""
        self.versions = Newest(location)
        self.lake = Lake(
            location,
            memory_max_mb=_MEMORY_MAX_MB,
            threads=_THREADS,
            timeout_s=settings.query_timeout_s,
            versions=self.versions,
        )
        self.gate = Gate(settings.queries_at_once, settings.query_timeout_s)
        self.watch_gate = Gate(1, settings.query_timeout_s)
        """For what machines ask, so that visitors don't hide a server's state."""
        self._catalog = Catalog(self.lake)
        self._timeout_s = settings.query_timeout_s

    def close(self) -> None:
        """Ends."""
        self.gate.close()
        self.watch_gate.close()
        self.lake.close()

    async def page(self, asked: RowsAsked, rows_of: Callable[[Lake], TableRows]) -> Page:
        """The page of the rows `rows_of` gives, without the columns that only say where a row is kept.

        Raises Problem.
        """
        return await self._ask(lambda: self._page(asked, rows_of))

    async def products(self, asked: PageAsked) -> Page:
        """The page of the products. Raises Problem."""
        return await self._ask(lambda: self._products(asked))

    async def alerts(self, symbols: list[str] | None) -> pa.Table:
        """All alert episodes of `symbols`. Raises Problem."""
        columns = stored_columns(ALERTS)

        def read() -> pa.Table:
            self._catalog.check(symbols)
            return self.lake.alerts(symbols, columns=columns).arrow()

        return await self._ask(read)

    async def _ask(self, read: Callable[[], Answer]) -> Answer:
        def reading() -> Answer:
            with self._telling():
                try:
                    return read()
                except RowsGone:  # cleaned up between our look at the table and the reading
                    return read()

        return await self.gate.ask(reading)

    def _page(self, asked: RowsAsked, rows_of: Callable[[Lake], TableRows]) -> Page:
        self._catalog.check(asked.symbols)
        rows = rows_of(self.lake)
        if asked.order == "desc":
            rows = rows.reversed()
        if asked.cursor is not None:
            kinds = [_python_type(rows.selection.table.arrow_schema.field(name).type) for name in rows.order]
            rows = rows.after(*paging.key_of(asked.question, asked.cursor, kinds))
        found = rows.limit(asked.limit + 1).arrow()
        if found.num_rows <= asked.limit:
            return Page(found, None)
        kept = found.slice(0, asked.limit)
        key = [kept[name][-1].as_py() for name in rows.order]
        return Page(kept, paging.cursor_of(asked.question, key))

    def _products(self, asked: PageAsked) -> Page:
        question = paging.question_of("products")
        found = self._catalog.products()
        if asked.cursor is not None:
            (last,) = paging.key_of(question, asked.cursor, [str])
            found = found.filter(pa.compute.greater(found["symbol"], last))
        kept = found.slice(0, asked.limit)
        is_last = kept.num_rows == found.num_rows
        return Page(kept, None if is_last else paging.cursor_of(question, [kept["symbol"][-1].as_py()]))

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What is wrong with the lake, as a problem."""
        try:
            yield
        except QueryStopped:
            raise too_slow(self._timeout_s) from None
        except CryptoPulseError as error:
            _log.warning("question_failed", error=str(error))
            passes = isinstance(error, TransientError)
            headers = {"Retry-After": str(_RETRY_AFTER_S)} if passes else {}
            raise Problem(503, "lake_unreachable" if passes else "lake_unusable", str(error), headers=headers) from None


def _python_type(kind: pa.DataType) -> type:
    if pa.types.is_timestamp(kind):
        return datetime
    return str if pa.types.is_string(kind) else int
