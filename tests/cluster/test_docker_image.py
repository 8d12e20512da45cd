"""The image's build without Docker: its steps run as they stand, with other folders in the place of the image's."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support_docker import ROOT, copied, exec_form, stages

pytestmark = pytest.mark.cluster

PLACES = ("/build", "/wheels", "/opt/cryptopulse", "/data")


def moved(text: str, root: Path) -> str:
    """`text` with the image's folders inside `root`."""
    for place in PLACES:
        text = text.replace(place, f"{root}{place}")
    return text


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the steps of the first stage were carried out."""
    root = tmp_path_factory.mktemp("image")
    subprocess.run([sys.executable, "-m", "venv", root / "base"], check=True)
    folder, environment = root, {"PATH": f"{root}/base/bin{os.pathsep}{os.defpath}", "HOME": str(root)}
    environment |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    for word, rest in stages()[0][1:]:
        text = moved(rest, root)
        if word == "WORKDIR":
            folder = Path(text)
            folder.mkdir(parents=True)
        elif word == "ENV":
            environment |= dict(part.split("=", 1) for part in shlex.split(text))
        elif word == "COPY":
            *names, goal = shlex.split(text)
            for name in names:
                place = folder / goal / name if goal.endswith("/") else folder / goal
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / name, place)
        else:
            assert word == "RUN", word
            done = subprocess.run(
                ["sh", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
    (root / "data").mkdir()
    return root


@pytest.fixture
def environment(image: Path) -> dict[str, str]:
    """The variables of the last stage."""
    found = {"PATH": os.defpath}
    for word, rest in stages()[-1]:
        if word == "ENV":
            for part in shlex.split(moved(rest, image)):
                name, value = part.split("=", 1)
                found[name] = value.replace("$PATH", found["PATH"])
    return found


@pytest.fixture
def simulator(image: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The image's simulator; its addresses."""
    program = image / "opt" / "cryptopulse" / "bin" / "cryptopulse"
    with subprocess.Popen(
        [program, "simulate", "--port", "0", "--json"], env=environment, stdout=subprocess.PIPE, cwd=image / "data"
    ) as popen:
        assert popen.stdout is not None
        yield json.loads(popen.stdout.readline())
        popen.terminate()


def run(image: Path, environment: dict[str, str], words: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command as `docker run` or a health check would."""
    program = shutil.which(words[0], path=environment["PATH"])
    assert program == str(image / "opt" / "cryptopulse" / "bin" / words[0])
    return subprocess.run(
        [program, *words[1:]], env=environment, cwd=image / "data", capture_output=True, text=True, check=False
    )


def test_the_built_command_runs_from_the_wheel_alone(image: Path, environment: dict[str, str]) -> None:
    version = run(image, environment, [*exec_form("ENTRYPOINT"), "--version"])
    assert version.returncode == 0, version.stderr
    (wheel,) = (image / "wheels").iterdir()
    assert wheel.name.split("-")[1] == version.stdout.split()[1]
    for command in ("produce", "process", "notify", "run", "simulate"):
        assert run(image, environment, [*exec_form("ENTRYPOINT"), command, "--help"]).returncode == 0


def test_every_package_has_the_pinned_version(image: Path) -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    plain = {name.lower().replace("-", "_"): version for name, version in pins.items()}
    script = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    python = image / "opt" / "cryptopulse" / "bin" / "python"
    found = json.loads(subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout)
    installed = {name.lower().replace("-", "_"): version for name, version in found}
    own = installed.pop("cryptopulse")
    assert own
    assert len(installed) > 20
    assert {name: plain.get(name, "not pinned") for name in installed} == installed
    assert "pytest" not in installed
    assert "pip" not in installed


def test_the_default_command_writes_is_healthy_and_ends_in_order_on_the_images_signal(
    image: Path, environment: dict[str, str], simulator: dict[str, str]
) -> None:
    feed = {
        "CRYPTOPULSE_FEED__WEBSOCKET_URL": simulator["exchange_url"],
        "CRYPTOPULSE_FEED__REST_URL": simulator["rest_url"],
    }
    check = exec_form("HEALTHCHECK")
    assert run(image, environment, check).returncode == 3
    program = image / "opt" / "cryptopulse" / "bin" / exec_form("ENTRYPOINT")[0]
    with subprocess.Popen([program, *exec_form("CMD")], env=environment | feed, cwd=image / "data") as popen:
        deadline = time.monotonic() + 60
        while (healthy := run(image, environment, check)).returncode != 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert healthy.returncode == 0, healthy.stdout
        popen.send_signal(getattr(signal, dict(stages()[-1])["STOPSIGNAL"]))
        assert popen.wait(30) == 0
    assert run(image, environment, check).returncode == 3
    assert {path.name for path in (image / "data").iterdir()} == {"lake"}


def test_the_build_needs_nothing_but_what_is_copied(image: Path) -> None:
    assert {path.name for path in (image / "build").iterdir()} - {"build", "dist"} == set(copied())
