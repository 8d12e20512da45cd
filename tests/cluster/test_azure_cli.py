"""Every call of az in the Azure scripts, judged by the real Azure CLI: its parser, its packing, its models."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from requirements import ROOT, missing

from support_azure import FakeAzure, planned

pytestmark = pytest.mark.cluster

PYTHON = ROOT / ".venv-azure" / "bin" / "python"


def run_az_python(home: Path, arguments: list[str], typed: str) -> str:
    """Runs Python with the Azure CLI's packages, which keep their configuration in `home`."""
    if not PYTHON.exists():
        missing("The Azure CLI in .venv-azure")
    settings = {
        "AZURE_CONFIG_DIR": str(home),
        "AZURE_CORE_COLLECT_TELEMETRY": "0",
        "PATH": os.defpath,
        "HOME": str(home),
    }
    done = subprocess.run(
        [PYTHON, *arguments], input=typed, capture_output=True, text=True, check=False, timeout=300, env=settings
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def complaints(home: Path, command_lines: list[list[str]]) -> list[str]:
    """What az's parser says of each; "" for those that it takes."""
    typed = "".join(json.dumps(argv) + "\n" for argv in command_lines)
    said = run_az_python(home, [str(Path(__file__).with_name("azure_parser.py"))], typed)
    return [json.loads(line) for line in said.splitlines()]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every call of az: on an empty subscription, on a complete one, and to take it down."""
    azure = FakeAzure(tmp_path_factory.mktemp("fake") / "azure")
    found = []
    for arguments in (["up"], ["up"], ["up", "--products", "SOL-USD", "--subscription", "x"], ["down", "--yes"]):
        done = azure.run(*arguments)
        assert done.returncode == 0, done.stderr
        found += azure.calls()
    return found


def test_az_understands_every_call_of_the_scripts(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    different = [json.loads(text) for text in dict.fromkeys(json.dumps(call["argv"]) for call in calls)]
    commands = {call["command"] for call in calls}
    assert len(commands) >= 25
    assert {"eventhubs eventhub create", "acr build", "container create", "group delete"} <= commands
    said = complaints(tmp_path, different)
    assert len(said) == len(different)
    assert [(" ".join(argv), words) for argv, words in zip(different, said, strict=True) if words] == []


def test_az_understands_every_command_of_a_plan(tmp_path: Path) -> None:
    shown = planned(FakeAzure(tmp_path / "azure").run("plan").stdout)
    assert len(shown) == 22
    assert [words for words in complaints(tmp_path, shown) if words] == []


@pytest.mark.parametrize(
    ("before", "after", "about"),
    [
        ("--partition-count", "--partitions", "--partitions"),
        ("168", "a week", "week"),
        ("Listen", "Hear", "Hear"),
        ("Standard_LRS", "Standard_XYZ", "Standard_XYZ"),
        ("hub-rule-name", "", ""),
        ("--enable-hierarchical-namespace", "--enable-hierarchical", "no option"),
        ("eventhub", "eventhubz", "no command"),
        ("[?principalId", "[principalId ==", "--query"),
    ],
)
def test_the_check_finds_what_is_wrong(
    calls: list[dict[str, Any]], tmp_path: Path, before: str, after: str, about: str
) -> None:
    if before == "hub-rule-name":  # a required option is left out
        wrong = next(c["argv"] for c in calls if c["command"] == "eventhubs eventhub authorization-rule create")
        wrong = [word for word in wrong if word not in ("--name", "producer", "processing")]
    else:
        argv = next(c["argv"] for c in calls if any(word.startswith(before) for word in c["argv"]))
        wrong = [word.replace(before, after) if word.startswith(before) else word for word in argv]
        assert wrong != argv
    (said,) = complaints(tmp_path, [wrong])
    assert said
    assert about in said


def test_az_sends_what_the_image_is_built_from_and_nothing_else(tmp_path: Path) -> None:
    archive = tmp_path / "context.tar.gz"
    (tmp_path / "az").mkdir()
    script = (
        "import sys; from azure.cli.command_modules.acr import _archive_utils as packing\n"
        "packing._pack_source_code('.', sys.argv[1], 'deploy/docker/Dockerfile', '0_Dockerfile')"
    )
    run_az_python(tmp_path / "az", ["-c", f"import os; os.chdir({str(ROOT)!r})\n{script}", str(archive)], "")
    with tarfile.open(archive) as packed:
        names = {member.name for member in packed if member.isfile()}
    source = {
        str(p.relative_to(ROOT)) for p in (ROOT / "src").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    beside = {"LICENSE", "README.md", "constraints.txt", "dashboards/queries.sql", "pyproject.toml", "0_Dockerfile"}
    assert names - source == beside
    assert source - names == set()


def test_the_container_group_has_only_fields_that_azure_knows(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    group = yaml.safe_load(next(call["piped"] for call in calls if call["piped"]))
    # What is sent, read with the models of the SDK and written again: a field that they do not know is lost.
    script = (
        "import json, sys; from azure.mgmt.containerinstance import models\n"
        "from azure.mgmt.containerinstance._serialization import Deserializer, Serializer\n"
        "kinds = {name: kind for name, kind in vars(models).items() if isinstance(kind, type)}\n"
        "group = Deserializer(kinds)('ContainerGroup', json.load(sys.stdin))\n"
        "print(json.dumps(Serializer(kinds).body(group, 'ContainerGroup')))"
    )
    again = json.loads(run_az_python(tmp_path, ["-c", script], json.dumps(group)))
    del group["apiVersion"], group["name"]  # part of the address
    assert again == group
