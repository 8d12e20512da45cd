"""The messages that both engines are fed: a day with crashes, a feed that misbehaves, and recordings."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptopulse.recording import read_recording
from support import Message, Trade, advanced, at, message, page

CAPTURES = Path(__file__).parents[2].parent / "shared" / "captures"
RECEIVED = datetime(2026, 7, 7, 12, 0, tzinfo=UTC)
_DAY_S = 26 * 3600  # over midnight
_HALF_HOUR_S = 1800


def crash_day(seed: int, count: int = 6_000) -> list[Trade]:
    """A day of three products: quiet, but for a V-shaped crash, a slow fall, a surge, and bursts of one moment."""
    rng = random.Random(seed)
    ids = {"BTC-USD": 1_000_000_000, "ETH-USD": 700, "SHIB-USD": 1}
    price = {"BTC-USD": 65_000.0, "ETH-USD": 1_900.0, "SHIB-USD": 0.000012}
    found = []
    for number in range(count):
        # Half of the trades lie in one half hour, where the crashes are; the others are spread over the day.
        is_busy = number % 2
        seconds = 40_000 + _HALF_HOUR_S * number / count if is_busy else _DAY_S * number / count
        found.append((seconds, rng.choice(list(ids))))
    trades = []
    for number, (seconds, symbol) in enumerate(sorted(found)):
        ids[symbol] += 1 if rng.random() < 0.99 else rng.randint(2, 5)
        level = price[symbol] * _moved(symbol, seconds - 40_000) * (1 + rng.gauss(0, 0.0001))
        size = rng.choice([rng.random() * 3 + 1e-8, rng.random() * 1e9 if symbol == "SHIB-USD" else 0.5])
        digits = 12 if symbol == "SHIB-USD" else 2
        time = at(round(seconds, rng.choice([0, 3, 6])) if number % 5 else int(seconds))
        side = rng.choice(["BUY", "SELL"])
        trades.append(Trade(symbol, ids[symbol], time, f"{level:.{digits}f}", f"{size:.8f}", side))
    return trades


def _moved(symbol: str, seconds: float) -> float:
    if symbol == "BTC-USD" and 300 <= seconds < 360:  # a V of one minute
        return 1 - 0.03 * (1 - abs(seconds - 330) / 30)
    if symbol == "ETH-USD" and 600 <= seconds < 1200:  # too slow for the look-back, until its end
        return 1 - 0.02 * (seconds - 600) / 600 - (0.015 if seconds > 1190 else 0)
    if symbol == "SHIB-USD" and 900 <= seconds < 960:
        return 1 + 0.06 * (seconds - 900) / 60
    return 1.0


def misbehaving(trades: list[Trade], seed: int) -> Iterator[Message]:
    """`trades` as a bad connection gives them: 5 % dropped, 5 % twice, some late, some by other ways than the rest.

    Some of what was dropped comes on pages of REST, which show as well which ids the exchange never had. Some pages
    come again later, and some before the feed sends what they hold.
    """
    rng = random.Random(seed)
    late: list[Message] = []
    by_symbol: dict[str, list[Trade]] = {}
    for trade in trades:
        by_symbol.setdefault(trade.symbol, []).append(trade)
    place = dict.fromkeys(by_symbol, 0)
    for number, trade in enumerate(trades):
        place[trade.symbol] += 1
        draw = rng.random()
        if number % 70 == 0:
            end = place[trade.symbol] + rng.choice([-30, 0, 5])
            stretch = by_symbol[trade.symbol][max(end - 40, 0) : max(end, 1)]
            yield page(stretch)
            late += [page(stretch)] * (number % 210 == 0)
        if draw < 0.05:
            if draw < 0.02:  # found again over REST, later
                late.append(page([trade]))
            continue
        sent = advanced([trade]) | {"partition_key": trade.symbol} if number % 50 == 0 else trade.match()
        yield sent
        if draw < 0.10:
            yield sent
        if 0.10 <= draw < 0.13:
            late.append(trade.match("last_match"))
        if late and rng.random() < 0.01:
            yield late.pop(0)
    yield from late


def other_venues() -> Iterator[Message]:
    """Trades of one symbol at two venues and of a third: some missing, repeated, refused or other than before."""
    for number in range(1, 200):
        us = 1_783_425_600_000_000 + number * 7_000_000
        price = 100 - (number > 150) * 5
        trade = (
            f'{{"symbol":"BTC-USDT","side":"{"up" if number == 90 else "sell"}","price":{price}.5e0,"qty":1e-8,'
            f'"trade_id":{number},"timestamp":"{datetime.fromtimestamp(us / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}"}}'
        )
        kraken = message(f'{{"channel":"trade","type":"update","data":[{trade}]}}'.encode(), key="@kraken")
        okx = (
            '{"arg":{"channel":"trades-all","instId":"BTC-USDT"},"data":[{"instId":"BTC-USDT",'
            f'"tradeId":"{number}","px":"{price}","sz":"2","side":"buy","ts":"{us // 1000}"}}]}}'
        )
        yield from [kraken] * (number % 20 != 0) + [kraken] * (number % 9 == 0)
        yield message(okx.encode(), key="@okx")
        line = f'["trade_id","price","size","maker_side","time_us"]\n{number},{price + number % 2},3,True,{us}'
        yield message(line.encode(), "import", "BTCUSDT@binance")
        if number % 50 == 0:
            yield message(line.replace(",3,", ",4,").encode(), "import", "BTCUSDT@binance")
    yield from venue_pages()


def venue_pages() -> Iterator[Message]:
    """Pages of REST: Kraken's with trades that its feed lacks and an id that no page has, others with a broken row."""
    seconds = 1_783_425_600
    for skipped in (20, 40):  # 20 is absent, 40 is healed
        rows = ",".join(
            f'["{100 - (n > 150) * 5}.5","1e-8",{seconds + n * 7}.0,"s","l","",{n}]'
            for n in range(skipped - 5, skipped + 6)
            if n != 20
        ).replace(f"{seconds + skipped * 7 - 7}.0", f"{seconds + skipped * 7 - 7}.000001")
        page = f'{{"error":[],"result":{{"XBTUSDT":[{rows}],"last":"1"}}}}'
        yield message(page.encode(), "rest", "BTC-USDT@kraken")
    binance = [
        f'{{"id":{n},"price":"{99 if n else "x"}","qty":"3","time":{seconds}000,"isBuyerMaker":true}}'
        for n in (0, 300, 302)
    ]
    yield message(f"[{','.join(binance[1:])}]".encode(), "rest", "BTCUSDT@binance")
    yield message(f"[{','.join(binance)}]".encode(), "rest", "BTCUSDT@binance")
    row = f'{{"instId":"BTC-USDT","tradeId":"400","px":"1","sz":"2","side":"buy","ts":"{seconds}000"}}'
    yield message(f'{{"code":"0","data":[{row}]}}'.encode(), "rest", "BTC-USDT@okx")
    yield message(b'{"code":"50011","msg":"too fast"}', "rest", "BTC-USDT@okx")


def recorded() -> Iterator[Message]:
    """Every message of the recordings, where there are any."""
    for path in sorted(CAPTURES.glob("*/*.jsonl")) if CAPTURES.is_dir() else ():
        for received, body in read_recording(path):
            when = datetime.fromtimestamp(received // 1_000_000_000, UTC) if received else RECEIVED
            yield message(body, received=when)
