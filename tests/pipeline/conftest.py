"""Fixtures that several files of these tests use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptopulse.feed import rest
from cryptopulse.healing import backfill
from support import at, message
from support_audit import fill, market, matches
from support_past import Past


@pytest.fixture(scope="session")
def market_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake in order, of three batches: two products, a refused message, a repeated one. To be copied, not changed."""
    trades = market()
    parts = [matches(trades[start : start + 80]) for start in (0, 80, 160)]
    parts[1] += [message(b"junk", received=at(80)), trades[0].match()]
    return fill(tmp_path_factory.mktemp("market") / "lake", parts)


@pytest.fixture(scope="session")
def shared_past() -> Iterator[Past]:
    made = Past(trades=8_000)
    yield made
    made.close()


@pytest.fixture
def past(shared_past: Past) -> Iterator[Past]:
    """An exchange with 8,000 trades of two products; what it is told to do wrong ends with the test."""
    yield shared_past
    shared_past.orders(b"{}")
    shared_past.faults("")


@pytest.fixture
def long_past() -> Iterator[Past]:
    made = Past(trades=24_000)
    yield made
    made.close()


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For commands that a test calls in this process: a folder and an environment of their own, and an exchange that
    may be asked as often as one likes. The limit itself has tests in test_feed_rest.py and with real processes."""
    for name in list(os.environ):
        if name.startswith("CRYPTOPULSE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    for module in (backfill, rest):
        monkeypatch.setattr(module, "REQUESTS_PER_SECOND", 1_000)
