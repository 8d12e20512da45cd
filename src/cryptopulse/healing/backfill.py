"""The command `backfill`: fetches history into the log, and into the tables if no pipeline is running.

Trade ids are dense, so the ids between two times are known beforehand, and those that the lake holds are left out: a
backfill that was stopped goes on where it was when it is run again. Missing ids go through a work list as holes do, so
pages prove absences in the same way. Pages enter the log unchanged.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count, islice
from typing import Annotated, NamedTuple, Protocol

import msgspec
import pyarrow as pa
import structlog

from cryptopulse.errors import LakeBusy, LogFull, NotFetched, TransientError, UnknownProduct
from cryptopulse.feed.rest import RestClient, TradePage, id_of
from cryptopulse.feed.venue_rest import rest_client
from cryptopulse.healing.known_ids import known_ids
from cryptopulse.healing.work_list import PAGE_MAX, PageRequest, WorkList
from cryptopulse.intervals import Interval, Intervals
from cryptopulse.lake.products import venue_of
from cryptopulse.log import MESSAGE_SCHEMA, Log
from cryptopulse.pipeline import Pipeline
from cryptopulse.retry import Backoff, retrying
from cryptopulse.settings import Settings
from cryptopulse.token_bucket import RateLimiter

SHARE = 0.7
"""Of the requests that may be made; the rest is for the producer, which heals newer holes."""

ATTEMPTS_MAX = 20
"""For one page, about six minutes with the pauses; then the product fails and the next one starts."""

_NEIGHBOURS = 2  # a page has one trade on either side of the ids wanted, so that an absent id lies between two others

REQUESTS_AT_ONCE = 8
"""Pages requested together and appended to the log at once; an answer takes 0.1 to 0.5 s."""

HOLES_AT_ONCE = 1_000
"""Most holes on the work list, each at most one request wide. Some wait for the second page that proves an absence."""

UNANSWERED_MAX_S = 60.0
"""Ids about which pages say nothing are requested again after growing pauses. The backfill gives up when only such ids
are left and the next pause would be longer than this."""

_STORE_EVERY_PAGES = 200  # some 30 MB of log, and a batch of 200,000 trades
_PAUSE_MAX_S = 5.0
_PAUSES_MAX = 30  # of up to 5 s, so that a pipeline far behind can make room in the log
_FIRST_STEP = 1_000  # ids, to learn how fast a product is traded
_NEWEST = 100  # newest trades to read; the first readable one counts as the newest

_logger = structlog.get_logger()

Progress = Callable[[int, int], None]


class TradePages(Protocol):
    """The part of the REST interface that a backfill needs."""

    async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
        """The newest `limit` trades with ids below `after` (None: of all), newest first.

        Retries transient errors. Raises UnknownProduct, NotFetched, or ConfigurationError.
        """


class PageTrade(NamedTuple):
    """Id and time (UTC) of a trade on a page."""

    trade_id: int
    time: datetime


class _Dated(msgspec.Struct):
    time: Annotated[datetime, msgspec.Meta(tz=True)]


@dataclass(frozen=True)
class Plan:
    """The ids of the requested time, and those to fetch."""

    product: str
    first_trade_id: int
    last_trade_id: int
    """Less than the first if the exchange has no trade of that time."""
    missing: tuple[Interval, ...]
    """Intervals of ids that the lake neither holds nor knows to be absent, in order."""
    ids_per_second: float = 0.0
    """How many ids can be fetched in a second; 0: not known."""

    @property
    def trades(self) -> int:
        """How many ids belong to that time."""
        return max(self.last_trade_id - self.first_trade_id + 1, 0)

    @property
    def to_fetch(self) -> int:
        """How many ids must be fetched."""
        return sum(last - first + 1 for first, last in self.missing)


@dataclass(frozen=True)
class Filled:
    """Counts of ids fetched and of ids proved absent."""

    fetched: int
    absent: int
    """Ids that the exchange itself does not have."""


class Backfill:
    """Fetches history for one lake. A producer may append to the log at the same time."""

    def __init__(self, settings: Settings, log: Log) -> None:
        """Opens nothing yet; a running pipeline is detected when there is something to store."""
        self._settings = settings
        self._log = log
        self._unstored_pages: int | None = None
        """Pages in the log since the last time that it was stored; None: it may hold those of an earlier backfill."""
        self.conflicts: Counter[str] = Counter()
        """Product → how many of the trades stored by this object were held already with other content."""

    async def run(
        self, product: str, start: datetime, end: datetime | None, planned: Callable[[Plan], None], progress: Progress
    ) -> tuple[Plan, Filled]:
        """Fetches the trades of `product` from `start` on and before `end` (UTC; None: until now).

        What was fetched is in the log, and in the tables after `store`.

        `planned` is called with the plan, `progress` with (ids done, ids to fetch). Raises UnknownProduct, NotFetched
        when the exchange gives no usable answer again and again (pages fetched before are kept), ConfigurationError for
        a wrong address, and the errors of the log and the tables.
        """
        if self._unstored_pages is None:
            self.store()  # so that pages left in the log by an earlier backfill count as held
        known = known_ids(self._settings.location)
        held = Intervals([*known.held.get(product, ()), *known.absent.get(product, ())])
        async with rest_client(self._settings, venue_of(product)) as rest:
            pages = _RetryingPages(rest, SHARE * rest.per_second, self._settings.feed.backoff_max_s)
            wanted = await plan(pages, product, start, end, held, rest.page_max)
            wanted = replace(wanted, ids_per_second=SHARE * rest.per_second * (rest.page_max - _NEIGHBOURS))
            planned(wanted)
            return wanted, await fill(pages, wanted, self._keep, progress, rest.page_max)

    def store(self) -> bool:
        """Brings the log into the tables, unless a running pipeline does, or the next one; returns whether it did."""
        self._unstored_pages = 0
        if self._settings.processing.engine != "embedded":
            return False
        try:
            with Pipeline(self._settings, self._log) as pipeline:
                pipeline.drain(lambda _done, _total: None)
                self.conflicts.update(pipeline.engine.conflicts)
        except LakeBusy:
            return False
        return True

    def in_tables(self, wanted: Plan) -> int:
        """How many of the ids to fetch silver holds, by its coverage."""
        stored = Intervals(known_ids(self._settings.location).held.get(wanted.product, ()))
        return sum(Intervals(stored.within(*part)).count for part in wanted.missing)

    async def _keep(self, messages: pa.Table) -> None:
        await asyncio.to_thread(self._append, messages)
        self._unstored_pages = (self._unstored_pages or 0) + messages.num_rows
        if self._unstored_pages >= _STORE_EVERY_PAGES:
            await asyncio.to_thread(self.store)

    def _append(self, messages: pa.Table) -> None:
        """Appends to the log; waits a limited time for a pipeline to make room in it."""
        backoff = Backoff(longest_s=_PAUSE_MAX_S)
        for _ in range(_PAUSES_MAX):
            try:
                self._log.append(messages)
            except (LogFull, TransientError) as error:
                pause_s = backoff.next_pause()
                _logger.warning("waiting_for_log", error=str(error), retry_in_s=round(pause_s, 2))
                self.store()
                time.sleep(pause_s)
            else:
                return
        self._log.append(messages)


class _RetryingPages:
    """The REST interface with a limit of this process alone, and with retries."""

    def __init__(self, rest: RestClient, per_second: float, pause_max_s: float) -> None:
        self._rest = rest
        self._pause_max_s = pause_max_s
        self._limiter = RateLimiter(per_second=per_second, burst=math.ceil(per_second))

    async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
        """See TradePages."""

        async def fetch() -> TradePage:
            await self._limiter.acquire()
            return await self._rest.trades(product, after=after, limit=limit)

        def waiting(error: TransientError, pause_s: float) -> None:
            _logger.warning("waiting_for_rest", error=str(error), retry_in_s=round(pause_s, 2))

        try:
            for _ in range(2):  # a faulty server may answer once that there are no trades
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


async def plan(
    rest: TradePages, product: str, start: datetime, end: datetime | None, held: Intervals, page_max: int = PAGE_MAX
) -> Plan:
    """The plan for the trades of `product` from `start` on and before `end` (UTC; None: until now).

    `held`: ids that need not be fetched. Raises UnknownProduct for a product without trades, and the errors of `rest`.
    """
    trades, _ = await _read(rest, product, None, _NEWEST, None)
    if not trades:
        raise UnknownProduct(f"The exchange has no trades of {product}.")
    newest = trades[0]
    last = newest.trade_id if end is None else await _first_id_at(rest, newest, product, end, page_max) - 1
    first = await _first_id_at(rest, newest, product, start, page_max)
    return Plan(product, first, last, tuple(held.gaps(first, last)))


async def fill(
    rest: TradePages,
    wanted: Plan,
    keep: Callable[[pa.Table], Awaitable[None]],
    progress: Progress,
    page_max: int = PAGE_MAX,
) -> Filled:
    """Fetches missing trades, the newest first; `keep` gets the pages as messages for the log (MESSAGE_SCHEMA).

    `progress` is called with (ids done, ids to fetch). Raises the errors of `rest`, after keeping the other pages
    requested at the same time, and NotFetched when pages still say nothing about some ids after growing pauses.
    """
    work, span = WorkList(page_max), page_max - _NEIGHBOURS
    start_ns = time.monotonic_ns()
    pieces = (
        (max(first, highest - span + 1), highest)
        for first, last in reversed(wanted.missing)
        for highest in range(last, first - 1, -span)
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
    """The requests to make now; waits until one is due. Raises NotFetched if that takes too long."""
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


async def _first_id_at(rest: TradePages, newest: PageTrade, product: str, moment: datetime, page_max: int) -> int:
    """The lowest id traded at `moment` (UTC) or later; the next id if there is none yet.

    REST can't be queried by time. Times grow with ids, nearly evenly, so interpolation finds the page in a few
    requests; every third request halves the range instead, which bounds their number.
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
        after = above.trade_id if is_short else min(max(guess + page_max // 2, low + 1), above.trade_id)
        page, is_short = await _read(rest, product, after, page_max, above.time)
        later = [trade for trade in page if trade.time >= moment]
        if later:
            above = later[-1]
            if page[-1].time < moment:  # the previous trade is on the page
                break
        else:
            low, below, is_short = after, page[0] if page else below, False
    return above.trade_id


_rows = msgspec.json.Decoder(list[msgspec.Raw])
_dated = msgspec.json.Decoder(_Dated)


async def _read(
    rest: TradePages, product: str, after: int | None, limit: int, above: datetime | None
) -> tuple[list[PageTrade], bool]:
    """The trades of one page, and whether it has fewer than `limit` rows. `above`: time of the next newer trade.

    A trade with an unreadable time gets that of the next newer one; any time near it will do, as the parser will refuse
    the trade. Raises NotFetched if no trade has a readable time.
    """
    page = await rest.trades(product, after=after, limit=limit)
    ids: Sequence[int | None]
    times: list[datetime | None] = []
    if page.times_ns is not None:
        dated = [one for one in zip(page.ids, page.times_ns, strict=True) if after is None or one[0] < after]
        ids = [number for number, _ in dated]
        times = [None if at_ns is None else datetime.fromtimestamp(at_ns / 1e9, UTC) for _, at_ns in dated]
    else:
        rows = _rows.decode(page.body)
        ids = page.ids if len(page.ids) == len(rows) else [id_of(row) for row in rows]
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
    return trades, len(ids) < limit
