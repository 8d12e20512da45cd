"""The end that a signal asks for comes whatever the main thread is doing at that moment."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_WAITING = """
import os, signal, threading
from cryptopulse.deployment import on_signals

stop = threading.Event()

def kill():
    os.kill(os.getpid(), signal.{name})

with on_signals(stop.set):
    threading.Timer(0.05, kill).start()
    while not stop.wait(0):  # nearly always holds the lock of the event
        pass
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_that_comes_while_its_event_is_looked_at_is_not_waited_for_for_ever(name: str) -> None:
    several = [subprocess.Popen([sys.executable, "-c", _WAITING.format(name=name)]) for _ in range(4)]
    try:
        assert [one.wait(timeout=20) for one in several] == [0] * 4
    finally:
        for one in several:
            one.send_signal(signal.SIGKILL)
            one.wait()
