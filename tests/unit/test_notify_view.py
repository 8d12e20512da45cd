"""What people see of the notifier in the live view: nothing where nobody is notified."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from cryptopulse.status import NOTIFIER, PROCESSES, StatusFile
from cryptopulse.terminal.snapshot import Watcher
from cryptopulse.terminal.view import render


def drawn(state_dir: Path, *processes: str) -> str:
    watcher = Watcher(state_dir, "test", processes)
    StatusFile(state_dir, NOTIFIER).report(
        {"notifications_sent": 41, "notifications_waiting": 7, "notifications_failed": 3, "targets": []}
    )
    console = Console(width=140, height=60, record=True, file=(state_dir / "screen").open("w"))
    console.print(render(watcher.snapshot(), {}, "", 140, 60))
    return console.export_text()


def test_the_notifiers_figures_stand_beside_the_others(tmp_path: Path) -> None:
    shown = drawn(tmp_path, *PROCESSES, NOTIFIER)
    for words in ("● notifier", "notified", "41", "to be notified", "7", "tries failed", "3"):
        assert words in shown


def test_where_nobody_is_notified_there_is_nothing_to_see(tmp_path: Path) -> None:
    shown = drawn(tmp_path, *PROCESSES)
    assert "notif" not in shown
