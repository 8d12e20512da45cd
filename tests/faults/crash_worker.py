"""Stops work on a lake at its 1st, 2nd, 3rd … change to a file, and recovers from what a kill and a power cut leave.

Runs under interposer.c. This process imports everything and opens nothing; each attempt is a fork of it, which costs
a few milliseconds instead of a second. Prints one JSON object: the number of changes, the points tried, the recoveries
made, the problems.

Single points end the work there. To try all of them, one run is stopped at each, for as long as it takes to see that
its folder is what the trace says, and goes on: what a kill leaves is then known for every point, and a run to each of
them would only repeat the others. Recovery goes from every one of the folders, but not twice from equal ones: a sync
changes nothing that a kill leaves, and a third of all changes are syncs.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import pickle
import random
import shutil
import signal
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import crash_scenarios as scenarios
import pyarrow.dataset  # noqa: F401 - deltalake would import it in every fork
from crash_scenarios import SCENARIOS, Scenario
from disk import Change, Disk, Tree, changes_of, fingerprint, read_trace, read_tree, write_tree

from cryptopulse.errors import LakeFull, LogFull
from cryptopulse.lake.dialect import duckdb_sql

ENDED_HERE = 77  # interposer.c


def in_fork(work: Callable[[], Any], said: Path) -> tuple[int, Any]:
    """Runs `work` in a fork of this process: its exit code, and what it returned (1: its traceback)."""
    pid = _forked(work, said)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, pickle.loads(said.read_bytes()) if code in (0, 1) else None


def _forked(work: Callable[[], Any], said: Path) -> int:
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).interposer_record(bytes(said.parent), b"/dev/null")  # so that nothing is synced really
        code, answer = 0, None
        try:
            answer = work()
        except BaseException:  # noqa: BLE001 - whatever it was
            code, answer = 1, traceback.format_exc(limit=-4)
        said.write_bytes(pickle.dumps(answer))
        os._exit(code)
    return pid


class Sweep:
    """Attempts on one scenario, each in folders of its own."""

    def __init__(self, scenario: Scenario, scratch: Path) -> None:
        """Prepares the scenario's lake, and finds out what the tables must hold at the end."""
        self._scenario = scenario
        self._scratch = scratch
        self._said = scratch / "said"
        self._known: dict[tuple[bytes, int], str] = {}
        self.recoveries = 0
        self._expected = self._must(lambda: scenarios.undisturbed(scratch / "undisturbed", scenario))
        self._prepared = scratch / "prepared"
        self._prepared.mkdir()
        self._must(lambda: scenario.prepare(self._prepared))

    def changes(self) -> list[Change]:
        """What the work changes when nothing stops it."""
        code, _, changes = self._stopped(self._scratch / "whole", 0)
        assert code == 0
        shutil.rmtree(self._scratch / "whole")
        return changes

    def attempt(self, point: int, seed: int) -> list[str]:
        """Ends the work before change number `point`; what was wrong after a kill, and after a power cut."""
        folder = self._scratch / f"{point}-stopped"
        code, disk, changes = self._stopped(folder, point)
        if code == 1:
            return [f"the work itself failed: {changes}"]
        problems = [] if disk.after_kill() == read_tree(folder) else ["the folder is not what the trace says"]
        shutil.rmtree(folder)
        return problems + self._recovered_from(disk, point, seed, changes[-1] if changes else None)

    def attempt_each(self, first: int, last: int, seed: int) -> Iterator[tuple[int, list[str]]]:
        """The same for every change from `first` to `last` of one run: the number, and what was wrong."""
        folder, strange = self._scratch / "held", {}
        shutil.copytree(self._prepared, folder)
        start, disk = Disk(folder), Disk(folder)
        trace = folder.with_name("held.trace")
        pid = _forked(self._recorded(folder, trace, "hold", first, last), self._said)
        changes: list[Change] = []
        with_changes: list[int] = []  # how many of them were made at each stop
        read = 0
        while os.WIFSTOPPED(status := os.waitpid(pid, os.WUNTRACED)[1]):
            with trace.open("rb") as file:
                file.seek(read)
                news = file.read()
            read += len(news)
            for change in changes_of(news, folder):
                disk.apply(change)
                changes.append(change)
            if disk.after_kill() != read_tree(folder):
                strange[len(with_changes)] = "the folder is not what the trace says"
            with_changes.append(len(changes))
            os.kill(pid, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(status) == ENDED_HERE, pickle.loads(self._said.read_bytes())
        done = 0
        for place, count in enumerate(with_changes):
            for change in changes[done:count]:
                start.apply(change)
            done = count
            wrong = [strange[place]] if place in strange else []
            point = first + place
            yield point, wrong + self._recovered_from(start, point, seed, changes[count - 1] if count else None)

    def attempt_full(self, point: int) -> list[str]:
        """From change number `point` of those that need space on there is none: what was wrong, then and later."""
        folder = self._scratch / f"{point}-full"
        shutil.copytree(self._prepared, folder)
        trace = folder.with_name(f"{folder.name}.trace")

        def work() -> str:
            interposer = ctypes.CDLL(None)
            interposer.interposer_record(bytes(folder), bytes(trace))
            interposer.interposer_full_from(point)
            interposer.interposer_mark(self._scenario.acknowledged)
            try:
                self._scenario.work(folder)
            except (LogFull, LakeFull) as error:
                return str(error)
            return ""  # maintenance alone needed the space, and put it off

        code, said = in_fork(work, self._said)
        problems = []
        changes = read_trace(trace, folder)
        if code == 1 or "\n" in said:
            problems.append(f"not a clear line: {said}")
        acknowledged = max(change.number for change in changes if change.kind == "!")
        if wrong := self._recovered(read_tree(folder), acknowledged, f"{point}-left"):
            problems.append(f"after {said or 'no error'}: {wrong}")
        trace.unlink()
        shutil.rmtree(folder)
        return problems

    def _stopped(self, folder: Path, point: int) -> tuple[int, Disk, list[Change]]:
        shutil.copytree(self._prepared, folder)
        disk, trace = Disk(folder), folder.with_name(f"{folder.name}.trace")

        code, answer = in_fork(self._recorded(folder, trace, "stop_at", point), self._said)
        if code == 1:
            return 1, disk, answer
        changes = read_trace(trace, folder)
        for change in changes:
            disk.apply(change)
        trace.unlink()
        return code, disk, changes

    def _recorded(self, folder: Path, trace: Path, how: str, *where: int) -> Callable[[], None]:
        """The work, stopped by the function `how` of the interposer with the arguments `where`."""

        def work() -> None:
            interposer = ctypes.CDLL(None)
            interposer.interposer_record(bytes(folder), bytes(trace))
            getattr(interposer, f"interposer_{how}")(*where)
            interposer.interposer_mark(self._scenario.acknowledged)
            self._scenario.work(folder)
            os._exit(0 if where == (0,) else ENDED_HERE)

        return work

    def _recovered_from(self, disk: Disk, point: int, seed: int, last: Change | None) -> list[str]:
        left = {"kill": disk.after_kill(), "power cut": disk.after_power_cut(random.Random(f"{seed}/{point}"))}
        return [
            f"{what} after {last or 'nothing'}: {wrong}"
            for what, tree in left.items()
            if (wrong := self._recovered(tree, disk.acknowledged, f"{point}-{what.replace(' ', '-')}"))
        ]

    def _recovered(self, tree: Tree, acknowledged: int, name: str) -> str:
        """What is wrong after a recovery from `tree`; what is left then is kept in the folder `name`."""
        known = (fingerprint(tree), acknowledged)
        if known not in self._known:
            folder = self._scratch / name
            write_tree(tree, folder)
            code, said = in_fork(
                lambda: scenarios.recover(folder, acknowledged, self._scenario, self._expected), self._said
            )
            self.recoveries += 1
            self._known[known] = "" if code == 0 else said or f"ended with {code}"
            if code == 0:
                shutil.rmtree(folder)
        return self._known[known]

    def _must(self, work: Callable[[], Any]) -> Any:
        code, answer = in_fork(work, self._said)
        assert code == 0, answer
        return answer


def sample(changes: Sequence[Change], count: int, chance: random.Random, *, after_deletions: bool) -> list[int]:
    """`count` points, taken in turn from every kind of change to every kind of file; or those just behind the deletion
    of a data file.
    """
    kinds = defaultdict(list)
    for number, change in enumerate(changes, 1):
        before = changes[number - 2]
        if after_deletions and not (
            before.kind == "U" and before.path.endswith(".parquet") and "_log" not in before.path
        ):
            continue
        file = Path(change.other or change.path)
        kinds[change.kind, file.parts[1:3], file.suffix].append(number)
    turns = [chance.sample(numbers, len(numbers)) for numbers in kinds.values()]
    chance.shuffle(turns)
    ordered = [turn[depth] for depth in range(len(changes)) for turn in turns if depth < len(turn)]
    return sorted(ordered[:count])


def warm_up() -> None:
    """Does here what each fork would do again: imports, and the translation of the statements."""
    for file in (resources.files("cryptopulse.lake") / "sql").iterdir():
        for is_bulk in (False, True):
            duckdb_sql(file.name.removesuffix(".sql"), is_bulk=is_bulk)
    sys.modules.setdefault("pandas", None)  # type: ignore[arg-type] # which pyarrow looks for in vain 200 times


def stay_on_one_core() -> None:
    """A recovery is short, and its threads hand each other work 12,000 times: on one core that takes 0.8 s of CPU
    time, on two 1.1 s. The tests that run beside this one have the others.
    """
    cores = sorted(os.sched_getaffinity(0))
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    os.sched_setaffinity(0, {cores[int(worker) % len(cores)]})


def part_of(points: str, count: int) -> tuple[int, int]:
    """The first and the last of the points of a part, as "3/5"; of the last one open, for a run may differ a little."""
    part, parts = map(int, points.split("/"))
    return count * (part - 1) // parts + 1, count * part // parts if part < parts else 10 * count


def attempts(
    sweep: Sweep, given: argparse.Namespace, changes: Sequence[Change], need_space: Sequence[Change]
) -> Iterator[tuple[bool, int, list[str]]]:
    """Each point that was asked for: whether the disk is full from there on, its number, and what was wrong with it."""
    chance = random.Random(given.seed)
    for point in sample(changes, given.deletions, chance, after_deletions=True):
        yield False, point, sweep.attempt(point, given.seed)
    for point in sample(need_space, given.full_points, chance, after_deletions=False):
        yield True, point, sweep.attempt_full(point)
    if "/" in given.points and not given.full:
        for point, wrong in sweep.attempt_each(*part_of(given.points, len(changes)), given.seed):
            yield False, point, wrong
        return
    if given.points.startswith("="):
        points = [int(number) for number in given.points[1:].split(",")]
    elif "/" in given.points:
        first, last = part_of(given.points, len(changes))
        points = list(range(first, min(last, len(changes)) + 1))
    else:
        points = sample(changes, int(given.points), chance, after_deletions=False)
    for point in points:
        yield given.full, point, sweep.attempt_full(point) if given.full else sweep.attempt(point, given.seed)


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--points", required=True, help="20: as many; 3/5: the third fifth of all; =7,9: these")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--full", action="store_true", help="a full disk from each point on, instead of an end")
    parser.add_argument("--deletions", type=int, default=0, help="besides, points just behind a data file's deletion")
    parser.add_argument("--full-points", type=int, default=0, help="besides, points from which on the disk is full")
    given = parser.parse_args(arguments)
    stay_on_one_core()
    warm_up()
    sweep = Sweep(SCENARIOS[given.scenario], given.scratch)
    everything = sweep.changes()
    need_space = [change for change in everything if change.kind in "CDWL"]
    changes = need_space if given.full else [change for change in everything if change.kind in "CDWLTRUS"]
    stops = full = 0
    problems = []
    for is_full, point, found in attempts(sweep, given, changes, need_space):
        stops, full = stops + (not is_full), full + is_full
        if found:
            problems.append(f"{'disk full from' if is_full else 'stopped at'} change {point}: {found}")
            print(problems[-1], file=sys.stderr, flush=True)  # long before the end
    figures = {"changes": len(changes), "stops": stops, "full": full, "recoveries": sweep.recoveries}
    print(json.dumps({**figures, "problems": problems}))


if __name__ == "__main__":
    main(sys.argv[1:])
