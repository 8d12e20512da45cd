"""Ids that the exchange itself does not have, and whether the pages named as proof prove it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cryptopulse.audit.messages import page_ids
from cryptopulse.audit.report import Absence
from cryptopulse.audit.retention import numbers_let_go
from cryptopulse.audit.scope import AuditScope
from cryptopulse.audit.snapshot import ABSENT, BRONZE, LakeSnapshot
from cryptopulse.audit.venues import venue_page_ids
from cryptopulse.text import ids_text

_Claim = Mapping[str, Any]


class AbsenceProofs:
    """The rows of `silver.absent_trade_ids`, each checked when the message that it names is read."""

    def __init__(self, snapshot: LakeSnapshot, scope: AuditScope) -> None:
        """Reads the table; if it is missing there is nothing to check."""
        self._snapshot = snapshot
        self._is_part = scope.from_us is not None
        self._claims: dict[tuple[int, int], list[_Claim]] = {}
        if ABSENT in snapshot.tables:
            rows = snapshot.rows(
                'SELECT symbol, first_trade_id, last_trade_id, "partition", "offset" FROM absent_trade_ids '
                f"WHERE {scope.has_product()} ORDER BY symbol, first_trade_id",
                {ABSENT: snapshot.files(ABSENT)},
            )
            for row in rows.to_pylist():
                self._claims.setdefault((row["partition"], row["offset"]), []).append(row)
        self._offsets = pa.array(sorted({offset for _, offset in self._claims}), pa.int64())
        self._proven: dict[str, list[Absence]] = {}

    def check(self, messages: pa.Table) -> None:
        """Checks the claims whose proof is among `messages` of bronze."""
        if not self._claims:
            return
        for message in messages.filter(pc.is_in(messages["offset"], self._offsets)).to_pylist():
            place = (message["partition"], message["offset"])
            for claim in self._claims.pop(place, ()):
                symbol, first, last = claim["symbol"], claim["first_trade_id"], claim["last_trade_id"]
                ids = venue_page_ids(message["body"], symbol) if "@" in symbol else page_ids(message["body"])
                if message["source"] != "rest" or message["partition_key"] != symbol:
                    self._report(claim, "that message is no page of the product's trades")
                elif ids is None:
                    self._report(claim, "that message is no page of trades")
                elif any(first <= one <= last for one in ids):
                    self._report(claim, "the page holds such a trade")
                elif not any(newer > last and older < first for newer, older in pairwise(ids)):
                    self._report(claim, "the page does not hold the trades on both sides")
                else:
                    self._proven.setdefault(symbol, []).append(Absence(first, last, *place))

    def finish(self) -> dict[str, list[Absence]]:
        """Product → proven absences, in order. Reports claims whose message was not found.

        An audit with a start time does not report them: it reads no older messages, and what those prove is older too.
        What a message proved before bronze let it go on purpose still counts.
        """
        let_go = {partition: numbers_let_go(self._snapshot, BRONZE, partition) for partition, _ in self._claims}
        for (partition, offset), claims in self._claims.items():
            for claim in claims:
                if let_go[partition].touch([offset], [offset])[0]:
                    ids = claim["first_trade_id"], claim["last_trade_id"]
                    self._proven.setdefault(claim["symbol"], []).append(Absence(*ids, partition, offset))
                elif not self._is_part:
                    self._report(claim, "bronze has no such message")
        found: dict[str, list[Absence]] = {}
        for symbol, absences in self._proven.items():
            # Many pages may prove the same interval: the earliest counts.
            earliest: dict[tuple[int, int], Absence] = {}
            for absence in sorted(absences, key=lambda one: (one.first_trade_id, one.partition, one.offset)):
                earliest.setdefault((absence.first_trade_id, absence.last_trade_id), absence)
            found[symbol] = list(earliest.values())
        return found

    def _report(self, claim: _Claim, flaw: str) -> None:
        about = {name: claim[name] for name in ("first_trade_id", "last_trade_id", "partition", "offset")}
        symbol, ids = claim["symbol"], ids_text(claim["first_trade_id"], claim["last_trade_id"])
        where = f"partition {claim['partition']}, offset {claim['offset']}"
        text = f"{symbol}: {ids} said to be absent at the exchange, but {where} does not prove it: {flaw}"
        repair = f"run `{self._snapshot.repairs.rebuild}`, which keeps what pages prove"
        self._snapshot.report("absence_unproven", ABSENT, text, repair, symbol, {**about, "flaw": flaw})
