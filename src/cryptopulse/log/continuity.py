"""Whether a log still follows on from what a lake holds of it.

Two things can come between them. Kafka's retention may have passed messages that nobody read: they are gone, and the
trade ids that they held become holes. And the log may not be the one that the lake was filled from.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import structlog

from cryptopulse.errors import ConfigurationError, TransientError
from cryptopulse.log import Log

_log = structlog.get_logger()


def began_anew(log: str, partition: int, stored: int, end: int) -> ConfigurationError:
    """For a log that ends at `end`, before what the lake has `stored` of it."""
    return ConfigurationError(
        f"The lake holds partition {partition} of the log up to message {stored}, but the log{log} ends before "
        f"message {end}: it is another one, or its offsets began anew. To go on with it, raise log.epoch by one (an "
        "embedded log: move its file away, and a new one is made)."
    )


def check_follows(log: Log, stored_to: Callable[[int], int]) -> None:
    """`stored_to` tells the last offset of a partition that was read (-1: none).

    Raises ConfigurationError when the log ends before it.
    """
    for partition in log.partitions():
        stored, (_, end) = stored_to(partition), log.bounds(partition)
        if stored >= end:
            raise began_anew("", partition, stored, end)


class Continuity:
    """Watches what a reader takes out of a log. From one thread."""

    def __init__(self, log: Log) -> None:
        """Nothing has expired so far."""
        self._log = log
        self._reported_to: dict[int, int] = {}
        self.expired = 0
        """Messages that were gone before they were read, since the start."""

    def check_start(self, stored_to: Callable[[int], int]) -> None:
        """Before the first read; `stored_to` tells the last offset of a partition that is in the lake (-1: none).

        Raises ConfigurationError when the lake is ahead of the log.
        """
        check_follows(self._log, stored_to)
        for partition in self._log.partitions():
            self._report_expired(partition, stored_to(partition) + 1, self._log.bounds(partition)[0])

    def check_read(self, partition: int, wanted: int, records: pa.Table) -> None:
        """After each read: `records` were read from offset `wanted` on. Says what had expired in between."""
        if records.num_rows == 0 or (found := int(records["offset"][0].as_py())) == wanted:
            return
        try:
            first, _ = self._log.bounds(partition)
        except TransientError:  # what was read is no less there; a hole shows in the trade ids all the same
            first = found
        # A jump that retention did not make is the log's own: a new embedded log, or the marks of a transaction.
        self._report_expired(partition, wanted, min(first, found))

    def check_drained(self, partition: int, stored: int, end: int) -> None:
        """After everything below `end` should have been read, of which the lake has `stored`."""
        first, _ = self._log.bounds(partition)
        if max(stored + 1, first) < end:
            _log.warning("log_not_read_to_end", partition=partition, next_offset=stored + 1, end=end)

    def _report_expired(self, partition: int, wanted: int, first: int) -> None:
        """The log begins at `first`, but `wanted` was to be read next."""
        start = max(wanted, self._log.origin(partition), self._reported_to.get(partition, 0))
        if first <= start:
            return
        self._reported_to[partition] = first
        self.expired += first - start
        _log.warning(
            "messages_expired", partition=partition, first_offset=start, last_offset=first - 1, count=first - start
        )
