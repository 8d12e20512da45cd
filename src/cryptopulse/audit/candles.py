"""Compares bars with the exchange's own candles, as an independent source.

Only minutes that are proven complete and ended some time ago are compared: the exchange publishes a candle a moment
after its minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from cryptopulse.audit.id_set import Ints
from cryptopulse.audit.ids import by_product
from cryptopulse.audit.report import AuditCheck, moment, utc
from cryptopulse.audit.scope import AuditScope
from cryptopulse.audit.snapshot import BARS, LakeSnapshot
from cryptopulse.audit.venues import can_be_fetched
from cryptopulse.errors import ConfigurationError, TransientError, UnknownProduct
from cryptopulse.feed.rest import RestClient
from cryptopulse.retry import Backoff, retrying
from cryptopulse.text import decimal_text
from cryptopulse.venues import Candle

_MINUTE_US = 60_000_000
_PUBLISHED_US = 120_000_000
_MARGIN = 5  # minutes: an audit takes a while, and the unfinished minute counts as well
_ATTEMPTS_MAX = 6  # some 6 s of pauses: an audit should not wait long for a network
_PRICES = ("open", "high", "low", "close")
# The exchange's volumes are binary floating-point numbers with 8 decimals.
_NEAR, _NEAR_ENOUGH = Decimal("1e-9"), Decimal("5e-9")


CandleSource: TypeAlias = Callable[[str], RestClient]
"""Venue (empty for Coinbase) → the client of its REST interface, not opened yet."""


@dataclass(frozen=True)
class _Bars:
    """One product's bars, in the order of time; minutes are counted since 1970 (UTC)."""

    symbol: str
    minutes: Ints
    is_complete: np.ndarray[tuple[int], np.dtype[np.bool_]]
    rows: pa.Table

    @property
    def venue(self) -> str:
        """Its name; empty for Coinbase."""
        return self.symbol.partition("@")[2]

    def spans(self, candles_max: int, oldest: int) -> Iterator[tuple[int, int]]:
        """First and last minute of each request needed to compare all complete bars from minute `oldest` on."""
        wanted = self.minutes[self.is_complete & (self.minutes >= oldest)]
        while len(wanted):
            first = int(wanted[0])
            inside = wanted[wanted < first + candles_max]
            yield first, int(inside[-1])
            wanted = wanted[len(inside) :]

    def within(self, first: int, last: int) -> dict[int, dict[str, Decimal]]:
        """Minute → complete bar, from minute `first` to `last`."""
        chosen = (self.minutes >= first) & (self.minutes <= last) & self.is_complete
        return {row["minute"]: row for row in self.rows.filter(pa.array(chosen)).to_pylist()}

    def was_quiet(self, minute: int) -> bool:
        """Whether the bars around a minute without a bar prove that nothing was traded in it."""
        place = int(np.searchsorted(self.minutes, minute))
        if place == 0 or place == len(self.minutes) or self.minutes[place] == minute:
            return False
        before, after = self.rows["last_trade_id"][place - 1].as_py(), self.rows["first_trade_id"][place].as_py()
        return bool(self.is_complete[place - 1] and self.is_complete[place]) and before + 1 == after


def check_candles(
    snapshot: LakeSnapshot, scope: AuditScope, exchange: CandleSource, progressed: Callable[[int, int], None]
) -> list[AuditCheck]:
    """Reports complete bars that contradict the exchange's candles; calls `progressed(requests done, all)`."""
    if BARS not in snapshot.tables:
        return []
    files = [file for file in snapshot.files(BARS) if file.day is None or scope.has_day(file.day)]
    rows = snapshot.rows(
        f"""
        SELECT symbol, epoch_us(window_start) // {_MINUTE_US} AS minute, open, high, low, close, volume, trade_count,
            is_complete, first_trade_id, last_trade_id
        FROM dm_trade_bars
        WHERE {scope.has_product()} AND {scope.has_time("epoch_us(window_start)")}
            AND epoch_us(window_start) + {_MINUTE_US} <= {snapshot.opened_us - _PUBLISHED_US}
        ORDER BY symbol, minute""",
        {BARS: files},
    )
    products = [
        _Bars(symbol, part["minute"].to_numpy(), part["is_complete"].to_numpy(zero_copy_only=False), part)
        for symbol, part in by_product(rows)
        if can_be_fetched(symbol)
    ]
    return [AuditCheck("candles", asyncio.run(_compare_all(snapshot, products, exchange, progressed)))]


async def _compare_all(
    snapshot: LakeSnapshot, products: Sequence[_Bars], exchange: CandleSource, progressed: Callable[[int, int], None]
) -> int:
    """Returns how many bars were compared."""
    compared = 0
    unknown: set[str] = set()
    silent: set[str] = set()
    async with AsyncExitStack() as opened:
        venues = sorted({bars.venue for bars in products})
        clients = {venue: await opened.enter_async_context(exchange(venue)) for venue in venues}
        requests = []
        for bars in products:
            client = clients[bars.venue]
            kept = client.candles_kept
            oldest = 0 if kept is None else snapshot.opened_us // _MINUTE_US - kept + _MARGIN
            requests += [(client, bars, *ends) for ends in bars.spans(client.candles_max, oldest)]
        for number, (client, bars, first, last) in enumerate(requests, start=1):
            if bars.symbol in unknown or client.base_url in silent:
                continue
            fetch = partial(client.candles, bars.symbol, utc(first * _MINUTE_US), utc(last * _MINUTE_US))
            try:
                candles = await retrying(fetch, Backoff(), lambda _error, _pause_s: None, attempts_max=_ATTEMPTS_MAX)
            except UnknownProduct as error:  # perhaps delisted; other products have candles
                _report_unreachable(snapshot, bars.symbol, first, str(error))
                unknown.add(bars.symbol)
                continue
            except (TransientError, ConfigurationError) as error:
                _report_unreachable(snapshot, bars.symbol, first, str(error))
                silent.add(client.base_url)
                continue
            compared += _compare(snapshot, bars, first, last, candles)
            progressed(number, len(requests))
    return compared


def _compare(snapshot: LakeSnapshot, bars: _Bars, first: int, last: int, candles: Sequence[Candle]) -> int:
    theirs = {candle.time // 60: candle for candle in candles if first <= candle.time // 60 <= last}
    ours = bars.within(first, last)
    for minute, bar in ours.items():
        candle = theirs.get(minute)
        if candle is None:
            _report(snapshot, bars.symbol, minute, "the exchange has none", {})
            continue
        differing = {
            name: {"stored": bar[name], "exchange": getattr(candle, name)}
            for name in (*_PRICES, "volume", *(["trade_count"] if candle.trade_count is not None else []))
            if (
                abs(bar[name] - getattr(candle, name)) > bar[name] * _NEAR + _NEAR_ENOUGH
                if name == "volume"
                else bar[name] != getattr(candle, name)
            )
        }
        if differing:
            said = [
                f"{name} {_plain(Decimal(pair['exchange']))}, the bar {_plain(Decimal(pair['stored']))}"
                for name, pair in differing.items()
            ]
            _report(snapshot, bars.symbol, minute, f"has {'; '.join(said)}", {"columns": differing})
    for minute, candle in theirs.items():
        if bars.was_quiet(minute):
            columns = {"volume": {"stored": None, "exchange": candle.volume}}
            what = f"has a volume of {_plain(candle.volume)}, but all ids around it are held and none was traded then"
            _report(snapshot, bars.symbol, minute, what, {"columns": columns})
    return len(ours)


def _plain(value: Decimal) -> str:
    return decimal_text(value)


def _report(snapshot: LakeSnapshot, symbol: str, minute: int, said: str, details: dict[str, object]) -> None:
    start = utc(minute * _MINUTE_US)
    text = f"{symbol}: the exchange's candle of {moment(start)} {said}"
    if said == "the exchange has none":
        text = f"{symbol}: the exchange has no candle of {moment(start)}, of which there is a complete bar"
    repair = "look at the minute's trades; when all ids are held, it is the exchange that differs with itself"
    details = {"window_start": start, **details}
    snapshot.report("candle_differs", BARS, text, repair, symbol, details)


def _report_unreachable(snapshot: LakeSnapshot, symbol: str, minute: int, error: str) -> None:
    text = f"{symbol}: candles from {moment(utc(minute * _MINUTE_US))} on were not compared: {error}"
    details = {"error": error}
    repair = "run the audit again when the exchange answers (feed.rest_url, or rest_url of the venue's section)"
    snapshot.report("candles_unreachable", "", text, repair, symbol, details)
