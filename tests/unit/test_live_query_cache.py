"""DashboardQueries of the pages: asked once for all who look, not too often, and honest about what can't be read."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from structlog.testing import capture_logs

import dashboard_lake
from cryptopulse.errors import LakeUnreachable
from cryptopulse.lake.queries import load_queries
from cryptopulse.lake.tables import COMPLETENESS, QUARANTINE
from cryptopulse.serve.live.dashboard_queries import BODY_BYTES_MAX, EVERY_S, DashboardQueries, plain_rows, process_rows
from cryptopulse.serve.live.message import LiveMessage
from cryptopulse.serve.live.query_cache import ANSWER, CachedQuery, QueryCache
from cryptopulse.status import StatusFile
from support import START, Lake, Trade, at, message

PATIENCE_S = 60.0


class Asker:
    """QueryCache to one question, and how often it was asked."""

    def __init__(self, ask: Callable[[], dict[str, Any]], every_s: float) -> None:
        self.asked = self.seen = 0
        self._ask = ask
        self._news = threading.Semaphore(0)
        self.answers = QueryCache({"it": CachedQuery(self._count, every_s)}, lambda _topic: self._news.release())

    def _count(self) -> dict[str, Any]:
        self.asked += 1
        return self._ask()

    def look(self, times: int = 1) -> None:
        for _ in range(times):
            self.answers.refresh([f"{ANSWER}it", "market"])

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
    assert (answer["topic"], answer["state"], answer["rows"]) == ("queries/it", "answered", [1])


def test_a_question_is_asked_again_after_its_time_and_nobody_asks_without_viewers() -> None:
    asker = Asker(dict, every_s=0)
    asker.answers.refresh(["market"])
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
    assert (answer["state"], answer["detail"]) == ("failed", "The storage does not answer.")


def test_a_defect_in_one_question_is_told_and_leaves_the_others() -> None:
    asker = Asker(lambda: {"rows": [1 / 0]}, every_s=3600)
    with capture_logs() as events:
        asker.look()
        answer = asker.wait()
    asker.answers.close()
    assert answer["state"] == "failed"
    (told,) = [event for event in events if event["event"] == "unexpected_error"]
    assert told["number"] in answer["detail"]
    assert isinstance(told["exc_info"], ZeroDivisionError)


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
    questions = DashboardQueries(lake.settings.location)
    answers = {name: question.run() for name, question in questions.all.items()}
    questions.close()
    assert EVERY_S.keys() <= load_queries().keys()
    for name, answer in answers.items():
        json.dumps(answer)
        if name not in ("processes", "conflicts", "retention"):
            assert answer["rows"], name


def test_a_lake_without_tables_has_no_rows(tmp_path: Path) -> None:
    empty = Lake(tmp_path / "empty")
    questions = DashboardQueries(empty.settings.location)
    assert {name: question.run().get("rows", []) for name, question in questions.all.items()} == {
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
    questions = DashboardQueries(lake.settings.location)
    hours, days, ledger = (_rows(questions.all[name].run()) for name in ("hours", "days", "ledger"))
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
    assert sum(row["held_ids"] for row in days) == held
    assert {row["symbol"]: (row["healed_ids"], row["absent_ids"]) for row in ledger} == {
        "BTC-USD": (1, 0),
        "ETH-USD": (0, 0),
    }


def test_what_is_missing_lies_between_the_times_of_the_ledger_also_after_hours_without_trades(tmp_path: Path) -> None:
    """BTC-USD lacks 3 to 5 over four hours of silence, and 8; ETH-USD lacks nothing."""
    made = Lake(tmp_path / "lake")
    seconds = {1: 0, 2: 10, 6: 4 * 3600 + 5, 7: 4 * 3600 + 6, 9: 4 * 3600 + 20, 10: 9 * 3600}
    trades = [Trade("BTC-USD", number, at(when)) for number, when in seconds.items()]
    made.take_in([trade.match() for trade in [*trades, Trade("ETH-USD", 1, at(0)), Trade("ETH-USD", 2, at(9 * 3600))]])
    questions = DashboardQueries(made.settings.location)
    ledger = {row["symbol"]: (row["missing_from"], row["missing_to"]) for row in _rows(questions.all["ledger"].run())}
    questions.close()
    made.close()
    since, until = (at(seconds[number]).timestamp() * 1000 for number in (2, 9))
    assert ledger["ETH-USD"] == (None, None)
    assert ledger["BTC-USD"][0] <= since < until < ledger["BTC-USD"][1] <= until + 3_600_000


def test_a_quarantined_message_is_told_as_text_and_cut(lake: Lake) -> None:
    questions = DashboardQueries(lake.settings.location)
    answer = questions.all["quarantine"].run()
    questions.close()
    rows = _rows(answer)
    assert [row["body"] for row in rows] == ["[" * BODY_BYTES_MAX, "\\xff\x00 no text", "<img src=x>"]
    assert [row["bytes"] for row in rows] == [5000, 10, 11]
    assert sum(row["messages"] for row in _rows(answer["reasons"])) == lake.arrow(QUARANTINE).num_rows


def test_processes_are_told_with_restarts_and_their_figures_but_not_their_prices(tmp_path: Path) -> None:
    assert process_rows(None)["processes"] == []
    assert process_rows(tmp_path)["processes"] == []
    file = StatusFile(tmp_path, "processing", restarts=2)
    file.report({"trades_per_s": 12.5, "products": {"BTC-USD": {}}})
    (told,) = process_rows(tmp_path)["processes"]
    assert (told["name"], told["state"], told["restarts"]) == ("processing", "running", 2)
    assert told["report"] == {"trades_per_s": 12.5}


def test_no_value_of_a_row_keeps_an_answer_from_being_shown() -> None:
    far = datetime(9999, 12, 31, 23, 59, 58, tzinfo=UTC)
    table = pa.table(
        {
            "time": pa.array([START, far, datetime(1, 1, 1, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
            "id": pa.array([1, 2**62, -(2**62), None], pa.int64()),
            "price": pa.array([Decimal("0.000000000001"), Decimal(10) ** 25, Decimal(-1), None], pa.decimal128(38, 12)),
            "text": ["", "\ud7ff\0", "A" * 300, None],
        }
    )
    rows = json.loads(LiveMessage("it", "snapshot", plain_rows(table)).text)["rows"]
    assert rows[0] == [START.timestamp() * 1000, 1, 1e-12, ""]
    assert rows[1][:2] == [pytest.approx(far.timestamp() * 1000), 2**62]
    assert rows[3] == [None] * 4
