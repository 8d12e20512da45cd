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

from cryptopulse.errors import ConfigurationError
from cryptopulse.status import StatusFile, read_status, status_path


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
    assert found.age_s < 5


def test_a_process_that_writes_no_more_is_silent(tmp_path: Path) -> None:
    StatusFile(tmp_path, "producer")
    change(tmp_path, updated_at=(datetime.now(UTC) - timedelta(seconds=30)).isoformat())
    assert read_status(tmp_path, "producer").state == "silent"


def test_a_process_that_is_gone_without_a_word_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", ""]) as popen:
        pid = popen.pid
    StatusFile(tmp_path, "producer")
    change(tmp_path, pid=pid)
    assert read_status(tmp_path, "producer").state == "dead"


def test_another_process_with_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path: Path) -> None:
    StatusFile(tmp_path, "producer")
    change(tmp_path, pid_started_at=time.time() - 5000)
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
    StatusFile(tmp_path, "producer")
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
        StatusFile(tmp_path, "producer")
