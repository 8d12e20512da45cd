"""A lake on S3 and on Azure: the same tables, no lost commit, and words that help when the storage refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from storage_servers import Storage, start_azurite, start_s3

from cryptopulse.cli import run
from cryptopulse.engine.backtest import backtest
from cryptopulse.errors import ConfigurationError, Fenced, LakeUnreachable
from cryptopulse.lake.dataset import Lake as Reader
from cryptopulse.lake.dataset import read
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.result import Rows
from cryptopulse.lake.storage import is_there
from cryptopulse.lake.tables import ALERTS, BRONZE, SILVER, TABLES
from cryptopulse.notify.table import AlertsTable
from cryptopulse.pipeline import Pipeline
from cryptopulse.settings import Settings, load_settings
from cryptopulse.store.table_writer import TableWriter
from support import Lake, Message, Trade, advanced, at, message, page
from support_processes import Processes, wait_until

pytestmark = pytest.mark.cluster

MakeLake = Callable[..., Lake]


@pytest.fixture(scope="module", params=[start_s3, start_azurite], ids=["s3", "azure"])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    """Each of the servers."""
    server = request.param()
    yield server
    server.close()


on_s3 = pytest.mark.parametrize("storage", [start_s3], ids=["s3"], indirect=True)


@pytest.fixture
def make(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeLake]:
    """Makes lakes on the server, with their state in the test's folder and credentials from the configuration."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made: list[Lake] = []

    def lake(**options: Any) -> Lake:
        made.append(Lake(storage.new_lake(), storage={"options": storage.options}, **options))
        return made[-1]

    yield lake
    for one in made:
        one.close()


def day_with_a_crash(trades: int = 400) -> list[Message]:
    """Trades of two products over some minutes, one of which falls by 3 % half-way; late, repeated and bad messages."""
    market = [
        Trade(symbol, number, at(number * 1.5), str(97 if number > trades // 2 and symbol == "BTC-USD" else 100))
        for number in range(1, trades + 1)
        for symbol in ("BTC-USD", "ETH-USD")
    ]
    hidden = {50, 51, 300}
    messages = [trade.match() for trade in market if trade.trade_id not in hidden]
    messages += [messages[7], message(b"{broken"), market[3].match(price=None)]
    messages.append(page([trade for trade in market if trade.symbol == "BTC-USD" and trade.trade_id in hidden]))
    messages.append(advanced([Trade("SOL-USD", 5, at(3)), Trade("SOL-USD", 6, at(4))]))
    return messages


def local_reference(tmp_path: Path, messages: list[Message]) -> dict[str, Any]:
    reference = Lake(tmp_path / "reference")
    reference.take_in(messages)
    reference.close()
    return reference.contents()


def test_the_tables_are_those_of_a_local_lake_however_the_stream_is_cut(make: MakeLake, tmp_path: Path) -> None:
    messages = day_with_a_crash()
    lake = make()
    for start in range(0, len(messages), 150):
        lake.append(messages[start : start + 150])
        lake.drain(batch=60)
    assert lake.contents() == local_reference(tmp_path, messages)
    assert [row["state"] for row in lake.rows(ALERTS)]
    lake.rebuild()
    assert lake.contents() == local_reference(tmp_path / "again", messages)
    found = backtest(lake.settings.location, lake.settings.alerts.rules)
    assert found["alert_id"].to_pylist() == lake.arrow(ALERTS)["alert_id"].to_pylist()


def test_the_notifier_notices_commits_to_a_table_elsewhere_and_reads_what_changed(
    make: MakeLake, storage: Storage
) -> None:
    lake = make()
    table = AlertsTable(lake.settings.location)
    assert table.poll_s(0.1) == 2.0  # each look is a request that is paid for
    assert table.has_news()
    assert table.read(0) == []
    messages = day_with_a_crash()
    lake.take_in(messages[:600])
    assert table.has_news()
    (opened,) = table.read(0)
    assert not table.has_news()
    if storage.kind == "s3":
        storage.fetched()
        assert not table.has_news()
        assert not [path for path in storage.fetched() if path.endswith(".parquet")]
    lake.take_in([Trade("BTC-USD", 900, at(900), "97").match()])
    assert table.has_news()
    (closed,) = table.read(0)
    assert (closed.alert_id, opened.state, closed.state) == (opened.alert_id, "OPEN", "CLOSED")
    assert not table.has_news()


def test_a_processing_that_is_killed_again_and_again_leaves_the_same_tables(
    make: MakeLake, storage: Storage, tmp_path: Path
) -> None:
    messages = day_with_a_crash(1500)
    lake = make()
    lake.append(messages)
    processes = Processes(tmp_path)
    environment = {"PROCESSING__BATCH_MESSAGES_MAX": "100", "STORAGE__OPTIONS": json.dumps(storage.options)}
    try:
        for commits in (2, 4, 6):
            process = processes.start("process", "--lake", lake.settings.lake, **environment)
            wait_until(lambda goal=commits: _version(lake) >= goal, f"commit {commits} of bronze", 240)
            process.kill()
    finally:
        processes.close()
    assert 0 < lake.arrow(BRONZE).num_rows < len(messages), "it was not killed midway"
    lake.drain()
    assert lake.contents() == local_reference(tmp_path, messages)
    offsets = sorted(lake.arrow(BRONZE)["offset"].to_pylist())
    assert offsets == [*range(offsets[0], offsets[0] + len(messages))]


def _version(lake: Lake) -> int:
    return lake.delta(BRONZE).version() if is_there(lake.settings.location, BRONZE) else -1


def test_of_two_writers_the_second_to_commit_is_fenced(make: MakeLake) -> None:
    lake = make()
    lake.take_in([Trade("BTC-USD", number).match() for number in range(1, 11)])
    zombie, successor = (TableWriter(lake.settings.location, SILVER, {}) for _ in range(2))
    rows = lake.arrow(SILVER).slice(0, 1)
    position = zombie.position("bronze/0")
    assert successor.position("bronze/0") == position
    before = lake.arrow(SILVER).num_rows
    successor.append(rows, {"bronze/0": position + 1})
    for harm in (zombie.append, zombie.replace):
        with pytest.raises(Fenced, match="Another pipeline"):
            harm(rows, {"bronze/0": position + 1})
    assert lake.arrow(SILVER).num_rows == before + 1


_RACER = """
import sys
from cryptopulse.store.table_writer import TableWriter
from cryptopulse.errors import Fenced
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import BRONZE
for line in sys.stdin:
    if line == "open\\n":
        writer = TableWriter(LakeLocation.of(sys.argv[1]), BRONZE, {})
        position = writer.position("log/0")
        rows = writer.read("*").slice(0, 1)
        print("ready", flush=True)
        continue
    try:
        writer.append(rows, {"log/0": position + 1})
        print("won", flush=True)
    except Fenced:
        print("fenced", flush=True)
"""


def test_of_two_processes_that_commit_at_once_exactly_one_wins(make: MakeLake, storage: Storage) -> None:
    lake, rounds = make(), 10
    lake.take_in([Trade("BTC-USD", 1).match()])
    command = [sys.executable, "-c", _RACER, lake.settings.lake]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, env=os.environ | storage.environment, **pipes) for _ in range(2)]
    try:
        for _ in range(rounds):
            for order, answers in (("open", {"ready"}), ("go", {"won", "fenced"})):
                for racer in racers:
                    racer.stdin.write(f"{order}\n")
                    racer.stdin.flush()
                assert {racer.stdout.readline().strip() for racer in racers} == answers
    finally:
        for racer in racers:
            racer.communicate()
    assert lake.arrow(BRONZE).num_rows == 1 + rounds


def test_writers_that_do_not_exclude_each_other_lose_no_commit(storage: Storage) -> None:
    url, row, each = storage.new_lake(), pa.table({"writer": [0]}), 8
    DeltaTable.create(url, row.schema, storage_options=storage.options)

    def write(writer: int) -> None:
        for _ in range(each):
            write_deltalake(url, pa.table({"writer": [writer]}), mode="append", storage_options=storage.options)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    delta = DeltaTable(url, storage_options=storage.options)
    assert sorted(delta.to_pyarrow_table()["writer"].to_pylist()) == sorted([*range(4)] * each)
    assert delta.version() == 4 * each


@on_s3  # whose server here can lose answers
def test_a_commit_whose_answer_got_lost_is_recognised_as_ones_own(make: MakeLake, storage: Storage) -> None:
    lake = make()
    lake.take_in([Trade("BTC-USD", 1).match()])
    writer = TableWriter(lake.settings.location, BRONZE, {})
    position, rows = writer.position("log/0"), lake.arrow(BRONZE)
    for number in (1, 2, 3):
        storage.lose_answers(number % 2)
        writer.append(rows, {"log/0": position + number})
    assert lake.arrow(BRONZE).num_rows == 4
    assert TableWriter(lake.settings.location, BRONZE, {}).position("log/0") == position + 3
    storage.lose_answers(1)
    writer.take_over(writer.owner + 1)
    writer.append(rows, {"log/0": position + 4})


def test_maintenance_merges_checkpoints_and_cuts_without_changing_a_row(make: MakeLake, tmp_path: Path) -> None:
    messages = day_with_a_crash(200)
    lake = make(maintenance={"compact_commits": 8, "checkpoint_commits": 5, "log_retention_s": 10})
    with Pipeline(lake.settings, lake.log) as pipeline:
        for start in range(0, len(messages), 20):
            lake.append(messages[start : start + 20])
            while pipeline.step(0):
                pass
            pipeline.maintenance.run_due()
        pipeline.drain(lambda _done, _total: None)
    bronze = lake.delta(BRONZE)
    assert "OPTIMIZE" in {entry["operation"] for entry in bronze.history()}
    assert len(bronze.file_uris()) < len(messages) / 20
    assert lake.contents() == local_reference(tmp_path, messages)


@pytest.fixture
def filled(make: MakeLake) -> Lake:
    """A lake with two days of trades, a file each."""
    lake = make()
    lake.take_in([Trade("BTC-USD", number, at(number)).match() for number in range(1, 101)])
    lake.take_in([Trade("BTC-USD", number, at(86_400 + number)).match() for number in range(101, 201)])
    return lake


@pytest.fixture
def same(tmp_path: Path) -> Iterator[Lake]:
    """A local lake with what `filled` has."""
    lake = Lake(tmp_path / "same")
    for day in (0, 1):
        numbers = range(1 + day * 100, 101 + day * 100)
        lake.take_in([Trade("BTC-USD", number, at(86_400 * day + number)).match() for number in numbers])
    yield lake
    lake.close()


def test_sql_answers_as_on_a_local_lake(filled: Lake, same: Lake) -> None:
    without = {"load_timestamp", "bronze_ingestion_time", "enqueued_time", "detected_at", "offset"}
    for table in TABLES:
        leave = ", ".join(f'"{c.name}"' for c in table.columns if c.name in without)
        query = f"SELECT * {f'EXCLUDE ({leave})' if leave else ''} FROM {table.qualified} ORDER BY ALL"
        found, wanted = (read(lake.settings.location, query) for lake in (filled, same))
        assert found.schema == wanted.schema
        assert found.to_pylist() == wanted.to_pylist()


@pytest.mark.parametrize(
    "ask",
    [
        lambda lake: lake.trades(columns=["symbol", "trade_id", "price", "event_time", "event_date"]),
        lambda lake: lake.trades("BTC-USD", columns=["trade_id"]).reversed().limit(7),
        lambda lake: lake.trades(columns=["trade_id"]).after(at(86_400), "BTC-USD", 0),
        lambda lake: lake.bars(grain="10s"),
        lambda lake: lake.bars(grain="1h"),
        lambda lake: lake.products(),
    ],
)
def test_the_python_api_gives_the_rows_of_a_local_lake(filled: Lake, same: Lake, ask: Callable[[Reader], Rows]) -> None:
    with Reader(filled.settings.location) as there, Reader(same.settings.location) as here:
        assert ask(there).arrow().equals(ask(here).arrow())
        assert ask(there).count() == ask(here).count() > 0


def test_the_python_api_sees_commits_and_fetches_only_what_it_needs(filled: Lake, storage: Storage) -> None:
    with Reader(filled.settings.location) as reader:
        before = reader.trades()
        filled.take_in([Trade("SOL-USD", number, at(172_800)).match() for number in (1, 2)])
        assert (before.count(), reader.trades().count()) == (200, 202)
        if storage.kind != "s3":
            return  # only the S3 server here tells what was fetched
        storage.fetched()
        assert len(reader.trades(end="2026-07-08").arrow()) == 100
        assert len(reader.trades("SOL-USD").arrow()) == 2
        fetched = {path for path in storage.fetched() if "fact_crypto_trades/event_date" in path}
        assert {path.split("event_date=")[1][:10] for path in fetched} == {"2026-07-07", "2026-07-09"}


@on_s3  # whose server here tells what was fetched
def test_sql_fetches_no_file_of_another_day(filled: Lake, storage: Storage) -> None:
    storage.fetched()  # whatever came before
    query = "SELECT count(*) AS n FROM silver.fact_crypto_trades WHERE event_date = DATE '2026-07-08'"
    assert read(filled.settings.location, query).to_pylist() == [{"n": 100}]
    fetched = {path for path in storage.fetched() if "fact_crypto_trades/event_date" in path}
    assert fetched
    assert all("2026-07-08" in path for path in fetched), fetched


def test_every_command_that_looks_works_with_credentials_from_the_environment(
    filled: Lake, storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in storage.environment.items():
        monkeypatch.setenv(name, value)
    lake = ("--lake", filled.settings.lake)
    assert run(["sql", *lake, "--json", "SELECT max(trade_id) AS last FROM silver.fact_crypto_trades"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"last": 200}]
    assert run(["status", *lake]) == 3, "nothing runs there"
    assert run(["alerts", "list", *lake]) == 0
    assert run(["alerts", "backtest", *lake]) == 0
    assert run(["rebuild", *lake, "--json"]) == 0
    assert run(["config", *lake]) == 0
    told = capsys.readouterr()
    assert storage.secret not in told.out + told.err


@pytest.mark.parametrize("command", ["sql", "process", "backtest"])
def test_wrong_credentials_are_one_line_that_names_no_secret(
    command: str, filled: Lake, storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = "d3JvbmcgYW5kIHNlY3JldA=="
    options = {name: wrong if value == storage.secret else value for name, value in storage.options.items()}
    processes = Processes(tmp_path)
    words = {"sql": ["sql", "SELECT 1"], "process": ["process"], "backtest": ["alerts", "backtest"]}[command]
    told = processes.call(*words, "--lake", filled.settings.lake, STORAGE__OPTIONS=json.dumps(options))
    assert told.returncode == 2
    lines = [line for line in told.stderr.splitlines() if line.startswith("cryptopulse: ")]
    assert len(lines) == 1, told.stderr
    assert "403" in lines[0]
    assert "credentials" in lines[0]
    assert wrong not in told.stdout + told.stderr
    assert "Traceback" not in told.stderr


def test_a_bucket_that_is_not_there_is_said(storage: Storage, tmp_path: Path) -> None:
    url = storage.root.replace("lakes", "nobodys") + "/lake"
    location = LakeLocation.of(url, load_settings(storage={"options": storage.options}).storage.options)
    with pytest.raises(ConfigurationError, match="Bucket or container not found"):
        is_there(location, SILVER)


def test_a_storage_that_does_not_answer_is_a_passing_error(storage: Storage) -> None:
    gone = {name: value for name, value in storage.options.items() if "endpoint" not in name}
    endpoint = next(name for name in storage.options if "endpoint" in name)
    settings: Settings = load_settings(storage={"options": gone | {endpoint: "http://127.0.0.1:1", "max_retries": 1}})
    location = replace(LakeLocation.of(storage.new_lake()), options=settings.storage.options)
    with pytest.raises(LakeUnreachable, match="can't be reached"):
        is_there(location, SILVER)
