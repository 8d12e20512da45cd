"""Lines of files that other programs wrote, as messages: a line as it stands in its file, below one that says how to
read it.

The line above, the layout, is JSON. A list names the columns of a line of CSV in their order, null for those that are
not read: `["exchange","product_id","time_us",null,"trade_id","side","price","size"]`. An object names the members of a
line of JSON: `{"symbol":"product_id","id":"trade_id",…}`. Without `product_id` the product is the message's key. A key
with `@` says whose trade it is, as for other messages (`venues/registry.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

IMPORT: Final = "import"
"""The source of these messages."""

EXCHANGES: Final = {"coinbase": "coinbase", "kraken": "kraken", "binance": "binance", "okx": "okx", "okex": "okx"}
"""How other programs name an exchange, in small letters → the venue."""

SIDES: Final = ("side", "maker_side")
"""`side` is the taker's, `maker_side` the maker's, as Coinbase writes it, or whether the buyer is the maker."""

MAKERS: Final = {"true": "buy", "false": "sell"}
"""What `maker_side` says of the buyer → the maker's side."""

TIMES: Final = {"time": None, "time_s": 6, "time_ms": 3, "time_us": 0, "time_ns": -3}
"""`time` is ISO 8601, UTC without an offset; the others count from 1970: the power of ten that makes µs of them."""

FIELDS: Final = ("exchange", "product_id", "trade_id", "price", "size", *SIDES, *TIMES)
"""What a column may be."""


class Layout(NamedTuple):
    """How to read a line."""

    is_csv: bool
    """Else the line is a JSON object."""
    places: Mapping[str, int | str]
    """Field → number of its column (from 0), or name of its member."""
    width: int
    """How many columns a line of CSV has."""
    side: str
    """The one of SIDES that is there."""
    time: str
    """The one of TIMES that is there."""


@lru_cache(64)
def read_layout(text: bytes) -> Layout | None:
    """The layout that `text` is; None if it is none."""
    try:
        names = msgspec.json.decode(text, type=list[str | None] | dict[str, str])
    except (ValueError, RecursionError):  # msgspec's errors and bad UTF-8 are ValueErrors
        return None
    found: list[tuple[str, int | str]]
    if isinstance(names, list):
        found = [(name, place) for place, name in enumerate(names) if name is not None]
    else:
        found = [(name, member) for member, name in names.items()]
    places = dict(found)
    sides, times = ([name for name in group if name in places] for group in (SIDES, TIMES))
    is_whole = places.keys() >= {"trade_id", "price", "size"} and len(sides) == len(times) == 1
    if not is_whole or len(places) != len(found) or not places.keys() <= set(FIELDS):
        return None
    return Layout(isinstance(names, list), places, len(names), sides[0], times[0])
