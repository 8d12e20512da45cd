"""Recordings: files of raw messages as an exchange sent them, one per line.

A line is either the message itself, or `{"recv": epoch seconds, "raw": "the exact message"}` if the receive time was
recorded, or `epoch seconds: the exact message` as cryptofeed writes it (its lines about connecting and requests are
skipped), or time, tab and message (the time in seconds, milli-, micro- or nanoseconds, as its digits tell). A file may
contain all kinds, begin with a byte order mark, end its lines with CR LF, be compressed (gzip, Zstandard), and come
through a pipe or standard input (`-`).

A recorder that was stopped may have left an incomplete last line: it is skipped and logged (`truncated_line_skipped`).
Any other line that is not a recorded message is an error.
"""

from __future__ import annotations

import gzip
import io
import lzma
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from cryptopulse.errors import ConfigurationError

STANDARD_INPUT = Path("-")

# Fits a core's cache while text becomes messages: takes a third less time than 4 MB.
_CHUNK_BYTES = 256 << 10
LINE_BYTES_MAX = 64 << 20
"""Four times the largest message that the feed takes."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Of UTF-8."""
_GZIP, _ZSTANDARD, _ZIPS = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"PK\x03\x04", b"PK\x05\x06")
_SKIPPED = b"\x2a\x4d\x18"  # second to fourth byte of a skippable frame; files of pzstd begin with one
DAMAGED = (zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What reading a damaged compressed file raises, beside OSError and EOFError."""

_CUT_OFF = (
    " Fetch it again, or take what is whole of it: `gzip -dc FILE | cryptopulse replay -` (`zstd -dc` for Zstandard)."
)
_RECV_END = 7_258_118_400  # the year 2200: seconds are below it, milliseconds far above
_UNKNOWN = -1
_TEXTS = (b"ping", b"pong")  # messages of OKX that are no JSON
_CAPTURED = re.compile(rb"([0-9]{1,12}(?:\.[0-9]{1,9})?): (.*)", re.DOTALL)
_TABBED = re.compile(rb"([0-9]{9,19})(\.[0-9]{1,9})?\t(.*)", re.DOTALL)
_NOT_RECEIVED = re.compile(rb"(?:wss?|https?)://\S* (?:<->|<-|->) |configuration: ")

_log = structlog.get_logger()


class _Line(msgspec.Struct, gc=False):
    """The members of a line that are used; others are only checked to be JSON."""

    recv: float | None = None
    raw: str | None = None


_decoder = msgspec.json.Decoder(_Line)


class Chunk(NamedTuple):
    """Some messages of a recording, in its order."""

    received_us: npt.NDArray[np.int64]
    """µs since 1970 (UTC); below 0 if the recording has no receive time."""
    bodies: list[bytes] | list[str]
    """The messages exactly as received, as bytes or as text (to be encoded as UTF-8)."""


def read_chunks(path: Path) -> Iterator[Chunk]:
    """All messages of the recording at `path` (`-`: standard input), some thousand at a time. Empty lines are skipped.

    Raises ConfigurationError if the file can't be read or a line is not a recorded message; it names the line.
    """
    name = "from standard input" if path == STANDARD_INPUT else str(path)
    number, rest = 1, bytearray()
    with _errors(name), ExitStack() as stack:
        text = decompressed(sys.stdin.buffer if path == STANDARD_INPUT else stack.enter_context(path.open("rb")))
        while data := text.read(_CHUNK_BYTES):
            if not rest and number == 1:
                data = data.removeprefix(BYTE_ORDER_MARK)
            if end := data.rfind(b"\n") + 1:
                whole, rest = bytes(rest) + data[:end], bytearray(data[end:])
                lines = whole.count(b"\n")
                yield _chunk(whole, number, lines)
                number += lines
            else:
                rest += data
            if len(rest) > LINE_BYTES_MAX:
                raise _BrokenLineError(number, "it is too long")
        last = bytes(rest)
        if not last or last.isspace():
            return
        if _NOT_RECEIVED.match(last):
            return
        _, message = _captured(last)
        try:
            _decoder.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if number == 1 or not _is_torn(message, error):  # not a recording at all, or a complete but wrong line
                raise _BrokenLineError(number, error) from error
            _log.warning("truncated_line_skipped", recording=name, line=number, bytes=len(last))
        else:
            yield _chunk(last, number, 0)


def _is_torn(line: bytes, error: Exception) -> bool:
    """Whether `line`, whose decoding raised `error`, is a message whose end was never written."""
    if line.endswith(b"\0"):  # as a power cut leaves it
        return True
    if isinstance(error, UnicodeDecodeError):
        return error.end >= len(line)
    said = str(error)  # for an incomplete number the decoder only names the position: the end
    return "truncated" in said or ("trailing" not in said and f"(byte {len(line)})" in said)


def read_recording(path: Path) -> Iterator[tuple[int | None, bytes]]:
    """Messages of a file in its order, as (received, message).

    `received` is ns since 1970 (UTC; whole microseconds), or None if the file has no receive time. Raises
    ConfigurationError like `read_chunks`.
    """
    for received_us, bodies in read_chunks(path):
        times = (None if at_us < 0 else at_us * 1000 for at_us in received_us.tolist())
        yield from zip(times, (body.encode() if isinstance(body, str) else body for body in bodies), strict=True)


class _BrokenLineError(Exception):
    """A line that is not a recorded message."""

    def __init__(self, number: int, why: object) -> None:
        super().__init__(f"line {number} is not a recorded message: {why}. Remove or repair the line.")


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except _BrokenLineError as error:
        raise ConfigurationError(f"Recording {name}, {error}") from error
    except (OSError, EOFError, *DAMAGED) as error:
        why = getattr(error, "strerror", None) or str(error).rstrip(".")
        is_cut_off = isinstance(error, EOFError | gzip.BadGzipFile) or why.startswith("Truncated")
        remedy = _CUT_OFF if is_cut_off else ""
        raise ConfigurationError(f"Recording {name} can't be read: {why}.{remedy}") from error


def _chunk(block: bytes, number: int, lines: int) -> Chunk:
    """The messages of a block of `lines` whole lines; `number` is that of the first."""
    # If all lines have `raw`, decode them at once, in half the time.
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        rows = _decoder.decode_lines(block)
        raws, received_us = [row.raw for row in rows], _micros([row.recv for row in rows])
        is_negative = received_us.min(initial=1) <= 0 and any(row.recv is not None and row.recv < 0 for row in rows)
        is_in_range = received_us.max(initial=0) < _RECV_END * 1_000_000 and not is_negative
        if len(rows) == lines and None not in raws and is_in_range:
            return Chunk(received_us, cast("list[str]", raws))
    recvs: list[float | None] = []
    bodies: list[bytes] = []
    for place, line in enumerate(block.split(b"\n"), number):
        if line and not line.isspace() and not _NOT_RECEIVED.match(line):
            recv, body = _message(line, place)
            recvs.append(recv)
            bodies.append(body)
    return Chunk(_micros(recvs), bodies)


def is_recorded(line: bytes) -> bool:
    """Whether `line`, the first of a file, is one of a recording, and not a trade that another program wrote."""
    if _NOT_RECEIVED.match(line) or _captured(line)[0] is not None:
        return True
    try:
        found = msgspec.json.decode(line)
    except (ValueError, RecursionError):  # msgspec's errors and bad UTF-8 are ValueErrors
        return False
    if not isinstance(found, dict):
        return False
    is_trade = "price" in found and "product_id" not in found  # its `type` is that of an order
    return not {"raw", "recv", "channel"}.isdisjoint(found) or ("type" in found and not is_trade)


def _captured(line: bytes) -> tuple[float | None, bytes]:
    """Receive time (s, whole µs) and message of a line that begins with its time; None and `line` of any other."""
    if found := _CAPTURED.match(line):
        return float(found[1]), found[2]
    if found := _TABBED.match(line):
        number, fraction, message = found.groups()
        unit = next((power for power, digits in ((9, 18), (6, 15), (3, 12)) if len(number) >= digits), 0)
        return float(round(Decimal((number + (fraction or b"")).decode()).scaleb(-unit), 6)), message
    return None, line


def _message(line: bytes, number: int) -> tuple[float | None, bytes]:
    recv, message = _captured(line)
    try:
        row = _decoder.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if message.strip() not in _TEXTS:
            raise _BrokenLineError(number, error) from error
        row = _Line()
    if recv is not None:
        if recv >= _RECV_END:
            raise _BrokenLineError(number, "its time is not in seconds since 1970")
        return recv, message.rstrip(b"\r")
    if row.recv is not None and not 0 <= row.recv < _RECV_END:
        raise _BrokenLineError(number, "`recv` is not in seconds since 1970")
    if row.raw is not None:
        return row.recv, row.raw.encode()
    if row.recv is not None:
        raise _BrokenLineError(number, "it has `recv` but no `raw`")
    return None, line.rstrip(b"\r")


def _micros(seconds: list[float | None]) -> npt.NDArray[np.int64]:
    """As µs, rounded to the nearest, which is exact for six decimals; _UNKNOWN for None."""
    found = np.rint(np.array(seconds, dtype=np.float64) * 1e6)
    return np.nan_to_num(found, nan=_UNKNOWN, posinf=np.inf).clip(-1e18, 1e18).astype(np.int64)


def decompressed(file: BinaryIO) -> io.BufferedIOBase:
    """`file`, decompressed if its first bytes are those of gzip, Zstandard or a zip archive of one file.

    Raises OSError or BadZipFile for another archive.
    """
    text = io.BufferedReader(cast("io.RawIOBase", file)) if not isinstance(file, io.BufferedReader) else file
    magic = text.peek(4)[:4]
    if magic.startswith(_GZIP):
        return gzip.GzipFile(fileobj=text)
    if magic == _ZSTANDARD or magic[1:] == _SKIPPED:
        import pyarrow as pa  # noqa: PLC0415 - Python's own can't before 3.14

        return cast("io.BufferedIOBase", pa.CompressedInputStream(pa.PythonFile(text, mode="r"), "zstd"))
    if magic in _ZIPS:
        if not text.seekable():
            raise OSError("a zip archive can't come through a pipe; unpack it, as with `unzip -p`")
        try:
            archive = zipfile.ZipFile(text)
            if len(names := [name for name in archive.namelist() if not name.endswith("/")]) != 1:
                raise OSError(f"it is an archive of {len(names)} files; unpack it")
            return cast("io.BufferedIOBase", archive.open(names[0]))
        except (RuntimeError, ValueError, struct.error) as error:  # a password, an unusual compression, damage
            raise OSError(str(error)) from error
    return text
