"""The result of an audit: the ledger of each product, what was checked, and findings, each with its repair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptopulse.audit.venues import grade_of

KIND_FINDINGS_MAX = 1000
"""Findings of one kind that are listed; the rest are only counted."""

INTERVALS_MAX = 1000
"""Intervals of one product that are listed, each for holes, healed and absent ids; the rest are only counted."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Finding:
    """One fault: something that is missing or does not agree."""

    kind: str
    """Kind of fault, as a stable word for scripts."""
    table: str
    """The table to repair, `schema.name`; "" for faults outside the lake."""
    text: str
    """The fault in one line."""
    repair: str
    """The command or the steps that repair it."""
    symbol: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All fields as one flat object."""
        about = {"kind": self.kind, "table": self.table, "symbol": self.symbol}
        return {**about, **self.details, "text": self.text, "repair": self.repair}


@dataclass(frozen=True)
class AuditCheck:
    """How much one check has compared."""

    name: str
    count: int
    """How many items were compared."""
    skipped: int = 0
    """How many could not be judged: the pipeline was working on them, or their input is missing."""


@dataclass(frozen=True)
class LedgerHole:
    """Missing ids between two trades that are held."""

    first_trade_id: int
    last_trade_id: int
    witness: str
    """`trade`: a later trade is held; `heartbeat`: the exchange named the last id or a later one; `table`: a table."""
    after_time: datetime | None
    """Time (UTC) of the nearest trade held before it."""
    before_time: datetime | None
    """Time (UTC) of the nearest trade held after it."""

    @property
    def missing_ids(self) -> int:
        """Number of ids."""
        return self.last_trade_id - self.first_trade_id + 1


@dataclass(frozen=True)
class HealedRange:
    """Adjacent trades that came over REST. Times are UTC."""

    first_trade_id: int
    last_trade_id: int
    first_time: datetime | None
    last_time: datetime | None
    source: str = "rest"


@dataclass(frozen=True)
class Absence:
    """Ids that the exchange does not have, and partition and offset of the page that proves it."""

    first_trade_id: int
    last_trade_id: int
    partition: int
    offset: int


@dataclass
class ProductLedger:
    """The ids that one product should have, and their states."""

    symbol: str
    first_trade_id: int
    last_trade_id: int
    held_ids: int
    healed_ids: int
    absent_ids: int
    missing_ids: int
    let_go_ids: int
    """Ids of trades that silver held until retention let them go."""
    on_their_way_ids: int
    """Ids in bronze, but not in silver yet."""
    witness: str
    """What shows the last id: a `heartbeat`, or only the last `trade` itself."""
    heartbeat_trade_id: int | None
    """The last trade id that the newest heartbeat in bronze names."""
    heartbeat_time: datetime | None
    """Receive time of that heartbeat (UTC)."""
    holes: list[LedgerHole] = field(default_factory=list)
    healed: list[HealedRange] = field(default_factory=list)
    absent: list[Absence] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    """`holes`, `healed`, `absent` → how many intervals are not listed."""

    @property
    def grade(self) -> str:
        """How far the ids prove that nothing is missing; see `grade_of`."""
        return grade_of(self.symbol)

    @property
    def expected_ids(self) -> int:
        """Number of ids from the first to the last."""
        return self.last_trade_id - self.first_trade_id + 1

    def as_json(self) -> dict[str, Any]:
        """All fields as plain data."""
        holes = [{**vars(hole), "missing_ids": hole.missing_ids} for hole in self.holes]
        parts = {"holes": holes, "healed": list(map(vars, self.healed)), "absent": list(map(vars, self.absent))}
        return {**vars(self), "expected_ids": self.expected_ids, "grade": self.grade, **parts}


class Findings:
    """Collects findings; bounded, whatever state the lake is in."""

    def __init__(self) -> None:
        """Starts empty."""
        self.listed: list[Finding] = []
        self.counts: Counter[str] = Counter()
        """Kind → number of findings, listed or not."""

    def add(self, finding: Finding) -> None:
        """Adds a finding; after KIND_FINDINGS_MAX of its kind it is only counted."""
        self.counts[finding.kind] += 1
        if self.counts[finding.kind] <= KIND_FINDINGS_MAX:
            self.listed.append(finding)

    @property
    def left_out(self) -> dict[str, int]:
        """Kind → number of findings that are not listed."""
        return {kind: n - KIND_FINDINGS_MAX for kind, n in self.counts.items() if n > KIND_FINDINGS_MAX}


@dataclass
class Report:
    """The result of an audit. Times are UTC."""

    lake: str
    audited_at: datetime
    from_time: datetime | None
    to_time: datetime | None
    ledgers: list[ProductLedger]
    checks: list[AuditCheck]
    refused_ids: int
    """Number of ids that came only in refused messages and are outside their product's ledger."""
    findings: Findings
    tables: dict[str, dict[str, Any]]
    """Table name → version read, and its numbers of files and rows."""
    let_go: list[dict[str, Any]]
    """What each table has let go on purpose: `table`, `rows`, `kept_from`, `last_day` (UTC), and its `days`."""

    @property
    def is_complete(self) -> bool:
        """Whether there are no findings."""
        return not self.findings.counts

    def as_json(self) -> dict[str, Any]:
        """The whole report as one object."""
        return {
            "lake": self.lake,
            "audited_at": self.audited_at,
            "from": self.from_time,
            "to": self.to_time,
            "complete": self.is_complete,
            "products": [ledger.as_json() for ledger in self.ledgers],
            "refused_ids": self.refused_ids,
            "checks": [vars(check) for check in self.checks],
            "findings": [finding.as_json() for finding in self.findings.listed],
            "findings_left_out": self.findings.left_out,
            "let_go": self.let_go,
            "tables": self.tables,
        }


@dataclass(frozen=True)
class Repairs:
    """The commands that repair faults, ready to be typed."""

    options: str = ""
    """Options that each command needs to find the lake, as in ` --lake demo-lake`."""

    @property
    def rebuild(self) -> str:
        """Derives silver and gold again from bronze."""
        return f"cryptopulse rebuild{self.options}"

    @property
    def process(self) -> str:
        """Processes everything that is waiting."""
        return f"cryptopulse process --once{self.options}"

    def backfill(self, symbol: str, after: datetime | None, before: datetime | None) -> str:
        """Fetches the trades from `after` to `before` (UTC), widened to whole seconds; one of them must be known."""
        if after and before and before < after:  # ids are in order, times nearly
            after, before = before, after
        if after is None and before is not None:
            after = before - timedelta(days=1)  # the real start is unknown; the next audit shows what is left
        since = f" --from {_second(after)}" if after else ""
        until = f" --to {_second(before + timedelta(seconds=1))}" if before else ""
        return f"cryptopulse backfill {symbol}{since}{until}{self.options}"

    def table(self, name: str, place: str) -> str:
        """The repair of a table at `place` with damaged files."""
        if name.startswith("bronze."):
            return (
                f"restore {place} from a copy; do not run `cryptopulse rebuild` before, it would lose the trades that "
                "only this file held"
            )
        if "://" in place:
            return f"stop the pipeline, delete {place}, and run `{self.rebuild}`"
        return f"stop the pipeline and run `{self.rebuild}`"


def utc(us: int) -> datetime:
    """A time from µs UTC since 1970."""
    return _EPOCH + timedelta(microseconds=us)


def micros(when: datetime) -> int:
    """µs UTC since 1970, exactly."""
    return (when - _EPOCH) // timedelta(microseconds=1)


def moment(when: datetime | None) -> str:
    """A time (UTC) as text, with no more precision than it needs to be exact."""
    if when is None:
        return "?"
    precision = "microseconds" if when.microsecond else "seconds" if when.second else "minutes"
    return f"{when.astimezone(UTC).replace(tzinfo=None).isoformat(timespec=precision)}Z"


def _second(when: datetime) -> str:
    return f"{when:%Y-%m-%dT%H:%M:%SZ}"


def id_range(first: int, last: int) -> dict[str, Any]:
    """The same range for the details of a finding."""
    return {"first_trade_id": first, "last_trade_id": last, "ids": last - first + 1}
