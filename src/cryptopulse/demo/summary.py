"""The summary of a demo: what was sent, what is stored, how fast, and what to try next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from cryptopulse.demo.check import COINBASE, CheckResult, symbol_at
from cryptopulse.terminal.snapshot import hop_words, ms_text
from cryptopulse.text import price_text

_QUERIES = (
    "SELECT symbol, count(*) AS n, min(price), max(price) FROM silver.fact_crypto_trades GROUP BY symbol",
    "SELECT * FROM gold.dm_trade_bars WHERE symbol {symbols} ORDER BY window_start",
    "SELECT symbol, alert_type, price_change_pct, start_price, end_price FROM gold.dm_market_alerts",
)
_PRODUCT = "BTC-USD"  # of the second


def write_summary(lake: Path, result: CheckResult, report: Mapping[str, Any], *, is_crash_day: bool) -> None:
    """Prints the summary on standard output. `report`: the processing's last status report."""
    console = Console(highlight=False, soft_wrap=True)
    console.print()
    verdict = Text(
        f"{result.lost:,} lost, {result.duplicated:,} duplicated", style="bold green" if result.complete else "bold red"
    )
    if result.strange:
        verdict.append(f", {result.strange:,} that were never sent")
    sent = f"{result.sent:,} trades of {result.products} products{where(result.venues)} (the simulator's own count)"
    console.print(_row("Traded", Text(sent)))
    console.print(_row("Stored", Text.assemble(f"{result.stored:,} trades in silver: ", verdict)))
    for venue, found in result.venues.items() if len(result.venues) > 1 else ():
        line = Text(f"{venue:9}{found.stored:>12,} of {found.sent:,}")
        if found.lost or found.duplicated:
            line.append(f": {found.lost:,} lost, {found.duplicated:,} duplicated", style="bold red")
        console.print(_row("", line))
    if older := sum(found.older for found in result.venues.values()):
        console.print(_row("", Text(f"and {older:,} older ones that came with them")))
    for crash in result.crashes:
        staged = f"{crash.symbol} -{crash.depth_pct:g} %: "
        if crash.rows != 1 or crash.change_pct is None:
            line = Text.assemble(staged, (f"{crash.rows} FLASH_CRASH rows instead of one", "bold red"))
        else:
            prices = f"{price_text(crash.start_price)} → {price_text(crash.end_price)} ({crash.change_pct:+.2f} %)"
            line = Text.assemble(staged, ("exactly one FLASH_CRASH row", "bold green"), f", {prices},")
            late = f"committed {ms_text(crash.latency_ms)} ms after the trade that caused it was received"
            line.append(f"\n{'':14}{late}")
        console.print(_row("Staged crash", line))
    if is_crash_day:
        lost = f"{result.healed:,} of these over REST, as they were traded while the feed was cut off"
        console.print(_row("Healed", Text(lost)))
    elif not result.crashes:
        console.print(
            _row("Staged crash", Text("the demo ended before it was over; it takes the first 20 s", style="yellow"))
        )
    console.print(_row("Alerts", Text(f"{result.alerts} in gold.dm_market_alerts")))
    console.print()
    console.print(Text(f"{'Latency, ms':24}{'p50':>8}{'p99':>8}{'max':>8}", style="dim"))
    for hop, figures in (report.get("latency_total_ms") or {}).items():
        if is_crash_day and hop.startswith("exchange"):
            continue  # the length of the day
        values = "".join(f"{ms_text(figures.get(name)):>8}" for name in ("p50", "p99", "max"))
        console.print(Text(f"  {hop_words(hop):22}{values}"))

    # The command that the user can type: its name if the shell finds it, else its path.
    python, program = _short(Path(sys.executable)), "cryptopulse"
    if shutil.which("cryptopulse"):
        python = "python"
    else:
        started = Path(sys.argv[0]).absolute()
        program = f"{python} -m cryptopulse" if started.name == "__main__.py" else _short(started)
    folder = _short(lake)
    size_mb = sum(path.stat().st_size for path in lake.rglob("*") if path.is_file()) / 1e6
    console.print()
    console.print(Text(f"The tables are in {folder} ({size_mb:.0f} MB). Three questions to try:"))
    symbols = [f"'{symbol_at(venue, _PRODUCT)}'" for venue in result.venues]
    chosen = f"IN ({', '.join(symbols)})" if len(symbols) > 1 else f"= {symbols[0]}"
    for query in _QUERIES:
        console.print(Text(f'  {program} sql --lake {shlex.quote(folder)} "{query.format(symbols=chosen)}"'))
    console.print(Text("They are plain Delta tables; without any of our code:"))
    code = f"import polars; print(polars.read_delta({folder + '/silver/fact_crypto_trades'!r}))"
    console.print(Text(f"  {python} -c {shlex.quote(code)}"))


def where(venues: Collection[str]) -> str:
    """The end of a sentence about a market at `venues`; "" for Coinbase alone."""
    if len(venues) > 1:
        return f" at {len(venues)} venues"
    return "".join(f" at {venue}" for venue in venues if venue != COINBASE)


def _row(name: str, text: Text) -> Text:
    return Text.assemble((f"{name:14}", "bold"), text)


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
