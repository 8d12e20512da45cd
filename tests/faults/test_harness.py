"""What the fault tests promise of themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support_processes import wait_until

_TESTS = """
import sys, time
from pathlib import Path
from support_processes import Exchange, Processes
processes = Processes(Path(sys.argv[1]))
exchange = Exchange(processes, products=2, rate=10)
run = processes.start("run", "--lake", "lake", **exchange.feed())
while not (run.child("produce") and run.child("process")):
    time.sleep(0.1)
print("running", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is a signal on Linux only")
def test_tests_that_are_killed_leave_no_process(tmp_path: Path) -> None:
    path = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-c", _TESTS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}) as tests:
        assert tests.stdout is not None
        assert tests.stdout.readline() == b"running\n"
        started = psutil.Process(tests.pid).children(recursive=True)
        assert len(started) >= 4
        tests.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(process.is_running() for process in started), "all have ended")
