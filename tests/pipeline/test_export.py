"""Exported rows are the lake's, to the last digit, in every format; a file is written whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cryptopulse
from cryptopulse.cli import run
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.dataset import Lake as Reader
from support import Lake, Trade, at

TRADES = [
    Trade("BTC-USD", number, at(number * 20), price=price, size=size)
    for number, (price, size) in enumerate(
        [("62893.12", "0.00000001"), ("62893", "1e-8"), ("0.00000671", "12345678.9"), ("100", "0.5")], start=1
    )
] + [Trade("ETH-USD", 7, at(30), price="1900.5", size="2")]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lake = Lake(tmp_path_factory.mktemp("export") / "lake")
    lake.take_in([trade.match() for trade in TRADES])
    lake.close()
    return lake.path


@pytest.fixture
def reader(filled: Path) -> Reader:
    return cryptopulse.open(filled)


def unzipped(file: Path) -> bytes:
    return gzip.decompress(file.read_bytes())


def decompressed(file: Path) -> bytes:
    with pa.OSFile(str(file)) as raw, pa.CompressedInputStream(raw, "zstd") as found:
        return found.read()


def as_written(value: Any, text: str) -> Any:
    """The value that `text` says, as the type of `value`."""
    if isinstance(value, datetime):
        assert text.endswith("Z")
        return datetime.fromisoformat(text)
    if isinstance(value, date):
        return date.fromisoformat(text)
    if isinstance(value, bool):
        return {"true": True, "false": False}[text]
    return None if text == "" else type(value)(text) if value is not None else text


@pytest.mark.parametrize("what", ["trades", "bars", "stats", "completeness"])
@pytest.mark.parametrize(
    ("name", "content"), [("x.csv", Path.read_bytes), ("x.csv.gz", unzipped), ("x.CSV.zst", decompressed)]
)
def test_csv_has_every_row_and_digit(
    reader: Reader, tmp_path: Path, what: str, name: str, content: Callable[[Path], bytes]
) -> None:
    rows = getattr(reader, what)()
    assert rows.write(tmp_path / name) == rows.count() > 0
    header, *lines = csv.reader(io.StringIO(content(tmp_path / name).decode()))
    stored = rows.arrow().to_pylist()
    assert header == rows.schema.names
    found = [dict(zip(header, line, strict=True)) for line in lines]
    assert [{n: as_written(row[n], text[n]) for n in header} for row, text in zip(stored, found, strict=True)] == stored
    if what == "trades":
        assert {"0.00000671", "62893", "62893.12"} < {row["price"] for row in found}
        assert {"0.00000001", "12345678.9"} < {row["trade_size"] for row in found}


def test_arrow_and_parquet_are_the_very_rows(reader: Reader, tmp_path: Path) -> None:
    rows = reader.trades()
    rows.write(str(tmp_path / "t.parquet"))
    rows.write(tmp_path / "t.arrow")
    rows.write(tmp_path / "t.feather")
    assert pq.read_table(tmp_path / "t.parquet").equals(rows.arrow())
    for name in ("t.arrow", "t.feather"):
        assert pa.ipc.open_file(tmp_path / name).read_all().equals(rows.arrow())


def test_a_value_with_a_comma_or_a_line_feed_is_one_value(tmp_path: Path, reader: Reader) -> None:
    odd = 'a "b",\r\nc'
    reader.sql(f"SELECT '{odd}' AS text, 1 AS n UNION ALL SELECT NULL, 2").write(tmp_path / "odd.csv")
    assert [*csv.reader(io.StringIO((tmp_path / "odd.csv").read_bytes().decode(), newline=""))] == [
        ["text", "n"],
        [odd, "1"],
        ["", "2"],
    ]


def test_what_a_statement_computes_keeps_its_digits(tmp_path: Path, reader: Reader) -> None:
    file = tmp_path / "x.csv"
    numbers = (
        "100::DECIMAL(5,0) AS whole, 1200::HUGEINT AS huge, 10.50::DECIMAL(9,2) AS part, -1e-7::DECIMAL(9,7) AS tiny"
    )
    moment = "2026-11-28 12:00:00"
    times = f"TIMESTAMP '{moment}' AS local, TIMESTAMPTZ '{moment}+00' AS utc, DATE '2026-11-28' AS day"
    reader.sql(f"SELECT {numbers}, {times}, true AS yes, NULL AS nothing").write(file)
    assert file.read_text().splitlines() == [
        "whole,huge,part,tiny,local,utc,day,yes,nothing",
        "100,1200,10.5,-0.0000001,2026-11-28 12:00:00.000000,2026-11-28T12:00:00.000000Z,2026-11-28,true,",
    ]


@pytest.mark.parametrize(
    ("expression", "name"), [("[1, 2]", "x.csv"), ("{'a': 1}", "x.csv"), ("INTERVAL 1 DAY", "x.parquet")]
)
def test_a_column_that_a_format_cant_have_is_one_sentence(
    tmp_path: Path, reader: Reader, expression: str, name: str
) -> None:
    with pytest.raises(ConfigurationError, match="can't be written as"):
        reader.sql(f"SELECT {expression} AS x").write(tmp_path / name)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_rows_go_through_a_pipe_alone_and_a_reader_may_have_enough(filled: Path, name: str) -> None:
    command = [sys.executable, "-m", "cryptopulse", "export", "trades", name, "--format", "csv", "--lake", str(filled)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert [row["trade_id"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["1", "7", "2", "3", "4"]
    assert done.stderr == f"5 trades written to {name}\n"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.close()
        assert b"cryptopulse:" not in started.stderr.read()


def test_standard_output_may_be_a_file_and_a_link_stays_one(filled: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cryptopulse", "export", "bars", "-", "--columns", "symbol", "--lake", str(filled)]
    with (tmp_path / "x").open("wb") as out:
        subprocess.run(command, stdout=out, check=True, timeout=60)
    assert {*(tmp_path / "x").read_text().split()} == {"symbol", "BTC-USD", "ETH-USD"}
    (tmp_path / "link.csv").symlink_to("x")
    with cryptopulse.open(filled) as reader:
        assert reader.trades().limit(1).write(tmp_path / "link.csv", overwrite=True) == 1
    assert (tmp_path / "link.csv").is_symlink()
    assert len((tmp_path / "x").read_text().splitlines()) == 2


def test_kdb_gets_its_times_and_the_types_to_load_them_by(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, columns = tmp_path / "bars.csv", "window_start,symbol,close,trade_count,is_complete"
    options = [
        "--columns",
        columns.replace(",", ", "),
        "--format",
        "kdb",
        "--products",
        "eth-usd",
        "--lake",
        str(filled),
    ]
    assert run(["export", "bars", str(file), *options]) == 0
    assert file.read_text().splitlines() == [columns, "2026.07.07D12:00:00.000000000,ETH-USD,1900.5,1,0"]
    assert f'("PSFJB";enlist csv) 0: hsym `$"{file}"' in capsys.readouterr().out
    shown = ["--columns", "event_time,symbol,trade_id,side,price,trade_size"]
    assert run(["export", "trades", str(tmp_path / "trades.csv"), *shown, "--format", "kdb", *options[-2:]]) == 0
    told = capsys.readouterr().out.splitlines()[-1].removeprefix("Load it: ").replace(f"{tmp_path}/", "")
    assert f"trades:{told}\n" in (Path(__file__).parents[2] / "docs" / "reading.md").read_text()


def test_the_command_takes_products_times_and_grains(filled: Path, tmp_path: Path) -> None:
    file = tmp_path / "bars.parquet"
    window = ["--from", "2026-07-07T12:00:30Z", "--to", "2026-07-07T12:01:00Z"]
    where = ["--products", "BTC-USD", "--lake", str(filled), *window]
    assert run(["export", "bars", str(file), "--grain", "10s", *where]) == 0
    assert [row["window_start"] for row in pq.read_table(file).to_pylist()] == [
        datetime(2026, 7, 7, 12, 0, 40, tzinfo=UTC)
    ]
    sizes = ["--by", "trades", "--size", "3"]
    assert run(["export", "activity-bars", str(file), "--overwrite", *sizes, "--products", "BTC-USD", *where[2:4]]) == 0
    assert [row["trade_count"] for row in pq.read_table(file).to_pylist()] == [3, 1]
    assert run(["export", "trades", str(file), "--overwrite", *where]) == 0
    (trade,) = pq.read_table(file).to_pylist()
    assert (trade["trade_id"], trade["price"]) == (2, Decimal(62893))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trades", "x.txt"], "unknown format"),
        (["trades", "x"], "unknown format"),
        (["trades", "x.parquet.gz"], "leave out .gz"),
        (["trades", "there.csv"], "exists; choose another name"),
        (["trades", "folder.csv"], "is a folder"),
        (["trades", f"{'x' * 300}.csv"], "can't be written: File name too long"),
        (["trades", "there.csv", "--format", "nautilus"], "there.csv is no folder"),
        (["trades", "-", "--format", "nautilus"], "- is no folder"),
        (["trades", "nowhere/x", "--format", "nautilus"], "nowhere/x can't be written: No such file or directory"),
        (["trades", "x.npz"], "choose one of BTC-USD and ETH-USD"),
        (["trades", "x.npz.gz"], "leave out .gz"),
        (["bars", "x.npz"], "hftbacktest takes trades with all their columns"),
        (["trades", "x", "--format", "nautilus", "--columns", "price"], "nautilus takes trades with all their columns"),
        (["trades", "nowhere/x.csv"], "nowhere/x.csv can't be written: No such file or directory"),
        (["trades", "x.csv", "--products", "BTC/USD"], "Invalid product id"),
        (["trades", "x.csv", "--columns", "cost"], "cost"),
        (["trades", "x.csv", "--grain", "1h"], "--grain is for bars"),
        (["bars", "x.csv", "--grain", "7s"], "7"),
        (["trades", "x.csv", "--by", "volume"], "activity-bars take --by and --size"),
        (["bars", "x.csv", "--size", "5"], "activity-bars take --by and --size"),
        (["activity-bars", "x.csv", "--size", "5"], "activity-bars take --by and --size"),
        (["activity-bars", "x.csv", "--by", "trades", "--size", "0.5"], "bars by trades take a whole number"),
        (["trades", "x.csv", "--from", "yesterday"], "yesterday"),
        (["trades", "/dev/full", "--format", "csv"], "/dev/full can't be written: No space left on device"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("there.csv").write_text("mine")
    Path("folder.csv").mkdir()
    assert run(["export", *arguments, "--lake", str(filled)]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.csv", "there.csv"]
    assert Path("there.csv").read_text() == "mine"


def test_a_file_is_replaced_only_by_a_whole_one(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.csv"
    file.write_text("old")
    cut = reader.sql("SELECT CASE WHEN i = 200000 THEN error('stop') ELSE i END AS i FROM range(200001) t(i)")
    with pytest.raises(ConfigurationError, match="stop"):
        cut.write(file, overwrite=True)
    assert file.read_text() == "old"
    assert [*tmp_path.iterdir()] == [file]
