"""A pipeline that works meanwhile is never taken for a broken one; one that stopped half-way is told to go on."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake

from cryptopulse import pipeline
from cryptopulse.audit import AuditScope, Repairs
from cryptopulse.audit.ids import held_ids
from cryptopulse.audit.snapshot import LakeSnapshot
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.tables import (
    ABSENT,
    ALERTS,
    BARS,
    BRONZE,
    COMPLETENESS,
    COVERAGE,
    QUARANTINE,
    SILVER,
    STATS,
    TABLES,
    Table,
)
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.pipeline import Pipeline
from cryptopulse.settings import load_settings
from support import Lake, Message, Trade, at, message, page
from support_audit import audit, delete, heartbeat, market, matches, place, rows

STEPS = (SILVER, ALERTS, QUARANTINE, ABSENT, COVERAGE, BARS, STATS, COMPLETENESS)


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    """A lake with its log, whose steps are taken one by one."""
    made = Lake(tmp_path / "lake")
    yield made
    made.close()


def stored(lake: Lake, working: Pipeline, messages: list[Message]) -> None:
    """Takes messages into bronze, and no further."""
    start = lake.log.bounds(0)[1]
    lake.append(messages)
    working.engine.store(lake.log.read(0, start, 1_000_000), {})


def batches() -> list[list[Message]]:
    """Trades of two products; the second batch leaves a hole that the third one fills; late, bad and repeated ones."""
    return [
        matches(market(range(100, 140))),
        [
            *matches(market(range(140, 150))),
            *matches(market(range(153, 180))),
            message(b"junk"),
            heartbeat("BTC-USD", 179, 200),
        ],
        [page(market(range(148, 156), ("BTC-USD",))), page(market(range(148, 156), ("ETH-USD",)))],
        [*matches(market(range(170, 219))), market()[0].match(price="cheap")],
        matches(market(range(1, 50), ("XRP-USD",))),
    ]


@pytest.mark.long
def test_after_no_step_of_the_pipeline_anything_seems_broken(lake: Lake) -> None:
    """Each table is a step behind another at some moment. Holes are told while they are there, nothing else ever."""
    with Pipeline(lake.settings, lake.log) as working:
        working.engine.wait_for_news(False)
        for number, messages in enumerate(batches()):
            stored(lake, working, messages)
            assert set(audit(lake.path).kinds) <= {"hole"}
            for table in STEPS:
                working.engine.advance(table)
                found = audit(lake.path)
                has_hole = number == 1 or (number == 2 and table is SILVER)
                assert found.kinds == [] or (has_hole and set(found.kinds) == {"hole"}), (number, table.qualified)
    done = audit(lake.path)
    assert done.code == 0
    assert done.checked("ids") == 119 * 2 + 49
    assert done.product("BTC-USD")["healed_ids"] == 3


def test_what_bronze_holds_and_silver_not_yet_is_on_its_way(lake: Lake) -> None:
    trades = market()
    lake.take_in([*matches(trades[:80]), *matches(trades[100:])])
    with Pipeline(lake.settings, lake.log) as working:
        stored(lake, working, matches(trades[80:100]))
        found = audit(lake.path)
        assert found.code == 0
        ledger = found.product("BTC-USD")
        assert (ledger["on_their_way_ids"], ledger["missing_ids"], ledger["held_ids"]) == (10, 0, 110)
        assert "20 on their way" in audit(lake.path, as_text=True).text
        working.engine.advance(SILVER)
        assert audit(lake.path).product("BTC-USD")["on_their_way_ids"] == 0


def test_a_refused_message_on_its_way_to_quarantine_is_not_taken_for_a_lost_trade(lake: Lake) -> None:
    """Silver has passed over it, and quarantine does not hold it yet."""
    bad = Trade("BTC-USD", 110, at(20)).match(price="cheap")
    with Pipeline(lake.settings, lake.log) as working:
        working.engine.wait_for_news(False)
        stored(lake, working, [*matches(market(range(100, 110))), bad, *matches(market(range(111, 115)))])
        working.engine.advance(SILVER)

        def go_on() -> None:
            for table in (QUARANTINE, COVERAGE):
                working.engine.advance(table)

        soon = threading.Timer(1.0, go_on)
        soon.start()
        found = audit(lake.path)
        soon.join()
    assert found.kinds == ["hole", "ids_refused"]  # the exchange sent nothing better for 110; of ETH-USD nothing came
    assert found.one("hole")["symbol"] == "ETH-USD"


def test_an_audit_that_took_longer_than_replaced_files_are_kept_says_so(lake: Lake) -> None:
    for start in (100, 120, 140):
        lake.take_in(matches(market(range(start, start + 20))))
    with LakeSnapshot(lake.settings.location, 512, 1, Repairs()) as snapshot:
        table = DeltaTable(str(place(lake.path, SILVER)))
        table.optimize.compact()
        table.vacuum(0, dry_run=False, enforce_retention_duration=False)
        with pytest.raises(ConfigurationError) as told:
            held_ids(snapshot, AuditScope(), 0)
    assert "raise maintenance.vacuum_retention_hours" in str(told.value)
    assert audit(lake.path).code == 0


def test_a_lake_that_does_not_say_how_far_it_is_counts_as_settled_after_ten_minutes(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Spark leaves it: positions are in its checkpoints."""
    lake.take_in(matches(market()))
    without_positions(lake)
    delete(lake.path, BARS, "symbol = 'BTC-USD'")
    assert audit(lake.path).code == 0  # perhaps they are about to come
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + 700 * 10**9)
    assert audit(lake.path).kinds == ["bar_missing"]


def without_positions(lake: Lake) -> None:
    """Makes the tables again as another program would, with the same rows."""
    for table in TABLES:
        content = rows(lake.path, table)
        shutil.rmtree(place(lake.path, table))
        write_deltalake(str(place(lake.path, table)), content, partition_by=list(table.partition_by))


@pytest.mark.parametrize(
    ("done", "behind"),
    [
        ((), {"silver.fact_crypto_trades"}),
        ((SILVER,), {"silver.trade_id_coverage", "gold.dm_trade_bars"}),
        ((SILVER, COVERAGE, BARS), {"gold.dm_crypto_price_stats", "gold.dm_completeness"}),
    ],
)
def test_a_pipeline_that_stopped_half_way_an_hour_ago_is_told_to_go_on(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, done: tuple[Table, ...], behind: set[str]
) -> None:
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() - 3_600 * 10**9)
    lake.take_in(matches(market(range(100, 110))))
    with Pipeline(lake.settings, lake.log) as working:
        working.engine.wait_for_news(False)
        stored(lake, working, matches(market(range(110, 120))))
        for table in done:
            working.engine.advance(table)
    monkeypatch.undo()
    found = audit(lake.path)
    assert found.code == 8
    told = {finding["table"]: finding for finding in found.of("behind")}
    assert told.keys() == behind
    assert set(found.kinds) == {"behind"}
    for finding in told.values():
        assert finding["repair"] == f"run `cryptopulse process --once --lake {lake.path}`"
    if not done:
        assert told["silver.fact_crypto_trades"]["text"] == (
            "silver.fact_crypto_trades is behind: 20 trades of bronze.coinbase_raw_trades are not in it yet "
            "(BTC-USD, ETH-USD)"
        )
    lake.drain()
    assert audit(lake.path).code == 0


def test_a_lake_whose_first_trades_never_left_bronze_is_not_complete(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() - 3_600 * 10**9)
    with Pipeline(lake.settings, lake.log) as working:
        stored(lake, working, matches(market(range(100, 105))))
    monkeypatch.undo()
    found = audit(lake.path)
    assert (found.code, found.kinds, found.json["products"]) == (8, ["behind"], [])


def test_a_pipeline_under_load_is_never_reported_as_broken(tmp_path: Path) -> None:
    """It commits many times a second, merges files and writes checkpoints, while it is audited again and again."""
    options = {"compact_commits": 8, "checkpoint_commits": 5}
    settings = load_settings(lake=tmp_path / "lake", maintenance=options)
    settings.log_path.parent.mkdir(parents=True)
    log = SqliteLog(settings.log_path, 1 << 30)
    feed = Lake(tmp_path / "lake")
    stop, failures = threading.Event(), []

    def work() -> None:
        try:
            pipeline.process(settings, log, stop, lambda _state: None)
        except Exception as error:  # noqa: BLE001 - shown by the test
            failures.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        codes, versions, number = [], set(), 0
        deadline = time.monotonic() + 120
        while (len(codes) < 4 or len(versions) < 4) and time.monotonic() < deadline:
            for _ in range(5):
                trades = [
                    Trade(product, 1 + one, at(one * 0.7), str(100 + one % 5))
                    for one in range(number, number + 40)
                    for product in ("BTC-USD", "ETH-USD", "SOL-USD")
                ]
                feed.append([*matches(trades), message(b"junk")])
                number += 40
                time.sleep(0.02)
            if not (tmp_path / "lake" / "gold" / "dm_crypto_price_stats").exists():
                continue
            found = audit(tmp_path / "lake")
            assert found.findings == [], json.dumps(found.findings, indent=1)
            codes.append(found.code)
            versions.add(DeltaTable(str(place(tmp_path / "lake", SILVER))).version())
    finally:
        stop.set()
        worker.join()
        feed.close()
        log.close()
    assert failures == []
    assert set(codes) == {0}
    assert len(versions) >= 4, "the pipeline did not work meanwhile"
    done = audit(tmp_path / "lake")
    assert (done.code, done.checked("ids")) == (0, number * 3)
    assert DeltaTable(str(place(tmp_path / "lake", BRONZE))).version() > 4
