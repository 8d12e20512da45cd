"""What the sweep of crash points stops: a few batches of messages, and work on them that touches every kind of file."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from cryptopulse.lake.tables import BRONZE, TABLES
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.pipeline import Pipeline
from cryptopulse.settings import RetentionSettings
from cryptopulse.store.maintenance import Maintenance
from cryptopulse.store.retention import Retention
from support import Lake, Message, Trade, at, message, micros

_LOG_BYTES = 1 << 20
_PAUSE_S = 2 * 3_600  # longer than any retention: between two batches log and replaced files become old enough to go
_FEW = {"compact_commits": 3, "checkpoint_commits": 2}  # fewer than a user may choose, so that a short run has several


def batches() -> list[list[Message]]:
    """Two products over two days, with a crash and surges, late and repeated trades, a hole, and refused messages."""
    btc = [Trade("BTC-USD", n, at(n * 20.0), str(100 - (n % 3) * 2), side="SELL") for n in range(1, 20)]
    eth = [Trade("ETH-USD", n, at(86_400 + n * 45.0), str(10 + (n % 2)), "0.5") for n in range(100, 120)]
    parts = [
        btc[:4],
        [*btc[6:9], btc[3]],
        [*btc[4:6], *eth[:3]],
        [*eth[3:7], btc[9]],
        btc[10:16],
        [*eth[8:14], btc[18]],
    ]
    return [
        [*(trade.match() for trade in trades), message(f"junk {number}".encode())]
        for number, trades in enumerate(parts)
    ]


BATCHES = batches()
_HELD = [sum(map(len, BATCHES[:number])) for number in range(len(BATCHES) + 1)]
"""How many messages the log has taken after each number of batches."""


def lake_in(folder: Path) -> Lake:
    """The lake of a scenario's folder."""
    lake = Lake(folder / "lake", processing={"threads": 1})
    maintenance = lake.settings.maintenance.model_copy(update=_FEW)
    lake.settings = lake.settings.model_copy(update={"maintenance": maintenance})
    return lake


def live(folder: Path) -> None:
    """Messages arrive and go through all tables, with everything that maintenance does, and a restart in between."""
    with closing(lake_in(folder)) as lake, closing(SqliteLog(lake.settings.log_path, _LOG_BYTES)) as producers:
        for numbers in (range(3), range(3, len(BATCHES))):
            with Pipeline(lake.settings, lake.log) as pipeline:
                pipeline.engine.wait_for_news(False)
                for number in numbers:
                    producers.append(pa.Table.from_pylist(BATCHES[number], schema=MESSAGE_SCHEMA))
                    _acknowledged(number + 1)
                    pipeline.step(0)
                    pipeline.gold()
                    _maintain(pipeline.maintenance)
                    ctypes.CDLL(None).interposer_shift_clock((number + 1) * _PAUSE_S)


def rebuild(folder: Path) -> None:
    """Silver and gold are made again from bronze."""
    with closing(lake_in(folder)) as lake, Pipeline(lake.settings, lake.log) as pipeline:
        pipeline.rederive(lambda _done, _total: None)
        _maintain(pipeline.maintenance)


def let_days_go(folder: Path) -> None:
    """The first day goes from bronze, silver and quarantine."""
    with closing(lake_in(folder)) as lake:
        _retain(lake)


def catch_up(folder: Path) -> None:
    """What the tables lack is worked off from the log and from each other."""
    with closing(lake_in(folder)) as lake, Pipeline(lake.settings, lake.log) as pipeline:
        pipeline.drain(lambda _done, _total: None)
        _maintain(pipeline.maintenance)


def nothing(_folder: Path) -> None:
    """No lake yet."""


def torn(folder: Path) -> None:
    """A lake of which a power cut tore the newest one or two commits of each table."""
    live(folder)
    with closing(lake_in(folder)) as lake:
        for depth, table in enumerate(TABLES):
            log = lake.folder(table) / "_delta_log"
            checkpointed = max((int(file.name[:20]) for file in log.glob("*.checkpoint.parquet")), default=0)
            commits = [file for file in sorted(log.glob("*.json")) if int(file.stem) > checkpointed]
            for commit in commits[-1 - depth % 2 :]:
                commit.write_bytes(commit.read_bytes()[:-100])


def _retain(lake: Lake) -> None:
    with Pipeline(lake.settings, lake.log) as pipeline:
        pipeline.drain(lambda _done, _total: None)
        now = datetime.now(UTC) + timedelta(days=30)
        days = (now.date() - at(86_400).date()).days
        kept = RetentionSettings(bronze_days=days, silver_days=days, quarantine_days=days)
        retention = Retention(kept, pipeline.engine.tables, lambda: micros(now))
        retention.run_due()
        _maintain(pipeline.maintenance)


def _acknowledged(number: int) -> None:
    ctypes.CDLL(None).interposer_mark(number)


def _maintain(care: Maintenance) -> None:
    """All that is due by the number of commits, however little time has passed on the monotonic clock."""
    care._trimmed_at = -1e9
    care.run_due()


@dataclass(frozen=True)
class Scenario:
    """`prepare` leaves something in a folder; `work` goes on from there, and is what is stopped."""

    name: str
    prepare: Callable[[Path], None]
    work: Callable[[Path], None]
    acknowledged: int
    """How many batches the log has taken before `work`."""
    finish: Callable[[Lake], None] = lambda _lake: None
    """What must be done at the end, whether `work` had done it or not."""
    lets_go: bool = False
    """Whether bronze may lack messages that retention let go."""


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("live", nothing, live, 0),
        Scenario("rebuild", live, rebuild, len(BATCHES)),
        Scenario("repair", torn, catch_up, len(BATCHES)),
        Scenario("retention", live, let_days_go, len(BATCHES), _retain, lets_go=True),
    )
}


def undisturbed(folder: Path, scenario: Scenario) -> dict[str, Any]:
    """What the tables hold when nothing happens."""
    with closing(lake_in(folder)) as lake:
        for batch in BATCHES:
            lake.append(batch)
        lake.drain()
        scenario.finish(lake)
        return contents(lake, scenario)


def recover(folder: Path, acknowledged: int, scenario: Scenario, expected: dict[str, Any]) -> None:
    """Starts on what is left in `folder`, works off the rest, and compares. AssertionError when anything differs.

    `acknowledged`: so many batches must be there, in the log or behind it.
    """
    with closing(lake_in(folder)) as lake:
        held = lake.log.bounds(0)[1] - lake.log.origin(0)
        assert held in _HELD, f"of a batch only a part is in the log: {held} messages"
        taken = _HELD.index(held)
        assert taken >= acknowledged, f"the log has acknowledged {acknowledged} batches, and has {taken}"
        lake.drain()
        expected_bodies = Counter(one["body"] for batch in BATCHES[:taken] for one in batch)
        bodies = Counter(lake.arrow(BRONZE)["body"].to_pylist())
        is_right = bodies <= expected_bodies if scenario.lets_go else bodies == expected_bodies
        assert is_right, "bronze has not each message once"
        for batch in BATCHES[taken:]:
            lake.append(batch)
        lake.drain()
        scenario.finish(lake)
        found = contents(lake, scenario)
        wrong = [name for name, rows in expected.items() if found[name] != rows]
        assert not wrong, "\n".join(f"{name}: {found[name]}\ninstead of {expected[name]}" for name in wrong)


def contents(lake: Lake, scenario: Scenario) -> dict[str, Any]:
    """All that must not depend on what happened."""
    raw = lake.arrow(BRONZE)
    offsets = sorted(raw["offset"].to_pylist())
    once = sorted(set(offsets)) if scenario.lets_go else list(range(offsets[0], offsets[0] + len(offsets)))
    assert offsets == once, f"not each offset once: {offsets}"
    bodies = sorted(Counter(raw["body"].to_pylist()).items())
    return {BRONZE.qualified: bodies, **lake.contents()}
