"""`gold.dm_completeness` against the audit's own counts.

An hour of a product answers for the ids from its first to its last; the hours follow on from each other, so that every
id is answered for once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from cryptopulse.completeness.audit.files import DataFile
from cryptopulse.completeness.audit.ids import by_product
from cryptopulse.completeness.audit.intervals import Bools, Intervals, Ints
from cryptopulse.completeness.audit.ledger import Account
from cryptopulse.completeness.audit.progress import PATIENCE_US, Progress
from cryptopulse.completeness.audit.report import Check, Finding, moment, span, utc
from cryptopulse.completeness.audit.scope import Scope
from cryptopulse.completeness.audit.snapshot import ABSENT, COMPLETENESS, Snapshot
from cryptopulse.completeness.audit.windows import Healed

_HOUR_US = 3_600_000_000
_COUNTS = ("expected_ids", "held_ids", "healed_ids", "absent_ids", "missing_ids")


def check_hours(
    snapshot: Snapshot, scope: Scope, progress: Progress, accounts: Sequence[Account], healed: Healed
) -> list[Check]:
    """Tells of hours that are wrong, missing or doubled. `healed`: of the trades in silver."""
    if COMPLETENESS not in snapshot.tables:
        return []
    rows = snapshot.rows(_hours_sql(scope), {COMPLETENESS: _files(snapshot, scope)})
    young = _young_absences(snapshot, progress)
    parts = dict(by_product(rows))
    count = skipped = 0
    for account in accounts:
        part = parts.get(account.symbol, rows.slice(0, 0))
        unsure = _on_the_way(account) | young.get(account.symbol, Intervals.of())
        count += part.num_rows
        skipped += _compare(snapshot, account, part, unsure, healed.get(account.symbol, {}))
        _tell_unanswered(snapshot, account, part, unsure)
    return [Check("hours", count, skipped)]


def _on_the_way(account: Account) -> Intervals:
    """Ids that the hours may not have taken in yet: late trades, and the holes below them, which count with them."""
    late = account.held.late
    gaps = Intervals.of([(account.first, account.last)]) - account.held.all
    is_below = late.touch(gaps.ends + 1, gaps.ends + 1)
    return late | account.on_the_way | Intervals.of_arrays(gaps.starts[is_below], gaps.ends[is_below])


def _hours_sql(scope: Scope) -> str:
    counts = ", ".join(_COUNTS)
    return f"""
        SELECT
            symbol, epoch_us(window_start) AS start_us, epoch_us(window_end) AS end_us, first_trade_id, last_trade_id,
            {counts}, is_complete, count(*) OVER (PARTITION BY symbol, window_start) AS copies
        FROM dm_completeness
        WHERE {scope.has_product()} AND {scope.has_time("epoch_us(window_start)")}
        QUALIFY row_number() OVER (PARTITION BY symbol, window_start) = 1
        ORDER BY symbol, start_us"""


def _files(snapshot: Snapshot, scope: Scope) -> list[DataFile]:
    return [file for file in snapshot.files(COMPLETENESS) if file.day is None or scope.has_day(file.day)]


def _young_absences(snapshot: Snapshot, progress: Progress) -> dict[str, Intervals]:
    """By product the absences that the hours may not have taken in yet."""
    if ABSENT not in snapshot.tables or "load_timestamp" not in snapshot.tables[ABSENT].columns:
        return {}
    rows = snapshot.rows(
        "SELECT symbol, first_trade_id, last_trade_id FROM absent_trade_ids "
        f"WHERE epoch_us(load_timestamp) > {progress.opened_us - PATIENCE_US} ORDER BY symbol",
        {ABSENT: snapshot.files(ABSENT)},
    )
    return {
        symbol: Intervals.of_arrays(part["first_trade_id"].to_numpy(), part["last_trade_id"].to_numpy())
        for symbol, part in by_product(rows)
    }


def _compare(snapshot: Snapshot, account: Account, rows: pa.Table, unsure: Intervals, healed: Mapping[int, int]) -> int:
    """Tells of the product's hours that are wrong; returns how many could not be judged."""
    if rows.num_rows == 0:
        return 0
    firsts, lasts = rows["first_trade_id"].to_numpy(), rows["last_trade_id"].to_numpy()
    expected = _expected(account, firsts, lasts)
    wrong = {name: rows[name].to_numpy() != expected[name] for name in _COUNTS}
    says = rows["is_complete"].to_numpy(zero_copy_only=False)
    wrong["is_complete"] = says & (expected["missing_ids"] > 0)
    starts = rows["start_us"].to_numpy()
    # Healed are trades of the hour, not ids between its first and last: where ids are not in the order of time, those
    # are others. Of an hour of which the audit was to read only a part the ids are what can be compared.
    in_time = np.array([healed.get(start, 0) for start in starts.tolist()])
    wrong["healed_ids"] &= rows["healed_ids"].to_numpy() != in_time
    wrong["window_end"] = rows["end_us"].to_numpy() != starts + _HOUR_US
    wrong["copies"] = rows["copies"].to_numpy() > 1
    is_wrong = np.logical_or.reduce(list(wrong.values()))
    # What rests on trades that silver lost may be right; what changes now may be right in a moment.
    is_unsure: Bools = (account.lost | unsure).touch(firsts - 1, lasts + 1)
    for place in np.flatnonzero(is_wrong & ~is_unsure).tolist():
        columns = {
            name: {"stored": rows[name][place].as_py(), "expected": int(expected[name][place])}
            for name in _COUNTS
            if wrong[name][place]
        }
        others = [name for name in ("is_complete", "window_end", "copies") if wrong[name][place]]
        _tell(snapshot, account.symbol, int(starts[place]), columns, others)
    return int((is_wrong & is_unsure).sum())


def _expected(account: Account, firsts: Ints, lasts: Ints) -> dict[str, Ints]:
    expected = lasts - firsts + 1
    held = account.held.all.counts_between(firsts, lasts)
    absent = account.absent.counts_between(firsts, lasts)
    healed = account.held.rest.counts_between(firsts, lasts)
    return {
        "expected_ids": expected,
        "held_ids": held,
        "healed_ids": healed,
        "absent_ids": absent,
        "missing_ids": expected - held - absent,
    }


def _tell(
    snapshot: Snapshot, symbol: str, start_us: int, columns: Mapping[str, Mapping[str, int]], others: Sequence[str]
) -> None:
    start = utc(start_us)
    said = [f"{name} {pair['stored']} instead of {pair['expected']}" for name, pair in columns.items()]
    words = {
        "is_complete": "called complete though ids are missing",
        "window_end": "no hour long",
        "copies": "there more than once",
    }
    said += [words[name] for name in others]
    text = f"{symbol}: completeness of the hour of {moment(start)}: {', '.join(said)}"
    details = {"window_start": start, "columns": columns, "also": list(others)}
    repair = f"run `{snapshot.repairs.rebuild}`"
    snapshot.findings.add(Finding("hour_differs", COMPLETENESS, text, repair, symbol, details))


def _tell_unanswered(snapshot: Snapshot, account: Account, rows: pa.Table, unsure: Intervals) -> None:
    """A finding for each stretch of ids, up to the last one held, that no hour answers for."""
    held = account.held.all.within(account.first, account.last)
    if not held:
        return
    answered = Intervals.of_arrays(rows["first_trade_id"].to_numpy(), rows["last_trade_id"].to_numpy())
    open_ids = Intervals.of([(account.first, held.last)]) - answered - unsure - account.lost
    for first, last in open_ids:
        text = f"{account.symbol}: {span(first, last)} in no hour of {COMPLETENESS}"
        details = {"first_trade_id": first, "last_trade_id": last, "ids": last - first + 1}
        repair = f"run `{snapshot.repairs.rebuild}`"
        snapshot.findings.add(Finding("hour_missing", COMPLETENESS, text, repair, account.symbol, details))
