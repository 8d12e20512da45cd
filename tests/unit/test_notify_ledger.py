"""What a target was told stays told: over restarts, for one process at a time, and within bounds."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cryptopulse.errors import ConfigurationError, LakeBusy
from cryptopulse.notify.delivery import NotificationLedger
from cryptopulse.notify.episodes import Known

DAY_US = 86_400_000_000
TOLD = Known(1, is_closed=True, last_trigger_us=5)


def test_what_was_recorded_is_there_after_a_restart_and_each_target_has_its_own(tmp_path: Path) -> None:
    with NotificationLedger(tmp_path) as ledger:
        ledger.record("one", {"a": TOLD, "b": Known(0, is_closed=False, last_trigger_us=7)})
        ledger.record("one", {"b": Known(2, is_closed=False, last_trigger_us=9)})
        ledger.record("other", {"a": Known(0, is_closed=False, last_trigger_us=1)})
    with NotificationLedger(tmp_path) as ledger:
        assert ledger.known("one") == {"a": TOLD, "b": Known(2, is_closed=False, last_trigger_us=9)}
        assert ledger.known("other") == {"a": Known(0, is_closed=False, last_trigger_us=1)}
        assert ledger.known("nobody") == {}


def test_a_record_survives_a_kill(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from cryptopulse.notify.delivery import Known, NotificationLedger\n"
        "NotificationLedger(Path(sys.argv[1])).record('one', {'a': Known(1, True, 5)})\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    with NotificationLedger(tmp_path) as ledger:
        assert ledger.known("one") == {"a": TOLD}


def test_the_first_start_is_remembered(tmp_path: Path) -> None:
    with NotificationLedger(tmp_path) as ledger:
        assert ledger.since_us("one", 100) == 100
    with NotificationLedger(tmp_path) as ledger:
        assert ledger.since_us("one", 900) == 100
        assert ledger.since_us("new", 900) == 900


def test_only_one_process_may_have_it(tmp_path: Path) -> None:
    with NotificationLedger(tmp_path) as ledger:
        ledger.record("one", {"a": TOLD})
        with pytest.raises(LakeBusy, match="Another notifier"):
            NotificationLedger(tmp_path)


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    with NotificationLedger(tmp_path):
        assert stat.S_IMODE((tmp_path / "notify.db").stat().st_mode) == 0o600


def test_what_can_be_no_news_any_more_is_dropped_an_open_episode_later(tmp_path: Path) -> None:
    with NotificationLedger(tmp_path) as ledger:
        ledger.record("one", {"closed": TOLD, "open": Known(1, is_closed=False, last_trigger_us=5)})
        ledger.prune(DAY_US // 2, DAY_US)
        assert set(ledger.known("one")) == {"closed", "open"}
        ledger.prune(2 * DAY_US, DAY_US)
        assert set(ledger.known("one")) == {"open"}
        ledger.prune(40 * DAY_US, DAY_US)
        assert ledger.known("one") == {}


@pytest.mark.parametrize("damage", [b"no database at all" * 100, b"SQLite format 3\0" + bytes(range(256)) * 40])
def test_a_damaged_one_is_put_aside_and_a_new_one_begun(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "notify.db").write_bytes(damage)
    with NotificationLedger(tmp_path) as ledger:
        ledger.record("one", {"a": TOLD})
    assert [path.read_bytes() for path in tmp_path.glob("notify.db.damaged-*")] == [damage]
    with NotificationLedger(tmp_path) as ledger:
        assert ledger.known("one") == {"a": TOLD}


def test_a_folder_that_cant_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match="Can't write"):
        NotificationLedger(tmp_path / "file" / "state")


def test_a_disk_that_takes_nothing_does_not_stop_the_telling_and_is_tried_again(tmp_path: Path) -> None:
    with NotificationLedger(tmp_path) as ledger:
        ledger._db.execute("PRAGMA max_page_count = 1")  # as a full disk
        many = {f"alert-{n}" * 20: TOLD for n in range(2000)}
        ledger.record("one", many)
        assert ledger.known("one") == {}
        ledger._db.execute("PRAGMA max_page_count = 100000")
        ledger.record("one", {"a": TOLD})
        assert ledger.known("one") == many | {"a": TOLD}
    with sqlite3.connect(tmp_path / "notify.db") as db:
        assert db.execute("SELECT count(*) FROM told").fetchone() == (2001,)
