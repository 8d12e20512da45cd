"""From which pages a browser may be sent here: our own, by a name that we know.

A page elsewhere can make a browser ask us things, and by DNS rebinding under a name that the page chose. So names are
checked, and so is the page that a request comes from. An address in numbers is always good: a browser only sends it
when the page that asks was loaded from there, and no rebinding changes what a number means.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import SplitResult, urlsplit

from cryptopulse.settings_serve import LOOPBACK, ServeSettings


def own_names(settings: ServeSettings) -> frozenset[str]:
    """The names by which the server may be called."""
    return frozenset(name.lower() for name in (*LOOPBACK, settings.host, *settings.allowed_hosts))


def is_own_host(host: str, names: Collection[str]) -> bool:
    """Whether the header `Host: host` names us."""
    name = _name(host)
    return name is not None and (name in names or _is_number(name))


def is_own_origin(origin: str, host: str, names: Collection[str]) -> bool:
    """Whether a page of `origin` (the header) is ours, when the request went to `host` (the header).

    Behind a proxy that changes Host, the name in `names` is what makes it ours.
    """
    parts = _split(origin)
    if parts is None or parts.scheme not in ("http", "https") or not parts.netloc:
        return False
    if _with_port(parts.netloc, parts.scheme) == _with_port(host, parts.scheme):
        return True
    name = _name(parts.netloc)
    return name is not None and name in names and name not in LOOPBACK


def _name(netloc: str) -> str | None:
    parts = _split(f"//{netloc}")
    if parts is None or parts.username is not None or parts.path:
        return None
    return parts.hostname


def _with_port(netloc: str, scheme: str) -> tuple[str | None, int]:
    parts = _split(f"//{netloc}")
    if parts is None:
        return None, 0
    return parts.hostname, parts.port or {"http": 80, "https": 443}[scheme]


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises when it is none
    except ValueError:
        return None
    return parts


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
