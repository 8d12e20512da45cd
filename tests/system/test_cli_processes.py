"""The commands with everything behind them: real processes, a real simulator, real tables."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, QueryBuilder

from cryptopulse import cli
from cryptopulse.status import read_status
from support_notify import SECRET, Webhook

PROGRAM = [sys.executable, "-m", "cryptopulse"]


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, no variables of ours but one, and no dashboard with `run`."""
    for name in list(os.environ):
        if name.startswith("CRYPTOPULSE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CRYPTOPULSE_SERVE__ENABLED", "false")  # tests/system/test_serve_process.py has it
    monkeypatch.setenv("CRYPTOPULSE_PROCESSING__STEP_INTERVAL_MS", "100")  # two cores have enough to do
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start(clean: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a command in the background; what still runs in the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([*PROGRAM, *arguments], stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for popen in started:
        popen.kill()
        popen.communicate()


@pytest.fixture
def exchange(start: Callable[..., subprocess.Popen[str]]) -> list[str]:
    """A simulator's addresses, as the options of `run`."""
    simulator = start("simulate", "--port", "0", "--products", "3", "--rate", "200", "--json")
    assert simulator.stdout is not None
    said = json.loads(simulator.stdout.readline())
    products = ",".join(said["products"])
    return ["--products", products, "--websocket-url", said["exchange_url"], "--rest-url", said["rest_url"]]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False, timeout=300)


def wait_until(condition: Callable[[], Any], within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trades(lake: Path) -> list[tuple[str, int]]:
    table = DeltaTable(str(lake / "silver" / "fact_crypto_trades"))
    rows = QueryBuilder().register("t", table).execute("SELECT symbol, trade_id FROM t ORDER BY 1, 2").read_all()
    return [(row["symbol"], row["trade_id"]) for row in pa.table(rows).to_pylist()]


def test_a_crash_day_is_played_to_its_end_and_what_was_cut_off_is_healed(clean: Path) -> None:
    demo = call("demo", "--real-shape", "--trades", "60000", "--rate", "10000", "--lake", "lake", "--no-dashboard")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert re.search(r"Traded +60,000 trades of 20 products", demo.stdout)
    assert "0 lost, 0 duplicated" in demo.stdout
    assert re.search(r"Healed +[1-9]\d* of these over REST", demo.stdout)
    assert "Staged crash" not in demo.stdout
    found = json.loads(call("alerts", "list", "--lake", "lake", "--rows", "1000", "--json").stdout)
    assert len({alert["symbol"] for alert in found}) > 10


def test_the_demo_stores_every_trade_once_finds_its_crash_and_tells_of_it_on_request(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhook = Webhook()
    monkeypatch.setenv("CRYPTOPULSE_NOTIFY__TARGETS", webhook.targets())
    monkeypatch.setenv("CRYPTOPULSE_FEED__PRODUCTS", "NONE-USD")  # a demo does not care
    demo = call("demo", "--notify", "--lake", "lake", "--products", "3", "--rate", "150", "--for", "25s")
    webhook.close()
    monkeypatch.delenv("CRYPTOPULSE_NOTIFY__TARGETS")
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert "0 lost, 0 duplicated" in demo.stdout
    assert "exactly one FLASH_CRASH row" in demo.stdout
    assert "ALERT  FLASH_CRASH BTC-USD" in demo.stdout
    assert re.search(r"dashboard: http://127.0.0.1:\d+\n", demo.stdout)
    assert len(re.findall(r"cryptopulse sql --lake lake \"SELECT .*\"\n", demo.stdout)) == 3
    a_day_before = "SELECT count(*) AS n FROM silver.fact_crypto_trades WHERE event_time < now() - INTERVAL 24 HOURS"
    assert json.loads(call("sql", "--lake", "lake", a_day_before, "--json").stdout)[0]["n"] > 0
    names = ("producer", "processing", "notifier", "dashboard")
    assert [read_status(clean / "lake" / "_cryptopulse", name).state for name in names] == ["stopped"] * 4
    found = json.loads(call("alerts", "list", "--lake", "lake", "--products", "btc-usd", "--json").stdout)
    assert [alert["alert_type"] for alert in found] == ["FLASH_CRASH"]
    assert webhook.told[0] == (found[0]["alert_id"], "opened")
    everything = demo.stdout + "".join(path.read_text() for path in (clean / "lake" / "_cryptopulse").rglob("*.log"))
    assert SECRET not in everything
    for threshold_pct, episodes in (("2.5", 1), ("5", 0)):
        rule = f"threshold_pct={threshold_pct},products=BTC-*,types=FLASH_CRASH"
        tried = call("alerts", "backtest", "--lake", "lake", "--rule", rule, "--json")
        assert len(json.loads(tried.stdout)) == episodes


def test_a_demo_of_several_venues_stores_each_ones_trades_and_finds_each_ones_crash(clean: Path) -> None:
    venues = "coinbase,kraken,binance,okx"
    options = ("--products", "3", "--rate", "100", "--past", "10m", "--for", "20s", "--no-dashboard")
    demo = call("demo", "--venues", venues, "--lake", "lake", *options)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert re.search(r"Stored +([\d,]+) trades in silver: 0 lost, 0 duplicated", demo.stdout)
    for venue in venues.split(","):
        assert re.search(rf" {venue} +([\d,]+) of \1\n", demo.stdout)
    assert demo.stdout.count("exactly one FLASH_CRASH row") == 4
    audit = call("audit", "--lake", "lake")
    assert "COMPLETE" in audit.stdout
    assert len({symbol for symbol, _ in trades(clean / "lake")}) == 12


def test_a_simulator_says_how_to_record_it_at_each_venue(start: Callable[..., subprocess.Popen[str]]) -> None:
    simulator = start("simulate", "--port", "0", "--products", "1")
    assert simulator.stdout is not None
    lines = list(
        iter(
            simulator.stdout.readline,
            "  cryptopulse run --products BTC-USD,BTC/USD@kraken,BTCUSD@binance,BTC-USD@okx\n",
        )
    )
    said = dict(re.findall(r"export CRYPTOPULSE_(\w+)=(\S+)", "".join(lines)))
    place = said["FEED__REST_URL"].removeprefix("http://")
    feeds = {"FEED": "exchange", "KRAKEN": "kraken", "BINANCE": "binance", "OKX": "okx"}
    assert said == {
        **{f"{section}__WEBSOCKET_URL": f"ws://{place}/{path}" for section, path in feeds.items()},
        **{f"{section}__REST_URL": f"http://{place}" for section in feeds},
    }


def test_run_survives_its_processes_refuses_a_second_and_ends_in_order(
    clean: Path, start: Callable[..., subprocess.Popen[str]], exchange: list[str]
) -> None:
    run = start("run", "--lake", "lake", *exchange)
    state_dir = clean / "lake" / "_cryptopulse"

    def total(name: str, figure: str) -> float:
        return float(str(read_status(state_dir, name).report.get(figure, 0)))

    wait_until(lambda: total("processing", "trades_total") > 0)
    status = call("status", "--lake", "lake")
    assert status.returncode == 0, status.stdout

    second = call("run", "--lake", "lake", *exchange)
    assert second.returncode == 5
    assert "works on the lake" in second.stderr.splitlines()[-1]

    for name in ("producer", "processing"):
        pid = read_status(state_dir, name).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: total("processing", "trades_total") > 0 and read_status(state_dir, "processing").restarts == 1)

    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 0
    stopped = [event["name"] for line in said.splitlines() if (event := json.loads(line))["event"] == "process_stopped"]
    assert stopped == ["producer", "processing"]
    stored = trades(clean / "lake")
    assert len(stored) == len(set(stored))
    assert call("status", "--lake", "lake").returncode == 3


@pytest.mark.parametrize(("command", "name"), [("produce", "producer"), ("process", "processing")])
def test_a_process_that_is_ended_as_soon_as_it_shows_ends_in_order(
    clean: Path, start: Callable[..., subprocess.Popen[str]], command: str, name: str
) -> None:
    popen = start(command, "--lake", "lake")
    deadline = time.monotonic() + 120
    while read_status(clean / "lake" / "_cryptopulse", name).state != "running":
        assert time.monotonic() < deadline
        time.sleep(0.001)
    popen.terminate()
    assert popen.wait(120) == 0
    assert read_status(clean / "lake" / "_cryptopulse", name).state == "stopped"


def test_run_without_a_network_says_what_it_waits_for_and_keeps_trying(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    run = start("run", "--lake", "lake", "--websocket-url", "ws://127.0.0.1:9/")  # port 9: nobody answers
    assert run.stderr is not None
    waiting = 0
    while waiting < 2:
        event = json.loads(run.stderr.readline())
        waiting += event["event"] == "waiting_for_feed" and event["url"] == "ws://127.0.0.1:9/"
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=120)
    assert run.returncode == 0


def match(trade_id: int) -> str:
    return json.dumps(
        {
            "type": "match",
            "trade_id": trade_id,
            "maker_order_id": "0e8bd2a8-52a3-4b27-9d0a-5a3c1c5a5c11",
            "taker_order_id": "7a5f7d2c-6ba6-4c5b-a4f0-1bfb2f2c8d1e",
            "side": "sell",
            "size": "0.5",
            "price": f"{100 + trade_id}.25",
            "product_id": "BTC-USD",
            "sequence": trade_id * 10,
            "time": f"2026-07-07T10:00:{trade_id:02}.000001Z",
        }
    )


def test_a_recording_of_both_kinds_of_lines_is_replayed_once_however_often_it_is_replayed(
    clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process; a rebuild and a question have one of their own, as a user would start them."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(arguments)
        return code, *capsys.readouterr()

    lines = [match(1), json.dumps({"recv": 1783418402.5, "raw": match(2)}), match(4)]
    (clean / "recording.jsonl").write_text("\n".join(lines))
    code, said, errors = run("replay", "recording.jsonl", "--lake", "lake", "--json")
    assert code == 0, errors
    result = json.loads(said)
    assert (result["trades"], result["missing_ids"], result["symbols"]) == (3, 1, {"BTC-USD": 3})
    assert trades(clean / "lake") == [("BTC-USD", 1), ("BTC-USD", 2), ("BTC-USD", 4)]
    _, said, _ = run("replay", "recording.jsonl", "--lake", "lake", "--batch-messages", "1")
    assert "0 new trades, 3 repeated, 1 ids missing" in said
    assert call("rebuild", "--lake", "lake").returncode == 0
    assert trades(clean / "lake") == [("BTC-USD", 1), ("BTC-USD", 2), ("BTC-USD", 4)]

    asked = call("sql", "--lake", "lake", "--json", "SELECT max(price) AS high FROM silver.fact_crypto_trades")
    assert json.loads(asked.stdout) == [{"high": "104.25"}]
    for wrong in ("SELEC 1", "SELECT * FROM nothing", "DROP VIEW silver.fact_crypto_trades"):
        code, _, errors = run("sql", "--lake", "lake", wrong)
        assert (code, errors.count("\n")) == (2, 1), errors
        assert errors.startswith("cryptopulse: SQL: ")


def test_a_line_that_is_no_message_is_the_users_error_with_its_number(
    clean: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clean / "recording.jsonl").write_text(match(1) + "\nnot a message\n")
    assert cli.run(["replay", "recording.jsonl", "--lake", "lake"]) == 2
    errors = capsys.readouterr().err
    assert "line 2" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "config", "--version", "--help"])
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_is_as_good_as_dev_null(clean: Path, command: str, closed: str) -> None:
    shell = f'exec "$@" {closed}'
    arguments = ["sh", "-c", shell, "sh", *PROGRAM, command]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "error" in done.stderr) == (3 if command == "status" else 0, False)


@pytest.mark.parametrize("command", ["config", "--help"])
def test_a_reader_that_has_had_enough_is_no_fault_and_a_full_disk_is_one_line(clean: Path, command: str) -> None:
    with subprocess.Popen([*PROGRAM, command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.close()
        assert (started.stderr.read(), started.wait(60)) == (b"", 0)
    with Path("/dev/full").open("w") as full:
        arguments = [*PROGRAM, command]
        done = subprocess.run(arguments, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n"), "disk is full" in done.stderr) == (3, 1, True)
