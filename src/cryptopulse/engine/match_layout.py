"""Matches laid out as the Exchange feed lays them out, many at once, by arithmetic on their bytes.

A match is always written in the same way: the same members in the same order, without white space. So its constant
parts are compared, and the values between them read, eight bytes at a time for all messages together, without the
interpreter's lock. A message that differs in any way is left to `decode`; a test with hostile messages shows that both
give the same rows.

Digits are read as in D. Lemire, "Quickly parsing eight digits" (2018).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.engine.exact import SCALE, VALUE_END, time_micros
from cryptopulse.lake.products import PRODUCT_ID_MAX, is_product_id, is_symbol

Words: TypeAlias = npt.NDArray[np.uint64]
Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]

IS_AVAILABLE = hasattr(np, "bitwise_count")
"""NumPy has it from 2.0 on."""


def word_of(text: str) -> np.uint64:
    """Up to eight characters as a number, the first one in its lowest byte."""
    return np.uint64(int.from_bytes(text.encode(), "little"))


class Constant:
    """A text that is the same in all messages."""

    def __init__(self, text: str) -> None:
        self.size = len(text)
        starts = [*range(0, max(len(text) - 7, 0), 8), max(len(text) - 8, 0)]
        self.words = [(at, word_of(text[at : at + 8]), mask_of(min(len(text), 8))) for at in dict.fromkeys(starts)]
        """(offset, word, mask) of the words that cover it."""


def mask_of(size: int) -> np.uint64:
    """The lowest `size` bytes of a word."""
    return np.uint64((1 << 8 * size) - 1)


_UUID = 36
_BEFORE_ID = Constant('{"type":"match","trade_id":')
_BEFORE_MAKER = Constant(',"maker_order_id":"')
_BEFORE_TAKER = Constant('","taker_order_id":"')
_BEFORE_SIDE = Constant('","side":"')
_BEFORE_SIZE = Constant('","size":"')
_BEFORE_PRICE = Constant('","price":"')
_BEFORE_PRODUCT = Constant('","product_id":"')
_BEFORE_SEQUENCE = Constant('","sequence":')
_BEFORE_TIME = Constant(',"time":"')
_END = Constant('"}')
_QUOTES = 36  # of a match
TIME_SIZE = len("2026-07-07T12:00:01.123456Z")
_PADDING = 512  # bytes behind the last message; what is read of one that differs may lie there

_ZEROS, _NINES, _TOPS = word_of("0" * 8), np.uint64(0x76 * 0x0101010101010101), np.uint64(0x80 * 0x0101010101010101)
_HALVES = [
    (np.uint64(0x0F0F0F0F0F0F0F0F), np.uint64(2561), np.uint64(8)),
    (np.uint64(0x00FF00FF00FF00FF), np.uint64(6553601), np.uint64(16)),
    (np.uint64(0x0000FFFF0000FFFF), np.uint64(42949672960001), np.uint64(32)),
]
_MASKS = np.array([mask_of(size) for size in range(9)])
_BYTE, _NOTHING = np.uint64(8), np.uint64(0)
_POWERS = 10 ** np.arange(SCALE + 1, dtype=np.uint64)
_WHOLE_MAX = 2**63 // 10**SCALE - 1  # larger prices and sizes do not fit 64 bits
SURELY = 1 - 2.0**-40


class Matches(NamedTuple):
    """Values of messages; only those of `is_usual` mean something."""

    is_usual: Flags
    ids: Ints
    prices: Ints
    """In units of 1e-12."""
    sizes: Ints
    """In units of 1e-12."""
    is_sell: Flags
    """The maker's side."""
    time_us: Ints


class Bytes:
    """The bytes of all messages, and whether each message is as usual so far."""

    def __init__(self, text: npt.NDArray[np.uint8], messages: int, longest: int = 0) -> None:
        """`text`: all of them, one after the other; `longest`: length of the longest constant, if it may be long."""
        data = np.concatenate([text, np.zeros(_PADDING + longest, np.uint8)])
        self._words = np.ndarray((len(data) - 7,), "<u8", data, 0, (1,))
        self.is_usual = np.ones(messages, np.bool_)

    def at(self, places: Ints) -> Words:
        """The eight bytes from each place on."""
        return self._words[places]

    def expect(self, constant: Constant, places: Ints) -> Ints:
        """Notes where a constant text does not begin; returns where it ends."""
        for offset, word, mask in constant.words:
            self.is_usual &= (self._words[places + offset] & mask) == word
        return places + constant.size

    def digits(self, places: Ints) -> Ints:
        """How many digits begin at each place, at most 16."""
        found = _leading_digits(self._words[places])
        return found + np.where(found == 8, _leading_digits(self._words[places + 8]), 0)

    def number(self, ends: Ints, count: Ints) -> Words:
        """The number whose `count` digits end before each place."""
        low = np.minimum(count, 8)
        value = _last_digits(self._words[ends - 8], low)
        high = count - low
        if high.any():
            value += _last_digits(self._words[ends - 16], high) * np.uint64(10**8)
        return value

    def decimal(self, places: Ints) -> tuple[Words, Ints]:
        """The decimals, in units of 1e-12, whose text begins at each place, and where it ends."""
        whole = self.digits(places)
        point = places + whole
        has_point = (self._words[point] & mask_of(1)) == ord(".")
        fraction = np.where(has_point, self.digits(point + 1), 0)
        ends = point + has_point + fraction
        value = self.number(point, whole)
        self.is_usual &= (whole > 0) & (value <= _WHOLE_MAX) & (fraction <= SCALE) & (has_point == (fraction > 0))
        scale = _POWERS[SCALE - np.minimum(fraction, SCALE)]
        return value * _POWERS[SCALE] + self.number(ends, fraction) * scale, ends


def _leading_digits(words: Words) -> Ints:
    """How many of each word's bytes, from the first on, are digits."""
    values = words ^ _ZEROS
    others = ((values + _NINES) | values) & _TOPS
    found: Ints = (np.bitwise_count(others ^ (others - np.uint64(1))) >> 3).astype(np.int64) - (others != 0)
    return found


def _last_digits(words: Words, count: Ints) -> Words:
    """The number of each word's last `count` bytes, which are digits."""
    shift = (8 - count).astype(np.uint64) * _BYTE
    return _eight_digits(np.where(count == 0, _NOTHING, ((words ^ _ZEROS) >> shift) << shift))


def _eight_digits(values: Words) -> Words:
    """The number of eight digits, a byte each, the first one lowest."""
    for mask, factor, by in _HALVES:
        values = (values & mask) * factor >> by
    return values


def read_matches(bodies: pa.Array, products: pa.Array) -> Matches | None:
    """The matches among `bodies` (binary) whose keys are `products` (string); None if none of them can be read so.

    A message counts as usual only when reading it letter by letter gives the same trade, and no reason to refuse it.
    """
    if bodies.null_count or products.null_count:
        return None
    text, ends = content(bodies)
    starts, ends = ends[:-1], ends[1:]
    if len(text) == 0 or text.min() < ord(" ") or text.max() >= 0x80 or (text == ord("\\")).any():
        return None
    found = Bytes(text, len(starts))
    at = found.expect(_BEFORE_ID, starts)
    count = found.digits(at)
    found.is_usual &= (count > 0) & ((found.at(at) & mask_of(1)) != ord("0"))
    ids = found.number(at + count, count)
    at = found.expect(_BEFORE_MAKER, at + count)
    at = found.expect(_BEFORE_TAKER, at + _UUID)
    at = found.expect(_BEFORE_SIDE, at + _UUID)
    side = found.at(at)
    is_sell, is_buy = (side & mask_of(4)) == word_of("sell"), (side & mask_of(3)) == word_of("buy")
    found.is_usual &= is_sell | is_buy
    at = found.expect(_BEFORE_SIZE, at + np.where(is_sell, 4, 3))
    sizes, at = found.decimal(at)
    prices, at = found.decimal(found.expect(_BEFORE_PRICE, at))
    at = expect_products(found, found.expect(_BEFORE_PRODUCT, at), products)
    at = found.expect(_BEFORE_SEQUENCE, at)
    count = found.digits(at)
    found.is_usual &= (count == 1) | ((count > 0) & ((found.at(at) & mask_of(1)) != ord("0")))
    at = found.expect(_BEFORE_TIME, at + count)
    time_us = times_at(found, at)
    found.is_usual &= found.expect(_END, at + TIME_SIZE) == ends
    found.is_usual &= (prices > 0) & (sizes > 0) & (prices.astype(float) * sizes.astype(float) < VALUE_END * SURELY)
    # If all quotes are accounted for, there is none in an order's id.
    others = sum(bodies[place].as_py().count(b'"') for place in np.flatnonzero(~found.is_usual).tolist())
    usual = int(np.count_nonzero(found.is_usual))
    if usual == 0 or np.count_nonzero(text == ord('"')) != usual * _QUOTES + others:
        return None
    return Matches(found.is_usual, ids.view(np.int64), prices.view(np.int64), sizes.view(np.int64), is_sell, time_us)


def expect_products(found: Bytes, places: Ints, products: pa.Array, venue: str = "") -> Ints:
    """Notes where the message's product is not its key, or no product id; returns where the products end.

    `venue`: what follows the product in the key of another venue's message, as "@kraken"; `products` are without it.
    """
    text, ends = content(products)
    keys = Bytes(text, 0)
    starts, sizes = ends[:-1], np.minimum(np.diff(ends), PRODUCT_ID_MAX)
    for offset in range(0, int(sizes.max()), 8):
        there, wanted = found.at(places + offset), keys.at(np.minimum(starts + offset, len(text)))
        found.is_usual &= ((there ^ wanted) & _MASKS[np.clip(sizes - offset, 0, 8)]) == 0
    check_products(found, products, venue)
    return places + sizes


def check_products(found: Bytes, products: pa.Array, venue: str = "") -> None:
    """Notes where the message's key is no product id. `venue`: as in `expect_products`."""
    is_valid = is_symbol if venue else is_product_id
    if wrong := [name for name in pc.unique(products).to_pylist() if not is_valid(name + venue)]:
        found.is_usual &= ~pc.is_in(products, pa.array(wrong, pa.string())).to_numpy(zero_copy_only=False)


def times_at(found: Bytes, places: Ints) -> Ints:
    """The times (µs UTC) at each place; notes where there is none, or one of another day than the first one's."""
    date, clock, seconds, fraction = (found.at(places + offset) for offset in (0, 8, 16, 19))
    example = int(found.is_usual.argmax())
    day = (int(date[example]) | int(clock[example] & mask_of(2)) << 64).to_bytes(10, "little").decode(errors="replace")
    wrong, day_us = time_micros(f"{day}T00:00:00Z")
    clock_ = (clock ^ word_of("\0\0T00:00")) & ~mask_of(2)
    seconds_, fraction_ = seconds ^ word_of(":00.0000"), fraction ^ word_of(".000000Z")
    found.is_usual &= (date == date[example]) & ((clock ^ clock[example]) & mask_of(2) == 0) & (wrong is None)
    for values, digits in (
        (clock_, 0xFFFF00FFFF000000),
        (seconds_, 0xFFFFFFFF00FFFF00),
        (fraction_, 0x00FFFFFFFFFFFF00),
    ):
        is_digit = ((values + _NINES) | values) & _TOPS == 0
        found.is_usual &= is_digit & (values & ~np.uint64(digits) == 0)
    hour, minute, second = _pair(clock_, 24), _pair(clock_, 48), _pair(seconds_, 8)
    found.is_usual &= (hour < 24) & (minute < 60) & (second < 60)
    micros = _eight_digits(fraction_ << _BYTE)
    us: Ints = (((hour * 60 + minute) * 60 + second) * 1_000_000 + micros).astype(np.int64) + day_us
    return us


def _pair(values: Words, shift: int) -> Words:
    """The number of two digits that begins `shift` bits up."""
    return (values >> np.uint64(shift) & np.uint64(15)) * np.uint64(10) + (
        values >> np.uint64(shift + 8) & np.uint64(15)
    )


def content(column: pa.Array) -> tuple[npt.NDArray[np.uint8], Ints]:
    """The bytes of all values, and 0 followed by the end of each."""
    _, ends_, data = column.buffers()
    ends = np.frombuffer(ends_, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    return np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]], ends - ends[0]
