"""Questions of the pages: asked once for all who look, not too often, and honest about what can't be read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import dashboard_lake
from cryptopulse.errors import LakeUnreachable
from cryptopulse.lake.queries import load_queries
from cryptopulse.lake.tables import COMPLETENESS, QUARANTINE
from cryptopulse.serve.live.answers import ANSWER, Answers, Question
from cryptopulse.serve.live.processes import processes_answer
from cryptopulse.serve.live.questions import BODY_BYTES_MAX, EVERY_S, Questions
from cryptopulse.status import StatusFile
from support import START, Lake, message

PATIENCE_S = 20.0


class Asker:
    """Answers to one question, and how often it was asked."""

    def __init__(self, ask: Callable[[], dict[str, Any]], every_s: float) -> None:
        self.asked = self.seen = 0
        self._ask = ask
        self._news = threading.Semaphore(0)
        self.answers = Answers({"it": Question(self._count, every_s)}, lambda _topic: self._news.release())

    def _count(self) -> dict[str, Any]:
        self.asked += 1
        return self._ask()

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.answers.look([f"{ANSWER}it", "market"])

    def wait(self) -> dict[str, Any]:
        assert self._news.acquire(timeout=PATIENCE_S)
        self.seen += 1
        found = self.answers.loaded(f"{ANSWER}it")
        assert found is not None
        told: dict[str, Any] = json.loads(found.text)
        return told


def test_a_question_is_asked_once_for_all_who_look_within_its_time() -> None:
    asker = Asker(lambda: {"rows": [1]}, every_s=3600)
    assert asker.answers.snapshot(f"{ANSWER}it") is None
    asker.look(100)
    answer = asker.wait()
    asker.look(100)
    asker.answers.close()
    assert asker.asked == 1
    assert (answer["topic"], answer["state"], answer["rows"]) == ("answers/it", "answered", [1])


def test_a_question_is_asked_again_after_its_time_and_nobody_asks_without_viewers() -> None:
    asker = Asker(dict, every_s=0)
    asker.answers.look(["market"])
    assert asker.asked == 0
    for _ in range(3):
        while asker.asked == asker.seen:  # its short pause goes by
            asker.look()
        asker.wait()
    asker.answers.close()
    assert asker.asked >= 3  # once more where a look came just after an answer


def test_what_is_wrong_with_the_lake_is_the_answer() -> None:
    def ask() -> dict[str, Any]:
        raise LakeUnreachable("The storage does not answer.")

    asker = Asker(ask, every_s=3600)
    asker.look()
    answer = asker.wait()
    asker.answers.close()
    assert (answer["state"], answer["said"]) == ("failed", "The storage does not answer.")


def test_a_defect_in_one_question_is_told_and_leaves_the_others() -> None:
    asker = Asker(lambda: {"rows": [1 / 0]}, every_s=3600)
    asker.look()
    answer = asker.wait()
    asker.answers.close()
    assert answer["state"] == "failed"
    assert "log" in answer["said"]


def test_an_answer_that_took_long_is_followed_by_a_longer_pause() -> None:
    asker = Asker(lambda: {"slept": threading.Event().wait(0.05)}, every_s=0)
    asker.look()
    asker.wait()
    asker.look(1000)  # within ten times the time that it took
    asker.answers.close()
    assert asker.asked == 1


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    made = Lake(tmp_path_factory.mktemp("questions") / "lake")
    dashboard_lake.fill(made)
    bodies = [b"<img src=x>", b"\xff\x00 no text", b"[" * 5000]
    made.take_in([message(body, received=START + timedelta(seconds=at)) for at, body in enumerate(bodies)])
    yield made
    made.close()


def _rows(answer: Any) -> list[dict[str, Any]]:
    return [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]


def test_every_question_is_answered_in_what_json_can_say(lake: Lake) -> None:
    questions = Questions(lake.settings.location)
    answers = {name: question.ask() for name, question in questions.all.items()}
    questions.close()
    assert EVERY_S.keys() <= load_queries().keys()
    for name, answer in answers.items():
        json.dumps(answer)
        if name != "processes":
            assert answer["rows"], name


def test_a_lake_without_tables_has_no_rows(tmp_path: Path) -> None:
    empty = Lake(tmp_path / "empty")
    questions = Questions(empty.settings.location)
    assert {name: question.ask().get("rows", []) for name, question in questions.all.items()} == {
        # The freshness names its tables all the same.
        name: [(table, None, None, None) for table in _FRESH] if name == "data_freshness" else []
        for name in questions.all
    }
    questions.close()
    empty.close()


_FRESH = (
    "bronze.coinbase_raw_trades",
    "silver.fact_crypto_trades",
    "gold.dm_trade_bars",
    "gold.dm_crypto_price_stats",
)


def test_the_grid_holds_the_hours_of_the_ledger(lake: Lake) -> None:
    questions = Questions(lake.settings.location)
    hours, days, ledger = (_rows(questions.all[name].ask()) for name in ("hours", "days", "ledger"))
    questions.close()
    stored = lake.rows(COMPLETENESS)
    told = {(row["symbol"], row["start"]): (row["held_ids"], row["missing_ids"], row["healed_ids"]) for row in hours}
    assert told == {
        (row["symbol"], row["window_start"].timestamp() * 1000): (
            row["held_ids"],
            row["missing_ids"],
            row["healed_ids"],
        )
        for row in stored
    }
    held = sum(row["held_ids"] for row in stored)
    assert sum(row["held_ids"] for row in days) == sum(row["held_ids"] for row in ledger) == held
    assert {row["symbol"]: row["missing_ids"] for row in ledger} == {"BTC-USD": 3, "ETH-USD": 0}


def test_a_quarantined_message_is_told_as_text_and_cut(lake: Lake) -> None:
    questions = Questions(lake.settings.location)
    answer = questions.all["quarantine"].ask()
    questions.close()
    rows = _rows(answer)
    assert [row["body"] for row in rows] == ["[" * BODY_BYTES_MAX, "\\xff\x00 no text", "<img src=x>"]
    assert [row["bytes"] for row in rows] == [5000, 10, 11]
    assert sum(row["messages"] for row in _rows(answer["reasons"])) == lake.arrow(QUARANTINE).num_rows


def test_processes_are_told_with_restarts_and_their_figures_but_not_their_prices(tmp_path: Path) -> None:
    assert processes_answer(None)["processes"] == []
    assert processes_answer(tmp_path)["processes"] == []
    file = StatusFile(tmp_path, "processing", restarts=2)
    file.report({"trades_per_s": 12.5, "products": {"BTC-USD": {}}})
    (told,) = processes_answer(tmp_path)["processes"]
    assert (told["name"], told["state"], told["restarts"]) == ("processing", "running", 2)
    assert told["report"] == {"trades_per_s": 12.5}
