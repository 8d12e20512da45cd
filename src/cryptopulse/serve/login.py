"""The form by which a browser says the token, as HTML without any script."""

from __future__ import annotations

import html
from typing import Final
from urllib.parse import parse_qs, quote

LOGIN: Final = "/login"
LOGOUT: Final = "/logout"

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Of the form's page."""

FORM_BYTES_MAX: Final = 8192
"""A longer form is not read."""

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
{said}
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<input name="next" type="hidden" value="{after}">
<button>Log in</button>
<small>It is what the server was started with as <code>serve.token</code>.</small>
</form>
</body>
</html>
"""


def page(after: str, said: str = "") -> bytes:
    """The form. `after`: the path to go on to; `said`: what went wrong."""
    alert = f'<p role="alert">{html.escape(said)}</p>' if said else ""
    return _PAGE.format(action=LOGIN, said=alert, after=html.escape(own_path(after))).encode()


def address(after: str) -> str:
    """The path of the form that goes on to `after`."""
    return f"{LOGIN}?next={quote(own_path(after), safe='/')}"


def asked_after(query: bytes) -> str:
    """The path to go on to, of the form's query string."""
    return _last(query, "next")


def filled_in(body: bytes) -> tuple[str, str]:
    """The token and the path to go on to, of a form that was sent."""
    return _last(body, "token"), own_path(_last(body, "next"))


def own_path(path: str) -> str:
    """`path` if it leads to this server, else `/`: nobody is sent elsewhere after the login."""
    # Browsers read a backslash as a slash, and leave out tabs and line ends.
    is_ours = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_ours else "/"


def _last(form: bytes, name: str) -> str:
    try:
        found = parse_qs(form.decode(), max_num_fields=8)
    except ValueError:
        return ""
    return found.get(name, [""])[-1]
