"""The exchange's REST interface: the list of products, trades that the feed missed, and candles.

All requests of the program share one rate limit, so one `RestClient` is made and passed around. Errors are of the kinds
that the retry policy knows: RateLimited, Disconnected and TransientError may pass, ConfigurationError and
UnknownProduct won't. Proxies and gateways may answer in the exchange's place, so only a JSON answer, as the exchange
sends it, counts as a refusal.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

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
from cryptopulse.feed.proxy import proxy_for
from cryptopulse.token_bucket import RateLimiter
from cryptopulse.venues import Candle

_BURST_S = 1.5  # so many seconds' requests may be made at once: Coinbase allows bursts of 15

TIMEOUT_S = 10.0
"""For each part of an answer. The whole answer may take `_WHOLE` times as long, so that a trickling one ends too."""

_WHOLE = 3

ANSWER_MAX_BYTES = 16 * 1024 * 1024
"""The largest real answer, all products, has half a megabyte; a page of trades has 150 kB."""

_BANNED_MAX_S = 3600.0
RETRY_AFTER_MAX_S = 60.0
"""A longer Retry-After is cut to this: it may be a mistake, and one request a minute does no harm."""

PAGE_MAX = 1000
"""The exchange's limit of rows per page of trades."""

_OK = 200
_NOT_FOUND = 404
_TOO_MANY_REQUESTS = 429
_BANNED = 418  # Binance, after too many of the former
_REFUSALS = frozenset({400, 401, 404, 405, 406, 410, 414, 422, 451})
"""Statuses about the request itself. All others are about the moment or the network path, and may pass."""

_SHOWN_MAX = 200  # most characters of foreign text in an error message

Answer = TypeVar("Answer")


class ListedProduct(msgspec.Struct, frozen=True):
    """What the feed needs to know of a product."""

    id: str
    quote_currency: str
    status: str = ""


class _Row(msgspec.Struct, gc=False):
    """A trade, of which only the id is read here; the parser checks the rest."""

    trade_id: Annotated[int, msgspec.Meta(ge=1, le=2**62)]


class _Refusal(msgspec.Struct):
    message: str = ""
    msg: str = ""


class TradePage(NamedTuple):
    """Trades of one product, newest first: the body exactly as the exchange sent it, and the ids."""

    body: bytes
    ids: list[int]
    """See `page_ids`."""
    received_ns: int
    """ns since 1970, UTC."""
    times_ns: Sequence[int | None] | None = None
    """For each id a time near that of its trade, in ns UTC; None where it can't be read, and on Coinbase's pages."""


CANDLES_MAX = 300
"""Most candles in one answer."""

_refusal = msgspec.json.Decoder(_Refusal)
_product = msgspec.json.Decoder(ListedProduct)
_row = msgspec.json.Decoder(_Row, strict=False)  # like the parser, accepts an id in quotes
_rows = msgspec.json.Decoder(list[_Row])
_any_row = msgspec.json.Decoder(dict[str, msgspec.Raw])
_any_rows = msgspec.json.Decoder(list[msgspec.Raw])
_any_json = msgspec.json.Decoder(msgspec.Raw)
_candles = msgspec.json.Decoder(list[Candle])


class RestClient:
    """Sends requests to the REST interface at `base_url`, within the rate limit. Use it with `async with`."""

    def __init__(
        self,
        base_url: str,
        *,
        per_second: float,
        allowance: Path | None = None,
        timeout_s: float = TIMEOUT_S,
        setting: str = "feed.rest_url",
    ) -> None:
        """`per_second`: the rate limit, in requests; `allowance`: a file by which processes share it, None: the limit
        is for this object alone; `setting`: which setting has the address.

        Raises ConfigurationError for a `base_url` that is not a web address.
        """
        try:
            parts = urlsplit(base_url)
            httpx.URL(base_url)
            is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except (ValueError, httpx.InvalidURL):  # a port that is not a number, an incomplete IPv6 address
            is_address = False
        if not is_address:
            raise ConfigurationError(f"Setting {setting}: {base_url!r} is not a web address (https://…).")
        self.base_url = base_url.rstrip("/")
        self._setting = setting
        self.per_second = per_second
        self.page_max = PAGE_MAX
        """Most trades to ask for at once."""
        self.candles_max = CANDLES_MAX
        self.candles_kept: int | None = None
        """Most minutes to ask for at once, and how many of the newest ones there are; None: all."""
        self.requests = 0
        self.failures = 0
        """Requests without a usable answer."""
        self._limiter = RateLimiter(per_second=per_second, burst=math.ceil(per_second * _BURST_S), shared=allowance)
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

    async def products(self) -> list[ListedProduct]:
        """All products, in the order of the exchange; unreadable rows are left out.

        Raises TransientError (any kind) when it may work later, ConfigurationError when the address is wrong.
        """

        def read(body: bytes) -> list[ListedProduct]:
            found = []
            for row in _any_rows.decode(body):
                with suppress(ValueError, RecursionError):
                    found.append(_product.decode(row))
            if not found:
                raise ValueError("it names none")
            return found

        return await self._get("/products", "products", read)

    async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
        """The newest `limit` trades of `product` (at most PAGE_MAX) with ids below `after`; None: the newest of all.

        Raises TransientError (any kind) when it may work later, UnknownProduct when the exchange refuses the product,
        or ConfigurationError when requests can't be set up.
        """
        query: dict[str, int | str] = {"limit": limit} if after is None else {"limit": limit, "after": after}

        def read(body: bytes) -> TradePage:
            received_ns = time.time_ns()
            body.decode()  # the parser refuses anything that is not UTF-8
            ids = page_ids(body, after)
            if not all(newer > older for newer, older in pairwise(ids if after is None else [after, *ids])):
                raise ValueError(f"ids are not newest first{'' if after is None else f', below {after}'}")
            return TradePage(body, ids, received_ns)

        return await self._get(f"/products/{quote(product, safe='')}/trades", "trades", read, query, product)

    async def candles(self, product: str, first: datetime, last: datetime) -> list[Candle]:
        """The candles of the minutes that start from `first` to `last` (UTC, at most `candles_max`), in any order.

        Raises the same errors as `trades`.
        """
        start, end = (f"{when:%Y-%m-%dT%H:%M:%SZ}" for when in (first, last))
        query: dict[str, int | str] = {"granularity": 60, "start": start, "end": end}
        path = f"/products/{quote(product, safe='')}/candles"
        return await self._get(path, "candles", _candles.decode, query, product)

    async def _get(
        self,
        path: str,
        what: str,
        read: Callable[[bytes], Answer],
        query: Mapping[str, int | str] | None = None,
        product: str = "",
    ) -> Answer:
        """The result of `read`, which raises ValueError for a body that is not `what`. `product`: see `_check`."""
        await self._limiter.acquire()
        if self._http is None:
            # In a thread: loading certificates takes 40 ms, and the feed must not wait for that.
            self._http = asyncio.create_task(asyncio.to_thread(self._open))
        client = await asyncio.shield(self._http)
        self.requests += 1
        try:
            url = self.base_url + path
            answer, body = await self._answered(client, url, query)
            _check(url, answer, body, product, self._setting)
            try:
                return read(body)
            except (ValueError, RecursionError) as error:
                text = f"{answer.url} did not answer with {what}: {error}{_said(body)}"
                raise TransientError(text) from error
        except CryptoPulseError:
            self.failures += 1
            raise

    async def _answered(
        self, client: httpx.AsyncClient, url: str, query: Mapping[str, int | str] | None
    ) -> tuple[httpx.Response, bytes]:
        """An answer with any status, and its whole body. Raises Disconnected or TransientError."""
        request = client.build_request("GET", url, params=query)
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s * _WHOLE):
                answer = await client.send(request, stream=True)
                try:
                    async for part in answer.aiter_bytes():
                        body += part
                        if len(body) > ANSWER_MAX_BYTES:
                            raise TransientError(f"{url} sent more than {ANSWER_MAX_BYTES} bytes")
                finally:
                    await answer.aclose()
        except httpx.DecodingError as error:
            raise TransientError(f"{url} sent what can't be unpacked: {str(error)[:_SHOWN_MAX]}") from error
        except TimeoutError as error:
            raise Disconnected(f"{url} gave no whole answer within {self._timeout_s * _WHOLE:g} s") from error
        except (httpx.RequestError, httpx.InvalidURL, OSError) as error:  # InvalidURL: where a redirect points
            raise Disconnected(f"{url} can't be reached: {str(error)[:_SHOWN_MAX] or type(error).__name__}") from error
        return answer, bytes(body)

    def _open(self) -> httpx.AsyncClient:
        # Unencrypted addresses are local: they need neither the environment's proxy nor certificates.
        is_encrypted = self.base_url.startswith("https:")
        try:
            return httpx.AsyncClient(
                timeout=self._timeout_s,
                headers={"User-Agent": "cryptopulse"},
                transport=httpx.AsyncHTTPTransport(
                    verify=is_encrypted, trust_env=is_encrypted, proxy=proxy_for(self.base_url)
                ),
            )
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            # A bad address, or an unusable proxy or certificate file of the environment.
            raise ConfigurationError(f"Cannot set up requests to {self.base_url}: {error}.") from error


def _check(url: str, answer: httpx.Response, body: bytes, product: str, setting: str) -> None:
    """Raises the error for a status other than 200. `product`: the product requested; "" if none, then a refusal is
    about the address."""
    status = answer.status_code
    if status == _OK:
        return
    most_s = _BANNED_MAX_S if status == _BANNED else RETRY_AFTER_MAX_S
    retry_after_s = _retry_after_s(answer.headers.get("retry-after", ""), most_s)
    said = f"{url} answered {status}{_said(body)}"
    if status in (_TOO_MANY_REQUESTS, _BANNED):
        raise RateLimited(f"{said}: too many requests", retry_after_s=retry_after_s)
    if location := answer.headers.get("location", "") if answer.is_redirect else "":
        text = f"{said} and points to {location[:_SHOWN_MAX]}, which is not followed"
        raise TransientError(text, retry_after_s=retry_after_s)
    try:
        _any_json.decode(body or b"{}")
        is_json = True
    except (ValueError, RecursionError):
        is_json = False
    if status not in _REFUSALS or not is_json:  # the exchange's own refusals are JSON
        raise TransientError(said, retry_after_s=retry_after_s)
    if product:
        meaning = f"{product} is no product there" if status == _NOT_FOUND else f"it refuses {product}"
        raise UnknownProduct(f"{said}: {meaning}.")
    raise ConfigurationError(f"{said}; check the setting {setting}.")


def _retry_after_s(header: str, most_s: float = RETRY_AFTER_MAX_S) -> float:
    """Seconds to wait by a Retry-After header, at most `most_s`; 0 if it can't be read."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), most_s)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return min(max(when.timestamp() - time.time(), 0.0), most_s)


def _said(body: bytes) -> str:
    """The message in an unusable answer, as the end of a sentence; "" if there is none that can be read."""
    if body.lstrip().startswith(b"<"):
        return " (a web page)"
    try:
        said = _refusal.decode(body)
        words = (said.message or said.msg)[:_SHOWN_MAX]
    except (ValueError, RecursionError):
        return ""
    return f" ({words})" if words else ""


def page_ids(body: bytes, after: int | None = None) -> list[int]:
    """The ids of a page of trades below `after`, in the page's order.

    A row whose id can't be read gets the ids that fit its place, since ids are dense: the row exists, and the parser
    will refuse it. Raises ValueError for a body that is not a page of trades.
    """
    try:
        return [row.trade_id for row in _rows.decode(body)]
    except msgspec.ValidationError:
        rows = _any_rows.decode(body)
    ids = [id_of(row) for row in rows]
    if not any(ids):
        members: set[str] = set()
        for row in rows:
            with suppress(ValueError, RecursionError):
                members.update(_any_row.decode(row))
        if members.isdisjoint({"trade_id", "price", "size"}):
            raise ValueError("no row is a trade")
    return _completed(ids, after)


def id_of(row: msgspec.Raw) -> int | None:
    """The id of a row of a page; None if it can't be read."""
    try:
        return _row.decode(row).trade_id
    except (ValueError, RecursionError):
        return None


def _completed(ids: Sequence[int | None], after: int | None) -> list[int]:
    """`ids`, newest first, with None replaced by the ids that fit."""
    found: list[int] = []
    unread = 0
    for number in ids:
        if number is None:
            unread += 1
            continue
        if unread:
            # Any of the ids between two rows may be that of an unreadable row, so take all of them.
            above = found[-1] if found else min(number + unread + 1, after or 2**63)
            found += range(above - 1, number, -1)[: max(unread, PAGE_MAX)]
        found.append(number)
        unread = 0
    below = found[-1] if found else after
    return found + list(range(below - 1, max(below - 1 - unread, 0), -1)) if below and unread else found


def online_products(products: list[ListedProduct], quote_currency: str) -> list[str]:
    """Ids of the products now traded against `quote_currency`, sorted."""
    return sorted(
        product.id for product in products if product.quote_currency == quote_currency and product.status == "online"
    )
