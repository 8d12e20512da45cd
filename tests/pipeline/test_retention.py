"""Days that retention lets go: what goes, what stays, and that nothing derived from them changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from structlog.testing import capture_logs

import cryptopulse
from cryptopulse import cli, pipeline
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.retention import LetGo, let_go
from cryptopulse.lake.tables import ALERTS, BRONZE, COVERAGE, QUARANTINE, SILVER, TABLES, Table
from cryptopulse.pipeline import Pipeline
from cryptopulse.settings import RetentionSettings
from cryptopulse.status import StatusFile
from cryptopulse.store.retention import Retention
from support import Lake, Trade, at, micros, page
from support_past import Past
from support_retention import ALL, COUNT, DAY_S, DAYS, LATER, MISSING, day, keeping, messages_of, run, trades_of


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    with closing(Lake(tmp_path / "lake")) as lake:
        lake.take_in(message for number in range(DAYS) for message in messages_of(number))
        yield lake


def days_in(lake: Lake, table: Table) -> set[date]:
    return set(pc.unique(lake.arrow(table)[table.partition_by[0]]).to_pylist())


def kept(lake: Lake, *others: Table) -> dict[str, object]:
    """Every column of the tables, but for `others`."""
    return {
        table.qualified: lake.arrow(table).sort_by(table.key[-1]).to_pylist() for table in TABLES if table not in others
    }


def test_whole_days_go_and_everything_else_stays_to_the_byte(lake: Lake) -> None:
    before, rest = kept(lake), kept(lake, BRONZE, SILVER, QUARANTINE)
    run(lake, keeping(bronze_days=2, silver_days=3, quarantine_days=1))
    assert rest == kept(lake, BRONZE, SILVER, QUARANTINE)
    assert lake.rows(SILVER) == [row for row in _without_loads(before[SILVER.qualified]) if row["event_date"] >= day(3)]
    assert days_in(lake, BRONZE) == {day(2), day(3), day(4)}
    assert days_in(lake, QUARANTINE) == {day(1), day(2), day(3), day(4)}
    assert let_go(lake.settings.location, SILVER) == LetGo(SILVER, day(0), day(3), 3 * COUNT - 1)
    assert let_go(lake.settings.location, BRONZE) == LetGo(BRONZE, day(0), day(2), 2 * COUNT - 1 + 2)
    assert let_go(lake.settings.location, QUARANTINE) == LetGo(QUARANTINE, day(0), day(1), 1)
    position = lake.delta(SILVER).transaction_version
    assert position(f"cryptopulse:{SILVER.qualified}:retention/day/{day(1)}") == COUNT - 1
    assert position(f"cryptopulse:{SILVER.qualified}:retention/day/{day(1)}/at") == micros(LATER)
    assert position(f"cryptopulse:{SILVER.qualified}:retention/day/{day(1)}/setting") == (LATER.date() - day(3)).days


def _without_loads(rows: object) -> list[dict[str, object]]:
    assert isinstance(rows, list)
    return [{name: value for name, value in row.items() if name != "load_timestamp"} for row in rows]


def test_nothing_goes_by_default(lake: Lake) -> None:
    before = kept(lake)
    run(lake, RetentionSettings())
    assert before == kept(lake)
    assert let_go(lake.settings.location, BRONZE) is None


def test_a_day_of_silver_waits_until_nothing_was_added_to_it_for_a_day(lake: Lake) -> None:
    soon = LATER - timedelta(days=1, hours=2)
    run(lake, keeping(silver_days=3), soon)
    assert days_in(lake, SILVER) == {day(number) for number in range(DAYS)}


def test_a_day_waits_until_every_derived_table_has_consumed_it(lake: Lake) -> None:
    lake.append(messages_of(0))
    with Pipeline(lake.settings, lake.log) as pipeline:
        clock = [micros(LATER)]
        retention = Retention(keeping(bronze_days=4, silver_days=4), pipeline.engine.tables, lambda: clock[0])
        while pipeline.engine.stored_to(0) < lake.log.bounds(0)[1] - 1:
            pipeline._store(pipeline._read(0, pipeline.engine.stored_to(0)))
        retention.run_due()
        assert days_in(lake, BRONZE) == {day(number) for number in range(DAYS)}
        pipeline.drain(lambda _done, _all: None)
        clock[0] += 60_000_000
        retention.run_due()
        assert days_in(lake, BRONZE) == {day(4)}


def test_the_quarantine_keeps_the_days_that_bronze_keeps(lake: Lake) -> None:
    run(lake, keeping(bronze_days=1, quarantine_days=1))
    bronze_stays = keeping(bronze_days=1).model_copy(update={"quarantine_days": 1})
    run(lake, bronze_stays)
    assert days_in(lake, QUARANTINE) == days_in(lake, BRONZE) == {day(number) for number in range(1, DAYS)}


def test_copies_of_trades_of_days_gone_are_refused_after_a_restart_too(lake: Lake) -> None:
    run(lake, keeping(bronze_days=5, silver_days=4))
    assert days_in(lake, SILVER) == {day(4)}
    before = kept(lake, BRONZE)
    other = Trade("BTC-USD", 3, at(0), "7777")  # nothing is left to compare it with
    result = lake.take_in([*messages_of(1)[:-1], page(trades_of(0)), other.match()])
    assert (result["trades"], result["conflicts"]) == (0, 0)
    after = kept(lake, BRONZE)
    assert [name for name, rows in before.items() if rows != after[name]] == []


def test_a_trade_that_comes_late_for_a_day_gone_counts_as_held_and_leaves_gold(lake: Lake) -> None:
    run(lake, keeping(silver_days=3))
    rest = kept(lake, BRONZE, SILVER, COVERAGE)
    assert rest["gold.dm_completeness"] != []
    assert lake.take_in([page([MISSING])])["trades"] == 1
    assert [(row["first_trade_id"], row["last_trade_id"]) for row in lake.rows(COVERAGE)] == [(1, len(ALL))]
    after = kept(lake, BRONZE, SILVER, COVERAGE)
    assert [name for name, rows in rest.items() if rows != after[name]] == []
    run(lake, keeping(silver_days=3))
    assert days_in(lake, SILVER) == {day(3), day(4)}
    assert let_go(lake.settings.location, SILVER) == LetGo(SILVER, day(0), day(3), 3 * COUNT)
    assert lake.take_in([page([MISSING])])["trades"] == 0


def test_bars_and_alerts_of_kept_days_are_still_made(lake: Lake) -> None:
    run(lake, keeping(silver_days=3))
    crash = Trade("BTC-USD", len(ALL) + 1, ALL[-1].time, "50", side="SELL")
    lake.take_in([crash.match()])
    (alert,) = [row for row in lake.rows(ALERTS) if row["trigger_trade_id"] == crash.trade_id]
    assert alert["alert_type"] == "FLASH_CRASH"
    assert max(row["last_trade_id"] for row in lake.rows(COVERAGE)) == crash.trade_id


def test_a_trade_of_a_kept_day_whose_look_back_is_gone_is_not_judged(lake: Lake) -> None:
    run(lake, keeping(silver_days=3))
    before = lake.rows(ALERTS)
    late = [
        Trade("ETH-USD", 1, ALL[3 * COUNT].time - timedelta(seconds=1), "9"),
        Trade("ETH-USD", 2, ALL[3 * COUNT].time, "5"),
    ]
    lake.take_in(trade.match() for trade in late)
    assert lake.rows(ALERTS) == before


def test_coverage_that_is_rebuilt_keeps_the_ids_of_days_gone(lake: Lake) -> None:
    run(lake, keeping(silver_days=3))
    newest = Trade("BTC-USD", len(ALL) + 1, at(DAYS * DAY_S))
    lake.take_in([newest.match()])
    commits = sorted((lake.folder(SILVER) / "_delta_log").glob("*.json"))
    commits[-1].write_bytes(b"")  # as a power cut may leave the last trade's commit
    with capture_logs() as logs, Pipeline(lake.settings, lake.log) as pipeline:
        assert pipeline.engine.coverage.count == len(ALL) - 1
    assert "coverage_rebuilt" in {entry["event"] for entry in logs}
    assert lake.take_in([*messages_of(0), newest.match()])["trades"] == 1
    ids = [(row["first_trade_id"], row["last_trade_id"]) for row in lake.rows(COVERAGE)]
    assert ids == [(1, MISSING.trade_id - 1), (MISSING.trade_id + 1, newest.trade_id)]


def test_a_lake_of_which_all_messages_are_gone_goes_on(lake: Lake) -> None:
    run(lake, keeping(bronze_days=6, silver_days=6))
    assert len(lake.arrow(BRONZE)) == len(lake.arrow(SILVER)) == 0
    again = lake.take_in([*messages_of(DAYS - 1), Trade("BTC-USD", len(ALL) + 1, at(DAYS * DAY_S)).match()])
    assert again["trades"] == 1
    assert len(lake.arrow(BRONZE)) == COUNT + 2


def test_a_rebuild_is_refused_and_changes_nothing(lake: Lake) -> None:
    for settings in (keeping(silver_days=1), keeping(bronze_days=1)):
        run(lake, settings)
        before = kept(lake)
        with pytest.raises(ConfigurationError, match=r"days that are gone: .* until 2026-07-07 on purpose"):
            lake.rebuild()
        assert before == kept(lake)


def test_replaced_files_are_deleted_later(lake: Lake) -> None:
    run(lake, keeping(silver_days=3))
    notes = [*(lake.settings.state_dir / "replaced" / SILVER.qualified).glob("*.txt")]
    names = {name for file in notes for name in file.read_text().splitlines()}
    assert {name.partition("/")[0] for name in names} >= {f"event_date={day(number)}" for number in range(3)}
    assert all((lake.folder(SILVER) / name).exists() for name in names)


def test_readers_say_what_is_gone(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    certificate = lake.path / "day.json"
    assert command(lake, "certify", "BTC-USD", "--day", str(day(0)), "--out", str(certificate)) == 0
    exported = lake.path / "day.parquet"
    assert command(lake, "export", "trades", str(exported), "--from", str(day(0)), "--to", str(day(1))) == 0
    run(lake, keeping(bronze_days=1, silver_days=3))
    gone = f"silver.fact_crypto_trades let go of its days until {day(2)} on purpose (retention.silver_days)"
    capsys.readouterr()
    for what, arguments in {
        f"The lake does not keep {day(2)} any more: {gone}.": ("certify", "BTC-USD", "--day", str(day(2))),
        f"The lake does not keep {day(0)} any more: {gone}.": ("verify", str(certificate)),
        f"The tables as of a moment are made of all trades: {gone}.": ("sql", "SELECT 1", "--as-of", "2026-12-01"),
    }.items():
        assert command(lake, *arguments) == 2
        assert capsys.readouterr().err.removeprefix("cryptopulse: ") == f"{what}\n"
    assert command(lake, "verify", str(certificate), "--parquet", str(exported)) == 0
    assert command(lake, "certify", "BTC-USD", "--day", str(day(3))) == 0
    capsys.readouterr()
    assert command(lake, "export", "trades", str(exported), "--overwrite") == 0
    assert f"{gone}: none of them is in the file." in capsys.readouterr().err
    with closing(cryptopulse.open(lake.path)) as reader:
        assert reader.retention().arrow().to_pylist() == [
            {"table": "bronze.coinbase_raw_trades", "first_day": "2026-07-07", "last_day": "2026-07-07"}
            | {"kept_from": "2026-07-08", "rows": COUNT + 1},
            {"table": "silver.fact_crypto_trades", "first_day": "2026-07-07", "last_day": "2026-07-09"}
            | {"kept_from": "2026-07-10", "rows": 3 * COUNT - 1},
        ]


def command(lake: Lake, *arguments: str) -> int:
    return cli.run([*arguments, "--lake", str(lake.path)])


def test_the_settings_are_applied_by_process_once_and_status_says_so(
    lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = lake.settings.model_copy(update={"retention": RetentionSettings(bronze_days=1)})
    pipeline.drain(settings, lake.log, lambda _done, _all: None)
    assert len(lake.arrow(BRONZE)) == 0
    with Pipeline(lake.settings, lake.log) as opened:
        StatusFile(lake.settings.state_dir, "processing").report(opened.state())
    capsys.readouterr()
    command(lake, "status")
    assert "bronze.coinbase_raw_trades keeps days from 2026-07-12 on (retention)" in capsys.readouterr().out


def test_a_backfill_of_days_gone_says_so_and_fetches_nothing_again(
    past: Past, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    backfill = ["backfill", past.products[0], "--lake", "lake", "--rest-url", past.url, "--json"]
    backfill += ["--from", past.start.isoformat()]
    assert cli.run(backfill) == 0
    (first,) = json.loads(capsys.readouterr().out)
    with closing(Lake("lake")) as lake:
        run(lake, RetentionSettings(silver_days=2), LATER + timedelta(days=2))
        assert len(lake.arrow(SILVER)) == 0
    capsys.readouterr()
    assert cli.run(backfill) == 0
    said = capsys.readouterr()
    (again,) = json.loads(said.out)
    assert (again["trades"], again["held_before"], again["fetched"]) == (first["trades"], first["trades"], 0)
    assert "on purpose (retention.silver_days): only ids never held are fetched of them" in said.err


def test_a_partition_of_which_all_messages_are_gone_is_not_read_again(lake: Lake) -> None:
    with Pipeline(lake.settings, lake.log) as opened:
        lake.append(messages_of(0)[:5])
        records = opened._read(0, opened.engine.stored_to(0))
        place = records.schema.get_field_index("partition")
        other = records.set_column(place, records.schema.field(place), pa.repeat(pa.scalar(3, pa.int32()), 5))
        opened.engine.store(other, {})
        last = opened.engine.stored_to(3)
    run(lake, keeping(bronze_days=DAYS))
    assert len(lake.arrow(BRONZE)) == 0
    with Pipeline(lake.settings, lake.log) as opened:
        assert (opened.engine.stored_to(3), opened.engine.stored_to(4)) == (last, -1)
