"""Matches as the exchange writes them are read together: all of them, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cryptopulse.engine.match_layout import IS_AVAILABLE, read_matches

CAPTURES = Path(__file__).parents[3] / "shared/captures"
MATCH = (
    '{"type":"match","trade_id":%s,"maker_order_id":"15bc13f2-e38c-4693-8c0b-e8c6152b9c1d",'
    '"taker_order_id":"13d7d08f-7396-421b-9dba-94eac92f3d78","side":"%s","size":"%s","price":"%s",'
    '"product_id":"%s","sequence":132235026010,"time":"2026-07-07T22:58:17.%06dZ"}'
)

pytestmark = pytest.mark.skipif(not IS_AVAILABLE, reason="NumPy 1 counts no bits")


def usual(bodies: Sequence[str | bytes], keys: Sequence[str]) -> list[bool]:
    texts = [body.encode() if isinstance(body, str) else body for body in bodies]
    found = read_matches(pa.array(texts, pa.binary()), pa.array(keys, pa.string()))
    return [False] * len(bodies) if found is None else found.is_usual.tolist()


def test_values_of_all_lengths_are_read() -> None:
    sizes = ["1", "0.00015721", "12345678.5", "0.000000000001", "9223370.999999999999", "100"]
    bodies = [
        MATCH % ("7" * (n + 1), "sell" if n % 2 else "buy", sizes[n % 6], sizes[(n + 1) % 6], key, n * 71_993)
        for n, key in enumerate(["BTC-USD", "A-B", "BIP-20DEC30-CDE", "1INCH-USDC"] * 3)
    ]
    keys = [json.loads(body)["product_id"] for body in bodies]
    both = pa.array([b"[]", *(body.encode() for body in bodies), b"{}"], pa.binary()).slice(1, len(bodies))
    found = read_matches(both, pa.array(["", *keys], pa.string()).slice(1))
    assert found is not None
    expected = [n for n in range(12) if "12345678.5" not in (sizes[n % 6], sizes[(n + 1) % 6])]
    assert np.flatnonzero(found.is_usual).tolist() == expected
    for n in expected:
        whole, _, fraction = sizes[n % 6].partition(".")
        assert found.sizes[n] == int(whole + fraction.ljust(12, "0"))
        assert (found.ids[n], found.is_sell[n]) == (int("7" * (n + 1)), n % 2 == 1)
        assert found.time_us[n] == 1_783_465_097_000_000 + n * 71_993


@pytest.mark.captures
@pytest.mark.skipif(not CAPTURES.exists(), reason="the recordings of the real feeds are not here")
def test_the_matches_of_a_recording_are_all_as_usual_and_nothing_else_is() -> None:
    lines = (CAPTURES / "exchange-2026-07-07/messages.jsonl").read_bytes().splitlines()
    found = [json.loads(line) for line in lines]
    assert usual(lines, [one.get("product_id", "") for one in found]) == [one["type"] == "match" for one in found]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"price"', '"prise"'),
        ("63514.6", "0.0"),
        ("63514.6", "63514."),
        ("63514.6", ".6"),
        ("63514.6", "1e5"),
        ("63514.6", "63514.1234567890123"),
        ("BTC-USD", "ETH-USD"),
        ("T22:58", "T24:58"),
        ("58:17", "58:60"),
        ("164892", "16489"),
        ("2026-07-07", "2026-02-30"),
        ("2026-07-07", "1969-07-07"),
        (":7,", ":07,"),
        ("-4693-", '-46"3-'),
        ("-4693-", "-46\\\\3-"),
        ("-4693-", "-4é3-"),
        ('"sell"', '"SELL"'),
        ('"}', '" }'),
    ],
)
def test_whatever_differs_is_left_to_others(old: str, new: str) -> None:
    body = MATCH % ("7", "sell", "0.2", "63514.6", "BTC-USD", 164_892)
    assert usual([body], ["BTC-USD"]) == [True]
    assert old in body
    assert usual([body.replace(old, new)], ["BTC-USD"]) == [False]
