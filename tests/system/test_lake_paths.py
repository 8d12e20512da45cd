"""A lake's path may have any letters: every command works there and reads no neighbour, or refuses it in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cryptopulse
from cryptopulse.cli import run
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import SILVER
from support import some
from support_audit import audit, market, matches
from support_serve import Served

IDS = list(range(1000, 1005))
Recording = Callable[[str, range], Path]


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Makes a recording of BTC-USD with trades of these ids; the working directory is empty but for them."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, ids: range) -> Path:
        (tmp_path / name).write_bytes(b"".join(one["body"] + b"\n" for one in matches(market(ids, ["BTC-USD"]))))
        return tmp_path / name

    return make


# All letters in a few names, whose neighbours are what a pattern, an address or a strip() would make of them.
_NAMES = [
    ("a b?c*d{x,y}", "a bxcxdx"),
    ("100% Zürich 日本#b", "100% Zürich 日本"),
    (" it's a:b|c^d;e&f`$HOME` ", "it's a:b|c^d;e&f`$HOME`"),
    ('-~nobody-of-this-name "x"', None),
    ("symbol=ETH-USD/event_date=2019-01-01", None),
]
_EACH_ALONE = [
    ("a b", "a"),
    (" a ", "a"),
    ("Zürich 日本", None),
    ("100%", None),
    ("a#b", "a"),
    ("a?b", "axb"),
    ("a*b", "axb"),
    ("a{x,y}b", "axb"),
    ("it's", None),
    ('say "x"', None),
    ("-a", None),
    ("~nobody-of-this-name", None),
    ("a:b|c^d;e&f", None),
    ("a`$HOME`", None),
    ("symbol=ETH-USD", None),
    ("event_date=2019-01-01", None),
]


@pytest.mark.parametrize(("name", "neighbour"), some(len(_NAMES), [*_NAMES, *_EACH_ALONE]))
def test_every_command_works_on_a_lake_of_any_name_and_reads_no_neighbour(
    recording: Recording, capsys: pytest.CaptureFixture[str], name: str, neighbour: str | None
) -> None:
    assert run(["replay", str(recording("mine", range(1000, 1005))), "--lake", name]) == 0
    if neighbour:
        shutil.copytree(name, neighbour)  # its files have the same names
    for command in (["rebuild"], ["process", "--once"]):
        assert run([*command, "--lake", name]) == 0
    capsys.readouterr()
    assert run(["sql", "SELECT trade_id FROM silver.fact_crypto_trades ORDER BY 1", "--lake", name, "--json"]) == 0
    assert [row["trade_id"] for row in json.loads(capsys.readouterr().out)] == IDS
    audited = audit(name)
    assert (audited.code, audited.product("BTC-USD")["held_ids"]) == (0, 5)
    assert run(["status", "--lake", name]) == 3  # nothing runs
    assert "unexpected" not in capsys.readouterr().err
    trades = cryptopulse.open(name).trades("BTC-USD").arrow()
    assert (trades["trade_id"].to_pylist(), set(trades["event_date"].to_pylist())) == (IDS, {market()[0].time.date()})
    with Served(name) as served:
        rows = served.get("/api/trades", params={"symbol": "BTC-USD"}).json()["data"]
        assert [row["trade_id"] for row in rows] == IDS


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a%20b", "%20"),
        ("a%25b", "%25"),
        ("a%2Fb", "%2F"),
        ("%41", "%41"),
        ("a%c3%bcb", "%c3"),
        ("a\\b", "\\"),
        ("a\nb", r"'\n'"),
        ("a\rb", r"'\r'"),
        ("a\tb", r"'\t'"),
        ("a\x1bb", r"'\x1b'"),
        ("a\x7fb", r"'\x7f'"),
        ("a[b]", "["),
        ("a]b", "]"),
        ("a\udcffb", "UTF-8"),
    ],
)
def test_what_delta_readers_would_take_for_another_place_is_refused_in_one_line(
    recording: Recording, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    file = str(recording("mine", range(1000, 1003)))
    Path(name.replace("%20", " ")).mkdir(parents=True)
    commands = [["replay", file], ["sql", "SELECT 1"], ["audit"], ["status"], ["process", "--once"], ["rebuild"]]
    for command in [*commands, ["serve"], ["config"], ["demo", "--for", "1s"]]:
        assert run([*command, "--lake", name]) == 2
        errors = capsys.readouterr().err
        assert f"can't have {told} in it" in errors or told in errors.partition("can't have")[2]
        assert errors.count("\n") == 1
    with pytest.raises(ConfigurationError, match="can't have"):
        cryptopulse.open(name)


def test_a_link_is_judged_by_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "a%20b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a%20b")
    with pytest.raises(ValueError, match="%20"):
        LakeLocation.of(tmp_path / "link")


@pytest.mark.parametrize(
    ("written", "folder"),
    [
        ("file:///a%20b", "/a b"),
        ("file:///100%25", "/100%"),
        ("file:///a%23b", "/a#b"),
        ("file://localhost/a", "/a"),
        ("file:/a%2Ab", "/a*b"),
        ("file:///a%2520b", None),
        ("file:///a%FFb", None),
        ("file:///a%0Ab", None),
        ("file:///a%00b", None),
        ("file://server/a", None),
    ],
)
def test_a_file_address_is_the_folder_that_its_escapes_name_or_refused(written: str, folder: str | None) -> None:
    if folder is None:
        with pytest.raises(ConfigurationError):
            cryptopulse.open(written)
    else:
        assert str(LakeLocation.of(written).folder) == folder


def test_what_a_message_says_to_run_can_be_run(recording: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    lake = Path("it's a lake").absolute()
    assert run(["replay", str(recording("mine", range(1000, 1005))), "--lake", str(lake)]) == 0
    log = lake / SILVER.schema / SILVER.name / "_delta_log"
    for commit in log.glob("*.json"):
        commit.write_bytes(b"oops")
    assert run(["sql", "SELECT 1 FROM silver.fact_crypto_trades", "--lake", str(lake)]) == 4
    repair = capsys.readouterr().err.split("`")[3]
    shell = subprocess.run(
        repair.replace("cryptopulse", f"{sys.executable} -m cryptopulse", 1), shell=True, check=True, env=os.environ
    )
    assert shell.returncode == 0
    assert run(["sql", "SELECT 1 FROM silver.fact_crypto_trades", "--lake", str(lake)]) == 0
    shutil.rmtree(lake)


_ASCII = {"PYTHONIOENCODING": "ascii"}
_LATIN = {"PYTHONIOENCODING": "latin-1"}
_NO_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_letters_that_the_output_can_not_show_stop_no_command(recording: Recording, tmp_path: Path) -> None:
    assert run(["replay", str(recording("mine", range(1000, 1005))), "--lake", "lake"]) == 0

    def said(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "cryptopulse", *arguments]
        done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **environment})
        assert b"unexpected" not in done.stderr
        encoding = environment.get("PYTHONIOENCODING", "ascii").partition(":")[0]
        return done.returncode, done.stdout.decode(encoding)

    for environment in (_ASCII, _LATIN, _NO_LOCALE):
        code, table = said(environment, "config")
        assert code == 0
        assert "..." in table or "…" in table
        code, found = said(environment, "sql", "SELECT chr(26085) AS day, chr(8230) AS dots", "--lake", "lake")
        assert (code, "\\u65e5" in found) == (0, True)
    assert said(_ASCII, "sql", "SELECT nothing_日", "--lake", "lake")[0] == 2
    for command in (["init"], ["demo", "--help"], ["audit", "--lake", "lake"]):
        assert said(_NO_LOCALE, *command)[0] == 0
    assert "…" in (tmp_path / "cryptopulse.toml").read_text(encoding="utf-8")
