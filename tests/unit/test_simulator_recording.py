"""Recordings: read exactly, served at their own pace or any other."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from simulator_server import run, simulator, subscribe

from cryptopulse.errors import ConfigurationError
from cryptopulse.recording import read_recording

CAPTURES = Path(__file__).parents[3] / "shared/captures"


def message(number: int, micros: int) -> str:
    return f'{{"type": "match", "n":{number},"time":"2026-01-02T03:04:05.{micros:06d}Z"}}'


@pytest.mark.captures
@pytest.mark.skipif(not CAPTURES.exists(), reason="the recordings of the real feeds are not here")
@pytest.mark.parametrize(
    ("name", "count", "timed"),
    [
        ("exchange-2026-07-07/messages.jsonl", 2456, False),
        ("exchange-2021-04-17/recv.jsonl", 9946, True),
        ("advanced-2026-08-09/recv.no_l2.jsonl", 255, True),
    ],
)
def test_recordings_of_the_real_feeds_are_served_byte_for_byte(name: str, count: int, timed: bool) -> None:
    path = CAPTURES / name
    lines = path.read_bytes().splitlines()
    expected = [json.loads(line)["raw"].encode() if timed else line for line in lines]

    async def talk() -> None:
        async with simulator(recording=path, speed=0) as running, running.connect() as client:
            await client.send(subscribe("BTC-USD"))
            assert [await client.recv(decode=False) for _ in range(count)] == expected

    run(talk)
    assert len(expected) == count
    assert all((received is not None) == timed for received, _ in read_recording(path))


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize(("speed", "expected_s"), [(1.0, 0.4), (4.0, 0.1), (4_000.0, 0.0)])
def test_a_recording_keeps_its_pace(tmp_path: Path, timed: bool, speed: float, expected_s: float) -> None:
    file = tmp_path / "recording.jsonl"
    offsets = [100_000, 100_000, 300_000, 500_000]
    with file.open("w") as out:
        out.write('{"type":"subscriptions"}\n')
        for number, micros in enumerate(offsets):
            raw = message(number, micros)
            out.write((json.dumps({"recv": micros / 1e6, "raw": raw}) if timed else raw) + "\n")

    async def talk() -> None:
        async with simulator(recording=file, speed=speed) as running, running.connect() as client:
            await client.send(subscribe("BTC-USD"))
            assert json.loads(await client.recv())["type"] == "subscriptions"
            began = time.monotonic()
            numbers = [json.loads(await client.recv())["n"] for _ in offsets]
            assert numbers == [0, 1, 2, 3]
            assert time.monotonic() - began >= expected_s - 0.02

    run(talk)


def test_a_broken_recording_is_refused_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "recording.jsonl"
    file.write_text("not json\n")

    async def talk() -> None:
        with pytest.raises(ConfigurationError, match="line 1"):
            async with simulator(recording=file):
                pass

    run(talk)
