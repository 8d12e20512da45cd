"""In which format a page is wanted, and a page in it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from cryptopulse.serve.api.json_rows import json_rows
from cryptopulse.serve.problems import Problem

_CHUNK_ROWS = 10_000  # of a large page, encoded and sent before the next ones


@dataclass(frozen=True)
class Page:
    """Rows, and where the next ones are."""

    rows: pa.Table
    next: str | None
    """The cursor; None behind the last page."""

    def batches(self) -> list[pa.RecordBatch]:
        """The rows in pieces to be sent one after the other."""
        found: list[pa.RecordBatch] = self.rows.to_batches(_CHUNK_ROWS)
        return found

    def schema(self) -> pa.Schema:
        """The columns, with the cursor among the metadata."""
        return self.rows.schema.with_metadata({"next": self.next} if self.next else None)


@dataclass(frozen=True)
class Format:
    """One way to write a page."""

    name: str
    media_type: str
    write: Callable[[Page], Iterator[bytes]]


def _json(page: Page) -> Iterator[bytes]:
    yield b'{"data":['
    for number, batch in enumerate(page.batches()):
        yield (b"," if number else b"") + json_rows(batch)
    yield b'],"next":' + msgspec.json.encode(page.next) + b"}"


class _Sink(io.RawIOBase):
    """Takes what a writer writes, to be taken out piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._held.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        data = b"".join(self._held)
        self._held.clear()
        return data


def _arrow(page: Page) -> Iterator[bytes]:
    sink, schema = _Sink(), page.schema()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in page.batches():
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
            yield sink.taken()
    yield sink.taken()


def _parquet(page: Page) -> Iterator[bytes]:
    sink, schema = _Sink(), page.schema()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for batch in page.batches():
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
            yield sink.taken()
    yield sink.taken()


JSON: Final = Format("json", "application/json", _json)
ARROW: Final = Format("arrow", "application/vnd.apache.arrow.stream", _arrow)
PARQUET: Final = Format("parquet", "application/vnd.apache.parquet", _parquet)
FORMATS: Final = {one.name: one for one in (JSON, ARROW, PARQUET)}


def chosen(name: str | None, accept: str | None) -> Format:
    """The format `name`; without one what the header `Accept: accept` likes best, JSON if it likes all the same.

    Raises Problem (406) when there is no such format.
    """
    if name is not None:
        if name in FORMATS:
            return FORMATS[name]
        raise _not_acceptable(f"There is no format {name[:40]!r}")
    if not accept or not accept.strip():
        return JSON
    wanted = [_range(part) for part in accept.split(",")]
    liked = {one.name: _quality(one.media_type, wanted) for one in FORMATS.values()}
    best = max(liked, key=lambda name: liked[name])  # the first of those that are alike
    if liked[best] <= 0:
        raise _not_acceptable("None of the media types in Accept is offered")
    return FORMATS[best]


def _range(part: str) -> tuple[str, float]:
    """A media range of Accept and its weight."""
    media, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media, min(max(float(value), 0.0), 1.0)
            except ValueError:
                return media, 0.0
    return media, 1.0


def _quality(media_type: str, wanted: list[tuple[str, float]]) -> float:
    """How much `media_type` is wanted: what is said of it most precisely counts."""
    for pattern in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        weights = [weight for media, weight in wanted if media == pattern]
        if weights:
            return max(weights)
    return 0.0


def _not_acceptable(what: str) -> Problem:
    offered = ", ".join(f"{one.name} ({one.media_type})" for one in FORMATS.values())
    return Problem(406, "not_acceptable", f"{what}. There are {offered}.")
