"""The end of a demo, for people: what was sent, what is stored, how fast, and what to try next."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from cryptopulse.demo_check import CheckResult, CrashFound
from cryptopulse.serve.snapshot import hop_words, ms_text, price_text

_QUERIES = (
    "SELECT symbol, count(*) AS n, min(price), max(price) FROM silver.fact_crypto_trades GROUP BY symbol",
    "SELECT * FROM gold.dm_trade_bars WHERE symbol = 'BTC-USD' ORDER BY window_start",
    "SELECT symbol, alert_type, price_change_pct, start_price, end_price FROM gold.dm_market_alerts",
)


def write_summary(lake: Path, result: CheckResult, report: Mapping[str, Any]) -> None:
    """Prints the summary on standard output. `report`: the processing's last status report."""
    console = Console(highlight=False, soft_wrap=True)
    console.print()
    for line in _trades(result):
        console.print(line)
    for crash in result.crashes:
        console.print(_crash(crash))
    if not result.crashes:
        console.print(
            _row("Staged crash", Text("the demo ended before it was over; it takes the first 20 s", style="yellow"))
        )
    console.print(_row("Alerts", Text(f"{result.alerts} in gold.dm_market_alerts")))
    _latencies(console, report)
    _what_to_try(console, lake)


def _trades(result: CheckResult) -> list[Text]:
    good = "bold green" if result.complete else "bold red"
    verdict = Text(f"{result.lost:,} lost, {result.duplicated:,} duplicated", style=good)
    if result.strange:
        verdict.append(f", {result.strange:,} that were never sent")
    return [
        _row("Sent", Text(f"{result.sent:,} trades of {result.products} products (the simulator's own count)")),
        _row("Stored", Text.assemble(f"{result.stored:,} trades in silver: ", verdict)),
    ]


def _crash(crash: CrashFound) -> Text:
    staged = f"{crash.product} -{crash.depth_pct:g} %: "
    if crash.rows != 1 or crash.change_pct is None:
        return _row(
            "Staged crash",
            Text.assemble(staged, (f"{crash.rows} FLASH_CRASH rows instead of one", "bold red")),
        )
    prices = f"{price_text(crash.start_price)} → {price_text(crash.end_price)} ({crash.change_pct:+.2f} %)"
    line = Text.assemble(staged, ("exactly one FLASH_CRASH row", "bold green"), f", {prices},")
    late = f"committed {ms_text(crash.latency_ms)} ms after the trade that caused it was received"
    return _row("Staged crash", line.append(f"\n{'':14}{late}"))


def _latencies(console: Console, report: Mapping[str, Any]) -> None:
    console.print()
    console.print(Text(f"{'Latency, ms':24}{'p50':>8}{'p99':>8}{'max':>8}", style="dim"))
    for hop, figures in (report.get("latency_total_ms") or {}).items():
        values = "".join(f"{ms_text(figures.get(name)):>8}" for name in ("p50", "p99", "max"))
        console.print(Text(f"  {hop_words(hop):22}{values}"))


def _what_to_try(console: Console, lake: Path) -> None:
    folder = _short(lake)
    program = _program()
    python = "python" if program == "cryptopulse" else _short(Path(sys.executable))
    console.print()
    console.print(Text(f"The tables are in {folder} ({_size_mb(lake):.0f} MB). Three questions to try:"))
    for query in _QUERIES:
        console.print(Text(f'  {program} sql --lake {folder} "{query}"'))
    console.print(Text("They are plain Delta tables; without any of our code:"))
    console.print(
        Text(f"  {python} -c \"import polars; print(polars.read_delta('{folder}/silver/fact_crypto_trades'))\"")
    )


def _row(name: str, text: Text) -> Text:
    return Text.assemble((f"{name:14}", "bold"), text)


def _program() -> str:
    """How the user can call us: by name if the shell finds it, else by the way to it."""
    if shutil.which("cryptopulse"):
        return "cryptopulse"
    started = Path(sys.argv[0]).absolute()
    return f"{_short(Path(sys.executable))} -m cryptopulse" if started.name == "__main__.py" else _short(started)


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
