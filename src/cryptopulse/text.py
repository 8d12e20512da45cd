"""Times, durations and prices as people write and read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from cryptopulse.errors import ConfigurationError

MICROS = 1_000_000
"""Microseconds in a second; times are in µs UTC since 1970."""

_FIRST_YEAR, _LAST_YEAR = 1970, 2200
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(text: str, *, may_be_zero: bool = False) -> float:
    """Seconds from `90`, `60s`, `1.5m` or `2h`. Raises ConfigurationError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|)", text.strip().lower())
    if match is None or (float(match[1]) == 0 and not may_be_zero):
        raise ConfigurationError(f"'{text}' is no length of time; write it like 60s or 5m.")
    return float(match[1]) * _UNITS_S[match[2]]


def parse_time(text: str) -> datetime:
    """The UTC time from `2026-11-01`, `2026-11-01T12:30` or `2026-11-01T12:30+02:00`; UTC without an offset.

    Raises ConfigurationError for anything else.
    """
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:  # OverflowError: in UTC the year is 0 or 10000
        raise ConfigurationError(f"'{text}' is no time; write it like 2026-07-07 or 2026-07-07T22:00.") from error


def parse_trade_time(text: str) -> datetime:
    """`parse_time`, restricted to the years 1970 to 2200: with room for arithmetic on both sides.

    Raises ConfigurationError for anything else.
    """
    moment = parse_time(text)
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ConfigurationError(f"'{text}' is no time of a trade; years go from {_FIRST_YEAR} to {_LAST_YEAR}.")
    return moment


def decimal_text(value: Decimal | int) -> str:
    """A number with all its digits, without an exponent or trailing zeros."""
    text = f"{value:f}"  # `normalize` would round to 28 digits
    return text.rstrip("0").rstrip(".") if "." in text else text


def ids_text(first: int, last: int) -> str:
    """`id 7` or `ids 7 to 9 (3)`."""
    return f"id {first}" if first == last else f"ids {first} to {last} ({last - first + 1:,})"


def price_text(text: object) -> str:
    """A price with all its digits, at least two decimals, and a comma between thousands."""
    price = to_decimal(text)
    decimals = max(len(decimal_text(price).partition(".")[2]), 2)
    return f"{price:,.{decimals}f}"


def to_decimal(text: object) -> Decimal:
    """`text` as a decimal; 0 if it is none."""
    try:
        return Decimal(str(text))
    except InvalidOperation:
        return Decimal(0)
