"""`cryptopulse backfill` against a simulated exchange: the past comes into the tables, whole and once."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from contextlib import closing, suppress
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest

from cryptopulse import cli
from cryptopulse.healing.backfill import Backfill
from cryptopulse.lake.tables import BARS
from support import Trade, at, model_bars
from support_audit import audit
from support_past import Past
from support_processes import Exchange, Processes, Tables, same_trades, wait_until

QUOTIENTS = ("vwap", "load_timestamp", "window_date", "rest_count")


def exchange_with_a_past(processes: Processes, trades: int, *options: str) -> Exchange:
    """It has stopped trading."""
    exchange = Exchange(processes, *options, products=2, rate=4000.0)
    wait_until(lambda: exchange.ledger()["trades"] >= trades, "the exchange has traded")
    exchange.stop_trading()
    return exchange


def before_all(exchange: Exchange) -> str:
    """A time shortly before the first trade."""
    return (datetime.fromisoformat(exchange.ledger()["started_at"]) - timedelta(seconds=1)).isoformat()


def backfill(processes: Processes, exchange: Exchange, *arguments: str) -> list[dict[str, Any]]:
    rest_url = exchange.feed()["FEED__REST_URL"]
    done = processes.call("backfill", *arguments, "--lake", "lake", "--rest-url", rest_url, "--json")
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, Any]] = json.loads(done.stdout)
    return answer


def backfill_here(exchange: Past, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    """The same in this process."""
    capsys.readouterr()
    assert cli.run(["backfill", *arguments, "--lake", "lake", "--rest-url", exchange.url, "--json"]) == 0
    answer: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return answer


def pages_in_log(lake: Path) -> int:
    log = lake / "_cryptopulse" / "log.db"
    if not log.exists():
        return 0
    with closing(sqlite3.connect(log)) as db, suppress(sqlite3.OperationalError):  # its tables may not be there yet
        return int(db.execute("SELECT coalesce(sum(messages), 0) FROM batches").fetchone()[0])
    return 0


def test_the_past_comes_into_the_tables_and_a_second_time_changes_nothing(
    past: Past, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    past.faults("rest-429=0.1,rest-500=0.1,rest-truncated=0.1")
    tables, published = Tables(Path("lake")), past.published()
    first = backfill_here(past, capsys, *past.products, "--from", past.start.isoformat())
    assert sum(one["fetched"] for one in first) == len(published)
    assert all(one["stored"] for one in first)
    assert tables.ids() == dict.fromkeys(published, 1)
    assert same_trades(tables.trades(), published)
    bars = [{n: v for n, v in bar.items() if n not in QUOTIENTS} for bar in model_bars(published.values())]
    assert tables.contents(BARS, *QUOTIENTS) == bars
    second = backfill_here(past, capsys, *past.products, "--from", past.start.isoformat())
    assert [(one["fetched"], one["held_before"]) for one in second] == [(0, one["trades"]) for one in first]
    assert tables.ids() == dict.fromkeys(published, 1)


def test_only_the_time_that_is_asked_for_is_fetched(
    past: Past, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    product = past.products[0]
    trades = sorted(trade for trade in past.published().values() if trade.symbol == product)
    start, end = trades[len(trades) // 3].time, trades[len(trades) // 2].time
    backfill_here(past, capsys, product, "--from", start.isoformat(), "--to", end.isoformat())
    wanted = {(product, trade.trade_id) for trade in trades if start <= trade.time < end}
    ids = set(Tables(Path("lake")).ids())
    assert ids >= wanted
    assert len(ids - wanted) <= 4  # neighbours that come along


def test_what_was_fetched_before_ctrl_c_is_stored_and_told(
    past: Past, in_process: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = Backfill.run

    async def interrupted(work: Backfill, product: str, *arguments: Any) -> Any:
        if product != past.products[0]:
            raise KeyboardInterrupt
        return await fetch(work, product, *arguments)

    monkeypatch.setattr(Backfill, "run", interrupted)
    where = ["--from", past.start.isoformat(), "--lake", "lake", "--rest-url", past.url]
    assert cli.run(["backfill", *past.products, *where]) == 130
    assert f"{past.products[0]}: " in capsys.readouterr().out.splitlines()[-1]
    assert Tables(Path("lake")).ids() == {key: 1 for key in past.published() if key[0] == past.products[0]}


def test_a_backfill_keeps_to_the_rate_that_is_set(
    past: Past, in_process: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYPTOPULSE_FEED__REST_REQUESTS_PER_SECOND", "5")
    before, begun = past.ledger()["rest_requests"].get("trades", 0), time.monotonic()
    backfill_here(past, capsys, past.products[0], "--from", past.start.isoformat())
    requests, took_s = past.ledger()["rest_requests"]["trades"] - before, time.monotonic() - begun
    assert requests > 6
    assert took_s >= (requests - 4) / (0.7 * 5)  # after a burst of a second's requests


def test_a_backfill_that_was_killed_goes_on_where_it_was(processes: Processes) -> None:
    exchange = exchange_with_a_past(processes, 16_000)
    product, tables = exchange.products[0], Tables(processes.folder / "lake")
    rest_url, start = exchange.feed()["FEED__REST_URL"], before_all(exchange)
    stopped = processes.start("backfill", product, "--from", start, "--lake", "lake", "--rest-url", rest_url)
    wait_until(lambda: pages_in_log(processes.folder / "lake") > 0, f"pages come: {stopped.said}")
    stopped.kill()
    (again,) = backfill(processes, exchange, product, "--from", before_all(exchange))
    assert again["held_before"] > 0
    assert again["fetched"] == again["trades"] - again["held_before"]
    published = {trade: 1 for trade in exchange.published() if trade[0] == product}
    assert tables.ids() == published


def test_beside_a_live_pipeline_the_past_comes_in_and_the_present_goes_on(processes: Processes) -> None:
    exchange = Exchange(processes, products=2, rate=1000.0)
    tables = Tables(processes.folder / "lake")
    wait_until(lambda: exchange.ledger()["trades"] >= 4_000, "there is a past")
    run = processes.start("run", "--lake", "lake", **exchange.feed())
    wait_until(lambda: {symbol for symbol, _ in tables.ids()} == set(exchange.products), "each product is recorded")
    done = backfill(processes, exchange, *exchange.products, "--from", before_all(exchange))
    assert not any(one["stored"] for one in done)
    time.sleep(1)  # the market goes on meanwhile
    exchange.stop_trading()
    published = exchange.published()
    wait_until(lambda: tables.ids() == dict.fromkeys(published, 1), f"all is stored: {run.said[-2000:]}")
    assert run.stop() == 0, run.said[-2000:]
    assert same_trades(tables.trades(), published)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("BTC-USD", "--from", "yesterday"), "'yesterday' is no time"),
        (("BTC-USD", "--from", "2026-11-02", "--to", "2026-11-01"), "--to 2026-11-01 is not after"),
        (("NO-SUCH", "--from", "2026-11-01"), "NO-SUCH is no product"),
        (("BTC-USD",), "Missing option '--from'"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    past: Past, in_process: None, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    capsys.readouterr()
    assert cli.run(["backfill", *arguments, "--lake", "lake", "--rest-url", past.url]) == 2
    errors = capsys.readouterr().err
    assert told in errors
    assert len(errors.splitlines()) == 1


class _Refusing(BaseHTTPRequestHandler):
    """An exchange of twenty trades, some of which tables don't take."""

    refused: ClassVar[set[int]] = set()

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        below, limit = int(asked.get("after", ["21"])[0]), int(asked["limit"][0])
        rows = [
            Trade("BTC-USD", number, at(number), price="-1" if number in self.refused else "100").fields()
            for number in range(min(below, 21) - 1, 0, -1)
        ]
        body = json.dumps(rows[:limit]).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (set(), "BTC-USD: 20 trades fetched; they are in the tables."),
        ({7, 8, 12}, "the tables hold 17 of them, `cryptopulse audit` shows why not the others."),
        (set(range(1, 21)), "the tables hold 0 of them, `cryptopulse audit` shows why not the others."),
    ],
    ids=["none", "some", "all"],
)
def test_what_a_backfill_says_of_the_tables_comes_from_the_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, refused: set[int], said: str
) -> None:
    monkeypatch.setattr(_Refusing, "refused", refused)
    lake = tmp_path / "lake"
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = ["--lake", str(lake), "--rest-url", f"http://127.0.0.1:{server.server_port}"]
        assert cli.run(["backfill", "BTC-USD", "--from", at(0).isoformat(), *where]) == 0
        assert said in capsys.readouterr().out
        if refused:
            assert cli.run(["backfill", "BTC-USD", "--from", at(0).isoformat(), *where, "--json"]) == 0
            (found,) = json.loads(capsys.readouterr().out)
            assert (found["fetched"], found["in_tables"], found["stored"]) == (len(refused), 0, True)
        server.shutdown()
    found = audit(lake)
    assert {
        n for row in found.of("ids_refused") for n in range(row["first_trade_id"], row["last_trade_id"] + 1)
    } == refused
    assert found.code == (8 if refused else 0)
