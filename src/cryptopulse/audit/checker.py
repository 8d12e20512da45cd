"""The audit itself: runs each check once, in the order of their dependencies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptopulse.audit.absence import AbsenceProofs
from cryptopulse.audit.candles import CandleSource, check_candles
from cryptopulse.audit.contents import Contents
from cryptopulse.audit.hours import check_hours
from cryptopulse.audit.ids import held_ids
from cryptopulse.audit.ledger import (
    accounts_of,
    claimed_ids,
    find_times,
    ledger_of,
    report_ids,
    report_waiting,
)
from cryptopulse.audit.messages import received, refused_meanwhile
from cryptopulse.audit.offsets import check_offsets
from cryptopulse.audit.progress import progress_of
from cryptopulse.audit.refused import refused, report_refused
from cryptopulse.audit.report import AuditCheck, Repairs, Report, utc
from cryptopulse.audit.retention import days_let_go, numbers_let_go
from cryptopulse.audit.scope import AuditScope
from cryptopulse.audit.snapshot import ALERTS, QUARANTINE, SILVER, LakeSnapshot
from cryptopulse.audit.windows import check_windows
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.location import LakeLocation

Progressed = Callable[[int, int], None]
"""Called with (days compared, all days), then with (requests of candles done, all)."""


@dataclass(frozen=True)
class Resources:
    """What an audit may use."""

    memory_max_mb: int = 1024
    """Memory of its database before it spills to disk."""
    threads: int = 2
    exchange: CandleSource | None = None
    """Source of candles; None: they are not compared."""


def audit(
    lake: LakeLocation,
    scope: AuditScope,
    resources: Resources,
    repairs: Repairs,
    progressed: Progressed = lambda _done, _all: None,
) -> Report:
    """Checks `lake` from outside; the report has what is missing, what does not agree, and how to repair it.

    Writes nothing to the lake; a pipeline may run meanwhile. Raises ConfigurationError when there is no lake or a named
    product is not in it, LakeUnreachable when its storage does not answer.
    """
    with LakeSnapshot(lake, resources.memory_max_mb, resources.threads, repairs) as snapshot:
        progress = progress_of(snapshot)
        held = held_ids(snapshot, scope, progress.settled_us)
        claimed = claimed_ids(snapshot, scope)
        proofs = AbsenceProofs(snapshot, scope)
        contents = Contents(snapshot, scope, progress)
        messages = received(snapshot, scope, progress, proofs.check, contents.add)
        for product in scope.products:
            if product not in held and product not in claimed and product not in messages.products:
                raise ConfigurationError(f"There is nothing of {product} in the lake {lake}.")
        absences = proofs.finish()
        contents.compare(held, messages.products)
        products = {*held, *messages.products, *claimed}
        let_go = {symbol: numbers_let_go(snapshot, SILVER, symbol) for symbol in products}
        report_waiting(snapshot, held, messages.products, claimed)
        accounts = accounts_of(scope, held, messages.products, claimed, absences, let_go)
        if any(account.missing & account.received.settled for account in accounts):
            for symbol, ids in refused_meanwhile(snapshot, scope, progress).items():
                messages.products[symbol].settled -= ids
            accounts = accounts_of(scope, held, messages.products, claimed, absences, let_go)
        find_times(snapshot, accounts)

        kept = refused(snapshot, scope, progress)
        for account in accounts:
            report_ids(snapshot, account, account.refused & kept.ids(account.symbol))
        refused_ids = report_refused(snapshot, accounts, kept)
        for name in (ALERTS, QUARANTINE):  # the other tables have been read by the checks
            snapshot.read_all(name)
        windows, healed = check_windows(snapshot, scope, progress, accounts, progressed)
        checks = [
            AuditCheck("files", sum(len(table.files) for table in snapshot.tables.values())),
            AuditCheck("ids", sum(account.last - account.first + 1 for account in accounts)),
            AuditCheck("messages", messages.count),
            *check_offsets(snapshot, scope),
            *windows,
            *check_hours(snapshot, scope, progress, accounts, healed),
        ]
        if resources.exchange is not None:
            checks += check_candles(snapshot, scope, resources.exchange, progressed)
        return Report(
            lake=str(lake),
            audited_at=utc(snapshot.opened_us),
            from_time=None if scope.from_us is None else utc(scope.from_us),
            to_time=None if scope.to_us is None else utc(scope.to_us),
            ledgers=[ledger_of(account) for account in accounts],
            checks=checks,
            refused_ids=refused_ids,
            findings=snapshot.findings,
            let_go=[gone.as_json() for gone in days_let_go(snapshot)],
            tables={
                name: {"version": table.version, "files": len(table.files), "rows": table.rows}
                for name, table in snapshot.tables.items()
            },
        )
