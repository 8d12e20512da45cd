"""Stands before everything that is served: pages, their WebSocket, the API, streams. Lets in who may come in.

A request must call us by a name of ours, come from a page of ours if it comes from a page, and carry the token if one
is set: as `Authorization: Bearer`, or as the cookie that the login form gives to browsers. Who carries the token as
Bearer is no page that a browser was lured to, so name and page don't matter then.
"""

from __future__ import annotations

import math
import time
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cryptopulse.serve import login
from cryptopulse.serve.access import SESSION_S, Access, Guesses
from cryptopulse.serve.origins import is_own_host, is_own_origin, own_names
from cryptopulse.serve.problems import Problem
from cryptopulse.settings_serve import ServeSettings

_log = structlog.get_logger()

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""Answered without a token and by any name; they say little to who has none."""

_HEADERS: Final = {
    # NiceGUI's pages carry their scripts and styles within them, and Vue compiles templates in the browser.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_WEBSOCKET_REFUSED: Final = 1008
_PLAIN_PATHS = ("/api", "/metrics", "/_nicegui")  # asked by programs: no form for them


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        """`app`: what is behind it."""
        self._app = app
        self._names = own_names(settings)
        self._access = Access(settings.token.get_secret_value()) if settings.token else None
        self._guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or passes on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http":
            send = _with_headers(send)
        try:
            answer = await self._answer(scope, receive)
        except Problem as problem:
            answer = problem.response()
        if answer is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _WEBSOCKET_REFUSED})
        else:
            await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """None to whoever may pass. Raises Problem to others."""
        headers, path = Headers(scope=scope), str(scope["path"])
        if path in OPEN_PATHS:
            scope["state"] = {**scope.get("state", {}), "is_trusted": self._is_trusted(scope, headers)}
            return None
        if self._is_bearer(scope, headers):
            return None
        self._check_names(headers)
        if self._access is None:
            return None
        if scope["type"] == "http" and path in (login.LOGIN, login.LOGOUT):
            return await self._logged_in_or_out(Request(scope, receive), self._access)
        return None if self._has_session(headers) else _refusal(scope, headers)

    def _is_trusted(self, scope: Scope, headers: Headers) -> bool:
        """Whether this request would be let in anywhere."""
        try:
            if self._is_bearer(scope, headers):
                return True
            self._check_names(headers)
        except Problem:
            return False
        return self._access is None or self._has_session(headers)

    def _is_bearer(self, scope: Scope, headers: Headers) -> bool:
        """Whether the token comes as Bearer. Raises Problem for a wrong one."""
        given = _bearer(headers)
        if given is None or self._access is None:
            return False
        self._check(scope, self._access, given)
        return True

    def _check_names(self, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_own_host(host, self._names):
            raise Problem(421, "unknown_host", "This server does not know that name; add it to serve.allowed_hosts.")
        if origin is not None and not is_own_origin(origin, host, self._names):
            raise Problem(403, "foreign_origin", "Pages of other sites may not ask this server.")

    def _check(self, scope: Scope, access: Access, token: str) -> None:
        """Raises Problem unless `token` is right, or when its sender has guessed too often."""
        address, now_s = _address(scope), time.monotonic()
        if wait_s := self._guesses.wait_s(address, now_s):
            raise Problem(
                429,
                "too_many_tries",
                "Too many wrong tokens came from this address: wait a little.",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
        if not access.knows(token):
            self._guesses.failed(address, now_s)
            _log.warning("wrong_token", address=address, path=scope["path"])
            raise _unauthorized("That is not the token.")

    async def _logged_in_or_out(self, request: Request, access: Access) -> Response:
        if request.method == "POST" and request.url.path == login.LOGOUT:
            response: Response = RedirectResponse(login.LOGIN, 303)
            response.delete_cookie(access.cookie_name, httponly=True, samesite="strict")
            return response
        if request.method in ("GET", "HEAD") and request.url.path == login.LOGIN:
            return _form(login.page(login.asked_after(request.scope["query_string"])))
        if request.method != "POST":
            allowed = {"Allow": "GET, HEAD, POST"}
            raise Problem(405, "method_not_allowed", "The form is sent with POST.", headers=allowed)
        token, after = login.filled_in(await _body(request))
        try:
            self._check(request.scope, access, token)
        except Problem as problem:
            return _form(login.page(after, problem.detail), problem)
        response = RedirectResponse(after, 303)
        response.set_cookie(
            access.cookie_name,
            access.new_session(time.time()),
            max_age=SESSION_S,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    def _has_session(self, headers: Headers) -> bool:
        if self._access is None:
            return False
        cookie = cookie_parser(headers.get("cookie", "")).get(self._access.cookie_name)
        return cookie is not None and self._access.is_session(cookie, time.time())


def _refusal(scope: Scope, headers: Headers) -> Response:
    path = str(scope["path"])
    wants_page = scope["type"] == "http" and scope["method"] == "GET" and "text/html" in headers.get("accept", "")
    if wants_page and not path.startswith(_PLAIN_PATHS):
        query = scope["query_string"].decode("latin-1")
        return RedirectResponse(login.address(f"{path}?{query}" if query else path), 303)
    raise _unauthorized("Send the token as `Authorization: Bearer <token>`, or log in at /login with a browser.")


def _unauthorized(detail: str) -> Problem:
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="CryptoPulse"'})


def _form(content: bytes, problem: Problem | None = None) -> Response:
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": login.CONTENT_SECURITY_POLICY,
        **(problem.headers if problem else {}),
    }
    return Response(content, problem.status if problem else 200, headers, "text/html")


def _bearer(headers: Headers) -> str | None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def _address(scope: Scope) -> str:
    return str(scope["client"][0]) if scope.get("client") else ""


async def _body(request: Request) -> bytes:
    """Of a form; empty when it is too long to be ours."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > login.FORM_BYTES_MAX:
                return b""
    except ClientDisconnect:
        return b""
    return body


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
