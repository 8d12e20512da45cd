"""`install-service` writes a unit that systemd takes and that runs what was meant."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cryptopulse.cli import run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work dir").mkdir()
    monkeypatch.chdir(tmp_path / "work dir")
    monkeypatch.setenv("HOME", str(tmp_path))


def entries(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def test_the_unit_runs_the_lake_that_was_meant(capsys: Captured) -> None:
    Path("my.toml").write_text("")
    assert run(["install-service", "--file", "-", "--lake", "my lake 100%", "--config", "my.toml"]) == 0
    unit = entries(capsys.readouterr().out)
    place = f"{Path.cwd()}/my lake 100%%"
    assert unit["ExecStart"] == f'{sys.executable} -m cryptopulse run --lake "{place}" --config "{Path.cwd()}/my.toml"'
    assert unit["ReadWritePaths"] == f'"{place}"'
    assert unit["WorkingDirectory"] == str(Path.cwd())
    assert "User" not in unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_takes_the_unit(capsys: Captured) -> None:
    file = Path("cryptopulse.service").absolute()
    assert run(["install-service", "--file", str(file), "--lake", "my lake", "--user", "daemon"]) == 0
    told = capsys.readouterr().out
    assert told == f"Wrote {file}; put it into /etc/systemd/system.\n"
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )
    assert str(file) not in checked.stderr, checked.stderr  # what it says of the machine's own units is not ours
    assert entries(file.read_text())["User"] == "daemon"


def test_a_lake_in_the_cloud_needs_no_folder(capsys: Captured) -> None:
    assert run(["install-service", "--file", "-", "--lake", "s3://bucket/lake"]) == 0
    unit = entries(capsys.readouterr().out)
    assert unit["ExecStart"].endswith("--lake s3://bucket/lake")
    assert "ReadWritePaths" not in unit
    assert (unit["StateDirectory"], unit["Environment"]) == ("cryptopulse", "XDG_STATE_HOME=%S")


def test_a_log_and_a_state_elsewhere_can_be_written(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("CRYPTOPULSE_LOG__URL", "sqlite:/srv/log dir/log.db")
    monkeypatch.setenv("CRYPTOPULSE_STATE", "/srv/state")
    assert run(["install-service", "--file", "-", "--lake", "s3://bucket/lake"]) == 0
    assert entries(capsys.readouterr().out)["ReadWritePaths"] == '"/srv/log dir" /srv/state'


def test_what_means_something_to_systemd_is_escaped(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run(["install-service", "--lake", "a$b%c d"]) == 0
    assert f"mkdir -p '{Path.cwd()}/a$b%c d'" in capsys.readouterr().out
    unit = entries(Path("~/.config/systemd/user/cryptopulse.service").expanduser().read_text())
    assert unit["ExecStart"].endswith('/a$$b%%c d"')
    assert unit["ReadWritePaths"].endswith('/a$b%%c d"')


def test_it_is_written_where_systemd_looks_and_not_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    file = tmp_path / ".config/systemd/user/cryptopulse.service"
    assert run(["install-service"]) == 0
    assert "systemctl --user enable --now cryptopulse" in capsys.readouterr().out
    assert entries(file.read_text())["WantedBy"] == "default.target"
    assert run(["install-service"]) == 2
    assert capsys.readouterr().err == f"cryptopulse: {file} exists already; --force replaces it.\n"
    assert run(["install-service", "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--user", "recorder"], "--user needs root"),
        (["--user", "a b", "--file", "-"], "is no name of a user"),
        (["--file", "/proc/nothing/unit"], "Can't write /proc/nothing/unit"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--config", "odd\nname.toml"], "can't stand in a unit"),
    ],
)
def test_a_mistake_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, arguments: list[str], told: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    Path("odd\nname.toml").touch()
    assert run(["install-service", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
