"""How often new messages are taken in, where each step costs money."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from cryptopulse import pipeline
from cryptopulse.lake.tables import BRONZE, SILVER
from cryptopulse.pipeline import Pace
from cryptopulse.settings import ProcessingSettings
from support import Lake, Trade, advanced

_FOR_S = 2.0
_QUIET, _BUSY = 0.2, 0.02  # seconds
_INTERVAL_S = 0.4


def test_steps_are_no_more_frequent_than_asked_for_and_take_in_everything(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", processing={"step_interval_ms": round(_INTERVAL_S * 1000)})
    stop = threading.Event()
    arguments = (lake.settings, lake.log, stop, lambda _report: None)
    thread = threading.Thread(target=pipeline.process, args=arguments)
    thread.start()
    started, number = time.monotonic(), 0
    while time.monotonic() - started < _FOR_S:
        number += 1
        lake.append([Trade("BTC-USD", number).match()])
        time.sleep(0.02)
    stop.set()
    thread.join()
    took_s = time.monotonic() - started
    assert lake.arrow(SILVER).num_rows == number
    commits = sum(entry["operation"] == "WRITE" for entry in lake.delta(BRONZE).history())
    assert 1 <= commits <= took_s / _INTERVAL_S + 2  # one at once, and one when it was told to stop
    lake.close()


@pytest.mark.parametrize(
    ("rate", "group_s", "longest_s"), [(1_000, 0.05, 0.055), (5_000, 0.05, _BUSY), (50, 0.1, _QUIET)]
)
def test_the_rate_sets_the_pace_though_messages_come_in_groups(rate: int, group_s: float, longest_s: float) -> None:
    pace = Pace(ProcessingSettings())
    now_s = since_s = taken = 0.0
    steps = []
    while now_s < 5:
        now_s += since_s
        arrived = now_s // group_s * group_s * rate
        since_s = pace.step_s(round(arrived - taken), since_s)
        taken = arrived
        steps.append(since_s)
    settled = steps[len(steps) * 2 // 3 :]
    assert max(settled) <= longest_s
    assert sum(settled) / len(settled) >= longest_s / 2  # a step must not be made for a message or two


def test_a_burst_after_a_quiet_time_is_followed_at_once() -> None:
    pace = Pace(ProcessingSettings())
    assert pace.step_s(0, 0.0) == _BUSY  # the first messages are not kept waiting
    for _ in range(50):
        assert _BUSY <= pace.step_s(0, 0.2) <= _QUIET
    assert pace.step_s(0, 0.2) == _QUIET
    assert pace.step_s(500, 0.2) == _BUSY


def test_a_message_of_several_trades_counts_as_them_where_the_pace_is_set(lake: Lake) -> None:
    with pipeline.Pipeline(lake.settings, lake.log) as worker:
        lake.append([advanced([Trade("BTC-USD", number) for number in range(1, 8)])])
        assert [worker.step(0), worker.step(0)] == [7, 0]
