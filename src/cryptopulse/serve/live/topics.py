"""The topics that can be subscribed to, and the tables behind them.

For the one thread that follows; the past of a product is read in a thread of its own, so that nobody waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import numpy as np

from cryptopulse.errors import CryptoPulseError, TransientError
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import ALERTS, BARS, SILVER
from cryptopulse.serve.live import episodes as alerts
from cryptopulse.serve.live.answers import ANSWER, Answers
from cryptopulse.serve.live.charts import CHART_TOPIC, Charts
from cryptopulse.serve.live.episodes import Episodes
from cryptopulse.serve.live.follow import Follower
from cryptopulse.serve.live.history import last_of
from cryptopulse.serve.live.market import BAR_COLUMNS, FIGURES, MINUTES, SECONDS, TRADE_COLUMNS, Market, Trades
from cryptopulse.serve.live.message import Message
from cryptopulse.serve.live.questions import Questions
from cryptopulse.serve.live.ring import Floats

LAKE: Final = "lake"
"""Whether there is data, and how old it is."""
MARKET: Final = "market"
"""The figures of every product."""
EPISODES: Final = "alerts"
"""The newest alert episodes."""
PRODUCTS: Final = "products"
"""The ids of all products."""
PRODUCT: Final = "product/"
"""`product/<product>`: the figures of one."""

_TRADES_EVERY_S = 0.1  # more often an eye can't read; each time a file is read for every commit
_MINUTE_US = 60_000_000
_PERCENT_DIGITS = 3
_AMOUNT_DIGITS = 8


class Topics:
    """What the tables say, as messages."""

    def __init__(self, lake: LakeLocation, ready: Callable[[str], None], state_dir: Path | None = None) -> None:
        """Reads nothing yet. `ready` is called with a topic, from any thread, when `loaded` has its snapshot."""
        self._bars = Follower(lake, BARS, BAR_COLUMNS)
        self._trades = Follower(lake, SILVER, TRADE_COLUMNS)
        self._alerts = Follower(lake, ALERTS, alerts.COLUMNS)
        self.market = Market()
        self.episodes = Episodes()
        self._charts = Charts(lake, self.market, ready)
        self._questions = Questions(lake, state_dir)
        self._answers = Answers(self._questions.all, ready)
        self._sent: Floats = np.zeros((0, len(FIGURES)))
        self._sent_minute = self._sent_decimals = -1
        self._loaded_us = 0
        self._trades_at_s = 0.0
        self._is_known = False
        self._said: str | None = None
        self._is_refused = False

    def poll_s(self, wanted_s: float) -> float:
        """See `Follower.poll_s`."""
        return self._bars.poll_s(wanted_s)

    def close(self) -> None:
        """Ends what it has started."""
        self._charts.close()
        self._answers.close()
        self._questions.close()

    def forget(self) -> None:
        """Lets go of what was read; the next look begins anew."""
        for follower in (self._bars, self._trades, self._alerts):
            follower.forget()
        self._answers.forget()
        self._is_known = False

    def look(self, watched: Collection[str]) -> list[Message]:
        """What has changed since the last look, of the topics `watched` by somebody.

        Raises LakeUnreachable, ConfigurationError and LakeDamaged of the lake.
        """
        self._answers.look(watched)
        wall_us = time.time_ns() // 1000
        is_first = not self._is_known
        messages = self._look_at_bars(wall_us, is_first)
        messages += self._look_at_alerts(is_first)
        if any(topic == MARKET or topic.startswith((PRODUCT, CHART_TOPIC)) for topic in watched):
            messages += self._look_at_trades(wall_us)
        self._charts.load_missing(self._trades.loaded_us)
        self._is_known, self._said = True, None
        if is_first:
            return [
                self._of_lake(),
                self._market_snapshot(),
                self._alerts_snapshot(),
                *self._of_products(watched, None),
            ]
        return messages + self._market_changes(watched)

    def failed(self, error: CryptoPulseError) -> list[Message]:
        """Why a look failed, for the subscribers."""
        self._said, self._is_refused = str(error), not isinstance(error, TransientError)
        return [self._of_lake()]

    def snapshot(self, topic: str) -> Message | None:
        """All of a topic; None when it is not known yet, or there is no such topic: if it is, it comes later."""
        if topic.startswith(CHART_TOPIC):
            return self._charts.snapshot(topic)
        if topic.startswith(ANSWER):
            return self._answers.snapshot(topic)
        if topic.startswith(PRODUCT) and self._is_known:
            return next(iter(self._of_products([topic], None)), None)
        made = {LAKE: self._of_lake}
        if self._is_known:
            made |= {PRODUCTS: self._symbols, MARKET: self._market_snapshot, EPISODES: self._alerts_snapshot}
        return made[topic]() if topic in made else None

    def loaded(self, topic: str) -> Message | None:
        """The snapshot of a topic that `ready` was called with."""
        return self._answers.loaded(topic) if topic.startswith(ANSWER) else self._charts.loaded(topic)

    def drop(self, topic: str) -> None:
        """Nobody watches `topic` any more."""
        self._charts.drop(topic)

    def _look_at_bars(self, wall_us: int, is_first: bool) -> list[Message]:
        if not is_first and not self._bars.has_news():
            return []
        news = self._bars.read(last_of("window_start", MINUTES * 60))
        if news.is_whole:
            self.market.forget_bars()
        self.market.take_bars(news.rows, wall_us)
        self._note_loaded(self._bars.loaded_us)
        return [self._of_lake(), *self._charts.take_bars(news.rows, news.is_whole)]

    def _look_at_trades(self, wall_us: int) -> list[Message]:
        now_s = time.monotonic()
        if now_s < self._trades_at_s + _TRADES_EVERY_S or not (
            self._trades.loaded_us is None or self._trades.has_news()
        ):
            return []
        self._trades_at_s = now_s
        news = self._trades.read(last_of("event_time", SECONDS))
        trades = Trades(news.rows, self.market.places(news.rows["symbol"]))
        if news.is_whole:
            self.market.forget_trades()
        self.market.take_trades(trades, wall_us)
        self._note_loaded(self._trades.loaded_us)
        return [self._of_lake(), *self._charts.take_trades(trades, news.is_whole)]

    def _look_at_alerts(self, is_first: bool) -> list[Message]:
        if not is_first and not self._alerts.has_news():
            return []
        news = self._alerts.read(last_of("opened_at", alerts.KEPT_S))
        if news.is_whole:
            self.episodes.clear()
        changed, gone = self.episodes.take_in(news.rows)
        if news.is_whole:
            return [self._alerts_snapshot()]
        return [Message(EPISODES, "change", {"rows": changed, "gone": gone})] if changed or gone else []

    def _note_loaded(self, loaded_us: int | None) -> None:
        self._loaded_us = max(self._loaded_us, loaded_us or 0)

    def _of_lake(self) -> Message:
        """`state`: loading, empty, filled, unreachable (it is tried again), or refused (it stays so)."""
        if self._said is not None:
            state = "refused" if self._is_refused else "unreachable"
        elif not self._is_known and not self.market.now_us:
            state = "loading"
        else:
            state = "filled" if self.market.now_us else "empty"
        data = {
            "state": state,
            "said": self._said,
            "loaded_us": self._loaded_us or None,
            "clock_us": time.time_ns() // 1000,
            "products": len(self.market.symbols),
            "open_alerts": sum(row["state"] == "OPEN" for row in self.episodes.rows.values()),
        }
        return Message(LAKE, "snapshot", data)

    def _symbols(self) -> Message:
        return Message(PRODUCTS, "snapshot", {"symbols": sorted(self.market.symbols)})

    def _market_snapshot(self) -> Message:
        """All products as they were last published, so that the next change fits."""
        if len(self._sent) != len(self.market.symbols):
            self._sent = self._figures()
        data = {
            **self._moment(),
            "columns": FIGURES,
            "symbols": list(self.market.symbols),
            "decimals": self.market.decimals.tolist(),
            "rows": self._sent.tolist(),
            "sparks": self._sparks(),
        }
        return Message(MARKET, "snapshot", data)

    def _market_changes(self, watched: Collection[str]) -> list[Message]:
        """The rows that are not as they were last published, each with the product's number before it."""
        minute = self.market.now_us // _MINUTE_US
        decimals = int(self.market.decimals.sum())
        if (
            len(self._sent) != len(self.market.symbols)
            or minute != self._sent_minute
            or decimals != self._sent_decimals
        ):
            self._sent_minute, self._sent_decimals = minute, decimals
            self._sent = self._figures()
            return [self._symbols(), self._market_snapshot(), *self._of_products(watched, None)]
        figures = self._figures()
        is_same = (figures == self._sent) | (np.isnan(figures) & np.isnan(self._sent))
        changed = np.flatnonzero(~is_same.all(axis=1))
        if not len(changed):
            return []
        self._sent = figures
        rows = np.column_stack([changed, figures[changed]]).tolist()
        message = Message(MARKET, "change", {**self._moment(), "rows": rows})
        return [message, *self._of_products(watched, set(changed.tolist()))]

    def _of_products(self, watched: Collection[str], changed: set[int] | None) -> list[Message]:
        """The figures of the products that are watched by themselves, of those `changed` (None: of all)."""
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
            found.append(Message(topic, "snapshot", data))
        return found

    def _moment(self) -> dict[str, int | None]:
        return {"now_us": self.market.now_us or None, "loaded_us": self._loaded_us or None}

    def _figures(self) -> Floats:
        """As published: percents and amounts with as many digits as are shown, so that less changes."""
        figures = self.market.figures()
        for place, name in enumerate(FIGURES):
            if name.startswith(("change", "buy_share")):
                figures[:, place] = np.round(figures[:, place], _PERCENT_DIGITS)
            elif name in ("notional_24h", "volume_24h"):
                figures[:, place] = np.round(figures[:, place], _AMOUNT_DIGITS)
        return figures

    def _sparks(self) -> list[list[float | None]]:
        sparks: list[list[float | None]] = self.market.sparks().tolist()
        return sparks

    def _alerts_snapshot(self) -> Message:
        return Message(EPISODES, "snapshot", {"rows": self.episodes.newest_first()})
