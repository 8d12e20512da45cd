"""What processes say of themselves, and what a reader makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cryptopulse import cli
from cryptopulse.errors import ConfigurationError
from cryptopulse.settings import load_settings
from cryptopulse.status import StatusFile, read_status, shown_processes, status_path


def change(state_dir: Path, **changes: Any) -> None:
    path = status_path(state_dir, "producer")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_process_that_writes_is_running_and_shows_its_figures(tmp_path: Path) -> None:
    status = StatusFile(tmp_path, "producer", restarts=2)
    status.report({"messages_total": 5})
    found = read_status(tmp_path, "producer")
    assert (found.state, found.restarts, found.report) == ("running", 2, {"messages_total": 5})
    assert found.healthy
    assert found.age_s is not None
    assert found.age_s < 300


def test_a_process_that_writes_no_more_is_silent(tmp_path: Path) -> None:
    StatusFile(tmp_path, "producer").open()
    change(tmp_path, updated_boot_s=time.clock_gettime(time.CLOCK_BOOTTIME) - 30)
    found = read_status(tmp_path, "producer")
    assert (found.state, round(found.age_s or 0)) == ("silent", 30)


@pytest.mark.parametrize("step_s", [-86_400, -60, 60, 86_400])
def test_a_process_lives_whatever_the_clock_is_set_to(tmp_path: Path, step_s: float) -> None:
    StatusFile(tmp_path, "producer").open()
    before = (datetime.now(UTC) - timedelta(seconds=step_s)).isoformat()  # what it wrote, seen by the clock of now
    change(tmp_path, updated_at=before, started_at=before)
    found = read_status(tmp_path, "producer")
    assert (found.state, found.healthy) == ("running", True)
    assert found.age_s is not None
    assert found.age_s < 5


def test_of_another_machine_the_time_of_day_is_all_that_is_known(tmp_path: Path) -> None:
    StatusFile(tmp_path, "producer").open()
    change(tmp_path, host="elsewhere", boot="another", pid=1_000_000_000)
    assert read_status(tmp_path, "producer").state == "running"
    change(tmp_path, updated_at=(datetime.now(UTC) - timedelta(seconds=30)).isoformat())
    assert read_status(tmp_path, "producer").state == "dead"


@pytest.mark.parametrize(
    ("connections", "received_s", "started_s", "well"),
    [(1, 500.0, 500, True), (0, 5.0, 500, True), (0, 31.0, 500, False), (0, None, 5, True), (0, None, 60, False)],
)
def test_a_producer_that_is_connected_to_nothing_for_long_is_not_well(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    connections: int,
    received_s: float | None,
    started_s: float,
    well: bool,
) -> None:
    state_dir = tmp_path / "_cryptopulse"
    status = StatusFile(state_dir, "producer")
    status.report({"connections": connections, "last_message_age_s": received_s})
    change(state_dir, started_at=(datetime.now(UTC) - timedelta(seconds=started_s)).isoformat())
    assert cli.run(["status", "--lake", str(tmp_path), "--process", "producer"]) == (0 if well else 3)
    assert ("nothing received for" in capsys.readouterr().out) is not well


def test_jobs_of_single_steps_are_shown_in_the_place_of_the_processing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dir = tmp_path / "_cryptopulse"
    settings = load_settings(lake=tmp_path, serve={"enabled": False})

    def write(name: str) -> StatusFile:
        status = StatusFile(state_dir, name)
        status.open()
        return status

    assert shown_processes(settings) == ("producer", "processing")
    write("producer")
    jobs = [write(f"processing-{steps}") for steps in ("bronze-silver", "alerts")]
    shown = shown_processes(settings)
    assert shown == ("producer", "processing-alerts", "processing-bronze-silver", "processing-prices")
    command = ["status", "--lake", str(tmp_path)]
    assert cli.run(command) == 3  # nobody makes prices
    assert "processing-prices" in capsys.readouterr().out
    jobs.append(write("processing-prices"))
    assert cli.run(command) == 0
    assert cli.run([*command, "--process", "processing-alerts"]) == 0

    jobs[0].close()
    assert cli.run(command) == 3  # it stopped, and nobody else does its steps
    write("processing-bronze")
    write("processing-silver")
    assert "processing-bronze-silver" not in shown_processes(settings)
    assert cli.run(command) == 0
    write("processing")  # all in one again
    for job in jobs:
        job.close()
    for steps in ("bronze", "silver"):
        status_path(state_dir, f"processing-{steps}").unlink()
    assert shown_processes(settings) == ("producer", "processing")


def test_a_process_that_is_gone_without_a_word_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as popen:
        pid = popen.pid
    StatusFile(tmp_path, "producer").open()
    change(tmp_path, pid=pid)
    assert read_status(tmp_path, "producer").state == "dead"


def test_another_process_with_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    StatusFile(tmp_path, "producer").open()
    change(tmp_path, pid_start=1.0)
    assert read_status(tmp_path, "producer").state == "dead"


def test_a_process_that_ended_says_how(tmp_path: Path) -> None:
    status = StatusFile(tmp_path, "producer")
    status.report({"messages_total": 5})
    status.close()
    assert read_status(tmp_path, "producer").state == "stopped"
    assert read_status(tmp_path, "producer").report == {"messages_total": 5}
    status.close(error="The log is full.")
    found = read_status(tmp_path, "producer")
    assert (found.state, found.error) == ("failed", "The log is full.")


def test_a_process_whose_parent_is_gone_is_known_as_an_orphan(tmp_path: Path) -> None:
    StatusFile(tmp_path, "producer").open()
    assert not read_status(tmp_path, "producer").orphaned
    change(tmp_path, parent_pid=1_000_000_000)
    assert read_status(tmp_path, "producer").orphaned


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"state": "running"}', '"text"'])
def test_a_file_that_is_missing_or_makes_no_sense_counts_as_absent(tmp_path: Path, content: str | None) -> None:
    path = status_path(tmp_path, "producer")
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    assert read_status(tmp_path, "producer").state == "absent"


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    status = StatusFile(tmp_path, "producer")
    script = (
        "import sys; from pathlib import Path; from cryptopulse.status import StatusFile\n"
        "status = StatusFile(Path(sys.argv[1]), 'producer')\n"
        "status.open()\n"
        "print(flush=True)\n"
        "while True: status.report({'filling': 'x' * 50_000})"
    )
    status.close()
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as popen:
        assert popen.stdout is not None
        popen.stdout.readline()
        states = {read_status(tmp_path, "producer").state for _ in range(300)}
        popen.kill()
    assert states == {"running"}


def test_a_folder_that_cant_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("a file in the way")
    with pytest.raises(ConfigurationError, match="Can't write to"):
        StatusFile(tmp_path, "producer").open()


def test_a_lake_that_was_moved_away_is_not_made_again_by_a_report(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "lake", "producer")
    status.open()
    (tmp_path / "lake").rename(tmp_path / "elsewhere")
    status.report({"messages_total": 5})
    status.close()
    assert not (tmp_path / "lake").exists()
