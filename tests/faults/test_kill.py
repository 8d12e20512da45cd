"""kill -9 of each process at random moments, then a comparison by trade id with what the simulator sent.

The moments come from a seed, which is printed; CRYPTOPULSE_TEST_SEED sets it.
"""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from deployment import Deployment, check_complete, check_tables, start_deployment
from tally import TALLY

from cryptopulse.errors import LogBusy
from cryptopulse.log import MESSAGE_SCHEMA, sqlite
from cryptopulse.log.sqlite import SqliteLog
from support import Trade
from support_processes import Processes


@pytest.fixture
def chance(seed: int) -> random.Random:
    return random.Random(seed)


def test_kills_of_the_processing_lose_nothing_and_double_nothing(processes: Processes, chance: random.Random) -> None:
    deployment = start_deployment(processes)
    for _ in range(3):
        time.sleep(chance.uniform(0.2, 2.0))
        deployment.kill("processing")
    published = deployment.finish()
    check_tables(deployment, published)
    check_complete(deployment, published)
    assert deployment.events("hole_found") == []
    assert len(deployment.events("process_died")) == 3


def kill_rounds(deployment: Deployment, chance: random.Random, rounds: int) -> None:
    """Kills each process once a round, in any order, as soon as 0.1 s and as late as 1.5 s after the last kill."""
    for _ in range(rounds):
        TALLY["kill_rounds"] += 1
        for name in chance.sample(["producer", "processing", "run"], 3):
            time.sleep(chance.uniform(0.1, 1.5))
            deployment.kill(name)


def test_after_kills_of_any_process_nothing_is_missing(processes: Processes, chance: random.Random) -> None:
    deployment = start_deployment(processes)
    kill_rounds(deployment, chance, 5)
    published = deployment.finish()
    check_tables(deployment, published)
    check_complete(deployment, published)
    assert deployment.events("hole_found")  # there was something to heal


@pytest.mark.long
@pytest.mark.parametrize("_part", range(5))
def test_after_a_hundred_rounds_of_kills_nothing_is_missing(
    processes: Processes, chance: random.Random, _part: int
) -> None:
    """Each of the five parts kills every process twenty times."""
    deployment = start_deployment(processes)
    kill_rounds(deployment, chance, 20)
    published = deployment.finish()
    check_tables(deployment, published)
    check_complete(deployment, published)


def test_a_log_that_another_process_keeps_to_itself_is_a_reason_to_wait_not_to_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_TIMEOUT_S", 0.05)
    log = SqliteLog(tmp_path / "log.db", 1 << 20)
    message = pa.Table.from_pylist([Trade("BTC-USD", 1).match()], schema=MESSAGE_SCHEMA)
    with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # as a process that was stopped in the middle of a write
        with pytest.raises(LogBusy):
            log.append(message)
        other.execute("ROLLBACK")
    log.append(message)
    assert log.read(0, 0, 10).num_rows == 1
    log.close()
