"""Fetches missing trades: requests, clocks and retries around the work list.

A few workers request pages from the exchange and put them into the same buffer as the feed's messages, so they take the
same path into the log and the tables. Live data comes first: pages are requested only while the buffer is nearly empty,
and each worker has at most one page under way. A page counts when the log has acknowledged it.

The tables are read at the start and at intervals: see `reconcile`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import structlog

from cryptopulse.errors import CryptoPulseError, TerminalError, TransientError
from cryptopulse.feed.buffer import REST, MessageBuffer
from cryptopulse.feed.event_log import EventLines
from cryptopulse.feed.recovery import Resumed
from cryptopulse.feed.rest import RestClient, TradePage
from cryptopulse.feed.sequence_gaps import UNKNOWN, IdWatch
from cryptopulse.healing.reconcile import KnownIds, LiveIds, Reconciler
from cryptopulse.healing.work_list import SECOND_NS, HoleClosed, IdsAbsent, NoRoom, PageRequest, WorkList
from cryptopulse.intervals import Intervals
from cryptopulse.lake.products import venue_of
from cryptopulse.retry import Backoff
from cryptopulse.settings import Settings

REQUESTS_AT_ONCE = 4
"""An answer takes some 100 ms, so this is enough for the ten requests a second that the exchange allows. It also bounds
the pages under way to 1 MB."""

SECOND_COMPARISON_S = 5.0
"""Time between the first two comparisons. It is short, so that a gap from before the start does not wait a minute."""

PUT_OFF_NS = 600 * SECOND_NS
"""Pause of a product that the exchange refuses."""

AGAIN_S = 600.0
"""Pause of ids that the tables lack although they were fetched: fetching does not help if the tables refuse a trade."""

FAILED_S = 1.0
"""Longest pause of a worker after a failed request. One product's trouble must not keep it from the others for longer,
and if nothing answers, four requests a second are enough."""

PROGRESS_S = 10.0
CLOSE_S = 2.0
_ROOM_S = 0.1  # between two checks of a full buffer
_ACKNOWLEDGED_S = 0.02  # between two checks whether the log has acknowledged a page

_log = structlog.get_logger()


class Healer:
    """Keeps the work list of one venue's products, and fetches its ids."""

    def __init__(
        self, venue: str, settings: Settings, rest: RestClient, buffer: MessageBuffer, watch: IdWatch, lines: EventLines
    ) -> None:
        """`venue`: "" for Coinbase, whose REST interface `rest` is. `watch` may follow products of others, too."""
        self.work = WorkList(rest.page_max)
        self._venue = venue
        self._lines = lines
        self._settings = settings.healing
        self._longest_pause_s = settings.feed.backoff_max_s
        self._lake = settings.location
        self._rest = rest
        self._buffer = buffer
        self._watch = watch
        self._reconciler = Reconciler(log_is_known=False)
        self._tables = KnownIds({}, {})
        self._news = asyncio.Event()
        self._to_ask: dict[str, None] = {}
        """Products whose newest id is to be asked for, as an ordered set."""
        self._asked = asyncio.Event()
        self._highest: dict[str, int] = {}
        """Product → highest id seen at the last comparison with the tables."""
        self._planning = asyncio.Lock()
        self._reader = threading.Thread()
        self._is_working = self._is_full = False
        self._can_read = True
        self._backoffs: dict[str, Backoff] = {}
        """For products whose last request failed."""
        self._refused: set[str] = set()
        """Products whose refusal by the exchange has been logged."""

    def resume(self, resumed: Resumed) -> None:
        """Takes over what the end of the log shows. Must be called before `run`."""
        self._reconciler = Reconciler(log_is_known=resumed.is_all)
        for product, held in resumed.held.items():
            for first, last in held if venue_of(product) == self._venue else ():
                self._reconciler.logged(product, first, last)
        for product, holes in resumed.holes.items():
            for first, last in holes if venue_of(product) == self._venue else ():
                self._add(product, first, last)

    def found(self, product: str, first: int, last: int) -> None:
        """The feed misses ids `first` … `last`; those that the tables hold or know to be absent are left out."""
        known = [known.get(product, Intervals()).within(first, last) for known in self._tables]
        for part in Intervals(known[0] + known[1]).gaps(first, last):
            self._add(product, *part)

    def arrived(self, product: str, trade_id: int) -> None:
        """A trade came that may have been missing."""
        self.work.arrived(product, trade_id, trade_id, time.monotonic_ns())
        self._changed(product)

    def ask_newest(self, products: Iterable[str]) -> None:
        """Asks the exchange for the newest id of each of `products`, since no message tells it: trades that were missed
        would stay unknown until the next one comes."""
        self._to_ask |= dict.fromkeys(products)
        self._asked.set()

    async def run(self) -> None:
        """Reconciles and fetches until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ask())
            group.create_task(self._reconcile_repeatedly())
            group.create_task(self._log_progress())
            for _ in range(REQUESTS_AT_ONCE):
                group.create_task(self._fetch())

    async def close(self) -> None:
        """After `run`: waits up to CLOSE_S for a read of the tables that is under way. If its thread came back while
        the interpreter ends, the process would crash."""
        if self._reader.is_alive():
            await asyncio.to_thread(self._reader.join, CLOSE_S)

    def state(self) -> dict[str, int]:
        """The state in figures."""
        return {
            "holes_open": self.work.holes_open,
            "ids_missing": self.work.ids_missing,
            "ids_healed": self.work.ids_fetched + self.work.ids_late,
            "ids_absent": self.work.ids_absent,
            "rest_requests": self._rest.requests,
            "rest_failures": self._rest.failures,
        }

    def _add(self, product: str, first: int, last: int, wait_s: float | None = None) -> bool:
        """Lists missing ids, to be requested after `wait_s` (None: `healing.wait_s`); returns whether any are new."""
        now_ns = time.monotonic_ns()
        wait_ns = int((self._settings.wait_s if wait_s is None else wait_s) * SECOND_NS)
        is_news = bool(self.work.add(product, first, last, now_ns, now_ns + wait_ns))
        self._changed(product)
        return is_news

    def _changed(self, product: str) -> None:
        """Must be called after every change of the work list: wakes waiting workers and logs the list's events."""
        ids = self._watch.ids.get(product)
        if ids is not None:
            highest = self.work.highest(product)
            ids.wanted_to = UNKNOWN if highest is None else highest
        self._news.set()
        for event in self.work.take_events():
            values: dict[str, Any] = {"product": event.product, "first": event.first, "last": event.last}
            match event:
                case HoleClosed() if event.fetched or event.late:
                    counts = {"fetched": event.fetched, "late": event.late, "absent": event.absent}
                    self._lines.log("hole_closed", "info", **values, **counts, took_s=round(event.took_ns / 1e9, 1))
                case IdsAbsent():
                    self._lines.log("ids_absent", "warning", **values, ids=event.last - event.first + 1)
                case NoRoom() if not self._is_full:
                    self._lines.log("healing_list_full", "warning", **values)
                    self._is_full = True
        is_working = self.work.ids_missing > 0
        if is_working and not self._is_working and self._settings.enabled:
            self._lines.log("healing_started", "info", holes=self.work.holes_open, ids_missing=self.work.ids_missing)
        self._is_working = is_working
        self._is_full = self._is_full and is_working

    # Fetching

    async def _fetch(self) -> None:
        """One worker: one request at a time."""
        while True:
            request = await self._next_request()
            try:
                page = await self._rest.trades(request.product, after=request.after, limit=request.limit)
            except TransientError as error:
                backoff = self._backoffs.setdefault(request.product, Backoff(longest_s=self._longest_pause_s))
                pause_s = backoff.next_pause(error.retry_after_s)
                self._put_off(request, int(pause_s * SECOND_NS))
                self._lines.log("waiting_for_rest", "warning", error=str(error), retry_in_s=round(pause_s, 2))
                await asyncio.sleep(min(pause_s, FAILED_S))
            except TerminalError as error:
                # Recording goes on; missing ids can wait until an operator has read this.
                self._put_off(request, PUT_OFF_NS)
                if request.product not in self._refused:
                    self._refused.add(request.product)
                    values = {"product": request.product, "error": str(error), "retry_in_s": PUT_OFF_NS // SECOND_NS}
                    self._lines.log("healing_refused", "error", **values)
            else:
                self._backoffs.pop(request.product, None)
                self._refused.discard(request.product)
                await self._keep(request, page)

    def _put_off(self, request: PageRequest, pause_ns: int) -> None:
        """There was no answer to `request`: pauses all requests for its product."""
        now_ns = time.monotonic_ns()
        self.work.failed(request, now_ns, 0)
        self.work.put_off(request.product, now_ns + pause_ns)
        self._changed(request.product)

    async def _next_request(self) -> PageRequest:
        """The next request, as soon as one is due and live data leaves room in the buffer."""
        async with self._planning:
            while True:
                await _until(lambda: self._buffer.has_room_for_page(0), _ROOM_S)
                self._news.clear()
                now_ns = time.monotonic_ns()
                request = self.work.next_request(now_ns)
                if request is not None:
                    return request
                due_ns = self.work.due_ns
                try:
                    async with asyncio.timeout(None if due_ns is None else (due_ns - now_ns) / 1e9 + 0.001):
                        await self._news.wait()
                except TimeoutError:
                    continue

    async def _keep(self, request: PageRequest, page: TradePage) -> None:
        """Puts a useful page into the buffer and waits until the log has it."""
        is_useful = self.work.answered(request, page.ids, time.monotonic_ns())
        self._changed(request.product)
        if not is_useful:
            return
        await _until(lambda: self._buffer.has_room_for_page(len(page.body)), _ROOM_S)
        self._buffer.put(request.product, page.received_ns, page.body, REST)
        position = self._buffer.position
        await _until(lambda: self._buffer.is_done(position), _ACKNOWLEDGED_S)
        for first, last in self.work.kept(request, time.monotonic_ns()):
            self._reconciler.logged(request.product, first, last)
        self._changed(request.product)

    async def _log_progress(self) -> None:
        fetched = 0
        while True:
            await asyncio.sleep(PROGRESS_S)
            done, before = self.work.ids_fetched, fetched
            fetched = done
            if self.work.ids_missing and done > before:
                left = {"holes": self.work.holes_open, "ids_missing": self.work.ids_missing}
                _log.info("healing_progress", **left, ids_healed=done, ids_per_s=round((done - before) / PROGRESS_S))

    async def _ask(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self._to_ask:
                product = next(iter(self._to_ask))
                del self._to_ask[product]
                try:
                    page = await self._rest.trades(product, after=None, limit=1)
                except TransientError as error:
                    values = {"error": str(error), "retry_in_s": FAILED_S}
                    self._lines.log("waiting_for_rest", "warning", **values)
                    self._to_ask[product] = None  # after the others
                    await asyncio.sleep(FAILED_S)
                except TerminalError as error:
                    self._lines.log("newest_trade_unknown", "warning", product=product, error=str(error))
                else:
                    if page.ids:
                        self._watch.ids[product].claimed(page.ids[0], time.monotonic_ns(), "page")
                        self._watch.changed(product)

    # Comparing with the tables

    async def _reconcile_repeatedly(self) -> None:
        interval_s = self._settings.table_check_interval_s
        pause_s = min(SECOND_COMPARISON_S, interval_s)
        while True:
            # In a daemon thread: storage may block it for minutes, and the process must not wait that long at its end.
            outcome: Future[KnownIds] = Future()
            outcome.set_running_or_notify_cancel()
            self._reader = threading.Thread(target=self._read, args=(outcome,), name="tables-reader", daemon=True)
            self._reader.start()
            try:
                self._reconcile(await asyncio.wrap_future(outcome))
                self._can_read = True
                self._ask_for_quiet()
            except CryptoPulseError as error:
                if self._can_read:
                    _log.warning("tables_unreadable", error=str(error), retry_in_s=round(interval_s))
                self._can_read = False
            await asyncio.sleep(pause_s)
            pause_s = interval_s

    def _ask_for_quiet(self) -> None:
        """Asks for the newest id of products without a trade since the last comparison, if no heartbeat names it."""
        if not self._venue:
            return
        highest = {product: ids.highest for product, ids in self._watch.ids.items() if venue_of(product) == self._venue}
        self.ask_newest(product for product, one in highest.items() if self._highest.get(product) == one)
        self._highest = highest

    def _read(self, outcome: Future[KnownIds]) -> None:
        try:
            # Imported here: delta-rs costs 40 ms and 20 MB, which a producer that only records need not pay.
            from cryptopulse.healing.known_ids import known_ids  # noqa: PLC0415

            outcome.set_result(known_ids(self._lake))
        except BaseException as error:  # noqa: BLE001 - handed to the task that waits for it
            outcome.set_exception(error)

    def _reconcile(self, tables: KnownIds) -> None:
        """Takes ids that the tables hold off the list, and adds those that they lack."""
        self._tables = tables
        now_ns = time.monotonic_ns()
        live: dict[str, LiveIds] = {}
        dealt_with: dict[str, Intervals] = {}
        for product, ids in self._watch.ids.items():
            held = tables.held.get(product)
            if held is None or venue_of(product) != self._venue:
                continue
            absent = tables.absent.get(product, Intervals())
            ids.held_to(held.highest)
            for first, last in held:
                self.work.arrived(product, first, last, now_ns)
            for first, last in absent:
                # Once this producer has made requests, the tables' proof may be only the first of its own two pages.
                known = self.work.known(product, first, last) if self.work.requests else Intervals()
                for part in known.gaps(first, last):
                    self.work.proved_absent(product, *part, now_ns)
            self._changed(product)
            live[product] = LiveIds(ids.first, ids.highest)
            dealt_with[product] = Intervals([*held, *absent])
        for product, holes in self._reconciler.compare(dealt_with, live, self.work.known).items():
            for first, last in holes.new:
                if self._add(product, first, last, wait_s=0):
                    self._lines.hole(product, first, last, "tables")
            for first, last in holes.again:
                self._add(product, first, last, wait_s=AGAIN_S)


async def _until(reached: Callable[[], bool], every_s: float) -> None:
    while not reached():  # noqa: ASYNC110 - the buffer's other end is a thread, which has more to do than to tell
        await asyncio.sleep(every_s)
