"""Files of trades that other programs wrote, as messages: CSV, Parquet, Arrow, and JSON, a trade a line.

Which kind a file is, and whether it is compressed (gzip, Zstandard, zip), says its content, not its name. Which column
is what says its header, or a mapping; Binance's archives have neither, and are known by their columns. A line becomes a
message as it stands in the file, below a line that says how to read it (`venues/imported.py`); a row of Parquet or
Arrow becomes the line of CSV that it would be. Nothing is judged here: the parser refuses what is no trade.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast
from zipfile import BadZipFile

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.export import csv_lines
from cryptopulse.lake.products import is_product_id, is_symbol, venue_of
from cryptopulse.recording import BYTE_ORDER_MARK, DAMAGED, LINE_BYTES_MAX, decompressed, is_recorded
from cryptopulse.venues import NOT_A_MESSAGE
from cryptopulse.venues.imported import EXCHANGES, SIDES, TIMES, read_layout
from cryptopulse.venues.registry import COINBASE, MESSAGES

_Kind = Literal["csv", "json", "parquet", "arrow", "recording", "nothing"]

# Names of columns, in lower case, the first that is there counts: our own exports', tardis.dev's, cryptofeed's, and
# what is usual.
_NAMES: dict[str, tuple[str, ...]] = {
    "exchange": ("exchange", "venue"),
    "product_id": ("product_id", "symbol", "product", "instrument", "market", "pair"),
    "trade_id": ("trade_id", "id", "tradeid", "tid"),
    "price": ("price", "px"),
    "size": ("size", "trade_size", "amount", "quantity", "qty"),
    "side": ("side", "taker_side"),
    "maker_side": ("maker_side", "is_buyer_maker", "isbuyermaker"),
    "time": ("event_time", "timestamp", "time", "datetime", "ts"),
}
_NAMED_TIME = re.compile(r"(?:event_time|timestamp|time|ts)_(s|ms|us|ns)")
_TIME_UNITS = (("time_s", 1e11), ("time_ms", 1e14), ("time_us", 1e17), ("time_ns", 1e20))
"""A number below belongs to the first of these units by which it is a time from 1973 to 5138."""

_BLOCK_BYTES = 1 << 20
_BATCH_ROWS = 50_000
_SAMPLE_LINES = 100
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_ARCHIVES = {
    "binance": (
        re.compile(rb"\d+(?:,\d+\.?\d*){3},\d{13,16}(?:,(?i:true|false)){2}"),
        "id price qty - time maker_side -",
    ),
    "binance-aggregates": (
        re.compile(rb"\d+(?:,\d+\.?\d*){2},-?\d+,-?\d+,\d{13,16}(?:,(?i:true|false)){2}"),
        "id price qty - - time maker_side -",
    ),
}
"""Venue → the first line of its archive, which has no header, and what its columns are."""

_KRAKENS_ARCHIVE = re.compile(rb"\d{9,10}(?:\.\d+)?,\d+\.?\d*,\d+\.?\d*")
_ARCHIVED = re.compile(r"([A-Z0-9]+)-(?:aggT|t)rades-")


class Lines(NamedTuple):
    """Some lines of a file, in its order."""

    keys: pa.Array
    """The product of each, "" if it has none that can be read."""
    bodies: pa.Array
    """Each with its layout (binary)."""
    share: float
    """The share of the file that has been read, 0 to 1."""


class TradeFile(NamedTuple):
    """A file whose kind and columns are known."""

    path: Path
    kind: _Kind
    layout: bytes = b""
    """See `venues/imported.py`; b"" for a recording."""
    product: str = ""
    """The product of all its trades, as in the tables; "": a column says it."""
    columns: tuple[str, ...] = ()
    """Of Parquet and Arrow: the columns that are read, in the order of the layout."""
    venue: str = COINBASE
    has_header: bool = True
    """Of CSV: whether the first line is none of a trade."""

    def digest(self) -> str:
        """SHA-256 of what is in it and how it is read: another file of the same digest brings the same messages."""
        venue = b"" if self.venue == COINBASE else f"@{self.venue}".encode()
        found = hashlib.sha256(b"\0".join([self.kind.encode(), self.layout, self.product.encode(), venue]))
        with _errors(self.path), self.path.open("rb") as file:
            while part := file.read(_BLOCK_BYTES):
                found.update(part)
        return found.hexdigest()

    def lines(self) -> Iterator[Lines]:
        """All lines of a file that is no recording, some thousand at a time; empty ones are left out.

        Raises ConfigurationError when the file can't be read to its end, after what came before.
        """
        with _errors(self.path), closing(self._blocks()) as blocks:
            for block, share in blocks:
                yield _messages(block, self, share)

    def _blocks(self) -> Generator[tuple[bytes, float], None, None]:
        """Whole lines, with the share of the file that has been read."""
        if self.kind in ("csv", "json"):
            size = max(self.path.stat().st_size, 1)
            with self.path.open("rb") as raw:
                for number, block in enumerate(_line_blocks(decompressed(raw))):
                    text = block
                    if number == 0:
                        text = text.removeprefix(BYTE_ORDER_MARK).lstrip(b" \t\r\n")
                        text = text[text.find(b"\n") + 1 :] if self.kind == "csv" and self.has_header else text
                    text = text.replace(b"\r\n", b"\n")
                    if text.startswith((b"\n", b" ", b"\t")) or re.search(rb"\n\s", text):
                        text = b"".join(line + b"\n" for line in text.split(b"\n") if line.strip())
                    if text:
                        yield text, min(raw.tell() / size, 1)
            return
        for batch, share in _record_batches(self.path, self.kind, self.columns):
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                part = batch.slice(start, _BATCH_ROWS)
                columns = [_texts_of_times(column) for column in part.columns]
                yield csv_lines(pa.RecordBatch.from_arrays(columns, list(self.columns))), share


def open_trade_file(path: Path, columns: Mapping[str, str], product: str = "", venue: str | None = None) -> TradeFile:
    """Looks at the beginning of a file. `columns`: field (`venues.imported.FIELDS`) → name of its column, for
    those that are not named as usual; `product`: that of all trades, for a file without such a column, as its venue
    writes it; `venue`: whose trades they are, None for what the file says, or else Coinbase's.

    Raises ConfigurationError when it can't be imported: not there, of another exchange, without a needed column, …
    """
    said = venue_of(product)
    if said and venue not in (None, said):
        raise ConfigurationError(f"Product {product} is of {said}, not of {venue}.")
    venue = said or venue
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder; name its files, as in {path}/*.csv.gz.")
    if not path.is_file():
        raise ConfigurationError(f"There is no file {path}.")
    with _errors(path), path.open("rb") as raw:
        magic = raw.read(8)
        raw.seek(0)
        if magic.startswith((b"PAR1", b"ARROW1")):
            return _open_columns(path, "parquet" if magic.startswith(b"PAR1") else "arrow", columns, product, venue)
        sample = next(_line_blocks(decompressed(raw), cut_off_is_end=True), b"")
        if not sample:  # nothing is whole of it, or there is nothing: this raises the one, and returns from the other
            raw.seek(0)
            next(_line_blocks(decompressed(raw)), b"")
    if sample.startswith(_UTF_16):
        raise ConfigurationError(f"{path} is in UTF-16; save it as UTF-8.")
    lines = [line.rstrip(b"\r") for line in sample.removeprefix(BYTE_ORDER_MARK).split(b"\n") if line.strip()]
    if not lines:
        return TradeFile(path, "nothing")
    if is_recorded(lines[0]) or (venue and venue in MESSAGES and MESSAGES[venue](_members(lines[0])) != NOT_A_MESSAGE):
        return TradeFile(path, "recording", venue=venue or COINBASE)
    if _KRAKENS_ARCHIVE.fullmatch(lines[0]):
        raise ConfigurationError(f"{path} has no trade ids, as Kraken's archives: a lake keeps trades by their ids.")
    for archive, (line, names_) in _ARCHIVES.items():
        if line.fullmatch(lines[0]):
            if columns or venue not in (None, archive):
                what = "needs no --column" if columns else f"is none of {venue}"
                raise ConfigurationError(f"{path} is an archive of {archive} without a header: it {what}.")
            return _open_archive(path, archive, names_.split(), product, lines)
    rows: list[dict[str, str]]
    if lines[0].lstrip().startswith(b"{"):
        kind: _Kind = "json"
        rows = [_texts(_members(line)) for line in lines[:_SAMPLE_LINES]]
        names = list(rows[0])
    else:
        kind = "csv"
        names = [name.strip() for name in _cells(lines[0])]
        rows = [dict(zip(names, _cells(line), strict=False)) for line in lines[1 : _SAMPLE_LINES + 1]]
    places = _places(path, names, columns, product)
    venue = _venue(path, places, rows, venue)
    product = _checked_product(path, product, venue, is_needed="product_id" not in places)
    by_name = {name: _with_unit(field, name, rows) for field, name in places.items()}
    layout: Any = by_name if kind == "json" else [by_name.get(name) for name in names]
    encoded = msgspec.json.encode(layout)
    assert read_layout(encoded) is not None
    return TradeFile(path, kind, encoded, product, venue=venue)


def _open_archive(path: Path, venue: str, fields: list[str], product: str, lines: Sequence[bytes]) -> TradeFile:
    """A file without a header, as Binance publishes it; `lines`: the first ones."""
    named = _ARCHIVED.match(path.name)
    product = _checked_product(path, product or (named[1] if named else ""), venue, is_needed=True)
    place = fields.index("time")
    fields[place] = _with_unit("time", "time", [{"time": _cells(lines[0])[place]}])
    names = {"id": "trade_id", "qty": "size", "-": None}
    return TradeFile(
        path,
        "csv",
        msgspec.json.encode([names.get(name, name) for name in fields]),
        product,
        (),
        venue,
        has_header=False,
    )


def _checked_product(path: Path, product: str, venue: str, *, is_needed: bool) -> str:
    """The key of all messages of a file, "" unless it `is_needed`. Raises ConfigurationError for none of `venue`."""
    if not product and not is_needed:
        return ""
    if not product:
        raise ConfigurationError(f"{path} does not name its product; say it, as in --product BTCUSDT.")
    key = product if venue == COINBASE else f"{product.partition('@')[0]}@{venue}"
    if not (is_product_id(key) if venue == COINBASE else is_symbol(key)):
        remedy = "; whose it is says --venue, or BTC/USD@kraken" if venue == COINBASE else ""
        raise ConfigurationError(f"Invalid product id {product!r} of {venue}{remedy}.")
    return key if is_needed else ""


def _open_columns(
    path: Path, kind: Literal["parquet", "arrow"], columns: Mapping[str, str], product: str, venue: str | None
) -> TradeFile:
    schema = pq.read_schema(path) if kind == "parquet" else pa.ipc.open_file(path).schema
    places = _places(path, schema.names, columns, product)
    names = tuple(places.values())
    first = next((batch for batch, _ in _record_batches(path, kind, names) if batch.num_rows), None)
    rows: list[dict[str, str]] = []
    if first is not None:
        part = first.slice(0, _SAMPLE_LINES)
        rows = [_texts(row) for row in pa.Table.from_batches([part]).select(names).to_pylist()]
    venue = _venue(path, places, rows, venue)
    product = _checked_product(path, product, venue, is_needed="product_id" not in places)
    fields = []
    for field, name in places.items():
        type_ = schema.field(name).type
        if pa.types.is_timestamp(type_):
            fields.append("time_ns" if type_.unit == "ns" else "time_us")
        elif pa.types.is_nested(type_):
            raise ConfigurationError(f"{path}: column {name} is a {type_}, which is no value of a trade.")
        else:
            fields.append(_with_unit(field, name, rows))
    return TradeFile(path, kind, msgspec.json.encode(fields), product, names, venue)


def _places(path: Path, names: Sequence[str], given: Mapping[str, str], product: str) -> dict[str, str]:
    """Field → name of its column, for all that are there. Raises ConfigurationError for a needed one that is not."""
    there = ", ".join(map(_shown, names[:20])) + (", …" if len(names) > 20 else "")
    found = dict(given)
    if wrong := [name for name in given.values() if name not in names]:
        raise ConfigurationError(f"{path} has no column {wrong[0]}; it has {there}.")
    by_name = {name.lower(): name for name in reversed(names)}
    free = {name: by_name[name] for name in by_name if by_name[name] not in given.values()}
    for field, usual in _NAMES.items():
        group = next((group for group in (SIDES, tuple(TIMES)) if field in group), (field,))
        if not any(one in found for one in group):
            candidates = [name for name in usual if name in free]
            if field == "time" and not candidates:
                candidates = [name for name in free if _NAMED_TIME.fullmatch(name)]
                field = f"time_{candidates[0].rpartition('_')[2]}" if candidates else field  # noqa: PLW2901
            if candidates:
                found[field] = free[candidates[0]]
    for group in (SIDES, tuple(TIMES)):
        if len(both := [field for field in group if field in found]) > 1:
            raise ConfigurationError(f"--column {both[0]} and --column {both[1]} exclude each other.")
    doubled = [name for name in found.values() if names.count(name) > 1 or list(found.values()).count(name) > 1]
    if doubled:
        raise ConfigurationError(f"{path}: column {_shown(doubled[0])} would be two things, or is there twice.")
    for needed in ("trade_id", "price", "size", SIDES[0], "time", "product_id"):
        group = next((group for group in (SIDES, tuple(TIMES)) if needed in group), (needed,))
        if not any(one in found for one in group) and not (needed == "product_id" and product):
            remedy = f"name it, as in --column {needed}=NAME"
            if needed == "product_id":
                remedy += ", or say --product BTC-USD"
            raise ConfigurationError(f"{path} has no column for {needed} ({there}); {remedy}.")
    return found


def _venue(path: Path, places: Mapping[str, str], rows: Iterable[Mapping[str, str]], wanted: str | None) -> str:
    """Whose trades the first ones are. Raises ConfigurationError if nobody knows, or they are not of `wanted`."""
    name = places.get("exchange", "")
    said = next((row[name].strip() for row in rows if row.get(name, "").strip()), None)
    if said is None:
        return wanted or COINBASE
    venue = EXCHANGES.get(said.lower())
    if venue is None:
        known = ", ".join(dict.fromkeys(EXCHANGES.values()))
        raise ConfigurationError(f"{path} holds trades of {_shown(said)}, which is not supported (only {known}).")
    if wanted is not None and wanted.partition("-")[0] != venue:
        raise ConfigurationError(f"{path} holds trades of {venue}, not of {wanted}.")
    return wanted or venue


def _shown(text: str) -> str:
    """The beginning of a text from a file, for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:40])


def _with_unit(field: str, name: str, rows: Iterable[Mapping[str, str]]) -> str:
    """`field`; for a time without a unit the one that its first number has, if it is a number."""
    if field == "time":
        for row in rows:
            with suppress(ValueError):
                number = float(row.get(name) or "")
                return next((unit for unit, end in _TIME_UNITS if abs(number) < end), field)
            if re.match("[0-9]{4}-[0-9]{2}-", row.get(name) or ""):
                return field
    return field


def _cells(line: bytes) -> list[str]:
    with suppress(csv.Error):
        return next(csv.reader([line.decode(errors="replace")], skipinitialspace=True), [])
    return []


def _members(line: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        found = msgspec.json.decode(line)
        return found if isinstance(found, dict) else {}
    return {}


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in row.items()}


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turns what reading raises into ConfigurationError."""
    try:
        yield
    except (OSError, EOFError, *DAMAGED, pa.ArrowException) as error:
        why = (getattr(error, "strerror", None) or (str(error) or "it is damaged").splitlines()[0]).rstrip(".")
        is_cut_off = isinstance(error, EOFError | gzip.BadGzipFile | BadZipFile) or "truncated" in why.lower()
        remedy = " It seems to be cut off: fetch it again." if is_cut_off else ""
        raise ConfigurationError(f"{path} can't be read: {why}.{remedy}") from error


def _line_blocks(stream: io.BufferedIOBase, *, cut_off_is_end: bool = False) -> Iterator[bytes]:
    """Whole lines, about a megabyte at a time, each block with its line end. `cut_off_is_end`: what is whole of a
    compressed file that is not counts.
    """
    waiting, failure = bytearray(), None
    while failure is None:
        try:
            data = stream.read1(_BLOCK_BYTES)  # `read` would lose what came before a fault
        except (OSError, EOFError, *DAMAGED) as error:
            data, failure = b"", error
        waiting += data
        if not data or len(waiting) >= _BLOCK_BYTES:
            end = waiting.rfind(b"\n") + 1
            if end:
                yield bytes(waiting[:end])
                del waiting[:end]
            elif len(waiting) > LINE_BYTES_MAX:
                raise OSError("a line is too long")
        if not data:
            break
    if failure is not None and not cut_off_is_end:
        raise failure
    if waiting:
        yield bytes(waiting) + b"\n"


def _record_batches(path: Path, kind: _Kind, columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, float]]:
    """The batches of a file of Parquet or Arrow, with the share of it that has been read."""
    with ExitStack() as stack:
        if kind == "parquet":
            file = stack.enter_context(closing(pq.ParquetFile(path)))
            total, batches = file.metadata.num_rows, file.iter_batches(_BATCH_ROWS, columns=list(columns))
        else:
            source = stack.enter_context(pa.memory_map(str(path)))
            reader = pa.ipc.open_file(source)
            total, batches = 0, (reader.get_batch(n) for n in range(reader.num_record_batches))
        rows = 0
        for number, batch in enumerate(batches, start=1):
            rows += batch.num_rows
            share = rows / max(total, 1) if kind == "parquet" else number / reader.num_record_batches
            yield batch.select(list(columns)), share


def _texts_of_times(column: pa.Array) -> pa.Array:
    """Times as numbers: nanoseconds as such, all others as µs. (A time without a zone counts as UTC.)"""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_timestamp(column.type):
        return column
    if column.type.unit in ("s", "ms"):
        column = column.cast(pa.timestamp("us", column.type.tz))
    return column.cast(pa.int64())


def _messages(block: bytes, file: TradeFile, share: float) -> Lines:
    """The lines of a block, none of them empty, as messages."""
    prefix = file.layout + b"\n"
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    # The line end in front of a line gives way to the layout.
    data = prefix + block[:-1].replace(b"\n", prefix)
    stops = np.concatenate([[0], ends + np.arange(1, len(ends) + 1) * (len(prefix) - 1) + 1])
    bodies = pa.Array.from_buffers(
        pa.binary(), len(ends), [None, pa.py_buffer(stops.astype(np.int32)), pa.py_buffer(data)]
    )
    return Lines(_keys(block, ends, file), bodies, share)


def _keys(block: bytes, ends: Any, file: TradeFile) -> pa.Array:
    """The product of each line that ends at `ends`."""
    if file.product:
        return pa.repeat(file.product, len(ends))
    layout = read_layout(file.layout)
    assert layout is not None
    place = layout.places["product_id"]
    found: pa.Array | None = None
    if isinstance(place, int) and b'"' not in block:
        with suppress(pa.ArrowInvalid):  # other than UTF-8
            offsets = pa.py_buffer(np.concatenate([[0], ends + 1]).astype(np.int32))
            lines = pa.Array.from_buffers(pa.binary(), len(ends), [None, offsets, pa.py_buffer(block)])
            cells = pc.split_pattern(lines.cast(pa.string()), ",", max_splits=place + 1)
            if pc.min(pc.list_value_length(cells)).as_py() > place:
                found = pc.list_element(cells, place)
    if found is None:
        lines_ = block[:-1].split(b"\n")
        if isinstance(place, int):
            rows = (_cells(line) for line in lines_)
            found = pa.array([row[place] if place < len(row) else "" for row in rows], pa.string())
        else:
            found = pa.array([str(_members(line).get(place, "")) for line in lines_], pa.string())
    named = found.dictionary_encode()
    venue = "" if file.venue == COINBASE else f"@{file.venue}"
    names = []
    for text in map(str.strip, named.dictionary.to_pylist()):
        key = text if "@" in text else text + venue  # an export has whole symbols
        is_known = venue_of(key) in ("", *MESSAGES) and key.endswith(venue)
        names.append(key if is_known and is_symbol(key) else venue)
    return cast("pa.Array", pa.array(names, pa.string()).take(named.indices))
