"""The exchange's REST interface: which products there are.

Requests of the whole program share one rate limit, so one `RestClient` is made and passed around. Errors
come as the kinds that the retry policy knows: RateLimited, Disconnected and TransientError may pass,
ConfigurationError won't.
"""

from __future__ import annotations

import httpx
import msgspec

from cryptopulse.errors import ConfigurationError, Disconnected, RateLimited, TransientError
from cryptopulse.feed.rate_limit import TokenBucket

REQUESTS_PER_SECOND = 10
"""Coinbase's limit for one address."""

REQUESTS_BURST = 15

TIMEOUT_S = 10.0


class Product(msgspec.Struct, frozen=True):
    """What the feed needs to know of a product."""

    id: str
    quote_currency: str
    status: str = ""


_products = msgspec.json.Decoder(list[Product])


class RestClient:
    """Asks the REST interface at `base_url`, within the rate limit. To be closed, or used with `async
    with`."""

    def __init__(self, base_url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self.base_url = base_url.rstrip("/")
        self._bucket = TokenBucket(per_second=REQUESTS_PER_SECOND, burst=REQUESTS_BURST)
        try:
            self._http = httpx.AsyncClient(
                timeout=timeout_s,
                headers={"User-Agent": "cryptopulse"},
                # Unencrypted addresses are local: the environment's proxy is not for them.
                trust_env=base_url.startswith("https:"),
            )
        except (OSError, ValueError) as error:
            # A proxy or certificate file named by the environment is of no use.
            raise ConfigurationError(f"Cannot set up requests to {self.base_url}: {error}.") from error

    async def __aenter__(self) -> RestClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._http.aclose()

    async def products(self) -> list[Product]:
        """All products, in the order of the exchange.

        Raises TransientError (any kind) when it may work later, ConfigurationError when the address is wrong.
        """
        body = await self._get("/products")
        try:
            return _products.decode(body)
        except ValueError as error:
            # A login page of a network in between answers 200, too.
            raise TransientError(f"{self.base_url}/products did not answer with products: {error}") from error

    async def _get(self, path: str) -> bytes:
        """The body of a successful answer."""
        await self._bucket.take()
        url = self.base_url + path
        try:
            answer = await self._http.get(url)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigurationError(f"Setting feed.rest_url: {url} is not a web address: {error}.") from error
        except httpx.TransportError as error:
            raise Disconnected(f"{url} can't be reached: {str(error) or type(error).__name__}") from error
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise RateLimited(f"{url} answered 429: too many requests")
        if answer.is_server_error:
            raise TransientError(f"{url} answered {answer.status_code}")
        if not answer.is_success:
            raise ConfigurationError(f"{url} answered {answer.status_code}; check the setting feed.rest_url.")
        return answer.content


def online_products(products: list[Product], quote_currency: str) -> list[str]:
    """Ids of the products that are traded against `quote_currency` now, sorted."""
    return sorted(
        product.id for product in products if product.quote_currency == quote_currency and product.status == "online"
    )
