"""Cursors: where a page ended, as a text that says nothing to its reader and is good for the same question only."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from cryptopulse.serve.problems import Problem

PATTERN: Final = "[A-Za-z0-9_-]{16,1024}"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_QUESTION_BYTES = 9
_ID_MAX = 2**63 - 1
_Key = int | str


class _Place(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    question: str
    key: tuple[_Key, ...]


_decoder = msgspec.json.Decoder(_Place)


def question_of(*parts: object) -> str:
    """What a cursor is good for, in a few letters."""
    digest = hashlib.sha256(msgspec.json.encode(parts, enc_hook=str)).digest()
    return base64.urlsafe_b64encode(digest[:_QUESTION_BYTES]).decode()


def cursor_of(question: str, key: Sequence[object]) -> str:
    """The cursor behind the row with this `key`, the values of the columns that the rows are ordered by."""
    place = _Place(question, tuple(_plain(value) for value in key))
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).rstrip(b"=").decode()


def key_of(question: str, cursor: str, kinds: Sequence[type]) -> list[Any]:
    """The key in `cursor`, of these `kinds` (datetime, int or str). Raises Problem when it is not of this question."""
    try:
        return _read(question, cursor, kinds)
    except (ValueError, OverflowError, binascii.Error, msgspec.MsgspecError):
        raise Problem(
            400,
            "bad_cursor",
            "That is no cursor of this question: take it from the page before, and change nothing else.",
            parameters=[("cursor", "not of this question")],
        ) from None


def _read(question: str, cursor: str, kinds: Sequence[type]) -> list[Any]:
    """As `key_of`; raises many things."""
    place = _decoder.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    if place.question != question:
        raise ValueError
    return [_value(kind, value) for kind, value in zip(kinds, place.key, strict=True)]


def _plain(value: object) -> _Key:
    if isinstance(value, datetime):
        return (value - _EPOCH) // timedelta(microseconds=1)
    assert isinstance(value, int | str)
    return value


def _value(kind: type, value: _Key) -> object:
    if kind is datetime and isinstance(value, int):
        return _EPOCH + timedelta(microseconds=value)
    if kind is datetime or not isinstance(value, kind) or (isinstance(value, int) and abs(value) > _ID_MAX):
        raise ValueError
    return value
