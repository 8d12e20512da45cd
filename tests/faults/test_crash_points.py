"""Work on a lake, stopped at its 1st, 2nd, 3rd … change to a file, recovers from what is left, every time.

A small library in C (`interposer.c`) stands between the process and its files. At the change chosen it ends the
process, with nothing run after: what is on disk then is what `kill -9` leaves. From its record of all changes,
`disk.py` also builds what a power cut at that moment could have left; it says what a disk promises and what not.

From both, a new process must come to the very tables of a run that nothing disturbed, with every message that the log
had acknowledged in bronze once. `crash_scenarios.py` has what is stopped: live work with all of maintenance and a
restart in it, a rebuild, and the repair and catching up after a power cut, which may be cut short too.

The same for a disk that is full from the 1st, 2nd, 3rd … change on that needs space: the work ends with one clear line,
and goes on when there is room again.

The ordinary suite takes a sample of the points, spread over all kinds of changes to all kinds of files; `make faults`
takes all. Points and what is left after a power cut come from a seed, which is printed; CRYPTOPULSE_TEST_SEED sets it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from disk import Change, Disk
from tally import TALLY

from support import some

HERE = Path(__file__).parent
PARTS = {
    "live": 8,
    "live --full": 4,
    "rebuild": 3,
    "repair": 2,
    "repair --full": 1,
    "retention": 1,
    "retention --full": 1,
}
"""In how many parts every point is tried: each takes some minutes."""


def sweep(interposer: Path, folder: Path, *options: str) -> None:
    """Runs crash_worker.py with `options`; fails with what was wrong."""
    paths = [HERE, HERE.parent, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = os.environ | {
        "LD_PRELOAD": str(interposer),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "OPENBLAS_NUM_THREADS": "1",  # a process is forked best while it has no threads
    }
    command = [sys.executable, "-B", str(HERE / "crash_worker.py"), options[0], str(folder), *options[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    print(f"{said['stops']} stops and {said['full']} full disks of {said['changes']}, {said['recoveries']} recoveries")
    TALLY.update(stops=said["stops"], power_cuts=said["stops"], full_disks=said["full"])
    assert said["stops"] + said["full"] > 0
    assert said["problems"] == [], f"{' '.join(options)}; the folders are kept in {folder}"


def test_live_work_recovers_from_a_kill_a_power_cut_and_a_full_disk_at_any_change(
    interposer: Path, tmp_path: Path, seed: int
) -> None:
    """Of the points some are just behind the deletion of a file: that must wait until no power cut can bring back the
    version that needs it.
    """
    counts = {"--points": 2, "--deletions": 3, "--full-points": 2}
    options = [str(word) for option in counts.items() for word in option]
    sweep(interposer, tmp_path, "live", *options, "--seed", str(seed))


@pytest.mark.parametrize("scenario", some(2, ["rebuild", "retention", "repair"]))
def test_work_that_is_stopped_at_any_change_recovers_from_a_kill_and_from_a_power_cut(
    interposer: Path, tmp_path: Path, seed: int, scenario: str
) -> None:
    sweep(interposer, tmp_path, scenario, "--points", "1", "--seed", str(seed))


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "part"),
    [(options, f"{part}/{parts}") for options, parts in PARTS.items() for part in range(1, parts + 1)],
)
def test_every_change_of_all_work(interposer: Path, tmp_path: Path, seed: int, options: str, part: str) -> None:
    sweep(interposer, tmp_path, *options.split(), "--points", part, "--seed", str(seed))


def _written(*data: bytes) -> list[Change]:
    offsets = [sum(map(len, data[:number])) for number in range(len(data))]
    return [
        Change("C", 1, 0, "file", "", b""),
        *(Change("W", 1, at, "file", "", part) for at, part in zip(offsets, data, strict=True)),
    ]


def _left(folder: Path, changes: list[Change]) -> set[bytes | None]:
    """What power cuts leave of `file`; None: nothing."""
    found: set[bytes | None] = set()
    for number in range(300):
        disk = Disk(folder)
        for change in changes:
            disk.apply(change)
        found.add(disk.after_power_cut(random.Random(number)).get("file"))
    return found


def test_the_disk_keeps_what_was_synced_and_may_lose_tear_or_blank_the_rest(tmp_path: Path) -> None:
    """The model itself: a sweep on a disk that forgets nothing would prove nothing."""
    synced = [Change("S", 1, 0, "file", "", b""), Change("S", 2, 0, "", "", b"")]
    first, second = _written(b"one ", b"two")[:2], _written(b"one ", b"two")[2:]
    unsynced = _left(tmp_path, [*first, *second])
    assert {None, b"", b"one two", b"one tw", bytes(7), b"one t\0\0"} <= unsynced
    assert _left(tmp_path, [*first, *synced]) == {b"one "}
    after = _left(tmp_path, [*first, *synced, *second])
    assert {b"one ", b"one t", b"one two", b"one \0\0\0"} <= after
    assert all(left is not None and left.startswith(b"one ") for left in after)
    replaced = [*first, *synced, Change("W", 1, 0, "file", "", b"ONE "), Change("T", 1, 2, "file", "", b"")]
    assert _left(tmp_path, replaced) == {b"one ", b"ONE ", b"on", b"ON"}
    renamed = [*first, *synced, Change("R", 1, 0, "file", "other", b"")]
    assert _left(tmp_path, renamed) == {b"one ", None}
    nameless = _left(tmp_path, [*first, Change("S", 1, 0, "file", "", b"")])
    assert nameless == {b"one ", None}


_THREE_FILES = """
import ctypes, os, pathlib, sys
interposer, folder = ctypes.CDLL(None), pathlib.Path(sys.argv[1])
interposer.interposer_record(bytes(folder), os.devnull.encode())
interposer.interposer_stop_at(4)
try:
    for name in "abc":
        (folder / name).write_text(name)
finally:
    (folder / "finally").touch()
"""


def test_a_stop_comes_before_its_change_and_runs_nothing_after(interposer: Path, tmp_path: Path) -> None:
    environment = os.environ | {"LD_PRELOAD": str(interposer)}
    done = subprocess.run([sys.executable, "-c", _THREE_FILES, str(tmp_path)], env=environment, check=False)
    assert done.returncode == 77
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a": "a", "b": ""}
