"""Following a table: every commit is noticed, and exactly what it brought is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from cryptopulse.errors import ConfigurationError, LakeUnreachable
from cryptopulse.lake.follower import Follower, NewestVersions
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import ALERTS, BARS, SILVER
from support import START, Lake, Trade, at


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    made = Lake(tmp_path / "my lake")  # whose files are named with %20
    yield made
    made.close()


def _trades(lake: Lake, *ids: int, symbol: str = "BTC-USD") -> None:
    lake.take_in([Trade(symbol, one, START + timedelta(seconds=one)).match() for one in ids])


def _followed(lake: Lake) -> Follower:
    return Follower(lake.settings.location, SILVER, ("trade_id",))


def _ids(follower: Follower) -> list[int]:
    assert follower.has_news()
    return sorted(follower.read().rows["trade_id"].to_pylist())


def test_a_table_that_is_not_there_yet_has_no_news_and_is_no_error(lake: Lake) -> None:
    follower = _followed(lake)
    assert not follower.has_news()
    assert follower.read().rows.num_rows == 0
    _trades(lake, 1, 2)
    assert _ids(follower) == [1, 2]


def test_each_trade_is_read_once_whatever_maintenance_does_meanwhile(lake: Lake) -> None:
    _trades(lake, 1, 2)
    follower = _followed(lake)
    assert follower.read().is_whole
    seen = [1, 2]
    for first in range(3, 18, 3):
        _trades(lake, first, first + 1)
        _trades(lake, first + 2)
        if first % 2:
            delta = lake.delta(SILVER)
            delta.optimize.compact()
            delta.create_checkpoint()
            delta.cleanup_metadata()
        news = follower.read()
        assert not news.is_whole
        seen += news.rows["trade_id"].to_pylist()
        assert not follower.has_news()
    assert sorted(seen) == list(range(1, 18))


def test_a_commit_within_one_tick_of_the_file_systems_clock_is_noticed(lake: Lake) -> None:
    _trades(lake, 1)
    follower, versions = _followed(lake), NewestVersions(lake.settings.location)
    assert _ids(follower) == [1]
    assert versions.files(SILVER).version == lake.delta(SILVER).version()
    log = lake.folder(SILVER) / "_delta_log"
    before = log.stat()
    _trades(lake, 2)
    os.utime(log, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if the clock had not moved on
    assert _ids(follower) == [2]
    assert versions.files(SILVER).version == lake.delta(SILVER).version()


def test_of_bars_only_those_that_changed_are_news(lake: Lake) -> None:
    _trades(lake, 1, symbol="BTC-USD")
    _trades(lake, 1, symbol="ETH-USD")
    follower = Follower(lake.settings.location, BARS, ("symbol", "trade_count"))
    follower.read()
    _trades(lake, 2, symbol="ETH-USD")  # its bar is in one file with that of the other
    rows = follower.read().rows
    assert rows.select(["symbol", "trade_count"]).to_pylist() == [{"symbol": "ETH-USD", "trade_count": 2}]


def test_an_episode_that_late_trades_take_back_makes_the_whole_table_news(tmp_path: Path) -> None:
    """Its row is gone, and a commit names only the rows that it adds."""
    rule = {"types": ["SELL_IMBALANCE"], "threshold_pct": "100"}
    lake = Lake(tmp_path / "lake", alerts={"rules": [rule]})
    sales = [Trade(symbol, n, at(n), side="SELL") for symbol in ("BTC-USD", "ETH-USD") for n in (1, 3)]
    lake.take_in(trade.match() for trade in sales)
    follower = Follower(lake.settings.location, ALERTS, ["symbol"], key="alert_id")
    assert sorted(follower.read().rows["symbol"].to_pylist()) == ["BTC-USD", "ETH-USD"]
    lake.take_in([Trade("BTC-USD", 2, at(2), side="BUY").match()])
    news = follower.read()
    assert news.is_whole
    assert news.rows["symbol"].to_pylist() == ["ETH-USD"]
    lake.close()


def test_who_is_so_far_behind_that_the_log_is_cut_reads_the_table(lake: Lake) -> None:
    _trades(lake, 1)
    follower = _followed(lake)
    follower.read()
    for one in range(2, 6):
        _trades(lake, one)
    delta = lake.delta(SILVER)
    delta.create_checkpoint()
    log = lake.folder(SILVER) / "_delta_log"
    for version in range(delta.version()):
        (log / f"{version:020d}.json").unlink()
    assert follower.has_news()
    news = follower.read()
    assert (news.is_whole, sorted(news.rows["trade_id"].to_pylist())) == (True, [1, 2, 3, 4, 5])
    assert not follower.has_news()


def test_a_table_that_is_made_anew_is_read_from_its_beginning(lake: Lake) -> None:
    _trades(lake, 1, 2)
    follower = _followed(lake)
    follower.read()
    shutil.rmtree(lake.folder(SILVER))
    assert not follower.has_news()
    lake.rebuild()
    news = follower.read()
    assert (news.is_whole, sorted(news.rows["trade_id"].to_pylist())) == (True, [1, 2])


def test_a_table_that_is_made_anew_in_the_same_folder_is_another_table(lake: Lake) -> None:
    # Some file systems give the inode of a deleted folder to the next one.
    _trades(lake, 1, 2)
    follower, versions = _followed(lake), NewestVersions(lake.settings.location)
    follower.read()
    old = versions.files(SILVER)
    for file in [*lake.folder(SILVER).rglob("*")]:
        if file.is_file():
            file.unlink()
    lake.rebuild()
    news = follower.read()
    assert (news.is_whole, sorted(news.rows["trade_id"].to_pylist())) == (True, [1, 2])
    assert not {*versions.files(SILVER).paths} & {*old.paths}


def test_a_rebuild_in_place_is_the_whole_table_again(lake: Lake) -> None:
    _trades(lake, 1, 2)
    follower = _followed(lake)
    follower.read()
    lake.rebuild()
    wholes = []
    while follower.has_news():
        wholes.append(follower.read())
    assert wholes[0].is_whole
    assert sorted(one for news in wholes for one in news.rows["trade_id"].to_pylist()) == [1, 2]


def test_where_there_is_no_folder_to_look_at_the_table_itself_is_asked(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LakeLocation, "table_folder", lambda *_: None)
    follower = _followed(lake)
    assert follower.poll_s(0.05) >= 1
    assert follower.read().rows.num_rows == 0
    _trades(lake, 1, 2)
    assert _ids(follower) == [1, 2]
    assert not follower.has_news()
    _trades(lake, 3)
    lake.delta(SILVER).optimize.compact()
    assert _ids(follower) == [3]
    shutil.rmtree(lake.folder(SILVER))
    lake.rebuild()
    assert _ids(follower) == [1, 2, 3]


def test_what_was_not_wanted_of_a_whole_table_is_not_read(lake: Lake) -> None:
    _trades(lake, 1, 2, 3)
    assert _followed(lake).read(lambda _table: "trade_id > 1").rows["trade_id"].to_pylist() == [2, 3]


def test_a_file_that_is_gone_is_a_reason_to_try_again_and_nothing_counts_as_seen(lake: Lake, tmp_path: Path) -> None:
    _trades(lake, 1)
    follower = _followed(lake)
    follower.read()
    before = set(lake.delta(SILVER).file_uris())
    _trades(lake, 2)
    (uri,) = set(lake.delta(SILVER).file_uris()) - before
    file = Path(uri.replace("%20", " "))
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(LakeUnreachable, match="can't be read"):
        follower.read()
    (tmp_path / "elsewhere").rename(file)
    assert _ids(follower) == [2]


def test_a_torn_entry_of_the_log_is_a_reason_to_try_again(lake: Lake) -> None:
    _trades(lake, 1)
    follower = _followed(lake)
    follower.read()
    _trades(lake, 2)
    log = lake.folder(SILVER) / "_delta_log"
    entry = log / f"{lake.delta(SILVER).version():020d}.json"
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LakeUnreachable):
        follower.read()
    entry.write_bytes(whole)
    assert _ids(follower) == [2]


def test_a_table_of_another_version_is_refused(tmp_path: Path) -> None:
    location = LakeLocation.of(tmp_path)
    schema = SILVER.arrow_schema.remove(0)
    DeltaTable.create(location.table_url(SILVER), schema)
    with pytest.raises(ConfigurationError, match="another version"):
        Follower(location, SILVER, ("symbol",)).read()
