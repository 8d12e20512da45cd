"""The environment's proxy for an address, the same for the feed's sockets and for REST requests.

The rules are those of curl: `https_proxy`, else `all_proxy`, in small or large letters, unless `no_proxy` names the
host. Libraries accept different forms, so the address is brought into a form that all of them accept.
"""

from __future__ import annotations

from contextlib import suppress
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from cryptopulse.errors import ConfigurationError

_SCHEMES = {"http": "http", "https": "https", "socks5": "socks5", "socks5h": "socks5", "socks": "socks5"}
"""Schemes as users write them → as libraries accept them. The SOCKS proxy resolves host names in any case."""

_SOCKS_PORT = 1080


def proxy_for(url: str) -> str | None:
    """The proxy for `url`, as `http://…`, `https://…` or `socks5://…`; None: no proxy.

    Unencrypted addresses are local and have no proxy. Raises ConfigurationError for an unusable proxy address.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in {"wss", "https"} or _is_excepted(host, parts.port or 443):
        return None
    named = getproxies()
    given = (named.get("https") or named.get("all") or "").strip()
    if not given:
        return None
    text = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(text)
        scheme = _SCHEMES.get(parts.scheme)
        is_address = bool(parts.hostname) and parts.port != 0 and text.isprintable() and " " not in text
    except ValueError:  # a port that is not a number, an incomplete IPv6 address
        scheme, is_address = None, False
    if scheme is None or not is_address:
        shown = text.rpartition("@")[2]  # a password may come before the @
        raise ConfigurationError(
            f"Environment variable HTTPS_PROXY or ALL_PROXY: {shown!r} is no proxy; write http://host:port or "
            "socks5h://host:port."
        )
    port = f":{_SOCKS_PORT}" if scheme == "socks5" and parts.port is None else ""
    return f"{scheme}://{parts.netloc.rstrip(':')}{port}"


def _is_excepted(host: str, port: int) -> bool:
    """Whether `no_proxy` has the host: by its name, a domain, a network, or with its port; `*` means all."""
    names = [name.strip() for name in getproxies().get("no", "").split(",")]
    if "*" in names or proxy_bypass(host) or proxy_bypass(f"{host}:{port}"):
        return True
    try:
        address = ip_address(host)
    except ValueError:  # the host is a name
        return False
    for name in names:
        with suppress(ValueError):
            if address in ip_network(name.strip("[]"), strict=False):
                return True
    return False
