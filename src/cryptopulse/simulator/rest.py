"""REST of the simulated exchange: products, trades and candles, with rate limits and faults."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus

import msgspec
import numpy as np

from cryptopulse.simulator.candles import candles_between
from cryptopulse.simulator.messages import decimal_text, encode
from cryptopulse.simulator.orders import Orders
from cryptopulse.simulator.other_venues import PAGES, NoSuchSymbol
from cryptopulse.simulator.products import SimulatedProduct
from cryptopulse.simulator.venue import SimulatedVenue
from cryptopulse.simulator.wire import HttpRequest, HttpResponse
from cryptopulse.token_bucket import TokenBucket

_PAGE_MAX = 1000
_CANDLES_MAX = 300
_STALE_TRADES_MAX = 20_000
"""More than the trades that one product makes within the age of a stale page."""
_GRANULARITIES = (60, 300, 900, 3600, 21600, 86400)
_RATE_PER_S, _BURST = 10.0, 15


class _RequestRefused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.response = HttpResponse(encode({"message": message}), status)


class SimulatedRest:
    """Answers `/products` and everything below it."""

    def __init__(self, venue: SimulatedVenue) -> None:
        """Answers about `venue`."""
        self._venue = venue
        self._random = random.Random(venue.options.faults_seed)  # noqa: S311  nothing secret
        self._allowance: defaultdict[str, TokenBucket] = defaultdict(lambda: TokenBucket(_BURST, 1 / _RATE_PER_S))
        self.orders = Orders()
        self.requests: Counter[str] = Counter()
        """Requests by the last part of their path: `products`, `trades`, `candles`; includes refused ones."""

    async def respond(self, request: HttpRequest) -> HttpResponse:
        """Answers one request, with the faults that are set."""
        faults = self._venue.faults
        self.requests[request.path.rstrip("/").rpartition("/")[2]] += 1
        if faults.rest_slow:
            await asyncio.sleep(faults.rest_slow)
        is_limited = self._venue.options.rest_limit and not self._allowance[request.peer].take(time.monotonic())
        if is_limited or self._random.random() < faults.rest_429:
            if request.path.startswith("/0/"):  # Kraken has no status for it
                return HttpResponse(b'{"error":["EGeneral:Too many requests"]}')
            return _error(HTTPStatus.TOO_MANY_REQUESTS, "Public rate limit exceeded")
        if self._random.random() < faults.rest_500:
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal server error")
        try:
            response = self._answer(request)
        except _RequestRefused as refusal:
            response = refusal.response
        if ordered := self.orders.take(request.path):
            return ordered.of(response)
        if self._random.random() < faults.rest_truncated:
            return HttpResponse(response.body, response.status, response.headers, truncated=True)
        return response

    def _answer(self, request: HttpRequest) -> HttpResponse:
        if request.method != "GET":
            raise _RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed")
        match request.path.strip("/").split("/"):
            case ["products"]:
                return HttpResponse(encode([_product_row(product) for product in self._venue.products]))
            case ["products", product_id]:
                return HttpResponse(encode(_product_row(self._venue.products[self._number(product_id)])))
            case ["products", product_id, "trades"]:
                return self._trades(self._number(product_id), request.query)
            case ["products", product_id, "candles"]:
                return self._candles(self._number(product_id), request.query)
        if (page := PAGES.get(request.path.strip("/"))) is not None:
            try:
                return HttpResponse(page(self._venue, request.query, self._newest_shown))
            except NoSuchSymbol as refused:  # Binance has a status for it, the others have not
                is_status = request.path.startswith("/api/v3/")
                return HttpResponse(str(refused).encode(), HTTPStatus.BAD_REQUEST if is_status else HTTPStatus.OK)
            except ValueError:
                raise _RequestRefused(HTTPStatus.BAD_REQUEST, "a parameter is no number") from None
        raise _RequestRefused(HTTPStatus.NOT_FOUND, "NotFound")

    def _number(self, product_id: str) -> int:
        number = self._venue.numbers.get(product_id)
        if number is None:
            raise _RequestRefused(HTTPStatus.NOT_FOUND, "NotFound")
        return number

    def _trades(self, number: int, query: Mapping[str, str]) -> HttpResponse:
        """A page, newest first: the newest ids below `after`, without those up to `before`."""
        venue, history = self._venue, self._venue.history
        newest = self._newest_shown(number)
        limit = min(max(_whole(query, "limit", _PAGE_MAX), 1), _PAGE_MAX)
        after = min(_whole(query, "after", 2**62), newest + 1)
        page = history.below(number, after, limit)[::-1]
        page = page[page["trade_id"] > _whole(query, "before", 0)]
        headers = {}
        if len(page):
            headers = {"cb-before": str(page["trade_id"][0]), "cb-after": str(page["trade_id"][-1])}
        broken = self.orders.rows.get(venue.products[number].product_id, {})
        rows = [
            broken.get(int(trade_id), row)
            for trade_id, row in zip(page["trade_id"], venue.writer.rest_trades(page), strict=True)
        ]
        return HttpResponse(encode(rows), headers=headers)

    def _newest_shown(self, number: int) -> int:
        """The newest id that pages have: the newest published one, unless they are stale."""
        venue, history = self._venue, self._venue.history
        if not venue.faults.rest_stale:
            return history.last_id(number)
        trades = history.newest(number, _STALE_TRADES_MAX)
        until_us = venue.offset_us() - venue.faults.rest_stale * 1e6
        shown = trades[: np.searchsorted(trades["time_us"], until_us, side="right")]
        return int(shown["trade_id"][-1]) if len(shown) else history.first_id(number) - 1

    def _candles(self, number: int, query: Mapping[str, str]) -> HttpResponse:
        """Rows of [time, low, high, open, close, volume], newest first, without spans that have no trades."""
        granularity = _whole(query, "granularity", 60)
        if granularity not in _GRANULARITIES:
            raise _RequestRefused(HTTPStatus.BAD_REQUEST, "Unsupported granularity")
        end = _moment(query, "end", self._venue.market_us() // 1_000_000)
        start = _moment(query, "start", end - end % granularity - (_CANDLES_MAX - 1) * granularity)
        if (end - start) // granularity > _CANDLES_MAX:
            raise _RequestRefused(
                HTTPStatus.BAD_REQUEST,
                "granularity too small for the requested time range. "
                f"Count of aggregations requested exceeds {_CANDLES_MAX}",
            )
        found = candles_between(self._venue, number, start, end, granularity)[::-1][:_CANDLES_MAX]
        rows = [[candle.start, *(msgspec.Raw(text.encode()) for text in candle[1:6])] for candle in found]
        return HttpResponse(encode(rows))


def _product_row(product: SimulatedProduct) -> dict[str, object]:
    base, quote = product.product_id.split("-")
    return {
        "id": product.product_id,
        "base_currency": base,
        "quote_currency": quote,
        "quote_increment": decimal_text(1, product.price_decimals),
        "base_increment": decimal_text(1, product.size_decimals),
        "display_name": f"{base}-{quote}",
        "min_market_funds": "1",
        "margin_enabled": False,
        "post_only": False,
        "limit_only": False,
        "cancel_only": False,
        "status": "online",
        "status_message": "",
        "trading_disabled": False,
        "fx_stablecoin": False,
        "auction_mode": False,
    }


def _error(status: HTTPStatus, message: str) -> HttpResponse:
    return HttpResponse(encode({"message": message}), status)


def _whole(query: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(query.get(name, default))
    except ValueError:
        raise _RequestRefused(HTTPStatus.BAD_REQUEST, f"{name} must be a number") from None


def _moment(query: Mapping[str, str], name: str, default: int) -> int:
    """A time given in seconds since 1970 or as ISO 8601 (UTC without an offset), as seconds since 1970."""
    text = query.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _RequestRefused(HTTPStatus.BAD_REQUEST, f"{name} must be a time") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
