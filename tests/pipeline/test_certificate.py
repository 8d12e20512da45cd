"""A certificate is the same for all who recorded a day, and names each trade that is missing, doubled or different."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import cryptopulse
from cryptopulse import cli
from cryptopulse.certificate import Certificate, certify, read_certificate, verify_lake, verify_parquet
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.tables import SILVER
from support import Message, Trade, advanced, page
from support_audit import create, fill, rows

DAY = date(2026, 7, 7)
PRICES = ("64000.12", "0.000000000001", "999999999999", "1e-8", "64000.120")


def day_of_trades(*left_out: int) -> list[Trade]:
    """A trade every five minutes from 23:00 of the day before to 01:00 of the next, ids from 1,000 on."""
    start = datetime(2026, 7, 6, 23, tzinfo=UTC)
    return [
        Trade("BTC-USD", 1_000 + n, start + timedelta(minutes=5 * n), PRICES[n % 5], "0.1", "BUY" if n % 3 else "SELL")
        for n in range(26 * 12)
        if 1_000 + n not in left_out
    ]


def cut(messages: Sequence[Message], *sizes: int) -> list[Sequence[Message]]:
    """`messages` in batches of these sizes, and the rest."""
    parts, done = [], 0
    for size in sizes:
        parts.append(messages[done : done + size])
        done += size
    return [*parts, messages[done:]]


def certified(lake: Path) -> Certificate:
    with cryptopulse.open(str(lake)) as reader:
        return certify(reader, "BTC-USD", DAY)


def differences(certificate: Certificate, lake: Path) -> list[str]:
    with cryptopulse.open(str(lake)) as reader:
        return verify_lake(certificate, reader)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    messages = [trade.match() for trade in day_of_trades()]
    return fill(tmp_path_factory.mktemp("recorded") / "lake", cut(messages, 100, 1))


def as_another_feed_told_it() -> list[Sequence[Message]]:
    trades = day_of_trades()
    other = Trade("ETH-USD", 7, trades[50].time)
    return [
        [page(trades[200:]), advanced(trades[150:200]), other.match()],
        [advanced(trades[start : start + 3]) for start in range(0, 150, 3)],
        [trade.match() for trade in reversed(trades)],
    ]


def test_whoever_recorded_the_day_has_the_same_certificate(recorded: Path, tmp_path: Path) -> None:
    mine, other = certified(recorded), certified(fill(tmp_path / "lake", as_another_feed_told_it()))
    assert mine == other
    assert (mine.trades, mine.first_trade_id, mine.last_trade_id) == (288, 1_012, 1_299)
    assert (mine.missing, mine.absent, mine.grade) == ([], [], "ids")
    assert differences(mine, tmp_path / "lake") == []


def test_holes_of_the_day_and_at_its_edges_are_missing(tmp_path: Path) -> None:
    trades = day_of_trades(1_010, 1_011, 1_012, 1_100, 1_300)
    lake = fill(tmp_path / "lake", [[trade.match() for trade in trades]])
    found = certified(lake)
    assert found.missing == [(1_010, 1_012), (1_100, 1_100), (1_300, 1_300)]
    assert differences(found, lake) == []


def test_holes_of_other_days_are_theirs(recorded: Path, tmp_path: Path) -> None:
    trades = day_of_trades(1_003, 1_004, 1_305)
    assert certified(fill(tmp_path / "lake", [[trade.match() for trade in trades]])) == certified(recorded)


def test_a_trade_of_the_next_day_among_those_of_this_one_is_no_hole(tmp_path: Path) -> None:
    late = replace(day_of_trades()[123], time=datetime(2026, 7, 8, 0, 0, 1, tzinfo=UTC))
    trades = [late if trade.trade_id == late.trade_id else trade for trade in day_of_trades()]
    lake = fill(tmp_path / "lake", [[trade.match() for trade in trades]])
    found = certified(lake)
    assert (found.trades, found.missing, differences(found, lake)) == (287, [], [])
    other = fill(tmp_path / "other", [[trade.match() for trade in trades if trade.trade_id != 1_130]])
    assert differences(found, other) == ["ids 1088 to 1151 (64): 63 trades in the certificate, 62 here"]


Change = Callable[[pa.Table], pa.Table]


def changed(name: str, value: object) -> Change:
    def change(trades: pa.Table) -> pa.Table:
        place = trades.column_names.index(name)
        is_it = pc.equal(trades["trade_id"], 1_123)
        column = pc.if_else(is_it, pa.scalar(value, trades.schema.field(name).type), trades[name])
        return trades.set_column(place, trades.schema.field(name), column)

    return change


HARMS: dict[str, tuple[Change, list[str]]] = {
    "a digit": (
        changed("price", Decimal("64000.13")),
        ["ids 1088 to 1151 (64): price, size, side or time of at least"],
    ),
    "a size": (changed("trade_size", Decimal("0.2")), ["ids 1088 to 1151 (64): price"]),
    "a side": (changed("side", "BUY"), ["ids 1088 to 1151 (64): price"]),
    "a microsecond": (
        changed("event_time", datetime(2026, 7, 7, 9, 15, 0, 1, tzinfo=UTC)),
        ["ids 1088 to 1151 (64): price"],
    ),
    "a trade": (lambda trades: trades.filter(pc.not_equal(trades["trade_id"], 1_123)), ["id 1123 missing"]),
    "a block": (
        lambda trades: trades.filter(pc.greater(trades["trade_id"], 1_160)),
        ["ids 1012 to 1160 (149) missing"],
    ),
    "a copy": (
        lambda trades: pa.concat_tables([trades, trades.filter(pc.equal(trades["trade_id"], 1_123))]),
        ["id 1123 more than once"],
    ),
    "another id": (changed("trade_id", 1_500), ["id 1123 missing", "id 1500 not in the certificate"]),
    "nothing": (lambda trades: trades, []),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_different_is_named(harm: str, recorded: Path, tmp_path: Path) -> None:
    change, expected = HARMS[harm]
    trades = change(rows(recorded, SILVER))
    create(tmp_path / "lake", "silver", "fact_crypto_trades", trades, "event_date")
    pq.write_table(trades, tmp_path / "export.parquet")
    certificate = certified(recorded)
    for found in (
        differences(certificate, tmp_path / "lake"),
        verify_parquet(certificate, tmp_path / "export.parquet"),
    ):
        assert len(found) == len(expected), found
        assert all(text.startswith(start) for text, start in zip(found, expected, strict=True)), found


def test_the_commands_say_it_in_a_line_and_by_their_exit_code(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "btc.json"
    named = ["--lake", str(recorded)]
    assert cli.run(["certify", "btc-usd", "--day", "2026-07-07", "--out", str(file), *named]) == 0
    assert capsys.readouterr().out == (
        f"BTC-USD 2026-07-07: 288 trades, ids 1012 to 1299, 0 missing, sha256 {certified(recorded).sha256}\n"
    )
    assert cli.run(["certify", "BTC-USD", "--day", "2026-07-07", *named]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(file.read_text())
    assert cli.run(["verify", str(file), *named]) == 0
    assert capsys.readouterr().out == "BTC-USD 2026-07-07: all 288 trades are the same\n"
    lake = fill(tmp_path / "other", [[trade.match() for trade in day_of_trades(1_123)]])
    assert cli.run(["verify", str(file), "--lake", str(lake)]) == 8
    assert capsys.readouterr().out == "BTC-USD: id 1123 missing\nBTC-USD 2026-07-07: differs (1 difference)\n"
    assert cli.run(["verify", str(file), "--lake", str(lake), "--json"]) == 8
    assert json.loads(capsys.readouterr().out)["differences"] == ["id 1123 missing"]


def test_what_can_not_be_certified_is_refused(recorded: Path, tmp_path: Path) -> None:
    with cryptopulse.open(str(recorded)) as reader:
        for product, day, why in (
            ("BTC-USD", date(2026, 7, 9), "no trades of BTC-USD on 2026-07-09"),
            ("ETH-USD", DAY, "no trades of ETH-USD"),
            ("BTCUSD", DAY, "Invalid product id"),
            ("BTC-USD", datetime.now(UTC).date(), "is not over"),
        ):
            with pytest.raises(ConfigurationError, match=why):
                certify(reader, product, day)
    copy = HARMS["a copy"][0](rows(recorded, SILVER))
    create(tmp_path / "lake", "silver", "fact_crypto_trades", copy, "event_date")
    with pytest.raises(ConfigurationError, match="trade 1123 is there more than once"):
        certified(tmp_path / "lake")


def test_a_file_that_is_none_or_was_changed_is_refused(recorded: Path, tmp_path: Path) -> None:
    text = certified(recorded).as_text()
    for content, why in (
        (text.replace('"trades": 288', '"trades": 287'), "was changed"),
        (text.replace("-1", "-2", 1), "can't read the format"),
        (text.replace('"missing": []', '"missing": 7'), "is no certificate"),
        (text[:-30], "is no certificate"),
        ("[]", "is no certificate"),
        ("{}", "is no certificate"),
    ):
        (tmp_path / "file.json").write_text(content)
        with pytest.raises(ConfigurationError, match=why):
            read_certificate(tmp_path / "file.json")
    with pytest.raises(ConfigurationError, match="can't be read"):
        read_certificate(tmp_path / "none.json")


def test_an_export_without_exact_numbers_is_refused(recorded: Path, tmp_path: Path) -> None:
    trades = rows(recorded, SILVER)
    floats = trades.set_column(trades.column_names.index("price"), "price", pc.cast(trades["price"], pa.float64()))
    for table, why in ((floats, "must be decimals"), (trades.drop_columns(["side"]), "no column side")):
        pq.write_table(table, tmp_path / "export.parquet")
        with pytest.raises(ConfigurationError, match=why):
            verify_parquet(certified(recorded), tmp_path / "export.parquet")
    (tmp_path / "export.parquet").write_text("text")
    with pytest.raises(ConfigurationError, match="can't be read as Parquet"):
        verify_parquet(certified(recorded), tmp_path / "export.parquet")
