"""The topics that can be subscribed to, and the tables behind them.

Used by the live thread (`hub.Live`); the past of a product is read in another thread, so that nobody waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import numpy as np

from cryptopulse.errors import CryptoPulseError, TransientError
from cryptopulse.lake.follower import Follower
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import ALERTS, BARS, SILVER
from cryptopulse.serve.live import episodes as alerts
from cryptopulse.serve.live.charts import CHART_TOPIC, Charts
from cryptopulse.serve.live.dashboard_queries import DashboardQueries
from cryptopulse.serve.live.episodes import LiveEpisodes
from cryptopulse.serve.live.history import last_of
from cryptopulse.serve.live.market import (
    BAR_COLUMNS,
    FIGURES,
    MINUTES,
    SECONDS,
    TRADE_COLUMNS,
    LiveMarket,
    TradeColumns,
)
from cryptopulse.serve.live.message import LiveMessage
from cryptopulse.serve.live.query_cache import ANSWER, QueryCache
from cryptopulse.serve.live.ring import Floats

LAKE: Final = "lake"
"""State of the lake, times of its newest trade and commit, numbers of alerts in the hour and day before that trade."""
MARKET: Final = "market"
"""The figures of every product."""
EPISODES: Final = "alerts"
"""The newest alert episodes, and all open ones."""
PRODUCTS: Final = "products"
"""The ids of all products."""
PRODUCT: Final = "product/"
"""`product/<product>`: the figures of one product."""

_TRADES_EVERY_S = 0.1  # fast enough for the eye; each poll reads a file for every commit
_MINUTE_US = 60_000_000
_PERCENT_DIGITS = 3
_AMOUNT_DIGITS = 8


class Topics:
    """Makes messages of the tables' changes."""

    def __init__(self, lake: LakeLocation, ready: Callable[[str], None], state_dir: Path | None = None) -> None:
        """Reads nothing yet. `ready(topic)` is called, from any thread, when `loaded(topic)` has a new snapshot."""
        self._bars = Follower(lake, BARS, BAR_COLUMNS)
        self._trades = Follower(lake, SILVER, TRADE_COLUMNS)
        self._alerts = Follower(lake, ALERTS, alerts.COLUMNS, key="alert_id")
        self.market = LiveMarket()
        self.episodes = LiveEpisodes()
        self._charts = Charts(lake, self.market, ready)
        self._dashboard_queries = DashboardQueries(lake, state_dir)
        self._queries = QueryCache(self._dashboard_queries.all, ready)
        self._sent: Floats = np.zeros((0, len(FIGURES)))
        self._published = 0, -1, -1  # products, minute and decimals of the newest snapshot of the market
        self._loaded_us = 0
        self._trades_at_s = 0.0
        self._is_known = False
        self._error: str | None = None
        self._is_refused = False

    def poll_s(self, wanted_s: float) -> float:
        """See `Follower.poll_s`."""
        return self._bars.poll_s(wanted_s)

    def close(self) -> None:
        """Ends the threads that it has started."""
        self._charts.close()
        self._queries.close()
        self._dashboard_queries.close()

    def forget(self) -> None:
        """Drops what was read; the next poll reads everything again."""
        for follower in (self._bars, self._trades, self._alerts):
            follower.forget()
        self._queries.forget()
        self._is_known = False

    def poll(self, watched: Collection[str]) -> list[LiveMessage]:
        """The changes since the last poll. `watched`: the topics with subscribers.

        Raises LakeUnreachable, ConfigurationError and LakeDamaged.
        """
        self._queries.refresh(watched)
        wall_us, messages = time.time_ns() // 1000, []
        is_first = not self._is_known

        if is_first or self._bars.has_news():
            news = self._bars.read(last_of("window_start", MINUTES * 60))
            if news.is_whole:
                self.market.forget_bars()
            self.market.take_bars(news.rows, wall_us)
            self._loaded_us = max(self._loaded_us, self._bars.loaded_us or 0)
            messages += [self._lake_state(), *self._charts.take_bars(news.rows, news.is_whole)]

        if is_first or self._alerts.has_news():
            news = self._alerts.read(last_of("opened_at", alerts.KEPT_S))
            if news.is_whole:
                self.episodes.clear()
            changed, gone = self.episodes.take_in(news.rows, wall_us)
            if news.is_whole:
                messages += [self._lake_state(), self._alerts_snapshot()]
            elif changed or gone:
                messages += [self._lake_state(), LiveMessage(EPISODES, "change", {"rows": changed, "gone": gone})]

        # Whatever is watched: the time of the newest trade is "now" on every page.
        now_s = time.monotonic()
        if now_s >= self._trades_at_s + _TRADES_EVERY_S and (self._trades.loaded_us is None or self._trades.has_news()):
            self._trades_at_s = now_s
            news = self._trades.read(last_of("event_time", SECONDS))
            trades = TradeColumns(news.rows, self.market.places(news.rows["symbol"]))
            if news.is_whole:
                self.market.forget_trades()
            self.market.take_trades(trades, wall_us)
            self._loaded_us = max(self._loaded_us, self._trades.loaded_us or 0)
            messages += [self._lake_state(), *self._charts.take_trades(trades, news.is_whole)]

        self._charts.load_missing(self._trades.loaded_us)
        self._is_known, self._error = True, None
        if is_first:
            messages = [self._lake_state(), self._market_snapshot(), self._alerts_snapshot()]
            return messages + self._products(watched, None)

        # The market's rows that differ from what was last published, each after its product's number.
        figures = self._figures()
        minute, decimals = self.market.now_us // _MINUTE_US, int(self.market.decimals.sum())
        published = len(figures), minute, decimals
        if published != self._published:
            self._published, self._sent = published, figures
            snapshot = self._market_snapshot()
            return [*messages, self._symbols(), snapshot, *self._products(watched, None)]
        is_same = (figures == self._sent) | (np.isnan(figures) & np.isnan(self._sent))
        changed_rows = np.flatnonzero(~is_same.all(axis=1))
        if not len(changed_rows):
            return messages
        self._sent = figures
        rows = np.column_stack([changed_rows, figures[changed_rows]]).tolist()
        data = {**self._moment(), "rows": rows, "across": self.market.across(figures)}
        change = LiveMessage(MARKET, "change", data)
        return [*messages, change, *self._products(watched, set(changed_rows.tolist()))]

    def failed(self, error: CryptoPulseError) -> list[LiveMessage]:
        """Messages that tell the subscribers why a poll failed."""
        self._error, self._is_refused = str(error), not isinstance(error, TransientError)
        return [self._lake_state()]

    def snapshot(self, topic: str) -> LiveMessage | None:
        """The snapshot of a topic; None when there is no such topic, or it is not loaded yet: then it comes later."""
        if topic.startswith(CHART_TOPIC):
            return self._charts.snapshot(topic)
        if topic.startswith(ANSWER):
            return self._queries.snapshot(topic)
        if topic.startswith(PRODUCT) and self._is_known:
            return next(iter(self._products([topic], None)), None)
        made = {LAKE: self._lake_state}
        if self._is_known:
            made |= {PRODUCTS: self._symbols, MARKET: self._market_snapshot, EPISODES: self._alerts_snapshot}
        return made[topic]() if topic in made else None

    def loaded(self, topic: str) -> LiveMessage | None:
        """The snapshot of a topic, after `ready` was called with it."""
        return self._queries.loaded(topic) if topic.startswith(ANSWER) else self._charts.loaded(topic)

    def drop(self, topic: str) -> None:
        """Drops `topic`, which nobody watches any more."""
        self._charts.drop(topic)

    def _lake_state(self) -> LiveMessage:
        """`state`: loading, empty, filled, unreachable (tried again), or refused (needs the user)."""
        if self._error is not None:
            state = "refused" if self._is_refused else "unreachable"
        elif not self._is_known and not self.market.now_us:
            state = "loading"
        else:
            state = "filled" if self.market.now_us else "empty"
        data = {
            "state": state,
            "detail": self._error,
            **self._moment(),
            "clock_us": time.time_ns() // 1000,
            "products": len(self.market.symbols),
            **self.episodes.totals(self.market.now_us),
        }
        return LiveMessage(LAKE, "snapshot", data)

    def _symbols(self) -> LiveMessage:
        return LiveMessage(PRODUCTS, "snapshot", {"symbols": sorted(self.market.symbols)})

    def _market_snapshot(self) -> LiveMessage:
        """All products as last published, so that the next change applies to them."""
        if len(self._sent) != len(self.market.symbols):
            self._sent = self._figures()
        data = {
            **self._moment(),
            "columns": FIGURES,
            "symbols": list(self.market.symbols),
            "decimals": self.market.decimals.tolist(),
            "rows": self._sent.tolist(),
            "sparks": self.market.sparks().tolist(),
            "across": self.market.across(self._sent),
        }
        return LiveMessage(MARKET, "snapshot", data)

    def _products(self, watched: Collection[str], changed: set[int] | None) -> list[LiveMessage]:
        """Messages of the topics `product/…` in `watched`, for the products `changed` (None: for all)."""
        found = []
        for topic in watched:
            if not topic.startswith(PRODUCT):
                continue
            number = self.market.number(symbol := topic.removeprefix(PRODUCT))
            if number is None or number >= len(self._sent):
                data: dict[str, Any] = {**self._moment(), "symbol": symbol, "figures": None}
            elif changed is None or number in changed:
                figures = dict(zip(FIGURES, self._sent[number].tolist(), strict=True))
                decimals = int(self.market.decimals[number])
                data = {**self._moment(), "symbol": symbol, "decimals": decimals, "figures": figures}
            else:
                continue
            found.append(LiveMessage(topic, "snapshot", data))
        return found

    def _moment(self) -> dict[str, int | None]:
        return {"now_us": self.market.now_us or None, "loaded_us": self._loaded_us or None}

    def _figures(self) -> Floats:
        """The market's figures, percentages and amounts rounded to the digits shown, so that fewer rows change."""
        figures = self.market.figures()
        for place, name in enumerate(FIGURES):
            if name.startswith(("change", "buy_share")):
                figures[:, place] = np.round(figures[:, place], _PERCENT_DIGITS)
            elif name in ("notional_24h", "volume_24h"):
                figures[:, place] = np.round(figures[:, place], _AMOUNT_DIGITS)
        return figures

    def _alerts_snapshot(self) -> LiveMessage:
        return LiveMessage(EPISODES, "snapshot", {"rows": self.episodes.first_shown()})
