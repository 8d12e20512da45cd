"""Where no message names a product's newest trade, it is asked for."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import cast

from cryptopulse.errors import Disconnected, UnknownProduct
from cryptopulse.feed.buffer import MessageBuffer
from cryptopulse.feed.event_log import EventLines
from cryptopulse.feed.rest import RestClient, TradePage
from cryptopulse.feed.sequence_gaps import GRACE_NS, IdGap, IdWatch
from cryptopulse.healing.heal import Healer
from cryptopulse.intervals import Intervals
from cryptopulse.settings import load_settings
from support import Message, Trade, message
from support_audit import fill

SILENT, UNKNOWN, HEARD = "A-USD@okx", "B-USD@okx", "C-USD@okx"


class Rest:
    """One product without an answer, one that is refused, one whose newest id is 7."""

    page_max = 100
    requests = failures = 0

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.asked_again, self.asked_heard = asyncio.Event(), asyncio.Event()

    async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
        assert (after, limit) == (None, 1)
        self.asked.append(product)
        if product == SILENT:
            if self.asked.count(SILENT) > 1:
                self.asked_again.set()
            raise Disconnected("nobody answers")
        if product == UNKNOWN:
            raise UnknownProduct("no such product.")
        self.asked_heard.set()
        return TradePage(b"[]", [7], 0)


def test_ids_up_to_the_newest_one_are_missing_and_a_product_without_an_answer_keeps_no_other_waiting(
    tmp_path: Path,
) -> None:
    rest, watch = Rest(), IdWatch([SILENT, UNKNOWN, HEARD])
    watch.ids[HEARD].seen(5, 0)
    settings = load_settings(lake=tmp_path / "lake")

    async def scenario() -> None:
        healer = Healer("okx", settings, cast("RestClient", rest), MessageBuffer(1 << 20), watch, EventLines())
        healer.ask_newest([SILENT, UNKNOWN, HEARD])
        running = asyncio.create_task(healer.run())
        async with asyncio.timeout(20):
            await rest.asked_again.wait()
        running.cancel()
        await asyncio.wait([running])
        await healer.close()

    asyncio.run(scenario())
    assert rest.asked[:4] == [SILENT, UNKNOWN, HEARD, SILENT]
    assert watch.report(time.monotonic_ns() + GRACE_NS) == [(HEARD, IdGap(6, 7, "page"))]


def test_a_product_that_is_quiet_is_asked_about_unless_its_heartbeats_name_the_newest_trade(tmp_path: Path) -> None:
    settings = load_settings(lake=tmp_path / "lake", healing={"table_check_interval_s": 1})
    rests = {"okx": Rest(), "": Rest()}
    watch = IdWatch([HEARD, "C-USD"])
    for ids in watch.ids.values():
        ids.seen(5, 0)

    async def scenario() -> None:
        buffer, lines = MessageBuffer(1 << 20), EventLines()
        healers = [
            Healer(venue, settings, cast("RestClient", rest), buffer, watch, lines) for venue, rest in rests.items()
        ]
        running = [asyncio.create_task(healer.run()) for healer in healers]
        async with asyncio.timeout(20):
            await rests["okx"].asked_heard.wait()
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        for healer in healers:
            await healer.close()

    asyncio.run(scenario())
    assert (rests["okx"].asked, rests[""].asked) == ([HEARD], [])


def test_of_what_the_tables_lack_a_healer_fetches_its_own_venues_trades_alone(tmp_path: Path) -> None:
    def okx(number: int) -> Message:
        row = f'{{"instId":"C-USD","tradeId":"{number}","px":"1","sz":"1","side":"buy","ts":"1783465157897"}}'
        return message(f'{{"arg":{{"channel":"trades-all","instId":"C-USD"}},"data":[{row}]}}'.encode(), key=HEARD)

    def coinbase(number: int) -> Message:
        return Trade("C-USD", number).match()

    lake = fill(tmp_path / "lake", [[okx(1), okx(3), coinbase(1), coinbase(3)]])
    asked: set[str] = set()
    both = asyncio.Event()

    class Fetching:
        page_max = 100
        requests = failures = 0

        async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
            if after is not None and limit > 1:
                asked.add(product)
                both.set()
            raise Disconnected("nobody answers")

    async def scenario() -> None:
        settings = load_settings(lake=lake, healing={"table_check_interval_s": 1})
        watch = IdWatch([HEARD, "C-USD"])
        healer = Healer("okx", settings, cast("RestClient", Fetching()), MessageBuffer(1 << 20), watch, EventLines())
        running = asyncio.create_task(healer.run())
        async with asyncio.timeout(20):
            await both.wait()
        await asyncio.sleep(0.3)  # the other workers have begun as well
        running.cancel()
        await asyncio.wait([running])
        await healer.close()
        assert healer.work.known("C-USD", 1, 3) == Intervals()

    asyncio.run(scenario())
    assert asked == {HEARD}
