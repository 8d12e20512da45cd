"""The audit reads messages on its own, and comes to the same trades as the pipeline, whatever the messages are like."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cryptopulse.lake.tables import QUARANTINE, SILVER
from cryptopulse.recording import read_recording
from support import Lake, message, page
from support_audit import audit, fill, market, matches, rows
from support_bad_messages import BAD, CONTROL, GOOD

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
from parity_messages import crash_day, misbehaving

CAPTURES = Path(__file__).parents[2].parent / "shared" / "captures"
RECORDINGS = {
    "exchange-2026-07-07/messages.jsonl": 437,
    "exchange-2021-04-17/recv.jsonl": 107,
    "advanced-2026-08-09/recv.no_l2.jsonl": 279,
}
WEBSOCKET_ODDITIES = [
    GOOD.match(trade_id="8"),
    message(GOOD.match(trade_id=9)["body"].replace(b": ", b" :\t\r\n ")),
    message(GOOD.match(trade_id=10, maker_order_id="é\u2028\U0001f600")["body"]),
    GOOD.match(trade_id=11, extra={"type": "deep", "trade_id": 5}),
]


def test_odd_and_bad_messages_are_no_reason_to_find_anything(tmp_path: Path) -> None:
    lake = fill(
        tmp_path / "lake",
        [[GOOD.match()], [*(bad for bad, _reason in BAD.values()), *map(message, CONTROL)], WEBSOCKET_ODDITIES],
    )
    assert rows(lake, QUARANTINE).num_rows > len(BAD) * 0.9
    found = audit(lake)
    assert (found.code, found.findings) == (0, [])
    assert found.product("BTC-USD")["held_ids"] == 5


def test_a_day_on_a_bad_connection_has_holes_and_nothing_else_wrong(tmp_path: Path) -> None:
    """Dropped, repeated and late trades of both feeds and of REST, over midnight, with ids that jump."""
    sent = list(misbehaving(crash_day(seed=3, count=3_000), seed=4))
    lake = fill(tmp_path / "lake", [sent[start : start + 1_000] for start in range(0, len(sent), 1_000)])
    found = audit(lake)
    assert set(found.kinds) == {"hole"}
    assert found.json["findings_left_out"] == {}
    held, missing, absent = (
        sum(product[name] for product in found.json["products"]) for name in ("held_ids", "missing_ids", "absent_ids")
    )
    assert held + missing + absent == found.checked("ids")
    assert held == rows(lake, SILVER).num_rows
    assert missing
    assert found.checked("bars") > 1_000


@pytest.mark.captures
@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the recordings (../shared/captures) are not on this machine")
@pytest.mark.parametrize(("name", "trades"), RECORDINGS.items())
def test_recordings_of_the_real_feeds_are_found_complete_but_for_real_holes(
    tmp_path: Path, name: str, trades: int
) -> None:
    lake = Lake(tmp_path / "lake")
    lake.take_in(
        message(body, received=datetime.fromtimestamp((received or 0) // 1_000_000_000, UTC))
        for received, body in read_recording(CAPTURES / name)
    )
    lake.close()
    found = audit(lake.path)
    assert set(found.kinds) <= {"hole"}
    assert sum(product["held_ids"] for product in found.json["products"]) == trades
    if name.startswith("exchange-2026"):  # with heartbeats, and without a hole
        assert found.code == 0


def test_pages_and_feeds_may_tell_of_the_same_trades(tmp_path: Path) -> None:
    trades = market(products=("BTC-USD",))
    pages = [page(trades[start : start + 50]) for start in (80, 40, 0)]
    found = audit(fill(tmp_path / "lake", [pages, matches(trades)]))
    assert (found.code, found.product("BTC-USD")["healed_ids"]) == (0, 120)
