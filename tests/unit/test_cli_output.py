"""What `sql` prints: every digit, every column, and JSON that any reader takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cryptopulse import cli
from support import Lake, Trade, at


def test_a_backtest_of_nothing_says_so_and_one_of_the_last_century_finds_its_crash(
    lake: Lake, capsys: pytest.CaptureFixture[str]
) -> None:
    late = datetime(2150, 1, 1, tzinfo=UTC)
    trades = [
        Trade("BTC-USD", n, late + timedelta(seconds=n), price) for n, price in enumerate(("100", "100", "50"), 1)
    ]
    lake.take_in([trade.match() for trade in trades])
    command = ["alerts", "backtest", "--lake", str(lake.path)]
    assert cli.run(command) == 0
    assert "FLASH_CRASH" in capsys.readouterr().out
    for nothing in (["--products", "XXX-USD"], ["--end", "2149-01-01"], ["--start", "2151-01-01", "--json"]):
        assert cli.run([*command, *nothing]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), "Nothing was judged" in err) == ("", 1, True)


@pytest.fixture
def ask(lake: Lake, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    lake.take_in([Trade("BTC-USD", 1, at(0)).match(price="12345678.123456789012", size="1234.123456789012")])

    def ask(query: str, *options: str) -> str:
        assert cli.run(["sql", "--lake", str(lake.path), query, *options]) == 0
        return capsys.readouterr().out

    return ask


def row(text: str) -> dict[str, Any]:
    def refuse(word: str) -> None:
        pytest.fail(f"{word} is not JSON")

    (found,) = json.loads(text, parse_constant=refuse)
    return dict(found)


@pytest.mark.parametrize(
    ("query", "values"),
    [
        ("SELECT price * trade_size FROM silver.fact_crypto_trades", ["15236090962.124975309697153483936144"]),
        ("SELECT 170141183460469231731687303715884105727", ["170141183460469231731687303715884105727"]),
        ("SELECT 1.50::DECIMAL(9, 2), 0.00000001::DECIMAL(18, 8), 100::DECIMAL(5, 0)", ["1.5", "0.00000001", "100"]),
        ("SELECT 1 AS a, 2 AS a, 3 AS a_1", [1, 2, 3]),
        ("SELECT 1 / 0, 'NaN'::DOUBLE, -1 / 0, [1 / 0]", ["Infinity", "NaN", "-Infinity", ["Infinity"]]),
        ("SELECT '290000-01-01'::TIMESTAMP", ["290000-01-01 00:00:00"]),
        ("SELECT '0044-03-15 (BC)'::DATE", ["0044-03-15 (BC)"]),
        ("SELECT 'infinity'::TIMESTAMP, '-infinity'::DATE", ["infinity", "-infinity"]),
    ],
)
def test_json_has_every_digit_and_every_column(query: str, values: list[object], ask: Callable[..., str]) -> None:
    assert list(row(ask(query, "--json")).values()) == values
    if "1 / 0" not in query:  # `inf`
        assert all(str(value) in ask(query) for value in values)
