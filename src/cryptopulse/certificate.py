"""Certificates: a small document about a product's trades of one day (UTC), with which another lake can be checked.

It contains the range of ids, the missing ids, the ids proved absent, and a chain of hashes over the trades in the
order of their ids. Nothing in it depends on how the trades were recorded: two people who recorded the same day get the
same `sha256`.

- A block holds the trades with the same `id // 64`. Its hash is SHA-256 over one line per trade, in the order of ids:
  `id,price,size,side,time` and a line feed. Decimals have no trailing zeros, the side is the taker's (BUY, SELL), the
  time is µs UTC since 1970.
- The chain is SHA-256 over the previous chain (32 zero bytes at first) and the hash of the next block.
- `sha256` is that of the document as JSON with sorted names and no spaces, without `sha256` and `made_by`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cryptopulse import __version__
from cryptopulse.errors import ConfigurationError
from cryptopulse.intervals import Interval, Intervals
from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.products import venue_of
from cryptopulse.lake.retention import check_let_go, let_go
from cryptopulse.lake.tables import SILVER
from cryptopulse.text import decimal_text, ids_text

_FORMAT = "cryptopulse-certificate-1"
_BLOCK_IDS = 64
_COLUMNS = ("trade_id", "price", "trade_size", "side", "event_time")


@dataclass(frozen=True)
class Certificate:
    """The document, made by `certify` or `read_certificate`."""

    product: str
    day: str
    """UTC, as in `2026-11-28`."""
    trades: int
    first_trade_id: int
    last_trade_id: int
    missing: list[Interval]
    """Ids that are neither held nor proved absent, including holes at the day's edges."""
    absent: list[Interval]
    """Ids that the exchange does not have, as its REST pages prove."""
    blocks: list[tuple[int, int, str]]
    """Per block: the lowest id that it may have, its number of trades, the first 16 hex digits of its hash."""
    chain: str
    format: str = _FORMAT
    venue: str = "coinbase"
    grade: str = "ids"
    """What the proof rests on: ids are dense, so a missing trade shows as a missing id."""
    made_by: str = field(default=f"cryptopulse {__version__}")

    @property
    def sha256(self) -> str:
        """Identifies the day's trades: equal certificates have equal hashes (hex)."""
        content = {name: value for name, value in asdict(self).items() if name != "made_by"}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The document as values for JSON."""
        return {**asdict(self), "sha256": self.sha256}

    def as_text(self) -> str:
        """The document as JSON text, with one line per block."""
        lines = (f'  "{name}": {json.dumps(value)}' for name, value in self.as_json().items() if name != "blocks")
        blocks = ",\n".join(f"    {json.dumps(block)}" for block in self.blocks)
        return "{\n" + ",\n".join(lines) + f',\n  "blocks": [\n{blocks}\n  ]\n}}\n'


def certify(lake: Lake, product: str, day: date) -> Certificate:
    """The certificate of the trades of `product` on `day` (UTC) in `lake`.

    Raises ConfigurationError when the lake has no such trade, has one twice, or let the day go on purpose, and when the
    day is not over.
    """
    if datetime.combine(day, datetime.min.time(), UTC) + timedelta(days=1) > datetime.now(UTC):
        raise ConfigurationError(f"{day} is not over: a certificate is about a whole day (UTC).")
    _check_kept(lake, day)
    now = lake.snapshot()
    trades = now.trades(product, day, day + timedelta(days=1), columns=_COLUMNS).arrow()
    if doubled := _doubled(trades):
        raise ConfigurationError(f"{product}: trade {doubled[0]} is there more than once; see `cryptopulse audit`.")
    if not trades.num_rows:
        raise ConfigurationError(f"The lake has no trades of {product} on {day} (UTC).")
    held, absent = (
        list(zip(*(rows.arrow()[name].to_pylist() for name in ("first_trade_id", "last_trade_id")), strict=True))
        for rows in (now.coverage(product), now.absent(product))
    )
    ids = pc.min_max(trades["trade_id"]).as_py()
    first, last = ids["min"], ids["max"]
    known = Intervals([*held, *absent, (first, first), (last, last)])
    # A hole at an edge of the day counts: its trades may have been made on either side of midnight.
    start, end = first, last
    if first - 1 not in known:
        start = 1 + max((b for _, b in known if b < first), default=first - 1)
    if last + 1 not in known:
        end = -1 + min((a for a, _ in known if a > last), default=last + 1)
    blocks = list(_blocks(trades))
    chain = bytes(32)
    for _, _, digest in blocks:
        chain = hashlib.sha256(chain + digest).digest()
    return Certificate(
        product=product,
        venue=venue_of(product) or "coinbase",
        day=day.isoformat(),
        trades=trades.num_rows,
        first_trade_id=first,
        last_trade_id=last,
        missing=list(known.gaps(start, end)),
        absent=[(max(a, start), min(b, end)) for a, b in absent if b >= start and a <= end],
        blocks=[(number * _BLOCK_IDS, count, digest.hex()[:16]) for number, count, digest in blocks],
        chain=chain.hex(),
    )


def verify_lake(certificate: Certificate, lake: Lake) -> list[str]:
    """The differences in `lake`, as one text each; empty when there are none.

    Raises ConfigurationError when the lake let the day go on purpose.
    """
    day = date.fromisoformat(certificate.day)
    _check_kept(lake, day)
    trades = lake.trades(certificate.product, day, day + timedelta(days=1), columns=_COLUMNS).arrow()
    return _differences(certificate, trades)


def verify_parquet(certificate: Certificate, file: Path) -> list[str]:
    """The differences in an export: a Parquet file with trade_id, price, trade_size, side and event_time, as in
    silver.fact_crypto_trades. With a column symbol, only rows of the certificate's product count.

    Raises ConfigurationError for a file that can't be read, lacks a column, or whose prices or sizes are no decimals.
    """
    try:
        names = set(pq.read_schema(file).names)
        if lacking := [name for name in _COLUMNS if name not in names]:
            raise ConfigurationError(f"{file} has no column {lacking[0]}; it needs {', '.join(_COLUMNS)}.")
        trades = pq.read_table(file, columns=[*_COLUMNS, *({"symbol"} & names)])
    except (OSError, pa.ArrowException) as error:
        raise ConfigurationError(f"{file} can't be read as Parquet: {str(error).splitlines()[0]}.") from error
    if not all(pa.types.is_decimal(trades.schema.field(name).type) for name in ("price", "trade_size")):
        raise ConfigurationError(f"{file}: price and trade_size must be decimals, to the last digit.")
    if "symbol" in trades.column_names:
        trades = trades.filter(pc.equal(trades["symbol"], certificate.product))
    day = pc.cast(pc.cast(trades["event_time"], pa.timestamp("us", "UTC")), pa.date32())
    return _differences(certificate, trades.filter(pc.equal(day, date.fromisoformat(certificate.day))))


def read_certificate(file: Path) -> Certificate:
    """The certificate in `file`. Raises ConfigurationError when `file` is not a certificate, or was changed."""
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        told = given.pop("sha256")
        for name in ("missing", "absent", "blocks"):
            given[name] = [tuple(row) for row in given[name]]
        certificate = Certificate(**given)
        date.fromisoformat(certificate.day)
    except OSError as error:
        raise ConfigurationError(f"{file} can't be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(f"{file} is no certificate.") from error
    if certificate.format != _FORMAT:
        raise ConfigurationError(f"{file}: this version can't read the format {certificate.format!r}.")
    if certificate.sha256 != told:
        raise ConfigurationError(f"{file} was changed: its content does not have the sha256 that it names.")
    return certificate


def _check_kept(lake: Lake, day: date) -> None:
    gone = let_go(lake.location, SILVER)
    check_let_go(gone if gone and day < gone.kept_from else None, f"The lake does not keep {day} any more")


def _blocks(trades: pa.Table) -> Iterator[tuple[int, int, bytes]]:
    """(id // 64, number of trades, hash) of each block, in the order of ids."""
    ordered = trades.select(_COLUMNS).sort_by("trade_id")
    times = pc.cast(pc.cast(ordered["event_time"], pa.timestamp("us", "UTC")), pa.int64())
    rows = zip(*(ordered[name].to_pylist() for name in _COLUMNS[:-1]), times.to_pylist(), strict=True)
    for number, group in groupby(rows, key=lambda row: row[0] // _BLOCK_IDS):
        lines = [f"{i},{decimal_text(price)},{decimal_text(size)},{side},{us}\n" for i, price, size, side, us in group]
        yield number, len(lines), hashlib.sha256("".join(lines).encode()).digest()


def _differences(certificate: Certificate, trades: pa.Table) -> list[str]:
    ids, places = np.unique(trades["trade_id"].to_numpy(), return_index=True)
    found = [f"{ids_text(*span)} more than once" for span in Intervals((i, i) for i in _doubled(trades))]
    mine = {number * _BLOCK_IDS: digest.hex()[:16] for number, _, digest in _blocks(trades.take(pa.array(places)))}
    told = {first: (count, digest) for first, count, digest in certificate.blocks}
    gone = Intervals([*certificate.missing, *certificate.absent])
    missing, more = [], []
    for first in sorted({*mine, *told}):
        count, digest = told.get(first, (0, ""))
        if mine.get(first) == digest:
            continue
        last = first + _BLOCK_IDS - 1
        here = {int(i) for i in ids[np.searchsorted(ids, first) : np.searchsorted(ids, last, "right")]}
        bounds = max(first, certificate.first_trade_id), min(last, certificate.last_trade_id)
        there = {i for i in range(bounds[0], bounds[1] + 1) if i not in gone} if count else set()
        if len(there) != count:  # where ids are not in the order of time, some belong to another day
            found.append(f"{ids_text(first, last)}: {count} trades in the certificate, {len(here)} here")
            continue
        if here == there:
            found.append(f"{ids_text(*bounds)}: price, size, side or time of at least one trade is different")
        missing += [(i, i) for i in there - here]
        more += [(i, i) for i in here - there]
    found += [f"{ids_text(*span)} missing" for span in Intervals(missing)]
    return found + [f"{ids_text(*span)} not in the certificate" for span in Intervals(more)]


def _doubled(trades: pa.Table) -> list[int]:
    ids, counts = np.unique(trades["trade_id"].to_numpy(), return_counts=True)
    return [int(trade_id) for trade_id in ids[counts > 1]]
