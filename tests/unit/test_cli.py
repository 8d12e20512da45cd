"""What every command promises: help with an example, one line about a mistake, a telling exit code."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer

from cryptopulse import cli
from cryptopulse.cli import export
from cryptopulse.cli.alerts import parse_rule
from cryptopulse.errors import ConfigurationError, LakeBusy
from cryptopulse.lake.activity_bars import MEASURES
from cryptopulse.text import parse_duration

COMMANDS = [
    "demo",
    "run",
    "produce",
    "process",
    "notify",
    "simulate",
    "status",
    "sql",
    "replay",
    "import",
    "playback",
    "serve",
    "rebuild",
    "backfill",
    "audit",
    "certify",
    "verify",
    "export",
    "init",
    "config",
    "install-service",
    "ddl",
]
ALERTS = [["alerts"], ["alerts", "list"], ["alerts", "backtest"], ["alerts", "test-notify"]]
COMMAND_LINES = [[name] for name in COMMANDS] + ALERTS


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, no variables of ours, and the logging of before afterwards."""
    for name in list(os.environ):
        if name.startswith("CRYPTOPULSE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    handlers = logging.getLogger().handlers[:]
    yield tmp_path
    logging.captureWarnings(capture=False)
    logging.getLogger().handlers[:] = handlers


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Carries out a command line in this process; gives exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def assert_one_line(errors: str) -> None:
    """`errors` is one line of ours and no traceback."""
    assert errors.startswith("cryptopulse: ")
    assert errors.count("\n") == 1
    assert "Traceback" not in errors


def test_the_commands_are_the_documented_ones(run: Run) -> None:
    group = typer.main.get_command(cli.app)
    assert sorted(group.commands) == sorted([*COMMANDS, "alerts"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMAND_LINES, ids=" ".join)
def test_every_command_has_help_and_an_example(command: list[str], run: Run) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    words = " ".join(out.replace("│", " ").split())
    assert re.search(rf"Example: .*cryptopulse {' '.join(command)}\b", words), out


@pytest.mark.parametrize("command", COMMAND_LINES, ids=" ".join)
def test_every_option_says_what_it_is(command: list[str]) -> None:
    found = typer.main.get_command(cli.app)
    for name in command:
        found = found.commands[name]  # type: ignore[attr-defined]
    undocumented = [
        parameter.name
        for parameter in found.params
        if not getattr(parameter, "hidden", False) and not getattr(parameter, "help", None)
    ]
    assert not undocumented


def test_help_documents_every_exit_code(run: Run) -> None:
    _, out, _ = run("--help")
    words = " ".join(out.split())
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 130):
        assert re.search(rf"\b{code} [a-z]", words), code


def test_no_command_shows_the_help(run: Run) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "Commands" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["run", "--prodcts", "BTC-USD"], "No such option: --prodcts"),
        (["sql"], "Missing argument"),
        (["run", "--products", "BTCUSD"], "Invalid product id 'BTCUSD'"),
        (["backfill", "btc", "--from", "2026-01-01"], "Invalid product id 'btc'"),
        (["run", "--feed", "kraken"], "feed.dialect"),
        (["produce", "--config", "none.toml"], "no configuration file none.toml"),
        (["simulate", "--crash-day", "--help"], "--help looks like an option"),
        (["certify", "BTC-USD", "--day", "2026-11-28", "--out", "--lake"], "--lake looks like an option"),
        (["simulate", "--rate", "fast"], "'--rate'"),
        (["simulate", "--port", "70000"], "Port 70000"),
        (["simulate", "--episode", "boom"], "Episode 'boom' can't be read"),
        (["simulate", "--faults", "drop=2"], "Fault drop=2"),
        (["simulate", "--recording", "none.jsonl"], "none.jsonl"),
        (["simulate", "--start", "later"], "--start later: write at_once"),
        (["replay", "none.jsonl"], "no recording none.jsonl"),
        (["demo", "--for", "long"], "'long' is no length of time"),
        (["demo", "--past", "long"], "'long' is no length of time"),
        (["demo", "--past", "900h"], "A past of 900 h: give at most 744 h."),
        (["simulate", "--recording", "x.jsonl", "--past", "1h"], "A recording has its own past"),
        (["simulate", "--past", "-1h"], "'-1h' is no length of time"),
        (["demo", "--real-shape", "--past", "0"], "--real-shape has its own: leave out --past."),
        (["demo", "--real-shape", "--products", "5", "--past", "1h"], "leave out --products, --past."),
        (["demo", "--real-shape", "--trades", "10"], "A crash day has 20,000 to 20,000,000 trades, not 10."),
        (["demo", "--real-shape", "--for", "0s"], "'0s' is no length of time"),
        (["demo", "--trades", "50000"], "--trades are those of a crash day: add --real-shape."),
        (["simulate", "--trades", "50000"], "add --real-shape or --crash-day."),
        (["simulate", "--real-shape", "--crash-day", "x.jsonl"], "give one of them."),
        (["simulate", "--real-shape", "--products", "5"], "--real-shape has its own: leave out --products."),
        (["simulate", "--real-shape", "--speed", "2"], "A crash day has its own past, episodes and pace"),
        (["simulate", "--real-shape", "--trades", "0"], "not 0."),
        (["demo", "--feed", "kraken"], "--feed kraken"),
        (["demo", "--venues", "coinbase,krakn"], "unknown venue 'krakn' (expected coinbase, kraken, binance, okx)."),
        (["demo", "--venues", "okx,kraken, OKX"], "names okx twice: name each venue once."),
        (["demo", "--venues", ""], "--venues names none: write some of coinbase, kraken, binance, okx."),
        (["demo", "--venues", "kraken", "--real-shape"], "--real-shape has its own: leave out --venues."),
        (["demo", "--venues", "kraken", "--feed", "advanced"], "add coinbase to --venues, or leave out --feed."),
        (["simulate", "--start", "all_subscribed", "--start-feeds", "coinbase"], "Unknown feed 'coinbase'"),
        (["simulate", "--start-feeds", "kraken"], "need the start all_subscribed"),
        (["demo", "--notify"], "name nobody to notify"),
        (["notify"], "No notification targets"),
        (["alerts", "test-notify"], "No notification targets"),
        (["status", "--process", "feed"], "producer or processing or notifier"),
        (["alerts", "backtest", "--rule", "threshold=1"], "Rule part 'threshold=1'"),
        (["alerts", "backtest", "--rule", "threshold_pct=-1"], "Rule, threshold_pct"),
        (
            ["alerts", "backtest", "--rule", "types=VOLUME_SURGE"],
            "Rule, threshold_pct: 100 percent is the usual volume",
        ),
        (["alerts", "backtest", "--rule", "products="], "Rule, products"),
        (["alerts", "backtest", "--rule", "name=a,name=b"], "name is given twice"),
        (["alerts", "backtest", "--start", "2026-07-08", "--end", "2026-07-07"], "--start 2026-07-08 is not before"),
        (["alerts", "list", "--rows", "99999999999999999999"], "'--rows'"),
        (["sql", "SELECT 1", "--rows", "9223372036854775807"], "'--rows'"),
        (["backfill", "BTC-USD", "--from", "2026-01-01", "--rest-url", "http://127.0.0.1:99999"], "feed.rest_url"),
        (["produce", "--websocket-url", ""], "feed.websocket_url"),
        (["status", "--lake", ""], "Setting lake"),
        (["alerts", "backtest", "--start", "yesterday"], "'yesterday' is no time"),
        (["alerts", "backtest", "--end", "9999-12-31T23:30"], "years go from 1970 to 2200"),
        (["alerts", "backtest", "--end", "9999-12-31T23:30-05:00"], "'9999-12-31T23:30-05:00' is no time"),
        (["alerts", "backtest", "--products", "BTC'USD"], "Invalid product id"),
        (["alerts", "backtest"], "lake"),
        (["sql", "SELECT 1"], "lake"),
        (["alerts", "list"], "lake"),
        (["rebuild"], "lake"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_and_exit_code_2(arguments: list[str], message: str, run: Run) -> None:
    code, out, err = run(*arguments)
    assert_one_line(err)
    assert message in err
    assert (code, out) == (2, "")


def test_a_port_in_use_is_one_line(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run("simulate", "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert_one_line(err)
    assert "already in use" in err


def test_a_configuration_file_that_is_not_toml_is_one_line(clean: Path, run: Run) -> None:
    (clean / "cryptopulse.toml").write_text("lake = [")
    code, _, err = run("config")
    assert code == 2
    assert_one_line(err)


def test_a_folder_that_cant_be_written_is_one_line(clean: Path, run: Run) -> None:
    (clean / "file").write_text("in the way")
    for command in (["run", "--no-view"], ["produce"], ["demo"]):
        code, _, err = run(*command, "--lake", "file/lake")
        assert code == 2
        assert_one_line(err)


def test_a_demo_leaves_other_peoples_folders_alone(clean: Path, run: Run) -> None:
    (clean / "mine").mkdir()
    (clean / "mine" / "thesis.txt").write_text("precious")
    code, _, err = run("demo", "--lake", "mine")
    assert code == 2
    assert_one_line(err)
    assert (clean / "mine" / "thesis.txt").read_text() == "precious"


def test_an_error_of_ours_gives_its_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_app: typer.Typer) -> int:
        raise LakeBusy("Another pipeline\n works on lake.")

    monkeypatch.setattr(typer.main, "get_command", busy)
    assert run("run") == (5, "", "cryptopulse: Another pipeline works on lake.\n")


def test_a_fault_of_the_program_is_one_line_and_its_details_are_in_a_file(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_app: typer.Typer) -> int:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(typer.main, "get_command", broken)
    code, _, err = run("run")
    assert code == 1
    assert_one_line(err)
    details = Path(err.rstrip().removeprefix("cryptopulse: ").split("details are in ")[1])
    assert "ZeroDivisionError: oh" in details.read_text()
    assert "Traceback" in run("run", "--debug")[2]


def test_init_writes_a_file_once_and_again_only_when_forced(clean: Path, run: Run) -> None:
    assert run("init")[0] == 0
    (clean / "cryptopulse.toml").write_text("mine = 1")
    code, _, err = run("init")
    assert code == 2
    assert "--force" in err
    assert (clean / "cryptopulse.toml").read_text() == "mine = 1"
    assert run("init", "--force")[0] == 0
    assert run("config")[0] == 0


def test_config_shows_every_setting_with_value_default_and_meaning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTOPULSE_LOG__SIZE_MAX_MB", "77")
    settings = {setting["name"]: setting for setting in json.loads(run("config", "--json")[1])}
    assert settings["log.size_max_mb"]["value"] == 77
    assert settings["log.size_max_mb"]["default"] == 8192
    assert "Largest size of the log" in settings["log.size_max_mb"]["meaning"]
    assert "77" in run("config")[1]


def test_status_of_a_lake_on_which_nothing_runs_is_exit_code_3(run: Run) -> None:
    code, out, err = run("status", "--json")
    assert (code, err) == (3, "")
    assert [process["state"] for process in json.loads(out)["processes"]] == ["absent", "absent"]
    assert run("status")[0] == 3


def test_status_knows_of_a_notifier_only_where_somebody_is_to_be_notified(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "notifier" not in run("status")[1]
    monkeypatch.setenv("CRYPTOPULSE_NOTIFY__TARGETS", '[{"url": "json://127.0.0.1"}]')
    code, out, _ = run("status", "--json")
    assert code == 3
    assert [process["name"] for process in json.loads(out)["processes"]] == ["producer", "processing", "notifier"]


def test_the_simulator_says_where_it_is_and_ends_when_told(clean: Path) -> None:
    command = [sys.executable, "-m", "cryptopulse", "simulate", "--port", "0", "--products", "3", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as popen:
        assert popen.stdout is not None
        said = json.loads(popen.stdout.readline())
        with socket.create_connection(("127.0.0.1", said["port"]), timeout=5):
            popen.send_signal(signal.SIGTERM)
        assert popen.wait(timeout=120) == 0
    assert len(said["products"]) == 3


def test_help_is_quick() -> None:
    """It takes less than the heavy modules alone: 0.2 s, and they 0.7 s, of CPU time, which is not that of others."""
    heavy = _cpu_s("-c", "import deltalake, duckdb, pyarrow.dataset, pydantic, structlog")
    assert _cpu_s("-m", "cryptopulse", "--help") < heavy * 0.7


def _cpu_s(*arguments: str) -> float:
    """Of the best of three, for the first may have modules to compile."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))


def test_help_loads_none_of_the_heavy_modules() -> None:
    script = (
        "import sys; from cryptopulse import cli; cli.run(['--help'])\n"
        "heavy = {'pyarrow', 'duckdb', 'deltalake', 'pydantic', 'numpy', 'structlog'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("60s", 60), ("1.5m", 90), ("2 h", 7200), ("3min", 180)])
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "s", "5x", "1e3", "nan", "5 days"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_duration(text)


def test_a_rule_is_read_from_the_command_line() -> None:
    rule = parse_rule("name=deep, threshold_pct=2.5,lookback_s=60,products=BTC-USD|eth-*,types=FLASH_CRASH")
    assert (rule.name, str(rule.threshold_pct), rule.lookback_s) == ("deep", "2.5", 60)
    assert rule.products == ["BTC-USD", "ETH-*"]
    assert rule.types == ["FLASH_CRASH"]


def test_a_command_beyond_the_core_names_the_package_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def needs_more(_app: object) -> None:
        raise ModuleNotFoundError("No module named 'picows'", name="picows.types")

    monkeypatch.setattr("typer.main.get_command", needs_more)
    assert cli.run(["produce"]) == 2
    error = capsys.readouterr().err
    assert error == "cryptopulse: This command needs the package picows: pip install 'cryptopulse[all]'.\n"


def test_the_tab_key_completes_commands_and_options(clean: Path) -> None:
    for words, wanted in (("cryptopulse exp", ["export"]), ("cryptopulse export --colu", ["--columns"])):
        asked = {"_CRYPTOPULSE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        told = subprocess.run(
            [Path(sys.executable).parent / "cryptopulse"],
            cwd=clean,
            env=os.environ | asked,
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.stdout.split() == wanted, told.stderr


def test_export_offers_all_measures_of_activity_bars() -> None:
    choices, _ = get_args(get_args(get_type_hints(export.export, include_extras=True)["by"])[0])
    assert get_args(choices) == MEASURES
