"""The candles that somebody looks at: loaded when the first viewer comes, kept up to date, dropped after the last."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import structlog

from cryptopulse.errors import CryptoPulseError
from cryptopulse.lake.location import LakeLocation
from cryptopulse.serve.live.candles import COLUMNS, GRAINS, BarCandles, TradeCandles, candles_of
from cryptopulse.serve.live.history import history_of
from cryptopulse.serve.live.market import Market, Trades
from cryptopulse.serve.live.message import Message
from cryptopulse.serve.live.ring import Floats

CHART_TOPIC: Final = "candles/"
"""`candles/<product>/<grain>`, a grain of `GRAINS`."""

_TOPIC = re.compile(r"candles/([A-Z0-9]+-[A-Z0-9]+)/(\w+)")
_CHARTS_MAX = 256  # at 1,200 candles of 12 columns some 30 MB

_log = structlog.get_logger()


@dataclass(eq=False)
class _Chart:
    """One product in one grain."""

    topic: str
    symbol: str
    seconds: int
    candles: BarCandles | TradeCandles
    is_asked: bool = False
    """Its past is being read; until that is there, news wait."""
    past: Floats | None = None
    is_loaded: bool = False
    bars: list[pa.Table] = field(default_factory=list)
    trades: list[Trades] = field(default_factory=list)


class Charts:
    """All of them. From one thread, but for `ready`, which is called from the thread that reads the past."""

    def __init__(self, lake: LakeLocation, market: Market, ready: Callable[[str], None]) -> None:
        """There is none yet."""
        self._lake, self._market, self._ready = lake, market, ready
        self._charts: dict[str, _Chart] = {}
        self._wanted: set[str] = set()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="history")

    def close(self) -> None:
        """Ends the thread that reads the past."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def snapshot(self, topic: str) -> Message | None:
        """All candles; None when they are not loaded yet, which `load_missing` then does."""
        chart = self._charts.get(topic)
        if chart is not None and chart.is_loaded:
            return self._message(chart, "snapshot", chart.candles.rows)
        self._wanted.add(topic)
        return None

    def drop(self, topic: str) -> None:
        """Nobody looks any more."""
        self._charts.pop(topic, None)
        self._wanted.discard(topic)

    def load_missing(self, loaded_us: int | None) -> None:
        """Begins to read the past of charts that are new, or that must begin anew.

        `loaded_us`: up to which commit trades were taken in; the past goes as far.
        """
        for topic in list(self._wanted):
            if (chart := self._made(topic)) is not None:
                self._wanted.discard(topic)
                self._charts[topic] = chart
        for chart in self._charts.values():
            if not chart.is_asked and not (chart.seconds < 60 and loaded_us is None):
                chart.is_asked, chart.bars, chart.trades = True, [], []  # the past holds what came before it is read
                self._reader.submit(self._read_past, chart, self._market.now_us, loaded_us)

    def loaded(self, topic: str) -> Message | None:
        """All candles, when the past has been read; takes in what has come meanwhile."""
        chart = self._charts.get(topic)
        if chart is None or chart.past is None:
            return None
        chart.candles.begin(chart.past)
        chart.past, chart.is_loaded = None, True
        if isinstance(chart.candles, BarCandles):
            for rows in chart.bars:
                chart.candles.take(rows)
        else:
            for trades in chart.trades:
                chart.candles.take(trades)
        chart.bars, chart.trades = [], []
        return self._message(chart, "snapshot", chart.candles.rows)

    def take_bars(self, rows: pa.Table, is_whole: bool) -> list[Message]:
        """What new bars change, after the market has taken them in."""
        messages = []
        for topic, chart in list(self._charts.items()):
            if not isinstance(chart.candles, BarCandles):
                continue
            if not chart.is_loaded and not is_whole:
                chart.bars.append(rows)
                continue
            changed = None if is_whole else chart.candles.take(rows)
            if changed is None:
                self._begin_anew(topic)
            elif len(changed):
                messages.append(self._message(chart, "change", changed))
        return messages

    def take_trades(self, trades: Trades, is_whole: bool) -> list[Message]:
        """What new trades change."""
        messages = []
        for topic, chart in list(self._charts.items()):
            if not isinstance(chart.candles, TradeCandles):
                continue
            if is_whole:
                self._begin_anew(topic)
            elif not chart.is_loaded:
                chart.trades.append(trades)
            elif len(changed := chart.candles.take(trades)):
                messages.append(self._message(chart, "change", changed))
        return messages

    def _begin_anew(self, topic: str) -> None:
        del self._charts[topic]
        self._wanted.add(topic)

    def _made(self, topic: str) -> _Chart | None:
        """A chart without candles; None when there is no such product or grain, or too much is looked at."""
        found = _TOPIC.fullmatch(topic)
        if found is None or found[2] not in GRAINS or len(self._charts) >= _CHARTS_MAX:
            return None
        symbol, seconds = found[1], GRAINS[found[2]]
        number = self._market.number(symbol)
        return None if number is None else _Chart(topic, symbol, seconds, candles_of(number, seconds, self._market))

    def _read_past(self, chart: _Chart, now_us: int, loaded_us: int | None) -> None:
        try:
            rows = history_of(self._lake, chart.symbol, chart.seconds, now_us, loaded_us)
            chart.past = chart.candles.past(rows)
        except CryptoPulseError as error:  # read again with the next look
            _log.warning("waiting_for_lake", error=str(error))
            chart.is_asked = False
            return
        self._ready(chart.topic)

    def _message(self, chart: _Chart, kind: str, rows: Floats) -> Message:
        data = {
            "symbol": chart.symbol,
            "seconds": chart.seconds,
            "decimals": int(self._market.decimals[chart.candles.product]),
            "columns": COLUMNS[:-2],
            "rows": rows[:, :-2].tolist(),
        }
        return Message(chart.topic, "snapshot" if kind == "snapshot" else "change", data)
