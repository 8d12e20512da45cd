"""A flood against the served side, on 127.0.0.1: what another viewer, health, memory and SIGTERM notice of it.

Streams of events, WebSockets that toggle their topics as fast as they can, half requests, endless headers and endless
bodies, all together and for a bounded time, against `cryptopulse serve` over a lake that is being written. The
attackers are a process of their own with less right to the cores than the server: from elsewhere they would take none.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from benchmarks.processes import Deployment, Exchange, MeasurementError, Scratch

_HOST = "127.0.0.1"
_MB = 1 << 20
_PIECE = b"X-Filler: " + b"a" * 8000 + b"\r\n"
_NICE = 10
_TOPICS = ("market", "alerts", "candles/BTC-USD/1s", "candles/ETH-USD/1m", "queries/hours", "product/BTC-USD")


@dataclass(frozen=True)
class Bounds:
    """What must hold."""

    viewer_p99_s: float = 1.0
    health_p99_s: float = 0.2
    memory_mb: float = 150.0
    stop_s: float = 3.0


@dataclass
class Seen:
    """What somebody who is no attacker noticed, in seconds."""

    viewer: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)


class Attack:
    """All attackers, until a moment."""

    def __init__(self, port: int, seconds: float) -> None:
        """Nobody attacks yet."""
        self._port = port
        self._end_s = time.monotonic() + seconds
        self.done: Counter[str] = Counter()

    async def run(self, streams: int, sockets: int, halves: int, pumps: int) -> None:
        """Attacks with so many of each at the same time."""
        ways = (
            *[self._stream] * streams,
            *[self._socket] * sockets,
            *[self._half] * halves,
            *[self._headers] * pumps,
            *[self._body] * pumps,
        )
        await asyncio.gather(*(self._again_and_again(way, number) for number, way in enumerate(ways)))

    async def _again_and_again(self, way: Callable[[int], Awaitable[None]], number: int) -> None:
        await asyncio.sleep(number % 100 / 100)
        while (left_s := self._end_s - time.monotonic()) > 0:
            with suppress(OSError, TimeoutError, WebSocketException, asyncio.IncompleteReadError):
                async with asyncio.timeout(left_s):
                    await way(number)
            self.done[way.__name__.removeprefix("_")] += 1
            await asyncio.sleep(0.2)

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(_HOST, self._port)

    async def _said(self, text: bytes, piece: bytes = b"", most: int = 0) -> None:
        """Says `text` and then `piece` until `most` bytes are out, and waits for the end."""
        reader, writer = await self._opened()
        try:
            writer.write(text)
            sent = 0
            while sent < most:
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
            while await reader.read(65_536):
                pass
        finally:
            writer.transport.abort()

    async def _stream(self, _number: int) -> None:
        await self._said(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")

    async def _half(self, number: int) -> None:
        await self._said([b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a"][number % 3])

    async def _headers(self, _number: int) -> None:
        await self._said(b"GET / HTTP/1.1\r\nHost: localhost\r\n", _PIECE, 120 * _MB)

    async def _body(self, number: int) -> None:
        head = b"POST /pages/trials HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        if number % 2:
            await self._said(head + b"Content-Length: 400000000\r\n\r\n", b" " * 65_536, 400 * _MB)
        else:
            chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
            await self._said(head + b"Transfer-Encoding: chunked\r\n\r\n", chunk, 400 * _MB)

    async def _socket(self, number: int) -> None:
        pause_s = 0 if number % 2 else 0.1  # half of them as fast as they can, half so that they are not cut off
        async with connect(f"ws://{_HOST}:{self._port}/live", max_size=None, proxy=None, compression=None) as ws:
            hearing = asyncio.create_task(_drained(ws))
            try:
                for turn in range(1_000_000):
                    await ws.send(json.dumps({"topics": [_TOPICS[(number + turn) % len(_TOPICS)]]}))
                    await asyncio.sleep(pause_s)
                    if hearing.done():
                        return
            finally:
                hearing.cancel()


async def _drained(ws: object) -> None:
    with suppress(WebSocketException):
        async for _message in ws:  # type: ignore[attr-defined]
            pass


async def watch(port: int, seconds: float) -> Seen:
    """Looks as a viewer who comes anew, and asks for health, until `seconds` are over."""
    seen, end_s = Seen(), time.monotonic() + seconds

    async def timed(into: list[float], what: str, ask: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while time.monotonic() < end_s:
            began_s = time.monotonic()
            try:
                async with asyncio.timeout(20):
                    await ask()
            except (OSError, TimeoutError, WebSocketException) as error:
                seen.failures[f"{what}: {type(error).__name__}"] += 1
            into.append(time.monotonic() - began_s)
            await asyncio.sleep(pause_s)

    async def first_message() -> None:
        async with connect(f"ws://{_HOST}:{port}/live", max_size=None, proxy=None) as ws:
            await ws.send('{"topics": ["lake", "market"]}')
            while not any(message["topic"] == "market" for message in json.loads(await ws.recv())):
                pass

    async def get(path: str) -> None:
        # By hand: a client of a library takes longer to be made than the server to answer.
        reader, writer = await asyncio.open_connection(_HOST, port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            if not (await reader.read()).startswith(b"HTTP/1.1 200 "):
                raise ConnectionError
        finally:
            writer.transport.abort()

    await asyncio.gather(
        timed(seen.viewer, "first message", first_message, 0.25),
        timed(seen.viewer, "page", lambda: get("/api/products"), 0.25),
        timed(seen.health, "health", lambda: get("/healthz"), 0.1),
    )
    return seen


def measure(
    folder: Path | None, seconds: float, clients: int, settle_s: float, say: Callable[[str], None]
) -> list[tuple[str, str, bool]]:
    """What was seen: a name, figures, and whether its bound was kept."""
    bounds, found = Bounds(), []
    with Scratch(folder) as scratch:
        deployment = Deployment(scratch, Exchange(scratch, 50, "all_subscribed"), options=["--no-dashboard"])
        deployment.wait_for(lambda: bool(deployment.report("processing").get("trades_total")), "a first trade")
        served = scratch.start("serve", "--lake", str(deployment.lake), "--port", "0")
        assert served.stdout is not None
        port = urlsplit(served.stdout.readline().removeprefix("Dashboard: ").strip()).port
        if port is None:
            raise MeasurementError("the dashboard did not start")
        process = psutil.Process(served.pid)

        say("quiet, 10 s")
        quiet = asyncio.run(watch(port, 10))
        before_mb = process.memory_info().rss / _MB
        say(f"flood, {clients} streams, {clients} WebSockets and more, {seconds:g} s")
        attackers = _attackers(port, seconds, clients)
        cpu_before = sum(process.cpu_times()[:2])
        seen = asyncio.run(watch(port, seconds))
        cores = (sum(process.cpu_times()[:2]) - cpu_before) / seconds
        peak_mb = process.memory_info().rss / _MB
        done = json.loads(attackers.communicate()[0])
        say(f"afterwards, {settle_s:g} s")
        time.sleep(settle_s)
        after_mb = process.memory_info().rss / _MB
        say("once more, and SIGTERM in the middle of it")
        attackers = _attackers(port, 15, clients)
        time.sleep(6)
        began_s = time.monotonic()
        served.send_signal(signal.SIGTERM)
        code = served.wait(60)
        stop_s = time.monotonic() - began_s
        attackers.communicate()
        deployment.stop()

    for name, quiet_s, flood_s, most_s in (
        ("another viewer, first message or answer", quiet.viewer, seen.viewer, bounds.viewer_p99_s),
        ("health", quiet.health, seen.health, bounds.health_p99_s),
    ):
        p99_s = float(np.percentile(flood_s, 99))
        found.append((name, f"p99 {_ms(p99_s)}, max {_ms(max(flood_s))} of {len(flood_s)}", p99_s < most_s))
        found.append((f"{name}, in quiet", f"p99 {_ms(float(np.percentile(quiet_s, 99)))}", True))
    found.append(("failures that they saw", str(dict(seen.failures) or 0), not seen.failures))
    grown_mb = after_mb - before_mb
    memory = f"{before_mb:.0f} MB before, {peak_mb:.0f} at the end, {after_mb:.0f} after {settle_s:g} s"
    found.append(("memory", memory, grown_mb < bounds.memory_mb))
    found.append(
        ("SIGTERM in the middle of a flood", f"{stop_s:.2f} s, exit code {code}", stop_s < bounds.stop_s and not code)
    )
    found.append(("cores of the server", f"{cores:.2f}", True))
    found.append(("attacks that ended and began anew", str(done), True))
    return found


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _attackers(port: int, seconds: float, clients: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.flood", "--attack", str(port), str(seconds), str(clients)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def _attack(port: int, seconds: float, clients: int) -> None:
    os.nice(_NICE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    attack = Attack(port, seconds)
    asyncio.run(attack.run(clients, clients, halves=max(clients * 2 // 5, 3), pumps=max(clients // 25, 2)))
    sys.stdout.write(json.dumps(attack.done))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when a bound was not kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--settle", type=float, default=60.0)
    parser.add_argument("--dir", type=Path, default=None)
    parser.add_argument("--attack", nargs=3, metavar=("PORT", "SECONDS", "CLIENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.attack:
        port, seconds, clients = options.attack
        _attack(int(port), float(seconds), int(clients))
        return 0
    try:
        found = measure(
            options.dir,
            options.seconds,
            options.clients,
            options.settle,
            lambda text: print(f"{text} …", file=sys.stderr),
        )
    except MeasurementError as error:
        print(f"The measurement failed: {error}.", file=sys.stderr)
        return 1
    for name, figures, is_kept in found:
        print(f"{'  ' if is_kept else '! '}{name:45} {figures}")
    return 0 if all(is_kept for _, _, is_kept in found) else 1


if __name__ == "__main__":
    sys.exit(main())
