"""Engines: read what is new in a table, run SQL over it, and commit the result with its position in one transaction.

An engine does not know what a trade is; what it does to a table follows from the table's contract
(`cryptopulse.lake.tables`) and SQL. The pipeline tells it which table to bring up to date, in which order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from cryptopulse.lake.tables import Table


@dataclass(frozen=True)
class Commit:
    """What one step did to a table."""

    table: Table
    rows: pa.Table
    """The rows that were written, as they are in the table."""
    consumed: int
    """Rows of the upstream table, or messages, that the step took in."""
    skipped: int = 0
    """Rows that the table already held."""
    received: pa.ChunkedArray | None = None
    """When the trades that the step took in came off the socket (µs UTC), for tables that don't say it."""


class Engine(Protocol):
    """Keeps the tables of one lake up to date. Exactly once: a step that is repeated after a kill changes nothing."""

    def stored_to(self, partition: int) -> int:
        """Last offset of a log partition that bronze holds; -1 for none."""

    def store(self, records: pa.Table) -> Commit:
        """Appends `records` of the log (RECORD_SCHEMA, one partition, in order) to bronze."""

    def anticipate(self, records: pa.Table) -> None:
        """Does of the next step what needs no commit of `records`, so that it can be done while they are stored."""

    def advance(self, table: Table) -> Commit | None:
        """One step of `table` over what is new upstream; None when there is nothing new."""

    def settle(self) -> None:
        """From now on nothing is held back for a while: what follows is the end."""

    def reset(self, tables: Sequence[Table]) -> None:
        """Empties derived `tables` in this order and forgets their positions: they are derived again from the start."""
