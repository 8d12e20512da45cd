"""Reads from the tables which ids are held and which are proved absent."""

from __future__ import annotations

import pyarrow as pa
from deltalake import QueryBuilder
from deltalake.exceptions import DeltaError

from cryptopulse.errors import CryptoPulseError, LakeUnreachable
from cryptopulse.healing.reconcile import KnownIds
from cryptopulse.intervals import Intervals
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.storage import is_there, open_table, storage
from cryptopulse.lake.tables import ABSENT, COVERAGE, Table

_COLUMNS = ("symbol", "first_trade_id", "last_trade_id")


def known_ids(lake: LakeLocation) -> KnownIds:
    """Ids held and absent by the newest versions of both tables; a missing table counts as empty.

    Raises ConfigurationError or LakeUnreachable when they can't be read.
    """
    try:
        return KnownIds(_intervals(lake, COVERAGE), _intervals(lake, ABSENT))
    except CryptoPulseError:
        raise
    except (DeltaError, OSError, pa.ArrowException) as error:
        # A table that is being replaced, or damaged; the pipeline's own error says more.
        raise LakeUnreachable(f"The tables of {lake} can't be read: {str(error).splitlines()[0]}") from error


def _intervals(lake: LakeLocation, table: Table) -> dict[str, Intervals]:
    if not is_there(lake, table):
        return {}
    with storage(lake):  # only delta-rs: an Arrow dataset takes 7 MB more, and a third more time
        query = QueryBuilder().register("t", open_table(lake, table))
        rows = pa.table(query.execute(f"SELECT {', '.join(_COLUMNS)} FROM t").read_all())  # noqa: S608 - ours
    found: dict[str, list[tuple[int, int]]] = {}
    for symbol, first, last in zip(*(rows[name].to_pylist() for name in _COLUMNS), strict=True):
        found.setdefault(symbol, []).append((first, last))
    return {symbol: Intervals(intervals) for symbol, intervals in found.items()}
