"""Which proxy is used: the feed's sockets and REST requests go the same way, whatever the environment says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop
from feed_exchange import MB, producing, settings_for

from cryptopulse.errors import ConfigurationError, Disconnected
from cryptopulse.feed.proxy import proxy_for
from cryptopulse.feed.rest import RestClient
from cryptopulse.log.sqlite import SqliteLog

NAMES = ("https_proxy", "http_proxy", "all_proxy", "no_proxy")
URL = "https://api.exchange.coinbase.com"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "http://proxy:3128"}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "proxy:3128"}, "http://proxy:3128"),
        ({"HTTPS_PROXY": " proxy:3128/ "}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "me:secret@proxy:3128"}, "http://me:secret@proxy:3128"),
        ({"HTTPS_PROXY": "https://proxy"}, "https://proxy"),
        ({"HTTPS_PROXY": "HTTP://proxy:3128"}, "http://proxy:3128"),
        ({"HTTPS_PROXY": "[::1]:3128"}, "http://[::1]:3128"),
        ({"ALL_PROXY": "proxy:3128"}, "http://proxy:3128"),
        ({"all_proxy": "socks5://proxy:1081"}, "socks5://proxy:1081"),
        ({"ALL_PROXY": "socks5h://proxy"}, "socks5://proxy:1080"),
        ({"ALL_PROXY": "socks://proxy:1080/"}, "socks5://proxy:1080"),
        ({"HTTPS_PROXY": "first:1", "ALL_PROXY": "second:2"}, "http://first:1"),
        ({"HTTP_PROXY": "proxy:3128"}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "  "}, None),
        *(
            ({"ALL_PROXY": "proxy:1", "NO_PROXY": named}, None)
            for named in (
                "*",
                "a.example, *",
                "coinbase.com",
                ".coinbase.com",
                "a.example , .COINBASE.com",
                "api.exchange.coinbase.com",
                "api.exchange.coinbase.com:443",
            )
        ),
        *(
            ({"ALL_PROXY": "proxy:1", "NO_PROXY": named}, "http://proxy:1")
            for named in ("", "base.com", "www.coinbase.com", "api.exchange.coinbase.com:444", "10.0.0.0/8", "/", ",")
        ),
    ],
)
def test_the_environment_names_one_proxy_for_both(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(URL) == proxy_for(URL.replace("https", "wss")) == expected
    assert proxy_for("http://localhost:8000") is proxy_for("ws://localhost:8000") is None


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("https://10.1.2.3/", "10.0.0.0/8"),
        ("https://10.1.2.3:8443/", "10.1.2.3:8443"),
        ("https://[fd00::1]/", "fd00::/8"),
        ("https://[fd00::1]/", "fd00::1"),
        ("wss://[fd00::1]:9/", "[fd00::1]"),
    ],
)
def test_addresses_and_networks_are_excepted_as_well(monkeypatch: pytest.MonkeyPatch, url: str, named: str) -> None:
    monkeypatch.setenv("ALL_PROXY", "proxy:1")
    assert proxy_for(url) == "http://proxy:1"
    monkeypatch.setenv("NO_PROXY", named)
    assert proxy_for(url) is None


@pytest.mark.parametrize(
    "given",
    [
        "quic://127.0.0.1:9",
        "http://proxy:port",
        "http://",
        "http://[::1",
        "proxy:0",
        "proxy:99999",
        "socks4://a:1",
        "a b:1",
    ],
)
def test_a_proxy_that_is_none_is_said_by_both_without_its_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", given.replace("://", "://me:secret@"))
    monkeypatch.chdir(tmp_path)

    async def ask() -> None:
        async with RestClient(URL, per_second=10) as rest:
            await rest.products()

    async def record() -> None:
        async with producing(settings_for(URL.replace("https", "wss")), SqliteLog(tmp_path / "log.db", 256 * MB)):
            pass

    for attempt in (ask, record):
        with pytest.raises(ConfigurationError, match="ALL_PROXY") as told:
            uvloop.run(attempt())
        assert "secret" not in str(told.value)


@dataclass
class Proxy:
    """Takes notes of where it is asked to connect to, and refuses."""

    port: int = 0
    asked: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            first = await reader.readexactly(1)
            if first == b"\x05":
                await reader.readexactly((await reader.readexactly(1))[0])
                writer.write(b"\x05\x00")
                await reader.readexactly(4)
                name = await reader.readexactly((await reader.readexactly(1))[0])
                port = int.from_bytes(await reader.readexactly(2))
                self.asked.append(f"socks {name.decode()}:{port}")
                writer.write(b"\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00")
            else:
                head = first + await reader.readuntil(b"\r\n\r\n")
                self.asked.append(f"http {head.split()[1].decode()}")
                writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
        writer.close()


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"])
@pytest.mark.parametrize("scheme", ["", "http://", "socks5://", "socks5h://"])
def test_feed_and_rest_go_through_the_same_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, scheme: str
) -> None:
    monkeypatch.chdir(tmp_path)
    proxy = Proxy()

    async def scenario() -> None:
        async with proxy.listening():
            monkeypatch.setenv(name, f"{scheme}127.0.0.1:{proxy.port}")
            async with RestClient("https://exchange.invalid", per_second=10) as rest:
                with pytest.raises(Disconnected):
                    await rest.products()
            asked = len(proxy.asked)
            log = SqliteLog(tmp_path / "log.db", 256 * MB)
            async with producing(settings_for("wss://exchange.invalid"), log), asyncio.timeout(60):
                while len(proxy.asked) == asked:  # noqa: ASYNC110 - the proxy has no event to wait for
                    await asyncio.sleep(0.01)
            log.close()

    uvloop.run(scenario())
    kind = "socks" if scheme.startswith("socks") else "http"
    assert set(proxy.asked) == {f"{kind} exchange.invalid:443"}
