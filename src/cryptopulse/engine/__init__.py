"""Engines: the steps from the log to gold. A step reads what is new in one table and commits rows of the next.

`embedded` runs them in this process, `spark` on a cluster. Exactly once: every commit carries the position of what it
took in, so a step that is repeated after a kill changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from cryptopulse.lake.tables import Table


@dataclass(frozen=True)
class StepResult:
    """What one step did to a table."""

    table: Table
    rows: pa.Table
    """The rows that were written, as they are in the table."""
    consumed: int
    """Rows of the upstream table, or messages, that the step took in."""
    skipped: int = 0
    """Rows that were in the table already."""
    received: pa.ChunkedArray | None = None
    """When the trades that the step took in came off the socket (µs UTC), for tables without that column."""
