"""Content negotiation: chooses the format of a page, and writes it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from cryptopulse.lake.export import csv_header, csv_lines
from cryptopulse.serve.api.json_rows import json_rows
from cryptopulse.serve.http.problems import Problem

_CHUNK_ROWS = 10_000  # encoded and sent at a time


@dataclass(frozen=True)
class RowsPage:
    """Rows, and where the next ones are."""

    rows: pa.Table
    next: str | None
    """The cursor of the next page; None on the last page."""

    def batches(self) -> list[pa.RecordBatch]:
        """The rows in chunks, to be sent one after the other."""
        found: list[pa.RecordBatch] = self.rows.to_batches(_CHUNK_ROWS)
        return found

    def schema(self) -> pa.Schema:
        """The columns, with the cursor in the metadata."""
        return self.rows.schema.with_metadata({"next": self.next} if self.next else None)


@dataclass(frozen=True)
class Format:
    """One way to write a page."""

    name: str
    media_type: str
    write: Callable[[RowsPage], Iterator[bytes]]


def _json(page: RowsPage) -> Iterator[bytes]:
    yield b'{"data":['
    for number, batch in enumerate(page.batches()):
        yield (b"," if number else b"") + json_rows(batch)
    yield b'],"next":' + msgspec.json.encode(page.next) + b"}"


def _csv(page: RowsPage) -> Iterator[bytes]:
    yield csv_header(page.schema())
    for batch in page.batches():
        yield csv_lines(batch)


class _Chunks(io.RawIOBase):
    """Collects what a writer writes, to be sent in chunks."""

    def __init__(self) -> None:
        super().__init__()
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._written.append(bytes(data))
        return len(data)

    def drain(self) -> bytes:
        data = b"".join(self._written)
        self._written.clear()
        return data


def _with_writer(open_writer: Callable[[_Chunks, pa.Schema], Any]) -> Callable[[RowsPage], Iterator[bytes]]:
    def write(page: RowsPage) -> Iterator[bytes]:
        sink, schema = _Chunks(), page.schema()
        with open_writer(sink, schema) as writer:
            for batch in page.batches():
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))
                yield sink.drain()
        yield sink.drain()

    return write


JSON: Final = Format("json", "application/json", _json)
ARROW: Final = Format("arrow", "application/vnd.apache.arrow.stream", _with_writer(pa.ipc.new_stream))
PARQUET: Final = Format(
    "parquet", "application/vnd.apache.parquet", _with_writer(partial(pq.ParquetWriter, compression="zstd"))
)
CSV: Final = Format("csv", "text/csv", _csv)
FORMATS: Final = {one.name: one for one in (JSON, ARROW, PARQUET, CSV)}


def negotiate(name: str | None, accept: str | None) -> Format:
    """The format `name`; without one the format that the header `Accept: accept` prefers, JSON if there is a tie.

    Raises Problem (406) when there is no such format.
    """
    offered = ", ".join(f"{one.name} ({one.media_type})" for one in FORMATS.values())
    if name is not None:
        if name in FORMATS:
            return FORMATS[name]
        raise Problem(406, "not_acceptable", f"Unknown format {name[:40]!r} (expected {offered}).")
    if not accept or not accept.strip():
        return JSON
    weights: dict[str, float] = {}  # by media range
    for part in accept.split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for key, _, value in (parameter.partition("=") for parameter in reversed(parameters)):
            if key.strip() == "q":
                try:
                    weight = min(max(float(value), 0.0), 1.0)
                except ValueError:
                    weight = 0.0
        weights[media] = max(weight, weights.get(media, 0.0))

    def weight_of(one: Format) -> float:
        # The most specific media range counts.
        ranges = (one.media_type, f"{one.media_type.partition('/')[0]}/*", "*/*")
        return next((weights[media] for media in ranges if media in weights), 0.0)

    best = max(FORMATS.values(), key=weight_of)  # the first one if there is a tie
    if weight_of(best) <= 0:
        raise Problem(406, "not_acceptable", f"None of the media types in Accept is offered (expected {offered}).")
    return best
