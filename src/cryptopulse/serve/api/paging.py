"""Cursors: where a page ended, as an opaque string that is valid only for the same query."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from cryptopulse.serve.http.problems import Problem

PATTERN: Final = "[A-Za-z0-9_-]{16,1024}"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DIGEST_BYTES = 9
_ID_MAX = 2**63 - 1


class _Position(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    query: str
    key: tuple[int | str, ...]


_decoder = msgspec.json.Decoder(_Position)


def query_digest(*parts: object) -> str:
    """Short hash of the query that a cursor is valid for."""
    digest = hashlib.sha256(msgspec.json.encode(parts, enc_hook=str)).digest()
    return base64.urlsafe_b64encode(digest[:_DIGEST_BYTES]).decode()


def encode_cursor(query: str, key: Sequence[object]) -> str:
    """The cursor after the row with this `key`: its values in the columns that the rows are ordered by."""
    micros = [(one - _EPOCH) // timedelta(microseconds=1) if isinstance(one, datetime) else one for one in key]
    return base64.urlsafe_b64encode(msgspec.json.encode((query, micros))).rstrip(b"=").decode()


def decode_cursor(query: str, cursor: str, kinds: Sequence[type]) -> list[Any]:
    """The key in `cursor`, with these `kinds` (datetime, int or str). Raises Problem for a cursor of another query."""
    try:
        position = _decoder.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if position.query != query:
            raise ValueError
        key: list[Any] = []
        for kind, value in zip(kinds, position.key, strict=True):
            if not isinstance(value, str if kind is str else int) or (isinstance(value, int) and abs(value) > _ID_MAX):
                raise ValueError
            key.append(_EPOCH + timedelta(microseconds=int(value)) if kind is datetime else value)
    except (ValueError, OverflowError, binascii.Error, msgspec.MsgspecError):
        raise Problem(
            400,
            "bad_cursor",
            "Cursor does not belong to this query; take it from the page before, and change nothing else.",
            parameters=[("cursor", "not of this query")],
        ) from None
    return key
