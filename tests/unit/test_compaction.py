"""Small files are merged so that few are left and no row is written again often."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import hypothesis
from hypothesis import strategies as st

from cryptopulse.store.compaction import merges, partition_of
from cryptopulse.store.delta_log import DataFile

KB, MB = 1 << 10, 1 << 20
TODAY, YESTERDAY = {"event_date": "2026-07-07"}, {"event_date": "2026-07-06"}
BUSY = {tuple(TODAY.items())}


def file(size: int, partition: Mapping[str, str] = TODAY, rows: int = 5) -> DataFile:
    return DataFile("", size, rows, partition, {})


def merged(group: list[DataFile]) -> DataFile:
    """As large as its parts without what each costs for itself."""
    return file(1 * KB + sum(max(one.size - KB, 10) for one in group), group[0].partition, sum(f.rows for f in group))


def test_files_wait_until_there_are_enough_of_them() -> None:
    assert merges([file(2 * KB)] * 105, 100, BUSY) == []
    (group,) = merges([file(2 * KB)] * 107, 100, BUSY)
    assert len(group) == 101, "the newest are left alone"
    assert merges([file(20 * KB)] * 22, 100, BUSY) != []
    assert merges([file(40 * MB)] * 200, 100, BUSY) == []


def test_a_day_that_has_passed_is_put_together_soon() -> None:
    assert [len(group) for group in merges([file(2 * KB, YESTERDAY)] * 2, 100, BUSY)] == [2]
    assert merges([file(2 * KB, YESTERDAY), file(20 * KB, YESTERDAY)], 100, BUSY) == []


def test_days_are_never_mixed() -> None:
    groups = merges([file(2 * KB, day) for day in (TODAY, YESTERDAY)] * 200, 100, BUSY)
    assert len(groups) == 2
    assert all(len({partition_of(one) for one in group}) == 1 for group in groups)


def test_one_round_merges_so_much_and_no_more() -> None:
    groups = merges([file(30 * MB, day) for day in (TODAY, YESTERDAY)] * 50, 100, BUSY)
    assert 0 < sum(one.size for group in groups for one in group) <= 128 * MB


@hypothesis.settings(deadline=None, max_examples=10)
@hypothesis.given(sizes=st.lists(st.integers(1_100, 200 * KB), min_size=1, max_size=20))
def test_after_any_number_of_commits_few_files_are_left_and_rows_were_rewritten_a_few_times(sizes: list[int]) -> None:
    """Ten thousand commits, with a look at the table every hundred."""
    files: list[DataFile] = []
    written = rewritten = 0
    for number in range(10_000):
        files.append(file(sizes[number % len(sizes)]))
        written += files[-1].size
        if number % 100 == 99:
            for group in merges(files, 100, BUSY):
                gone = set(group)
                files = [one for one in files if one not in gone] + [merged(group)]
                rewritten += sum(one.size for one in group)
    small = [one for one in files if one.size < 32 * MB]
    assert len(small) <= 107 + 3 * 107
    assert rewritten <= 5 * written
    by_level: dict[int, int] = defaultdict(int)
    for one in small:
        by_level[next(n for n, bound in enumerate((8 * KB, 128 * KB, 2 * MB, 32 * MB)) if one.size < bound)] += 1
    assert by_level[2] <= 32
    assert by_level[3] <= 32
