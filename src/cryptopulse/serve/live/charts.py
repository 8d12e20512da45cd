"""The candles that are watched: loaded for the first viewer, kept up to date, dropped after the last."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import structlog

from cryptopulse.errors import CryptoPulseError
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.products import SYMBOL
from cryptopulse.serve.live.candles import COLUMNS, GRAINS, BarCandles, TradeCandles
from cryptopulse.serve.live.history import history_of
from cryptopulse.serve.live.market import LiveMarket, TradeColumns
from cryptopulse.serve.live.message import LiveMessage
from cryptopulse.serve.live.ring import Floats

CHART_TOPIC: Final = "candles/"
"""`candles/<product>/<grain>`, with a grain of `GRAINS`."""

_TOPIC = re.compile(rf"candles/({SYMBOL})/(\w+)")
_CHARTS_MAX = 256  # at 1,200 candles of 12 columns some 30 MB

_log = structlog.get_logger()


@dataclass(eq=False)
class _Chart:
    """One product in one grain."""

    topic: str
    symbol: str
    seconds: int
    candles: BarCandles | TradeCandles
    is_requested: bool = False
    """Whether reading its past has begun; until it is there, changes wait."""
    past: Floats | None = None
    is_loaded: bool = False
    waiting: list[Any] = field(default_factory=list)
    """Bars or trades that came while the past was being read."""


class Charts:
    """The charts of all viewers. Used from one thread; the thread that reads the past calls `ready`."""

    def __init__(self, lake: LakeLocation, market: LiveMarket, ready: Callable[[str], None]) -> None:
        """Starts without charts."""
        self._lake, self._market, self._ready = lake, market, ready
        self._charts: dict[str, _Chart] = {}
        self._wanted: set[str] = set()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="history")
        self._is_reading = False

    def close(self) -> None:
        """Ends the thread that reads the past, after its current read."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def snapshot(self, topic: str) -> LiveMessage | None:
        """All candles; None when they are not loaded yet: then `load_missing` loads them."""
        chart = self._charts.get(topic)
        if chart is not None and chart.is_loaded:
            return self._message(chart, "snapshot", chart.candles.rows)
        self._wanted.add(topic)
        return None

    def drop(self, topic: str) -> None:
        """Drops the chart, which nobody watches any more."""
        self._charts.pop(topic, None)
        self._wanted.discard(topic)

    def load_missing(self, loaded_us: int | None) -> None:
        """Starts to read the past of a chart that is new or must be read again. One at a time, so that nothing is read
        for charts that are left in the meantime.

        `loaded_us`: load_timestamp (µs UTC) of the last commit whose trades were taken in; the past ends with it.
        """
        for topic in list(self._wanted):
            found = _TOPIC.fullmatch(topic)
            number = self._market.number(found[1]) if found else None
            # Else the product or grain does not exist, or there are too many charts.
            if found and number is not None and found[2] in GRAINS and len(self._charts) < _CHARTS_MAX:
                self._wanted.discard(topic)
                seconds = GRAINS[found[2]]
                kind = BarCandles if seconds >= 60 else TradeCandles
                self._charts[topic] = _Chart(topic, found[1], seconds, kind(number, seconds, self._market))
        missing = (chart for chart in self._charts.values() if not chart.is_requested)
        chart = next((one for one in missing if one.seconds >= 60 or loaded_us is not None), None)
        if chart is not None and not self._is_reading:
            chart.is_requested = self._is_reading = True
            self._reader.submit(self._read, chart, self._market.now_us, loaded_us)

    def loaded(self, topic: str) -> LiveMessage | None:
        """All candles, after the past has been read; takes in the changes that waited."""
        chart = self._charts.get(topic)
        if chart is None or chart.past is None:
            return None
        chart.candles.begin(chart.past)
        chart.past, chart.is_loaded = None, True
        for news in chart.waiting:
            chart.candles.take(news)
        chart.waiting = []
        return self._message(chart, "snapshot", chart.candles.rows)

    def take_bars(self, rows: pa.Table, is_whole: bool) -> list[LiveMessage]:
        """Changes by new bars, after the market has taken them in. `is_whole`: they replace all earlier ones."""
        return self._take(BarCandles, rows, is_whole)

    def take_trades(self, trades: TradeColumns, is_whole: bool) -> list[LiveMessage]:
        """Changes by new trades. `is_whole`: as in `take_bars`."""
        return self._take(TradeCandles, trades, is_whole)

    def _take(self, kind: type[BarCandles | TradeCandles], news: Any, is_whole: bool) -> list[LiveMessage]:
        messages = []
        for topic, chart in list(self._charts.items()):
            if not isinstance(chart.candles, kind):
                continue
            changed = None
            if not is_whole and not chart.is_loaded:
                if chart.is_requested:  # else the past will contain it
                    chart.waiting.append(news)
                continue
            if not is_whole:
                changed = chart.candles.take(news)
            if changed is None:  # the past must be read again
                del self._charts[topic]
                self._wanted.add(topic)
            elif len(changed):
                messages.append(self._message(chart, "change", changed))
        return messages

    def _read(self, chart: _Chart, now_us: int, loaded_us: int | None) -> None:
        try:
            rows = history_of(self._lake, chart.symbol, chart.seconds, now_us, loaded_us)
            chart.past = chart.candles.past(rows)
        except CryptoPulseError as error:  # read again after the next poll
            _log.warning("waiting_for_lake", error=str(error))
            chart.is_requested = False
            return
        except Exception as error:  # noqa: BLE001 - one chart must not keep the others from being read
            _log.exception("unexpected_error", topic=chart.topic, error=str(error))
            chart.past = chart.candles.rows  # empty: it shows only what comes from now on
        finally:
            self._is_reading = False
        self._ready(chart.topic)

    def _message(self, chart: _Chart, kind: str, rows: Floats) -> LiveMessage:
        data = {
            "symbol": chart.symbol,
            "seconds": chart.seconds,
            "decimals": int(self._market.decimals[chart.candles.product]),
            "columns": COLUMNS[:-2],
            "rows": rows[:, :-2].tolist(),
        }
        return LiveMessage(chart.topic, "snapshot" if kind == "snapshot" else "change", data)
