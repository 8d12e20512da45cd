"""The Dockerfile, the compose files and .dockerignore, as data."""

from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "docker"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order: word and the rest, continued lines joined."""
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, its FROM first."""
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def copied() -> list[str]:
    """What is copied from the build context."""
    found = []
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            found += shlex.split(rest)[:-1]
    return found


def exec_form(word: str) -> list[str]:
    """The words of the last ENTRYPOINT, CMD or HEALTHCHECK."""
    text = [rest for name, rest in stages()[-1] if name == word][-1]
    words: list[str] = json.loads(text[text.index("[") :])
    return words


def is_sent(name: str) -> bool:
    """Whether .dockerignore leaves a top-level name in the build context: the last rule that matches decides."""
    sent = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if rule and not rule.startswith("#") and fnmatchcase(name, rule.removeprefix("!")):
            sent = rule.startswith("!")
    return sent


def compose(*names: str) -> dict[str, Any]:
    """Compose files, the later ones on top of the earlier ones."""
    merged: dict[str, Any] = {}
    for name in names:
        merged = _on_top(merged, yaml.safe_load((FOLDER / name).read_text()))
    return merged


def _on_top(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {name: _on_top(below.get(name), value) for name, value in above.items()}
    return above
