"""The supervisor, with real processes: small Python scripts that behave well or badly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cryptopulse.errors import ConfigurationError, ProcessFailed
from cryptopulse.supervisor import ProcessSpec, ProcessState, RestartPolicy, Supervisor, last_words

OBEDIENT = """
import signal, sys, time
def leave(*_):
    with open("order.txt", "a") as file:
        file.write(sys.argv[1] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
open("ready-" + sys.argv[1] + "-" + sys.argv[2], "w").close()
while True:
    time.sleep(0.01)
"""
DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("ready-deaf", "w").close()
time.sleep(60)
"""
QUICK = RestartPolicy(deaths_max=3, pause_first_s=0.02, pause_max_s=0.05, hurried_timeout_s=0.2)

Make = Callable[..., ProcessSpec]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(name: str, script: str, stop_timeout_s: float = 5.0, *, logged: bool = False) -> ProcessSpec:
        return ProcessSpec(
            name=name,
            command=lambda restarts: [sys.executable, "-S", "-c", script, name, str(restarts)],
            stop_timeout_s=stop_timeout_s,
            log_file=tmp_path / f"{name}.log" if logged else None,
            folder=tmp_path,
        )

    return make


@pytest.fixture
def watch() -> Iterator[Callable[..., Supervisor]]:
    made: list[Supervisor] = []

    def watch(*specs: ProcessSpec) -> Supervisor:
        made.append(Supervisor(specs, QUICK))
        return made[-1]

    yield watch
    for supervisor in made:
        supervisor.kill()


def step_until(supervisor: Supervisor, condition: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, supervisor.states()
        supervisor.step()
        time.sleep(0.005)


def test_a_process_that_dies_is_started_again_and_told_how_often(
    make: Make, watch: Callable[..., Supervisor], tmp_path: Path
) -> None:
    supervisor = watch(make("worker", OBEDIENT))
    step_until(supervisor, (tmp_path / "ready-worker-0").exists)
    first = supervisor.pids()["worker"]
    os.kill(first, signal.SIGKILL)
    step_until(supervisor, (tmp_path / "ready-worker-1").exists)
    assert supervisor.pids()["worker"] != first


def test_a_process_that_dies_again_and_again_is_given_up_loudly(make: Make, watch: Callable[..., Supervisor]) -> None:
    supervisor = watch(make("worker", "raise SystemExit(7)"))
    step_until(supervisor, lambda: supervisor.done)
    with pytest.raises(ProcessFailed, match="worker ended 3 times in a row with exit code 7") as failure:
        supervisor.check()
    assert failure.value.exit_code == 6


def test_a_full_disk_is_waited_for_however_often_it_ends_a_process(
    make: Make, watch: Callable[..., Supervisor], tmp_path: Path
) -> None:
    starts = "import os, sys\nif not os.path.exists('room'): open('full-' + sys.argv[2], 'w').close(); sys.exit(3)"
    supervisor = watch(make("worker", starts + OBEDIENT))
    step_until(supervisor, (tmp_path / f"full-{3 * QUICK.deaths_max}").exists)
    (tmp_path / "room").touch()
    step_until(supervisor, lambda: any(tmp_path.glob("ready-worker-*")))
    supervisor.check()


def test_an_error_that_stays_is_not_tried_again_and_its_words_and_exit_code_are_passed_on(
    make: Make, watch: Callable[..., Supervisor]
) -> None:
    script = "import sys; sys.stderr.write('cryptopulse: The lake is busy.\\n'); sys.exit(5)"
    supervisor = watch(make("processing", script, logged=True))
    step_until(supervisor, lambda: supervisor.done)
    with pytest.raises(ProcessFailed, match="processing ended with exit code 5: The lake is busy") as failure:
        supervisor.check()
    assert failure.value.exit_code == 5


def test_one_restart_limit_reached_ends_the_others_in_order(
    make: Make, watch: Callable[..., Supervisor], tmp_path: Path
) -> None:
    fails_later = "import os, sys, time\nwhile not os.path.exists('ready-worker-0'): time.sleep(0.01)\nsys.exit(2)"
    supervisor = watch(make("worker", OBEDIENT), make("broken", fails_later))
    step_until(supervisor, lambda: supervisor.done)
    assert (tmp_path / "order.txt").read_text() == "worker\n"
    assert supervisor.states() == {"worker": ProcessState.STOPPED, "broken": ProcessState.FAILED}


def test_the_end_comes_in_the_order_of_the_list(make: Make, watch: Callable[..., Supervisor], tmp_path: Path) -> None:
    slow = OBEDIENT.replace("    sys.exit(0)", "    time.sleep(0.2); sys.exit(0)")
    supervisor = watch(make("producer", slow), make("processing", OBEDIENT))
    step_until(supervisor, lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    supervisor.stop()
    supervisor.step()
    assert supervisor.states() == {"producer": ProcessState.STOPPING, "processing": ProcessState.RUNNING}
    step_until(supervisor, lambda: supervisor.done)
    assert (tmp_path / "order.txt").read_text() == "producer\nprocessing\n"
    supervisor.check()


def test_an_error_at_the_end_is_passed_on(make: Make, watch: Callable[..., Supervisor], tmp_path: Path) -> None:
    fails = OBEDIENT.replace(
        "    sys.exit(0)", "    sys.stderr.write('cryptopulse: The disk is full.\\n'); sys.exit(3)"
    )
    supervisor = watch(make("processing", fails, logged=True))
    step_until(supervisor, lambda: bool(list(tmp_path.glob("ready-*"))))
    supervisor.stop()
    step_until(supervisor, lambda: supervisor.done)
    with pytest.raises(ProcessFailed, match="processing ended with exit code 3: The disk is full"):
        supervisor.check()


def test_a_restart_for_which_the_system_has_no_room_is_tried_again(
    make: Make, watch: Callable[..., Supervisor], tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.symlink_to(sys.executable)
    dies = "import os, time; os.path.exists('again') and time.sleep(60); os.remove('program')"
    spec = make("processing", dies)
    spec = replace(spec, command=lambda _restarts: [str(program), "-S", "-c", dies])
    supervisor = watch(spec)
    step_until(supervisor, lambda: not program.exists())
    step_until(supervisor, lambda: supervisor.states() == {"processing": ProcessState.WAITING})
    time.sleep(0.05)  # the pause is over
    supervisor.step()  # but there is nothing to start
    assert supervisor.states() == {"processing": ProcessState.WAITING}
    (tmp_path / "again").touch()
    program.symlink_to(sys.executable)
    step_until(supervisor, lambda: supervisor.states() == {"processing": ProcessState.RUNNING})


def test_a_process_that_does_not_end_in_time_is_killed(
    make: Make, watch: Callable[..., Supervisor], tmp_path: Path
) -> None:
    supervisor = watch(make("deaf", DEAF, stop_timeout_s=0.1))
    step_until(supervisor, (tmp_path / "ready-deaf").exists)
    supervisor.stop()
    step_until(supervisor, lambda: supervisor.done)
    supervisor.check()


def test_asking_twice_shortens_the_time_limit(make: Make, watch: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervisor = watch(make("deaf", DEAF, stop_timeout_s=60))
    step_until(supervisor, (tmp_path / "ready-deaf").exists)
    supervisor.stop()
    supervisor.step()
    supervisor.stop()
    step_until(supervisor, lambda: supervisor.done, within_s=30)


def test_a_process_that_others_do_without_is_started_again_and_again_and_ends_nobody(
    make: Make, watch: Callable[..., Supervisor], tmp_path: Path
) -> None:
    extra = replace(make("extra", "raise SystemExit(1)"), is_essential=False)
    supervisor = watch(make("worker", OBEDIENT), extra)
    step_until(supervisor, (tmp_path / "ready-worker-0").exists)
    starts = set()

    def is_started_often() -> bool:
        starts.add(supervisor.pids().get("extra"))
        return len(starts - {None}) > QUICK.deaths_max

    step_until(supervisor, is_started_often)
    assert supervisor.states()["worker"] is ProcessState.RUNNING
    supervisor.stop()
    step_until(supervisor, lambda: supervisor.done)
    supervisor.check()


def test_a_process_that_others_do_without_ends_all_when_it_refuses_its_very_first_start(
    make: Make, watch: Callable[..., Supervisor]
) -> None:
    extra = replace(make("extra", "raise SystemExit(2)"), is_essential=False)
    supervisor = watch(make("worker", OBEDIENT), extra)
    step_until(supervisor, lambda: supervisor.done)
    with pytest.raises(ProcessFailed, match="The extra ended with exit code 2") as error:
        supervisor.check()
    assert error.value.exit_code == 2


def test_a_process_that_others_do_without_may_be_refused_later(make: Make, watch: Callable[..., Supervisor]) -> None:
    extra = replace(make("extra", "import sys; raise SystemExit(2 if sys.argv[2] != '0' else 1)"), is_essential=False)
    supervisor = watch(make("worker", OBEDIENT), extra)
    pids = set()

    def is_started_thrice() -> bool:
        pids.add(supervisor.pids().get("extra"))
        return len(pids - {None}) >= 3

    step_until(supervisor, is_started_thrice)
    assert supervisor.states()["worker"] is ProcessState.RUNNING


def test_a_process_waiting_for_its_restart_is_not_started_after_the_end_was_asked_for(
    make: Make, watch: Callable[..., Supervisor]
) -> None:
    supervisor = watch(make("worker", "raise SystemExit(1)"))
    step_until(supervisor, lambda: bool(supervisor.pids()))
    step_until(supervisor, lambda: supervisor.states()["worker"] is ProcessState.WAITING)
    supervisor.stop()
    supervisor.step()
    assert supervisor.pids() == {}
    assert supervisor.done
    supervisor.check()  # its death was told; the end was in order


def test_a_program_that_is_not_there_is_the_users_error(watch: Callable[..., Supervisor], tmp_path: Path) -> None:
    supervisor = watch(ProcessSpec("worker", lambda _: [str(tmp_path / "no-such-program")], 1.0))
    with pytest.raises(ConfigurationError, match="Can't start worker"):
        supervisor.step()


def test_processes_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    child = """
import os, pathlib, signal, time
from cryptopulse.supervisor import stop_with_parent
signal.signal(signal.SIGTERM, signal.SIG_IGN)
stop_with_parent(grace_s=0.1)
pathlib.Path("pid.part").write_text(str(os.getpid()))
os.replace("pid.part", "pid")
time.sleep(60)
"""
    parent = f"""
import sys, time
from pathlib import Path
from cryptopulse.supervisor import ProcessSpec, Supervisor
supervisor = Supervisor([ProcessSpec("worker", lambda _: [sys.executable, "-c", {child!r}], 5.0)])
while True:
    supervisor.step()
    time.sleep(0.01)
"""
    with subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, stdout=subprocess.DEVNULL) as popen:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        worker = psutil.Process(int((tmp_path / "pid").read_text()))
        popen.kill()
        worker.wait(timeout=30)  # raises TimeoutExpired when it lives on


def test_last_words_are_the_newest_line_of_the_program_itself(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text('cryptopulse: old\n{"event": "x"}\ncryptopulse: new reason\n{"event": "y"}\n')
    assert last_words(log) == "new reason"
    assert last_words(tmp_path / "none.log") == ""


# Waiting instead of looking


def run_until(supervisor: Supervisor, condition: Callable[[], bool], within_s: float = 60.0) -> None:
    """As a deployment does it: a step only when there is something to do."""
    deadline = time.monotonic() + within_s
    supervisor.step()
    while not condition():
        supervisor.wait(deadline - time.monotonic())
        assert time.monotonic() < deadline, supervisor.states()
        supervisor.step()


def test_a_first_death_is_followed_by_a_start_at_once_and_only_the_next_by_a_pause(make: Make, tmp_path: Path) -> None:
    supervisor = Supervisor([make("worker", OBEDIENT)], RestartPolicy(pause_first_s=60))
    try:
        step_until(supervisor, (tmp_path / "ready-worker-0").exists)
        os.kill(supervisor.pids()["worker"], signal.SIGKILL)
        step_until(supervisor, (tmp_path / "ready-worker-1").exists)
        os.kill(supervisor.pids()["worker"], signal.SIGKILL)
        step_until(supervisor, lambda: supervisor.states() == {"worker": ProcessState.WAITING})
        begun = time.monotonic()
        supervisor.wait(0.1)
        assert time.monotonic() - begun >= 0.1  # the pause is long
    finally:
        supervisor.kill()


def test_a_wait_ends_when_a_process_ends_or_a_pause_is_over(make: Make, watch: Callable[..., Supervisor]) -> None:
    supervisor = watch(make("worker", "raise SystemExit(7)"))
    run_until(supervisor, lambda: supervisor.done)
    assert supervisor.states() == {"worker": ProcessState.FAILED}


def test_a_wait_ends_when_the_end_is_asked_for_and_when_a_process_is_to_be_killed(
    make: Make, watch: Callable[..., Supervisor], tmp_path: Path
) -> None:
    supervisor = watch(make("worker", OBEDIENT), make("deaf", DEAF, stop_timeout_s=0.1))
    step_until(supervisor, lambda: len(list(tmp_path.glob("ready-*"))) == 2)
    timer = threading.Timer(0.2, supervisor.stop)
    timer.start()
    run_until(supervisor, lambda: supervisor.done)
    timer.join()
    assert set(supervisor.states().values()) == {ProcessState.STOPPED}


def test_the_end_does_not_wait_for_a_process_that_is_not_there(make: Make, tmp_path: Path) -> None:
    dies = make("producer", "import sys, os; open('died-' + sys.argv[2], 'w').close(); sys.exit(1)")
    supervisor = Supervisor([dies, make("processing", OBEDIENT)], RestartPolicy(pause_first_s=60))
    try:
        step_until(supervisor, lambda: (tmp_path / "died-1").exists() and (tmp_path / "ready-processing-0").exists())
        step_until(supervisor, lambda: supervisor.states()["producer"] is ProcessState.WAITING)
        supervisor.stop()
        run_until(supervisor, lambda: supervisor.done)
    finally:
        supervisor.kill()


def test_nobody_waits_for_a_deployment_that_has_ended(make: Make, watch: Callable[..., Supervisor]) -> None:
    supervisor = watch(make("worker", "raise SystemExit(2)"))
    step_until(supervisor, lambda: supervisor.done)
    supervisor.wait()


def test_a_process_can_give_the_others_a_head_start(make: Make, watch: Callable[..., Supervisor]) -> None:
    begun = time.monotonic()
    supervisor = watch(make("worker", OBEDIENT), replace(make("later", OBEDIENT), head_start_s=0.3))
    supervisor.step()
    assert set(supervisor.pids()) == {"worker"}
    run_until(supervisor, lambda: "later" in supervisor.pids())
    assert time.monotonic() - begun >= 0.3
