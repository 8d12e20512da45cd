"""Whatever arrives: trades go to silver, what is no trade goes to quarantine with a reason, and nothing raises."""

from __future__ import annotations

import pyarrow.compute as pc
from deltalake import write_deltalake

from cryptopulse.lake.tables import ABSENT, BRONZE, QUARANTINE, SILVER
from support import Lake, Message, Trade, advanced, at, message, page
from support_bad_messages import BAD, CONTROL, GOOD


def test_bad_messages_are_kept_whole_with_their_reasons_and_cost_no_good_one(lake: Lake) -> None:
    stream: list[Message] = []
    for number, (bad, _) in enumerate(BAD.values()):
        stream += [bad, Trade("ETH-USD", number + 1, at(number)).match()]
    lake.take_in(stream)
    assert [row["trade_id"] for row in lake.rows(SILVER)] == list(range(1, len(BAD) + 1))
    assert lake.arrow(BRONZE).num_rows == 2 * len(BAD)
    names = ("body", "source", "partition_key", "reason")
    kept = [tuple(row[name] for name in names) for row in lake.rows(QUARANTINE)]
    assert kept == [(bad["body"], bad["source"], bad["partition_key"], reason) for bad, reason in BAD.values()]
    assert lake.drain()["messages"] == 0


def test_control_messages_are_neither_trades_nor_refused(lake: Lake) -> None:
    lake.take_in([*map(message, CONTROL), GOOD.match("last_match")])
    assert lake.rows(QUARANTINE) == []
    assert [row["trade_id"] for row in lake.rows(SILVER)] == [7]


def test_one_bad_trade_in_a_batch_does_not_cost_the_good_ones(lake: Lake) -> None:
    trades = [Trade("BTC-USD", one, at(one), price="-1" if one == 3 else "5") for one in range(1, 6)]
    wrong = [Trade("ETH-USD", one, at(one), size="0" if one == 9 else "5") for one in range(7, 11)]
    lake.take_in([advanced(trades), page(wrong)])
    assert [row["trade_id"] for row in lake.rows(SILVER)] == [1, 2, 4, 5, 7, 8, 10]
    assert [row["reason"] for row in lake.rows(QUARANTINE)] == ["price is not positive", "size is not positive"]


def test_what_another_engine_has_stored_of_bronze_is_not_stored_again(lake: Lake) -> None:
    """As after Spark: rows are there, but not under this engine's positions."""
    lake.take_in([GOOD.match()])
    there = Lake(lake.path.with_name("there"))
    there.take_in([GOOD.match(), message(b"{"), page_with_a_hole()])
    shift = lake.log.origin(0) - there.log.origin(0)
    for table in (BRONZE, QUARANTINE, ABSENT):
        rows = there.arrow(table)
        place = rows.column_names.index("offset")
        moved = rows.set_column(place, rows.schema.field("offset"), pc.add(rows["offset"], shift))
        write_deltalake(lake.delta(table), moved.filter(pc.greater(moved["offset"], lake.log.origin(0))), mode="append")
    lake.append([message(b"{"), page_with_a_hole()])
    lake.drain()
    found = [[row[name] for name in QUARANTINE.key] for row in lake.rows(QUARANTINE)]
    assert found == [[0, lake.log.origin(0) + 1]]
    assert lake.arrow(ABSENT).num_rows == 1
    assert lake.contents() == there.contents()
    there.close()


def page_with_a_hole() -> Message:
    return page([Trade("ETH-USD", number) for number in (1, 2, 4)])
