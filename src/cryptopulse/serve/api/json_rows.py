"""Arrow rows as JSON text, column by column: some ten times as fast as with Python objects.

Decimals are strings, exact and without trailing zeros; times are strings in UTC; NaN and infinity are null.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.lake.export import decimal_texts, time_texts


def json_rows(batch: pa.RecordBatch) -> bytes:
    """The rows as JSON objects separated by commas, without enclosing brackets."""
    if not batch.num_rows:
        return b""
    rows = json_texts(batch)
    offsets = pa.array([0, len(rows)], pa.int32())
    return bytes(pc.binary_join(pa.ListArray.from_arrays(offsets, rows), ",")[0].as_buffer())


def json_texts(batch: pa.RecordBatch) -> pa.Array:
    """Each row as a JSON object."""
    pieces: list[Any] = []
    for place, name in enumerate(batch.schema.names):
        pieces += [f"{',' if place else '{'}{_quoted(name)}:", _json(batch.column(place))]
    return pc.binary_join_element_wise(*pieces, "}", "")


def _json(column: pa.Array) -> pa.Array:
    """Each value of the column as JSON."""
    kind = column.type
    if pa.types.is_string(kind):
        found = column.dictionary_encode()  # each distinct text is quoted once
        written = pa.array([_quoted(text) for text in found.dictionary.to_pylist()], pa.string()).take(found.indices)
    elif pa.types.is_timestamp(kind):
        written = _in_quotes(time_texts(column))
    elif pa.types.is_decimal(kind):
        written = _in_quotes(decimal_texts(column))
    elif pa.types.is_floating(kind):
        written = pc.if_else(pc.is_finite(column), column, pa.scalar(None, kind)).cast(pa.string())
    else:  # integers and booleans
        written = column.cast(pa.string())
    return pc.fill_null(written, "null")


def _in_quotes(texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise('"', texts, '"', "")


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
