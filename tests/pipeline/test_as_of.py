"""A lake as of a moment is the copy that one had made then."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import cryptopulse
from cryptopulse.cli import run
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake import dataset
from cryptopulse.lake.tables import ALERTS, COVERAGE, LOAD_TIMESTAMP, SILVER, TABLES
from support import Lake, Message, Trade, at, page, some

BTC, ETH, SOL = "BTC-USD", "ETH-USD", "SOL-USD"


def trade(number: int, seconds: float, price: str, symbol: str = BTC) -> Trade:
    return Trade(symbol, number, at(seconds), price=price, size="0.5", side="BUY" if number % 3 else "SELL")


def steps() -> Iterator[list[Message]]:
    """Crashes that grow, close, join and begin earlier than it seemed; holes that are filled; bad and other copies."""
    yield [trade(n, n * 10, "100").match() for n in range(100, 130)] + [trade(7, 1_000, "5", ETH).match()]
    yield [trade(n, n * 10, "97.5").match() for n in range(131, 133)]  # 130 is missing; a crash opens
    yield [trade(n, n * 10, "94").match() for n in range(135, 150)] + [trade(9, 1_400, "6", ETH).match()]
    yield [trade(n, 3_000 + n, "94").match() for n in range(150, 160)]  # the crash is over
    yield [trade(n, 3_200 + n, "91").match() for n in (170, 171)]  # another
    late = [trade(130, 1_300, "101"), trade(133, 1_330, "93"), trade(134, 1_340, "97")]
    yield [page([replace(one, source="rest") for one in late])]
    yield [trade(171, 3_371, "90").match(), trade(172, 3_380, "94").match(price="cheap")]
    late = [page([trade(6, 900, "5.4", ETH), trade(8, 1_300, "5.5", ETH)])]  # a surge that nobody had seen
    yield [*late, *(trade(n, 3_400 + n, price, SOL).match() for n, price in enumerate(("9", "8.7", "8.5", "8.6")))]
    # All of what is open closes by the time of another product.
    yield [trade(n, 100_000 + n, "95").match() for n in range(173, 180)]


@dataclass(frozen=True)
class Copy:
    moment: datetime
    path: Path


@dataclass(frozen=True)
class Kept:
    lake: Path
    copies: list[Copy]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A lake, and copies of it after each step."""
    folder = tmp_path_factory.mktemp("as-of")
    lake, copies = Lake(folder / "lake"), []
    for number, messages in enumerate(steps()):
        lake.take_in(messages)
        moment = datetime.now(UTC)
        copies.append(Copy(moment, Path(shutil.copytree(lake.path, folder / f"copy {number}"))))
    lake.close()
    return Kept(lake.path, copies)


def known(rows: Any) -> list[dict[str, Any]]:
    """Rows without the column that says when they were derived."""
    found = [{name: value for name, value in row.items() if name != LOAD_TIMESTAMP} for row in rows]
    return sorted(found, key=str)


@pytest.mark.parametrize("number", some(5, [1, 3, 4, 6, 7, 0, 2, 5, 8]))
def test_every_table_is_that_of_a_copy_made_then(kept: Kept, number: int) -> None:
    copy = kept.copies[number]
    with cryptopulse.open(kept.lake, as_of=copy.moment) as past, cryptopulse.open(copy.path) as then:
        for table in TABLES:
            expected = known(then.table(table.qualified))
            assert known(past.table(table.qualified)) == expected, table.qualified
            assert known(past.sql(f"SELECT * FROM {table.qualified}")) == expected, table.qualified
            assert past.table(table.qualified).count() == len(expected)
            assert past.table(table.qualified).arrow().schema == then.table(table.qualified).arrow().schema


def test_the_steps_change_what_was_known(kept: Kept) -> None:
    """Otherwise the test above would show little."""
    seen = []
    for copy in kept.copies:
        with cryptopulse.open(copy.path) as then:
            episodes = [(one["alert_id"], one["state"], one["severity"]) for one in then.alerts()]
            seen.append((then.table(COVERAGE.qualified).count(), sorted(episodes)))
    assert len({str(one) for _, one in seen}) >= 6
    assert [holes for holes, _ in seen] == [2, 3, 5, 5, 6, 4, 4, 4, 5]


@pytest.mark.parametrize("number", [2, 5, 7])
def test_ranges_and_grains_are_those_of_a_copy_made_then(kept: Kept, number: int) -> None:
    copy = kept.copies[number]
    first, end = at(1_000), at(3_190)
    with cryptopulse.open(kept.lake) as now, cryptopulse.open(copy.path) as then:
        past = now.as_of(copy.moment)
        for grain in ("10s", "1m", "5m", "1d"):
            assert known(past.bars(BTC, grain=grain)) == known(then.bars(BTC, grain=grain))
            assert list(past.bars(None, first, end, grain=grain)) == list(then.bars(None, first, end, grain=grain))
        assert list(past.activity_bars(by="trades", size=4)) == list(then.activity_bars(by="trades", size=4))
        assert list(past.products()) == list(then.products())
        for rows_of in (dataset.Lake.trades, dataset.Lake.stats, dataset.Lake.completeness, dataset.Lake.alerts):
            assert known(rows_of(past, ETH, first, end)) == known(rows_of(then, ETH, first, end))
            assert known(rows_of(past, BTC).reversed().limit(3)) == known(rows_of(then, BTC).reversed().limit(3))
        assert past.as_of(datetime.now(UTC)).trades().count() == past.trades().count()  # nobody knew more then


def test_before_anything_was_loaded_nothing_was_known(kept: Kept) -> None:
    with cryptopulse.open(kept.lake, as_of="2020-01-01") as past:
        assert all(past.table(table.qualified).count() == 0 for table in TABLES)
        assert past.sql(f"SELECT count(*) AS n FROM {SILVER.qualified}").arrow()["n"].to_pylist() == [0]
        assert list(past.bars(grain="1h")) == list(past.alerts()) == []


def test_the_last_moment_that_there_is_is_now(kept: Kept) -> None:
    with cryptopulse.open(kept.lake, as_of="9999-12-31T23:59:59.999999") as then, cryptopulse.open(kept.lake) as now:
        assert known(then.alerts()) == known(now.alerts())


def test_the_commands_take_a_moment(kept: Kept, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = kept.copies[2]
    where = ["--as-of", copy.moment.isoformat(), "--lake", str(kept.lake)]
    assert run(["sql", f"SELECT count(*) AS n FROM {SILVER.qualified}", "--json", *where]) == 0
    with cryptopulse.open(copy.path) as then:
        assert f'"n": {then.trades().count()}' in capsys.readouterr().out
        for what, rows in (("bars", then.bars()), ("alerts", then.alerts())):
            assert run(["export", what, str(tmp_path / f"{what}.csv"), *where]) == 0
            assert f"{rows.count()} " in capsys.readouterr().out
    assert run(["sql", "SELECT 1", "--as-of", "yesterday", "--lake", str(kept.lake)]) == 2
    assert "yesterday" in capsys.readouterr().err


def test_alerts_of_the_past_need_rules(kept: Kept) -> None:
    copy = kept.copies[4]
    with cryptopulse.open(kept.lake) as now:
        lake = dataset.Lake(now.location).as_of(copy.moment)
        assert lake.trades().count() < now.trades().count()
        with pytest.raises(ConfigurationError, match="need the rules"):
            lake.alerts()
        with pytest.raises(ConfigurationError, match="need the rules"):
            lake.sql(f"SELECT * FROM {ALERTS.qualified}")
