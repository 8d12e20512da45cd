"""What is taken out of a lake that holds a crash day: files by `export`, and the messages again by `playback`."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from benchmarks.processes import MeasurementError, Scratch

_EXPORTS = (
    ("trades as CSV", ("trades", "trades.csv")),
    ("trades as Parquet", ("trades", "trades.parquet")),
    ("trades as Arrow", ("trades", "trades.arrow")),
    ("trades as CSV for kdb+", ("trades", "kdb.csv", "--format", "kdb")),
    ("trades as NautilusTrader's catalog", ("trades", "catalog", "--format", "nautilus")),
    ("BTC-USD's trades as hftbacktest's array", ("trades", "btc.npz", "--products", "BTC-USD")),
    ("bars of a minute as Parquet", ("bars", "bars.parquet")),
    ("bars of 10 s as Parquet", ("bars", "seconds.parquet", "--grain", "10s")),
    ("bars of 10,000 trades as Parquet", ("activity-bars", "t.parquet", "--by", "trades", "--size", "10000")),
    ("bars of 1,000,000 of value as Parquet", ("activity-bars", "v.parquet", "--by", "notional", "--size", "1000000")),
)
_SILENT_S = 2.0  # after the last message
_RECEIVE_BYTES = 1 << 20


@dataclass(frozen=True)
class Reading:
    """One way to read, with the start and the end of its process (but for the playback's)."""

    what: str
    rows: int
    """Written, or sent."""
    seconds: float
    cpu_s: float
    """User and system."""


def measure(folder: Path, trades: int, say: Callable[[str], None]) -> list[Reading]:
    """Fills a lake under `folder` with a crash day of `trades`, and reads it in each way once.

    Raises MeasurementError when a command fails.
    """
    with Scratch(folder) as scratch:
        recording, lake = scratch.folder / "crash-day.jsonl", scratch.folder / "lake"
        say(f"filling a lake with a crash day of {trades:,} trades")
        _run(scratch, "simulate", "--crash-day", str(recording), "--trades", str(trades), "--json")
        _run(scratch, "replay", str(recording), "--lake", str(lake), "--json")
        recording.unlink()
        found = []
        for what, (rows, name, *options) in _EXPORTS:
            say(f"export: {what}")
            begun = time.monotonic()
            told, cpu_s = _run(
                scratch, "export", rows, str(scratch.folder / name), *options, "--lake", str(lake), "--json"
            )
            found.append(Reading(f"export: {what}", json.loads(told)["rows"], time.monotonic() - begun, cpu_s))
        say("playback, as fast as one reader reads")
        return [*found, _playback(scratch, lake)]


def _run(scratch: Scratch, *command: str) -> tuple[str, float]:
    """What a command prints, and its CPU time (s)."""
    popen = scratch.start(*command)
    assert popen.stdout is not None
    told = popen.stdout.read()
    _, status, usage = os.wait4(popen.pid, 0)
    popen.returncode = os.waitstatus_to_exitcode(status)
    if popen.returncode:
        raise MeasurementError(f"`cryptopulse {command[0]}` ended with exit code {popen.returncode}")
    return told, usage.ru_utime + usage.ru_stime


def _playback(scratch: Scratch, lake: Path) -> Reading:
    """All messages of `lake` to a reader that only counts frames; from the subscription to the last byte."""
    popen = scratch.start("playback", "--lake", str(lake), "--speed", "0", "--port", "0", "--json")
    assert popen.stdout is not None
    told = json.loads(popen.stdout.readline())
    address = urlsplit(told["exchange_url"])
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(
            b"GET /exchange HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(1)
        request = {"type": "subscribe", "product_ids": told["products"], "channels": ["matches", "heartbeat"]}
        body = msgspec.json.encode(request)
        client.sendall(bytes([0x81, 0x80 | 126]) + len(body).to_bytes(2) + bytes(4) + body)  # masked with zeros
        client.settimeout(_SILENT_S)
        received, begun, last = bytearray(), time.monotonic(), time.monotonic()
        while True:
            try:
                part = client.recv(_RECEIVE_BYTES)
            except TimeoutError:
                break
            received += part
            last = time.monotonic()
    popen.terminate()
    _, status, usage = os.wait4(popen.pid, 0)
    popen.returncode = os.waitstatus_to_exitcode(status)
    frames = frames_in(received) - 1  # the first is the answer to the subscription
    return Reading("playback to one reader", frames, last - begun, usage.ru_utime + usage.ru_stime)


def frames_in(received: bytes | bytearray) -> int:
    """How many whole frames of a server these are."""
    count = at = 0
    while at + 2 <= len(received):
        size = received[at + 1]
        at += 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(received[at : at + width]), at + width
        at += size
        count += at <= len(received)
    return count
