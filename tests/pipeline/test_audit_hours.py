"""The audit compares each hour of gold.dm_completeness, and what bars say of healed trades, with its own counts."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from cryptopulse.lake.tables import BARS, COMPLETENESS
from support import Message, Trade, at, page
from support_audit import Row, audit, copied, create, delete, files, fill, iso, overwrite, rows

MISSING, HEALED = {105, 112, 118}, {108, 109}
"""One trade every ten minutes from 12:00 on: 105 is missing at the end of its hour, 118 at the start of its."""


def trade(number: int) -> Trade:
    return Trade("BTC-USD", number, at((number - 100) * 600))


def messages() -> list[Message]:
    found = [trade(number).match() for number in range(100, 124) if number not in MISSING | HEALED]
    return [*found, page([trade(number) for number in range(107, 111)])]


def hour(number: int, first: int, last: int, missing: Iterable[int], healed: int = 0) -> Row:
    """An hour that answers for the ids from `first` to `last`."""
    lacking = len(set(missing))
    start = at(number * 3600)
    return {
        "symbol": "BTC-USD",
        "window_start": start,
        "window_end": start + timedelta(hours=1),
        "first_trade_id": first,
        "last_trade_id": last,
        "expected_ids": last - first + 1,
        "held_ids": last - first + 1 - lacking,
        "healed_ids": healed,
        "absent_ids": 0,
        "missing_ids": lacking,
        "healed_from": "rest" if healed else "",
        "witness": "trade" if lacking else "",
        "is_complete": not lacking,
        "window_date": start.date(),
    }


def right() -> list[Row]:
    """The hours as they must be: a hole belongs to the hour of the trade after it."""
    return [
        hour(0, 100, 104, ()),
        hour(1, 105, 111, {105}, healed=2),
        hour(2, 112, 117, {112}),
        hour(3, 118, 123, {118}),
    ]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with three holes and, in the table of hours, what is right."""
    folder = fill(tmp_path_factory.mktemp("hours") / "lake", [messages()])
    create(folder, "gold", "dm_completeness", pa.Table.from_pylist(right()), "window_date")
    return folder


@pytest.fixture
def lake(original: Path, tmp_path: Path) -> Path:
    """A lake of one's own to harm."""
    return copied(original, tmp_path / "lake")


def change_hour(lake: Path, number: int, **values: object) -> None:
    """Gives other values to one hour."""
    hours = right()
    hours[number].update(values)
    overwrite(lake, COMPLETENESS, pa.Table.from_pylist(hours))


def test_hours_that_are_right_are_not_told(lake: Path) -> None:
    found = audit(lake)
    assert found.kinds == ["hole"] * 3
    assert found.checked("hours") == 4
    assert found.product("BTC-USD")["healed_ids"] == 2


@pytest.mark.parametrize(
    ("column", "stored", "expected"),
    [("expected_ids", 8, 7), ("held_ids", 7, 6), ("healed_ids", 0, 2), ("absent_ids", 1, 0), ("missing_ids", 0, 1)],
)
def test_a_count_that_is_wrong_is_named_with_the_right_one(lake: Path, column: str, stored: int, expected: int) -> None:
    change_hour(lake, 1, **{column: stored})
    found = audit(lake).one("hour_differs")
    assert found["columns"] == {column: {"stored": stored, "expected": expected}}
    assert (found["symbol"], found["window_start"]) == ("BTC-USD", iso(at(3600)))
    assert found["text"] == (
        f"BTC-USD: completeness of the hour of 2026-07-07T13:00Z: {column} {stored} instead of {expected}"
    )


def test_an_hour_that_calls_itself_complete_with_ids_missing_is_told(lake: Path) -> None:
    change_hour(lake, 2, is_complete=True)
    assert audit(lake).one("hour_differs")["also"] == ["is_complete"]


def test_an_hour_that_does_not_last_an_hour_is_told(lake: Path) -> None:
    change_hour(lake, 2, window_end=at(3 * 3600 + 1))
    assert audit(lake).one("hour_differs")["also"] == ["window_end"]


def test_an_hour_that_is_there_twice_is_told(lake: Path) -> None:
    overwrite(lake, COMPLETENESS, pa.Table.from_pylist([*right(), right()[2]]))
    assert audit(lake).one("hour_differs")["also"] == ["copies"]


def test_ids_for_which_no_hour_answers_are_told(lake: Path) -> None:
    delete(lake, COMPLETENESS, "window_start = '2026-07-07T13:00:00Z'")
    unanswered = audit(lake).one("hour_missing")
    assert (unanswered["first_trade_id"], unanswered["last_trade_id"]) == (105, 111)
    assert unanswered["text"] == "BTC-USD: ids 105 to 111 (7) in no hour of gold.dm_completeness"


def test_a_hole_between_two_hours_must_not_fall_between_them(lake: Path) -> None:
    hours = right()
    hours[3] = hour(3, 119, 123, ())
    overwrite(lake, COMPLETENESS, pa.Table.from_pylist(hours))
    unanswered = audit(lake).one("hour_missing")
    assert (unanswered["first_trade_id"], unanswered["last_trade_id"]) == (118, 118)


def test_only_the_hours_asked_for_are_compared(lake: Path) -> None:
    change_hour(lake, 0, held_ids=4)
    found = audit(lake, "--from", "2026-07-07T14:00")
    assert (found.kinds, found.checked("hours")) == (["hole", "hole"], 2)


def test_bars_that_count_trades_of_rest_are_checked(lake: Path) -> None:
    bars = rows(lake, BARS)
    healed = [int(first in HEALED) for first in bars["first_trade_id"].to_pylist()]
    if "rest_count" in bars.column_names:
        bars = bars.drop_columns(["rest_count"])
    overwrite(lake, BARS, bars.append_column("rest_count", pa.array(healed, pa.int64())))
    assert set(audit(lake).kinds) == {"hole"}
    overwrite(lake, BARS, bars.append_column("rest_count", pa.array([0] * len(healed), pa.int64())))
    wrong = audit(lake).of("bar_differs")
    assert [bar["window_start"] for bar in wrong] == [iso(at(8 * 600)), iso(at(9 * 600))]
    assert all(bar["columns"] == {"rest_count": {"stored": 0, "expected": 1}} for bar in wrong)


def test_a_file_of_the_hours_that_is_gone_is_named(lake: Path) -> None:
    (file,) = files(lake, COMPLETENESS)
    file.unlink()
    found = audit(lake)
    assert found.one("file_missing")["table"] == "gold.dm_completeness"
    assert [row["first_trade_id"] for row in found.of("hour_missing")] == [100]


def test_ids_that_are_not_in_the_order_of_time_are_healed_in_the_hour_of_their_trades(tmp_path: Path) -> None:
    """Ids 100 to 110 are fetched and of the second hour, though the first has ids on both sides of them."""
    early = [Trade("BTC-USD", number, at(number)).match() for number in (98, 99, 111, 112)]
    late = [Trade("BTC-USD", number, at(3_600 + number)) for number in range(100, 111)]
    folder = fill(tmp_path / "lake", [early, [page(late)]])
    found = audit(folder)
    assert (found.findings, found.checked("hours")) == ([], 2)
    stored = {row["window_start"]: row["healed_ids"] for row in rows(folder, COMPLETENESS).to_pylist()}
    assert stored == {at(0): 0, at(3_600): 11}
    hours = [row | {"healed_ids": 0} for row in rows(folder, COMPLETENESS).to_pylist()]
    overwrite(folder, COMPLETENESS, pa.Table.from_pylist(hours))
    assert audit(folder).kinds == ["hour_differs"]
