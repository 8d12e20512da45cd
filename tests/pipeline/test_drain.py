"""Draining: the log's contents go through to gold, and neither memory nor log grows with how much there was."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from cryptopulse import pipeline
from cryptopulse.engine import messages
from cryptopulse.errors import LakeBusy
from cryptopulse.lake.lock import LakeLock
from cryptopulse.lake.tables import BARS, SILVER, TABLES, Table
from support import Lake, Trade, at, message, page


def trades(count: int) -> list[Trade]:
    return [Trade("BTC-USD", number, at(number * 30.0)) for number in range(1, count + 1)]


def test_whoever_only_drains_never_fills_the_log(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", log={"size_max_mb": 1})
    for _ in range(12):  # 3 MB in all, which nothing compresses
        lake.take_in(message(os.urandom(2_500)) for _ in range(100))
    lake.close()


def test_gold_goes_along_with_a_long_drain_of_small_batches(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_WITHOUT_GOLD_MAX", 20)
    lake.append(trade.match() for trade in trades(100))
    small = lake.settings.processing.model_copy(update={"batch_messages_max": 10})
    with pipeline.Pipeline(lake.settings.model_copy(update={"processing": small}), lake.log) as one:
        one.drain(lambda _done, _total: None)
        assert one.engine.tables[BARS.qualified].commits >= 5
    assert lake.arrow(SILVER).num_rows == 100


def test_pages_of_rest_are_not_parsed_again_at_each_start(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of their trades is refused, so quarantine has nothing to commit but its position."""
    monkeypatch.setattr(messages, "_MARKER_TRADES", 100)
    lake.take_in([page(trades(10))])  # the first position is committed in any case
    with pipeline.Pipeline(lake.settings, lake.log) as one:
        for last in range(40, 211, 10):  # ten new trades each, and never a hundred at once
            lake.append([page(trades(last)[-40:])])
            one.drain(lambda _done, _total: None)
    parsed: list[int] = []
    monkeypatch.setattr(messages, "parse", lambda news: parsed.append(news.num_rows))
    lake.drain()
    assert sum(parsed) <= 1


def test_a_start_writes_no_file_twice(lake: Lake) -> None:
    """A take-over is a commit; the first one after it must not conflict with it, and be written again."""
    for part in (trades(10), trades(20)):
        lake.take_in(trade.match() for trade in part)
    for table in TABLES:
        files = {file.name for file in lake.folder(table).rglob("*.parquet") if "_delta_log" not in file.parts}
        known = {Path(entry["path"]).name for entry in _added(lake, table)}
        assert files == known, table


def _added(lake: Lake, table: Table) -> list[dict[str, str]]:
    log = lake.folder(table) / "_delta_log"
    actions = [json.loads(line) for commit in log.glob("*.json") for line in commit.read_text().splitlines()]
    return [action["add"] for action in actions if "add" in action]


def test_a_processing_waits_for_a_lake_that_something_else_works_on_for_a_moment(lake: Lake) -> None:
    lake.append(trade.match() for trade in trades(5))
    stop = threading.Event()
    reports: list[dict[str, object]] = []
    held = LakeLock(lake.settings.state_dir, lake.settings.lake)
    with held:
        one = threading.Thread(target=pipeline.process, args=(lake.settings, lake.log, stop, reports.append))
        one.start()
        one.join(0.5)
        assert one.is_alive()
        assert not reports
    stop.set()
    one.join(60)
    assert reports
    assert lake.arrow(SILVER).num_rows == 5


def test_a_processing_that_waits_for_a_lake_ends_when_it_is_asked_to(lake: Lake) -> None:
    stop = threading.Event()
    stop.set()
    with LakeLock(lake.settings.state_dir, lake.settings.lake):
        pipeline.process(lake.settings, lake.log, stop, lambda _state: None)


def test_a_processing_does_not_wait_for_a_lake_for_ever(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_LAKE_WAIT_S", 0.3)
    with LakeLock(lake.settings.state_dir, lake.settings.lake), pytest.raises(LakeBusy):
        pipeline.process(lake.settings, lake.log, threading.Event(), lambda _state: None)
