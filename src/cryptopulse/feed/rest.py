"""The exchange's REST interface: which products there are, trades that the feed did not bring, and candles.

Requests of the whole program share one rate limit, so one `RestClient` is made and passed around. Errors
come as the kinds that the retry policy knows: RateLimited, Disconnected and TransientError may pass,
ConfigurationError and UnknownProduct won't.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec

from cryptopulse.errors import (
    ConfigurationError,
    CryptoPulseError,
    Disconnected,
    RateLimited,
    TransientError,
    UnknownProduct,
)
from cryptopulse.feed.rate_limit import SharedTokenBucket, TokenBucket

REQUESTS_PER_SECOND = 10
"""Coinbase's limit for one address."""

REQUESTS_BURST = 15

TIMEOUT_S = 10.0


class Product(msgspec.Struct, frozen=True):
    """What the feed needs to know of a product."""

    id: str
    quote_currency: str
    status: str = ""


class _Row(msgspec.Struct, gc=False):
    """Of a trade only the id is looked at; the rest is the parser's business."""

    trade_id: int


class _Refusal(msgspec.Struct):
    message: str = ""


class Page(NamedTuple):
    """Trades of one product exactly as the exchange sent them, and their ids, newest first."""

    body: bytes
    ids: list[int]
    received_ns: int
    """UTC, nanoseconds since 1970."""


class Candle(msgspec.Struct, frozen=True, array_like=True):
    """What was traded in one minute; a minute without trades has none."""

    time: int
    """Start of the minute, seconds since 1970 (UTC)."""
    low: Decimal
    high: Decimal
    open: Decimal
    close: Decimal
    volume: Decimal


CANDLES_MAX = 300
"""As many candles are in one answer at most."""

_refusal = msgspec.json.Decoder(_Refusal)
_products = msgspec.json.Decoder(list[Product])
_rows = msgspec.json.Decoder(list[_Row])
_candles = msgspec.json.Decoder(list[Candle])


class RestClient:
    """Asks the REST interface at `base_url`, within the rate limit. To be closed, or used with `async
    with`."""

    def __init__(self, base_url: str, *, allowance: Path | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """`allowance`: a file by which the processes of a lake share the limit; None: it is this object's own."""
        self.base_url = base_url.rstrip("/")
        self.requests = 0
        self.failures = 0
        """Requests that brought no answer of use."""
        self._bucket = (
            SharedTokenBucket(allowance, per_second=REQUESTS_PER_SECOND, burst=REQUESTS_BURST)
            if allowance
            else TokenBucket(per_second=REQUESTS_PER_SECOND, burst=REQUESTS_BURST)
        )
        self._timeout_s = timeout_s
        self._http: asyncio.Task[httpx.AsyncClient] | None = None

    async def __aenter__(self) -> RestClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        if self._http is None:
            return
        await asyncio.wait({self._http})
        if not self._http.cancelled() and not self._http.exception():
            await self._http.result().aclose()

    async def products(self) -> list[Product]:
        """All products, in the order of the exchange.

        Raises TransientError (any kind) when it may work later, ConfigurationError when the address is wrong.
        """
        answer = await self._get("/products")
        try:
            return _products.decode(answer.content)
        except ValueError as error:
            # A login page of a network in between answers 200, too.
            self.failures += 1
            raise TransientError(f"{answer.url} did not answer with products: {error}") from error

    async def trades(self, product: str, *, after: int | None, limit: int) -> Page:
        """The newest `limit` trades of `product` (at most 1,000) with ids below `after`; None: the newest of all.

        Raises TransientError (any kind) when it may work later, UnknownProduct, or ConfigurationError when
        the address is wrong.
        """
        query: dict[str, int | str] = {"limit": limit} if after is None else {"limit": limit, "after": after}
        answer = await self._get(f"/products/{product}/trades", query, f"{product} is no product there")
        received_ns = time.time_ns()
        try:
            ids = [row.trade_id for row in _rows.decode(answer.content)]
        except ValueError as error:
            self.failures += 1
            raise TransientError(f"{answer.url} did not answer with trades: {error}") from error
        if not all(newer > older for newer, older in pairwise(ids if after is None else [after, *ids])):
            self.failures += 1
            raise TransientError(f"{answer.url} did not answer with trades below {after}, newest first")
        return Page(answer.content, ids, received_ns)

    async def candles(self, product: str, first: datetime, last: datetime) -> list[Candle]:
        """The minutes that start from `first` to `last` (UTC, at most CANDLES_MAX), newest first.

        Raises as `trades`.
        """
        start, end = (f"{when:%Y-%m-%dT%H:%M:%SZ}" for when in (first, last))
        query: dict[str, int | str] = {"granularity": 60, "start": start, "end": end}
        answer = await self._get(f"/products/{product}/candles", query, f"{product} is no product there")
        try:
            return _candles.decode(answer.content)
        except ValueError as error:
            self.failures += 1
            raise TransientError(f"{answer.url} did not answer with candles: {error}") from error

    async def _get(self, path: str, query: Mapping[str, int | str] | None = None, unknown: str = "") -> httpx.Response:
        """A successful answer. `unknown`: what "404 Not Found" means, unless it means a wrong address."""
        await self._bucket.take()
        client = await self._client()
        self.requests += 1
        try:
            return await self._answer(client, path, query, unknown)
        except CryptoPulseError:
            self.failures += 1
            raise

    async def _answer(
        self, client: httpx.AsyncClient, path: str, query: Mapping[str, int | str] | None, unknown: str
    ) -> httpx.Response:
        url = self.base_url + path
        try:
            answer = await client.get(url, params=query)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigurationError(f"Setting feed.rest_url: {url} is not a web address: {error}.") from error
        except httpx.RequestError as error:
            raise Disconnected(f"{url} can't be reached: {str(error) or type(error).__name__}") from error
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise RateLimited(f"{url} answered 429: too many requests")
        if answer.is_server_error:
            raise TransientError(f"{url} answered {answer.status_code}")
        if answer.status_code == httpx.codes.NOT_FOUND and unknown:
            raise UnknownProduct(f"{url} answered 404: {unknown}.")
        if not answer.is_success:
            said = f" ({words})" if (words := _message_of(answer)) else ""
            raise ConfigurationError(f"{url} answered {answer.status_code}{said}; check the setting feed.rest_url.")
        return answer

    async def _client(self) -> httpx.AsyncClient:
        """The connections, made in a thread at the first request: certificates take 40 ms to load, and the feed must
        not wait for them."""
        if self._http is None:
            self._http = asyncio.create_task(asyncio.to_thread(self._connections))
        return await asyncio.shield(self._http)

    def _connections(self) -> httpx.AsyncClient:
        # Unencrypted addresses are local: neither the environment's proxy nor certificates are for them.
        is_encrypted = self.base_url.startswith("https:")
        try:
            return httpx.AsyncClient(
                timeout=self._timeout_s,
                headers={"User-Agent": "cryptopulse"},
                trust_env=is_encrypted,
                verify=is_encrypted,
            )
        except (OSError, ValueError, ImportError) as error:
            # A proxy or certificate file named by the environment is of no use, or needs what is not installed.
            raise ConfigurationError(f"Cannot set up requests to {self.base_url}: {error}.") from error


def _message_of(answer: httpx.Response) -> str:
    """What the exchange says about a refusal, "" when it says nothing that can be read."""
    try:
        return _refusal.decode(answer.content).message[:200]
    except ValueError:
        return ""


def page_ids(body: bytes) -> list[int]:
    """The ids of a page of trades, in its order; none of what is no such page."""
    try:
        return [row.trade_id for row in _rows.decode(body)]
    except ValueError:
        return []


def online_products(products: list[Product], quote_currency: str) -> list[str]:
    """Ids of the products that are traded against `quote_currency` now, sorted."""
    return sorted(
        product.id for product in products if product.quote_currency == quote_currency and product.status == "online"
    )
