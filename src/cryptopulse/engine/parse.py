"""Messages → trades, refusals, and ids that pages of the REST interface prove absent. Both engines use this parser.

`exact` defines what a message means, one message at a time. These are the fast paths for many: `match_layout` reads
matches laid out as usual, all together, and `line_layout` lines of imported CSV; `decode` reads other messages written
as Coinbase writes them, and their columns are made at once; all others go through `exact`. All give the same rows, as a
test with hostile messages shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from decimal import Context, Decimal
from functools import reduce
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine.decode import DecodedMessages
from cryptopulse.engine.exact import (
    PRICE_MAX,
    SCALE,
    SIZE_MAX,
    TAKER_SIDES,
    TIME_MAX,
    TIME_MIN,
    VALUE_END,
    line_rows,
    time_micros,
    venue_rows,
)
from cryptopulse.engine.line_layout import read_lines
from cryptopulse.engine.match_layout import IS_AVAILABLE, Matches, read_matches
from cryptopulse.lake.products import is_product_id
from cryptopulse.lake.tables import ABSENT, PRICE, QUARANTINE, SIZE, Table, arrow_type
from cryptopulse.venues.imported import IMPORT
from cryptopulse.venues.registry import VAGUE_TIMES

_TIME_TYPE = pa.timestamp("us", "UTC")
_PRICE_TYPE, _SIZE_TYPE = arrow_type(PRICE), arrow_type(SIZE)
PARSED_SCHEMA = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("received_time", _TIME_TYPE, nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("symbol", pa.string()),
        pa.field("trade_id", pa.int64()),
        pa.field("price", _PRICE_TYPE),
        pa.field("trade_size", _SIZE_TYPE),
        pa.field("side", pa.string()),
        pa.field("event_time", _TIME_TYPE),
    ]
)
"""A row is a trade (`reason` is null) or a refusal, with partition and offset of its message."""

_NS = pa.timestamp("ns", "UTC")
# Floats below these are surely below the exact bounds.
_PRICE_SURELY, _SIZE_SURELY, _VALUE_SURELY = (end * (1 - 2.0**-40) for end in (PRICE_MAX, SIZE_MAX, VALUE_END))
_PLAIN = f"^[0-9]{{1,{_SIZE_TYPE.precision - SCALE}}}([.][0-9]{{1,{SCALE}}})?$"
_DIGITS_MAX = 30  # more would overflow the cast's 128 bits without an error
_DIGITS, _POINT = b"0123456789.", ord(".")
_EXACT = Context(prec=_SIZE_TYPE.precision)
_REFUSAL = ("partition", "offset", "reason")
_OF_MESSAGE = ("partition", "offset", "received_time", "source")
_TRADE_TYPES = PARSED_SCHEMA.types[len(_OF_MESSAGE) :]
_TOGETHER_MIN = 1_000  # fewer messages are decoded one by one in less time
_STEP_BYTES = 4_000_000  # of bodies at a time: bounds memory, and keeps the results in the CPU's caches
_STEP_MESSAGES_MAX = 8_192


def parse(messages: pa.Table) -> pa.Table:
    """Rows of bronze → a row of PARSED_SCHEMA for each trade and for each refusal; none for control messages.

    A refused trade keeps its symbol and its trade_id if those can be read, and nothing else. Rows are in the order of
    the messages, and within a message as written. Never raises for any content of a message.
    """
    rows = messages.num_rows
    step = max(1, min(_STEP_MESSAGES_MAX, _STEP_BYTES * rows // (messages["body"].nbytes + 1)))
    parsed = [PARSED_SCHEMA.empty_table()] if rows == 0 else []
    bounds, is_line = [*range(0, rows, step), rows], np.zeros(rows, np.bool_)
    if pc.index(messages["source"], IMPORT).as_py() >= 0:  # they are parsed apart from others
        is_line = pc.equal(messages["source"], IMPORT).to_numpy()
        bounds = sorted({*bounds, *(np.flatnonzero(is_line[1:] != is_line[:-1]) + 1).tolist()})
    for start, end in pairwise(bounds):
        part = messages.slice(start, end - start)
        bodies, keys, usual = part["body"].combine_chunks(), part["partition_key"].combine_chunks(), None
        is_together = IS_AVAILABLE and len(bodies) >= _TOGETHER_MIN
        found = DecodedMessages()
        if is_line[start]:
            usual = read_lines(bodies, keys) if is_together else None
            left = np.arange(len(bodies)) if usual is None else np.flatnonzero(~usual.is_usual)
            for place in left.tolist():
                found.add_exact(place, line_rows(bodies[place].as_py(), keys[place].as_py()))
            parsed.append(_table(found, usual, part))
            continue
        is_page = pc.equal(part["source"], "rest").to_numpy()
        is_venue = pc.match_substring(keys, "@").fill_null(False).to_numpy(zero_copy_only=False)
        for place in np.flatnonzero(is_venue).tolist():
            rows = venue_rows(bodies[place].as_py(), keys[place].as_py(), is_page=bool(is_page[place]))
            found.add_exact(place, rows)
        if is_together:
            usual = read_matches(bodies, keys)
        if usual is not None:
            usual.is_usual[is_page] = False  # a page that looks like a match is none
        if usual is None and not is_page.any() and not is_venue.any():
            found.add_messages(bodies.to_pylist(), range(len(bodies)))
        else:
            left = np.flatnonzero(~is_venue if usual is None else ~(is_venue | usual.is_usual))
            for place in left[is_page[left]].tolist():
                found.add_page(bodies[place].as_py(), keys[place].as_py() or "", place)
            others = left[~is_page[left]]
            found.add_messages(bodies.take(pa.array(others)).to_pylist(), others.tolist())
        parsed.append(_table(found, usual, part))
    return pa.concat_tables(parsed).combine_chunks()


def parse_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """`parse` for Spark's `mapInArrow`."""
    for batch in batches:
        yield from parse(pa.Table.from_batches([batch])).to_batches()


def _table(found: DecodedMessages, usual: Matches | None, messages: pa.Table) -> pa.Table:
    """The rows (PARSED_SCHEMA) that were found in `messages`, in their order."""
    # Columns, the index of each row's message, and the row's number within it.
    parts: list[tuple[list[pa.Array], npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    if usual is not None:
        places = np.flatnonzero(usual.is_usual)
        parts.append((_usual_columns(usual, messages), places, np.zeros(len(places), np.int64)))
    if found.ids:
        columns, is_right = _columns(found)
        places, numbers = np.array(found.places, np.int64), np.arange(len(found.ids))
        if not is_right.all():
            found.exact += [(found.places[n], n, found.checked_row(n)) for n in np.flatnonzero(~is_right).tolist()]
            columns = [column.filter(pa.array(is_right)) for column in columns]
        parts.append((columns, places[is_right], numbers[is_right]))
    if found.exact:
        reasons, symbols, ids, prices, sizes, sides, times = zip(*(row for _, _, row in found.exact), strict=True)
        decimals = [[n if n is None else Decimal(n).scaleb(-SCALE, _EXACT) for n in units] for units in (prices, sizes)]
        given = zip((reasons, symbols, ids, *decimals, sides, times), _TRADE_TYPES, strict=True)
        at = np.array([(place, number) for place, number, _ in found.exact], np.int64)
        parts.append(([pa.array(column, kind) for column, kind in given], at[:, 0], at[:, 1]))
    if not parts:
        return PARSED_SCHEMA.empty_table()
    columns, places, numbers = parts[0]
    if len(parts) > 1:
        columns = [pa.concat_arrays([*column]) for column in zip(*(part[0] for part in parts), strict=True)]
        places, numbers = (np.concatenate([part[n] for part in parts]) for n in (1, 2))
    if len(parts) > 1 or (places[1:] < places[:-1]).any():
        order = np.lexsort((numbers, places))
        columns, places = [column.take(pa.array(order)) for column in columns], places[order]
    of_message = [messages[name] for name in _OF_MESSAGE]
    if len(places) != messages.num_rows or (places[1:] == places[:-1]).any():
        of_message = [column.take(pa.array(places)) for column in of_message]
    return pa.Table.from_arrays([*of_message, *columns], schema=PARSED_SCHEMA)


def _usual_columns(usual: Matches, messages: pa.Table) -> list[pa.Array]:
    """The columns of the matches in the usual layout."""
    chosen, keys = usual.is_usual, messages["partition_key"].combine_chunks()
    sides = pa.DictionaryArray.from_arrays(pa.array(usual.is_sell[chosen].astype(np.int8)), ["SELL", "BUY"])
    decimals = []
    for units, kind in ((usual.prices, _PRICE_TYPE), (usual.sizes, _SIZE_TYPE)):
        halves = np.zeros((np.count_nonzero(chosen), 2), np.int64)
        halves[:, 0] = units[chosen]
        decimals.append(pa.Array.from_buffers(kind, len(halves), [None, pa.py_buffer(halves)]))
    return [
        pa.nulls(len(sides), pa.string()),
        keys if chosen.all() else keys.filter(pa.array(chosen)),
        pa.array(usual.ids[chosen]),
        *decimals,
        sides.cast(pa.string()),
        pa.array(usual.time_us[chosen]).cast(_TIME_TYPE),
    ]


def _columns(found: DecodedMessages) -> tuple[list[pa.Array], npt.NDArray[np.bool_]]:
    """The columns of the trades that are written as usual, and which of their rows are surely right."""
    n = len(found.ids)
    numbers = _decimals(found.prices + found.sizes)
    halves = np.frombuffer(numbers, np.uint64).reshape(2, n, 2)
    prices, sizes = halves @ np.array([1.0, 2.0**64])  # in units, approximately
    us = _times(found.times)
    is_right = (prices > 0) & (prices < _PRICE_SURELY) & (sizes > 0) & (sizes < _SIZE_SURELY)
    is_right &= (prices * sizes < _VALUE_SURELY) & (us >= TIME_MIN) & (us <= TIME_MAX)
    if wrong := {symbol for symbol in set(found.symbols) if not is_product_id(symbol)}:
        is_right &= np.array([symbol not in wrong for symbol in found.symbols])
    columns = [
        pa.nulls(n, pa.string()),
        pa.array(found.symbols, pa.string()),
        pa.array(found.ids, pa.int64()),
        pa.Array.from_buffers(_PRICE_TYPE, n, [None, numbers]),
        pa.Array.from_buffers(_SIZE_TYPE, n, [None, numbers.slice(n * 16)]),
        pa.array([TAKER_SIDES[side] for side in found.sides], pa.string()),
        pa.Array.from_buffers(_TIME_TYPE, n, [None, pa.py_buffer(us)]),
    ]
    return columns, is_right


def _decimals(texts: list[str]) -> pa.Buffer:
    """`texts` as decimals in units, 128 bits each; 0 for those not surely right."""
    column = pa.array(texts, pa.string())
    letters, ends = _letters(column)
    starts, ends = ends[:-1], ends[1:]
    lengths = ends - starts
    # All at once if they are only digits, with a point at most inside.
    is_plain = ((lengths > 0) & (lengths <= _DIGITS_MAX)).all() and not letters.tobytes().translate(None, _DIGITS)
    if is_plain and not ((letters[starts] == _POINT) | (letters[ends - 1] == _POINT)).any():
        with suppress(pa.ArrowInvalid):
            return column.cast(_SIZE_TYPE).buffers()[1] or pa.py_buffer(b"")
    numbers = pc.if_else(pc.match_substring_regex(column, _PLAIN), column, "0").cast(_SIZE_TYPE)
    return numbers.buffers()[1] or pa.py_buffer(b"")


def _times(texts: list[str]) -> npt.NDArray[np.int64]:
    """`texts` as µs UTC since 1970; -1 for those that are not a time."""
    column = pa.array(texts, pa.string())
    letters, ends = _letters(column)
    starts, ends = ends[:-1], ends[1:]
    # All at once if T and Z are where they belong.
    is_plain = (ends - starts >= len("2026-07-07T12:00:00Z")).all()
    if is_plain and ((letters[starts + len("2026-07-07")] == ord("T")) & (letters[ends - 1] == ord("Z"))).all():
        with suppress(pa.ArrowInvalid):
            times = column.cast(_NS)
            return np.frombuffer(times.buffers()[1] or b"", np.int64)[: len(times)] // 1000
    return np.array([-1 if wrong else found for wrong, found in map(time_micros, texts)], np.int64)


def _letters(column: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """The bytes of all texts, and a 0 followed by the end of each text."""
    _, ends, letters = column.buffers()
    return np.frombuffer(letters or b"", np.uint8), np.frombuffer(ends or bytes(4), np.int32)[: len(column) + 1]


def refused_messages(parsed: pa.Table, messages: pa.Table) -> pa.Table:
    """The rows of silver.quarantined_messages, without load_timestamp, from `parsed`, the result of parsing `messages`.

    One row per message with a refusal, in the order of `messages`, with its first reason.
    """
    refused = parsed.filter(pc.is_valid(parsed["reason"]))
    reasons: dict[tuple[int, int], str] = {}
    for partition, offset, reason in zip(*(refused[name].to_pylist() for name in _REFUSAL), strict=True):
        reasons.setdefault((partition, offset), reason)
    if reasons:
        messages = messages.filter(
            pc.is_in(messages["offset"], pa.array({offset for _, offset in reasons}, pa.int64()))
        )
    else:
        messages = messages.slice(0, 0)
    places = zip(messages["partition"].to_pylist(), messages["offset"].to_pylist(), strict=True)
    rows = messages.append_column("reason", pa.array([reasons.get(place) for place in places], pa.string()))
    return _shaped(rows.filter(pc.is_valid(rows["reason"])), QUARANTINE)


def absent_ids(parsed: pa.Table) -> pa.Table:
    """The rows of silver.absent_trade_ids, without load_timestamp, that the REST pages among the rows `parsed` prove.

    A page is a run of a product's trades without a gap, so an id that it lacks between two of its ids is absent. A
    refused row still shows that its id exists. A page with a row whose id or product can't be read proves nothing:
    that row may be the trade that seems to be absent.
    """
    rows = parsed.filter(pc.equal(parsed["source"], "rest"))
    rows = rows.sort_by([(name, "ascending") for name in ("partition", "offset", "trade_id")])
    is_next = np.ones(max(rows.num_rows - 1, 0), bool)  # on the same page as the row before it
    for name in ("partition", "offset"):
        is_next &= np.diff(rows[name].to_numpy()) == 0
    page = np.concatenate([[0], np.cumsum(~is_next)])[: rows.num_rows]
    is_unreadable = pc.or_(pc.is_null(rows["trade_id"]), pc.is_null(rows["symbol"])).to_numpy()
    is_proof = ~np.isin(page, page[is_unreadable])
    ids = rows["trade_id"].fill_null(0).to_numpy()
    below = np.flatnonzero(is_next & is_proof[1:] & (np.diff(ids) > 1))
    found = rows.take(pa.array(below))
    found = found.append_column("first_trade_id", pa.array(ids[below] + 1))
    return _shaped(found.append_column("last_trade_id", pa.array(ids[below + 1] - 1)), ABSENT)


def with_other_content(repeated: pa.Table, stored: pa.Table) -> pa.Table:
    """The parsed trades of `repeated` that differ from the trade with their id in `stored`.

    `stored`: the first copies (rows of silver, or parsed ones), each id once; trades without a copy there are left out.
    Compares the values of price, trade_size, side and event_time (see `VAGUE_TIMES`).
    """
    row_of = {key: row for row, key in enumerate(_keys(stored))}
    first = stored.take(pa.array([row_of.get(key) for key in _keys(repeated)], pa.int64()))
    same = [pc.equal(repeated[name], first[name]) for name in ("price", "trade_size", "side")]
    times = (pc.cast(rows["event_time"], pa.int64()) for rows in (repeated, first))
    apart = pc.abs(pc.subtract(*times))
    may_differ = pc.match_substring_regex(repeated["symbol"], VAGUE_TIMES)
    same.append(pc.less_equal(apart, pc.if_else(may_differ, 1, 0)))
    return repeated.filter(pc.invert(reduce(pc.and_, same)))


def _keys(trades: pa.Table) -> Iterator[tuple[str, int]]:
    return zip(trades["symbol"].to_pylist(), trades["trade_id"].to_pylist(), strict=True)


def _shaped(rows: pa.Table, table: Table) -> pa.Table:
    """The columns of `table` except load_timestamp; received_date is derived from received_time."""
    names = [name for name in rows.column_names if name != "received_date"]
    rows = rows.select(names).append_column("received_date", pc.cast(rows["received_time"], pa.date32()))
    schema = pa.schema([field for field in table.arrow_schema if field.name != "load_timestamp"])
    return rows.select(schema.names).cast(schema)
