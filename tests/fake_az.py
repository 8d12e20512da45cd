"""Stands in for the Azure CLI: keeps what was created in a file, writes down every call, fails when told to.

Run as `az`, with a folder of its own (FAKE_AZ_HOME): `state.json` is the cloud, `calls.jsonl` are the calls. It knows
only what `deploy/azure` asks for, and answers as az does: exit code 3 for an object that is not there.
"""

from __future__ import annotations

import json
import os
import re
import sys

TYPE_CHECKING = False  # a start of it should cost little: a test starts it 50 times
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

SUBSCRIPTION = "11111111-2222-3333-4444-555555555555"
SECRET = "c2VjcmV0+of/the+test=="
EMPTY = {"signed_in": True, "providers": [], "objects": {}, "tags": [], "fail_on": [], "forbidden": None}


def main(argv: list[str]) -> None:
    words, options = split(argv)
    command = " ".join(words)
    home = os.environ["FAKE_AZ_HOME"]
    with open(f"{home}/state.json") as file:  # noqa: PTH123 -- see TYPE_CHECKING
        state = json.load(file)
    piped = sys.stdin.read() if options.get("--file") == ["/dev/stdin"] else None
    with open(f"{home}/calls.jsonl", "a") as calls:  # noqa: PTH123
        calls.write(json.dumps({"argv": argv, "command": command, "piped": piped}) + "\n")
    if command in state["fail_on"]:
        end(1, state.get("fail_with") or f"ERROR: (InternalServerError) {command} failed in the middle")
    if state["forbidden"] == command:
        end(1, "ERROR: (AuthorizationFailed) The client does not have authorization to perform action")
    if not state["signed_in"]:
        end(1, "ERROR: Please run 'az login' to setup account.")
    answer = carry_out(command, words, options, state, piped)
    with open(f"{home}/state.json", "w") as file:  # noqa: PTH123
        json.dump(state, file)
    if answer is not None and options.get("--output") == ["tsv"]:
        sys.stdout.write(f"{answer}\n")


def end(code: int, words: str) -> NoReturn:
    sys.stderr.write(words + "\n")
    sys.exit(code)


def split(argv: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The command's words, and the options with their values."""
    first = next((place for place, word in enumerate(argv) if word.startswith("-")), len(argv))
    options: dict[str, list[str]] = {}
    for word in argv[first:]:
        if word.startswith("--"):
            options[word] = []
        else:
            options[list(options)[-1]].append(word)
    return argv[:first], options


def carry_out(command: str, words: list[str], options: dict[str, list[str]], state: Any, piped: str | None) -> Any:
    """Does it and gives what `--query` asks for."""
    if command in SPECIAL:
        return SPECIAL[command](options, state)
    return create_or_show(words, options, state, piped)


def delete_group(_options: Any, state: Any) -> None:
    state["objects"].clear()
    state["tags"].clear()


def provider_state(options: Any, state: Any) -> str:
    return "Registered" if options["--namespace"][0] in state["providers"] else "NotRegistered"


def add_image(options: Any, state: Any) -> None:
    state["tags"].append(options["--image"][0])


def known_repository(options: Any, state: Any) -> str | None:
    asked = re.findall("'(.*)'", options["--query"][0])[0]
    return asked if any(tag.startswith(f"{asked}:") for tag in state["tags"]) else None


def known_tag(options: Any, state: Any) -> str | None:
    asked = re.findall("'(.*)'", options["--query"][0])[0]
    return asked if f"{options['--repository'][0]}:{asked}" in state["tags"] else None


def connection_string(options: Any, _state: Any) -> str:
    rule = options["--name"][0]
    return f"Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName={rule};SharedAccessKey={SECRET}"


def assignment(principal: str, options: Any) -> str:
    return f"role {principal} {options['--role'][0]} {options['--scope'][0]}"


def known_assignment(options: Any, state: Any) -> str | None:
    principal = re.findall("'(.*)'", options["--query"][0])[0]
    return "id" if assignment(principal, options) in state["objects"] else None


def assign(options: Any, state: Any) -> None:
    state["objects"][assignment(options["--assignee-object-id"][0], options)] = {}


SPECIAL: dict[str, Callable[[Any, Any], Any]] = {
    "account show": lambda _options, _state: SUBSCRIPTION,
    "provider show": provider_state,
    "provider register": lambda options, state: state["providers"].append(options["--namespace"][0]),
    "group delete": delete_group,
    "acr build": add_image,
    "acr import": add_image,
    "acr repository list": known_repository,
    "acr repository show-tags": known_tag,
    "eventhubs eventhub authorization-rule keys list": connection_string,
    "role assignment list": known_assignment,
    "role assignment create": assign,
}


def create_or_show(words: list[str], options: dict[str, list[str]], state: Any, piped: str | None) -> Any:
    objects = state["objects"]
    piped_name = re.findall("^name: (.*)$", piped or "", re.MULTILINE)
    name = "".join(piped_name) or "".join(options.get("--name") or options["--ids"]).split("/")[-1]
    key = f"{' '.join(words[:-1])} {name}"
    if words[-1] == "create":
        if words != ["group", "create"] and "group " + options["--resource-group"][0] not in objects:
            end(3, "ERROR: (ResourceGroupNotFound) Resource group could not be found.")
        tags = [tag.split("=") for tag in options.get("--tags", [])]
        tags += [["definition", value] for value in re.findall("definition: '(.*)'}", piped or "")]
        objects[key] = {"tags": dict(tags)}
        return None
    assert words[-1] == "show", words
    if key not in objects:
        end(3, f"ERROR: (ResourceNotFound) The resource '{name}' was not found.")
    return queried(options.get("--query", ["id"])[0], name, objects[key])


def queried(query: str, name: str, found: Any) -> Any:
    tags = found["tags"] or {}
    answers = {
        "id": f"id-of-{name}",
        "principalId": f"principal-of-{name}",
        "identity.principalId": f"principal-of-{name}",
        "properties.workspaceUrl": "adb-1.2.azuredatabricks.net",
        "tags.definition": tags.get("definition"),
        "tags.managed_by || 'nobody'": tags.get("managed_by", "nobody"),
    }
    return answers[query]


if __name__ == "__main__":
    main(sys.argv[1:])
