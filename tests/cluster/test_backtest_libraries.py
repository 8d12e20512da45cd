"""Exports for backtests, read by NautilusTrader and hftbacktest themselves: every trade, every digit, in order."""

from __future__ import annotations

import json
import re
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest
from requirements import ROOT, missing

import cryptopulse
from cryptopulse.cli import run
from cryptopulse.text import decimal_text
from support import Lake, Trade, at, message, micros, page
from support_backtests import with_local_times

pytestmark = pytest.mark.cluster

PYTHON = ROOT / ".venv-backtest" / "bin" / "python"

FETCHED_LATER = (6, 7)
PRODUCTS = (
    ("BTC-USD", ("62893.12", "62893", "62893.1", "999999999999.999999999999"), ("0.00000001", "1e-8", "12.9", "0.5")),
    ("NEWCOIN-EUR", ("0.001", "0.1", "12", "1"), ("34028236692092", "7", "1", "20000000000")),
)


def test_the_libraries_read_every_trade(tmp_path: Path) -> None:
    if not (ROOT / ".venv-backtest" / ".installed").exists():
        missing("The environment .venv-backtest")
    lake = Lake(tmp_path / "lake")
    late = {3: 2.5, 8: 1.25}  # seconds until it was received
    for number in range(1, 13):
        for symbol, prices, sizes in PRODUCTS:
            side = "SELL" if number % 3 else "BUY"
            trade = Trade(symbol, number, at(number / 5), prices[number % 4], sizes[number % 4], side)
            if number not in FETCHED_LATER:
                received = at(number / 5 + late.get(number, 0.01))
                lake.append([message(trade.match()["body"], key=symbol, received=received)])
    for symbol, *_ in PRODUCTS:
        lake.append([page([Trade(symbol, number, at(number / 5), f"{number}.5", "7") for number in FETCHED_LATER])])
    lake.drain()
    lake.close()

    catalog, events = tmp_path / "catalog", tmp_path / "btc.npz"
    where = ["--lake", str(lake.path)]
    assert run(["export", "trades", str(catalog), "--format", "nautilus", *where]) == 0
    assert run(["export", "trades", str(events), "--products", "BTC-USD", *where]) == 0
    bars = tmp_path / "bars"
    of_bars = ["--products", "BTC-USD", "--grain", "1s", "--format", "nautilus"]
    assert run(["export", "bars", str(bars), *of_bars, *where]) == 0
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("backtest_reader.py"), catalog, "BTC-USD.COINBASE", events, bars],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    rows = cryptopulse.open(lake.path).trades().arrow().to_pylist()
    assert len(rows) == 24
    expected = [
        (
            f"{one['symbol']}.COINBASE",
            str(one["trade_id"]),
            one["price"],
            one["trade_size"],
            one["side"],
            micros(one["event_time"]) * 1000,
            local,
        )
        for local, one in with_local_times(rows)
    ]
    of_seconds = cryptopulse.open(lake.path).bars("BTC-USD", grain="1s")
    assert sorted(found["bars"]) == sorted(
        [
            f"{bar['symbol']}.COINBASE-1-SECOND-LAST-EXTERNAL",
            *(decimal_text(bar[name]) for name in ("open", "high", "low", "close", "volume")),
            (micros(bar["window_start"]) + 1_000_000) * 1000,
        ]
        for bar in of_seconds
    )
    assert sorted(exact(found["ticks"])) == sorted(expected)
    assert [tick[6] for tick in found["ticks"]] == sorted(tick[6] for tick in expected)
    of_one = [tick for tick in expected if tick[0] == "BTC-USD.COINBASE"]
    assert exact(found["of_one"]) == of_one
    assert exact(found["later"]) == [tick for tick in of_one if tick[6] >= micros(at(1)) * 1000]
    assert sorted(found["instruments"]) == [
        ["BTC-USD.COINBASE", "0.000000000001", "0.00000001", "BTC"],
        ["NEWCOIN-EUR.COINBASE", "0.001", "1", "NEWCOIN"],
    ]
    assert found["iterations"] == 12

    assert found["trades"] == [[tick[6], float(tick[2]), float(tick[3])] for tick in of_one]
    sides = [tick[4] for tick in of_one]
    assert found["flags"]["exchange"] == found["flags"]["local"] == 12
    assert found["events"] == found["flags"]["buy"] + found["flags"]["sell"] > 12  # some were overtaken
    assert found["flags"]["buy"] >= sides.count("BUY")

    backtests = (ROOT / "docs" / "reading.md").read_text().split("## Backtests")[1].split("\n## ")[0]
    snippets = re.findall(r"^```python\n(.*?)^```", backtests, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        subprocess.run([PYTHON, "-c", snippet], cwd=tmp_path, check=True, timeout=300)


def exact(ticks: list[list[str]]) -> list[tuple[str, str, Decimal, Decimal, str, int, int]]:
    return [(one[0], one[1], Decimal(one[2]), Decimal(one[3]), *one[4:]) for one in ticks]
