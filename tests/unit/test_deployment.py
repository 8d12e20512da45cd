"""What processes are started with, and that the end a signal asks for comes whatever the main thread is doing."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cryptopulse import deployment
from cryptopulse.status import ALL_PROCESSES, DASHBOARD
from cryptopulse.supervisor import ProcessSpec

_WAITING = """
import os, signal, threading
from cryptopulse.deployment import on_signals

stop = threading.Event()

def kill():
    os.kill(os.getpid(), signal.{name})

with on_signals(stop.set):
    threading.Timer(0.05, kill).start()
    while not stop.wait(0):  # nearly always holds the lock of the event
        pass
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_comes_while_its_event_is_looked_at_is_not_waited_for_for_ever(name: str) -> None:
    several = [subprocess.Popen([sys.executable, "-c", _WAITING.format(name=name)]) for _ in range(4)]
    try:
        assert [one.wait(timeout=60) for one in several] == [0] * 4
    finally:
        for one in several:
            one.send_signal(signal.SIGKILL)
            one.wait()


@pytest.mark.parametrize(("own", "expected"), [(None, "2"), ("7", "7")])
def test_processes_are_frugal_with_memory_unless_the_user_wants_it_otherwise(
    own: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MALLOC_ARENA_MAX", "_RJEM_MALLOC_CONF", "DUCKDB_JE_MALLOC_CONF", "TOKIO_WORKER_THREADS"):
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv("MALLOC_ARENA_MAX", own)
    specs: list[ProcessSpec] = []
    monkeypatch.setattr(deployment, "Supervisor", specs.extend)
    deployment.Deployment(tmp_path, {}, processes=ALL_PROCESSES).supervisor(logs_to_files=False)
    for spec in specs:
        wanted = {**deployment.LOW_MEMORY, "MALLOC_ARENA_MAX": expected}
        if spec.name == DASHBOARD:  # answers many questions at once
            wanted = {"MALLOC_ARENA_MAX": expected}
        assert {name: value for name, value in spec.environment.items() if name in deployment.LOW_MEMORY} == wanted


def test_a_container_is_as_frugal() -> None:
    image = (Path(__file__).parents[2] / "deploy" / "docker" / "Dockerfile").read_text()
    assert all(f"    {name}={value}" in image for name, value in deployment.LOW_MEMORY.items())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere they may come without jemalloc")
def test_the_allocators_of_delta_rs_and_duckdb_read_what_they_are_given() -> None:
    """They complain about an option that they don't know."""
    code = "import duckdb, deltalake; duckdb.sql('SELECT 1').fetchall(); deltalake.QueryBuilder()"

    def told(setting: str) -> str:
        own = dict.fromkeys(("_RJEM_MALLOC_CONF", "DUCKDB_JE_MALLOC_CONF"), setting)
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True, check=True).stderr

    assert told("no_such_option:1").count("no_such_option") == 2
    assert told(deployment.LOW_MEMORY["_RJEM_MALLOC_CONF"]) == ""
