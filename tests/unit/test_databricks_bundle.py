"""The bundle for Databricks fits the code: its commands exist, its settings too, and what is generated is current."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from cryptopulse import cli
from cryptopulse.lake.ddl import OPERATIONS, VOLUMES
from cryptopulse.lake.queries import load_queries
from cryptopulse.settings import STEPS, load_settings

pytestmark = pytest.mark.texts

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "databricks"
BUNDLE = yaml.safe_load((ROOT / "databricks.yml").read_text())
RESOURCES = {path.stem: yaml.safe_load(path.read_text())["resources"] for path in (FOLDER / "resources").glob("*.yml")}
JOBS: dict[str, Any] = RESOURCES["pipeline"]["jobs"]
TASKS = [pytest.param(task, id=task["task_key"]) for job in JOBS.values() for task in job["tasks"]]
QUERIES = load_queries()


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """`deploy/databricks/generate.py` as a module."""
    spec = importlib.util.spec_from_file_location("databricks_generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def widgets() -> list[dict[str, Any]]:
    board = json.loads((FOLDER / "cryptopulse.lvdash.json").read_text())
    return [place["widget"] for page in board["pages"] for place in page["layout"]]


def test_what_is_generated_is_current(generate: ModuleType) -> None:
    for path, text in generate.files().items():
        assert path.read_text() == text, "run: python deploy/databricks/generate.py"


@pytest.mark.parametrize("task", TASKS)
def test_a_task_calls_a_command_that_exists_with_options_that_it_takes(task: dict[str, Any]) -> None:
    wheel = task["python_wheel_task"]
    (script,) = importlib.metadata.entry_points(group="console_scripts", name=wheel["entry_point"])
    assert script.dist is not None
    assert script.dist.name == wheel["package_name"]
    name, *rest = wheel["parameters"]
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    command.make_context("cryptopulse", rest)  # parses, and runs nothing; raises for what it does not know


def test_the_tasks_of_the_pipeline_are_the_steps_once_each_and_wait_for_nothing() -> None:
    tasks = JOBS["pipeline"]["tasks"]
    steps = [task["python_wheel_task"]["parameters"][-1] for task in tasks]
    assert sorted(steps) == sorted(STEPS)
    assert not any("depends_on" in task for task in tasks)


def test_the_clusters_environment_is_made_of_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (cluster,) = JOBS["pipeline"]["job_clusters"]
    for name, value in cluster["new_cluster"]["spark_env_vars"].items():
        chosen = re.sub(r"\$\{var\.(\w+)\}", lambda found: BUNDLE["variables"][found[1]]["default"], value)
        monkeypatch.setenv(name, chosen)
    monkeypatch.setenv("EVENT_HUB_CONNECTION_STRING", "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=n")
    settings = load_settings()
    assert settings.spark.catalog == BUNDLE["variables"]["catalog"]["default"]
    assert settings.spark.checkpoints in {f"/Volumes/cryptopulse_catalog/{OPERATIONS}/{name}" for name in VOLUMES}
    assert settings.log.eventhub_connection_string is not None


def test_the_secret_is_named_and_nowhere_written() -> None:
    (cluster,) = JOBS["pipeline"]["job_clusters"]
    secret = cluster["new_cluster"]["spark_env_vars"]["EVENT_HUB_CONNECTION_STRING"]
    assert secret == "{{secrets/${var.secret_scope}/eventhub-conn-string}}"
    assert not any("secret_scopes" in resources for resources in RESOURCES.values())  # it holds the secret before
    assert BUNDLE["variables"]["secret_scope"]["default"] == "cryptopulse-scope"


def test_every_variable_named_is_declared_and_every_declared_one_is_used() -> None:
    files = [ROOT / "databricks.yml", *(FOLDER / "resources").glob("*.yml")]
    named = {name for path in files for name in re.findall(r"\$\{var\.(\w+)\}", path.read_text())}
    assert named == set(BUNDLE["variables"])
    for target in BUNDLE["targets"].values():
        assert set(target.get("variables", {})) <= set(BUNDLE["variables"])


def test_dev_touches_nothing_of_prod() -> None:
    dev = BUNDLE["targets"]["dev"]
    assert dev["mode"] == "development"
    for name in ("catalog", "secret_scope"):
        assert dev["variables"][name] != BUNDLE["variables"][name]["default"]


def test_every_query_is_on_the_dashboard_once() -> None:
    shown = [
        w["queries"][0]["query"]["datasetName"]
        for w in widgets()
        if w.get("spec", {}).get("widgetType") in {"line", "bar", "table"}
    ]
    assert sorted(shown) == sorted(QUERIES)


def test_a_dataset_is_the_query_of_the_file_letter_for_letter() -> None:
    board = json.loads((FOLDER / "cryptopulse.lvdash.json").read_text())
    assert {one["name"]: "".join(one["queryLines"]) for one in board["datasets"]} == {
        query.name: query.sql for query in QUERIES.values()
    }


def test_widgets_show_only_columns_that_they_fetch_and_their_query_has() -> None:
    for widget in widgets():
        if "spec" not in widget:
            continue
        query = widget["queries"][0]["query"]
        fetched = {field["name"] for field in query["fields"]}
        assert fetched <= set(QUERIES[query["datasetName"]].columns)
        encodings = json.dumps(widget["spec"]["encodings"])
        assert set(re.findall(r'"fieldName": "(\w+)"', encodings)) == fetched


def test_widgets_do_not_overlap() -> None:
    board = json.loads((FOLDER / "cryptopulse.lvdash.json").read_text())
    for page in board["pages"]:
        taken: set[tuple[int, int]] = set()
        for place in (one["position"] for one in page["layout"]):
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["width"])
                for y in range(place["y"], place["y"] + place["height"])
            }
            assert place["x"] + place["width"] <= 6
            assert not cells & taken
            taken |= cells


def test_the_freshness_alert_names_its_tables_with_the_catalog() -> None:
    text = RESOURCES["alerts"]["alerts"]["freshness"]["query_text"]
    assert len(re.findall(r"FROM `\$\{var\.catalog\}`\.(?:bronze|silver|gold)\.\w+", text)) == 8
    assert not re.search(r"(?:FROM|JOIN) (?:bronze|silver|gold)\.", text)


def test_every_task_installs_the_pinned_requirements_before_the_wheel() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    listed = [line for line in (FOLDER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert listed
    for line in listed:
        name, version = line.split("==")
        assert pinned[name] == version, "as in constraints.txt"
    for job in JOBS.values():
        for task in job["tasks"]:
            assert [next(iter(library)) for library in task["libraries"]] == ["requirements", "whl"]


def test_the_runtimes_own_packages_are_not_installed_over() -> None:
    text = (FOLDER / "requirements.txt").read_text()
    assert not re.search(r"^(numpy|pandas|pyarrow|pydantic|pydantic_core|psutil|pyspark)==", text, re.MULTILINE)
