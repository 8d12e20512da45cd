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
from cryptopulse.settings import load_settings

SILENT, UNKNOWN, HEARD = "A-USD@okx", "B-USD@okx", "C-USD@okx"


class Rest:
    """One product without an answer, one that is refused, one whose newest id is 7."""

    page_max = 100
    requests = failures = 0

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.asked_again = asyncio.Event()

    async def trades(self, product: str, *, after: int | None, limit: int) -> TradePage:
        assert (after, limit) == (None, 1)
        self.asked.append(product)
        if product == SILENT:
            if self.asked.count(SILENT) > 1:
                self.asked_again.set()
            raise Disconnected("nobody answers")
        if product == UNKNOWN:
            raise UnknownProduct("no such product.")
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
