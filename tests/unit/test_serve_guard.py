"""The guard before a real server: pages, API, streams and WebSocket alike."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from support_processes import Processes, wait_until
from support_serve import TOKEN, Served

BEARER = {"Authorization": f"Bearer {TOKEN}"}
BROWSER = {"Accept": "text/html,*/*;q=0.8"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guard") / "lake"


def _with_page(served: Served) -> None:
    """What the dashboard is: pages and a WebSocket below /."""
    pages = FastAPI()

    @pages.get("/{path:path}")
    def page(path: str) -> str:
        return "page"

    @pages.websocket("/ws")
    async def websocket(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("hello")
        await ws.close()

    @pages.websocket("/waiting")
    async def waiting(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("hello")
        await ws.send_text(await ws.receive_text())

    served.app.mount("/", pages)


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[Served]:
    served = Served(folder, token=TOKEN, allowed_hosts=["trades.example.org"])
    _with_page(served)
    with served:
        yield served


@pytest.fixture(scope="module")
def local(folder: Path) -> Iterator[Served]:
    served = Served(folder)
    _with_page(served)
    with served:
        yield served


@pytest.fixture
def fresh(folder: Path) -> Iterator[Served]:
    """One that has seen no wrong token yet."""
    with Served(folder, token=TOKEN) as served:
        yield served


@pytest.mark.parametrize("path", ["/", "/api/products", "/api/openapi.json", "/api/events", "/metrics", "/_nicegui/x"])
def test_nothing_is_shown_without_the_token(guarded: Served, path: str) -> None:
    answer = guarded.get(path)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", ["/", "/api/products", "/api/openapi.json", "/metrics"])
def test_the_token_opens_everything(guarded: Served, path: str) -> None:
    assert guarded.get(path, headers=BEARER).status_code == 200


def test_healthz_is_open_and_readyz_says_details_only_to_who_has_the_token(guarded: Served) -> None:
    assert guarded.get("/healthz").json()["status"] == "ok"
    assert guarded.get("/healthz", headers={"Host": "anything.example"}).status_code == 200
    assert guarded.get("/readyz").json() == {"status": "not ready"}
    assert "not found" in guarded.get("/readyz", headers=BEARER).text


WRONG = {"Authorization": "Bearer wrong horse battery"}


def test_wrong_tokens_are_slowed_down_and_readyz_is_no_way_to_guess(fresh: Served) -> None:
    assert fresh.get("/api/products", headers=WRONG).status_code == 401
    for _ in range(20):
        assert fresh.get("/readyz", headers=WRONG).json() == {"status": "not ready"}
    slowed = fresh.get("/api/products", headers=WRONG)
    assert slowed.status_code == 429
    assert 1 <= int(slowed.headers["retry-after"]) <= 6


def test_guesses_of_others_keep_the_right_token_out_nowhere(fresh: Served) -> None:
    assert {fresh.get("/api/products", headers=WRONG).status_code for _ in range(60)} == {401, 429}
    for path in ("/api/products", "/metrics"):
        assert fresh.get(path, headers=BEARER).status_code == 200
    assert fresh.browser().post("/login", data={"token": TOKEN}).status_code == 303


def test_who_says_that_he_speaks_for_others_is_not_believed(fresh: Served) -> None:
    tries = [{**WRONG, "X-Forwarded-For": f"192.0.2.{number}"} for number in range(60)]
    statuses = [fresh.get("/api/products", headers=headers).status_code for headers in tries]
    assert statuses.count(401) <= 11  # ten at once, and one every 6 s


def test_a_proxy_that_is_named_is_believed(folder: Path) -> None:
    with Served(folder, token=TOKEN, proxies=["127.0.0.0/8"], allowed_hosts=["trades.example.org"]) as served:
        for number in range(12):
            headers = {**WRONG, "X-Forwarded-For": f"198.51.100.9, 192.0.2.{number}"}
            assert served.get("/api/products", headers=headers).status_code == 401
        headers = {"X-Forwarded-Proto": "https", "Host": "trades.example.org"}
        entered = served.browser().post("/login", data={"token": TOKEN}, headers=headers)
        assert "Secure" in entered.headers["set-cookie"]


def test_a_browser_is_sent_to_a_form_logs_in_and_stays_so(guarded: Served) -> None:
    with guarded.browser(headers=BROWSER) as browser:
        sent = browser.get("/product/BTC-USD?grain=1m")
        assert sent.status_code == 303
        form = browser.get(sent.headers["location"])
        assert form.status_code == 200
        assert "script" not in form.headers["content-security-policy"]
        assert 'value="/product/BTC-USD?grain=1m"' in form.text
        entered = browser.post("/login", data={"token": TOKEN, "next": "/product/BTC-USD?grain=1m"})
        assert (entered.status_code, entered.headers["location"]) == (303, "/product/BTC-USD?grain=1m")
        cookie = entered.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
        assert TOKEN not in cookie
        for path in ("/product/BTC-USD", "/api/products", "/metrics", "/readyz"):
            assert browser.get(path).status_code in (200, 503)
        assert browser.post("/logout").status_code == 303
        assert browser.get("/").status_code == 303


def test_a_session_that_was_ended_is_good_nowhere_not_even_after_a_restart(folder: Path) -> None:
    with Served(folder, token=TOKEN) as served, served.browser() as browser:
        browser.post("/login", data={"token": TOKEN})
        kept = {"Cookie": "; ".join(f"{name}={value}" for name, value in browser.cookies.items())}
        assert served.browser(headers=kept).get("/metrics").status_code == 200
        browser.post("/logout")
        assert served.browser(headers=kept).get("/metrics").status_code == 401
        with served.browser() as other:
            other.post("/login", data={"token": TOKEN})
            assert other.get("/metrics").status_code == 200
    with Served(folder, token=TOKEN) as again:
        assert again.browser(headers=kept).get("/metrics").status_code == 401


def test_a_logout_ends_what_the_session_has_open_and_nothing_else(guarded: Served) -> None:
    async def talk() -> None:
        url = f"ws://127.0.0.1:{guarded.port}/waiting"
        async with (
            httpx.AsyncClient(base_url=guarded.url, trust_env=False) as leaving,
            httpx.AsyncClient(base_url=guarded.url, trust_env=False) as staying,
        ):
            sockets = []
            for browser in (leaving, staying):
                await browser.post("/login", data={"token": TOKEN})
                cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
                sockets.append(await connect(url, additional_headers={"Cookie": cookie}, proxy=None))
                assert await sockets[-1].recv() == "hello"
            await leaving.post("/logout")
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(sockets[0].recv(), 60)
            await sockets[1].send("again")
            assert await sockets[1].recv() == "again"
            await sockets[1].close()

    asyncio.run(talk())


def test_the_form_says_what_is_wrong_and_slows_down_who_guesses(fresh: Served) -> None:
    with fresh.browser() as browser:
        first = browser.post("/login", data={"token": "wrong horse battery"})
        assert first.status_code == 401
        assert "Wrong token" in first.text
        for _ in range(10):
            last = browser.post("/login", data={"token": "wrong horse battery"})
        assert last.status_code == 429
        assert "wait" in last.text
        assert browser.post("/login", data={"token": TOKEN}).status_code == 303


def test_who_is_logged_in_is_not_kept_out_by_another_that_guesses(fresh: Served) -> None:
    with fresh.browser() as browser, fresh.browser() as other:
        assert browser.post("/login", data={"token": TOKEN}).status_code == 303
        for _ in range(12):
            other.post("/login", data={"token": "wrong horse battery"})
        assert browser.get("/api/products").status_code == 200


@pytest.mark.parametrize("body", [b"", b"token", b"x" * 60_000, b"\xff\xfe", b"&".join([b"a=1"] * 50)])
def test_a_form_that_is_none_is_no_login(fresh: Served, body: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert fresh.client.post("/login", content=body, headers=headers).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "a@127.0.0.1"])
def test_a_name_that_somebody_else_chose_is_refused_so_that_dns_rebinding_reads_nothing(
    local: Served, guarded: Served, host: str
) -> None:
    for path in ("/", "/api/products", "/metrics"):
        answer = local.get(path, headers={"Host": host})
        assert (answer.status_code, answer.json()["code"]) == (421, "unknown_host")
    assert local.get("/readyz", headers={"Host": host}).json() == {"status": "not ready"}
    assert guarded.get("/api/products", headers={"Host": host}).status_code == 421
    # A program that has the token may call us by the name of a service, which no page can make a browser do.
    assert guarded.get("/metrics", headers={"Host": host, **BEARER}).status_code == 200


def test_a_request_without_a_host_is_refused(local: Served) -> None:
    with socket.create_connection(("127.0.0.1", local.port)) as raw:
        raw.sendall(b"GET /api/products HTTP/1.0\r\n\r\n")
        assert b" 421 " in raw.recv(1000).splitlines()[0]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1"])
def test_pages_of_other_sites_may_not_ask(local: Served, origin: str) -> None:
    for path in ("/", "/api/products"):
        answer = local.get(path, headers={"Origin": origin})
        assert (answer.status_code, answer.json()["code"]) == (403, "foreign_origin")
    assert local.get("/api/products", headers={"Origin": local.url}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_a_page_of_another_site_can_make_no_browser_ask(local: Served, site: str) -> None:
    for mode, kind in (("no-cors", "image"), ("cors", "empty"), ("navigate", "iframe"), ("no-cors", "script")):
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": kind}
        for path in ("/", "/product/BTC-USD", "/api/trades", "/metrics", "/pages/episodes"):
            answer = local.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "foreign_page")
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert local.get("/product/BTC-USD", headers=link).status_code == 200
    assert local.get("/api/trades", headers=link).status_code == 403


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_own_pages_and_people_may_ask(local: Served, site: str) -> None:
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
    assert local.get("/api/products", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/api/products", "/api/products?limit=x", "/api/openapi.json", "/metrics", "/healthz", "/readyz", "/no"],
)
def test_head_says_what_get_says_without_the_body(local: Served, path: str) -> None:
    said, whole = local.client.head(path), local.get(path)
    assert (said.status_code, said.content) == (whole.status_code, b"")
    assert said.headers["content-type"] == whole.headers["content-type"]


def test_head_of_a_stream_ends(local: Served) -> None:
    said = local.client.head("/api/events", timeout=5)
    assert (said.status_code, said.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    wait_until(lambda: local.app.state.events.listeners == 0, "the stream has ended")


@pytest.mark.parametrize("path", ["/api/products", "/fails"])
def test_an_error_that_nobody_expected_is_a_number_in_the_answer_and_a_traceback_in_the_log(
    folder: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(folder)

    async def fails(_asked: int = 0) -> None:
        raise ZeroDivisionError("a secret")

    served.app.add_api_route("/fails", fails)
    monkeypatch.setattr(served.app.state.events._service, "products", fails)
    with capture_logs() as events, served:
        answer = served.get(path)
    assert (answer.status_code, answer.json()["code"]) == (500, "defect")
    (event,) = [event for event in events if event["event"] == "unexpected_error"]
    assert event["number"] in answer.json()["detail"]
    assert "a secret" not in answer.text
    assert isinstance(event["exc_info"], ZeroDivisionError)


async def _greeting(served: Served, **headers: str) -> str:
    url = f"ws://127.0.0.1:{served.port}/ws"
    async with connect(url, additional_headers=headers, proxy=None) as websocket:
        return str(await websocket.recv())


def test_the_websocket_is_open_to_own_pages_only(local: Served) -> None:
    assert asyncio.run(_greeting(local)) == "hello"
    assert asyncio.run(_greeting(local, Origin=local.url)) == "hello"
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}):
        with pytest.raises(InvalidStatus) as refused:
            asyncio.run(_greeting(local, **headers))
        assert refused.value.response.status_code == 403


def test_the_websocket_needs_the_token_or_the_cookie(guarded: Served) -> None:
    with pytest.raises(InvalidStatus):
        asyncio.run(_greeting(guarded))
    assert asyncio.run(_greeting(guarded, **BEARER)) == "hello"
    with guarded.browser() as browser:
        browser.post("/login", data={"token": TOKEN})
        cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    assert asyncio.run(_greeting(guarded, Cookie=cookie, Origin=guarded.url)) == "hello"
    with pytest.raises(InvalidStatus):
        asyncio.run(_greeting(guarded, Cookie=cookie, Origin="http://evil.example"))


def test_cookies_of_others_beside_ours_do_no_harm(guarded: Served) -> None:
    with guarded.browser() as browser:
        browser.post("/login", data={"token": TOKEN})
        ((name, value),) = browser.cookies.items()
    headers = {"Cookie": f'bad cookie="; a=1; {name}={value}; other="x y'}
    assert guarded.get("/api/products", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/products", "/healthz", "/login", "/api/nothing", "/metrics"])
def test_every_answer_tells_browsers_what_they_may_do_with_it(guarded: Served, path: str) -> None:
    answer: httpx.Response = guarded.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_the_real_server_guards_pages_and_sockets_and_tells_listeners_of_its_end(processes: Processes) -> None:
    served = processes.start("serve", "--lake", "lake", "--port", "0", SERVE__TOKEN=TOKEN)
    assert served.popen.stdout is not None
    url = served.popen.stdout.readline().removeprefix("Dashboard: ").strip()
    live, closed = (
        f"{url.replace('http', 'ws', 1)}{path}"
        for path in ("/live", "/_nicegui_ws/socket.io/?EIO=4&transport=websocket")
    )
    with httpx.Client(base_url=url, trust_env=False, headers=BROWSER, timeout=30) as browser:
        assert browser.get("/").status_code == 303
        browser.post("/login", data={"token": TOKEN})
        page = browser.get("/")
        assert page.status_code == 200
        assert "script-src 'self'" in page.headers["content-security-policy"]
        cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())

        async def opens(address: str, **headers: str) -> bool:
            try:
                async with connect(address, additional_headers=headers, proxy=None):
                    return True
            except InvalidStatus:
                return False

        assert asyncio.run(opens(live, Cookie=cookie, Origin=url))
        assert not asyncio.run(opens(live, Origin=url))
        assert not asyncio.run(opens(live, Cookie=cookie, Origin="http://evil.example"))
        assert not asyncio.run(opens(closed, Cookie=cookie, Origin=url))  # the pages need it for nothing
        assert browser.get("/_nicegui_ws/socket.io/?EIO=4&transport=polling").status_code == 404
        with browser.stream("GET", "/api/events") as events:
            lines = events.iter_lines()
            next(lines)
            served.popen.terminate()
            assert "event: end" in list(lines)
    assert served.popen.wait(10) == 0
