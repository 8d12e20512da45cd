"""Middleware before everything that is served: pages, their WebSocket, the API, streams. Refuses unauthorized requests.

A request must not be too large; its Host must be one of our names; its Origin, if it has one, must be one of our pages;
and it must carry the token if one is set: as `Authorization: Bearer`, or as the session cookie from the login form. A
request with the Bearer token can't come from a foreign page in a browser, so its Host and Origin are not checked.

The guard also answers HEAD for every path that knows GET, and answers unexpected errors.
"""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any, Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cryptopulse.serve.http import auth
from cryptopulse.serve.http.connections import BODY_BYTES_MAX, HEADERS_BYTES_MAX
from cryptopulse.serve.http.problems import Problem, defect
from cryptopulse.settings.serve import ServeSettings

_log = structlog.get_logger()

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
"""Answered without a token and for any Host; without a token the answers reveal little."""

_HEADERS: Final = {
    # NiceGUI's pages have inline scripts and styles, and Vue compiles templates in the browser.
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
_PROGRAM_PATHS = ("/api", "/metrics", "/pages", "/_nicegui")  # no login form for them, and no link to them


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, state_dir: Path) -> None:
        """`app`: the application behind the guard. `state_dir`: holds the revoked sessions, see `Settings`."""
        self._app = app
        self._names = auth.server_names(settings)
        revoked = state_dir / "sessions-ended"
        self._auth = auth.TokenAuth(settings.token.get_secret_value(), revoked) if settings.token else None
        self._failures = auth.FailureLimit()
        self._open: dict[str, set[asyncio.Task[Any]]] = {}
        """Requests in progress, by session cookie."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request, or passes it to the application."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})
        headers, is_http = Headers(scope=scope), scope["type"] == "http"
        received, has_begun = 0, False

        async def receiving() -> Message:
            """Limits a body without Content-Length."""
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if is_http and received > BODY_BYTES_MAX:
                problem = _too_large()
                raise HTTPException(problem.status, problem.detail, problem.headers)
            return message

        async def sending(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                answered = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    answered.setdefault(name, value)
            await send(message)

        try:
            if sum(len(name) + len(value) + 4 for name, value in headers.raw) > HEADERS_BYTES_MAX:
                raise Problem(431, "headers_too_large", f"The headers are longer than {HEADERS_BYTES_MAX} bytes.")
            if int(headers.get("content-length", 0)) > BODY_BYTES_MAX:
                raise _too_large()
            answer = await self._authorize(scope, headers, receiving)
        except Problem as problem:
            answer = problem.response()
        if answer is not None:
            if is_http:
                await answer(scope, receiving, sending)
            else:
                await send({"type": "websocket.close", "code": _WEBSOCKET_REFUSED})
            return

        # The application answers; a logout cancels what its session has open.
        session, task = self._session(headers), asyncio.current_task()
        assert task is not None
        tasks = self._open.setdefault(session, set()) if session else set()
        tasks.add(task)
        app = _head(self._app) if is_http and scope["method"] == "HEAD" else self._app
        try:
            await app(scope, receiving, sending)
        except asyncio.CancelledError:
            if session is None or session in self._open:
                raise
        except Exception as error:
            if not is_http and isinstance(error, OSError):  # the client is gone
                raise
            if not scope["state"].get("is_logged"):
                unexpected = defect(scope["path"], error)
                if is_http and not has_begun:
                    await unexpected.response()(scope, receiving, sending)
        finally:
            tasks.discard(task)
            if session and not tasks:
                self._open.pop(session, None)

    async def _authorize(self, scope: Scope, headers: Headers, receive: Receive) -> Response | None:
        """None when the request may pass; else the answer of login or logout, or a redirect. Raises Problem."""
        path, is_http = str(scope["path"]), scope["type"] == "http"
        if path in OPEN_PATHS:
            try:
                scope["state"]["is_trusted"] = self._is_bearer(scope, headers) or self._is_browser(headers)
            except Problem:
                scope["state"]["is_trusted"] = False
            return None
        if self._is_bearer(scope, headers):
            return None
        may_pass = self._is_browser(headers)
        is_page = not path.startswith(_PROGRAM_PATHS)
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            # The request comes from a page of another site. Only a link to one of our pages is allowed.
            is_link = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
            if not (is_link and is_page):
                raise Problem(403, "foreign_page", "Cross-site request refused.")
        if self._auth is not None and is_http and path in (auth.LOGIN_PATH, auth.LOGOUT_PATH):
            return await self._login_or_logout(Request(scope, receive), self._auth)
        if may_pass:
            return None
        if is_http and is_page and scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            query = scope["query_string"].decode("latin-1")
            return RedirectResponse(auth.login_url(f"{path}?{query}" if query else path), 303)
        raise _unauthorized("Send the token as `Authorization: Bearer <token>`, or log in at /login with a browser.")

    def _is_bearer(self, scope: Scope, headers: Headers) -> bool:
        """Whether the request has the token as Bearer. Raises Problem for a wrong token."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or self._auth is None:
            return False
        self._check_token(scope, self._auth, token.strip())
        return True

    def _is_browser(self, headers: Headers) -> bool:
        """Whether no token is set, or the session is valid. Raises Problem for a foreign Host or Origin."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not auth.is_allowed_host(host, self._names):
            raise Problem(421, "unknown_host", "Unrecognized Host header; add the name to serve.allowed_hosts.")
        if origin is not None and not auth.is_allowed_origin(origin, host, self._names):
            raise Problem(403, "foreign_origin", "Cross-origin request refused.")
        return self._auth is None or self._session(headers) is not None

    def _check_token(self, scope: Scope, auth_: auth.TokenAuth, token: str) -> None:
        """Raises Problem unless `token` is right. The right token always passes, whatever others guess."""
        if auth_.is_token(token):
            return
        address, now_s = str(scope["client"][0]) if scope.get("client") else "", time.monotonic()
        if wait_s := self._failures.wait_s(address, now_s):
            raise Problem(
                429,
                "too_many_tries",
                "Too many wrong tokens from this address; wait a little.",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )
        self._failures.failed(address, now_s)
        _log.warning("wrong_token", address=address, path=scope["path"])
        raise _unauthorized("Wrong token.")

    async def _login_or_logout(self, request: Request, auth_: auth.TokenAuth) -> Response:
        if request.method == "POST" and request.url.path == auth.LOGOUT_PATH:
            if session := self._session(request.headers):
                auth_.end_session(session, time.time())
                for task in self._open.pop(session, ()):  # its streams and WebSockets as well
                    task.cancel()
            response: Response = RedirectResponse(auth.LOGIN_PATH, 303)
            response.delete_cookie(auth_.cookie_name, httponly=True, samesite="strict")
            return response
        if request.method in ("GET", "HEAD") and request.url.path == auth.LOGIN_PATH:
            _, target = auth.parse_form(request.scope["query_string"])
            return _form(auth.login_page(target))
        if request.method != "POST":
            allowed = {"Allow": "GET, HEAD, POST"}
            raise Problem(405, "method_not_allowed", "Send the form with POST.", headers=allowed)
        body = b""
        try:
            async for part in request.stream():
                body += part
                if len(body) > auth.FORM_BYTES_MAX:  # too long to be ours
                    body = b""
                    break
        except ClientDisconnect:
            body = b""
        token, target = auth.parse_form(body)
        try:
            self._check_token(request.scope, auth_, token)
        except Problem as problem:
            return _form(auth.login_page(target, problem.detail), problem)
        response = RedirectResponse(target, 303)
        response.set_cookie(
            auth_.cookie_name,
            auth_.new_session(time.time()),
            max_age=auth.SESSION_S,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    def _session(self, headers: Headers) -> str | None:
        """The cookie of a valid session; None without one."""
        if self._auth is None:
            return None
        cookie = cookie_parser(headers.get("cookie", "")).get(self._auth.cookie_name)
        return cookie if cookie is not None and self._auth.is_session(cookie, time.time()) else None


def _head(app: ASGIApp) -> ASGIApp:
    """`app` for HEAD: calls it with GET and sends only the headers."""

    async def headed(scope: Scope, _receive: Receive, send: Send) -> None:
        is_sent = asyncio.Event()
        requests = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receiving() -> Message:
            if (request := next(requests, None)) is not None:
                return request
            await is_sent.wait()  # a stream ends when its listener is gone
            return {"type": "http.disconnect"}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                is_sent.set()

        await app({**scope, "method": "GET"}, receiving, sending)

    return headed


def _too_large() -> Problem:
    headers = {"Connection": "close"}  # the rest of the body is not read
    return Problem(413, "body_too_large", f"The body is longer than {BODY_BYTES_MAX} bytes.", headers=headers)


def _unauthorized(detail: str) -> Problem:
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="CryptoPulse"'})


def _form(content: bytes, problem: Problem | None = None) -> Response:
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": auth.FORM_CONTENT_SECURITY_POLICY,
        **(problem.headers if problem else {}),
    }
    return Response(content, problem.status if problem else 200, headers, "text/html")
