"""Product ids: how an exchange names a market."""

from __future__ import annotations

import re
from functools import cache

PRODUCT_ID = r"[A-Z0-9]+(?:-[A-Z0-9]+){1,2}"
"""Regular expression of a product id of Coinbase: BASE-QUOTE such as BTC-USD, or three parts (BIP-20DEC30-CDE)."""

SYMBOL = rf"(?:{PRODUCT_ID}|[A-Za-z0-9]+(?:[-/.][A-Za-z0-9]+)*@[a-z]+(?:-[a-z]+)*)"
"""Regular expression of the column `symbol`: a product id of Coinbase, or another venue's symbol as it writes it, and
the venue: BTC/USD@kraken."""

PRODUCT_ID_MAX = 64
"""Most characters of a symbol; the longest known has 20."""

DOLLARS = ("USD", "USDT", "USDC", "FDUSD", "TUSD", "BUSD", "USDE", "USD1", "PYUSD", "DAI")
"""Currencies that count as the dollar where markets are compared: it, and coins that promise one."""

_QUOTES = (
    *DOLLARS,
    *("EUR", "EURI", "GBP", "TRY", "BRL", "JPY", "AUD", "CHF", "PLN", "ARS", "MXN", "ZAR", "UAH", "CZK"),
    *("BTC", "ETH", "BNB", "XRP"),
)
_JOINED = rf"([A-Za-z0-9]+?)({'|'.join(sorted(_QUOTES, key=len, reverse=True))})"
"""Binance writes base and quote as one word, which ends with one of the currencies that others are traded for."""
_PARTED = "([^-/]+)[-/]([^-/]+)"
_JOINING, _PARTING = ("binance", "binance-aggregates"), ("coinbase", "kraken", "okx")
"""Venues by how they write a pair."""
_REPEATING = "binance-aggregates"  # sums of Binance's trades

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


def base_and_quote(symbol: str) -> tuple[str, str] | None:
    """What is traded, and for which currency, in capitals: ("BTC", "USD") of `BTC-USD`, ("BTC", "USDT") of
    `BTCUSDT@binance`. None for futures and swaps, and where the venue's way to write it is not known.
    """
    name, venue = symbol.partition("@")[0], venue_of(symbol) or "coinbase"
    pattern = _JOINED if venue in _JOINING else _PARTED if venue in _PARTING else "(?!)"
    pair = re.fullmatch(pattern, name)
    return (pair[1].upper(), pair[2].upper()) if pair else None


@cache
def market_of(symbol: str) -> str:
    """What is compared across venues: base and quote, with dollar coins as the dollar, as in `BTC/USD`; "" for a symbol
    without a market of its own.
    """
    pair = base_and_quote(symbol)
    if pair is None or venue_of(symbol) == _REPEATING:
        return ""
    base, quote = pair
    return f"{base}/USD" if quote in DOLLARS else f"{base}/{quote}"


def _listed(texts: tuple[str, ...]) -> str:
    return ", ".join(f"'{text}'" for text in texts)


_PATTERN_SQL = (
    f"CASE WHEN venue(symbol) IN ({_listed(_JOINING)}) THEN '^{_JOINED}$' "
    f"WHEN venue(symbol) IN ({_listed(_PARTING)}) THEN '^{_PARTED}$' ELSE '^()$' END"
)
_COMPARED_SQL = f"CASE WHEN quote(symbol) IN ({_listed(DOLLARS)}) THEN 'USD' ELSE quote(symbol) END"

SYMBOL_MACROS = (
    "venue(symbol) AS CASE WHEN contains(symbol, '@') THEN split_part(symbol, '@', 2) ELSE 'coinbase' END",
    f"part_of_pair(symbol, part) AS regexp_extract(split_part(symbol, '@', 1), {_PATTERN_SQL}, part)",
    "base(symbol) AS upper(nullif(part_of_pair(symbol, 1), ''))",
    "quote(symbol) AS upper(nullif(part_of_pair(symbol, 2), ''))",
    f"market(symbol) AS CASE WHEN venue(symbol) <> '{_REPEATING}' THEN base(symbol) || '/' || {_COMPARED_SQL} END",
)
"""DuckDB's macros that say the same in SQL, with NULL where there is nothing to say."""


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
