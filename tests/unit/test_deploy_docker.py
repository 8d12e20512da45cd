"""The image and the compose files, as far as they can be judged without Docker; tests/cluster runs the build."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer

from cryptopulse import cli
from cryptopulse.settings import load_settings
from cryptopulse.status import StatusFile, read_status, status_path
from support_docker import FOLDER, ROOT, compose, copied, exec_form, instructions, is_sent, stages

pytestmark = pytest.mark.texts

FILES = (("compose.yaml",), ("compose.yaml", "compose.simulated.yaml"))
SECRETS = re.compile("secret|password|token|key|connection|credential", re.IGNORECASE)
PINNED = re.compile(r".+:\d+\.\d+\.\d+(-[a-z-]+)?@sha256:[0-9a-f]{64}")


def understood(words: list[str]) -> None:
    """Raises when the command line does not parse; runs nothing."""
    assert words[0] == "cryptopulse"
    command = typer.main.get_command(cli.app).commands[words[1]]  # type: ignore[attr-defined]
    command.make_context("cryptopulse", words[2:])


def services() -> list[Any]:
    """Every service of both ways to start, as test parameters: its name and its definition."""
    return [
        pytest.param(name, service, id=f"{len(files)}-{name}")
        for files in FILES
        for name, service in compose(*files)["services"].items()
    ]


def own_services() -> list[Any]:
    """Those that run our image."""
    return [parameter for parameter in services() if parameter.values[1]["image"].startswith("cryptopulse:")]


def test_the_dockerfile_is_clean_for_hadolint() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([tool, FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_everything_that_is_copied_exists_and_is_sent_to_the_builder() -> None:
    assert set(copied()) >= {"pyproject.toml", "constraints.txt", "src"}
    for name in copied():
        assert (ROOT / name).exists(), name
        assert is_sent(name), name


def test_nothing_else_is_sent_to_the_builder() -> None:
    sent = {path.name for path in ROOT.iterdir() if is_sent(path.name)}
    assert sent == set(copied())
    assert not any(is_sent(name) for name in (".env", ".git", ".venv", "lake", "cryptopulse.toml", "deploy"))


def test_the_image_is_built_on_an_exact_version() -> None:
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    versions = dict(rest.split("=") for word, rest in instructions() if word == "ARG")
    assert len(bases) == 2
    for text in bases:
        base = re.sub(r"\$\{(\w+)\}", lambda name: versions[name[1]], text)
        assert PINNED.fullmatch(base), base
        assert "-slim" in base


def test_packages_are_installed_at_the_pinned_versions() -> None:
    installs = [rest for word, rest in instructions() if word == "RUN" and re.search(r"pip .*install", rest)]
    assert installs
    for text in installs:
        for part in re.split("&&", text):
            assert "install" not in part or "--constraint constraints.txt" in part or "pip" not in part, part


def test_the_image_runs_as_a_user_without_rights_and_ends_in_order() -> None:
    last = dict(stages()[-1])
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last["USER"])
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert exec_form("ENTRYPOINT") == ["cryptopulse"]
    assert exec_form("CMD") == ["produce"]
    understood([*exec_form("ENTRYPOINT"), *exec_form("CMD")])
    understood(exec_form("HEALTHCHECK"))


def test_the_image_holds_no_secret() -> None:
    for word, rest in instructions():
        if word in ("ENV", "ARG", "LABEL"):
            assert not any(SECRETS.search(name) for name in re.findall(r"([\w.]+)=", rest)), rest


@pytest.mark.parametrize("files", FILES, ids=len)
def test_the_compose_files_follow_the_compose_specification(files: tuple[str, ...]) -> None:
    vendored = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema = json.loads(vendored.read_text())
    for document in (compose(files[-1]), compose(*files)):
        jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"services": {"kafka": {"imagee": "x"}}}, schema)


@pytest.mark.parametrize(("name", "service"), services())
def test_every_service_is_pinned_bounded_watched_and_started_again(name: str, service: dict[str, Any]) -> None:
    assert service["image"] == "cryptopulse:local" or PINNED.fullmatch(service["image"])
    assert service["restart"] == "unless-stopped"
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert "healthcheck" in service or name == "producer"  # which has the image's own
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    for port in service.get("ports", []):
        assert str(port).startswith("127.0.0.1:"), port
    for needed in service.get("depends_on", {}).values():
        assert needed == {"condition": "service_healthy"}


@pytest.mark.parametrize(("name", "service"), own_services())
def test_our_services_run_commands_that_exist_on_a_read_only_file_system(name: str, service: dict[str, Any]) -> None:
    understood(["cryptopulse", *service["command"]])
    assert service["read_only"] is True
    writable = [*service["tmpfs"], *service.get("volumes", [])]
    assert {"/tmp", "/data"} <= {part for text in writable for part in text.split(":")}
    check = service.get("healthcheck", {}).get("test", ["CMD", *exec_form("HEALTHCHECK")])
    assert check[0] == "CMD"
    if check[1] == "cryptopulse":
        understood(check[1:])


@pytest.mark.parametrize(("name", "service"), own_services())
def test_our_services_have_settings_that_exist(
    name: str, service: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in [variable for variable in os.environ if variable.startswith("CRYPTOPULSE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    for variable, value in service.get("environment", {}).items():
        if re.fullmatch(rf"\$\{{{variable}:\?.*\}}", value):  # the user's to give
            monkeypatch.setenv(variable, "0123456789abcdef")
            continue
        assert not SECRETS.search(variable)
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
    settings = load_settings()
    if "environment" in service:
        assert settings.log.url == "kafka://kafka:9092/coinbase-raw-trades"
        assert str(settings.lake) == "/data/lake"


@pytest.mark.parametrize("files", FILES, ids=len)
def test_what_the_services_name_is_there(files: tuple[str, ...]) -> None:
    document = compose(*files)
    for service in document["services"].values():
        assert set(service.get("depends_on", {})) <= set(document["services"])
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in document["volumes"]
        if "build" in service:
            context = FOLDER / service["build"]["context"]
            assert context.resolve() == ROOT
            assert (context / service["build"]["dockerfile"]).is_file()


def test_simulated_and_real_trades_have_volumes_of_their_own() -> None:
    real, simulated = (compose(*files) for files in FILES)
    assert real["name"] != simulated["name"]
    producer = simulated["services"]["producer"]
    assert "//simulator:8765" in producer["environment"]["CRYPTOPULSE_FEED__WEBSOCKET_URL"]
    assert set(producer["depends_on"]) == {"kafka", "simulator"}


def test_every_command_of_the_guide_is_understood() -> None:
    text = (FOLDER / "README.md").read_text()
    shown = re.findall(r"(?:exec|run --rm) (?:-\w+ )?(?:[\w-]+ )*?cryptopulse ([a-z]+)((?: --[a-z-]+)*)", text)
    assert len(shown) >= 2
    for command, options in shown:
        known = typer.main.get_command(cli.app).commands[command]  # type: ignore[attr-defined]
        names = {name for parameter in known.params for name in parameter.opts}
        assert set(options.split()) <= names


def report(state_dir: Path, age_s: float, logged_s: float | None) -> None:
    """A producer that reported `age_s` ago, and whose log took something `logged_s` before that."""
    status = StatusFile(state_dir, "producer")
    status.report({"last_logged_age_s": logged_s})
    path = status_path(state_dir, "producer")
    when = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    changes = {
        "updated_at": when,
        "started_at": when,
        "updated_boot_s": time.clock_gettime(time.CLOCK_BOOTTIME) - age_s,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("age_s", "logged_s", "code"), [(1, 5.0, 0), (1, 70.0, 3), (5, 57.0, 3), (1, None, 0), (11, 1.0, 3)]
)
def test_a_producer_whose_log_takes_nothing_for_a_minute_is_unhealthy(
    tmp_path: Path, age_s: float, logged_s: float | None, code: int
) -> None:
    report(tmp_path / "_cryptopulse", age_s, logged_s)
    check = [*exec_form("HEALTHCHECK")[1:], "--lake", str(tmp_path)]
    assert cli.run(check) == code
    alive = ["status", "--process", "producer", "--lake", str(tmp_path)]
    assert cli.run(alive) == (0 if age_s < 10 else 3)


def test_a_process_of_another_container_is_judged_by_the_age_of_its_file(tmp_path: Path) -> None:
    for age_s, state in ((1, "running"), (11, "dead")):
        report(tmp_path, age_s, 1.0)
        path = status_path(tmp_path, "producer")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "another", "pid": 1}))
        found = read_status(tmp_path, "producer")
        assert (found.state, found.orphaned) == (state, False)
