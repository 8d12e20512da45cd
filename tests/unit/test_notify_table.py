"""The table of alerts as the notifier sees it: every commit is noticed, and only what changed is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from deltalake import DeltaTable

from cryptopulse.errors import LakeUnreachable
from cryptopulse.lake.tables import ALERTS
from cryptopulse.notify.table import AlertsTable
from support import Lake, Trade, at
from support_notify import Market


@pytest.fixture
def table(market: Market) -> AlertsTable:
    return AlertsTable(market.lake.settings.location)


def ids(table: AlertsTable, oldest_us: int = 0) -> set[str]:
    assert table.has_news()
    return {episode.alert_id for episode in table.read(oldest_us)}


def test_a_table_that_is_not_there_yet_has_no_news_and_is_no_error(table: AlertsTable) -> None:
    assert not table.has_news()
    assert table.read(0) == []


def test_only_what_changed_is_read(market: Market, table: AlertsTable) -> None:
    first = market.crash("BTC", "ETH")
    assert ids(table) == set(first)
    assert not table.has_news()
    assert table.read(0) == []
    market.trade(BTC=95)
    (deeper,) = table.read(0)
    assert (deeper.alert_id, deeper.severity, deeper.state) == (first[0], "CRITICAL", "OPEN")
    second = market.crash("SOL")  # by then the first two are closed
    assert ids(table) == {*first, *second}


def test_an_episode_that_late_trades_took_back_is_told_once_more_as_withdrawn(tmp_path: Path) -> None:
    rule = {"types": ["SELL_IMBALANCE"], "threshold_pct": "100"}
    lake = Lake(tmp_path / "lake", alerts={"rules": [rule]})
    sales = [Trade(symbol, n, at(n), side="SELL") for symbol in ("BTC-USD", "ETH-USD") for n in (1, 3)]
    lake.take_in(trade.match() for trade in sales)
    table = AlertsTable(lake.settings.location)
    assert len(table.read(0)) == 2
    lake.take_in([Trade("BTC-USD", 2, at(2), side="BUY").match()])
    withdrawn = [(one.symbol, one.state) for one in table.read(0) if one.is_withdrawn]
    assert withdrawn == [("BTC-USD", "CLOSED")]
    assert table.read(0) == []
    lake.close()


def test_what_can_be_no_news_is_not_read(market: Market, table: AlertsTable) -> None:
    market.crash("BTC")
    (old,) = table.read(0)
    new = market.crash("ETH")
    assert AlertsTable(market.lake.settings.location).read(old.last_trigger_us + 1)[0].alert_id == new[0]


def test_a_commit_that_another_shows_up_behind_is_noticed_whatever_the_clock_of_the_disk_says(
    market: Market, table: AlertsTable
) -> None:
    market.crash("BTC")
    table.read(0)
    log = market.lake.folder(ALERTS) / "_delta_log"
    before = log.stat()
    market.trade(BTC=95)
    os.utime(log, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if both commits were within one tick
    assert table.has_news()
    assert [episode.severity for episode in table.read(0)] == ["CRITICAL"]


def test_maintenance_is_no_news(market: Market, table: AlertsTable) -> None:
    for base in ("BTC", "ETH", "SOL"):
        market.crash(base)
    table.read(0)
    delta = DeltaTable(str(market.lake.folder(ALERTS)))
    delta.optimize.compact()
    delta.create_checkpoint()
    delta.cleanup_metadata()
    assert table.has_news()  # there was a commit ...
    assert table.read(0) == []  # ... of the same rows
    assert not table.has_news()


def test_a_table_that_is_made_anew_is_read_from_its_beginning(market: Market, table: AlertsTable) -> None:
    first = market.crash("BTC")
    market.crash("ETH")
    table.read(0)
    shutil.rmtree(market.lake.folder(ALERTS))
    market.lake.rebuild()
    assert ids(table) >= set(first)


def test_a_file_that_is_gone_is_a_reason_to_try_again_and_nothing_counts_as_seen(
    market: Market, table: AlertsTable, tmp_path: Path
) -> None:
    alert_ids = market.crash("BTC")
    (file,) = (Path(uri) for uri in market.lake.delta(ALERTS).file_uris())
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(LakeUnreachable, match="can't be read"):
        table.read(0)
    (tmp_path / "elsewhere").rename(file)
    assert ids(table) == set(alert_ids)
