"""The ledger: which ids each product should have, and the state of each.

An id between the first and the last is held, proven to be absent at the exchange, on its way from bronze to silver, or
missing. The range comes from ids in silver, ids that `silver.trade_id_coverage` claims, ids in messages of bronze, and
the last id that a heartbeat names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptopulse.audit.id_set import IdSet
from cryptopulse.audit.ids import SilverIds, by_product, times_of
from cryptopulse.audit.messages import ReceivedIds
from cryptopulse.audit.report import (
    INTERVALS_MAX,
    Absence,
    HealedRange,
    LedgerHole,
    ProductLedger,
    id_range,
    moment,
    utc,
)
from cryptopulse.audit.scope import AuditScope
from cryptopulse.audit.snapshot import BRONZE, COVERAGE, SILVER, LakeSnapshot
from cryptopulse.audit.venues import can_be_fetched
from cryptopulse.text import ids_text

_NONE = IdSet.of()


@dataclass
class Account:
    """The evidence about one product's ids within the audited time."""

    symbol: str
    held: SilverIds
    received: ReceivedIds
    claimed: IdSet
    absences: Sequence[Absence]
    let_go: IdSet = _NONE
    """Ids of trades that silver held until retention let them go."""
    first: int = 0
    last: int = -1
    """Ids from `first` to `last` are audited."""
    missing: IdSet = _NONE
    absent: IdSet = _NONE
    on_the_way: IdSet = _NONE
    times: Mapping[tuple[str, int], datetime] = field(default_factory=dict)

    @property
    def lost(self) -> IdSet:
        """Missing ids that silver should have."""
        return self.missing & (self.claimed | self.received.settled)

    @property
    def refused(self) -> IdSet:
        """Missing ids that came only in refused messages."""
        return (self.missing & self.received.any) - self.lost

    def time_of(self, trade_id: int | None) -> datetime | None:
        """Event time (UTC) of a trade; None if `find_times` has not found it."""
        return None if trade_id is None else self.times.get((self.symbol, trade_id))


def claimed_ids(snapshot: LakeSnapshot, scope: AuditScope) -> dict[str, IdSet]:
    """Product → ids that `silver.trade_id_coverage` claims."""
    if COVERAGE not in snapshot.tables:
        return {}
    rows = snapshot.rows(
        "SELECT symbol, first_trade_id, last_trade_id FROM trade_id_coverage "
        f"WHERE {scope.has_product()} ORDER BY symbol",
        {COVERAGE: snapshot.files(COVERAGE)},
    )
    return {
        symbol: IdSet.of_arrays(part["first_trade_id"].to_numpy(), part["last_trade_id"].to_numpy())
        for symbol, part in by_product(rows)
    }


def accounts_of(
    scope: AuditScope,
    held: Mapping[str, SilverIds],
    received: Mapping[str, ReceivedIds],
    claimed: Mapping[str, IdSet],
    absences: Mapping[str, Sequence[Absence]],
    let_go: Mapping[str, IdSet],
) -> list[Account]:
    """An account for each product with any known trade in the audited time."""
    found = []
    for symbol in sorted({*held, *received, *claimed}):
        account = Account(
            symbol,
            held.get(symbol, SilverIds()),
            received.get(symbol, ReceivedIds()),
            claimed.get(symbol, _NONE),
            absences.get(symbol, ()),
            let_go.get(symbol, _NONE),
        )
        known = account.held.all | account.claimed | account.received.settled | account.let_go
        if not known:
            continue
        last = known.last
        if account.received.heartbeat_id is not None and scope.is_open_ended:
            last = max(last, account.received.heartbeat_id)
        audited = _within_time(account.held, known.first, last)
        if not audited:
            continue
        account.first, account.last = audited.first, audited.last
        rest = IdSet.of([(account.first, account.last)]) - account.held.all - account.let_go
        absent = IdSet.of((absence.first_trade_id, absence.last_trade_id) for absence in account.absences)
        # A message with the id in bronze outweighs a page without it: silver must have it.
        account.absent = (rest & absent) - account.claimed - account.received.settled
        rest -= account.absent
        account.on_the_way = (rest & account.received.beyond) - account.claimed - account.received.settled
        account.missing = rest - account.on_the_way
        found.append(account)
    return found


def _within_time(held: SilverIds, first: int, last: int) -> IdSet:
    """The ids from `first` to `last` of trades in the audited time, and the holes that may belong to it.

    Ids are not quite in the order of time. So a hole is left out only if the trades on both sides of it are before the
    audited time, or both after it.
    """
    inside = held.all - held.earlier - held.later
    holes = IdSet.of([(first, last)]) - held.all
    below, above = holes.starts - 1, holes.ends + 1
    is_lowest, is_highest = below < first, above > last
    is_earlier = (held.earlier.touch(below, below) | is_lowest) & held.earlier.touch(above, above)
    is_later = held.later.touch(below, below) & (held.later.touch(above, above) | is_highest)
    belongs = ~(is_earlier | is_later)
    return inside | IdSet.of_arrays(holes.starts[belongs], holes.ends[belongs])


def find_times(snapshot: LakeSnapshot, accounts: Sequence[Account]) -> None:
    """Reads the event times of the trades beside holes and at the ends of healed ranges."""
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


def ledger_of(account: Account) -> ProductLedger:
    """The product's line of the ledger, with its intervals."""
    beat = account.received.heartbeat_id
    ids = account.held.all.within(account.first, account.last)
    healed = _healed(account)
    inside = [a for a in account.absences if a.last_trade_id >= account.first and a.first_trade_id <= account.last]
    ledger = ProductLedger(
        symbol=account.symbol,
        first_trade_id=account.first,
        last_trade_id=account.last,
        held_ids=ids.count,
        healed_ids=healed.count,
        absent_ids=account.absent.count,
        missing_ids=account.missing.count,
        let_go_ids=(account.let_go - account.held.all).within(account.first, account.last).count,
        on_their_way_ids=account.on_the_way.count,
        witness="heartbeat" if beat is not None and beat >= account.last else "trade",
        heartbeat_trade_id=beat,
        heartbeat_time=None if beat is None else utc(account.received.heartbeat_us),
        holes=[
            LedgerHole(first, last, _witness(account, last), *_around(account, first, last))
            for first, last in list(account.missing)[:INTERVALS_MAX]
        ],
        healed=[
            HealedRange(first, last, account.time_of(first), account.time_of(last))
            for first, last in list(healed)[:INTERVALS_MAX]
        ],
        absent=inside[:INTERVALS_MAX],
    )
    counts = {"holes": len(account.missing), "healed": len(healed), "absent": len(inside)}
    ledger.left_out = {name: n - INTERVALS_MAX for name, n in counts.items() if n > INTERVALS_MAX}
    return ledger


def report_ids(snapshot: LakeSnapshot, account: Account, refused: IdSet) -> None:
    """Reports each range of missing ids, each on which silver and its coverage differ, and ids without a message.

    `refused`: missing ids whose messages are in quarantine, which are reported elsewhere.
    """
    symbol, claimed, repairs = account.symbol, account.claimed, snapshot.repairs
    in_bronze = account.missing & (account.received.settled | (account.received.any & claimed))
    in_coverage = (account.missing - in_bronze) & claimed
    for ids, source, evidence in (
        (in_bronze, BRONZE, "holds their messages"),
        (in_coverage, COVERAGE, "claims them"),
    ):
        for first, last in ids:
            after, before = _around(account, first, last)
            where = f"missing in {SILVER}, {_between(after, before)}"
            text = f"{symbol}: {ids_text(first, last)} {where}, though {source} {evidence}"
            repair = f"run `{repairs.rebuild}`"
            if source == COVERAGE and can_be_fetched(symbol) and (after or before):
                backfill = repairs.backfill(symbol, after, before)
                repair = f"run `{repairs.rebuild}`, then `{backfill}`: no message of them is in {BRONZE}"
            details = id_range(first, last) | {"after_time": after, "before_time": before, "told_by": source}
            snapshot.report("ids_lost", SILVER, text, repair, symbol, details)

    for first, last in account.missing - in_bronze - in_coverage - refused:
        after, before = _around(account, first, last)
        witness = _witness(account, last)
        shown = "the exchange's heartbeat names them" if witness == "heartbeat" else "a later trade shows it"
        text = f"{symbol}: {ids_text(first, last)} never received, {_between(after, before)}; {shown}"
        repair = f"run `{repairs.rebuild}`, and audit again"  # silver holds nothing of the product
        if not can_be_fetched(symbol):
            repair = "replay or import a recording that has them: this venue is not asked for missing trades"
        elif after or before:
            repair = f"run `{repairs.backfill(symbol, after, before)}`; a producer that runs does it by itself"
        if account.let_go and first < account.let_go.last:
            repair = "start the producer, which fetches it: its day was let go, so that only its ids are known"
        details = id_range(first, last) | {"after_time": after, "before_time": before, "witness": witness}
        snapshot.report("hole", SILVER, text, repair, symbol, details)

    held = account.held.all.within(account.first, account.last)
    if COVERAGE in snapshot.tables:
        for ids, where in ((held - account.held.late, f"in {SILVER}"), (account.let_go - held, f"let go by {SILVER}")):
            for first, last in ids - claimed:
                text = f"{symbol}: {ids_text(first, last)} {where} but not in {COVERAGE}"
                repair = f"run `{repairs.rebuild}`"
                snapshot.report("ids_unclaimed", COVERAGE, text, repair, symbol, id_range(first, last))
    if BRONZE in snapshot.tables and snapshot.tables[BRONZE].is_whole:
        for first, last in held - account.received.any - account.held.unproven:
            text = f"{symbol}: {ids_text(first, last)} in {SILVER}, but in no message of {BRONZE}"
            repair = repairs.table(BRONZE, snapshot.tables[BRONZE].place)
            snapshot.report("message_missing", BRONZE, text, repair, symbol, id_range(first, last))


def report_waiting(
    snapshot: LakeSnapshot,
    held: Mapping[str, SilverIds],
    received: Mapping[str, ReceivedIds],
    claimed: Mapping[str, IdSet],
) -> None:
    """Reports trades in bronze that silver should have consumed some time ago."""
    waiting = {
        symbol: (product.waiting - held.get(symbol, SilverIds()).all - claimed.get(symbol, _NONE)).count
        for symbol, product in sorted(received.items())
    }
    if count := sum(waiting.values()):
        names = ", ".join(symbol for symbol, ids in waiting.items() if ids)
        text = f"{SILVER} is behind: {count:,} trades of {BRONZE} are not in it yet ({names})"
        details = {"rows": count, "upstream": BRONZE}
        snapshot.report("behind", SILVER, text, f"run `{snapshot.repairs.process}`", details=details)


def _healed(account: Account) -> IdSet:
    return account.held.rest.within(account.first, account.last)


def _around(account: Account, first: int, last: int) -> tuple[datetime | None, datetime | None]:
    """Times (UTC) of the nearest trades held before and after."""
    held = account.held.all
    return account.time_of(held.before(first)), account.time_of(held.after(last))


def _witness(account: Account, last: int) -> str:
    if account.held.all.after(last) is not None:
        return "trade"
    return "heartbeat" if (account.received.heartbeat_id or -1) >= last else "table"


def _between(after: datetime | None, before: datetime | None) -> str:
    if after is None and before is None:
        return "all there are"
    if before is None:
        return f"after {moment(after)}"
    return f"before {moment(before)}" if after is None else f"between {moment(after)} and {moment(before)}"
