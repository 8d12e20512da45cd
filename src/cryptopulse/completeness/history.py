"""History on request: a product's trades between two moments, fetched over REST into the log.

Trade ids are dense, so it is known beforehand which trades there are, and those that the lake holds are left out: a
backfill that was stopped goes on where it was when it is asked for again. Pages are fetched from the newest id down,
and enter the log as they came, like those that heal a hole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import count, islice
from typing import Protocol

import msgspec
import pyarrow as pa
import structlog

from cryptopulse.errors import ConfigurationError, TransientError
from cryptopulse.feed.rest import Page
from cryptopulse.intervals import Interval, Intervals
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.retry import Backoff, retrying

SPAN = 999
"""Ids that one request is for. A page has 1,000 trades: the one above them comes along, so that pages overlap and an
id that the exchange does not have stands between two that it has."""

REQUESTS_AT_ONCE = 8
"""So many pages are one append to the log, and wait for each other: the answers take 0.1 to 0.5 s."""

_PAGE = SPAN + 1
_PAUSE_MAX_S = 30.0
_FIRST_STEP = 1_000  # ids, to learn how fast a product is traded

_logger = structlog.get_logger()


class TradePages(Protocol):
    """The part of the REST interface that is needed."""

    async def trades(self, product: str, *, after: int | None, limit: int) -> Page:
        """The newest `limit` trades of ids below `after` (None: of all), newest first; raises TransientError."""


class PageTrade(msgspec.Struct, frozen=True):
    """What is read of a trade on a page."""

    trade_id: int
    time: datetime


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


_decoder = msgspec.json.Decoder(list[PageTrade])


async def plan(rest: TradePages, product: str, start: datetime, end: datetime | None, held: Intervals) -> Plan:
    """The trades of `product` from `start` on and before `end` (UTC; None: until now).

    `held`: the ids that need not be fetched. Raises ConfigurationError for a product without trades.
    """
    newest = await _newest(rest, product)
    if newest is None:
        raise ConfigurationError(f"The exchange has no trades of {product}.")
    last = newest.trade_id if end is None else await _first_id_at(rest, newest, product, end) - 1
    first = await _first_id_at(rest, newest, product, start)
    return Plan(product, first, last, tuple(held.gaps(first, last)))


async def fill(
    rest: TradePages,
    wanted: Plan,
    keep: Callable[[pa.Table], Awaitable[None]],
    progress: Callable[[int, int], None],
) -> Filled:
    """Fetches what is missing, the newest first; `keep` gets the pages as messages for the log.

    `progress` is called with (ids done, ids to fetch).
    """
    done = absent = 0
    waiting = _requests(wanted.missing)
    while requests := tuple(islice(waiting, REQUESTS_AT_ONCE)):
        answers = await asyncio.gather(*(_page(rest, wanted.product, first, last) for first, last in requests))
        await keep(as_messages(wanted.product, [page for pages, _ in answers for page in pages]))
        absent += sum(missing for _, missing in answers)
        done += sum(last - first + 1 for first, last in requests)
        progress(done, wanted.to_fetch)
    return Filled(done - absent, absent)


def as_messages(product: str, pages: Sequence[Page]) -> pa.Table:
    """Pages as messages for the log (MESSAGE_SCHEMA)."""
    columns = [
        pa.repeat(product, len(pages)),
        pa.array([page.received_ns // 1000 for page in pages], MESSAGE_SCHEMA.field("received_time").type),
        pa.repeat("rest", len(pages)),
        pa.array([page.body for page in pages], pa.binary()),
    ]
    return pa.table(columns, schema=MESSAGE_SCHEMA)


def _requests(missing: Sequence[Interval]) -> Iterator[Interval]:
    for first, last in reversed(missing):
        for highest in range(last, first - 1, -SPAN):
            yield max(first, highest - SPAN + 1), highest


async def _page(rest: TradePages, product: str, first: int, last: int) -> tuple[list[Page], int]:
    """The pages that hold the trades `first` … `last`, and how many of these the exchange does not have.

    It is one page, unless the exchange gives less than it is asked for.
    """
    pages: list[Page] = []
    found: set[int] = set()
    below = last + 2  # the trade above comes along
    while below > first:
        page = await _asked(rest, product, below, min(below - first + 1, _PAGE))
        if not page.ids:
            break
        pages.append(page)
        found.update(number for number in page.ids if first <= number <= last)
        below = page.ids[-1]
    return pages, last - first + 1 - len(found)


async def _first_id_at(rest: TradePages, newest: PageTrade, product: str, moment: datetime) -> int:
    """The lowest id that was traded at `moment` or later; the next id when there is none yet.

    REST can't be asked by time. Times follow ids, nearly evenly, so a rule of three finds the page in a few requests;
    every third one halves what is left, so they never become many.
    """
    if newest.time < moment:
        return newest.trade_id + 1
    low, below, above = 0, newest, newest  # the id is from `low` on, and at most that of `above`
    for asked in count(1):
        if low >= above.trade_id:
            break
        guess = (low + above.trade_id) // 2 if asked % 3 == 0 else _guess(below, above, moment)
        after = min(max(guess + _PAGE // 2, low + 1), above.trade_id)
        page = _decoder.decode((await _asked(rest, product, after, _PAGE)).body)
        later = [trade for trade in page if trade.time >= moment]
        if later:
            above = later[-1]
            if len(page) < _PAGE or len(later) < len(page):  # nothing is older, or the trade before is on the page
                break
        else:
            low, below = after, page[0] if page else below
    return above.trade_id


def _guess(below: PageTrade, above: PageTrade, moment: datetime) -> int:
    """Which id may have been traded at `moment`: by the pace between two known trades."""
    seconds = abs((above.time - below.time).total_seconds())
    if seconds == 0:
        return above.trade_id - _FIRST_STEP
    per_second = abs(above.trade_id - below.trade_id) / seconds
    return above.trade_id - round((above.time - moment).total_seconds() * per_second)


async def _newest(rest: TradePages, product: str) -> PageTrade | None:
    """The newest trade; None: the exchange has none."""
    trades = _decoder.decode((await _asked(rest, product, None, 1)).body)
    return trades[0] if trades else None


async def _asked(rest: TradePages, product: str, after: int | None, limit: int) -> Page:
    """One page; asks again, with pauses, for as long as that may help."""

    def waiting(error: TransientError, pause_s: float) -> None:
        _logger.warning("waiting_for_rest", error=str(error), retry_in_s=round(pause_s, 2))

    return await retrying(
        lambda: rest.trades(product, after=after, limit=limit), Backoff(longest_s=_PAUSE_MAX_S), waiting
    )
