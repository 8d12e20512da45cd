"""The commands that the audit names are the ones that repair: typed as they are, they leave a lake that is complete."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from cryptopulse import cli
from cryptopulse.lake.tables import BRONZE, SILVER
from support import Message, Trade, message
from support_audit import Audited, audit, delete, fill, intervals_of, matches, rows
from support_past import Past

TRADES = 4_000


@pytest.fixture(scope="module")
def exchange() -> Iterator[Past]:
    """A simulated exchange that has stopped trading."""
    made = Past(TRADES)
    yield made
    made.close()


def beats(trades: Iterable[Trade], last: Mapping[str, int]) -> list[Message]:
    """Half a minute of heartbeats after the trades, which name the exchange's `last` ones."""
    end = max(trade.time for trade in trades)
    return [
        message(
            json.dumps({"type": "heartbeat", "product_id": product, "last_trade_id": trade_id}).encode(),
            key=product,
            received=end + timedelta(seconds=second),
        )
        for second in range(30)
        for product, trade_id in last.items()
    ]


def follow(exchange: Past, findings: Sequence[Mapping[str, str]]) -> None:
    """Runs every command that the findings name, once each and in their order."""
    named = [command for finding in findings for command in re.findall(r"`(cryptopulse [^`]+)`", finding["repair"])]
    for command in dict.fromkeys(named):
        words = shlex.split(command)[1:]
        asked = ["--rest-url", exchange.url] if words[0] == "backfill" else []
        assert cli.run([*words, *asked]) == 0, command


def without_offsets(found: Audited) -> list[str]:
    return [kind for kind in found.kinds if kind != "offsets_missing"]


def test_holes_are_filled_by_the_command_that_the_audit_names(exchange: Past, in_process: None, tmp_path: Path) -> None:
    trades = sorted(exchange.published().values())
    product = exchange.products[0]
    first, last = (one(trade.trade_id for trade in trades if trade.symbol == product) for one in (min, max))
    holes = {(product, first + 50), *((product, first + number) for number in range(500, 900))}
    holes |= {(product, number) for number in range(last - 9, last + 1)}
    newest = {name: max(trade.trade_id for trade in trades if trade.symbol == name) for name in exchange.products}
    kept = [trade for trade in trades if (trade.symbol, trade.trade_id) not in holes]
    lake = fill(tmp_path / "lake", [matches(kept), beats(trades, newest)])
    found = audit(lake)
    assert intervals_of(found.findings) == [
        (product, first + 50, first + 50),
        (product, first + 500, first + 899),
        (product, last - 9, last),
    ]
    assert set(found.kinds) == {"hole"}
    follow(exchange, found.findings)
    done = audit(lake)
    assert (done.code, done.product(product)["healed_ids"]) == (0, len(holes))
    assert done.checked("ids") == len(trades)


def test_trades_whose_messages_are_lost_as_well_are_fetched_again(
    exchange: Past, in_process: None, tmp_path: Path
) -> None:
    trades = sorted(exchange.published().values())
    lake = fill(tmp_path / "lake", [matches(trades[: len(trades) // 2]), matches(trades[len(trades) // 2 :])])
    product = exchange.products[0]
    first = min(trade.trade_id for trade in trades if trade.symbol == product)
    lost = range(first + 200, first + 300)
    delete(lake, SILVER, f"symbol = '{product}' AND trade_id BETWEEN {lost[0]} AND {lost[-1]}")
    delete(lake, BRONZE, f"partition_key = '{product}' AND {_place(lake, product, lost)}")
    found = audit(lake)
    assert without_offsets(found) == ["ids_lost"]
    assert intervals_of(found.of("ids_lost")) == [(product, lost[0], lost[-1])]
    follow(exchange, found.of("ids_lost"))
    done = audit(lake)
    assert without_offsets(done) == []  # that messages are gone from bronze stays true
    assert done.product(product)["healed_ids"] == len(lost)


def _place(lake: Path, product: str, ids: range) -> str:
    """SQL for the messages of some trades, which lie one after the other in bronze."""
    bodies = rows(lake, BRONZE).select(["offset", "partition_key", "body"]).to_pylist()
    offsets = [row["offset"] for row in bodies if row["partition_key"] == product and _id(row["body"]) in ids]
    return f'"offset" BETWEEN {min(offsets)} AND {max(offsets)}'


def _id(body: bytes) -> int:
    return int(json.loads(body)["trade_id"])
