"""The bundle in the hands of Databricks' own command line: its schema, and a deployment to a workspace on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from requirements import ROOT

from cryptopulse.lake.queries import load_queries
from cryptopulse.settings import STEPS

pytestmark = pytest.mark.cluster

_COPIED = ("databricks.yml", "deploy/databricks", "src", "dashboards", "pyproject.toml", "README.md", "LICENSE")
_NOT_COPIED = shutil.ignore_patterns("__pycache__")


def tool(name: str) -> Path:
    """A program that `make databricks-cli` builds from tests/cluster/databricks_cli."""
    path = ROOT / ".go" / name
    if not path.exists():  # never a failure: it takes too long to build for every run
        pytest.skip(f"the program .go/{name} is missing; `make databricks-cli` builds it")
    return path


class Cli:
    """The command line, in a copy of the checkout, logged in to a workspace."""

    def __init__(self, folder: Path, host: str) -> None:
        self.folder = folder
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder.parent),
            "DATABRICKS_HOST": host,
            "DATABRICKS_TOKEN": "dbapi-of-the-tests",
            # What reaches a package registry from here must do so from there: the wheel's build back end is in one.
            **{name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_"))},
        }
        shutil.copytree(ROOT / "deploy" / "databricks", folder / "deploy" / "databricks", ignore=_NOT_COPIED)
        for name in _COPIED:
            if (ROOT / name).is_file():
                shutil.copy(ROOT / name, folder / name)
            elif not (folder / name).exists():
                shutil.copytree(ROOT / name, folder / name, ignore=_NOT_COPIED)

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [tool("databricks"), *arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--output", "json"))


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """Address of a workspace."""
    command = [str(tool("databricks-workspace")), "-test.run", "TestServe", "-test.timeout", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        word, address = process.stdout.readline().split()
        assert word == "serving"
        yield address
        process.stdin.close()
        process.stdout.read()


@pytest.fixture(scope="module")
def databricks(host: str, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    folder = tmp_path_factory.mktemp("databricks") / "checkout"
    folder.mkdir()
    return Cli(folder, host)


@pytest.fixture(scope="module")
def prod(databricks: Cli) -> Iterator[Cli]:
    """The target prod, deployed."""
    databricks.run("bundle", "deploy", "--target", "prod", "--var", "state=PAUSED", "--auto-approve")
    yield databricks
    databricks.run("bundle", "destroy", "--target", "prod", "--auto-approve")


def mistakes(content: Any, databricks: Cli) -> list[jsonschema.ValidationError]:
    """Where `content` breaks the schema that the command line prints."""
    text = databricks.run("bundle", "schema")
    for unicode_class, letters in ((r"[\\p{L}\\p{N}]", "[a-zA-Z0-9]"), (r"\\p{L}", "[a-zA-Z]")):
        text = text.replace(unicode_class, letters)  # Python's patterns don't have these; our names need no others
    return list(jsonschema.Draft202012Validator(json.loads(text)).iter_errors(content))


@pytest.mark.parametrize(
    "file",
    [ROOT / "databricks.yml", *sorted((ROOT / "deploy/databricks/resources").glob("*.yml"))],
    ids=lambda f: f.name,
)
def test_the_bundles_files_follow_databricks_schema(file: Path, databricks: Cli) -> None:
    content = yaml.safe_load(file.read_text())
    errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in mistakes(content, databricks)]
    assert not errors


def test_the_schema_finds_a_mistake(databricks: Cli) -> None:
    content = yaml.safe_load((ROOT / "deploy/databricks/resources/pipeline.yml").read_text())
    content["resources"]["jobs"]["pipeline"]["continuous"]["task_retry_mode"] = "SOMETIMES"
    assert mistakes(content, databricks)


@pytest.mark.parametrize("target", ["dev", "prod"])
def test_the_bundle_is_valid_without_a_warning(target: str, databricks: Cli) -> None:
    databricks.run("bundle", "validate", "--strict", "--target", target)


def test_the_pipeline_is_deployed_with_a_task_for_each_step(prod: Cli) -> None:
    jobs = {job["settings"]["name"]: job["job_id"] for job in prod.json("jobs", "list")}
    assert set(jobs) == {"cryptopulse", "cryptopulse setup"}
    settings = prod.json("jobs", "get", str(jobs["cryptopulse"]))["settings"]
    assert settings["continuous"] == {"pause_status": "PAUSED", "task_retry_mode": "ON_FAILURE"}
    steps = [task["python_wheel_task"]["parameters"] for task in settings["tasks"]]
    assert sorted(step[-1] for step in steps) == sorted(STEPS)
    (cluster,) = settings["job_clusters"]
    assert cluster["new_cluster"]["node_type_id"] == "Standard_D4s_v3"
    environment = cluster["new_cluster"]["spark_env_vars"]
    assert environment["EVENT_HUB_CONNECTION_STRING"] == "{{secrets/cryptopulse-scope/eventhub-conn-string}}"
    assert environment["CRYPTOPULSE_SPARK__CHECKPOINTS"] == "/Volumes/cryptopulse_catalog/operations/checkpoints"


def test_the_tasks_install_the_one_wheel_that_was_built_and_it_holds_sql_and_queries(prod: Cli) -> None:
    (wheel,) = (prod.folder / "dist").glob("*.whl")
    for job in prod.json("jobs", "list"):
        for task in prod.json("jobs", "get", str(job["job_id"]))["settings"]["tasks"]:
            (installed,) = [library["whl"] for library in task["libraries"] if "whl" in library]
            assert installed.endswith(wheel.name)
            assert installed.startswith("/Workspace/Users/")  # not a folder that everybody can write to
            (pinned,) = [library["requirements"] for library in task["libraries"] if "requirements" in library]
            assert pinned.endswith("/deploy/databricks/requirements.txt")
            assert pinned.startswith("/Workspace/Users/")
    names = zipfile.ZipFile(wheel).namelist()
    assert "cryptopulse/lake/queries.sql" in names
    assert "cryptopulse/lake/sql/silver.fact_crypto_trades.sql" in names


def test_dashboard_and_alert_are_deployed(prod: Cli) -> None:
    deployed = prod.json("bundle", "summary", "--target", "prod")["resources"]
    board = prod.json("lakeview", "get", deployed["dashboards"]["market"]["id"])
    stored = json.loads(board["serialized_dashboard"])
    assert {dataset["name"] for dataset in stored["datasets"]} == set(load_queries())
    (alert,) = prod.json("alerts-v2", "list-alerts")
    assert "FROM `cryptopulse_catalog`.gold.dm_trade_bars" in alert["query_text"]
    assert alert["evaluation"]["threshold"]["value"]["double_value"] == 600


def test_a_second_deployment_has_nothing_to_do(prod: Cli) -> None:
    plan = prod.json("bundle", "plan", "--target", "prod", "--var", "state=PAUSED")
    assert {step["action"] for step in plan["plan"].values()} == {"skip"}
