"""Pages of trades from the REST interfaces of venues beside Coinbase."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from cryptopulse.errors import RateLimited, TransientError, UnknownProduct
from cryptopulse.feed.rest import RestClient, TradePage
from cryptopulse.lake.products import venue_of
from cryptopulse.settings import Settings
from cryptopulse.venues import Candle, Trades, Venue, VenueTrade, venues_own
from cryptopulse.venues.registry import PAGES, VENUES

_NANOS_POWER = 3  # of ten, from µs to ns
_NANOS_MAX = 2**63  # in the year 2262


class VenueRestClient(RestClient):
    """Fetches pages of trades from `venue`, within its rate limit. Use it with `async with`."""

    def __init__(
        self, venue: Venue, base_url: str, setting: str, *, per_second: float, allowance: Path | None = None
    ) -> None:
        """`setting`: the name of the setting that has `base_url`; the rest as for RestClient."""
        super().__init__(base_url, per_second=per_second, allowance=allowance, setting=setting)
        self.venue = venue
        self.page_max = venue.page_max
        self.candles_max, self.candles_kept = venue.candles_max, venue.candles_kept

    async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
        """See RestClient. The page may also have trades from `after` on, and older ones than asked for."""
        asked = self.venue.history(venues_own(product), after, limit)
        path, query = next(asked)
        while True:
            page = await self._get(path, "trades", partial(self._page, product), query, product)
            try:
                path, query = asked.send([*zip(reversed(page.ids), reversed(page.times_ns or ()), strict=True)])
            except StopIteration as end:
                if end.value:
                    return page
                raise TransientError(
                    f"{urlsplit(self.base_url).hostname} has no page of {product} below {after}"
                ) from end

    async def candles(self, product: str, first: datetime, last: datetime) -> list[Candle]:
        """See RestClient."""
        ends = int(first.timestamp()), int(last.timestamp())
        path, query = self.venue.candles_request(venues_own(product), *ends)
        return await self._get(path, "candles", partial(self._candles, product), query, product)

    def _candles(self, product: str, body: bytes) -> list[Candle]:
        value = self._decoded(product, body)
        try:
            return self.venue.candles(value)
        except (TypeError, KeyError, IndexError, ArithmeticError) as error:
            raise ValueError(f"not as expected: {error!r}") from error

    def _decoded(self, product: str, body: bytes) -> Any:
        value = msgspec.json.decode(body)
        error = self.venue.error(value)
        if error is None:
            return value
        said = f"{urlsplit(self.base_url).hostname} answered {error.text!r}"
        if error.kind == "busy":
            raise RateLimited(f"{said}: too many requests")
        if error.kind == "no product":
            raise UnknownProduct(f"{said}: {product} is no product there.")
        raise TransientError(said)

    def _page(self, product: str, body: bytes) -> TradePage:
        received_ns = time.time_ns()
        trades = sorted(_trades(self.venue.page, self._decoded(product, body), product), key=_id, reverse=True)
        ids = [_id(trade) for trade in trades]
        if len(set(ids)) < len(ids):
            raise ValueError("an id is there twice")
        return TradePage(body, ids, received_ns, [_nanos(trade) for trade in trades])


def rest_client(settings: Settings, venue: str) -> RestClient:
    """The client of the REST interface of `venue`, "" for Coinbase. Raises ConfigurationError for a bad address."""
    if not venue:
        url = settings.feed.rest_url
        per_second = settings.feed.rest_requests_per_second
        return RestClient(url, per_second=per_second, allowance=settings.rest_allowance(url))
    chosen, made = settings.venue(venue), VENUES[venue]()
    url = made.rest_url if chosen.rest_url is None else chosen.rest_url
    per_second = chosen.rest_requests_per_second or made.requests_per_second
    allowance = settings.rest_allowance(url, venue)
    return VenueRestClient(made, url, f"{venue}.rest_url", per_second=per_second, allowance=allowance)


def venue_page_ids(body: bytes, product: str) -> list[int]:
    """The ids of a page of the venue of `product`. Raises ValueError for a body that is none."""
    page = PAGES.get(venue_of(product))
    if page is None:
        raise ValueError("no known venue")
    return [_id(trade) for trade in _trades(page, msgspec.json.decode(body), product)]


def _trades(page: Callable[[Any, str], Trades], value: Any, product: str) -> list[VenueTrade]:
    found = page(value, venues_own(product))
    if isinstance(found, str):
        raise ValueError(found)  # noqa: TRY004 - it is about a body, like msgspec's
    return found


def _id(trade: VenueTrade) -> int:
    text = str(trade.trade_id)
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text[:20]!r} is no trade id")
    return int(text)


def _nanos(trade: VenueTrade) -> int | None:
    """A time near that of the trade, in ns UTC; None if it can't be read."""
    assert trade.time_power is not None  # no venue's pages have times in words
    try:
        found = int(float(trade.time) * 10 ** (trade.time_power + _NANOS_POWER))
    except (TypeError, ValueError, OverflowError):
        return None
    return found if 0 < found < _NANOS_MAX else None
