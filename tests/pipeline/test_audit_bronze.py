"""The audit names the messages that bronze lost."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from cryptopulse.lake.tables import ALERTS, BRONZE, COVERAGE
from cryptopulse.log.sqlite import PARTITION, SqliteLog
from support import Lake, Trade, at, message
from support_audit import append, audit, copied, delete, intervals_of, matches, overwrite, rows


@pytest.fixture
def lake(market_lake: Path, tmp_path: Path) -> Path:
    """A lake of one's own to harm."""
    return copied(market_lake, tmp_path / "lake")


def test_ids_that_coverage_claims_without_a_message_or_a_trade_are_told(lake: Path) -> None:
    claims = rows(lake, COVERAGE).to_pylist()
    claims[0]["last_trade_id"] += 5
    overwrite(lake, COVERAGE, pa.Table.from_pylist(claims, schema=rows(lake, COVERAGE).schema))
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["ids_lost"])
    lost = found.one("ids_lost")
    assert intervals_of([lost]) == [(claims[0]["symbol"], 220, 224)]
    assert lost["told_by"] == COVERAGE.qualified
    assert lost["repair"] == (
        f"run `cryptopulse rebuild --lake {lake}`, then `cryptopulse backfill {claims[0]['symbol']} "
        f"--from 2026-07-07T12:03:58Z --lake {lake}`: no message of them is in bronze.coinbase_raw_trades"
    )
    assert found.product(claims[0]["symbol"])["holes"][0]["witness"] == "table"


def test_a_message_that_was_taken_out_of_bronze_is_named_by_offset_and_by_trade(lake: Path) -> None:
    offset = sorted(rows(lake, BRONZE)["offset"].to_pylist())[100]
    delete(lake, BRONZE, f'"offset" = {offset}')
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["message_missing", "offsets_missing"])
    assert found.one("offsets_missing")["text"] == (
        f"bronze.coinbase_raw_trades: offset {offset} of partition 0 missing: messages that were stored are gone"
    )
    assert intervals_of(found.of("message_missing")) == [("BTC-USD", 150, 150)]


def test_messages_taken_off_the_end_of_bronze_are_missed(lake: Path) -> None:
    offsets = sorted(rows(lake, BRONZE)["offset"].to_pylist())
    delete(lake, BRONZE, f'"offset" > {offsets[-5]}')
    found = audit(lake)
    missing = found.one("offsets_missing")
    assert (missing["first_offset"], missing["last_offset"]) == (offsets[-4], offsets[-1])


def test_messages_that_are_there_twice_are_counted(lake: Path) -> None:
    append(lake, BRONZE, rows(lake, BRONZE).slice(5, 2))
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["offsets_doubled"])
    assert found.findings[0]["rows"] == 2


def test_what_a_user_does_to_alerts_is_no_business_of_the_audit(lake: Path) -> None:
    delete(lake, ALERTS, "true")
    assert audit(lake).code == 0


class ExpiringLog(SqliteLog):
    """A log that may forget messages before they were read, as Kafka does."""

    expires = True


@pytest.mark.parametrize(("log", "is_loss"), [(SqliteLog, True), (ExpiringLog, False)])
def test_a_gap_is_a_loss_unless_the_log_may_forget(tmp_path: Path, log: type[SqliteLog], is_loss: bool) -> None:
    lake = Lake(tmp_path / "lake", log={"size_max_mb": 1})
    lake.log = log(lake.settings.log_path, 1 << 20)
    trades = [Trade("BTC-USD", number, at(number)) for number in range(1, 9)]
    lake.take_in(matches(trades[:3]))
    first = lake.log.bounds(PARTITION)[0]
    for forgotten, kept in (trades[3:5], trades[5:7]):  # two gaps, of two messages each
        lake.append([forgotten.match(), message(random.Random(kept.trade_id).randbytes(200_000))])
        lake.append(matches([kept]))
        lake.log.trim(PARTITION, lake.log.bounds(PARTITION)[1] - 1)
        lake.drain()
    found = audit(tmp_path / "lake")
    if is_loss:
        assert (found.code, found.kinds) == (8, ["hole", "hole", "offsets_missing", "offsets_missing"])
        gaps = [(gap["first_offset"] - first, gap["last_offset"] - first) for gap in found.of("offsets_missing")]
        assert gaps == [(3, 4), (6, 7)]
    else:
        assert (found.code, found.kinds) == (8, ["hole", "hole"])
        assert found.checked("messages expired unread") == 4
        lake.take_in(matches([trades[3], trades[5]]))
        assert audit(tmp_path / "lake").code == 0
    lake.close()


def test_what_was_in_the_lake_once_is_a_loss_whatever_the_log_forgets(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", log={"size_max_mb": 1})
    lake.log = ExpiringLog(lake.settings.log_path, 1 << 20)
    lake.take_in([Trade("BTC-USD", 1, at(1)).match()])
    shutil.copytree(lake.folder(BRONZE), tmp_path / "bronze")
    for number in (2, 3):
        lake.take_in([Trade("BTC-USD", number, at(number)).match(), message(random.Random(number).randbytes(200_000))])
    lake.log.trim(PARTITION, lake.log.bounds(PARTITION)[1] - 2)
    shutil.rmtree(lake.folder(BRONZE))
    shutil.copytree(tmp_path / "bronze", lake.folder(BRONZE))  # an older copy is restored
    lake.drain()
    assert "offsets_missing" in audit(tmp_path / "lake").kinds
    lake.close()
