"""Ids that the exchange itself leaves out, and whether the page that is to prove it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.completeness.audit.intervals import Intervals
from cryptopulse.completeness.audit.messages import page_ids
from cryptopulse.completeness.audit.report import Absence, Finding, span
from cryptopulse.completeness.audit.scope import Scope
from cryptopulse.completeness.audit.snapshot import ABSENT, Snapshot

_Place = tuple[int, int]
_Claim = Mapping[str, Any]


class Proofs:
    """The rows of `silver.absent_trade_ids`, each judged when the message that it names comes by."""

    def __init__(self, snapshot: Snapshot, scope: Scope) -> None:
        """Reads the table; without one there is nothing to judge."""
        self._snapshot = snapshot
        self._is_part = scope.from_us is not None
        self._claims: dict[_Place, list[_Claim]] = {}
        for row in _claims(snapshot, scope):
            self._claims.setdefault((row["partition"], row["offset"]), []).append(row)
        self._offsets = pa.array(sorted({offset for _, offset in self._claims}), pa.int64())
        self._proven: dict[str, list[Absence]] = {}

    def look(self, messages: pa.Table) -> None:
        """Judges the claims whose proof is among `messages` of bronze."""
        if not self._claims:
            return
        for message in messages.filter(pc.is_in(messages["offset"], self._offsets)).to_pylist():
            place = (message["partition"], message["offset"])
            for claim in self._claims.pop(place, ()):
                flaw = _flaw(claim, message)
                if flaw is not None:
                    self._tell(claim, flaw)
                    continue
                absence = Absence(claim["first_trade_id"], claim["last_trade_id"], *place)
                self._proven.setdefault(claim["symbol"], []).append(absence)

    def finish(self) -> dict[str, list[Absence]]:
        """By product what is proven; tells of claims whose message never came by.

        An audit of some time does not read older messages: what those prove is older as well.
        """
        for claims in self._claims.values() if not self._is_part else ():
            for claim in claims:
                self._tell(claim, "bronze has no such message")
        return {symbol: _distinct(parts) for symbol, parts in self._proven.items()}

    def _tell(self, claim: _Claim, flaw: str) -> None:
        about = {name: claim[name] for name in ("first_trade_id", "last_trade_id", "partition", "offset")}
        symbol, ids = claim["symbol"], span(claim["first_trade_id"], claim["last_trade_id"])
        where = f"partition {claim['partition']}, offset {claim['offset']}"
        text = f"{symbol}: {ids} said to be absent at the exchange, but {where} does not prove it: {flaw}"
        repair = f"run `{self._snapshot.repairs.rebuild}`, which keeps what pages prove"
        finding = Finding("absence_unproven", ABSENT, text, repair, symbol, {**about, "flaw": flaw})
        self._snapshot.findings.add(finding)


def _distinct(absences: Iterable[Absence]) -> list[Absence]:
    """Each interval once, in order, with its earliest proof: many pages may prove the same."""
    found: dict[tuple[int, int], Absence] = {}
    for absence in sorted(absences, key=lambda one: (one.first_trade_id, one.partition, one.offset)):
        found.setdefault((absence.first_trade_id, absence.last_trade_id), absence)
    return list(found.values())


def absent_ids(absences: Iterable[Absence]) -> Intervals:
    """The ids of some absences."""
    return Intervals.of((absence.first_trade_id, absence.last_trade_id) for absence in absences)


def _claims(snapshot: Snapshot, scope: Scope) -> list[_Claim]:
    if ABSENT not in snapshot.tables:
        return []
    found: list[_Claim] = snapshot.rows(
        'SELECT symbol, first_trade_id, last_trade_id, "partition", "offset" FROM absent_trade_ids '
        f"WHERE {scope.has_product()} ORDER BY symbol, first_trade_id",
        {ABSENT: snapshot.files(ABSENT)},
    ).to_pylist()
    return found


def _flaw(claim: _Claim, message: Mapping[str, Any]) -> str | None:
    """What is wrong with the proof of `claim`, the message that it names; None when it holds."""
    if message["source"] != "rest" or message["partition_key"] != claim["symbol"]:
        return "that message is no page of the product's trades"
    ids = page_ids(message["body"])
    if ids is None:
        return "that message is no page of trades"
    first, last = claim["first_trade_id"], claim["last_trade_id"]
    if any(first <= one <= last for one in ids):
        return "the page holds such a trade"
    if any(newer > last and older < first for newer, older in pairwise(ids)):
        return None
    return "the page does not hold the trades on both sides"
