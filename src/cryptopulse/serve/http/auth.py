"""Authentication: the token, browser sessions, the login form; and which Host and Origin headers are allowed.

The caller passes the time: seconds of a clock of its choice, for sessions seconds since 1970. The only I/O is a folder
with an empty file for each revoked session, so that several servers can share it without overwriting each other.

Starlette's middleware does less. `TrustedHostMiddleware` knows no IP addresses and no exception for requests with the
token; `SessionMiddleware` can't revoke a session, and decides `Secure` once instead of per request.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import os
import re
import secrets
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from cryptopulse.settings.serve import LOOPBACK, ServeSettings
from cryptopulse.token_bucket import TokenBucket

SESSION_S: Final = 7 * 86_400
"""How long a browser stays logged in."""
LOGIN_PATH: Final = "/login"
LOGOUT_PATH: Final = "/logout"
FORM_CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""For the page with the login form."""
FORM_BYTES_MAX: Final = 8192
"""A longer form is not read."""

_IP_LETTERS_MAX = 100  # an IPv6 address with the name of a network interface; a Host header may be much longer
_FAILURES = 10  # wrong tokens in a row that are answered at once
_FAILURE_EVERY_S = 6.0  # then one per 6 s; a scraper with an old token, every 15 s, never reaches the limit
_ADDRESSES_MAX = 4096
_SESSION = re.compile(r"\d{1,12}\.[0-9a-f]{32}")  # expiry, and a random id
_COOKIE = re.compile(rf"({_SESSION.pattern})\.([0-9a-f]{{64}})")  # and the signature


class TokenAuth:
    """Verifies the token and the session cookies that browsers get for it. Compares in constant time."""

    def __init__(self, token: str, revoked: Path | None = None) -> None:
        """`revoked`: folder of revoked sessions. Cookies of other processes with the same token are valid as well."""
        self._token = hashlib.sha256(token.encode()).digest()
        self._key = hmac.new(token.encode(), b"cryptopulse session", hashlib.sha256).digest()
        # Cookies belong to a host, not a port: two servers on one machine must not overwrite each other's.
        name = hmac.new(token.encode(), b"cryptopulse cookie name", hashlib.sha256).hexdigest()
        self.cookie_name: Final = f"cryptopulse-{name[:12]}"
        self._folder = revoked
        self._revoked: set[str] = set()

    def is_token(self, token: str) -> bool:
        """Whether it is the token."""
        return hmac.compare_digest(hashlib.sha256(token.encode()).digest(), self._token)

    def new_session(self, now_s: float) -> str:
        """The value of a cookie that is valid for `SESSION_S` seconds."""
        session = f"{int(now_s + SESSION_S)}.{secrets.token_hex(16)}"
        return f"{session}.{self._signature(session)}"

    def is_session(self, cookie: str, now_s: float) -> bool:
        """Whether `cookie` is the value of a session that is still valid."""
        found = _COOKIE.fullmatch(cookie)
        if found is None:
            return False
        session, signature = found.groups()
        if not hmac.compare_digest(signature, self._signature(session)) or _expiry_s(session) <= now_s:
            return False
        if session in self._revoked:
            return False
        # Not Path.exists, which raises if we may not read the folder.
        return self._folder is None or not os.path.exists(self._folder / session)  # noqa: PTH110

    def end_session(self, cookie: str, now_s: float) -> None:
        """Revokes `cookie`, the value of a session that is still valid."""
        session = cookie.rpartition(".")[0]
        self._revoked = {one for one in self._revoked if _expiry_s(one) > now_s} | {session}
        if self._folder is not None:
            with suppress(OSError):  # if the folder can't be written, it stays revoked while the process runs
                self._folder.mkdir(parents=True, exist_ok=True)
                (self._folder / session).touch()
                for old in self._folder.iterdir():
                    if _SESSION.fullmatch(old.name) and _expiry_s(old.name) <= now_s:
                        old.unlink(missing_ok=True)

    def _signature(self, session: str) -> str:
        return hmac.new(self._key, session.encode(), hashlib.sha256).hexdigest()


def _expiry_s(session: str) -> int:
    return int(session.partition(".")[0])


class FailureLimit:
    """Limits how many wrong tokens each address may try: ten at once, then one every 6 s."""

    def __init__(self) -> None:
        """Nobody has tried yet."""
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def wait_s(self, address: str, now_s: float) -> float:
        """Seconds until `address` may try again; 0 when it may now."""
        bucket = self._buckets.get(visitor_key(address))
        return bucket.wait_s(now_s) if bucket else 0.0

    def failed(self, address: str, now_s: float) -> None:
        """Counts a wrong token."""
        network = visitor_key(address)
        bucket = self._buckets.pop(network, None) or TokenBucket(_FAILURES, _FAILURE_EVERY_S)
        bucket.take(now_s)
        self._buckets[network] = bucket
        if len(self._buckets) > _ADDRESSES_MAX:
            self._buckets.popitem(last=False)


def parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address; None for a name, or a socket without one."""
    return _parse_ip(text) if len(text) <= _IP_LETTERS_MAX else None


@lru_cache(maxsize=1024)  # asked several times for each connection
def _parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def visitor_key(address: str) -> str:
    """The key by which a visitor is counted: an IPv4 address, or the /64 of an IPv6 address."""
    ip = parse_ip(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), 64), strict=False))
    return address


def server_names(settings: ServeSettings) -> frozenset[str]:
    """The host names, in lower case, under which the server may be requested."""
    return frozenset(name.lower() for name in (*LOOPBACK, settings.host, *settings.allowed_hosts))


def is_allowed_host(host: str, names: Collection[str]) -> bool:
    """Whether the header `Host: host` names this server.

    With DNS rebinding, a foreign page can make a browser request us under a name of its choice, so names are checked.
    An IP address is always allowed: a browser sends it only when the page was loaded from there.
    """
    found = _host_port(host, "http")
    return found is not None and (found[0] in names or parse_ip(found[0]) is not None)


def is_allowed_origin(origin: str, host: str, names: Collection[str]) -> bool:
    """Whether a page of `origin` (the header) is ours, for a request to `host` (the header).

    Behind a proxy that changes Host, its name must be in `names`.
    """
    scheme, _, netloc = origin.partition("://")
    found = _host_port(netloc, scheme) if scheme in ("http", "https") else None
    if found is None:
        return False
    return found == _host_port(host, scheme) or (found[0] in names and found[0] not in LOOPBACK)


def _host_port(netloc: str, scheme: str) -> tuple[str, int] | None:
    """Host in lower case, and port; None when it is not exactly one host."""
    try:
        parts = urlsplit(f"//{netloc}")
        port = parts.port  # raises ValueError when it is invalid
    except ValueError:
        return None
    if not parts.hostname or parts.username is not None or parts.path or parts.query or parts.fragment:
        return None
    return parts.hostname, port or {"http": 80, "https": 443}[scheme]


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="dark light">
<title>CryptoPulse: log in</title>
<style>
:root {{ color-scheme: dark light; font: 16px/1.5 system-ui, sans-serif; }}
body {{ display: grid; min-height: 100vh; margin: 0; place-items: center; }}
form {{ display: grid; gap: .75rem; width: min(22rem, 90vw); }}
h1 {{ margin: 0 0 .5rem; font-size: 1.4rem; }}
input, button {{ font: inherit; padding: .6rem .75rem; border-radius: .4rem; border: 1px solid #8888; }}
button {{ background: #1565c0; border-color: #1565c0; color: #fff; cursor: pointer; }}
[role=alert] {{ margin: 0; font-weight: 600; }}
small {{ opacity: .75; }}
</style>
</head>
<body>
<form method="post" action="{action}">
<h1>CryptoPulse</h1>
{alert}
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<input name="next" type="hidden" value="{target}">
<button>Log in</button>
<small>The token is the setting <code>serve.token</code> of the server.</small>
</form>
</body>
</html>
"""


def login_page(target: str, error: str = "") -> bytes:
    """The login form, without scripts. `target`: the path to redirect to after the login."""
    alert = f'<p role="alert">{html.escape(error)}</p>' if error else ""
    return _PAGE.format(action=LOGIN_PATH, alert=alert, target=html.escape(local_path(target))).encode()


def login_url(target: str) -> str:
    """The path of the login form that redirects to `target`."""
    return f"{LOGIN_PATH}?next={quote(local_path(target), safe='/')}"


def parse_form(form: bytes) -> tuple[str, str]:
    """Token and redirect path, from a submitted form or the form's query string."""
    try:
        found = parse_qs(form.decode(), max_num_fields=8)
    except ValueError:
        found = {}
    return found.get("token", [""])[-1], local_path(found.get("next", [""])[-1])


def local_path(path: str) -> str:
    """`path` if it leads to this server, else `/`: the login never redirects to another site."""
    # Browsers read a backslash as a slash, and ignore tabs and line ends.
    is_local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_local else "/"
