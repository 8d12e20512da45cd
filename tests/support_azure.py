"""Runs `deploy/azure/azure.sh` against a stand-in for the Azure CLI (fake_az.py)."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_az

SCRIPT = Path(__file__).parents[1] / "deploy" / "azure" / "azure.sh"
BUILT_FROM = (
    ".dockerignore",
    "LICENSE",
    "README.md",
    "constraints.txt",
    "dashboards/queries.sql",
    "deploy/docker/Dockerfile",
    "src/module.py",
)
CHANGES = ("create", "register", "build", "import", "delete", "put-secret", "create-scope")
"""Last words of the commands that change something."""


def small_source(root: Path) -> Path:
    """A copy of the scripts in a tree of next to nothing: the image's name is a hash of the tree. The copied script."""
    for name in BUILT_FROM:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name}\n")
    (root / "deploy/docker/Dockerfile").write_text(f"ARG BASE=python:3.11.14-slim-bookworm@sha256:{64 * '6'}\n")
    (root / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    shutil.copytree(SCRIPT.parent, root / "deploy" / "azure")
    return root / "deploy" / "azure" / SCRIPT.name


class FakeAzure:
    """A cloud in a folder, and the scripts run on it."""

    def __init__(self, home: Path) -> None:
        """Nothing is created yet, and the user is signed in."""
        self.home = home
        self._programs = home / "bin"
        self._programs.mkdir(parents=True)
        self.script = small_source(home / "source")
        here = f"FAKE_AZ_HOME={shlex.quote(str(home))} exec {shlex.quote(sys.executable)} -I -S"
        self.install("az", f'{here} {shlex.quote(fake_az.__file__)} "$@"')
        self.change(**fake_az.EMPTY)

    def install(self, name: str, line: str) -> None:
        """Puts a program on the path of the scripts: one line of shell."""
        program = self._programs / name
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)

    def uninstall(self, name: str) -> None:
        """Takes it away again."""
        (self._programs / name).unlink()

    def copy(self, home: Path) -> FakeAzure:
        """Another one, in another folder, with the same things in it."""
        other = FakeAzure(home)
        other.change(**self.state)
        return other

    @property
    def state(self) -> dict[str, Any]:
        """What is there."""
        state: dict[str, Any] = json.loads((self.home / "state.json").read_text())
        return state

    def change(self, **values: Any) -> None:
        """Changes what is there, or how the stand-in behaves."""
        state = self.state if (self.home / "state.json").exists() else {}
        (self.home / "state.json").write_text(json.dumps({**state, **values}))

    def run(self, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        """Runs the script. `calls` and `changes` are then those of this run."""
        (self.home / "calls.jsonl").write_text("")
        path = f"{self._programs}{os.pathsep}/usr/bin{os.pathsep}/bin"
        return subprocess.run(
            ["bash", str(self.script), *arguments],
            env={"PATH": path, "HOME": str(self.home)},
            input=typed,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def calls(self) -> list[dict[str, Any]]:
        """Every call of `az` in the last run: argv, command, piped."""
        return [json.loads(line) for line in (self.home / "calls.jsonl").read_text().splitlines()]

    def changes(self) -> list[list[str]]:
        """Arguments of the calls that change something."""
        return [call["argv"] for call in self.calls() if call["command"].split()[-1] in CHANGES]


def planned(text: str) -> list[list[str]]:
    """Arguments of every `az` command that a plan shows."""
    shown = [line.split("$ ", 1)[1] for line in text.splitlines() if line.startswith("  $ az ")]
    unquoted = subprocess.run(
        ["bash", "-c", "\n".join(f"printf '%s\\0' {line}; printf '\\1'" for line in shown)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [part.split("\0")[1:-1] for part in unquoted.stdout.split("\1")[:-1]]
