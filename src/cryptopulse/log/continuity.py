"""Checks that a log continues where a lake's copy of it ends.

Two things can break this. Kafka's retention may have deleted messages before they were read: their trade ids become
holes. Or the log is not the one from which the lake was filled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import structlog

from cryptopulse.errors import ConfigurationError, TransientError
from cryptopulse.log import Log

_log = structlog.get_logger()


def began_anew(log: str, partition: int, stored: int, end: int) -> ConfigurationError:
    """The error for a log that ends at offset `end`, although the lake holds its offset `stored`."""
    return ConfigurationError(
        f"The lake holds partition {partition} of the log up to message {stored}, but the log{log} ends before "
        f"message {end}: it is another one, or its offsets began anew. To go on with it, raise log.epoch by one (an "
        "embedded log: move its file away, and a new one is made)."
    )


@dataclass(frozen=True)
class Expired:
    """Messages of a partition that left the log before they were read."""

    partition: int
    first_offset: int
    last_offset: int

    @property
    def source(self) -> str:
        """The name under which a commit of bronze keeps `last_offset` as a position."""
        return f"expired/{self.partition}/{self.first_offset}"


def check_follows(log: Log, stored_to: Callable[[int], int]) -> None:
    """Checks all partitions. `stored_to` gives the last offset of a partition that was read (-1: none).

    Raises ConfigurationError when the log ends before it.
    """
    for partition in log.partitions():
        stored, (_, end) = stored_to(partition), log.bounds(partition)
        if stored >= end:
            raise began_anew("", partition, stored, end)


class Continuity:
    """Checks what one reader reads from a log, and counts expired messages."""

    def __init__(self, log: Log) -> None:
        """Starts with a count of 0."""
        self._log = log
        self._reported_to: dict[int, int] = {}
        self.expired = 0
        """Messages that were gone before they were read, since the start."""
        self.unrecorded: list[Expired] = []
        """What bronze's next commit is to record, so that an audit knows expired messages from lost ones. Whoever has
        committed it removes it. Empty for a log from which nothing expires: what it lacks was in the lake once.
        """

    def check_start(self, stored_to: Callable[[int], int]) -> None:
        """Call before the first read. `stored_to` gives the last offset of a partition in the lake (-1: none).

        Raises ConfigurationError when the lake is ahead of the log.
        """
        check_follows(self._log, stored_to)
        for partition in self._log.partitions():
            self._report_expired(partition, stored_to(partition) + 1, self._log.bounds(partition)[0])

    def check_read(self, partition: int, wanted: int, records: pa.Table) -> None:
        """Call after each read of `records` from offset `wanted` on. Logs the messages that had expired in between."""
        if records.num_rows == 0 or (found := int(records["offset"][0].as_py())) == wanted:
            return
        try:
            first, _ = self._log.bounds(partition)
        except TransientError:  # the records are good anyway, and a hole shows in the trade ids
            first = found
        # Other jumps than retention's are normal: a new embedded log, or transaction markers.
        self._report_expired(partition, wanted, min(first, found))

    def check_drained(self, partition: int, stored: int, end: int) -> None:
        """Call when all below `end` should be read; logs if it isn't. `stored`: last offset in the lake (-1: none)."""
        first, _ = self._log.bounds(partition)
        if max(stored + 1, first) < end:
            _log.warning("log_not_read_to_end", partition=partition, next_offset=stored + 1, end=end)

    def _report_expired(self, partition: int, wanted: int, first: int) -> None:
        """Counts and logs the messages from `wanted` to where the log begins, `first`."""
        start = max(wanted, self._log.origin(partition), self._reported_to.get(partition, 0))
        if first <= start:
            return
        self._reported_to[partition] = first
        if self._log.expires:
            self.unrecorded.append(Expired(partition, start, first - 1))
        self.expired += first - start
        _log.warning(
            "messages_expired", partition=partition, first_offset=start, last_offset=first - 1, count=first - start
        )
