"""REST of the simulated exchange: products, trades and candles, with its limits and its faults."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus

import msgspec
import numpy as np

from cryptopulse.simulator.market import Trades
from cryptopulse.simulator.messages import decimal_text, encode
from cryptopulse.simulator.products import Product
from cryptopulse.simulator.venue import Venue
from cryptopulse.simulator.wire import Request, Response

_PAGE_MAX = 1000
_CANDLES_MAX = 300
_STALE_TRADES_MAX = 20_000
"""More trades of one product than this are not made within the age of a stale page."""
_GRANULARITIES = (60, 300, 900, 3600, 21600, 86400)
_RATE_PER_S, _BURST = 10.0, 15.0


class _RefusedError(Exception):
    """A request that gets an error answer."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.response = Response(encode({"message": message}), status)


class Rest:
    """Answers `/products` and what is under it."""

    def __init__(self, venue: Venue) -> None:
        """Answers about `venue`."""
        self._venue = venue
        self._random = random.Random(venue.options.faults_seed)  # noqa: S311  nothing secret
        self._allowance: dict[str, tuple[float, float]] = {}
        self.requests: Counter[str] = Counter()
        """Requests by the last part of their path: `products`, `trades`, `candles`; refused ones count as well."""

    async def respond(self, request: Request) -> Response:
        """Answers one request: slowly, wrongly or not at all as the faults say."""
        faults = self._venue.faults
        self.requests[request.path.rstrip("/").rpartition("/")[2]] += 1
        if faults.rest_slow:
            await asyncio.sleep(faults.rest_slow)
        if not self._allowed(request.peer) or self._random.random() < faults.rest_429:
            return _error(HTTPStatus.TOO_MANY_REQUESTS, "Public rate limit exceeded")
        if self._random.random() < faults.rest_500:
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal server error")
        try:
            response = self._answer(request)
        except _RefusedError as refusal:
            return refusal.response
        if self._random.random() < faults.rest_truncated:
            return Response(response.body, response.status, response.headers, truncated=True)
        return response

    def _allowed(self, peer: str) -> bool:
        """Takes one request off the peer's allowance: 10 a second, 15 at once."""
        if not self._venue.options.rest_limit:
            return True
        now = time.monotonic()
        left, since = self._allowance.get(peer, (_BURST, now))
        left = min(left + (now - since) * _RATE_PER_S, _BURST)
        self._allowance[peer] = (left - 1 if left >= 1 else left, now)
        return left >= 1

    def _answer(self, request: Request) -> Response:
        if request.method != "GET":
            raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed")
        match request.path.strip("/").split("/"):
            case ["products"]:
                return Response(encode([_product_row(product) for product in self._venue.products]))
            case ["products", product_id]:
                return Response(encode(_product_row(self._venue.products[self._number(product_id)])))
            case ["products", product_id, "trades"]:
                return self._trades(self._number(product_id), request.query)
            case ["products", product_id, "candles"]:
                return self._candles(self._number(product_id), request.query)
        raise _RefusedError(HTTPStatus.NOT_FOUND, "NotFound")

    def _number(self, product_id: str) -> int:
        number = self._venue.numbers.get(product_id)
        if number is None:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "NotFound")
        return number

    def _trades(self, number: int, query: Mapping[str, str]) -> Response:
        """A page, newest first: the newest ids below `after`, the newest of all above `before`."""
        history = self._venue.history
        limit = min(max(_whole(query, "limit", _PAGE_MAX), 1), _PAGE_MAX)
        after = min(_whole(query, "after", 2**62), self._newest_shown(number) + 1)
        page = history.below(number, after, limit)[::-1]
        page = page[page["trade_id"] > _whole(query, "before", 0)]
        headers = {}
        if len(page):
            headers = {"cb-before": str(page["trade_id"][0]), "cb-after": str(page["trade_id"][-1])}
        return Response(encode(self._venue.writer.rest_trades(page)), headers=headers)

    def _newest_shown(self, number: int) -> int:
        """The newest id that pages show: an older one than the newest when they are to be old."""
        history, venue = self._venue.history, self._venue
        if not venue.faults.rest_stale:
            return history.last_id(number)
        trades = history.newest(number, _STALE_TRADES_MAX)
        until_us = venue.offset_us() - venue.faults.rest_stale * 1e6
        shown = trades[: np.searchsorted(trades["time_us"], until_us, side="right")]
        return int(shown["trade_id"][-1]) if len(shown) else history.first_id(number) - 1

    def _candles(self, number: int, query: Mapping[str, str]) -> Response:
        """Rows of [time, low, high, open, close, volume], newest first; spans without trades are left out."""
        granularity = _whole(query, "granularity", 60)
        if granularity not in _GRANULARITIES:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "Unsupported granularity")
        end = _moment(query, "end", self._venue.market_us() // 1_000_000)
        start = _moment(query, "start", end - end % granularity - (_CANDLES_MAX - 1) * granularity)
        if (end - start) // granularity > _CANDLES_MAX:
            raise _RefusedError(
                HTTPStatus.BAD_REQUEST,
                "granularity too small for the requested time range. "
                f"Count of aggregations requested exceeds {_CANDLES_MAX}",
            )
        trades = self._venue.history.between(number, 0, self._venue.history.last_id(number))
        seconds = (trades["time_us"] + self._venue.writer.start_us) // 1_000_000
        opened = seconds - seconds % granularity
        inside = slice(*np.searchsorted(opened, [start, end + 1]).tolist())
        rows = _candle_rows(trades[inside], opened[inside], self._venue.products[number])
        return Response(encode(rows[::-1][:_CANDLES_MAX]))


def _candle_rows(trades: Trades, opened: np.ndarray, product: Product) -> list[list[object]]:
    """Candles of trades in the order of ids, each labelled with the second that `opened` says."""
    if not len(trades):
        return []
    times, starts = np.unique(opened, return_index=True)
    price = trades["price"]
    lasts = np.append(starts[1:], len(trades)) - 1
    columns = (
        np.minimum.reduceat(price, starts),
        np.maximum.reduceat(price, starts),
        price[starts],
        price[lasts],
    )
    volumes = np.add.reduceat(trades["size"], starts)

    def number(value: int, decimals: int) -> msgspec.Raw:
        return msgspec.Raw(decimal_text(value, decimals).encode())

    return [
        [
            time,
            *(number(price, product.price_decimals) for price in prices),
            number(volume, product.size_decimals),
        ]
        for time, *prices, volume in zip(
            times.tolist(), *(column.tolist() for column in columns), volumes.tolist(), strict=True
        )
    ]


def _product_row(product: Product) -> dict[str, object]:
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


def _error(status: HTTPStatus, message: str) -> Response:
    return Response(encode({"message": message}), status)


def _whole(query: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(query.get(name, default))
    except ValueError:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, f"{name} must be a number") from None


def _moment(query: Mapping[str, str], name: str, default: int) -> int:
    """A time as epoch seconds or ISO 8601 (UTC when it does not say), in seconds since 1970."""
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
        raise _RefusedError(HTTPStatus.BAD_REQUEST, f"{name} must be a time") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
