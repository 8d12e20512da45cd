"""Fixtures that several files of these tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import at, message
from support_audit import fill, market, matches


@pytest.fixture(scope="session")
def market_lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake in order, of three batches: two products, a refused message, a repeated one. To be copied, not changed."""
    trades = market()
    parts = [matches(trades[start : start + 80]) for start in (0, 80, 160)]
    parts[1] += [message(b"junk", received=at(80)), trades[0].match()]
    return fill(tmp_path_factory.mktemp("market") / "lake", parts)
