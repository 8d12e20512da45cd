"""Names of replaced files are kept until their time, and nothing that is torn is taken for one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cryptopulse.errors import ConfigurationError
from cryptopulse.store.replaced_files import ReplacedFiles

HOUR_S = 3_600


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time() + seconds
    monkeypatch.setattr(time, "time", lambda: now)


def test_a_name_is_due_when_the_retention_has_passed_since_it_was_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = ReplacedFiles(tmp_path / "bars", HOUR_S)
    replaced.note(["day=1/part-a.parquet", "part-b.parquet"])
    later(monkeypatch, HOUR_S)
    replaced.note(["part-c.parquet"])
    assert not replaced.due()
    later(monkeypatch, HOUR_S / 5)
    due = ReplacedFiles(tmp_path / "bars", HOUR_S).due()  # after a restart
    assert set().union(*due.values()) == {"day=1/part-a.parquet", "part-b.parquet"}
    replaced.forget(due)
    assert replaced.all() == {"part-c.parquet"}


def test_what_a_power_cut_tore_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = ReplacedFiles(tmp_path, HOUR_S)
    replaced.note(["part-a.parquet", "part-b.parquet"])
    (notes,) = tmp_path.glob("*.txt")
    for torn in (b"part-c.parq", bytes(20), b"\xff\xfe.parquet\n", b"\0part-d.parquet\n"):
        notes.write_bytes(b"part-a.parquet\n" + torn)
        assert replaced.all() <= {"part-a.parquet", "\ufffd\ufffd.parquet"}
    later(monkeypatch, 2 * HOUR_S)
    (tmp_path / "else.txt").write_text("part-e.parquet\n")
    assert list(replaced.due()) == [notes]


def test_a_sweep_is_due_once_a_day(tmp_path: Path) -> None:
    replaced = ReplacedFiles(tmp_path, HOUR_S)
    assert not replaced.is_sweep_due()
    day_ago = time.time() - 86_401
    os.utime(tmp_path / "swept", (day_ago, day_ago))
    assert ReplacedFiles(tmp_path, HOUR_S).is_sweep_due()
    replaced.swept()
    assert not replaced.is_sweep_due()


def test_a_folder_that_can_not_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "replaced").write_text("somebody's file")
    with pytest.raises(ConfigurationError, match=r"Can't use the folder .*/replaced/bars: Not a directory"):
        ReplacedFiles(tmp_path / "replaced" / "bars", HOUR_S)
