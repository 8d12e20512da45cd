"""Alert rules in SQL: what is refused at the start, and what can go wrong later."""

from __future__ import annotations

from decimal import Decimal

import pytest
from structlog.testing import capture_logs

from cryptopulse.engine import custom_rules
from cryptopulse.engine.custom_rules import check_custom_rules, custom_parts
from cryptopulse.engine.scopes import JudgeScope
from cryptopulse.errors import ConfigurationError
from cryptopulse.settings import AlertRule
from support import Trade, at
from support_alerts import trades_table

MINUTE_US = 60_000_000
BUSY = "SELECT symbol, sum(trade_count) AS value FROM bars GROUP BY symbol"


def rule(sql: str, lookback_s: int = 60) -> AlertRule:
    return AlertRule(name="mine", types=["CUSTOM"], threshold_pct=Decimal(2), lookback_s=lookback_s, sql=sql)


def found(sql: str, trades: list[Trade], minutes: int = 3, lookback_s: int = 60) -> list[tuple[str, int, float]]:
    """(product, trade id, value) of what the rule finds in the first minutes."""
    start_us = round(at(0).timestamp() * 1_000_000)
    mine = rule(sql, lookback_s)
    symbols = sorted({trade.symbol for trade in trades})
    scopes = [JudgeScope(symbol, mine, start_us, start_us + minutes * MINUTE_US - 1) for symbol in symbols]
    rows = trades_table(trades).append_column("source", [["websocket"] * len(trades)])
    parts = custom_parts(rows, scopes, start_us + minutes * MINUTE_US)
    return [(part.symbol, part.trigger_trade_id, part.price_change_pct) for part in parts]


TRADES = [
    *(Trade("BTC-USD", n, at(n), "100") for n in range(1, 4)),
    Trade("ETH-USD", 1, at(5), "10"),
    *(Trade("BTC-USD", n, at(60 + n), "101") for n in range(4, 6)),
    Trade("BTC-USD", 6, at(185), "102"),
    Trade("BTC-USD", 7, at(186), "102"),
]


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("SELECT symbol, value FROM bars", "value"),
        ("SELECT symbol, 1 AS worth FROM bars", "value"),
        ("SELECT 1 AS value FROM bars", "symbol"),
        ("SELEC symbol", "syntax"),
        ("SELECT symbol, 1 AS value FROM trades", "trades"),
        ("SELECT symbol, 1 AS value FROM bars; SELECT 1", "one statement"),
        ("COPY bars TO 'x.csv'", "SQL"),
        ("CREATE TABLE x AS SELECT 1", "SQL"),
        ("SELECT filename AS symbol, 1 AS value FROM read_text('/etc/hostname')", "read_text"),
        ("SELECT symbol, 1 AS value FROM '/etc/hostname'", "/etc/hostname"),
    ],
)
def test_a_statement_that_cannot_work_is_refused_at_the_start_in_one_line(sql: str, why: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        check_custom_rules([AlertRule(), rule(sql)])
    assert str(raised.value).startswith("Alert rule mine: ")
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("end", ["", ";", " ; ", "\n-- and that is all"])
def test_a_statement_may_end_as_people_write_it(end: str) -> None:
    check_custom_rules([rule(BUSY + end)])


def test_each_minute_is_judged_by_the_bars_of_its_look_back() -> None:
    assert found(BUSY, TRADES) == [("BTC-USD", 3, 3.0), ("BTC-USD", 5, 2.0)]
    assert found(BUSY, TRADES, lookback_s=61) == [("BTC-USD", 3, 3.0), ("BTC-USD", 5, 5.0)]
    assert found(BUSY, TRADES, minutes=4) == [*found(BUSY, TRADES), ("BTC-USD", 7, 2.0)]


def test_only_products_with_a_trade_in_the_minute_count() -> None:
    """ETH-USD is in the bars of two minutes, but traded in the first only."""
    always = "SELECT symbol, 5 AS value FROM bars"
    assert [one for one in found(always, TRADES, lookback_s=120) if one[0] == "ETH-USD"] == [("ETH-USD", 1, 5.0)]


@pytest.mark.parametrize("value", ["NULL", "'nan'::DOUBLE", "'inf'::DOUBLE", "1.99"])
def test_what_is_no_number_or_below_the_threshold_finds_nothing(value: str) -> None:
    assert found(f"SELECT symbol, {value} AS value FROM bars", TRADES) == []


def test_what_was_not_in_the_bars_finds_nothing() -> None:
    assert found("SELECT 'X-USD' AS symbol, 5 AS value UNION ALL SELECT NULL, 5", TRADES) == []


def test_a_statement_that_fails_finds_nothing_and_says_so() -> None:
    with capture_logs() as logs:
        assert found("SELECT symbol, symbol::INT AS value FROM bars", TRADES) == []
    assert {(log["event"], log["rule"]) for log in logs} == {("custom_rule_failed", "mine")}


def test_a_statement_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_rules, "_TIME_MAX_S", 0.05)
    trades = [Trade("BTC-USD", n, at(60 * n), "100") for n in range(1, 9)]
    endless = "SELECT symbol, (SELECT sum(r.range) FROM range(1000000) r, range(1000000)) AS value FROM bars"
    with capture_logs() as logs:
        assert found(endless, trades, minutes=9) == []
    assert [log["error"] for log in logs] == ["took too long"] * 3
