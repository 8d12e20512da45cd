"""The Azure scripts keep their word: nothing twice, nothing that is not theirs, no secret where it can be read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fake_az import SECRET, SUBSCRIPTION
from support_azure import SCRIPT, FakeAzure, planned

pytestmark = pytest.mark.texts

FOLDER = SCRIPT.parent


@pytest.fixture
def azure(tmp_path: Path) -> FakeAzure:
    return FakeAzure(tmp_path / "azure")


UP = ("up", "--products", "SOL-USD,ADA-USD")


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> FakeAzure:
    """After one `up`: its calls can be looked at."""
    azure = FakeAzure(tmp_path_factory.mktemp("first") / "azure")
    done = azure.run(*UP)
    assert done.returncode == 0, done.stderr
    return azure


@pytest.fixture
def complete(first_run: FakeAzure, tmp_path: Path) -> FakeAzure:
    """Everything is there."""
    return first_run.copy(tmp_path / "complete")


def databricks(azure: FakeAzure, refused: int = 0) -> Path:
    """Installs a stand-in for the Databricks CLI, whose workspace refuses the first sign-ins; the file it writes its
    calls and its input to."""
    said, there = azure.home / "databricks.txt", azure.home / "there"
    there.mkdir()
    azure.install("sleep", "")
    azure.install(
        "databricks",
        f"""echo "$DATABRICKS_HOST $DATABRICKS_AUTH_TYPE $*" >> {said}
case "$1 $2" in
"current-user me")
    [ "$(grep -c 'current-user me' {said})" -gt {refused} ] || {{ echo 'Error: unknown user' >&2; exit 1; }} ;;
"secrets list-scopes") [ ! -e {there}/scope ] || echo '[{{"name": "cryptopulse-scope"}}]' ;;
"secrets create-scope") touch {there}/scope ;;
"secrets put-secret") cat >> {said}; echo >> {said} ;;
*get) test -e {there}/$1 ;;
*create) echo "$DATABRICKS_AZURE_RESOURCE_ID" > {there}/$1 ;;
esac""",
    )
    return said


def test_the_scripts_are_clean_for_shellcheck() -> None:
    tool = Path(sys.executable).with_name("shellcheck")
    scripts = sorted(FOLDER.glob("*.sh"))
    assert len(scripts) == 4
    done = subprocess.run([tool, "-x", *scripts], cwd=FOLDER.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_command_nothing_is_changed_and_everything_is_shown(azure: FakeAzure) -> None:
    done = azure.run()
    assert done.returncode == 0, done.stderr
    assert [call["command"] for call in azure.calls()] == ["account show"]
    assert azure.state["objects"] == {}
    assert len(planned(done.stdout)) == 22


def test_a_plan_needs_neither_az_nor_a_subscription(azure: FakeAzure) -> None:
    azure.uninstall("az")
    done = azure.run("plan")
    assert done.returncode == 0, done.stderr
    assert "is not installed" in done.stdout
    assert len(planned(done.stdout)) == 22


def test_the_plan_shows_the_commands_that_are_then_run(first_run: FakeAzure, azure: FakeAzure) -> None:
    shown = planned(azure.run("plan", *UP[1:]).stdout)
    run = [[word for word in argv if word not in ("--output", "none")] for argv in first_run.changes()]
    principals = re.compile("<principal of (.*)>")
    assert [[principals.sub(r"principal-of-\1", word) for word in argv] for argv in shown] == run


def test_what_was_asked_for_is_created(first_run: FakeAzure) -> None:
    by_command = {call["command"]: " ".join(call["argv"]) for call in first_run.calls()}
    assert "--sku Standard --capacity 1 --enable-kafka true" in by_command["eventhubs namespace create"]
    hub = by_command["eventhubs eventhub create"]
    assert "--partition-count 1" in hub
    assert "--retention-time-in-hours 168" in hub
    assert "--name coinbase-raw-trades" in hub
    assert "--enable-hierarchical-namespace true" in by_command["storage account create"]
    assert "--allow-blob-public-access false" in by_command["storage account create"]
    assert "--admin-enabled false" in by_command["acr create"]
    rules = [
        argv for argv in first_run.changes() if argv[:4] == ["eventhubs", "eventhub", "authorization-rule", "create"]
    ]
    rights = {argv[argv.index("--name") + 1]: argv[argv.index("--rights") + 1 :] for argv in rules}
    assert rights["producer"][:2] == ["Send", "Listen"]
    assert rights["processing"][0] == "Listen"
    assert rights["processing"][1].startswith("--")


def test_the_container_restarts_always_and_gets_the_connection_string_as_a_secure_value(
    first_run: FakeAzure,
) -> None:
    (piped,) = [call["piped"] for call in first_run.calls() if call["command"] == "container create"]
    group = yaml.safe_load(piped)
    assert group["properties"]["restartPolicy"] == "Always"
    (container,) = group["properties"]["containers"]
    variables = {variable["name"]: variable for variable in container["properties"]["environmentVariables"]}
    assert variables["CRYPTOPULSE_FEED__PRODUCTS"]["value"] == "SOL-USD,ADA-USD"
    secret = variables["EVENT_HUB_CONNECTION_STRING"]
    assert "value" not in secret
    assert secret["secureValue"].endswith(f"SharedAccessKeyName=producer;SharedAccessKey={SECRET}")
    (credential,) = group["properties"]["imageRegistryCredentials"]
    assert list(group["identity"]["userAssignedIdentities"]) == [credential["identity"]]
    assert container["properties"]["image"].startswith(credential["server"] + "/cryptopulse:")


def test_no_secret_is_in_a_command_line_nor_in_what_is_printed(azure: FakeAzure) -> None:
    said = databricks(azure)
    for command in ("plan", "up", "names"):
        done = azure.run(command)
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
        assert all(SECRET not in word for call in azure.calls() for word in call["argv"])
    assert not any(SECRET in line for line in said.read_text().splitlines() if "put-secret" in line)


def test_the_listening_connection_string_goes_into_the_secret_scope_by_a_pipe(complete: FakeAzure) -> None:
    said = databricks(complete)
    assert complete.run(*UP).returncode == 0
    assert complete.run(*UP).returncode == 0
    lines = said.read_text().splitlines()
    host = "https://adb-1.2.azuredatabricks.net azure-cli "
    commands = [line.removeprefix(host) for line in lines if line.startswith(host)]
    first, second = commands[:8], commands[8:]
    assert [command.split(" --json")[0] for command in first] == [
        "current-user me",
        "secrets list-scopes --output json",
        "secrets create-scope cryptopulse-scope",
        "secrets put-secret cryptopulse-scope eventhub-conn-string",
        "storage-credentials get cryptopulse-lake",
        "storage-credentials create",
        "external-locations get cryptopulse-lake",
        first[-1],
    ]
    assert first[-1].startswith("external-locations create cryptopulse-lake abfss://lake@")
    assert not any("create" in command for command in second)
    assert sum(line.endswith(f"SharedAccessKeyName=processing;SharedAccessKey={SECRET}") for line in lines) == 2
    resource = (complete.home / "there" / "storage-credentials").read_text()
    assert resource.rstrip().endswith("/providers/Microsoft.Databricks/workspaces/cryptopulse")


def test_a_workspace_that_is_minutes_old_is_waited_for(complete: FakeAzure) -> None:
    said = databricks(complete, refused=2)
    done = complete.run(*UP)
    assert done.returncode == 0, done.stderr
    assert "put-secret" in said.read_text()
    assert done.stderr.count("waiting ") == 2


def test_a_workspace_that_never_accepts_the_sign_in_stops_the_run_with_what_helps(complete: FakeAzure) -> None:
    databricks(complete, refused=100)
    done = complete.run(*UP)
    assert done.returncode == 1
    assert "Open it once in a browser" in done.stderr
    assert "unknown user" in done.stderr


@pytest.mark.parametrize(
    ("command", "error", "helps"),
    [
        ("acr build", "ERROR: (TasksOperationsNotAllowed) ACR Tasks requests are not permitted.", "docker push"),
        ("acr build", "ERROR: toomanyrequests: You have reached your pull rate limit.", "az acr import"),
        ("acr import", "ERROR: toomanyrequests: You have reached your pull rate limit.", "--username NAME"),
    ],
)
def test_a_refused_image_is_explained_with_a_way_round(azure: FakeAzure, command: str, error: str, helps: str) -> None:
    azure.change(fail_on=[command], fail_with=error)
    done = azure.run("up")
    assert done.returncode == 1
    assert error in done.stderr
    assert helps in done.stderr.splitlines()[-1]


def test_the_base_image_is_imported_by_its_digest_under_the_tag_that_the_build_names(azure: FakeAzure) -> None:
    assert azure.run("up").returncode == 0
    (imported,) = [argv for argv in azure.changes() if argv[:2] == ["acr", "import"]]
    (built,) = [argv for argv in azure.changes() if argv[:2] == ["acr", "build"]]
    tag = imported[imported.index("--image") + 1]
    assert imported[imported.index("--source") + 1] == f"docker.io/library/python@sha256:{64 * '6'}"
    assert tag == "python:3.11.14-slim-bookworm"
    assert built[built.index("--build-arg") + 1].endswith(f".azurecr.io/{tag}")


def test_an_image_that_is_there_already_needs_no_build_and_no_right_of_the_registry(azure: FakeAzure) -> None:
    done = azure.run("up", "--image", "ghcr.io/me/cryptopulse:1.2.3", "--restart", "OnFailure")
    assert done.returncode == 0, done.stderr
    assert not [argv for argv in azure.changes() if argv[:2] in (["acr", "build"], ["acr", "import"])]
    (piped,) = [call["piped"] for call in azure.calls() if call["command"] == "container create"]
    properties = yaml.safe_load(piped)["properties"]
    assert properties["containers"][0]["properties"]["image"] == "ghcr.io/me/cryptopulse:1.2.3"
    assert properties["imageRegistryCredentials"] == []
    assert properties["restartPolicy"] == "OnFailure"


def test_a_second_run_creates_nothing(complete: FakeAzure) -> None:
    before = complete.state
    done = complete.run(*UP)
    assert done.returncode == 0, done.stderr
    assert complete.changes() == []
    assert complete.state == before
    assert done.stderr.count("exists   ") == 15


STEPS = [
    "group create",
    "provider register",
    "eventhubs namespace create",
    "eventhubs eventhub create",
    "eventhubs eventhub authorization-rule create",
    "identity create",
    "acr create",
    "acr build",
    "role assignment create",
    "eventhubs eventhub authorization-rule keys list",
    "container create",
    "storage account create",
    "storage container-rm create",
    "resource create",
]


def test_a_run_after_a_failure_in_the_middle_does_the_rest_and_nothing_twice(
    azure: FakeAzure, first_run: FakeAzure
) -> None:
    """One cloud, whose next run fails at another step than the one before, until nothing fails any more."""
    done: list[list[str]] = []
    left = list(STEPS)
    while left:
        azure.change(fail_on=left)
        failed = azure.run(*UP)
        assert failed.returncode == 1
        assert "failed in the middle" in failed.stderr
        at = azure.calls()[-1]["command"]
        left.remove(at)
        done += [argv for argv in azure.changes() if not " ".join(argv).startswith(at)]
    azure.change(fail_on=[])
    assert azure.run(*UP).returncode == 0
    done += azure.changes()
    assert sorted(done) == sorted(first_run.changes())
    assert azure.state["objects"].keys() == first_run.state["objects"].keys()


def test_an_answer_that_is_not_that_something_is_missing_stops_the_run(complete: FakeAzure) -> None:
    complete.change(forbidden="eventhubs namespace show")
    done = complete.run(*UP)
    assert done.returncode == 1
    assert "AuthorizationFailed" in done.stderr
    assert complete.changes() == []


def test_other_products_replace_the_container_and_nothing_else(complete: FakeAzure) -> None:
    assert complete.run("up", "--products", "ETH-USD").returncode == 0
    assert [argv[:2] for argv in complete.changes()] == [["container", "create"]]


def test_names_are_the_same_each_time_and_others_in_another_subscription(azure: FakeAzure) -> None:
    names = {azure.run("names").stdout for _ in range(2)}
    names.add(azure.run("plan", "--subscription", SUBSCRIPTION).stdout[-len(next(iter(names))) :])
    assert len(names) == 1
    account = re.compile(r"lake@(\w+)\.dfs")
    here = account.findall(names.pop())
    there = account.findall(azure.run("plan", "--subscription", SUBSCRIPTION.replace("1", "9")).stdout)
    assert here != there
    assert re.fullmatch("[a-z0-9]{3,24}", here[0])


def test_down_deletes_the_group_that_up_made_and_only_with_consent(complete: FakeAzure) -> None:
    refused = complete.run("down")
    assert refused.returncode == 1
    assert "--yes" in refused.stderr
    assert complete.state["objects"]
    done = complete.run("down", "--yes")
    assert done.returncode == 0, done.stderr
    assert complete.state["objects"] == {}
    assert [argv[:2] for argv in complete.changes()] == [["group", "delete"]]
    again = complete.run("down", "--yes")
    assert again.returncode == 0
    assert "nothing to delete" in again.stderr
    assert complete.changes() == []


@pytest.mark.parametrize("tags", [None, {"managed_by": "somebody"}])
def test_a_group_of_somebody_else_is_neither_used_nor_deleted(azure: FakeAzure, tags: dict[str, str] | None) -> None:
    azure.change(objects={"group cryptopulse": {"tags": tags}}, providers=["Microsoft.Storage"])
    for command in (["up"], ["down", "--yes"]):
        done = azure.run(*command)
        assert done.returncode == 1
        assert "was not made by this script" in done.stderr
        assert [argv[0] for argv in azure.changes() if argv[0] != "provider"] == []


def test_up_says_what_is_wrong_when_az_is_missing_or_not_signed_in(azure: FakeAzure) -> None:
    azure.change(signed_in=False)
    done = azure.run("up")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "run az login" in done.stderr
    azure.uninstall("az")
    done = azure.run("up")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "az, is not installed" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["start"],
        ["up", "--region", "x"],
        ["up", "--prefix"],
        ["up", "--prefix", "Crypto-Pulse"],
        ["up", "--prefix", "a"],
        ["up", "--products", "BTC"],
        ["up", "--products", "BTC-USD' }"],
        ["up", "--location", "East US"],
        ["up", "--restart", "Sometimes"],
        ["up", "--image", "my image"],
    ],
)
def test_a_mistake_in_the_command_line_is_one_line_and_changes_nothing(azure: FakeAzure, arguments: list[str]) -> None:
    done = azure.run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("azure.sh: ")
    assert done.stderr.count("\n") == 1
    assert azure.calls() == []


def test_the_image_is_built_again_only_when_its_source_has_changed(complete: FakeAzure) -> None:
    source = complete.script.parents[2] / "src"
    (source / "cache.pyc").write_bytes(b"not source")
    assert complete.run(*UP).returncode == 0
    assert complete.changes() == []
    (source / "new.py").write_text("")
    assert complete.run(*UP).returncode == 0
    assert [argv[:2] for argv in complete.changes()] == [["acr", "build"], ["container", "create"]]


def test_the_cost_note_says_of_when_its_figures_are(azure: FakeAzure) -> None:
    done = azure.run("cost")
    assert done.returncode == 0
    assert "as of 20" in done.stdout
    assert azure.calls() == []


def test_the_guide_names_only_commands_and_options_that_exist(azure: FakeAzure) -> None:
    text = (FOLDER / "README.md").read_text()
    usage = azure.run("--help").stdout
    used = set(re.findall(r"azure\.sh (\w+)", text)) | set(re.findall(r"azure\.sh [^`\n]*?(--[a-z]+)", text))
    assert len(used) >= 4
    for word in used:
        assert re.search(rf"^ +{word}\b", usage, re.MULTILINE) or word == "--help", word
