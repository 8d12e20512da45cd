"""Selections of rows of one table, checked and as SQL: products, times, a key to continue from, an order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import pyarrow as pa

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.activity_bars import ACTIVITY_BARS
from cryptopulse.lake.database import text_literal
from cryptopulse.lake.dialect import time_literal
from cryptopulse.lake.files import TIME_MAX_US, time_of
from cryptopulse.lake.products import invalid_product_id, is_symbol
from cryptopulse.lake.reading import quoted
from cryptopulse.lake.tables import ABSENT, ALERTS, BRONZE, COVERAGE, QUARANTINE, SILVER, Table
from cryptopulse.text import parse_time

Moment = datetime | date | str
"""A time as callers give it; without an offset it is UTC. A date means its first moment."""

_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_MICROSECOND = timedelta(microseconds=1)
_ID_MAX = 2**63 - 1

_ORDERS = {
    BRONZE.qualified: ("received_time", "partition", "offset"),
    QUARANTINE.qualified: ("received_time", "partition", "offset"),
    SILVER.qualified: ("event_time", "symbol", "trade_id"),
    COVERAGE.qualified: ("symbol", "first_trade_id"),
    ABSENT.qualified: ("symbol", "first_trade_id"),
    ALERTS.qualified: ("opened_at", "alert_id"),
    ACTIVITY_BARS.qualified: ("window_start", "symbol", "first_trade_id"),
}
_WINDOWS_ORDER = ("window_start", "symbol")


def order_of(table: Table) -> tuple[str, ...]:
    """The columns by which rows of `table` are ordered; together they are unique."""
    return _ORDERS.get(table.qualified, _WINDOWS_ORDER)


@dataclass(frozen=True)
class Selection:
    """Which rows of a table."""

    table: Table
    columns: tuple[str, ...]
    symbols: tuple[str, ...] | None = None
    """None: all."""
    first_us: int = 0
    end_us: int = TIME_MAX_US
    """Not included; µs UTC."""
    first_id: int = 0
    last_id: int = _ID_MAX
    """Trade ids, both included; for trades."""
    equals: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Column → allowed values."""
    after: tuple[int | str, ...] | None = None
    """Only rows after this key, in their order; times as µs UTC."""
    is_reversed: bool = False
    rows_max: int | None = None

    @property
    def order(self) -> tuple[str, ...]:
        """See `order_of`."""
        return order_of(self.table)

    @property
    def is_by_time(self) -> bool:
        """Whether the rows are ordered by the time column that file statistics have."""
        return self.order[0] == time_of(self.table)

    @property
    def has_ids(self) -> bool:
        """Whether trade ids are bounded."""
        return (self.first_id, self.last_id) != (0, _ID_MAX)

    @property
    def is_whole(self) -> bool:
        """Whether it selects every row of the table."""
        bounded = self.symbols, self.after, self.rows_max
        return bounded == (None, None, None) and not self.equals and not self.has_ids and self.has_all_times

    @property
    def has_all_times(self) -> bool:
        """Whether neither start nor end is bounded."""
        return (self.first_us, self.end_us) == (0, TIME_MAX_US)

    @property
    def time_range(self) -> tuple[int, int]:
        """The rows' times, from (included) and to (not included), µs UTC; narrowed by `after`."""
        if self.after is None or not self.is_by_time:
            return self.first_us, self.end_us
        edge = int(self.after[0])
        if self.is_reversed:
            return self.first_us, min(self.end_us, edge + 1)
        return max(self.first_us, edge), self.end_us

    def conditions_sql(self) -> list[str]:
        """SQL conditions, without those on times."""
        parts = [f'"{name}" IN ({_texts(values)})' for name, values in self.equals]
        if self.symbols is not None:
            parts.append(f"symbol IN ({_texts(self.symbols)})")
        if self.has_ids:
            parts.append(f"trade_id BETWEEN {self.first_id} AND {self.last_id}")
        return parts

    def after_sql(self) -> list[str]:
        """SQL condition: the row comes after the key `after`."""
        if self.after is None:
            return []
        values = []
        for name, value in zip(self.order, self.after, strict=True):
            if pa.types.is_timestamp(self.table.arrow_schema.field(name).type):
                values.append(time_literal(int(value)))
            else:
                values.append(text_literal(value) if isinstance(value, str) else str(value))
        return [f"({quoted(self.order)}) {'<' if self.is_reversed else '>'} ({', '.join(values)})"]

    def order_sql(self) -> str:
        """SQL for ORDER BY."""
        way = " DESC" if self.is_reversed else ""
        return ", ".join(f'"{name}"{way}' for name in self.order)

    def key_of(self, values: Sequence[object]) -> tuple[int | str, ...]:
        """`values` of the columns in `order` as a key for `after`. Raises ConfigurationError for invalid ones."""
        if len(values) != len(self.order):
            raise ConfigurationError(f"after: write the values of {', '.join(self.order)}.")
        key: list[int | str] = []
        for name, value in zip(self.order, values, strict=True):
            kind = self.table.arrow_schema.field(name).type
            if pa.types.is_timestamp(kind):
                key.append(moment_us(name, value))
            else:
                key.append(str(value) if pa.types.is_string(kind) else whole_number(name, value))
        return tuple(key)


def moment_us(name: str, value: object) -> int:
    """A moment as µs UTC, limited to 1970 … 9999. `name`: of the argument. Raises ConfigurationError for no moment.

    A finer time, such as pandas', is truncated to microseconds.
    """
    if isinstance(value, date) and not isinstance(value, datetime):
        value = value.isoformat()
    if type(value) is datetime and value.tzinfo is not None:  # also if the UTC time is outside Python's years
        return min(max((value - _EPOCH) // _MICROSECOND, 0), TIME_MAX_US)
    try:
        moment = parse_time(value.isoformat() if isinstance(value, datetime) else str(value).replace("Z", "+00:00"))
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from error
    return min(max((moment - _EPOCH) // _MICROSECOND, 0), TIME_MAX_US)


def moment_of(us: int) -> datetime:
    """The inverse of `moment_us`."""
    return _EPOCH + timedelta(microseconds=us)


def time_range(start: Moment | None, end: Moment | None) -> tuple[int, int]:
    """[start, end) as µs UTC; None is unbounded. Raises ConfigurationError."""
    first_us = 0 if start is None else moment_us("start", start)
    end_us = TIME_MAX_US if end is None else moment_us("end", end)
    if end_us < first_us:
        raise ConfigurationError(f"end ({end}) lies before start ({start}).")
    return first_us, end_us


def id_range(first: int | None, last: int | None) -> tuple[int, int]:
    """[first, last] of trade ids; None is unbounded. Raises ConfigurationError."""
    low = 0 if first is None else whole_number("first_id", first)
    return low, _ID_MAX if last is None else whole_number("last_id", last)


def product_ids(symbol: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """The requested products, each once; None for all. Raises ConfigurationError for an invalid product id."""
    if symbol is None:
        return None
    given = [symbol] if isinstance(symbol, str) else list(symbol)
    for one in given:
        if not isinstance(one, str) or not is_symbol(one):
            raise ConfigurationError(invalid_product_id(one))
    if not given:
        raise ConfigurationError("symbol: the list is empty; leave it out for all products.")
    return tuple(sorted(set(given)))


def chosen(known: Sequence[str], columns: Iterable[str] | None) -> tuple[str, ...]:
    """The requested columns in the given order; None for all `known`. Raises ConfigurationError."""
    if columns is None:
        return tuple(known)
    wanted = [columns] if isinstance(columns, str) else list(dict.fromkeys(columns))
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigurationError(f"There is no column {unknown[0]!r}; there are {', '.join(known)}.")
    if not wanted:
        raise ConfigurationError("columns: the list is empty; leave it out for all columns.")
    return tuple(wanted)


def equalities(given: Mapping[str, str | Iterable[str] | None]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Column → allowed texts; columns with None are left out."""
    return tuple(
        (name, (values,) if isinstance(values, str) else tuple(values))
        for name, values in given.items()
        if values is not None
    )


def whole_number(name: str, value: object) -> int:
    """`value` as an int that a BIGINT holds. Raises ConfigurationError for anything else."""
    try:
        number = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{name}={value!r} is no whole number.") from error
    if not -_ID_MAX <= number <= _ID_MAX:
        raise ConfigurationError(f"{name}={value!r} is too large.")
    return int(number)


def _texts(values: Iterable[str]) -> str:
    return ", ".join(map(text_literal, values)) or "NULL"
