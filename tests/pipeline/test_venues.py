"""Recordings of venues beside Coinbase in one lake: every trade once, to the last digit, and audited."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from cryptopulse import open as open_lake
from cryptopulse.cli import run
from cryptopulse.lake.tables import QUARANTINE
from cryptopulse.text import decimal_text
from support import Trade, message
from support_audit import audit, fill, rows

CAPTURES = Path(__file__).parents[2].parent / "shared" / "captures"
needs_captures = [
    pytest.mark.captures,
    pytest.mark.skipif(not CAPTURES.is_dir(), reason="the recordings (../shared/captures) are not on this machine"),
]
KRAKEN = CAPTURES / "kraken-2026-07-07/live-btc-eth.ndjson"
RECORDINGS = {
    "coinbase": (CAPTURES / "exchange-2026-07-07/messages.jsonl", {"BTC-USD": 345, "ETH-USD": 92}),
    "kraken": (KRAKEN, {"BTC/USD@kraken": 12, "ETH/USD@kraken": 5}),
    "binance": (CAPTURES / "binance-2026-07-07/live-btc-eth.ndjson", {"BTCUSDT@binance": 748, "ETHUSDT@binance": 415}),
    "binance-aggregates": (
        CAPTURES / "binance-2021-10-12/BINANCE.ws.1.0",
        {"NKNUSDT@binance-aggregates": 1, "LRCBTC@binance-aggregates": 1},
    ),
    "okx": (
        CAPTURES / "okx-2022-05-13/OKX.ws.1.0",
        {"BTC-USDT@okx": 69, "BTC-USD-220527@okx": 4, "UNI-USD-SWAP@okx": 1},
    ),
}
"""Venue → recording, and the trades that captures/README.md counts, by product."""


def replay(lake: Path, recording: Path, venue: str) -> int:
    return run(["replay", str(recording), "--lake", str(lake), "--venue", venue])


class TestRecordings:
    pytestmark = needs_captures

    def test_all_venues_fill_one_lake_in_which_the_audit_finds_every_trade(self, tmp_path: Path) -> None:
        for venue, (recording, _) in RECORDINGS.items():
            assert replay(tmp_path, recording, venue) == 0
            assert replay(tmp_path, recording, venue) == 0  # again changes nothing
        with open_lake(tmp_path) as lake:
            held = {row["symbol"]: row["trades"] for row in lake.products()}
            assert lake.table("silver.quarantined_messages").count() == 0
        assert held == {name: trades for _, products in RECORDINGS.values() for name, trades in products.items()}
        assert audit(tmp_path).code == 0

    def test_every_digit_of_krakens_numbers_is_there(self, tmp_path: Path) -> None:
        replay(tmp_path, KRAKEN, "kraken")
        sent = {
            (f"{trade['symbol']}@kraken", int(trade["trade_id"])): (trade["price"], trade["qty"], trade["side"].upper())
            for line in KRAKEN.read_text().splitlines()
            for message in [json.loads(line, parse_float=str, parse_int=str)]
            if message.get("channel") == "trade"
            for trade in message["data"]
        }
        with open_lake(tmp_path) as lake:
            for row in lake.trades():
                price, size, side = sent.pop((row["symbol"], row["trade_id"]))
                assert (decimal_text(row["price"]), row["side"]) == (decimal_text(Decimal(price)), side)
                assert decimal_text(row["trade_size"]) == decimal_text(Decimal(size))
        assert not sent


def trade(number: int, *, price: str = "63501.6", side: str = "sell") -> str:
    """A message of Kraken, received when it was traded."""
    body = (
        f'{{"channel":"trade","type":"update","data":[{{"symbol":"BTC/USD","side":"{side}","price":{price},"qty":1e-8,'
        f'"ord_type":"limit","trade_id":{number},"timestamp":"2026-07-07T23:00:{number:02}.562702Z"}}]}}'
    )
    return f"17834652{number:02}\t{body}\n"


def recorded(folder: Path, *lines: str) -> Path:
    path = folder / "kraken.txt"
    path.write_text("".join(lines))
    return path


def test_a_missing_id_is_a_hole_and_another_price_a_conflict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = tmp_path / "lake"
    replay(lake, recorded(tmp_path, *(trade(n) for n in (1, 2, 4, 5)), trade(2, price="1")), "kraken")
    assert "1 ids missing" in capsys.readouterr().out
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["hole", "trades_conflict"])


@pytest.mark.parametrize(
    ("seconds", "kinds"), [("05.562701", []), ("05.5627039", []), ("05.562704", ["trades_conflict"])]
)
def test_a_microsecond_between_krakens_feed_and_its_pages_is_no_conflict(
    tmp_path: Path, seconds: str, kinds: list[str]
) -> None:
    """Pages write fractions of a microsecond, the feed does not; nobody has told how it rounds."""
    row = f'["63501.6","1e-8",17834652{seconds},"s","l","",5]'
    page = message(f'{{"error":[],"result":{{"XBTUSD":[{row}],"last":"1"}}}}'.encode(), "rest", "BTC/USD@kraken")
    live = message(trade(5).partition("\t")[2].strip().encode(), key="BTC/USD@kraken")
    lake = fill(tmp_path / "lake", [[live], [page]])
    assert rows(lake, QUARANTINE).num_rows == len(kinds)
    assert audit(lake).kinds == kinds


def test_a_product_whose_ids_may_have_gaps_proves_less_than_complete(tmp_path: Path) -> None:
    future = "BIP-20DEC30-CDE"
    others = [Trade("BTC-USD", 1).match(), Trade(future, 1).match(), Trade(future, 2).match()]
    lake = fill(tmp_path / "lake", [others])
    replay(lake, recorded(tmp_path, trade(1)), "kraken")
    grades = {"BTC-USD": "ids", future: "sequence", "BTC/USD@kraken": "ids"}
    with open_lake(lake) as reader:
        assert {row["symbol"]: row["grade"] for row in reader.products()} == grades
        assert {row["symbol"]: row["venue"] for row in reader.products()} == dict.fromkeys(grades, "coinbase") | {
            "BTC/USD@kraken": "kraken"
        }
    found = audit(lake)
    assert found.code == 0
    assert {product["symbol"]: product["grade"] for product in json.loads(found.text)["products"]} == grades
    assert f"The ids of {future} may have gaps" in audit(lake, as_text=True).text


def test_a_refused_trade_is_told_and_its_neighbours_in_the_message_are_kept(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    pair = trade(1).replace("}]}", "}," + trade(2, side="up").split("[", 1)[1].rstrip())
    replay(lake, recorded(tmp_path, pair + "\n", trade(3)), "kraken")
    with open_lake(lake) as reader:
        assert [row["trade_id"] for row in reader.trades()] == [1, 3]
        (kept,) = reader.table("silver.quarantined_messages")
    assert kept["reason"] == "side is neither buy nor sell"
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["ids_refused"])


def test_a_conflict_beside_a_refused_trade_is_found(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    pair = trade(2, side="up").replace("}]}", "}," + trade(1, price="2").split("[", 1)[1].rstrip())
    replay(lake, recorded(tmp_path, trade(1), pair + "\n", trade(3)), "kraken")
    assert audit(lake).kinds == ["ids_refused", "trades_conflict"]


def okx(number: int, *, channel: str = "trades-all", more: str = "") -> str:
    return (
        f'{{"arg":{{"channel":"{channel}","instId":"BTC-USDT"}},"data":[{{"instId":"BTC-USDT","tradeId":"{number}",'
        f'"px":"100","sz":"1","side":"buy","ts":"1783465200{number}"{more}}}]}}\n'
    )


def test_ids_of_a_message_that_stands_for_several_trades_are_refused_not_missing(tmp_path: Path) -> None:
    lines = [okx(100), okx(103, channel="trades", more=',"count":"3"'), "pong\n", okx(104)]
    replay(tmp_path / "lake", recorded(tmp_path, *lines), "okx")
    (found,) = audit(tmp_path / "lake").findings
    assert (found["kind"], found["first_trade_id"], found["last_trade_id"]) == ("ids_refused", 101, 103)


def test_what_repairs_a_hole_depends_on_whether_the_venue_can_be_asked(tmp_path: Path) -> None:
    replay(tmp_path / "kraken", recorded(tmp_path, trade(1), trade(3)), "kraken")
    assert "cryptopulse backfill BTC/USD@kraken " in audit(tmp_path / "kraken").one("hole")["repair"]
    sums = [
        f'{{"e":"aggTrade","s":"BTCUSDT","a":{n},"p":"1","q":"1","f":1,"l":1,"T":1783465157897,"m":true}}\n'
        for n in (1, 3)
    ]
    replay(tmp_path / "sums", recorded(tmp_path, *sums), "binance-aggregates")
    assert audit(tmp_path / "sums").one("hole")["repair"].startswith("replay or import a recording")


def test_a_message_of_coinbase_cannot_name_another_venue(tmp_path: Path) -> None:
    body = '{"product_id":"X@binance","e":"trade","s":"BTCUSDT","t":1,"p":"1","q":"1","T":1783465157897,"m":true}\n'
    replay(tmp_path / "lake", recorded(tmp_path, body), "coinbase")
    assert held(tmp_path / "lake") == []


def test_a_certificate_names_the_venue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay(tmp_path / "lake", recorded(tmp_path, trade(1), trade(2)), "kraken")
    capsys.readouterr()
    assert run(["certify", "BTC/USD@kraken", "--day", "2026-07-07", "--lake", str(tmp_path / "lake")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["venue"], document["product"], document["trades"]) == ("kraken", "BTC/USD@kraken", 2)


@pytest.mark.parametrize("name", ["all.csv", "all.parquet"])
def test_what_was_exported_comes_in_again(tmp_path: Path, name: str) -> None:
    first, second, file = tmp_path / "first", tmp_path / "second", str(tmp_path / name)
    replay(first, recorded(tmp_path, trade(1), trade(2)), "kraken")
    replay(first, recorded(tmp_path, okx(100)), "okx")
    assert run(["export", "trades", file, "--lake", str(first)]) == 0
    assert bring_in(second, file) == 0
    assert held(second) == held(first)
    assert audit(second).code == 0


def bring_in(lake: Path, *arguments: str) -> int:
    return run(["import", *arguments, "--lake", str(lake)])


def held(lake: Path) -> list[tuple[str, int, str, str, str]]:
    with open_lake(lake) as reader:
        return [
            (row["symbol"], row["trade_id"], decimal_text(row["price"]), row["side"], f"{row['event_time']:%S.%f}")
            for row in reader.trades()
        ]


TRADES_OF_BINANCE = (
    "6486989273,63551.02000000,0.00317000,201.45,1783465157897123,True,True\n"
    "6486989274,63551.03000000,0.10000000,6355.1,1783465157897999,False,True\n"
)
AGGREGATES_OF_BINANCE = "15683430,0.35,6195.0,1,3,1783465157897,true,true\n"


def zipped(file: Path, text: str) -> Path:
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        archive.writestr(file.with_suffix(".csv").name, text)
    return file


def test_binances_archives_are_brought_in_as_they_come(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    plain = tmp_path / "BTCUSDT-trades-2026-07-07.csv"
    plain.write_text(TRADES_OF_BINANCE)
    packed = zipped(tmp_path / "NKNUSDT-aggTrades-2026-07-07.zip", AGGREGATES_OF_BINANCE)
    other = zipped(tmp_path / "renamed.zip", TRADES_OF_BINANCE)
    assert bring_in(lake, str(plain), str(packed)) == 0
    assert bring_in(lake, str(other), "--product", "ETHUSDT") == 0
    assert held(lake) == [
        ("NKNUSDT@binance-aggregates", 15683430, "0.35", "SELL", "17.897000"),
        ("BTCUSDT@binance", 6486989273, "63551.02", "SELL", "17.897123"),
        ("ETHUSDT@binance", 6486989273, "63551.02", "SELL", "17.897123"),
        ("BTCUSDT@binance", 6486989274, "63551.03", "BUY", "17.897999"),
        ("ETHUSDT@binance", 6486989274, "63551.03", "BUY", "17.897999"),
    ]
    assert audit(lake).code == 0


def test_the_exchange_of_a_file_or_the_option_says_whose_trades_they_are(tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    tardis = tmp_path / "tardis.csv"
    tardis.write_text(
        "exchange,symbol,timestamp,local_timestamp,id,side,price,amount\n"
        "okex,BTC-USDT,1783465157897123,1783465157897999,7,buy,63551.0,1e-8\n"
        "okex,BTC-USDT,1783465157897124,1783465157897999,8,sell,63551.5,0.5\n"
        "kraken,BTC-USDT,1783465157897125,1783465157897999,9,sell,63551.5,0.5\n"
    )
    own = tmp_path / "own.csv"
    own.write_text("symbol,id,price,qty,side,timestamp\nBTC/USD,7,1.5,2,buy,2026-07-07T22:59:18Z\n")
    assert bring_in(lake, str(tardis)) == 0
    assert bring_in(lake, str(own), "--venue", "kraken") == 0
    assert held(lake) == [
        ("BTC-USDT@okx", 7, "63551", "BUY", "17.897123"),
        ("BTC-USDT@okx", 8, "63551.5", "SELL", "17.897124"),
        ("BTC/USD@kraken", 7, "1.5", "BUY", "18.000000"),
    ]
    with open_lake(lake) as reader:
        (refused,) = reader.table("silver.quarantined_messages")
    assert refused["reason"] == "exchange is not okx"
    assert bring_in(lake, str(tardis), "--venue", "kraken") == 2


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--venue", "kraken"], "is none of kraken"),
        (["--column", "side=x"], "needs no --column"),
        (["--product", "BTC/USD@okx", "--venue", "kraken"], "is of okx, not of kraken"),
    ],
)
def test_options_that_contradict_a_file_are_refused(
    tmp_path: Path, options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "BTCUSDT-trades-2026-07-07.csv"
    file.write_text(TRADES_OF_BINANCE)
    assert bring_in(tmp_path / "lake", str(file), *options) == 2
    assert why in capsys.readouterr().err


def test_recordings_come_in_by_import_as_well(tmp_path: Path) -> None:
    bodies = [trade(1).split("\t")[1], trade(2).split("\t")[1]]
    acknowledged = '{"method":"subscribe","result":{"channel":"trade","symbol":"BTC/USD"},"success":true}\n'
    assert bring_in(tmp_path / "lake", str(recorded(tmp_path, acknowledged, *bodies)), "--venue", "kraken") == 0
    assert [row[:2] for row in held(tmp_path / "lake")] == [("BTC/USD@kraken", 1), ("BTC/USD@kraken", 2)]


def test_alerts_are_listed_by_product(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay(tmp_path / "lake", recorded(tmp_path, trade(1), trade(2, price="5")), "kraken")
    capsys.readouterr()
    assert run(["alerts", "list", "--products", "BTC/USD@kraken", "--lake", str(tmp_path / "lake"), "--json"]) == 0
    assert "BTC/USD@kraken" in capsys.readouterr().out


def test_an_archive_of_several_files_or_with_a_password_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = tmp_path / "several.zip"
    with ZipFile(several, "w") as archive:
        archive.writestr("a.csv", TRADES_OF_BINANCE)
        archive.writestr("b.csv", TRADES_OF_BINANCE)
    assert bring_in(tmp_path / "lake", str(several)) == 2
    assert "it is an archive of 2 files; unpack it" in capsys.readouterr().err
    torn = tmp_path / "torn.zip"
    torn.write_bytes(several.read_bytes()[:50])
    assert bring_in(tmp_path / "lake", str(torn)) == 2
    assert capsys.readouterr().err.count("\n") == 1
    whole = zipped(tmp_path / "BTCUSDT-trades-1.zip", TRADES_OF_BINANCE * 100).read_bytes()
    for place in range(0, len(whole), 7):  # damaged anywhere
        torn.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert bring_in(tmp_path / "lake", str(torn), "--product", "BTCUSDT") in (0, 2)
        assert "unexpected" not in capsys.readouterr().err


def test_a_compressed_file_of_which_nothing_is_whole_is_no_empty_one(tmp_path: Path) -> None:
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(TRADES_OF_BINANCE.encode())[:15])
    assert bring_in(tmp_path / "lake", str(cut)) == 2


def test_an_unknown_venue_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(tmp_path / "lake", recorded(tmp_path, trade(1)), "krakken") == 2
    assert capsys.readouterr().err == (
        "cryptopulse: Unknown venue 'krakken' (expected coinbase, kraken, binance, okx, binance-aggregates).\n"
    )
    assert not (tmp_path / "lake").exists()
