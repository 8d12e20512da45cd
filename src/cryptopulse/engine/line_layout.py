"""Imported lines with one layout, many at once, by arithmetic on their bytes.

The commas of CSV are found all together; the fields between them are read as those of matches are (`match_layout`).
Lines of JSON are written as CSV first. A line with quoted cells, white space, other than ASCII, exponents, or any fault
is left to `exact`; a test with hostile lines shows that both give the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine.exact import TIME_MAX, TIME_MIN, VALUE_END
from cryptopulse.engine.match_layout import (
    SURELY,
    TIME_SIZE,
    Bytes,
    Constant,
    Ints,
    Matches,
    Words,
    check_products,
    content,
    expect_products,
    mask_of,
    times_at,
    word_of,
)
from cryptopulse.lake.products import venue_of
from cryptopulse.venues.imported import EXCHANGES, TIMES, Layout, read_layout
from cryptopulse.venues.registry import COINBASE

_LOWER = np.uint64(0x2020202020202020)  # turns capital letters into small ones, and nothing else above it into letters
_PLAIN_NAME = re.compile(r"[ !#-\[\]-~]+")
_NS_DIGITS = 19  # of a time from 2001 to 2199


def read_lines(bodies: pa.Array, products: pa.Array) -> Matches | None:
    """The trades of `bodies` (binary), lines with the layout of the first, whose keys are `products` (string).

    None if none of them can be read so. A line counts as usual only when reading it letter by letter gives the same
    trade, and no reason to refuse it.
    """
    if bodies.null_count or products.null_count or not len(bodies):
        return None
    head, newline, _ = bodies[0].as_py().partition(b"\n")
    layout = read_layout(head)
    if layout is None or not newline:
        return None
    venue = f"@{name}" if (name := venue_of(products[0].as_py())) else ""
    if venue:
        if not pc.all(pc.ends_with(products, venue)).as_py():
            return None
        products = pc.utf8_slice_codeunits(products, 0, -len(venue))
    if not layout.is_csv:
        fields = list(layout.places)
        if not all(map(_PLAIN_NAME.fullmatch, map(str, layout.places.values()))):
            return None
        bodies, head = _as_csv(bodies.to_pylist(), head, layout), msgspec.json.encode(fields)
        layout = layout._replace(is_csv=True, places={name: n for n, name in enumerate(fields)}, width=len(fields))
    return _read_csv(bodies, head, layout, products, venue)


def _as_csv(bodies: Sequence[bytes], head: bytes, layout: Layout) -> pa.Array:
    """Lines of JSON as lines of CSV with the columns `layout.places`; b"" for one that `exact` might read otherwise."""
    fields = [(name, msgspec.Raw) for name in layout.places]
    members = {name: str(member) for name, member in layout.places.items()}
    decode = msgspec.json.Decoder(msgspec.defstruct("_Line", fields, rename=members, gc=False)).decode
    names = [msgspec.json.encode(member) for member in members.values()]
    start, csv_start = head + b"\n", msgspec.json.encode(list(members)) + b"\n"
    found = []
    for body in bodies:
        line, text = body[len(start) :], b""
        # A flat object without escapes, in which each name stands once.
        is_usual = body.startswith(start) and line.isascii() and not (b"\\" in line or b"[" in line)
        if is_usual and line.count(b"{") == 1 and all(line.count(name) == 1 for name in names):
            with suppress(msgspec.MsgspecError):
                values = msgspec.structs.astuple(decode(line))
                text = csv_start + b",".join([bytes(value).strip(b'"') for value in values])
        found.append(text)
    return pa.array(found, pa.binary())


def _read_csv(bodies: pa.Array, head: bytes, layout: Layout, products: pa.Array, venue: str) -> Matches | None:
    text, ends = content(bodies)
    starts, ends = ends[:-1], ends[1:]
    found = Bytes(text, len(starts), len(head))
    lines = found.expect(Constant(head.decode() + "\n"), starts)
    has_others = (text < ord(" ")) | (text >= 0x80) | (text == ord('"'))
    others = _count(np.flatnonzero(has_others), starts, ends)[1]
    commas = np.flatnonzero(text == ord(","))
    first, count = _count(commas, starts, ends)
    found.is_usual &= (others == head.count(b'"') + 1) & (count == 2 * (layout.width - 1)) & (lines <= ends)
    if not found.is_usual.any():
        return None
    inside = first[:, None] + np.arange(layout.width - 1, 2 * (layout.width - 1))  # the layout has as many commas
    inside = commas[np.minimum(inside, len(commas) - 1)]
    begins = np.column_stack([np.minimum(lines, len(text)), inside + 1])
    stops = np.column_stack([inside, ends])
    fields = {name: (begins[:, int(place)], stops[:, int(place)]) for name, place in layout.places.items()}
    return _trades(found, fields, layout, products, venue)


def _count(places: Ints, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """The first of the sorted `places` in each range, and how many are in it."""
    first = np.searchsorted(places, starts)
    return first, np.searchsorted(places, ends) - first


def _trades(
    found: Bytes, fields: dict[str, tuple[Ints, Ints]], layout: Layout, products: pa.Array, venue: str
) -> Matches | None:
    if "exchange" in fields:
        at, end = fields["exchange"]
        letters, size = found.at(at) | _LOWER, end - at
        expected = venue[1:].partition("-")[0] or COINBASE
        names = [name for name, of in EXCHANGES.items() if of == expected]  # of eight letters at most
        is_right = [(letters & mask_of(len(name)) == word_of(name)) & (size == len(name)) for name in names]
        found.is_usual &= np.logical_or.reduce(is_right)
    if "product_id" in fields:
        at, end = fields["product_id"]
        found.is_usual &= expect_products(found, at, products, venue) == end
    else:
        check_products(found, products, venue)
    at, end = fields["trade_id"]
    count = found.digits(at)
    ids = found.number(at + count, count)
    found.is_usual &= (at + count == end) & (ids > 0)
    prices, stops = found.decimal(fields["price"][0])
    found.is_usual &= stops == fields["price"][1]
    sizes, stops = found.decimal(fields["size"][0])
    found.is_usual &= stops == fields["size"][1]
    found.is_usual &= (prices > 0) & (sizes > 0) & (prices.astype(float) * sizes.astype(float) < VALUE_END * SURELY)
    at, end = fields[layout.side]
    side = found.at(at) | _LOWER
    is_sell, is_buy = (side & mask_of(4)) == word_of("sell"), (side & mask_of(3)) == word_of("buy")
    is_side = (is_sell & (end - at == 4)) | (is_buy & (end - at == 3))
    if layout.side == "maker_side":
        is_true, is_false = (side & mask_of(4)) == word_of("true"), (side & mask_of(5)) == word_of("false")
        is_side |= (is_true & (end - at == 4)) | (is_false & (end - at == 5))
        is_sell |= is_false
    found.is_usual &= is_side
    time_us = _times(found, *fields[layout.time], TIMES[layout.time])
    found.is_usual &= (time_us >= TIME_MIN) & (time_us <= TIME_MAX)
    if not found.is_usual.any():
        return None
    is_makers_sell = is_sell if layout.side == "maker_side" else is_buy
    return Matches(
        found.is_usual, ids.view(np.int64), prices.view(np.int64), sizes.view(np.int64), is_makers_sell, time_us
    )


def _times(found: Bytes, at: Ints, end: Ints, power: int | None) -> Ints:
    """The times (µs UTC) from `at` to `end`; notes where there is none. `power`: see TIMES."""
    if power is None:
        found.is_usual &= end - at == TIME_SIZE
        return times_at(found, at) if found.is_usual.any() else np.zeros(len(at), np.int64)
    if power < 0:  # nanoseconds have more digits than are read at once
        found.is_usual &= (end - at == _NS_DIGITS) & (found.digits(at) == 16) & (found.digits(end - 8) >= 8)
        kept = _NS_DIGITS + power
        return found.number(at + kept, np.full(len(at), kept)).view(np.int64)
    whole = found.digits(at)
    point = at + whole
    has_point = (found.at(point) & mask_of(1)) == ord(".")
    fraction = np.where(has_point, found.digits(point + 1), 0)
    found.is_usual &= (whole > 0) & (whole + power <= 16) & (fraction <= power) & (has_point == (fraction > 0))
    found.is_usual &= point + has_point + fraction == end
    powers: Words = 10 ** np.arange(power + 1, dtype=np.uint64)
    scale = powers[power - np.minimum(fraction, power)]
    us: Ints = found.number(point, whole) * powers[power] + found.number(point + 1 + fraction, fraction) * scale
    return us.view(np.int64)
