"""`gold.dm_completeness` against the audit's own counts.

Each hour of a product covers a range of ids, from its first to its last. The ranges of successive hours are adjacent,
so every id is covered once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from cryptopulse.audit.id_set import Bools, IdSet
from cryptopulse.audit.ids import by_product
from cryptopulse.audit.ledger import Account
from cryptopulse.audit.progress import PATIENCE_US, Progress
from cryptopulse.audit.report import AuditCheck, id_range, moment, utc
from cryptopulse.audit.retention import kept_from_us
from cryptopulse.audit.scope import AuditScope
from cryptopulse.audit.snapshot import ABSENT, COMPLETENESS, SILVER, LakeSnapshot
from cryptopulse.audit.windows import HealedCounts
from cryptopulse.text import ids_text

_HOUR_US = 3_600_000_000
_COUNTS = ("expected_ids", "held_ids", "healed_ids", "absent_ids", "missing_ids")
_OTHERS = {
    "is_complete": "called complete though ids are missing",
    "window_end": "no hour long",
    "copies": "there more than once",
}


def check_hours(
    snapshot: LakeSnapshot, scope: AuditScope, progress: Progress, accounts: Sequence[Account], healed: HealedCounts
) -> list[AuditCheck]:
    """Reports hours that are wrong, missing or doubled. `healed`: counts from the trades in silver."""
    if COMPLETENESS not in snapshot.tables:
        return []
    rows = snapshot.rows(
        f"""
        SELECT
            symbol, epoch_us(window_start) AS start_us, epoch_us(window_end) AS end_us, first_trade_id, last_trade_id,
            {", ".join(_COUNTS)}, is_complete, count(*) OVER (PARTITION BY symbol, window_start) AS copies
        FROM dm_completeness
        WHERE {scope.has_product()} AND {scope.has_time("epoch_us(window_start)")}
        QUALIFY row_number() OVER (PARTITION BY symbol, window_start) = 1
        ORDER BY symbol, start_us""",
        {COMPLETENESS: [f for f in snapshot.files(COMPLETENESS) if f.day is None or scope.has_day(f.day)]},
    )
    # Absences that the hours may not include yet.
    young: dict[str, IdSet] = {}
    if ABSENT in snapshot.tables and "load_timestamp" in snapshot.tables[ABSENT].columns:
        absences = snapshot.rows(
            "SELECT symbol, first_trade_id, last_trade_id FROM absent_trade_ids "
            f"WHERE epoch_us(load_timestamp) > {progress.opened_us - PATIENCE_US} ORDER BY symbol",
            {ABSENT: snapshot.files(ABSENT)},
        )
        for symbol, part in by_product(absences):
            young[symbol] = IdSet.of_arrays(part["first_trade_id"].to_numpy(), part["last_trade_id"].to_numpy())
    parts = dict(by_product(rows))
    count = skipped = 0
    for account in accounts:
        part = parts.get(account.symbol, rows.slice(0, 0))
        # The hours may not include late trades yet, nor the holes below those, which count with them.
        late = account.held.late
        gaps = IdSet.of([(account.first, account.last)]) - account.held.all - account.let_go
        is_below = late.touch(gaps.ends + 1, gaps.ends + 1)
        unsure = late | account.on_the_way | IdSet.of_arrays(gaps.starts[is_below], gaps.ends[is_below])
        unsure |= young.get(account.symbol, IdSet.of())
        count += part.num_rows
        skipped += _compare(snapshot, account, part, unsure, healed.get(account.symbol, {}))

        # Ids, up to the last one held, that no hour covers.
        if held := account.held.all.within(account.first, account.last):
            answered = IdSet.of_arrays(part["first_trade_id"].to_numpy(), part["last_trade_id"].to_numpy())
            # What came late for a day that was let go is in no bar of it.
            past = account.held.past | account.let_go
            for first, last in IdSet.of([(account.first, held.last)]) - answered - unsure - account.lost - past:
                text = f"{account.symbol}: {ids_text(first, last)} in no hour of {COMPLETENESS}"
                repair = f"run `{snapshot.repairs.rebuild}`"
                snapshot.report("hour_missing", COMPLETENESS, text, repair, account.symbol, id_range(first, last))
    return [AuditCheck("hours", count, skipped)]


def _compare(snapshot: LakeSnapshot, account: Account, rows: pa.Table, unsure: IdSet, healed: Mapping[int, int]) -> int:
    """Reports the product's hours that are wrong; returns how many could not be judged."""
    if rows.num_rows == 0:
        return 0
    firsts, lasts = rows["first_trade_id"].to_numpy(), rows["last_trade_id"].to_numpy()
    expected = {
        "expected_ids": lasts - firsts + 1,
        "held_ids": (account.held.all | account.let_go).counts_between(firsts, lasts),
        "healed_ids": account.held.rest.counts_between(firsts, lasts),
        "absent_ids": account.absent.counts_between(firsts, lasts),
    }
    expected["missing_ids"] = expected["expected_ids"] - expected["held_ids"] - expected["absent_ids"]
    wrong = {name: rows[name].to_numpy() != expected[name] for name in _COUNTS}
    says = rows["is_complete"].to_numpy(zero_copy_only=False)
    wrong["is_complete"] = says & (expected["missing_ids"] > 0)
    starts = rows["start_us"].to_numpy()
    # `healed_ids` counts trades of the hour, not ids between its first and last; the two differ if ids are not in the
    # order of time. For an hour that the audit has read only in part, the count by ids is compared.
    in_time = np.array([healed.get(start, 0) for start in starts.tolist()])
    wrong["healed_ids"] &= rows["healed_ids"].to_numpy() != in_time
    # Hours of days that silver has let go stay as they were, whatever came later.
    is_past = starts < kept_from_us(snapshot, SILVER)
    wrong["held_ids"] &= ~is_past | (rows["held_ids"].to_numpy() > expected["held_ids"])
    for name in ("healed_ids", "absent_ids", "missing_ids"):
        wrong[name] &= ~is_past
    wrong["window_end"] = rows["end_us"].to_numpy() != starts + _HOUR_US
    wrong["copies"] = rows["copies"].to_numpy() > 1
    is_wrong = np.logical_or.reduce(list(wrong.values()))
    # An hour with trades that silver lost may be right; an hour that is changing now may be right in a moment.
    is_unsure: Bools = (account.lost | unsure).touch(firsts - 1, lasts + 1)
    for place in np.flatnonzero(is_wrong & ~is_unsure).tolist():
        columns = {
            name: {"stored": rows[name][place].as_py(), "expected": int(expected[name][place])}
            for name in _COUNTS
            if wrong[name][place]
        }
        others = [name for name in _OTHERS if wrong[name][place]]
        start = utc(int(starts[place]))
        flaws = [f"{name} {pair['stored']} instead of {pair['expected']}" for name, pair in columns.items()]
        flaws += [_OTHERS[name] for name in others]
        text = f"{account.symbol}: completeness of the hour of {moment(start)}: {', '.join(flaws)}"
        details = {"window_start": start, "columns": columns, "also": others}
        repair = f"run `{snapshot.repairs.rebuild}`"
        snapshot.report("hour_differs", COMPLETENESS, text, repair, account.symbol, details)
    return int((is_wrong & is_unsure).sum())
