"""The simulator's options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptopulse.errors import ConfigurationError
from cryptopulse.simulator.crash_day import crash_day_products
from cryptopulse.simulator.episodes import StagedEpisode, check_products
from cryptopulse.simulator.faults import Faults
from cryptopulse.simulator.products import SimulatedProduct, catalogue

_PAST_MAX_S = 31 * 86_400

Start = Literal["at_once", "first_subscription", "all_subscribed"]

FEEDS = ("exchange", "advanced", "kraken", "binance", "okx")
"""The WebSocket feeds, which are their paths as well."""


@dataclass(frozen=True, slots=True)
class SimulatorOptions:
    """Options of a simulator. Raises ConfigurationError for invalid ones."""

    products: int | Sequence[str] = 20
    """How many products, or which ones. The first ones are the most popular."""
    rate: float = 100.0
    """Mean trades per second of market time, all products together; trades of episodes are additional."""
    seed: int = 1
    """The same seed and market parameters give the same trades."""
    host: str = "127.0.0.1"
    port: int = 8765
    """0: any free port."""
    episodes: Sequence[StagedEpisode] = ()
    """Scripted crashes and surges."""
    faults: Faults = field(default_factory=Faults)
    faults_seed: int = 1
    """Seed of the faults; the market does not depend on it."""
    speed: float = 1.0
    """Seconds of market time per second; 0: as fast as the readers can take."""
    start: Start = "at_once"
    """When trading starts: at once, with the first subscription to trades, or when every product has a subscriber (so
    that these receive every trade)."""
    start_feeds: Sequence[str] = ()
    """With `all_subscribed`: the feeds on each of which every product must have a subscriber; none: on any of them."""
    trades_max: int | None = None
    """Trading stops after this many trades; None: never."""
    history: int = 1_000_000
    """How many of the newest trades REST can return, all products together (about 50 bytes each)."""
    past_s: float = 0.0
    """How long the market has traded before the simulator starts, for REST alone: calmly, and most of all in the last
    two hours."""
    start_time_ns: int | None = None
    """Market time at the start of trading, nanoseconds UTC since 1970; None: the real time."""
    recording: Path | None = None
    """Serve this recording instead of a market."""
    crash_day_trades: int | None = None
    """Play a crash day of so many trades instead of a market, at an even `rate`; its event times end now."""
    subscribe_within_s: float = 5.0
    """Connections that have not subscribed after this time are closed."""
    unsent_max_bytes: int = 64 * 1024 * 1024
    """A reader with more unread bytes than this is cut off, unless `speed` is 0."""
    rest_limit: bool = True
    """Whether REST answers 429 beyond 10 requests per second and address (bursts of 15)."""

    def __post_init__(self) -> None:
        """Validates the options. Raises ConfigurationError."""
        if not 0 < self.rate <= 1_000_000:
            raise ConfigurationError(f"Rate {self.rate}: give trades a second over 0 and up to 1,000,000.")
        if not self.seed >= 0 or not self.faults_seed >= 0:
            raise ConfigurationError("A seed can't be negative.")
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"Port {self.port}: give 0 (any free one) to 65535.")
        if not self.speed >= 0:
            raise ConfigurationError(f"Speed {self.speed}: give 0 (as fast as readers take it) or more.")
        if not 0 <= self.past_s <= _PAST_MAX_S:
            raise ConfigurationError(f"A past of {self.past_s / 3600:g} h: give at most {_PAST_MAX_S // 3600} h.")
        if self.past_s and self.recording is not None:
            raise ConfigurationError("A recording has its own past: leave out --past.")
        if self.crash_day_trades is not None and (self.past_s or self.episodes or self.recording or self.speed != 1):
            raise ConfigurationError("A crash day has its own past, episodes and pace: leave out other ones.")
        if not 1 <= self.history <= 100_000_000:
            raise ConfigurationError(f"History {self.history}: give 1 to 100,000,000 trades.")
        for feed in self.start_feeds:
            if feed not in FEEDS:
                raise ConfigurationError(f"Unknown feed {feed!r} (expected {', '.join(FEEDS)}).")
        if self.start_feeds and self.start != "all_subscribed":
            raise ConfigurationError("Feeds to wait for need the start all_subscribed: choose it, or name none.")
        if self.trades_max is not None and self.trades_max < 1:
            raise ConfigurationError(f"Trades {self.trades_max}: give 1 or more.")
        if self.subscribe_within_s <= 0 or self.unsent_max_bytes < 1:
            raise ConfigurationError("Simulator: times and bounds must be over 0.")
        if self.recording is not None and not self.recording.is_file():
            raise ConfigurationError(f"Recording {self.recording} is not a file.")
        check_products(self.episodes, (product.product_id for product in self.catalogue()))

    def catalogue(self) -> tuple[SimulatedProduct, ...]:
        """The products of the market."""
        if self.crash_day_trades is not None:
            return crash_day_products(self.crash_day_trades, self.seed)
        return catalogue(self.products, self.seed)
