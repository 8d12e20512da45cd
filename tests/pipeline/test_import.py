"""Files of trades that other programs wrote: every line is in the lake once, as the trade that it says or refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cryptopulse
from cryptopulse.cli import run
from cryptopulse.lake.tables import ALERTS, BARS, BRONZE, COMPLETENESS, COVERAGE, QUARANTINE, SILVER, STATS
from cryptopulse.replay import Import, replay
from cryptopulse.trade_files import open_trade_file
from support import Lake, Trade, at, micros, text_of
from support_audit import audit

TARDIS = "exchange,symbol,timestamp,local_timestamp,id,side,price,amount"
TRADES = [
    Trade("BTC-USD", 1001, at(1.123456), "62893.12", "0.00000001", "BUY", "import"),
    Trade("ETH-USD", 7, at(2.5), "1900", "2", "SELL", "import"),
    Trade("BTC-USD", 1002, at(86_400), "0.00000671", "12345678.9", "SELL", "import"),
    Trade("BIP-20DEC30-CDE", 1, at(3), "1e3", "1e-8", "BUY", "import"),
]


def tardis(trade: Trade, **changes: object) -> str:
    """As tardis.dev writes a trade."""
    us = micros(trade.time)
    cells = {"exchange": "coinbase", "symbol": trade.symbol, "timestamp": us, "local_timestamp": us + 9}
    cells |= {"id": trade.trade_id, "side": trade.side.lower(), "price": trade.price, "amount": trade.size, **changes}
    return ",".join(map(str, cells.values()))


def written(file: Path, *lines: str, end: str = "\n") -> Path:
    file.write_text(end.join([*lines, ""]), newline="")
    return file


def bring_in(lake: Lake, *files: Path, columns: Mapping[str, str] | None = None, again: bool = False) -> Import:
    work = Import(lake.settings, lake.log, 2)
    work.run([open_trade_file(file, columns or {}) for file in files], lambda _done, _total: None, again=again)
    return work


def held(lake: Lake) -> list[tuple[Any, ...]]:
    return [
        (row["symbol"], row["trade_id"], row["event_time"], row["price"], row["trade_size"], row["side"], row["source"])
        for row in lake.rows(SILVER)
    ]


def as_held(trades: Sequence[Trade]) -> list[tuple[Any, ...]]:
    return [(t.symbol, t.trade_id, t.time, Decimal(t.price), Decimal(t.size), t.side, t.source) for t in sorted(trades)]


def test_a_file_of_tardis_is_stored_line_by_line_and_silver_has_its_trades(lake: Lake, tmp_path: Path) -> None:
    lines = [tardis(trade) for trade in TRADES]
    work = bring_in(lake, written(tmp_path / "trades.csv", TARDIS, *lines))
    assert held(lake) == as_held(TRADES)
    assert (work.summary["trades"], work.summary["quarantined"], work.results[0].lines) == (4, 0, 4)
    rows = lake.rows(BRONZE)
    assert [row["body"].split(b"\n")[1].decode() for row in rows] == lines
    assert [(row["partition_key"], row["source"]) for row in rows] == [(trade.symbol, "import") for trade in TRADES]


def test_what_the_feed_brought_is_repeated_by_a_file_and_contradicts_nothing(lake: Lake, tmp_path: Path) -> None:
    lake.take_in(trade.match() for trade in TRADES)
    work = bring_in(lake, written(tmp_path / "trades.csv", TARDIS, *map(tardis, TRADES)))
    assert [work.summary[name] for name in ("trades", "duplicates", "conflicts", "quarantined")] == [0, 4, 0, 0]
    other = written(tmp_path / "other.csv", TARDIS, tardis(TRADES[0], side="sell"), tardis(TRADES[1], price="1901"))
    assert bring_in(lake, other).summary["conflicts"] == 2
    assert lake.arrow(QUARANTINE).num_rows == 2


def rows_of(name: str, kind: Callable[[Trade], object], **more: str) -> list[dict[str, object]]:
    return [
        {"id": t.trade_id, "px": t.price, "Side": t.side, "qty": t.size, "symbol": t.symbol, name: kind(t), **more}
        for t in TRADES
    ]


def as_csv(rows: Sequence[Mapping[str, object]], **options: Any) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), **options)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_json(rows: Sequence[Mapping[str, object]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zstandard(text: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(text)
    return bytes(sink.getvalue())


def parquet(rows: Sequence[Mapping[str, object]], **types: pa.DataType) -> bytes:
    found = pa.Table.from_pylist([dict(row) for row in rows])
    for name, kind in types.items():
        found = found.set_column(found.schema.get_field_index(name), name, found[name].cast(kind))
    sink = io.BytesIO()
    pq.write_table(found, sink)
    return sink.getvalue()


def cryptofeed(trade: Trade) -> dict[str, object]:
    """A trade as its callbacks get it."""
    row = {"exchange": "COINBASE", "symbol": trade.symbol, "side": trade.side.lower(), "amount": float(trade.size)}
    row |= {"price": float(trade.price), "id": str(trade.trade_id), "type": None, "timestamp": micros(trade.time) / 1e6}
    return row | {"receipt_timestamp": micros(trade.time) / 1e6 + 0.01}


PLAIN = as_csv(rows_of("time", lambda t: text_of(t.time)))
SPELLINGS = {
    "tardis.csv": "\n".join([TARDIS, *map(tardis, TRADES)]).encode(),
    "byte order mark.csv": b"\xef\xbb\xbf" + PLAIN,
    "cr lf.csv": PLAIN.replace(b"\n", b"\r\n"),
    "no line end.csv": PLAIN.rstrip(),
    "empty lines.csv": b"\n" + PLAIN.replace(b"\n", b"\n\n \n"),
    "quotes.csv": as_csv(rows_of("time", lambda t: text_of(t.time), note='a "b", c'), quoting=csv.QUOTE_ALL),
    "spaces.csv": PLAIN.replace(b",", b" , "),
    "wrong name.parquet": PLAIN,
    "gzip.dat": gzip.compress(PLAIN[:100]) + gzip.compress(PLAIN[100:]),
    "zstandard.csv.zst": zstandard(PLAIN),
    "seconds.csv": as_csv(rows_of("timestamp", lambda t: Decimal(micros(t.time)).scaleb(-6))),
    "milliseconds.csv": as_csv(rows_of("ts_ms", lambda t: Decimal(micros(t.time)).scaleb(-3))),
    "nanoseconds.csv": as_csv(rows_of("ts", lambda t: micros(t.time) * 1000 + 999)),
    "another zone.csv": as_csv(rows_of("datetime", lambda t: f"{t.time + timedelta(hours=2):%F %H:%M:%S.%f}+02:00")),
    "maker.csv": as_csv(
        [
            {**row, "maker_side": trade.maker_side}
            for row, trade in zip(rows_of("time", lambda t: text_of(t.time)), TRADES, strict=True)
        ]
    ).replace(b"Side", b"what", 1),
    "cryptofeed.jsonl": as_json([cryptofeed(trade) for trade in TRADES]),
    "texts.json.gz": gzip.compress(as_json(rows_of("time", lambda t: text_of(t.time)))),
    "texts.parquet": parquet(rows_of("time", lambda t: text_of(t.time))),
    "times.parquet": parquet(rows_of("time", lambda t: t.time), px=pa.float64(), id=pa.int32()),
    "ns.parquet": parquet(
        rows_of("time", lambda t: t.time), time=pa.timestamp("ns"), symbol=pa.dictionary(pa.int8(), pa.string())
    ),
    "numbers.parquet": parquet(rows_of("ts", lambda t: micros(t.time) * 1000)),
}  # fmt: skip


def test_however_a_file_is_written_its_trades_are_the_same(lake: Lake, tmp_path: Path) -> None:
    for name, content in SPELLINGS.items():
        (tmp_path / name).write_bytes(content)
    work = bring_in(lake, *(tmp_path / name for name in SPELLINGS))
    counts = {result.file.path.name: (result.lines, result.error) for result in work.results}
    assert counts == dict.fromkeys(SPELLINGS, (4, None))
    assert [row["reason"] for row in lake.rows(QUARANTINE)] == []
    assert (work.summary["conflicts"], work.summary["trades"]) == (0, 4)
    assert held(lake) == as_held(TRADES)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake as the feed fills it, with holes, alerts and the extremes."""
    trades = [
        Trade("BTC-USD", number, at(number * 7), f"{60_000 - number * (number % 50)}.{number}", f"0.{number:012}")
        for number in range(1, 400)
        if number % 90
    ]
    lake = Lake(tmp_path_factory.mktemp("recorded") / "lake")
    lake.take_in([trade.match() for trade in [*trades, *TRADES]])
    lake.close()
    assert lake.arrow(ALERTS).num_rows > 0
    return lake


@pytest.mark.parametrize("name", ["trades.csv.gz", "trades.parquet", "trades.arrow"])
def test_an_export_comes_back_into_an_empty_lake_to_the_last_digit(
    lake: Lake, recorded: Lake, tmp_path: Path, name: str
) -> None:
    with cryptopulse.open(recorded.path) as reader:
        reader.trades().write(tmp_path / name)
    assert bring_in(lake, tmp_path / name).summary["quarantined"] == 0
    for table in (SILVER, COVERAGE, BARS, STATS, COMPLETENESS, ALERTS):
        assert lake.rows(table, "ingestion_time", "source") == recorded.rows(table, "ingestion_time", "source")


def test_a_line_that_is_no_trade_is_refused_with_its_reason_and_the_others_count(lake: Lake, tmp_path: Path) -> None:
    good = TRADES[0]
    bad = {
        tardis(good, id="x7"): "trade_id is missing or not a whole number",
        tardis(good, id="1.0"): "trade_id is missing or not a whole number",
        tardis(good, id=""): "trade_id is missing or not a whole number",
        tardis(good, side="unknown"): "side is neither buy nor sell",
        tardis(good, amount="-1"): "size is not positive",
        tardis(good, price="nan"): "price is missing, malformed or out of range",
        tardis(good, price="0.1234567890123"): "price has more than 12 decimals",
        tardis(good, timestamp="soon"): "time is missing or malformed",
        tardis(good, timestamp=10**18): "time is out of range",
        tardis(good, symbol="btcusd"): "product_id is missing or malformed",
        tardis(good, exchange="binance"): "exchange is not coinbase",
        tardis(good) + ",more": "the line does not have the columns of its file",
        '"' + tardis(good): "the line does not have the columns of its file",
        "\x00\xff": "the line does not have the columns of its file",
    }
    work = bring_in(lake, written(tmp_path / "trades.csv", TARDIS, tardis(good), *bad, tardis(TRADES[1])))
    assert held(lake) == as_held(TRADES[:2])
    assert work.summary["quarantined"] == len(bad)
    rows = lake.rows(QUARANTINE)
    assert {row["body"].split(b"\n")[1].decode(): row["reason"] for row in rows} == bad


def test_the_same_content_is_imported_once_and_again_only_when_asked(lake: Lake, tmp_path: Path) -> None:
    first = written(tmp_path / "first.csv", TARDIS, *map(tardis, TRADES[:3]))
    assert bring_in(lake, first).summary["messages"] == 3
    copy = Path(shutil.copy(first, tmp_path / "copy.csv"))
    assert bring_in(lake, copy, first).summary["messages"] == 0
    others = [written(tmp_path / name, TARDIS, tardis(TRADES[0], local_timestamp=0)) for name in ("a.csv", "b.csv")]
    assert bring_in(lake, *others).summary["messages"] == 1
    work = bring_in(lake, first, again=True)
    assert (work.summary["messages"], work.summary["duplicates"], work.summary["trades"]) == (3, 3, 0)
    grown = written(first, TARDIS, *map(tardis, TRADES))
    assert bring_in(lake, grown).summary["trades"] == 1
    assert held(lake) == as_held(TRADES)


def test_a_stopped_import_goes_on_where_it_was(lake: Lake, tmp_path: Path) -> None:
    trades = [Trade("BTC-USD", number, at(number), source="import") for number in range(1, 200)]
    file = written(tmp_path / "trades.csv", TARDIS, *map(tardis, trades))

    def stop(done: int, _total: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    work = Import(lake.settings, lake.log, 2)
    with pytest.raises(KeyboardInterrupt):
        work.run([open_trade_file(file, {})], stop)
    begun = work.results[0].lines
    assert begun > 10
    rest = bring_in(lake, file).results[0]
    assert (rest.earlier, rest.lines) == (begun, 199 - begun)
    assert held(lake) == as_held(trades)
    assert len(lake.rows(BRONZE)) == 199


def test_what_is_whole_of_a_truncated_file_is_stored_and_the_whole_file_adds_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trades = [Trade("BTC-USD", number, at(number)) for number in range(1, 5000)]
    text = gzip.compress("\n".join([TARDIS, *map(tardis, trades)]).encode())
    file, lake = tmp_path / "trades.csv.gz", tmp_path / "lake"
    file.write_bytes(text[:-2000])
    command = ["import", str(file), "--lake", str(lake), "--json"]
    assert run(command) == 2
    out, err = capsys.readouterr()
    stored = json.loads(out)["trades"]
    assert 0 < stored < len(trades)
    assert err.count("\n") == 1
    assert "fetch it again" in err
    file.write_bytes(text)
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["trades"] == len(trades) - stored


def test_a_lake_that_was_deleted_gets_its_files_again(tmp_path: Path) -> None:
    file = written(tmp_path / "trades.csv", TARDIS, *map(tardis, TRADES))
    lake = Lake(tmp_path / "lake")
    bring_in(lake, file)
    lake.close()
    for path in [*lake.path.iterdir(), *lake.settings.state_dir.iterdir()]:
        if path.name not in ("_cryptopulse", "imports"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = Lake(lake.path)
    assert bring_in(again, file).summary["trades"] == 4
    again.close()


def test_a_recording_is_imported_as_it_is_replayed(lake: Lake, tmp_path: Path) -> None:
    messages = [bytes(trade.match()["body"]) for trade in TRADES]
    recorded, captured = tmp_path / "recorded.jsonl", tmp_path / "COINBASE.ws.1.0"
    recorded.write_bytes(b"".join(body + b"\n" for body in messages))
    head = [b"configuration: {}", b"wss://feed <-> 1783425600.1", b'wss://feed <- 1783425600.2: {"type":"subscribe"}']
    captured.write_bytes(b"\n".join([*head, *(b"1783425601.25: " + body for body in messages), b""]))
    other = Lake(tmp_path / "other")
    replay(other.settings, other.log, recorded, 2, lambda _done, _total: None)
    work = bring_in(lake, recorded, captured)
    assert held(lake) == held(other)
    assert (work.summary["trades"], work.summary["duplicates"], work.summary["quarantined"]) == (4, 4, 0)
    assert [row["body"] for row in lake.rows(BRONZE)] == messages * 2
    assert [f"{row['received_time']:%S.%f}" for row in lake.rows(BRONZE)[4:]] == ["01.250000"] * 4
    other.close()


def test_a_lake_with_imports_is_found_in_order_and_a_changed_trade_is_found(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake")
    names = ("tardis.csv", "quotes.csv", "cryptofeed.jsonl", "nanoseconds.csv", "maker.csv", "another zone.csv")
    for name in names:
        (tmp_path / name).write_bytes(SPELLINGS[name])
    bring_in(lake, *(tmp_path / name for name in names))
    assert audit(lake.path).kinds == []
    lines = [tardis(TRADES[0], price="62893.13"), tardis(TRADES[0], price='"62893.13"'), tardis(TRADES[1], id="?")]
    bring_in(lake, written(tmp_path / "other.csv", TARDIS, *lines))
    found = audit(lake.path).one("trades_conflict")
    assert found["columns"]["price"] == {"stored": "62893.12", "received": "62893.13"}
    lake.close()


REFUSED = {
    "another exchange": (
        tardis(TRADES[0], exchange="bitmex"),
        "holds trades of bitmex, which is not supported (only coinbase, kraken, binance, okx)",
    ),
    "no price": ("", "has no column for price"),
    "zip": (b"PK\x03\x04", "can't be read"),
    "Kraken's archive": (b"1381095255,122.00000,0.10000000\n", "has no trade ids, as Kraken's archives"),
    "Binance's archive under another name": (b"1,63551.02,0.5,31775.51,1783465157897,True,True\n", "say it, as in"),
    "UTF-16": ("\ufeffa,b\n".encode("utf-16-le"), "is in UTF-16"),
    "image": (b"\x89PNG\r\n\x1a\n\0\0", "has no column for trade_id"),
    "no Parquet": (b"PAR1 but no more", "can't be read"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_cannot_be_imported_is_refused_in_one_line_before_anything_is_stored(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, why = REFUSED[kind]
    good = written(tmp_path / "good.csv", TARDIS, tardis(TRADES[0]))
    bad = tmp_path / "bad file"
    header = TARDIS.replace("price", "cost") if kind == "no price" else TARDIS
    bad.write_bytes(content if isinstance(content, bytes) else f"{header}\n{content}\n".encode())
    assert run(["import", str(good), str(bad), "--lake", str(tmp_path / "lake")]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["nowhere.csv"], "There is no file nowhere.csv"),
        (["*.none"], "There is no file *.none"),
        (["."], "is a folder"),
        (["good.csv", "--column", "cost=price"], "expected FIELD=NAME"),
        (["good.csv", "--column", "price=cost"], "has no column cost"),
        (["good.csv", "--column", "side=side", "--column", "maker_side=id"], "exclude each other"),
        (["good.csv", "--column", "trade_id=id", "--column", "size=id"], "two things"),
        (["good.csv", "--product", "btc"], "Invalid product id"),
    ],
)
def test_a_mistake_is_said_in_one_line(
    options: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "good.csv", TARDIS, tardis(TRADES[0]))
    assert run(["import", *options, "--lake", "lake"]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


def test_columns_and_product_can_be_said_and_patterns_are_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trades = [trade for trade in TRADES if trade.symbol == "BTC-USD"]
    for trade in trades:
        cells = (micros(trade.time) // 1000, trade.maker_side.title(), trade.trade_id, trade.price, trade.size)
        written(tmp_path / f"{trade.trade_id}.csv", "when,dir,n,p,q", ",".join(map(str, cells)))
    written(tmp_path / "empty.csv")
    written(tmp_path / "header only.csv", "when,dir,n,p,q")
    names = {"time_ms": "when", "maker_side": "dir", "trade_id": "n", "price": "p", "size": "q"}
    columns = [text for field, name in names.items() for text in ("--column", f"{field}={name}")]
    place = ["--product", "BTC-USD", "--lake", str(tmp_path / "lake")]
    assert run(["import", str(tmp_path / "*.csv"), *columns, *place, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["trades"], found["quarantined"], len(found["files"])) == (2, 0, 4)
    lake = Lake(tmp_path / "lake")
    whole = [replace(trade, time=trade.time - timedelta(microseconds=micros(trade.time) % 1000)) for trade in trades]
    assert held(lake) == as_held(whole)
    lake.close()
