"""A table is written exactly once: every commit whole, in order, by one owner, and readable by everybody."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake
from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.store import LocalStore

from cryptopulse.errors import Fenced, LakeFull
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import BARS, BRONZE, COVERAGE, SILVER, TABLES, Table
from cryptopulse.store.table_writer import LOAD, NOTHING_YET, TOMBSTONES, TableWriter

DAY = datetime(2026, 7, 7, tzinfo=UTC)


def trades(first: int, count: int = 5, start: datetime = DAY, symbol: str = "BTC-USD") -> pa.Table:
    """Trades with the ids from `first` on, a second apart."""
    rows = [
        {
            "trade_id": first + number,
            "symbol": symbol,
            "price": Decimal("64000.123456789012"),
            "trade_size": Decimal("0.00000001"),
            "side": "BUY" if number % 2 else "SELL",
            "event_time": start + timedelta(seconds=number, microseconds=1),
            "ingestion_time": start + timedelta(seconds=number, microseconds=20_001),
            "load_timestamp": start + timedelta(seconds=number, microseconds=99_999),
            "source": "websocket",
            "event_date": (start + timedelta(seconds=number)).date(),
        }
        for number in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=SILVER.arrow_schema)


def intervals(*found: tuple[str, int, int]) -> pa.Table:
    """Rows of the coverage, a table that is not partitioned."""
    rows = [
        {"symbol": symbol, "first_trade_id": first, "last_trade_id": last, "load_timestamp": DAY}
        for symbol, first, last in found
    ]
    return pa.Table.from_pylist(rows, schema=COVERAGE.arrow_schema)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., TableWriter]:
    """Opens writers of one lake, as processes would one after the other; the newest has taken over."""

    def opened(table: Table = SILVER, *, takes_over: bool = True, **properties: str) -> TableWriter:
        writer = TableWriter(LakeLocation.of(tmp_path / "lake"), table, properties)
        if takes_over:
            writer.take_over(writer.owner + 1)
        return writer

    return opened


@pytest.fixture
def writer(make: Callable[..., TableWriter]) -> TableWriter:
    return make()


def folder(writer: TableWriter) -> Path:
    found = writer.lake.table_folder(writer.table)
    assert found is not None
    return found


def delta(writer: TableWriter) -> DeltaTable:
    return DeltaTable(str(folder(writer)))


def ids(writer: TableWriter) -> list[int]:
    """What anybody reads, by deltalake alone."""
    return sorted(delta(writer).to_pyarrow_table()["trade_id"].to_pylist())


def data_files(writer: TableWriter) -> set[Path]:
    return {file for file in folder(writer).rglob("*.parquet") if "_delta_log" not in file.parts}


def live_files(writer: TableWriter) -> set[Path]:
    return {folder(writer) / path for path in delta(writer).get_add_actions(flatten=True)["path"].to_pylist()}


def is_id(*wanted: int) -> Callable[[pa.Table], pa.Array]:
    return lambda rows: pc.is_in(rows["trade_id"], pa.array(wanted))


class Storage:
    """A local folder that fails on order: `faults` by the name of a method, called with its arguments."""

    def __init__(self, writer: TableWriter, **faults: Callable[..., Any]) -> None:
        self.store = LocalStore(folder(writer))
        self._faults = faults
        writer._store = writer._log._store = writer._parquet._store = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        fault = self._faults.get(name)
        return (lambda *args, **more: fault(self.store, *args, **more)) if fault else getattr(self.store, name)


def test_what_is_appended_is_read_back_exactly_by_every_reader(writer: TableWriter) -> None:
    rows = trades(1, 3)
    writer.append(rows, {"bronze/0": 7})
    expected = rows.to_pylist()
    assert delta(writer).to_pyarrow_table().select(rows.schema.names).cast(rows.schema).to_pylist() == expected
    assert writer.read("*").select(rows.schema.names).cast(rows.schema).to_pylist() == expected
    assert pl.read_delta(str(folder(writer))).select(rows.schema.names).to_dicts() == expected
    (file,) = data_files(writer)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.sql(f"SELECT * FROM read_parquet('{file}', hive_partitioning = false)")
        days = rows["event_date"]
        told = found.to_arrow_table().append_column("event_date", days)
    assert told.cast(rows.schema).to_pylist() == expected
    assert (told.schema.field("price").type, told.schema.field("event_time").type) == (
        rows.schema.field("price").type,
        rows.schema.field("event_time").type,
    )


@pytest.mark.parametrize("value", ["0.000000000001", "999999999999.999999999999", "123456789012.123456789012"])
def test_decimals_keep_every_digit(writer: TableWriter, value: str) -> None:
    rows = trades(1, 1).set_column(
        2, SILVER.arrow_schema.field("price"), pa.array([Decimal(value)], pa.decimal128(24, 12))
    )
    writer.append(rows, {})
    assert delta(writer).to_pyarrow_table()["price"].to_pylist() == [Decimal(value)]
    assert writer.read("trade_id", f"price = CAST('{value}' AS DECIMAL(24, 12))").num_rows == 1


def test_a_commit_of_five_trades_takes_little_room(writer: TableWriter) -> None:
    writer.append(trades(1), {"bronze/0": 1, LOAD: 2})
    (file,) = data_files(writer)
    assert file.stat().st_size < 1_500
    assert (folder(writer) / "_delta_log" / f"{writer.version:020d}.json").stat().st_size < 1_200


def test_positions_come_with_the_rows_and_are_known_to_the_next_writer(make: Callable[..., TableWriter]) -> None:
    writer = make()
    assert (writer.position("bronze/0"), writer.next_load() > 0) == (NOTHING_YET, True)
    writer.append(trades(1), {"bronze/0": 7, LOAD: 10})
    writer.append(trades(6, 0), {"bronze/0": 9, LOAD: 11})
    writer.skip_to("bronze/0", 12)
    assert (writer.position("bronze/0"), writer.recorded("bronze/0")) == (12, 9)
    successor = make()
    assert (successor.position("bronze/0"), successor.position(LOAD), successor.position("bronze/1")) == (9, 11, -1)
    assert successor.owner == writer.owner + 1
    assert (writer.commits, writer.rows_written, successor.rows()) == (2, 5, 5)


def test_rows_of_several_days_go_to_a_file_each_in_one_commit(writer: TableWriter) -> None:
    before = writer.version
    writer.append(trades(1, 6, DAY - timedelta(seconds=3)), {"bronze/0": 1})
    assert writer.version == before + 1
    assert {file.parent.name for file in data_files(writer)} == {"event_date=2026-07-06", "event_date=2026-07-07"}
    assert ids(writer) == [1, 2, 3, 4, 5, 6]
    assert delta(writer).to_pyarrow_table(filters=[("event_date", "=", date(2026, 7, 6))]).num_rows == 3


def test_columns_may_come_in_any_order_and_a_null_that_the_contract_forbids_is_refused(writer: TableWriter) -> None:
    rows = trades(1)
    writer.append(rows.select(rows.schema.names[::-1]), {"bronze/0": 1})
    assert ids(writer) == [1, 2, 3, 4, 5]
    nameless = rows.set_column(1, SILVER.arrow_schema.field("symbol"), pa.nulls(5, pa.string()))
    with pytest.raises(ValueError, match="null"):
        writer.append(nameless, {"bronze/0": 2})
    assert data_files(writer) == live_files(writer)


def test_a_replacement_touches_the_rows_it_means_and_no_other(writer: TableWriter) -> None:
    for first in (1, 6, 11):
        writer.append(trades(first, 5, DAY + timedelta(days=first)), {"bronze/0": first})
    before = writer.version
    writer.replace(trades(100, 2), {"bronze/0": 20}, is_replaced=is_id(6, 7))
    assert writer.version == before + 1
    assert ids(writer) == [1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 100, 101]
    assert len(live_files(writer)) == 4, "one with what was not replaced, one with what is new, two untouched"
    writer.replace(trades(200, 1), {"bronze/0": 21})
    assert ids(writer) == [200]
    writer.replace(trades(1, 0), {"bronze/0": NOTHING_YET})
    assert ids(writer) == []
    assert writer.position("bronze/0") == NOTHING_YET


def test_a_replacement_opens_no_file_outside_of_where_it_looks(make: Callable[..., TableWriter]) -> None:
    first = make()
    for day in range(3):
        first.append(trades(10 * day + 1, 5, DAY + timedelta(days=day)), {"bronze/0": day})
    writer = make()
    kept = next(file for file in data_files(writer) if "2026-07-08" in str(file))
    for file in data_files(writer) - {kept}:
        file.write_bytes(b"not to be opened")
    noon = DAY + timedelta(days=1)
    for within in (
        {"event_date": (date(2026, 7, 8), date(2026, 7, 8))},
        {"event_time": (noon, noon + timedelta(seconds=9))},
        {"trade_id": (9, 19), "symbol": ("BTC-USD", "BTC-USD")},
        {"load_timestamp": (1_783_468_800_000_000, 1_783_468_900_000_000)},
    ):
        writer.replace(trades(11, 5, noon), {}, is_replaced=is_id(11, 12, 13, 14, 15), within=within)
    assert {file.path.split("/")[0][-2:]: file.rows for file in writer.files()} == {"07": 5, "08": 5, "09": 5}


def test_statistics_hold_to_the_microsecond_where_a_replacement_looks(make: Callable[..., TableWriter]) -> None:
    moment = DAY + timedelta(microseconds=123_456)
    make().append(trades(1, 1, moment - timedelta(microseconds=1)), {})
    writer = make()
    writer.replace(trades(2, 1), {}, is_replaced=is_id(1), within={"event_time": (moment, moment)})
    assert ids(writer) == [2]


def test_rows_just_written_are_replaced_without_being_read_back(writer: TableWriter) -> None:
    writer.replace(trades(1), {})
    for file in data_files(writer):
        file.write_bytes(b"not to be opened")
    writer.replace(trades(1), {}, is_replaced=is_id(1, 2, 3, 4, 5))
    assert ids(writer) == [1, 2, 3, 4, 5]


def test_a_table_without_partitions_is_replaced_alike(make: Callable[..., TableWriter]) -> None:
    writer = make(COVERAGE)
    writer.append(intervals(("BTC-USD", 1, 5), ("ETH-USD", 1, 9)), {"silver": 1})
    writer.replace(
        intervals(("BTC-USD", 1, 7)), {"silver": 2}, is_replaced=lambda rows: pc.equal(rows["symbol"], "BTC-USD")
    )
    found = writer.read("symbol, last_trade_id").sort_by("symbol").to_pylist()
    assert found == [{"symbol": "BTC-USD", "last_trade_id": 7}, {"symbol": "ETH-USD", "last_trade_id": 9}]


@pytest.mark.parametrize(
    "way",
    [
        lambda zombie: zombie.append(trades(11), {"bronze/0": 11}),
        lambda zombie: zombie.append(trades(11, 0), {"bronze/0": 11}),
        lambda zombie: zombie.replace(trades(11), {"bronze/0": 11}),
        lambda zombie: zombie.merge(zombie.files()),
    ],
    ids=["append", "append nothing", "replace", "merge"],
)
def test_a_writer_whose_table_was_taken_over_commits_nothing_more(
    make: Callable[..., TableWriter], way: Callable[[TableWriter], object]
) -> None:
    zombie = make()
    for first in (1, 6):
        zombie.append(trades(first), {"bronze/0": first})
    zombie.files()
    successor = make()
    before = data_files(successor)
    for _ in range(2):
        with pytest.raises(Fenced, match="Another pipeline has taken over silver"):
            way(zombie)
    assert data_files(successor) == before, "what it wrote is deleted again"
    successor.append(trades(11), {"bronze/0": 11})
    assert ids(successor) == list(range(1, 16))


def test_a_writer_that_sleeps_until_the_log_was_cut_is_fenced_and_leaves_nothing(
    make: Callable[..., TableWriter],
) -> None:
    retention = {"delta.logRetentionDuration": "interval 0 seconds"}
    zombie, sleeper = make(**retention), make(takes_over=False)
    successor = make()
    for first in range(1, 20, 5):
        successor.append(trades(first), {"bronze/0": first})
    newest = delta(successor)
    newest.create_checkpoint()
    newest.cleanup_metadata()
    log = folder(successor) / "_delta_log"
    assert not (log / f"{zombie.version + 1:020d}.json").exists(), "its next name is free again"
    before = {file for file in folder(successor).rglob("*") if file.is_file()}
    for one in (zombie, sleeper):
        for way in (one.append, one.replace):
            with pytest.raises(Fenced):
                way(trades(99), {"bronze/0": 99})
    assert {file for file in folder(successor).rglob("*") if file.is_file()} == before
    successor.append(trades(21), {"bronze/0": 21})
    assert ids(successor) == list(range(1, 26))


def test_of_two_that_take_over_at_once_one_is_refused(make: Callable[..., TableWriter]) -> None:
    first, second = make(takes_over=False), make(takes_over=False)
    first.take_over(5)
    with pytest.raises(Fenced, match="just started"):
        second.take_over(5)
    second.take_over(6)
    with pytest.raises(Fenced):
        first.append(trades(1), {"bronze/0": 1})
    second.check_owner(delta(second))
    with pytest.raises(Fenced):
        first.check_owner(delta(second))


def test_a_take_over_comes_after_the_last_commit_of_the_one_before_and_knows_it(
    make: Callable[..., TableWriter],
) -> None:
    before = make()
    successor = make(takes_over=False)
    before.append(trades(1), {"bronze/0": 5})
    successor.take_over(before.owner + 1)
    assert successor.position("bronze/0") == 5


@pytest.mark.parametrize("way", ["append", "replace"])
def test_a_compaction_beside_a_writer_goes_first_and_loses_nothing(writer: TableWriter, way: str) -> None:
    for first in (1, 6, 11):
        writer.append(trades(first), {"bronze/0": first})
    if way == "replace":
        writer.replace(trades(1), {}, is_replaced=is_id(1, 2, 3, 4, 5))
    assert delta(writer).optimize.compact()["numFilesRemoved"] == 3
    if way == "append":
        writer.append(trades(16), {"bronze/0": 16})
    else:
        writer.replace(trades(16), {"bronze/0": 16}, is_replaced=is_id(12))
    assert ids(writer) == [number for number in range(1, 21) if way == "append" or number != 12]
    assert data_files(writer) >= live_files(writer)
    assert {folder(writer) / file.path for file in writer.files()} == live_files(writer)


def test_others_that_change_rows_or_positions_fence_though_they_never_took_over(writer: TableWriter) -> None:
    write_deltalake(str(folder(writer)), trades(1), mode="append")
    with pytest.raises(Fenced):
        writer.append(trades(6), {"bronze/0": 6})
    assert ids(writer) == [1, 2, 3, 4, 5]


def test_a_property_that_somebody_sets_is_no_reason_to_stop(writer: TableWriter) -> None:
    delta(writer).alter.set_table_properties({"delta.logRetentionDuration": "interval 1 days"})
    writer.append(trades(1), {"bronze/0": 1})
    assert ids(writer) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("way", ["append", "replace", "take over"])
def test_a_commit_whose_answer_got_lost_is_recognised_as_ones_own(make: Callable[..., TableWriter], way: str) -> None:
    writer = make()
    writer.append(trades(1), {"bronze/0": 1})

    def lost(store: LocalStore, path: str, body: Any, **how: Any) -> None:
        store.put(path, body, **how)
        if how:
            raise AlreadyExistsError(path)

    Storage(writer, put=lost)
    match way:
        case "append":
            writer.append(trades(6), {"bronze/0": 2})
        case "replace":
            writer.replace(trades(6), {"bronze/0": 2}, is_replaced=is_id())
        case "take over":
            writer.take_over(writer.owner + 1)
            writer.append(trades(6), {"bronze/0": 2})
    assert ids(writer) == list(range(1, 11))
    assert make().position("bronze/0") == 2


def full(_store: LocalStore, path: str, *_: Any, **__: Any) -> None:
    raise GenericError(
        f"Generic LocalFileSystem error: Unable to copy data to {path}: No space left on device (os error 28)"
    )


@pytest.mark.parametrize("of", ["the rows", "the second file", "the commit"])
@pytest.mark.parametrize("way", ["append", "replace"])
def test_a_full_disk_is_told_as_one_and_leaves_nothing_behind(writer: TableWriter, of: str, way: str) -> None:
    writer.append(trades(1), {"bronze/0": 1})
    before, written = data_files(writer), []

    def put(store: LocalStore, path: str, body: Any, **how: Any) -> None:
        written.append(path)
        if of == {1: "the rows", 2: "the second file"}.get(len(written)) or (of == "the commit" and how):
            full(store, path)
        store.put(path, body, **how)

    Storage(writer, put=put)
    rows = trades(6, 6, DAY - timedelta(seconds=3))
    with pytest.raises(LakeFull, match="disk under"):
        getattr(writer, way)(rows, {"bronze/0": 2})
    assert data_files(writer) == before
    assert writer.position("bronze/0") == 1
    Storage(writer)
    writer.append(rows, {"bronze/0": 2})
    assert ids(writer) == list(range(1, 12))


def test_rows_that_cannot_be_put_together_leave_no_file(writer: TableWriter) -> None:
    with pytest.raises((KeyError, ValueError)):
        writer.append(trades(1).drop_columns(["price"]), {"bronze/0": 1})
    assert data_files(writer) == set()
    assert writer.version == delta(writer).version()


def test_a_merge_makes_one_file_of_many_and_changes_no_row(writer: TableWriter) -> None:
    for first in range(1, 101, 5):
        writer.append(trades(first, 5, DAY + timedelta(minutes=first)), {"bronze/0": first})
    before = delta(writer).to_pyarrow_table().sort_by("trade_id")
    assert writer.merge(writer.files())
    assert len(live_files(writer)) == 1
    assert delta(writer).to_pyarrow_table().sort_by("trade_id").equals(before)
    actions = [
        json.loads(line)
        for line in (folder(writer) / f"_delta_log/{writer.version:020d}.json").read_text().splitlines()
    ]
    assert not any(
        (one.get("add") or one["remove"])["dataChange"] for one in actions if "add" in one or "remove" in one
    )
    (merged,) = writer.files()
    assert (merged.rows, merged.bounds["trade_id"]) == (100, (1, 100))
    writer.replace(trades(3, 1), {"bronze/0": 200}, is_replaced=is_id(3), within={"trade_id": (3, 3)})
    assert ids(writer) == list(range(1, 101))


def test_a_merge_of_files_that_were_replaced_meanwhile_does_nothing(writer: TableWriter) -> None:
    for first in (1, 6):
        writer.append(trades(first), {"bronze/0": first})
    held = writer.files()
    writer.replace(trades(6), {}, is_replaced=is_id(6, 7, 8, 9, 10))
    before = data_files(writer)
    assert not writer.merge(held)
    assert data_files(writer) == before
    assert ids(writer) == list(range(1, 11))


@pytest.mark.long
def test_a_merge_of_large_files_holds_a_part_of_them_in_memory(make: Callable[..., TableWriter]) -> None:
    """They are 144 MB."""
    writer = make(BRONZE)
    count, chance = 60_000, random.Random(1)
    times = pa.repeat(pa.scalar(DAY, pa.timestamp("us", "UTC")), count)

    def messages(first: int) -> pa.Table:
        buffers = [None, pa.py_buffer(chance.randbytes(300 * count))]
        bodies = pa.FixedSizeBinaryArray.from_buffers(pa.binary(300), count, buffers).cast(pa.binary())
        columns: list[Any] = [
            bodies,
            pa.repeat(pa.scalar(0, pa.int32()), count),
            pa.array(range(first, first + count), pa.int64()),
            pa.repeat("BTC-USD", count),
            times,
            times,
            pa.repeat("websocket", count),
            times,
            pa.repeat(pa.scalar(DAY.date()), count),
        ]
        return pa.Table.from_arrays(columns, schema=BRONZE.arrow_schema)

    for first in range(0, 8 * count, count):
        writer.append(messages(first), {"log/0": first})
    assert max(file.size for file in writer.files()) > 4 << 20, "so large that it is read piece by piece"
    assert writer.merge(writer.files())
    assert pa.default_memory_pool().max_memory() < 100 << 20  # 71 are usual; no other test here needs as much
    assert delta(writer).to_pyarrow_table(columns=["offset"]).num_rows == 8 * count
    assert writer.read("count(DISTINCT body) AS n")["n"].to_pylist() == [8 * count]


def test_a_table_keeps_its_properties_but_tombstones_for_longer(make: Callable[..., TableWriter]) -> None:
    def kept(seconds: int) -> str | None:
        return delta(make(**{TOMBSTONES: f"interval {seconds} seconds"})).metadata().configuration[TOMBSTONES]

    assert [kept(100), kept(50), kept(200)] == ["interval 100 seconds", "interval 100 seconds", "interval 200 seconds"]


def test_a_large_table_is_read_in_parts(writer: TableWriter) -> None:
    for first in range(1, 101, 10):
        writer.append(trades(first, 10), {"bronze/0": first})
    parts = list(writer.read_parts("trade_id", "trade_id > 5", 20))
    assert len(parts) > 2
    assert sorted(number for part in parts for number in part["trade_id"].to_pylist()) == list(range(6, 101))


def test_a_commit_takes_as_long_after_a_thousand_as_after_ten(make: Callable[..., TableWriter]) -> None:
    writer = make(BARS)
    empty = BARS.arrow_schema.empty_table()

    def seconds() -> float:
        taken = []
        for number in range(50):
            started = time.process_time()
            writer.append(empty, {"silver": number})
            taken.append(time.process_time() - started)
        return sorted(taken)[25]

    early = seconds()
    for number in range(1000):
        writer.append(empty, {"silver": number})
    assert seconds() < 3 * early


def test_no_column_with_statistics_may_be_null_or_a_decimal() -> None:
    columns = [column for table in TABLES for column in table.columns if column.name in table.stats]
    assert not [column.name for column in columns if column.nullable or column.type.startswith("DECIMAL")]


def test_old_files_are_deleted_though_some_are_gone_already(writer: TableWriter) -> None:
    for first in range(1, 21, 5):
        writer.append(trades(first), {"bronze/0": first})
    old = sorted(file.path for file in writer.files())
    writer.merge(writer.files())
    writer.delete(old[1:2])
    writer.delete(old)
    assert data_files(writer) == live_files(writer)
    assert ids(writer) == list(range(1, 21))
