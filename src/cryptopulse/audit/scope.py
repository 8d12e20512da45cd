"""The scope of an audit: some products or all, some hours or all time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from cryptopulse.audit.report import micros
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.products import as_written, invalid_product_id, is_symbol
from cryptopulse.text import parse_trade_time

DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class AuditScope:
    """Products and time of an audit. Made by `of`, which checks them."""

    products: tuple[str, ...] = ()
    """Empty: all."""
    from_us: int | None = None
    """Trades from then on, µs UTC; a whole hour."""
    to_us: int | None = None
    """Trades before then, µs UTC; a whole hour."""

    @classmethod
    def of(cls, products: Sequence[str] = (), start: str | None = None, end: str | None = None) -> AuditScope:
        """`products` in upper or lower case; `start` and `end` in ISO 8601, UTC if they have no offset.

        Times are widened to whole hours, so that no bar, statistic or hour is compared in part. Raises
        ConfigurationError for an invalid product or time.
        """
        names = tuple(dict.fromkeys(map(as_written, products)))
        for name in names:
            if not is_symbol(name):
                raise ConfigurationError(invalid_product_id(name))
        from_us, to_us = _parsed("--from", start), _parsed("--to", end)
        if from_us is not None and to_us is not None and from_us >= to_us:
            raise ConfigurationError(f"--from {start} is not before --to {end}.")
        return cls(
            names,
            None if from_us is None else from_us // _HOUR_US * _HOUR_US,
            None if to_us is None else -(-to_us // _HOUR_US) * _HOUR_US,
        )

    @property
    def is_open_ended(self) -> bool:
        """Whether the scope has no end time."""
        return self.to_us is None

    def has_product(self, column: str = "symbol") -> str:
        """SQL that is true for rows of the products."""
        if not self.products:
            return f"{column} IS NOT NULL"
        return f"{column} IN ({', '.join(repr(name) for name in self.products)})"

    def has_time(self, column: str) -> str:
        """SQL that is true if `column` (µs UTC) is within the time."""
        parts = [] if self.from_us is None else [f"{column} >= {self.from_us}"]
        parts += [] if self.to_us is None else [f"{column} < {self.to_us}"]
        return " AND ".join(parts) or "true"

    def has_day(self, day: date) -> bool:
        """Whether the day (UTC) overlaps the time."""
        start_us = day_start_us(day)
        return (self.from_us is None or start_us + DAY_US > self.from_us) and (
            self.to_us is None or start_us < self.to_us
        )


def day_start_us(day: date) -> int:
    """The start of the day, µs UTC."""
    return micros(datetime(day.year, day.month, day.day, tzinfo=UTC))


def _parsed(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return micros(parse_trade_time(text.strip()))
    except ConfigurationError as error:
        raise ConfigurationError(f"{option}: {error}") from error
