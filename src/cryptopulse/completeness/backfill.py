"""The command `backfill`: history into the log, and into the tables when no pipeline does that already."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime

import pyarrow as pa
import structlog

from cryptopulse import pipeline
from cryptopulse.completeness.history import Filled, Plan, fill, plan
from cryptopulse.completeness.tables import known_ids
from cryptopulse.errors import LakeBusy, LogFull, TransientError
from cryptopulse.feed.rate_limit import TokenBucket
from cryptopulse.feed.rest import Page, RestClient
from cryptopulse.intervals import Intervals
from cryptopulse.log import Log
from cryptopulse.retry import Backoff
from cryptopulse.settings import Settings

REQUESTS_PER_SECOND = 7
"""Of the ten that one address may make; the others are left to the producer, which heals what is newer."""

_STORE_EVERY_PAGES = 200  # some 30 MB of log, and a batch of 200,000 trades
_PAUSE_MAX_S = 5.0
_PAUSES_MAX = 30  # of up to 5 s, for a pipeline that is far behind to make room in the log

_logger = structlog.get_logger()

Planned = Callable[[Plan], None]
Progress = Callable[[int, int], None]


class Backfill:
    """History of one lake. The log may be appended to by a producer at the same time."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Whether a pipeline works on the lake is found out when there is something to store."""
        self._settings = settings
        self._log = log
        self._unstored_pages = 0
        self.stored = True
        """Whether the tables hold what was fetched; if not, the pipeline that runs, or the next one, stores it."""

    async def run(
        self, product: str, start: datetime, end: datetime | None, planned: Planned, progress: Progress
    ) -> tuple[Plan, Filled]:
        """Fetches the trades of `product` from `start` on and before `end` (UTC; None: until now).

        `planned` is told what there is to do, `progress` (ids done, ids to fetch). Raises ConfigurationError when there
        is no such product, and what the log and the tables raise.
        """
        self._store()  # what an earlier backfill left in the log counts as held
        async with RestClient(self._settings.feed.rest_url, allowance=self._settings.rest_allowance) as rest:
            pages = _Paced(rest)
            wanted = await plan(pages, product, start, end, self._held(product))
            planned(wanted)
            filled = await fill(pages, wanted, self._keep, progress)
        await asyncio.to_thread(self._store)
        return wanted, filled

    def _held(self, product: str) -> Intervals:
        """What need not be asked for: what silver holds, and what pages proved absent."""
        known = known_ids(self._settings.location)
        return Intervals([*known.held.get(product, ()), *known.absent.get(product, ())])

    async def _keep(self, messages: pa.Table) -> None:
        await asyncio.to_thread(self._append, messages)
        self._unstored_pages += messages.num_rows
        if self._unstored_pages >= _STORE_EVERY_PAGES:
            await asyncio.to_thread(self._store)

    def _append(self, messages: pa.Table) -> None:
        """Waits for room in the log, which a pipeline makes; but not for ever."""
        backoff = Backoff(longest_s=_PAUSE_MAX_S)
        for _ in range(_PAUSES_MAX):
            try:
                self._log.append(messages)
            except (LogFull, TransientError) as error:
                pause_s = backoff.next_pause()
                _logger.warning("waiting_for_log", error=str(error), retry_in_s=round(pause_s, 2))
                self._store()
                time.sleep(pause_s)
            else:
                return
        self._log.append(messages)

    def _store(self) -> None:
        """Brings the log into the tables, unless a pipeline does."""
        self._unstored_pages = 0
        self.stored = False
        if self._settings.processing.engine != "embedded":
            return
        try:
            pipeline.drain(self._settings, self._log, lambda _done, _total: None)
        except LakeBusy:
            return
        self.stored = True


class _Paced:
    """The REST interface, asked by this process no more often than `REQUESTS_PER_SECOND`."""

    def __init__(self, rest: RestClient) -> None:
        self._rest = rest
        self._bucket = TokenBucket(per_second=REQUESTS_PER_SECOND, burst=REQUESTS_PER_SECOND)

    async def trades(self, product: str, *, after: int | None, limit: int) -> Page:
        """See `cryptopulse.completeness.history.TradePages`."""
        await self._bucket.take()
        return await self._rest.trades(product, after=after, limit=limit)
