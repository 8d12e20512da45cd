"""Trades that were received and refused: their messages are in quarantine, and fetching them again does not help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from cryptopulse.audit.id_set import IdSet
from cryptopulse.audit.ids import by_product
from cryptopulse.audit.ledger import Account
from cryptopulse.audit.messages import CONFLICT, NONE_KEPT, TradeReader
from cryptopulse.audit.progress import Progress
from cryptopulse.audit.report import id_range
from cryptopulse.audit.scope import AuditScope
from cryptopulse.audit.snapshot import QUARANTINE, SILVER, LakeSnapshot
from cryptopulse.lake.products import is_symbol
from cryptopulse.text import ids_text

_COLUMNS = ["body", "partition", "offset", "partition_key", "source", "received_time", "load_timestamp", "reason"]
_TWICE = "a member is there twice"  # perhaps the product or the id
_REASONS_MAX = 3
_ROWS_MAX = 500_000  # rows that wait to be merged, some 60 MB
_FOUND = pa.schema(
    [
        ("symbol", pa.string()), ("trade_id", pa.int64()), ("partition", pa.int32()), ("offset", pa.int64()),
        ("reason", pa.string()), ("is_inside", pa.bool_()),
    ]
)  # fmt: skip
_NONE = IdSet.of()


@dataclass
class RefusedTrades:
    """The quarantined messages and their trades, without conflicts."""

    messages: int = 0
    """How many messages were received within the audited time."""
    first: tuple[int, int, str] | None = None
    """Partition, offset and reason of one of them."""
    trades: Mapping[str, pa.Table] = field(default_factory=dict)
    """Product → trades with a readable id, sorted by id: trade_id, partition, offset and reason of the first message,
    is_inside (received within the audited time, and its product and id are unambiguous)."""

    def ids(self, symbol: str) -> IdSet:
        """The ids of a product."""
        return _ids(self.trades[symbol]) if symbol in self.trades else _NONE

    def ids_inside(self, symbol: str) -> IdSet:
        """The ids of a product that are `is_inside`."""
        return _ids(self.trades[symbol].filter(self.trades[symbol]["is_inside"]))


def refused(snapshot: LakeSnapshot, scope: AuditScope, progress: Progress) -> RefusedTrades:
    """Reads the quarantine, some megabytes at a time."""
    found = RefusedTrades()
    if QUARANTINE not in snapshot.tables or not set(_COLUMNS) <= snapshot.tables[QUARANTINE].columns:
        return found
    reader = TradeReader(
        snapshot,
        progress,
        NONE_KEPT,
        lambda trades: (
            f"""
            SELECT t.symbol, t.trade_id, t.p AS "partition", t.o AS "offset", r.reason,
                {scope.has_time("t.received_us")} AND r.reason IS DISTINCT FROM '{_TWICE}' AS is_inside
            FROM ({trades}) AS t LEFT JOIN reasons AS r ON r."partition" = t.p AND r."offset" = t.o
            WHERE t.symbol IS NULL OR ({scope.has_product("t.symbol")} AND t.trade_id > 0)"""
        ),
    )
    waiting: list[pa.Table] = []
    for file in snapshot.files(QUARANTINE):
        for batch in snapshot.batches(QUARANTINE, file, _COLUMNS) if file.is_sound else ():
            messages = snapshot.rows(
                "SELECT * EXCLUDE (load_timestamp), load_timestamp AS bronze_ingestion_time, "
                f"{scope.has_time('epoch_us(received_time)')} AS is_inside "
                f"FROM kept_bodies WHERE reason IS DISTINCT FROM '{CONFLICT}'",
                beside={"kept_bodies": batch},
            )
            inside = messages.filter(messages["is_inside"])
            found.messages += inside.num_rows
            for row in inside.slice(0, 1).to_pylist():
                place = (row["partition"], row["offset"], row["reason"])
                found.first = min(found.first or place, place)
            reasons = messages.select(["partition", "offset", "reason"])
            waiting += reader.read(messages.drop_columns(["reason", "is_inside"]), {"reasons": reasons})
            if sum(part.num_rows for part in waiting) > _ROWS_MAX:
                waiting = [_firsts(snapshot, waiting)]
    trades = by_product(_firsts(snapshot, waiting))
    found.trades = {symbol: rows for symbol, rows in trades if is_symbol(symbol)}
    return found


def report_refused(snapshot: LakeSnapshot, accounts: Sequence[Account], found: RefusedTrades) -> int:
    """Reports each range of ids that is missing because its messages were refused: within a product's ledger, or of a
    product without a ledger. Also reports if there are only refused messages. Returns how many refused ids are outside
    the ids that the ledger counts.
    """
    repair = (
        "look at the message: one that says the same is refused again. When a later version accepts it, run "
        f"`{snapshot.repairs.rebuild}`"
    )
    known = {account.symbol: account for account in accounts}
    outside = 0
    for symbol, trades in found.trades.items():
        ids = found.ids_inside(symbol)
        if account := known.get(symbol):
            ids = account.refused & found.ids(symbol)
            received = account.received
            outside += (found.ids_inside(symbol) - account.held.all - received.settled - received.beyond - ids).count
        else:
            outside += ids.count
        for first, last in ids:
            start, end = np.searchsorted(trades["trade_id"].to_numpy(), [first, last + 1])
            rows = trades.slice(start, end - start)
            row = rows.slice(0, 1).to_pylist()[0]
            reasons = rows["reason"].unique().to_pylist()
            more = "" if len(reasons) <= _REASONS_MAX else f"; {len(reasons) - _REASONS_MAX} more reasons"
            text = (
                f"{symbol}: {ids_text(first, last)} received and refused, see {QUARANTINE} at partition "
                f"{row['partition']}, offset {row['offset']}: {'; '.join(map(str, reasons[:_REASONS_MAX]))}{more}"
            )
            details = {"partition": row["partition"], "offset": row["offset"], "reasons": reasons}
            snapshot.report("ids_refused", SILVER, text, repair, symbol, id_range(first, last) | details)
    if found.first and not accounts and not any(map(found.ids_inside, found.trades)):
        partition, offset, reason = found.first
        text = (
            f"{SILVER}: none of the {found.messages:,} messages that could be trades was accepted, see {QUARANTINE} at "
            f"partition {partition}, offset {offset}: {reason}"
        )
        details = {"messages": found.messages, "partition": partition, "offset": offset, "reason": reason}
        snapshot.report("messages_refused", SILVER, text, repair, details=details)
    return outside


def _ids(rows: pa.Table) -> IdSet:
    ids = rows["trade_id"].to_numpy()
    return IdSet.of_arrays(ids, ids)


def _firsts(snapshot: LakeSnapshot, parts: Sequence[pa.Table]) -> pa.Table:
    """Each trade once, sorted by product and id, with its first message."""
    rows = pa.concat_tables([part.cast(_FOUND) for part in parts]) if parts else _FOUND.empty_table()
    return snapshot.rows(
        "SELECT DISTINCT ON (symbol, trade_id) * FROM refused "
        'ORDER BY symbol, trade_id, is_inside DESC, "partition", "offset"',
        beside={"refused": rows},
    ).cast(_FOUND)
