"""The audit itself: everything once, in the order in which one result needs another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptopulse.completeness.audit.absence import Proofs
from cryptopulse.completeness.audit.candles import Exchange, check_candles
from cryptopulse.completeness.audit.hours import check_hours
from cryptopulse.completeness.audit.ids import held_ids
from cryptopulse.completeness.audit.ledger import (
    Account,
    accounts_of,
    claimed_ids,
    ledger_of,
    look_up_times,
    tell_ids,
    tell_waiting,
)
from cryptopulse.completeness.audit.messages import Messages, received, refused_meanwhile
from cryptopulse.completeness.audit.offsets import check_offsets
from cryptopulse.completeness.audit.progress import Progress, progress_of
from cryptopulse.completeness.audit.report import Check, Repairs, Report, utc
from cryptopulse.completeness.audit.scope import Scope
from cryptopulse.completeness.audit.snapshot import ALERTS, QUARANTINE, Snapshot
from cryptopulse.completeness.audit.windows import check_windows
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.location import LakeLocation

Progressed = Callable[[int, int], None]
"""Is told how many days are compared, of how many; and then the same of requests for candles."""


@dataclass(frozen=True)
class Resources:
    """What an audit may use."""

    memory_max_mb: int = 1024
    """Memory of its database before that spills to disk."""
    threads: int = 2
    exchange: Exchange | None = None
    """Where to ask for candles; None: they are not compared."""


def audit(
    lake: LakeLocation,
    scope: Scope,
    resources: Resources,
    repairs: Repairs,
    progressed: Progressed = lambda _done, _all: None,
) -> Report:
    """Checks `lake` from outside and says what is missing, what does not agree, and how to repair it.

    Reads only. A pipeline may work on the lake meanwhile. Raises ConfigurationError when there is no lake or a named
    product is not in it, LakeUnreachable when its storage does not answer.
    """
    with Snapshot(lake, resources.memory_max_mb, resources.threads, repairs) as snapshot:
        accounts, checks = _check_all(snapshot, scope, resources, progressed)
        return Report(
            lake=str(lake),
            audited_at=utc(snapshot.opened_us),
            from_time=None if scope.from_us is None else utc(scope.from_us),
            to_time=None if scope.to_us is None else utc(scope.to_us),
            ledgers=[ledger_of(account) for account in accounts],
            checks=checks,
            findings=snapshot.findings,
            tables={
                name: {"version": table.version, "files": len(table.files), "rows": table.rows}
                for name, table in snapshot.tables.items()
            },
        )


def _check_all(
    snapshot: Snapshot, scope: Scope, resources: Resources, progressed: Progressed
) -> tuple[list[Account], list[Check]]:
    progress = progress_of(snapshot)
    accounts, messages = _accounts(snapshot, scope, progress)
    look_up_times(snapshot, accounts)
    for account in accounts:
        tell_ids(snapshot, account)
    for name in (ALERTS, QUARANTINE):  # the others are read anyway
        snapshot.read_all(name)
    windows, healed = check_windows(snapshot, scope, progress, accounts, progressed)
    checks = [
        Check("files", sum(len(table.files) for table in snapshot.tables.values())),
        Check("ids", sum(account.last - account.first + 1 for account in accounts)),
        Check("messages", messages.count),
        Check("offsets", check_offsets(snapshot, scope)),
        *windows,
        *check_hours(snapshot, scope, progress, accounts, healed),
    ]
    if resources.exchange is not None:
        checks += check_candles(snapshot, scope, resources.exchange, progressed)
    return accounts, checks


def _accounts(snapshot: Snapshot, scope: Scope, progress: Progress) -> tuple[list[Account], Messages]:
    held = held_ids(snapshot, scope, progress.settled_us)
    claimed = claimed_ids(snapshot, scope)
    proofs = Proofs(snapshot, scope)
    messages = received(snapshot, scope, progress, proofs.look)
    _check_products(snapshot, scope, {*held, *claimed, *messages.products})
    absences = proofs.finish()
    tell_waiting(snapshot, held, messages.products, claimed)
    accounts = accounts_of(scope, held, messages.products, claimed, absences)
    if any(account.missing & account.received.settled for account in accounts):
        for symbol, ids in refused_meanwhile(snapshot, scope, progress).items():
            messages.products[symbol].settled -= ids
        accounts = accounts_of(scope, held, messages.products, claimed, absences)
    return accounts, messages


def _check_products(snapshot: Snapshot, scope: Scope, known: set[str]) -> None:
    for product in scope.products:
        if product not in known:
            raise ConfigurationError(f"There is nothing of {product} in the lake {snapshot.lake}.")
