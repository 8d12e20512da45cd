"""How often new messages are taken in, where each step costs money."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from cryptopulse import pipeline
from cryptopulse.lake.tables import BRONZE, SILVER
from support import Lake, Trade

_FOR_S = 2.0
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
