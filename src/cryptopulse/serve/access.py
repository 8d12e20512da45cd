"""Who may come in: the token, the cookie that a browser gets for it, and how often somebody may guess.

No I/O. Times are seconds of a clock that the caller chooses and passes in; the cookie's are seconds since 1970.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections import OrderedDict
from typing import Final

SESSION_S: Final = 7 * 86_400
"""A browser stays logged in for so long."""

_GUESSES = 10  # wrong tokens in a row that are answered at once
_GUESS_EVERY_S = 6.0  # then so seldom; a scraper with an old token, every 15 s, never gets there
_ADDRESSES_MAX = 4096
_COOKIE = re.compile(r"(\d{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})")


class Access:
    """Knows the token. Compares in constant time, and gives browsers something else than the token itself."""

    def __init__(self, token: str) -> None:
        """The cookies of an earlier process with the same token stay good."""
        self._token = _digest(token)
        self._key = hmac.new(token.encode(), b"cryptopulse session", hashlib.sha256).digest()
        # Cookies are by host name, not by port: two servers on one machine must not take each other's place.
        name = hmac.new(token.encode(), b"cryptopulse cookie name", hashlib.sha256).hexdigest()
        self.cookie_name: Final = f"cryptopulse-{name[:12]}"

    def knows(self, token: str) -> bool:
        """Whether it is the token."""
        return hmac.compare_digest(_digest(token), self._token)

    def new_session(self, now_s: float) -> str:
        """The value of a cookie that is good for `SESSION_S` seconds."""
        said = f"{int(now_s + SESSION_S)}.{secrets.token_hex(16)}"
        return f"{said}.{self._signature(said)}"

    def is_session(self, cookie: str, now_s: float) -> bool:
        """Whether `cookie` is the value of one that is still good."""
        found = _COOKIE.fullmatch(cookie)
        if found is None:
            return False
        is_ours = hmac.compare_digest(found[3], self._signature(f"{found[1]}.{found[2]}"))
        return is_ours and int(found[1]) > now_s

    def _signature(self, said: str) -> str:
        return hmac.new(self._key, said.encode(), hashlib.sha256).hexdigest()


class Guesses:
    """How many wrong tokens each address may try: some at once, then one every few seconds."""

    def __init__(self) -> None:
        """Nobody has tried yet."""
        self._full_at_s: OrderedDict[str, float] = OrderedDict()

    def wait_s(self, address: str, now_s: float) -> float:
        """Seconds until `address` may try again; 0: now."""
        debt_s = self._full_at_s.get(network_of(address), now_s) - now_s
        return max(0.0, debt_s - (_GUESSES - 1) * _GUESS_EVERY_S)

    def failed(self, address: str, now_s: float) -> None:
        """Takes note of a wrong token."""
        network = network_of(address)
        since_s = max(self._full_at_s.pop(network, now_s), now_s)
        self._full_at_s[network] = since_s + _GUESS_EVERY_S
        if len(self._full_at_s) > _ADDRESSES_MAX:
            self._full_at_s.popitem(last=False)


def network_of(address: str) -> str:
    """What guesses are counted by: an IPv4 address, or the /64 that one visitor has of IPv6."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 4:
        return str(ip)
    mapped = ip.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((ip, 64), strict=False))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
