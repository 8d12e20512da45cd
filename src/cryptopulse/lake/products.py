"""Product ids: how an exchange names a market."""

from __future__ import annotations

import re

PRODUCT_ID = r"[A-Z0-9]+(?:-[A-Z0-9]+){1,2}"
"""Regular expression of a product id of Coinbase: BASE-QUOTE such as BTC-USD, or three parts (BIP-20DEC30-CDE)."""

SYMBOL = rf"(?:{PRODUCT_ID}|[A-Za-z0-9]+(?:[-/.][A-Za-z0-9]+)*@[a-z]+(?:-[a-z]+)*)"
"""Regular expression of the column `symbol`: a product id of Coinbase, or another venue's symbol as it writes it, and
the venue: BTC/USD@kraken."""

PRODUCT_ID_MAX = 64
"""Most characters of a symbol; the longest known has 20."""

_PRODUCT_ID, _SYMBOL = re.compile(PRODUCT_ID), re.compile(SYMBOL)


def venue_of(text: str) -> str:
    """The venue that a symbol, or the key of a message, names; "" for Coinbase's, which name none."""
    return text.partition("@")[2]


_DENSE_IDS = ("", "kraken", "binance", "binance-aggregates", "okx")
_FUTURES = "-CDE"  # Coinbase's, by Advanced Trade; nobody has published how their ids run

GRADE_SQL = (
    f"CASE WHEN symbol LIKE '%{_FUTURES}' THEN 'sequence' WHEN split_part(symbol, '@', 2) IN "
    f"({', '.join(repr(venue) for venue in _DENSE_IDS)}) THEN 'ids' ELSE 'none' END"
)
"""DuckDB's SQL: the grade of `symbol`, how far it can be proved that no trade of it is missing. `ids`: its ids are
dense, so a hole between two is a fact. `sequence`: only what a connection numbered is known to be whole; whether ids
are dense is not known, so an id that is not held may never have been. `none`: nothing is known of its venue."""


def as_written(text: str) -> str:
    """What a person writes for a symbol, as it is in the tables: Coinbase's ids have only capital letters."""
    text = text.strip()
    return text if "@" in text else text.upper()


def invalid_product_id(text: object) -> str:
    """The error message for a text that is no product id."""
    return f"Invalid product id {text!r} (expected BASE-QUOTE, e.g. BTC-USD)."


def is_product_id(text: str) -> bool:
    """Whether `text` is a product id of Coinbase."""
    return len(text) <= PRODUCT_ID_MAX and _PRODUCT_ID.fullmatch(text) is not None


def is_symbol(text: str) -> bool:
    """Whether `text` can be a symbol in the tables, of any venue."""
    return len(text) <= PRODUCT_ID_MAX and _SYMBOL.fullmatch(text) is not None
