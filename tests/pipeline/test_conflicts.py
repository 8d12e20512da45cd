"""Trades that come again with another price, size, side or time: the first copy stays, and everybody is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from cryptopulse.cli import run
from cryptopulse.lake.tables import CONFLICT, QUARANTINE, SILVER
from cryptopulse.serve.live.dashboard_queries import DashboardQueries
from cryptopulse.status import StatusFile
from support import Lake, Message, Trade, advanced, page, some
from support_audit import audit, change, delete, fill, matches, overwrite, rows
from support_past import Past

JULY, JUNE = datetime(2026, 7, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)
SENTENCE = "100 trades came again with other content (first copies kept; see silver.quarantined_messages)"


def month(start: datetime, last: int, price: int) -> list[Trade]:
    """Ids from 1 on, a second apart."""
    return [
        Trade("BTC-USD", number, start + timedelta(seconds=number), price=f"{price + number % 7}.5")
        for number in range(1, last + 1)
    ]


FIRST, AGAIN = month(JUNE, 100, 100), month(JULY, 120, 200)


def tens(trades: Sequence[Trade]) -> list[Message]:
    """As the Advanced Trade feed sends them."""
    return [advanced(trades[start : start + 10]) for start in range(0, len(trades), 10)]


def pages(trades: Sequence[Trade]) -> list[Message]:
    """As REST has them."""
    return [page(trades[start : start + 60]) for start in range(0, len(trades), 60)]


FORMS: list[tuple[Callable[[Sequence[Trade]], list[Message]], int]] = [(matches, 100), (tens, 10), (pages, 2)]
"""Ways to send trades, and how many messages then tell ids 1 to 100."""


@pytest.mark.parametrize(
    ("sent", "messages", "is_one_batch"),
    some(3, [(*form, (place + turn) % 2 == 0) for turn in (0, 1) for place, form in enumerate(FORMS)]),
)
def test_ids_that_begin_again_are_counted_kept_as_evidence_and_told(
    tmp_path: Path, sent: Callable[[Sequence[Trade]], list[Message]], messages: int, is_one_batch: bool
) -> None:
    lake = Lake(tmp_path / "lake")
    done = lake.take_in([*sent(FIRST), *sent(AGAIN)]) if is_one_batch else None
    if done is None:
        assert lake.take_in(sent(FIRST))["conflicts"] == 0
        done = lake.take_in(sent(AGAIN))
    assert done["conflicts"] == 100
    kept = lake.arrow(SILVER).sort_by("trade_id")
    assert pc.sum(pc.less(kept["event_time"], pa.scalar(JULY))).as_py() == 100
    assert kept["trade_id"].to_pylist() == list(range(1, 121))
    evidence = lake.arrow(QUARANTINE)
    assert (evidence.num_rows, set(evidence["reason"].to_pylist())) == (messages, {CONFLICT})
    before = audit(lake.path)
    assert (before.code, before.kinds) == (8, ["trades_conflict"])
    told = before.one("trades_conflict")
    about = (told["symbol"], told["trades"], told["ids"], told["first_trade_id"], told["last_trade_id"])
    assert about == ("BTC-USD", 100, 100, 1, 100)
    assert told["offset"] == min(evidence["offset"].to_pylist())
    assert told["columns"] == {
        "price": {"stored": "101.5", "received": "201.5"},
        "event_time": {"stored": "2026-06-01T00:00:01Z", "received": "2026-07-01T00:00:01Z"},
    }
    assert before.product("BTC-USD")["missing_ids"] == 0
    held = [lake.rows(SILVER), lake.rows(QUARANTINE)]
    assert lake.rebuild()["conflicts"] == 100
    assert [lake.rows(SILVER), lake.rows(QUARANTINE)] == held
    assert audit(lake.path).findings == before.findings
    lake.close()


def test_a_plain_repeat_is_no_conflict_however_it_is_written(tmp_path: Path) -> None:
    trades = FIRST[:70]
    spelled = [
        trade.match(price=f"{trade.price}00", size="10e-1", time=f"{trade.match()['body'].decode()[-29:-3]}999Z")
        for trade in trades
    ]
    lake = Lake(tmp_path / "lake")
    done = [lake.take_in(part) for part in (matches(trades), [*matches(trades), *tens(trades)], spelled, pages(trades))]
    assert [one["conflicts"] for one in done] == [0] * 4
    assert done[-1]["duplicates"] >= 70
    assert lake.arrow(QUARANTINE).num_rows == 0
    lake.close()
    assert audit(lake.path).findings == []


@pytest.mark.parametrize(
    ("column", "changed"),
    [
        ("price", replace(FIRST[6], price="100.500000000001")),
        ("trade_size", replace(FIRST[6], size="1.000000000001")),
        ("side", replace(FIRST[6], side="SELL")),
        ("event_time", replace(FIRST[6], time=FIRST[6].time + timedelta(microseconds=1))),
    ],
)
def test_the_smallest_difference_in_one_field_is_named(tmp_path: Path, column: str, changed: Trade) -> None:
    lake = fill(tmp_path / "lake", [matches(FIRST), [FIRST[50].match(), changed.match()]])
    found = audit(lake)
    assert (found.code, found.kinds) == (8, ["trades_conflict"])
    told = found.one("trades_conflict")
    assert (told["trades"], told["trade_id"], list(told["columns"])) == (1, 7, [column])


def test_each_copy_counts_and_so_does_each_product(tmp_path: Path) -> None:
    other = [replace(trade, symbol="ETH-USD") for trade in FIRST]
    again = [replace(trade, symbol="ETH-USD") for trade in AGAIN]
    lake = fill(tmp_path / "lake", [matches([*FIRST, *other]), matches([*AGAIN, *AGAIN, *again]), tens(AGAIN)])
    found = {told["symbol"]: told for told in audit(lake).of("trades_conflict")}
    assert {symbol: (told["trades"], told["ids"]) for symbol, told in found.items()} == {
        "BTC-USD": (300, 100),
        "ETH-USD": (100, 100),
    }


def test_a_trade_that_was_refused_tells_nothing_but_its_neighbours_do(tmp_path: Path) -> None:
    wrong = json.loads(advanced(AGAIN[:3])["body"])
    wrong["events"][0]["trades"][0]["price"] = "-1"  # of id 3
    bad = advanced([]) | {"body": json.dumps(wrong).encode()}
    lake = fill(tmp_path / "lake", [matches(FIRST), [bad, AGAIN[4].match(side="neither")]])
    told = audit(lake).one("trades_conflict")
    assert (told["trades"], told["first_trade_id"], told["last_trade_id"]) == (2, 1, 2)


def test_an_audit_of_some_time_or_product_tells_of_what_is_in_it(tmp_path: Path) -> None:
    lake = fill(tmp_path / "lake", [matches(FIRST), matches(AGAIN)])
    inside = (["--from", "2026-06-01", "--to", "2026-06-02"], ["--from", "2026-07-01"], ["--product", "BTC-USD"])
    assert [audit(lake, *part).one("trades_conflict")["trades"] for part in inside] == [100, 100, 100]


def test_silver_that_differs_from_its_messages_is_found_without_the_word_of_the_pipeline(tmp_path: Path) -> None:
    lake = fill(tmp_path / "lake", [matches(FIRST), matches(AGAIN)])
    delete(lake, QUARANTINE, "true")
    told = audit(lake).one("trades_differ")
    assert (told["trades"], told["ids"], told["repair"]) == (100, 100, f"run `cryptopulse rebuild --lake {lake}`")
    assert run(["rebuild", "--lake", str(lake)]) == 0
    assert audit(lake).kinds == ["trades_conflict"]


def test_prices_that_two_trades_of_silver_have_swapped_are_found(tmp_path: Path) -> None:
    lake = fill(tmp_path / "lake", [matches(FIRST)])
    first, second = (row["price"] for row in rows(lake, SILVER).sort_by("trade_id").slice(0, 2).to_pylist())
    change(lake, SILVER, {"trade_id": 1}, price=second)
    change(lake, SILVER, {"trade_id": 2}, price=first)
    told = audit(lake).one("trades_differ")
    assert (told["trades"], told["first_trade_id"], told["last_trade_id"]) == (2, 1, 2)


def test_a_conflict_is_not_taken_for_a_refusal_when_its_message_has_trades_that_silver_lost(tmp_path: Path) -> None:
    lake = fill(tmp_path / "lake", [matches(FIRST[:5]), [advanced(AGAIN[:10])]])
    trades = rows(lake, SILVER)
    overwrite(lake, SILVER, trades.filter(pc.less(trades["trade_id"], 8)))
    found = audit(lake)
    assert [(row["first_trade_id"], row["last_trade_id"]) for row in found.of("ids_lost")] == [(8, 10)]
    assert found.one("trades_conflict")["trades"] == 5


def test_status_says_how_many_and_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = StatusFile(tmp_path / "lake" / "_cryptopulse", "processing")
    report.report({"conflicts_total": 0})
    run(["status", "--lake", str(tmp_path / "lake")])
    assert "other content" not in capsys.readouterr().out
    report.report({"conflicts_total": 100})
    run(["status", "--lake", str(tmp_path / "lake")])
    assert SENTENCE in capsys.readouterr().out.splitlines()
    run(["status", "--lake", str(tmp_path / "lake"), "--json"])
    told = {one["name"]: one["report"] for one in json.loads(capsys.readouterr().out)["processes"]}
    assert told["processing"]["conflicts_total"] == 100


def test_replay_and_rebuild_say_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording, lake = tmp_path / "messages.jsonl", ["--lake", str(tmp_path / "lake")]
    recording.write_bytes(b"\n".join(one["body"] for one in matches([*FIRST, *AGAIN])) + b"\n")
    assert run(["replay", str(recording), *lake, "--batch-messages", "30"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == SENTENCE
    assert run(["rebuild", *lake, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["conflicts"] == 100


def test_backfill_says_how_many(past: Past, in_process: None, capsys: pytest.CaptureFixture[str]) -> None:
    product = past.products[0]
    middle = sorted(trade for trade in past.published().values() if trade.symbol == product)[500]
    lake = Lake("lake")
    lake.take_in([replace(middle, price="1").match()])
    lake.close()
    backfill = ["backfill", product, "--lake", "lake", "--rest-url", past.url, "--from", past.start.isoformat()]
    capsys.readouterr()
    assert run([*backfill, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert run(backfill) == 0
    assert "other content" not in capsys.readouterr().out
    pages_with_it = Lake("lake").arrow(QUARANTINE).num_rows
    assert told["conflicts"] == pages_with_it >= 1


def test_the_page_counts_the_messages_of_each_product(tmp_path: Path) -> None:
    lake = fill(tmp_path / "lake", [matches(FIRST), matches(AGAIN)])
    questions = DashboardQueries(Lake(lake).settings.location)
    assert questions.all["conflicts"].run() == {"columns": ["symbol", "messages"], "rows": [("BTC-USD", 100)]}
    questions.close()
