"""A lake for the dashboards' queries: 26 hours of two products, a hole, a trade that was fetched later, two crashes."""

from __future__ import annotations

from datetime import datetime, timedelta

from support import START, Lake, Trade, message, page

HOUR = timedelta(hours=1)
_END = START + 26 * HOUR
_HOLE = range(1030, 1033)
_FETCHED = 1040
_CRASHES = ((timedelta(minutes=60), timedelta(minutes=61)), (timedelta(0), timedelta(seconds=110)))
"""From and until when before the end."""
_OFFSETS = {"BTC-USD": 0, "ETH-USD": 17}


def _trade(symbol: str, number: int, when: datetime, crashed: bool) -> Trade:
    price = (60_000 if symbol == "BTC-USD" else 3_000) + number % 7
    return Trade(
        symbol,
        number,
        when,
        price=f"{price * (0.97 if crashed else 1):.2f}",
        size=f"0.{number % 89 + 1:02}",
        side="BUY" if number % 3 else "SELL",
    )


def _made() -> list[Trade]:
    """One trade every 3 minutes, every 7 seconds in the last 90 minutes, in which BTC-USD crashes twice."""
    trades = []
    for symbol, offset in _OFFSETS.items():
        slow = [START + timedelta(seconds=offset) + number * timedelta(minutes=3) for number in range(490)]
        fast = [_END - timedelta(minutes=90) + timedelta(seconds=offset + 7 * number) for number in range(760)]
        times = slow + [when for when in fast if when < _END]
        for place, when in enumerate(times):
            crashed = symbol == "BTC-USD" and any(since < _END - when < until for since, until in _CRASHES)
            trades.append(_trade(symbol, 1000 + place, when, crashed))
    return [trade for trade in trades if not (trade.symbol == "BTC-USD" and trade.trade_id in _HOLE)]


TRADES = _made()
"""Every trade that the lake holds."""


def fill(lake: Lake) -> None:
    """Brings the trades into an empty lake, each received some milliseconds after its event."""
    live = []
    fetched = []
    for trade in sorted(TRADES, key=lambda trade: trade.time):
        if trade.symbol == "BTC-USD" and trade.trade_id == _FETCHED:
            fetched.append(page([trade]) | {"received_time": trade.time + timedelta(minutes=5)})
            continue
        one = trade.match()
        late = timedelta(milliseconds=5 + trade.trade_id % 40, microseconds=_OFFSETS[trade.symbol])
        live.append(message(one["body"], key=trade.symbol, received=trade.time + late))
    half = len(live) // 2
    lake.take_in(live[:half])
    lake.take_in(fetched + live[half:])
