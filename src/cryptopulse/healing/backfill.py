"""The command `backfill`: history into the log, and into the tables when no pipeline does that already.

Trade ids are dense, so it is known beforehand which trades there are between two moments, and those that the lake holds
are left out: a backfill that was stopped goes on where it was when it is run again. What is missing goes through a work
list as holes do, so a page proves the same here as there. Pages enter the log as they came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import count, islice
from typing import Annotated, NamedTuple, Protocol

import msgspec
import pyarrow as pa
import structlog

from cryptopulse import pipeline
from cryptopulse.errors import LakeBusy, LogFull, NotFetched, TransientError, UnknownProduct
from cryptopulse.feed.rest import RestClient, TradePage, id_of
from cryptopulse.healing.known_ids import known_ids
from cryptopulse.healing.work_list import PAGE_MAX, PageRequest, WorkList
from cryptopulse.intervals import Interval, Intervals
from cryptopulse.log import MESSAGE_SCHEMA, Log
from cryptopulse.retry import Backoff, retrying
from cryptopulse.settings import Settings
from cryptopulse.token_bucket import RateLimiter

REQUESTS_PER_SECOND = 7
"""Of the ten that one address may make; the others are left to the producer, which heals what is newer."""

ATTEMPTS_MAX = 20
"""For one page, some six minutes with the pauses: then the next product has its turn."""

SPAN = PAGE_MAX - 2
"""Ids that one request is for: the trades on either side come along, so that an id that the exchange does not have
stands between two that it has."""

REQUESTS_AT_ONCE = 8
"""So many pages are one append to the log, and wait for each other: the answers take 0.1 to 0.5 s."""

HOLES_AT_ONCE = 1_000
"""Requests that are on the work list at most, of which some wait for the second page that proves an absence."""

UNANSWERED_MAX_S = 60.0
"""Pages that say nothing about some ids are asked for again after growing pauses. When only such ids are left and the
pause would be longer than this, some minute has passed without news."""

_STORE_EVERY_PAGES = 200  # some 30 MB of log, and a batch of 200,000 trades
_PAUSE_MAX_S = 5.0
_PAUSES_MAX = 30  # of up to 5 s, for a pipeline that is far behind to make room in the log
_FIRST_STEP = 1_000  # ids, to learn how fast a product is traded
_NEWEST = 100  # trades to find the newest that can be read among

_logger = structlog.get_logger()

Progress = Callable[[int, int], None]


class TradePages(Protocol):
    """The part of the REST interface that is needed."""

    async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
        """The newest `limit` trades of ids below `after` (None: of all), newest first.

        What may pass has been waited for: raises UnknownProduct, NotFetched, or ConfigurationError.
        """


class PageTrade(NamedTuple):
    """What is known of a trade on a page."""

    trade_id: int
    time: datetime


class _Dated(msgspec.Struct):
    time: Annotated[datetime, msgspec.Meta(tz=True)]


@dataclass(frozen=True)
class Plan:
    """What there is to fetch."""

    product: str
    first_trade_id: int
    last_trade_id: int
    """Less than the first when the exchange has no trade of that time."""
    missing: tuple[Interval, ...]
    """Those of them that the lake does not hold, in order."""

    @property
    def trades(self) -> int:
        """How many trades the exchange has of that time."""
        return max(self.last_trade_id - self.first_trade_id + 1, 0)

    @property
    def to_fetch(self) -> int:
        """How many of them the lake does not hold."""
        return sum(last - first + 1 for first, last in self.missing)


@dataclass(frozen=True)
class Filled:
    """What was fetched."""

    fetched: int
    absent: int
    """Ids that the exchange itself does not have."""


class Backfill:
    """History of one lake. The log may be appended to by a producer at the same time."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Whether a pipeline works on the lake is found out when there is something to store."""
        self._settings = settings
        self._log = log
        self._unstored_pages = 0
        self.stored = True
        """Whether the tables hold what was fetched; if not, the pipeline that runs, or the next one, stores it."""
        self.in_tables = 0
        """How many of the trades that were fetched silver holds, by its coverage; known when they are `stored`."""
        self.conflicts = 0
        """How many trades that this stored were held already with other content."""

    async def run(
        self, product: str, start: datetime, end: datetime | None, planned: Callable[[Plan], None], progress: Progress
    ) -> tuple[Plan, Filled]:
        """Fetches the trades of `product` from `start` on and before `end` (UTC; None: until now).

        `planned` is called with what there is to do, `progress` with (ids done, ids to fetch). Raises UnknownProduct,
        NotFetched when the exchange answers nothing of use again and again (what came before is kept),
        ConfigurationError for a wrong address, and what the log and the tables raise.
        """
        self._store()  # what an earlier backfill left in the log counts as held
        known = known_ids(self._settings.location)
        held = Intervals([*known.held.get(product, ()), *known.absent.get(product, ())])
        async with RestClient(self._settings.feed.rest_url, allowance=self._settings.rest_allowance) as rest:
            pages = _PacedPages(rest, self._settings.feed.backoff_max_s)
            wanted = await plan(pages, product, start, end, held)
            planned(wanted)
            try:
                filled = await fill(pages, wanted, self._keep, progress)
            except (NotFetched, UnknownProduct):
                await asyncio.to_thread(self._store)
                raise
        await asyncio.to_thread(self._store)
        if self.stored:
            stored = Intervals(known_ids(self._settings.location).held.get(product, ()))
            self.in_tables = sum(Intervals(stored.within(*part)).count for part in wanted.missing)
        return wanted, filled

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
            stored = pipeline.drain(self._settings, self._log, lambda _done, _total: None)
        except LakeBusy:
            return
        self.conflicts += stored["conflicts"]  # type: ignore[operator]
        self.stored = True


class _PacedPages:
    """The REST interface, asked by this process no more often than `REQUESTS_PER_SECOND`, and again when that may
    help."""

    def __init__(self, rest: RestClient, pause_max_s: float) -> None:
        self._rest = rest
        self._pause_max_s = pause_max_s
        self._limiter = RateLimiter(per_second=REQUESTS_PER_SECOND, burst=REQUESTS_PER_SECOND)

    async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
        """See TradePages."""

        async def fetch() -> TradePage:
            await self._limiter.acquire()
            return await self._rest.trades(product, after=after, limit=limit)

        def waiting(error: TransientError, pause_s: float) -> None:
            _logger.warning("waiting_for_rest", error=str(error), retry_in_s=round(pause_s, 2))

        try:
            for _ in range(2):  # that there are no trades is also what a server says that lost sight of them
                backoff = Backoff(longest_s=self._pause_max_s)
                page = await retrying(fetch, backoff, waiting, attempts_max=ATTEMPTS_MAX)
                if page.ids:
                    break
        except TransientError as error:
            raise NotFetched(
                f"{product}: the exchange gave no page of its trades in {ATTEMPTS_MAX} attempts, at last: {error}. "
                "What came before is kept; the same command goes on."
            ) from error
        return page


async def plan(rest: TradePages, product: str, start: datetime, end: datetime | None, held: Intervals) -> Plan:
    """The trades of `product` from `start` on and before `end` (UTC; None: until now).

    `held`: the ids that need not be fetched. Raises UnknownProduct for a product without trades, and what `rest` does.
    """
    trades, _ = await _read(rest, product, None, _NEWEST, None)
    if not trades:
        raise UnknownProduct(f"The exchange has no trades of {product}.")
    newest = trades[0]
    last = newest.trade_id if end is None else await _first_id_at(rest, newest, product, end) - 1
    first = await _first_id_at(rest, newest, product, start)
    return Plan(product, first, last, tuple(held.gaps(first, last)))


async def fill(
    rest: TradePages, wanted: Plan, keep: Callable[[pa.Table], Awaitable[None]], progress: Progress
) -> Filled:
    """Fetches what is missing, the newest first; `keep` gets the pages as messages for the log.

    `progress` is called with (ids done, ids to fetch). Raises what `rest` does, after the pages beside it are kept, and
    NotFetched when the exchange's pages say nothing about some ids for a minute.
    """
    work = WorkList()
    start_ns = time.monotonic_ns()
    pieces = (
        (max(first, highest - SPAN + 1), highest)
        for first, last in reversed(wanted.missing)
        for highest in range(last, first - 1, -SPAN)
    )
    while True:
        for first, last in islice(pieces, HOLES_AT_ONCE - work.holes_open):
            work.add(wanted.product, first, last, start_ns, start_ns)
        if not work.ids_missing:
            return Filled(work.ids_fetched, work.ids_absent)
        requests = await _next_requests(work, wanted.product)
        pages = (rest.trades(request.product, after=request.after, limit=request.limit) for request in requests)
        found = await asyncio.gather(*pages, return_exceptions=True)
        now_ns = time.monotonic_ns()
        useful: list[tuple[PageRequest, TradePage]] = []
        for request, page in zip(requests, found, strict=True):
            if isinstance(page, BaseException):
                work.failed(request, now_ns, 0)
            elif work.answered(request, page.ids, now_ns):
                useful.append((request, page))
        if useful:
            columns = [
                pa.repeat(wanted.product, len(useful)),
                pa.array([page.received_ns // 1000 for _, page in useful], MESSAGE_SCHEMA.field("received_time").type),
                pa.repeat("rest", len(useful)),
                pa.array([page.body for _, page in useful], pa.binary()),
            ]
            await keep(pa.table(columns, schema=MESSAGE_SCHEMA))
        for request, _ in useful:
            work.kept(request, now_ns)
        work.take_events()
        if error := next((page for page in found if isinstance(page, BaseException)), None):
            raise error
        progress(work.ids_fetched + work.ids_absent, wanted.to_fetch)


async def _next_requests(work: WorkList, product: str) -> list[PageRequest]:
    """What to ask for now; waits until something is due."""
    while True:
        now_ns = time.monotonic_ns()
        found: list[PageRequest] = []
        while len(found) < REQUESTS_AT_ONCE and (request := work.next_request(now_ns)) is not None:
            found.append(request)
        if found:
            return found
        wait_s = ((work.due_ns or now_ns) - now_ns) / 1e9
        if wait_s > UNANSWERED_MAX_S:
            raise NotFetched(
                f"{product}: the exchange's pages say nothing about {work.ids_missing:,} trades, the highest "
                f"{work.highest(product)}. What came before is kept; the same command goes on."
            )
        await asyncio.sleep(wait_s)


async def _first_id_at(rest: TradePages, newest: PageTrade, product: str, moment: datetime) -> int:
    """The lowest id that was traded at `moment` or later; the next id when there is none yet.

    REST can't be asked by time. Times follow ids, nearly evenly, so a rule of three finds the page in a few requests;
    every third one halves what is left, so they never become many.
    """
    if newest.time < moment:
        return newest.trade_id + 1
    low, below, above = 0, newest, newest  # the id is from `low` on, and at most that of `above`
    is_short = False
    for number in count(1):
        if low >= above.trade_id:
            break
        guess = (low + above.trade_id) // 2
        if number % 3:  # by the pace between two known trades
            seconds = abs((above.time - below.time).total_seconds())
            guess = above.trade_id - _FIRST_STEP
            if seconds:
                per_second = abs(above.trade_id - below.trade_id) / seconds
                guess = above.trade_id - round((above.time - moment).total_seconds() * per_second)
        after = above.trade_id if is_short else min(max(guess + PAGE_MAX // 2, low + 1), above.trade_id)
        page, is_short = await _read(rest, product, after, PAGE_MAX, above.time)
        later = [trade for trade in page if trade.time >= moment]
        if later:
            above = later[-1]
            if page[-1].time < moment:  # the trade before is on the page
                break
        else:
            low, below, is_short = after, page[0] if page else below, False
    return above.trade_id


_rows = msgspec.json.Decoder(list[msgspec.Raw])
_dated = msgspec.json.Decoder(_Dated)


async def _read(
    rest: TradePages, product: str, after: int | None, limit: int, above: datetime | None
) -> tuple[list[PageTrade], bool]:
    """The trades of one page, and whether there are less than `limit`. `above`: when the trade above it was made.

    One whose time can't be read has that of the next newer one: it belongs there as well as anywhere, and the parser
    will refuse it. Raises NotFetched when there is no newer one.
    """
    page = await rest.trades(product, after=after, limit=limit)
    rows = _rows.decode(page.body)
    ids = page.ids if len(page.ids) == len(rows) else [id_of(row) for row in rows]
    times: list[datetime | None] = []
    for row in rows:
        try:
            times.append(_dated.decode(row).time)
        except (ValueError, RecursionError):
            times.append(None)
    when = above or next(filter(None, times), None)
    trades = []
    for trade_id, read in zip(ids, times, strict=True):
        when = read or when
        if when is None:
            raise NotFetched(f"{product}: none of its newest {limit} trades has a time that can be read.")
        if trade_id is not None:
            trades.append(PageTrade(trade_id, when))
    return trades, len(rows) < limit
