"""Rows as files: CSV, Parquet, Arrow, CSV that kdb+ loads, and trades as backtesting libraries read them. Decimals
stay exact where the format has them, times are UTC.

Rows are written batch by batch, so memory does not grow with their number.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.hftbacktest import write_events
from cryptopulse.lake.nautilus import PARTS, write_bar_catalog, write_catalog

FORMATS: Final = ("csv", "parquet", "arrow", "kdb", "hftbacktest", "nautilus")
"""`arrow` is Arrow's file format, also known as Feather; `kdb` is CSV with the times and truth values of kdb+;
`hftbacktest` is its event array (.npz) of one product's trades; `nautilus` is a folder, NautilusTrader's catalog."""

STANDARD_OUTPUT: Final = Path("-")
"""In place of a file; CSV unless another format is given."""

_SUFFIXES = {".csv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".npz": "hftbacktest"}
_CATALOG_DATA = "data"  # NautilusTrader's name
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


def write_batches(
    rows: pa.RecordBatchReader,
    file: Path,
    form: str | None = None,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _rows: None,
    bar_step: str | None = None,
) -> int:
    """Writes `rows` to `file`; returns how many.

    `file` may be `STANDARD_OUTPUT`. `form`: one of `FORMATS`; None: by its suffix. After `.csv`, `.gz` and `.zst`
    compress. The file appears whole or not at all, unless it is a pipe or a device. `progress` is called with the
    number of rows written so far. `bar_step`: for bars in `nautilus`, what ends one (`Rows.bar_step`). Raises
    ConfigurationError for an unknown format, for a file that exists (unless `overwrite`) or can't be written, for rows
    that the format can't have, and what reading `rows` raises.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    compression = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    by_name = (_SUFFIXES[one] for one in suffixes[-2 if compression else -1 :] if one in _SUFFIXES)
    form = form or next(by_name, "csv" if file == STANDARD_OUTPUT else None)
    if form not in FORMATS:
        raise ConfigurationError(
            f"{file}: unknown format (expected a name that ends with {', '.join(_SUFFIXES)}, or --format "
            f"{', '.join(FORMATS)})."
        )
    if compression and form not in ("csv", "kdb"):
        raise ConfigurationError(f"{file}: {form} compresses by itself; leave out {suffixes[-1]}.")
    try:
        if form == "nautilus":
            if file == STANDARD_OUTPUT or (file.exists() and not file.is_dir()):
                raise ConfigurationError(f"{file} is no folder; a catalog for nautilus is one.")
        elif file.is_dir():
            raise ConfigurationError(f"{file} is a folder; name a file.")
        there = file / _CATALOG_DATA if form == "nautilus" else file
        if (there.is_file() or there.is_dir()) and file != STANDARD_OUTPUT and not overwrite:
            raise ConfigurationError(f"{there} exists; choose another name, or allow --overwrite.")
        if form == "nautilus":
            with _whole_catalog(file) as data:
                if bar_step is not None:
                    return write_bar_catalog(rows, data, bar_step, progress)
                return write_catalog(rows, data, progress)
        with _whole(file) as raw:
            if form == "hftbacktest":
                beside = file.resolve().parent if file.is_file() or not file.exists() else None
                return write_events(rows, raw, None if file == STANDARD_OUTPUT else beside, progress)
            if compression is None:
                return _write(rows, raw, form, progress)
            with pa.CompressedOutputStream(raw, compression) as sink:
                return _write(rows, sink, form, progress)
    except BrokenPipeError:  # a reader that has had enough
        raise
    except OSError as error:
        raise ConfigurationError(f"{file} can't be written: {error.strerror or error}.") from error
    except pa.ArrowException as error:  # intervals, for example, and lists in CSV
        raise ConfigurationError(f"{file} can't be written as {form}: {str(error).splitlines()[0]}") from error


@contextmanager
def _whole_catalog(folder: Path) -> Iterator[Path]:
    """The name of a folder to create and to fill; it becomes the data of the catalog in `folder` when the context has
    ended well, in the place of older ones. Raises ConfigurationError for data that no export wrote.
    """
    data, is_new = folder / _CATALOG_DATA, not folder.exists()
    if data.exists() and (others := sorted({one.name for one in data.iterdir()} - {*PARTS})):
        raise ConfigurationError(f"{data} has more than an export ({others[0]}); choose another folder.")
    folder.mkdir(exist_ok=True)
    part = folder / f".{data.name}.{os.getpid()}.part"
    old = part.with_suffix(".old")
    try:
        yield part
        # There is no exchange of folders. Whoever is killed between these two has the older data beside it.
        if data.exists():
            data.rename(old)
        part.rename(data)
    finally:
        if old.exists() and not data.exists():
            old.rename(data)
        for done in (part, old):
            shutil.rmtree(done, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # not empty: all is well
                folder.rmdir()


@contextmanager
def _whole(file: Path) -> Iterator[BinaryIO]:
    """`file` to write to: under another name until the context has ended well."""
    if file == STANDARD_OUTPUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if file.exists() and not file.is_file():  # a pipe or a device
        with file.open("wb") as raw:
            yield raw
        return
    target = file.resolve()  # a link stays one
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as raw:
            yield raw
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _write(rows: pa.RecordBatchReader, sink: Any, form: str, progress: Callable[[int], None]) -> int:
    schema, count = rows.schema, 0
    if form in ("csv", "kdb"):
        sink.write(csv_header(schema))
        for batch in rows:
            sink.write(csv_lines(batch, is_kdb=form == "kdb"))
            progress(count := count + batch.num_rows)
        return count
    writer = pq.ParquetWriter(sink, schema, compression="zstd") if form == "parquet" else pa.ipc.new_file(sink, schema)
    with writer:
        for batch in rows:
            writer.write_batch(batch)
            progress(count := count + batch.num_rows)
    return count


def csv_header(schema: pa.Schema) -> bytes:
    """The first line of CSV: the columns' names."""
    return ",".join(schema.names).encode() + b"\n"


def csv_lines(batch: pa.RecordBatch, *, is_kdb: bool = False) -> bytes:
    """The rows as lines of CSV (RFC 4180); missing values are empty. `is_kdb`: with kdb+'s times and truth values."""
    texts = pa.table([_texts(column, is_kdb=is_kdb) for column in batch.columns], names=batch.schema.names)
    needs_quotes = any(pc.any(pc.match_substring_regex(column, '[",\r\n]')).as_py() for column in texts.columns)
    sink = io.BytesIO()
    options = pa_csv.WriteOptions(include_header=False, quoting_style="needed" if needs_quotes else "none")
    pa_csv.write_csv(texts, sink, options)
    return sink.getvalue()


def kdb_types(schema: pa.Schema) -> str:
    """The letters by which kdb+ loads each of the columns, as in `("PSJFFS";enlist csv) 0: file`."""
    tests = (
        (pa.types.is_timestamp, "P"),
        (pa.types.is_date, "D"),
        (pa.types.is_integer, "J"),
        (pa.types.is_boolean, "B"),
        (pa.types.is_string, "S"),
    )
    return "".join(next((letter for test, letter in tests if test(field.type)), "F") for field in schema)


def decimal_texts(column: pa.Array) -> pa.Array:
    """Decimals as text: exact, without exponents and without zeros at the end of a fraction."""
    texts = column.cast(pa.string())
    if pc.any(pc.match_substring(texts, "E")).as_py():  # Arrow's way to write small ones
        found = texts.dictionary_encode()
        plain = pa.array([f"{Decimal(text):f}" for text in found.dictionary.to_pylist()], pa.string())
        texts = plain.take(found.indices)
    return pc.utf8_rtrim(pc.utf8_rtrim(texts, "0"), ".") if column.type.scale > 0 else texts


def time_texts(column: pa.Array) -> pa.Array:
    """Times (UTC) as in 2026-11-28T12:00:00.000000Z."""
    return pc.strftime(column, "%Y-%m-%dT%H:%M:%SZ")


_TO_NANOSECONDS = {"s": ".000000000", "ms": "000000", "us": "000", "ns": ""}  # by what %S gives


def _texts(column: pa.Array, *, is_kdb: bool) -> pa.Array:
    kind = column.type
    if pa.types.is_timestamp(kind) and is_kdb:
        return pc.strftime(column, "%Y.%m.%dD%H:%M:%S" + _TO_NANOSECONDS[kind.unit])
    if pa.types.is_timestamp(kind) and kind.tz:
        return time_texts(column)
    if pa.types.is_decimal(kind):
        return decimal_texts(column)
    if is_kdb and pa.types.is_date(kind):
        return pc.strftime(column, "%Y.%m.%d")
    if is_kdb and pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    return column.cast(pa.string())
