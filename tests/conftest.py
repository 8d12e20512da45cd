"""Fixtures that several test files use."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import structlog

from support import Lake
from support_notify import Market, Webhook
from support_processes import Processes

if TYPE_CHECKING:
    from support_past import Past

# The same examples each time, so that a change is judged by what it changes; `--hypothesis-profile=random` looks for
# others. A busy machine is no defect, so nothing has a deadline.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.register_profile("random", deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")

_FAULTS = {
    "kill_rounds": "rounds of kills",
    "kills": "processes killed",
    "stops": "stops at a change to a file",
    "power_cuts": "power cuts",
    "full_disks": "full disks",
    "torn_lakes": "torn lakes",
    "take_overs": "pipelines that woke up too late",
    "feed_faults": "outages, bad connections and wrong clocks",
}
_totals: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds up what the fault tests have counted (tests/faults/tally.py), whichever process ran them."""
    if report.when == "teardown":
        _totals.update({name: count for name, count in report.user_properties if isinstance(count, int)})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line with all of it."""
    done = [f"{_totals[name]:,} {words}" for name, words in _FAULTS.items() if _totals[name]]
    if done:
        sent, lost, doubled = (_totals[f"trades_{what}"] for what in ("sent", "lost", "doubled"))
        told = f"the simulator sent {sent:,} trades: {lost:,} lost, {doubled:,} doubled"
        terminalreporter.write_line(f"faults: {', '.join(done)}; {told}")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A command that a test runs in this process sets logging up; the next test must not inherit its level."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    """An empty lake with its own log."""
    made = Lake(tmp_path / "lake")
    yield made
    made.close()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts commands in a folder of the test's own; none outlives it."""
    made = Processes(tmp_path)
    yield made
    made.close()


@pytest.fixture
def market(tmp_path: Path) -> Iterator[Market]:
    """A lake of trades that the test makes up one by one, kept up to date by the real pipeline."""
    made = Market(tmp_path / "lake")
    yield made
    made.close()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """A receiver of alerts, which keeps what it is sent."""
    made = Webhook()
    yield made
    made.close()


@pytest.fixture(scope="session")
def shared_past() -> Iterator[Past]:
    from support_past import Past  # which needs the simulator, and not every environment has its libraries

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
    from support_past import Past

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
    monkeypatch.setenv("CRYPTOPULSE_FEED__REST_REQUESTS_PER_SECOND", "1000")
