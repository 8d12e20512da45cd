"""Engines: the steps from the log to gold. A step reads what is new in one table and commits rows of the next.

`embedded` runs them in this process, `spark` on a cluster. Exactly once: every commit carries the position that it
consumed, so repeating a step after a kill changes nothing.
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
    """The rows written, as they are in the table."""
    consumed: int
    """How many upstream rows, or messages, the step consumed."""
    skipped: int = 0
    """How many rows the table already had."""
    received: pa.ChunkedArray | None = None
    """Receive times (µs UTC) of the trades that the step consumed, for tables without that column."""
