"""The venues beside Coinbase, and how the messages that name them are read.

A product of such a venue is called `SYMBOL@venue` in the tables, the symbol as the venue writes it: `BTC/USD@kraken`.
Its messages have such a key, or `@venue` alone, which tells the parser whose they are; Coinbase's have no `@`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cryptopulse.venues import Trades, Venue
from cryptopulse.venues.binance import Binance, aggregate_trades
from cryptopulse.venues.kraken import Kraken
from cryptopulse.venues.okx import Okx

COINBASE: Final = "coinbase"

VENUES: Final[Mapping[str, Callable[[], Venue]]] = {"kraken": Kraken, "binance": Binance, "okx": Okx}
"""Venue → how to record it."""

MESSAGES: Final[Mapping[str, Callable[[Mapping[str, Any]], Trades]]] = {
    **{name: venue().trades for name, venue in VENUES.items()},
    "binance-aggregates": aggregate_trades,
}
"""Venue → how a decoded message of its feed is read."""

VAGUE_TIMES: Final = "@kraken$"
"""Regular expression of the symbols whose trades may have times a microsecond apart: pages of Kraken write fractions of
one, its feed does not, and how they are rounded is not documented."""

PAGES: Final[Mapping[str, Callable[[Any, str], Trades]]] = {name: venue().page for name, venue in VENUES.items()}
"""Venue → how a decoded page of its REST interface is read."""
