"""A webhook on 127.0.0.1 that records what it is sent and answers as a test wants it to, and episodes to tell of."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptopulse.lake.alerts import SEVERITIES
from cryptopulse.notify.episodes import AlertEpisode
from cryptopulse.settings.notify import NotifyTarget
from support import START, Lake, Trade

SECRET = "s3cr3tT0ken"
"""Stands in every address, and must be seen nowhere else."""

Answer = Callable[["Post"], int]


@dataclass(frozen=True)
class Post:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes
    at_s: float = field(default_factory=time.monotonic)

    @property
    def content(self) -> dict[str, Any]:
        """Its JSON."""
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def told(self) -> list[tuple[str, str]]:
        """Alert id and event of each episode in it."""
        return [(alert["alert_id"], alert["event"]) for alert in self.content["alerts"]]


class Webhook:
    """A real HTTP server; `close` ends it."""

    def __init__(self, answer: Answer = lambda _post: 200, port: int = 0) -> None:
        """`answer` gives the status code, after as long as it likes."""
        self.answer = answer
        self.posts: list[Post] = []
        """All requests, also those that were refused, in the order in which they came."""
        self.accepted: list[Post] = []
        self._lock = threading.Lock()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                webhook._take(self, Post(self.path, dict(self.headers), body))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def _take(self, handler: BaseHTTPRequestHandler, post: Post) -> None:
        with self._lock:
            self.posts.append(post)
        code = self.answer(post)
        with self._lock:
            if 200 <= code < 300:
                self.accepted.append(post)
        try:
            handler.send_response(code)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        except OSError:
            pass  # who asked is gone: killed, or tired of waiting

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The address of a target, with a secret in every place that can have one."""
        return f"json://user:{SECRET}-password@127.0.0.1:{self.port}/{SECRET}/hook?+X-Token={SECRET}-header"

    @property
    def told(self) -> list[tuple[str, str]]:
        """Alert id and event of all that was accepted, in order."""
        return [told for post in self.accepted for told in post.told]

    def targets(self, **settings: Any) -> str:
        """The setting `notify.targets` for the environment."""
        return json.dumps([{"url": self.url, **settings}])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def target(**settings: Any) -> NotifyTarget:
    """A target that nobody listens at."""
    return NotifyTarget.model_validate({"url": "json://127.0.0.1:9", **settings})


def episode(
    number: int = 100, rank: int = 0, is_closed: bool = False, symbol: str = "BTC-USD", **changes: Any
) -> AlertEpisode:
    """An episode of START that trade `number` opened; `rank`: how severe, 0 to 2."""
    given: dict[str, Any] = {
        "alert_id": f"price-move:FLASH_CRASH:{symbol}:{number}",
        "symbol": symbol,
        "alert_type": "FLASH_CRASH",
        "rule": "price-move",
        "threshold_pct": Decimal("1.0000"),
        "lookback_s": 120,
        "severity": SEVERITIES[rank],
        "state": "CLOSED" if is_closed else "OPEN",
        "price_change_pct": (-1.25, -2.5, -4.5)[rank],
        "start_price": Decimal("100234.500000"),
        "end_price": Decimal("97012.1"),
        "window_start": START,
        "window_end": START + timedelta(seconds=41),
        "opened_at": START + timedelta(seconds=40),
        "last_trigger_at": START + timedelta(seconds=42),
        "start_trade_id": 90,
        "trigger_trade_id": number,
        "end_trade_id": number + 5,
        "last_trigger_trade_id": number + 6,
        "detected_at": START + timedelta(seconds=40.31),
    }
    return AlertEpisode(**given | changes)


class Market:
    """Makes episodes in a real lake by trades of the last minutes, through the real pipeline."""

    lookback_s, cool_down_s = 10, 5

    def __init__(self, path: Path) -> None:
        rule = {"name": "move", "lookback_s": self.lookback_s, "cool_down_s": self.cool_down_s}
        self.lake = Lake(path, alerts={"rules": [rule]})
        self._now = datetime.now(UTC) - timedelta(seconds=300)
        self._last: dict[str, int] = {}

    @property
    def seconds(self) -> float:
        """When the last trade was, in seconds since 1970."""
        return self._now.timestamp()

    def trade(self, **prices: float) -> None:
        """The next trade of each product, one second later: `BTC=99.5`. All in one commit."""
        self._now += timedelta(seconds=1)
        trades = [self._trade(f"{base}-USD", price) for base, price in prices.items()]
        self.lake.take_in([trade.match() for trade in trades])

    def crash(self, *bases: str, percent: float = 1.5) -> list[str]:
        """One new episode for each product; their alert ids."""
        self.wait(self.lookback_s + 1)  # nobody looks back at what was before
        before = [self._trade(f"{base}-USD", 100) for base in bases]
        self._now += timedelta(seconds=1)
        after = [self._trade(f"{base}-USD", 100 - percent) for base in bases]
        self.lake.take_in([trade.match() for trade in (*before, *after)])
        return [f"move:FLASH_CRASH:{trade.symbol}:{trade.trade_id}" for trade in after]

    def calm_down(self) -> None:
        """Time goes by until all episodes are closed."""
        self.wait(self.cool_down_s + 1)
        self.trade(CLOCK=1)

    def wait(self, seconds: float) -> None:
        """Time goes by without trades."""
        self._now += timedelta(seconds=seconds)
        assert self._now < datetime.now(UTC), "trades of the future don't count"

    def _trade(self, symbol: str, price: float) -> Trade:
        self._last[symbol] = self._last.get(symbol, 0) + 1
        return Trade(symbol, self._last[symbol], self._now, price=f"{price:.4f}")

    def close(self) -> None:
        self.lake.close()
