"""The ledger: by product what there should be, and what became of each id.

An id between the first and the last is held, proven to be absent at the exchange, on its way from bronze to silver, or
missing. Something is known of an id when silver holds it, when `silver.trade_id_coverage` claims it, when a message in
bronze carries it, or when a heartbeat names it as the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptopulse.completeness.audit.absence import absent_ids
from cryptopulse.completeness.audit.ids import Held, by_product, times_of
from cryptopulse.completeness.audit.intervals import Intervals
from cryptopulse.completeness.audit.messages import Received
from cryptopulse.completeness.audit.report import (
    INTERVALS_MAX,
    Absence,
    Finding,
    Healed,
    Hole,
    Ledger,
    moment,
    span,
    utc,
)
from cryptopulse.completeness.audit.scope import Scope
from cryptopulse.completeness.audit.snapshot import BRONZE, COVERAGE, SILVER, Snapshot

_NONE = Intervals.of()


@dataclass
class Account:
    """All that is known of one product's ids within the audited time."""

    symbol: str
    held: Held
    received: Received
    claimed: Intervals
    absences: Sequence[Absence]
    first: int = 0
    last: int = -1
    """Ids from `first` to `last` are audited."""
    missing: Intervals = _NONE
    absent: Intervals = _NONE
    on_the_way: Intervals = _NONE
    times: Mapping[tuple[str, int], datetime] = field(default_factory=dict)

    @property
    def lost(self) -> Intervals:
        """Missing ids that silver must have had."""
        return self.missing & (self.claimed | self.received.settled)

    def time_of(self, trade_id: int | None) -> datetime | None:
        """When the trade was made, if it was looked up."""
        return None if trade_id is None else self.times.get((self.symbol, trade_id))


def claimed_ids(snapshot: Snapshot, scope: Scope) -> dict[str, Intervals]:
    """By product the ids that `silver.trade_id_coverage` claims."""
    if COVERAGE not in snapshot.tables:
        return {}
    rows = snapshot.rows(
        "SELECT symbol, first_trade_id, last_trade_id FROM trade_id_coverage "
        f"WHERE {scope.has_product()} ORDER BY symbol",
        {COVERAGE: snapshot.files(COVERAGE)},
    )
    return {
        symbol: Intervals.of_arrays(part["first_trade_id"].to_numpy(), part["last_trade_id"].to_numpy())
        for symbol, part in by_product(rows)
    }


def accounts_of(
    scope: Scope,
    held: Mapping[str, Held],
    received: Mapping[str, Received],
    claimed: Mapping[str, Intervals],
    absences: Mapping[str, Sequence[Absence]],
) -> list[Account]:
    """An account for each product of which any trade is known in the audited time."""
    found = []
    for symbol in sorted({*held, *received, *claimed}):
        account = Account(
            symbol,
            held.get(symbol, Held()),
            received.get(symbol, Received()),
            claimed.get(symbol, _NONE),
            absences.get(symbol, ()),
        )
        if _bound(account, scope):
            _settle(account)
            found.append(account)
    return found


def look_up_times(snapshot: Snapshot, accounts: Sequence[Account]) -> None:
    """Looks up when the trades beside holes, and at the ends of what was healed, were made."""
    wanted: dict[str, set[int]] = {}
    for account in accounts:
        held, ids = account.held.all, set()
        for first, last in list(account.missing)[:INTERVALS_MAX]:
            ids |= {held.before(first), held.after(last)}
        for first, last in list(_healed(account))[:INTERVALS_MAX]:
            ids |= {first, last}
        if known := {one for one in ids if one is not None}:
            wanted[account.symbol] = known
    times = times_of(snapshot, {account.symbol: account.held for account in accounts}, wanted)
    for account in accounts:
        account.times = times


def ledger_of(account: Account) -> Ledger:
    """The product's line of the ledger, with its intervals."""
    beat = account.received.heartbeat_id
    ids = account.held.all.within(account.first, account.last)
    healed = _healed(account)
    inside = [a for a in account.absences if a.last_trade_id >= account.first and a.first_trade_id <= account.last]
    ledger = Ledger(
        symbol=account.symbol,
        first_trade_id=account.first,
        last_trade_id=account.last,
        held_ids=ids.count,
        healed_ids=healed.count,
        absent_ids=account.absent.count,
        missing_ids=account.missing.count,
        on_their_way_ids=account.on_the_way.count,
        witness="heartbeat" if beat is not None and beat >= account.last else "trade",
        heartbeat_trade_id=beat,
        heartbeat_time=None if beat is None else utc(account.received.heartbeat_us),
        holes=[_hole(account, *hole) for hole in list(account.missing)[:INTERVALS_MAX]],
        healed=[_healed_stretch(account, *stretch) for stretch in list(healed)[:INTERVALS_MAX]],
        absent=inside[:INTERVALS_MAX],
    )
    counts = {"holes": len(account.missing), "healed": len(healed), "absent": len(inside)}
    ledger.left_out = {name: n - INTERVALS_MAX for name, n in counts.items() if n > INTERVALS_MAX}
    return ledger


def tell_ids(snapshot: Snapshot, account: Account) -> None:
    """A finding for each stretch of ids that is missing, and for each on which silver and its coverage differ."""
    claimed = account.claimed
    in_bronze = account.missing & (account.received.settled | (account.received.any & claimed))
    in_coverage = (account.missing - in_bronze) & claimed
    for ids, told_by in ((in_bronze, BRONZE), (in_coverage, COVERAGE)):
        for first, last in ids:
            _tell_lost(snapshot, account, first, last, told_by)
    for first, last in account.missing - in_bronze - in_coverage:
        _tell_hole(snapshot, account, first, last)
    if COVERAGE in snapshot.tables:
        unclaimed = account.held.all.within(account.first, account.last) - account.held.late - claimed
        for first, last in unclaimed:
            text = f"{account.symbol}: {span(first, last)} in {SILVER} but not in {COVERAGE}"
            repair = f"run `{snapshot.repairs.rebuild}`"
            snapshot.findings.add(
                Finding("ids_unclaimed", COVERAGE, text, repair, account.symbol, _interval(first, last))
            )
    if BRONZE in snapshot.tables and snapshot.tables[BRONZE].is_whole:
        for first, last in account.held.all.within(account.first, account.last) - account.received.any:
            text = f"{account.symbol}: {span(first, last)} in {SILVER}, but in no message of {BRONZE}"
            repair = snapshot.repairs.table(BRONZE, snapshot.tables[BRONZE].place)
            snapshot.findings.add(
                Finding("message_missing", BRONZE, text, repair, account.symbol, _interval(first, last))
            )


def tell_waiting(
    snapshot: Snapshot,
    held: Mapping[str, Held],
    received: Mapping[str, Received],
    claimed: Mapping[str, Intervals],
) -> None:
    """A finding when bronze holds trades that silver should have taken in for some time."""
    waiting = {
        symbol: (product.waiting - held.get(symbol, Held()).all - claimed.get(symbol, _NONE)).count
        for symbol, product in sorted(received.items())
    }
    if count := sum(waiting.values()):
        names = ", ".join(symbol for symbol, ids in waiting.items() if ids)
        text = f"{SILVER} is behind: {count:,} trades of {BRONZE} are not in it yet ({names})"
        details = {"rows": count, "upstream": BRONZE}
        snapshot.findings.add(Finding("behind", SILVER, text, f"run `{snapshot.repairs.process}`", details=details))


def _bound(account: Account, scope: Scope) -> bool:
    """Sets which ids are audited; false when there are none."""
    known = account.held.all | account.claimed | account.received.settled
    if not known:
        return False
    account.first, account.last = known.first, known.last
    if account.received.heartbeat_id is not None and scope.is_open_ended:
        account.last = max(account.last, account.received.heartbeat_id)
    # A hole at an edge of the audited time belongs to it: its trades may have been made on either side.
    if account.held.before is not None:
        account.first = max(account.first, account.held.before + 1)
    if account.held.after is not None:
        account.last = min(account.last, account.held.after - 1)
    return account.first <= account.last


def _settle(account: Account) -> None:
    """Sorts the ids into held, absent, on their way and missing."""
    whole = Intervals.of([(account.first, account.last)])
    rest = whole - account.held.all
    account.absent = rest & absent_ids(account.absences)
    rest -= account.absent
    account.on_the_way = (rest & account.received.beyond) - account.claimed - account.received.settled
    account.missing = rest - account.on_the_way


def _healed(account: Account) -> Intervals:
    return account.held.rest.within(account.first, account.last)


def _hole(account: Account, first: int, last: int) -> Hole:
    held = account.held.all
    before, after = held.before(first), held.after(last)
    return Hole(first, last, _witness(account, last), account.time_of(before), account.time_of(after))


def _witness(account: Account, last: int) -> str:
    if account.held.all.after(last) is not None:
        return "trade"
    return "heartbeat" if (account.received.heartbeat_id or -1) >= last else "table"


def _healed_stretch(account: Account, first: int, last: int) -> Healed:
    return Healed(first, last, account.time_of(first), account.time_of(last))


def _interval(first: int, last: int) -> dict[str, object]:
    return {"first_trade_id": first, "last_trade_id": last, "ids": last - first + 1}


def _around(account: Account, first: int, last: int) -> tuple[datetime | None, datetime | None]:
    """Times of the nearest trades held before and after."""
    hole = _hole(account, first, last)
    return hole.after_time, hole.before_time


def _between(after: datetime | None, before: datetime | None) -> str:
    if after is None and before is None:
        return "all there are"
    if before is None:
        return f"after {moment(after)}"
    return f"before {moment(before)}" if after is None else f"between {moment(after)} and {moment(before)}"


def _tell_lost(snapshot: Snapshot, account: Account, first: int, last: int, told_by: str) -> None:
    after, before = _around(account, first, last)
    says = "holds their messages" if told_by == BRONZE else "claims them"
    text = (
        f"{account.symbol}: {span(first, last)} missing in {SILVER}, {_between(after, before)}, though {told_by} {says}"
    )
    repair = f"run `{snapshot.repairs.rebuild}`"
    if told_by == COVERAGE and (after or before):
        backfill = snapshot.repairs.backfill(account.symbol, after, before)
        repair = f"run `{snapshot.repairs.rebuild}`, then `{backfill}`: no message of them is in {BRONZE}"
    times = {"after_time": after, "before_time": before, "told_by": told_by}
    details = _interval(first, last) | times
    snapshot.findings.add(Finding("ids_lost", SILVER, text, repair, account.symbol, details))


def _tell_hole(snapshot: Snapshot, account: Account, first: int, last: int) -> None:
    after, before = _around(account, first, last)
    witness = _witness(account, last)
    shown = "the exchange's heartbeat names them" if witness == "heartbeat" else "a later trade shows it"
    text = f"{account.symbol}: {span(first, last)} never received, {_between(after, before)}; {shown}"
    backfill = snapshot.repairs.backfill(account.symbol, after, before)
    repair = f"run `{backfill}`; a producer that runs does it by itself"
    details = _interval(first, last) | {"after_time": after, "before_time": before, "witness": witness}
    snapshot.findings.add(Finding("hole", SILVER, text, repair, account.symbol, details))
