"""What the fault tests have done, added up: `pytest` tells it in a line at the end (tests/conftest.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from support_processes import Id

TALLY: Counter[str] = Counter()
"""Of the test that runs."""


def judged(stored: Mapping[Id, int], sent: Mapping[Id, object]) -> None:
    """Counts what was sent, and what of it is not there or too often: `stored` says how often each trade is."""
    TALLY["trades_sent"] += len(sent)
    TALLY["trades_lost"] += len(sent.keys() - stored.keys())
    TALLY["trades_doubled"] += sum(count - 1 for count in stored.values())
