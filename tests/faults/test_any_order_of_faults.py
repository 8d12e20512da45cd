"""Whatever happens, in whatever order: the tables come to what the log acknowledged, each trade once.

A machine draws what happens next: trades arrive, late or repeated or never (a hole), steps and drains, maintenance,
kills between any two commits, power cuts that tear what was not synced, a disk that is full for a while, a second
pipeline, and one that stood still while another took its place. Tables, log and code are the real ones; only a kill is
an exception that nothing catches, and a full disk one that the storage raises. After each drain the tables are compared
with plain models of what was sent. What the feed and REST do to the messages before they are in the log has machines of
its own: `TestAnyInput` in test_feed_protocol.py and `TestAnyCourse` in test_healing_work_list.py.

The seed is printed; CRYPTOPULSE_TEST_SEED repeats a run. A failure is shown as the shortest list of calls that does it.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from obstore.exceptions import GenericError
from tally import TALLY

from cryptopulse.errors import Fenced, LakeBusy, LakeFull
from cryptopulse.lake.tables import BARS, BRONZE, COVERAGE, QUARANTINE, SILVER, TABLES, Table
from cryptopulse.log.sqlite import SqliteLog
from cryptopulse.pipeline import Pipeline
from cryptopulse.store.parquet_files import ParquetFiles
from cryptopulse.store.table_writer import TableWriter
from support import Lake, Message, Trade, at, message, model_bars, model_coverage

PRODUCTS = ("BTC-USD", "ETH-USD")
_QUOTIENTS = ("vwap", "window_date")


class Killed(BaseException):
    """Stands for the end of the process: nothing of the program catches it."""


class LakeMachine(RuleBasedStateMachine):
    """One lake, and what happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="cryptopulse-faults-"))
        self.lake = Lake(self.folder / "lake", processing={"threads": 1, "memory_max_mb": 256})
        few = self.lake.settings.maintenance.model_copy(update={"compact_commits": 4, "checkpoint_commits": 3})
        self.lake.settings = self.lake.settings.model_copy(update={"maintenance": few})
        self.pipeline: Pipeline | None = None
        self.sent: list[Message] = []
        self.trades: set[Trade] = set()
        self.next_id = dict.fromkeys(PRODUCTS, 100)
        self.held_back: list[Trade] = []
        self.synced = dict.fromkeys(TABLES, -1)

    # What arrives.

    @rule(product=st.sampled_from(PRODUCTS), count=st.integers(1, 6), kept=st.sets(st.integers(0, 5), max_size=3))
    def trades_arrive(self, product: str, count: int, kept: set[int]) -> None:
        """Of the next `count` trades those of `kept` don't come (yet)."""
        first = self.next_id[product]
        self.next_id[product] += count
        trades = [_trade(product, number) for number in range(first, first + count)]
        self.held_back += [trade for place, trade in enumerate(trades) if place in kept]
        self._send([trade for place, trade in enumerate(trades) if place not in kept])

    @precondition(lambda self: self.held_back)
    @rule(data=st.data())
    def late_trades_arrive(self, data: st.DataObject) -> None:
        places = data.draw(st.sets(st.integers(0, len(self.held_back) - 1), min_size=1, max_size=4))
        self._send([self.held_back[place] for place in sorted(places)])
        self.held_back = [trade for place, trade in enumerate(self.held_back) if place not in places]

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def old_messages_come_again(self, data: st.DataObject) -> None:
        start = data.draw(st.integers(0, len(self.sent) - 1))
        self._append(self.sent[start : start + 8])

    @rule()
    def something_else_arrives(self) -> None:
        self._append([message(f"junk {len(self.sent)}".encode())])

    # What is done with it.

    @rule()
    def step(self) -> None:
        pipeline = self._opened()
        pipeline.step(0)
        pipeline.gold()

    @rule()
    def drain(self) -> None:
        self._opened().drain(lambda _done, _total: None)
        self._compare()

    @rule(trims=st.booleans())
    def maintain(self, trims: bool) -> None:
        care = self._opened().maintenance
        stored = self._opened().engine.stored_to(0)
        care.run_due()
        if trims:
            log = SqliteLog(self.lake.settings.log_path, 8)  # which keeps no more than the newest batch back
            log.trim(0, stored + 1)
            log.close()

    @precondition(lambda self: self.pipeline)
    @rule()
    def end_in_order(self) -> None:
        self._close()

    # What goes wrong.

    @rule(commits=st.integers(0, 12), maintains=st.booleans())
    def kill(self, commits: int, maintains: bool) -> None:
        """At the end of so many commits, or at the end of the work if there are fewer."""
        TALLY["kills"] += 1
        with _killed_after(commits):
            try:
                self._opened().drain(lambda _done, _total: None)
                if maintains:
                    self.maintain(trims=False)
            except Killed:
                pass
        self._close()

    @rule(seed=st.integers(0, 1 << 32))
    def cut_power(self, seed: int) -> None:
        """Tears commits that were not synced, and files that they added, each with even chances."""
        TALLY["power_cuts"] += 1
        self._close()
        chance = random.Random(seed)  # not hypothesis' own: the files' sizes differ a little from run to run
        for table in TABLES:
            for commit in _commits(self.lake, table):
                if int(commit.stem) > self.synced[table] and chance.random() < 0.5:
                    _tear(commit, chance)

    @rule(commits=st.integers(0, 6))
    def fill_the_disk(self, commits: int) -> None:
        """From the next commit but so many on, until the pipeline has ended of it."""
        TALLY["full_disks"] += 1
        with _full_after(commits), suppress(LakeFull):
            self._opened().drain(lambda _done, _total: None)
        self._close()

    @precondition(lambda self: self.pipeline)
    @rule()
    def start_a_second_pipeline(self) -> None:
        with pytest.raises(LakeBusy):
            Pipeline(self.lake.settings, self.lake.log)

    @precondition(lambda self: self.pipeline)
    @rule(takes_over=st.booleans())
    def wake_up_after_another_took_over(self, takes_over: bool) -> None:
        """As if the other worked on another machine, where the lock does not reach. `takes_over`: by name alone or with
        work done."""
        sleeper, self.pipeline = self.pipeline, None
        assert sleeper is not None
        self._note_synced(sleeper)
        TALLY["take_overs"] += 1
        (self.lake.settings.state_dir / "pipeline.lock").unlink()
        if takes_over:
            self.drain()
        else:
            self._opened()
        before = self._versions()
        with suppress(Fenced):
            sleeper.drain(lambda _done, _total: None)
            sleeper.maintenance.run_due()
        assert self._versions() == before
        sleeper.__exit__()

    # What must hold.

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self._close()
            self.lake.close()
            shutil.rmtree(self.folder)

    @invariant()
    def the_log_gives_each_message_an_offset(self) -> None:
        assert self.lake.log.bounds(0)[1] - self.lake.log.origin(0) == len(self.sent)

    def _compare(self) -> None:
        lake = self.lake
        raw = lake.arrow(BRONZE)
        assert Counter(raw["body"].to_pylist()) == Counter(one["body"] for one in self.sent)
        assert sorted(raw["offset"].to_pylist()) == list(range(lake.log.origin(0), lake.log.bounds(0)[1]))
        assert [(row["symbol"], row["trade_id"]) for row in lake.rows(SILVER)] == [
            (trade.symbol, trade.trade_id) for trade in sorted(self.trades)
        ]
        assert lake.rows(COVERAGE) == model_coverage(self.trades)
        assert lake.rows(BARS, *_QUOTIENTS) == model_bars(self.trades)
        junk = [one["body"] for one in self.sent if one["body"].startswith(b"junk")]
        assert sorted(row["body"] for row in lake.rows(QUARANTINE)) == sorted(junk)

    # How.

    def _send(self, trades: list[Trade]) -> None:
        self._append([trade.match() for trade in trades])
        self.trades |= set(trades)

    def _append(self, messages: list[Message]) -> None:
        if messages:
            self.lake.append(messages)
            self.sent += messages

    def _opened(self) -> Pipeline:
        if self.pipeline is None:
            self.pipeline = Pipeline(self.lake.settings, self.lake.log)
            self.pipeline.engine.wait_for_news(False)
        return self.pipeline

    def _note_synced(self, pipeline: Pipeline) -> None:
        for one in pipeline.maintenance._tables:
            self.synced[one.table] = max(self.synced[one.table], one._synced._version)

    def _versions(self) -> dict[str, int]:
        return {table.qualified: self.lake.delta(table).version() for table in TABLES}

    def _close(self) -> None:
        """What a process loses when it ends; it writes nothing. What it synced, no power cut takes."""
        if self.pipeline is not None:
            self._note_synced(self.pipeline)
            self.pipeline.__exit__()
            self.pipeline = None


def _trade(product: str, number: int) -> Trade:
    """The same for the same number; every seventh is over the alerts' threshold."""
    return Trade(product, number, at((number - 100) * 9.0), str(100 - (number % 7 == 0) * 3), "0.25")


@contextmanager
def _killed_after(commits: int) -> Iterator[None]:
    commit, left = TableWriter._commit, [commits]

    def counted(self: TableWriter, *args: object, **more: object) -> bool:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return commit(self, *args, **more)  # type: ignore[arg-type]

    with mock.patch.object(TableWriter, "_commit", counted):
        yield


@contextmanager
def _full_after(commits: int) -> Iterator[None]:
    """What writes to the tables says that there is no room, in the words of obstore."""
    write, left = ParquetFiles.write, [commits]

    def counted(self: ParquetFiles, *args: Any) -> int:
        if left[0] == 0:
            raise GenericError(
                "Generic LocalFileSystem error: Unable to copy data to file: No space left on device (os error 28)"
            )
        left[0] -= 1
        return write(self, *args)

    with mock.patch.object(ParquetFiles, "write", counted):
        yield


def _commits(lake: Lake, table: Table) -> list[Path]:
    return sorted((lake.folder(table) / "_delta_log").glob("*.json"))


def _tear(commit: Path, chance: random.Random) -> None:
    """The commit itself, or a file that it added."""
    torn = chance.choice([commit, *_added(commit)])
    content = torn.read_bytes() if torn.exists() else b""
    if len(content) < 2:  # torn before, and nothing is left to tear
        return
    how = chance.choice(["missing", "cut", "zeros"])
    if how == "missing":
        torn.unlink()
    else:
        kept = content[: chance.randrange(len(content) - 1)]  # the last byte of a commit is the end of its line
        torn.write_bytes(kept if how == "cut" else kept.ljust(len(content), b"\0"))


def _added(commit: Path) -> list[Path]:
    try:
        actions = [json.loads(line) for line in commit.read_bytes().splitlines()]
    except ValueError:  # torn before
        return []
    return [commit.parent.parent / unquote(action["add"]["path"]) for action in actions if "add" in action]


def run(seed: int, examples: int, steps: int) -> None:
    """Lets the machine go `examples` times, `steps` each."""
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        print_blob=True,
    )
    run_state_machine_as_test(hypothesis.seed(seed)(LakeMachine), settings=settings)


def test_a_few_orders_of_faults_lose_and_double_nothing(seed: int) -> None:
    run(seed, examples=3, steps=20)


@pytest.mark.long
@pytest.mark.parametrize("part", range(6))
def test_many_orders_of_faults_lose_and_double_nothing(seed: int, part: int) -> None:
    run(seed * 10 + part, examples=30, steps=30)
