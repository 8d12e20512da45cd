"""Recordings: files of raw messages as an exchange sent them, one a line.

A line is either the message itself, or `{"recv": epoch seconds, "raw": "the exact message"}` when the time of
receipt was kept. Both kinds may stand in one file.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import msgspec

from cryptopulse.errors import ConfigurationError


class _Line(msgspec.Struct):
    """What matters of a line; other members are only checked to be JSON."""

    recv: Decimal | None = None
    raw: str | None = None


_RECV_END_NS = 7_258_118_400 * 10**9  # the year 2200: seconds are below it, milliseconds far beyond
_decode = msgspec.json.Decoder(_Line).decode


def read_recording(path: Path) -> Iterator[tuple[int | None, bytes]]:
    """Messages of a file in its order, as (received, message).

    `received` is nanoseconds UTC since 1970, or None when the file does not say; `message` is exactly what
    was received. Empty lines are skipped. Raises ConfigurationError when the file can't be read, or naming
    the line that is not a recorded message.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield _message(line, number, path)
    except OSError as error:
        raise ConfigurationError(f"Recording {path} can't be read: {error.strerror}.") from error


def _message(line: bytes, number: int, path: Path) -> tuple[int | None, bytes]:
    try:
        found = _decode(line)
        if found.raw is None and found.recv is None:
            return None, line.rstrip(b"\r\n")
        received = None if found.recv is None else int(found.recv.scaleb(9).to_integral_value())
        is_time = received is None or 0 <= received < _RECV_END_NS
        if found.raw is not None and is_time:
            return received, found.raw.encode()
        error: Exception = ValueError(
            "it has `recv` but no `raw`" if is_time else "`recv` is not in seconds since 1970"
        )
    except (ValueError, ArithmeticError) as wrong:
        error = wrong
    raise ConfigurationError(
        f"Recording {path}, line {number} is not a recorded message: {error}. Remove or repair the line."
    ) from error
