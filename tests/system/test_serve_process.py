"""`cryptopulse serve` as a process: where it listens, what it says, how it ends, and its place in a deployment."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from cryptopulse.lake.tables import BARS
from cryptopulse.settings import load_settings
from cryptopulse.status import DASHBOARD, StatusFile, read_status
from support import START, Lake, Trade
from support_processes import Command, Exchange, Processes, wait_until


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody else listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def url_of(folder: Path) -> str:
    """Where the dashboard of a lake says that it is."""
    report = wait_until(lambda: read_status(folder / "_cryptopulse", DASHBOARD).report.get("url"), "it listens")
    return str(report)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def announced(command: Command) -> str:
    assert command.popen.stdout is not None
    return command.popen.stdout.readline().removeprefix("Dashboard: ").strip()


def test_it_says_where_it_listens_and_ends_on_request_with_a_viewer_connected(processes: Processes) -> None:
    served = processes.start("serve", "--lake", "lake", "--port", "0")
    url = announced(served)
    assert answers(url)
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))):
        assert served.stop(within_s=5) == 0
    assert read_status(processes.folder / "lake" / "_cryptopulse", DASHBOARD).state == "stopped"


def test_a_port_that_is_taken_is_one_line_that_says_so(processes: Processes, taken: int) -> None:
    refused = processes.call("serve", "--lake", "lake", "--port", str(taken))
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith(f"cryptopulse: Port {taken} of 127.0.0.1 is in use")


def test_a_host_that_is_not_this_machines_is_one_line_that_says_so(processes: Processes) -> None:
    environment = {"SERVE__TOKEN": "0123456789abcdef"}
    refused = processes.call("serve", "--lake", "lake", "--host", "192.0.2.1", "--port", "0", **environment)
    assert refused.returncode == 2
    assert "192.0.2.1" in refused.stderr.splitlines()[-1]


def test_other_machines_are_let_in_only_with_a_token(processes: Processes) -> None:
    refused = processes.call("serve", "--lake", "lake", "--host", "0.0.0.0")
    assert refused.returncode == 2
    assert "CRYPTOPULSE_SERVE__TOKEN" in refused.stderr
    assert load_settings(serve={"host": "0.0.0.0", "token": "0123456789abcdef"}).serve.token is not None


def test_run_shows_itself_keeps_its_port_over_a_kill_and_records_though_its_port_is_taken(
    processes: Processes, taken: int
) -> None:
    exchange = Exchange(processes, "--start", "all_subscribed", products=2, rate=50)
    lake = processes.folder / "lake"
    settings = exchange.feed() | {"SERVE__ENABLED": "true", "SERVE__PORT": str(taken)}
    run = processes.start("run", "--lake", str(lake), **settings)
    url = url_of(lake)
    wait_until(lambda: answers(url), "it answers")
    assert not url.endswith(f":{taken}")
    assert run.events("port_taken")

    process = run.child("serve")
    assert process is not None
    killed = read_status(lake / "_cryptopulse", DASHBOARD)
    assert killed.pid == process

    os.kill(process, signal.SIGKILL)
    wait_until(lambda: read_status(lake / "_cryptopulse", DASHBOARD).restarts == 1, "it is started again")
    wait_until(lambda: answers(url), "it answers where it was")
    assert processes.call("status", "--lake", str(lake)).returncode == 0
    assert run.stop() == 0
    stopped = [event["name"] for event in run.events("process_stopped")]
    assert stopped == ["producer", "processing", "dashboard"]
    assert "leaked" not in run.said


def test_run_leaves_showing_to_a_dashboard_that_is_there_already(processes: Processes) -> None:
    exchange = Exchange(processes, "--start", "all_subscribed", products=2, rate=50)
    lake = processes.folder / "lake"
    served = processes.start("serve", "--lake", str(lake), "--port", "0")
    url = announced(served)
    run = processes.start("run", "--lake", str(lake), **exchange.feed(), SERVE__ENABLED="true")
    wait_until(lambda: run.child("process") and run.child("produce"), "it records")
    assert run.child("serve") is None
    assert run.stop() == 0
    assert answers(url)


def test_an_end_is_obeyed_though_a_storage_never_answers(processes: Processes) -> None:
    lake = Lake(processes.folder / "lake")
    lake.take_in([Trade("BTC-USD", 1, START).match()])
    lake.close()
    (file,) = lake.folder(BARS).rglob("*.parquet")
    file.unlink()
    os.mkfifo(file)  # whoever opens it waits for ever
    served = processes.start("serve", "--lake", str(lake.path), "--port", "0")
    url = announced(served)
    with suppress(httpx.TimeoutException):
        httpx.get(f"{url}/api/bars", timeout=1.0, trust_env=False)
    assert served.stop() == 0


def test_a_lake_that_can_not_be_written_can_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    StatusFile(tmp_path, DASHBOARD).report({})
    assert read_status(tmp_path, DASHBOARD).state == "absent"
