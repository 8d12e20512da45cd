"""Every error that CryptoPulse raises on purpose.

The class of an error decides how it is handled; nobody has to read a message for that::

    CryptoPulseError
    ├── TransientError            try again, by the one retry policy (`cryptopulse.retry`)
    │   ├── Disconnected            the peer closed, went silent, or can't be reached
    │   ├── RateLimited             the peer said "too many requests"
    │   ├── LogBusy                 another process keeps the durable log locked
    │   ├── LogUnavailable          the disk under the durable log fails to read or write
    │   ├── LakeUnreachable         the storage of the tables does not answer
    │   └── RowsGone                files of the version that a reader holds were cleaned up
    └── TerminalError             stop: trying again won't help; the message says what will
        ├── ConfigurationError      a setting, an option or a file of the user is wrong
        ├── UnknownProduct          the exchange's REST interface does not know a product, or refuses it
        ├── NotFetched              the exchange repeatedly gives no usable answer about a product
        ├── QueryStopped            a query ran for longer than its reader allows
        ├── MessageTooLarge         the durable log can't take a message of this size
        ├── LogFull                 the durable log reached its size bound, or the disk is full
        ├── LogDamaged              a record of the log is not what was written
        ├── LakeFull                the disk under the tables is full
        ├── LakeDamaged             a table can't be read and can't be repaired from the log
        ├── LakeBusy                another pipeline already works on this lake
        ├── Fenced                  another pipeline took over; this one must not commit any more
        └── ProcessFailed           a supervised process dies again and again

Each message says what happened, to what, and what to do. Errors are raised where the cause is known and shown once, in
`cryptopulse.cli`.
"""

ERROR_PREFIX = "cryptopulse: "
"""Prefix of the one line in which a command says why it failed."""


class CryptoPulseError(Exception):
    """Base of all errors that are raised on purpose."""

    exit_code = 1


class TransientError(CryptoPulseError):
    """May pass by itself: retry."""

    def __init__(self, message: str = "", *, retry_after_s: float = 0.0) -> None:
        """`retry_after_s`: how long the peer asks us to wait."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Disconnected(TransientError):
    """The peer closed the connection, went silent, or can't be reached."""


class RateLimited(TransientError):
    """The peer asks for fewer requests."""


class LogBusy(TransientError):
    """Another process has locked the durable log for a long time: it hangs in the middle of a write."""


class LogUnavailable(TransientError):
    """The disk or file system under the durable log failed to read or write."""


class LakeUnreachable(TransientError):
    """The storage of the tables, S3 or Azure, does not answer."""

    exit_code = 7


class RowsGone(TransientError):
    """Files of the version of a table that a reader holds were cleaned up: ask for the newest version."""


class TerminalError(CryptoPulseError):
    """Won't pass by itself: stop and tell the user."""


class ConfigurationError(TerminalError):
    """A setting, an option or a file of the user is wrong."""

    exit_code = 2


class UnknownProduct(TerminalError):
    """The exchange's REST interface does not know a product, or refuses it. Other products are not affected."""

    exit_code = 2


class NotFetched(TerminalError):
    """The exchange repeatedly gives no usable answer about a product."""

    exit_code = 9


class QueryStopped(TerminalError):
    """A query ran for longer than its reader allows."""


class MessageTooLarge(TerminalError):
    """A message, or the batch that it is in, is larger than the durable log takes."""

    exit_code = 3


class LogFull(TerminalError):
    """The durable log can take no more: its size bound is reached or the disk is full."""

    exit_code = 3


class LakeFull(TerminalError):
    """The disk under the tables takes no more."""

    exit_code = 3


class LogDamaged(TerminalError):
    """A record of the durable log fails its checksum."""

    exit_code = 4


class LakeDamaged(TerminalError):
    """A table can't be read, and can't be repaired from the log."""

    exit_code = 4

    def __init__(self, message: str, table: str) -> None:
        """`table`: its qualified name."""
        super().__init__(message)
        self.table = table


class LakeBusy(TerminalError):
    """Another pipeline holds the lake."""

    exit_code = 5


class Fenced(TerminalError):
    """Another pipeline has taken over the lake; this one must not commit any more."""

    exit_code = 5


class ProcessFailed(TerminalError):
    """A supervised process can't be kept running."""

    exit_code = 6
