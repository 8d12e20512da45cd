"""The pipeline's position in each table, so that rows on their way do not count as missing.

Every commit of the embedded engine has its position in the upstream table in a `txn` action. Spark keeps positions in
checkpoints instead, so with Spark everything loaded in the last ten minutes counts as on its way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptopulse.audit.report import moment, utc
from cryptopulse.audit.snapshot import (
    BARS,
    BRONZE,
    COMPLETENESS,
    COVERAGE,
    SILVER,
    STATISTICS,
    LakeSnapshot,
)

PATIENCE_US = 60_000_000
"""Rows not consumed for this long show that no pipeline runs. The slowest, coverage and completeness, take 5 s."""

_UNKNOWN_US = 600_000_000  # without positions: a Spark batch, with start-up, takes some seconds to minutes
_STATS_US = 1_000  # Delta's statistics have times in whole milliseconds; the highest may be cut or rounded up
_HEARTBEAT_GRACE_US = 10_000_000  # a trade may come a moment after the heartbeat that names it
_COMMIT_US = 10_000_000  # from the load_timestamp of rows to their commit; really it takes far less
_NOTHING = -1


@dataclass(frozen=True)
class Progress:
    """The positions that the audit needs; anything later is on its way."""

    settled_us: int
    """Trades loaded until then (µs UTC) are in every table derived from silver."""
    bars_us: int | None
    """Bars loaded until then (µs UTC) are in the statistics; None: not known."""
    offsets: Mapping[int, int] | None
    """Partition → last offset of bronze that silver has consumed; None: not known."""
    opened_us: int
    heartbeats_until_us: int
    """Heartbeats received until then (µs UTC) count: the trades that they name had time to come, too."""
    is_midway: bool = False
    """Whether silver holds trades of a batch that other tables have not consumed, as in a running pipeline."""

    def is_beyond(self) -> str:
        """SQL that is true for a message of bronze (`p`, `o`, `ingested_us`) that silver may not have consumed."""
        if self.offsets is None:
            return f"ingested_us > {self.opened_us - _UNKNOWN_US}"
        cases = " ".join(f"WHEN {partition} THEN {offset}" for partition, offset in sorted(self.offsets.items()))
        return f"o > CASE p {cases} ELSE {_NOTHING} END" if cases else "true"

    def is_waiting(self) -> str:
        """SQL that is true for a message that is in bronze for longer than a running pipeline would need."""
        return "false" if self.offsets is None else f"ingested_us <= {self.opened_us - PATIENCE_US}"


def progress_of(snapshot: LakeSnapshot) -> Progress:
    """Reads the positions; reports tables that have fallen behind."""
    silver = snapshot.tables.get(SILVER)
    newest_us = max((file.latest_us("load_timestamp") for file in snapshot.files(SILVER)), default=_NOTHING)
    own_us = None if silver is None else silver.position("load")
    if silver is not None and not silver.files and own_us is None:  # nothing was ever consumed
        return Progress(_NOTHING, None, {}, snapshot.opened_us, _heartbeats_until_us(snapshot))
    if silver is None or own_us is None or own_us + _STATS_US <= newest_us:
        unknown_us = snapshot.opened_us - _UNKNOWN_US
        return Progress(unknown_us, None, None, snapshot.opened_us, _heartbeats_until_us(snapshot))
    of_silver = {name: _position(snapshot, name, "silver") for name in (COVERAGE, BARS) if name in snapshot.tables}
    of_bars = {
        name: _position(snapshot, name, "bars")
        for name in (STATISTICS, COMPLETENESS)
        # Rows without a position were written by another program.
        if (table := snapshot.tables.get(name)) and (table.position("bars") is not None or table.rows == 0)
    }
    _report_behind(snapshot, SILVER, of_silver)
    _report_behind(snapshot, BARS, of_bars)
    # The files' statistics have bronze's partitions; merged files may have several.
    bounds = [(file, *file.stats.get("partition", (None, None))) for file in snapshot.files(BRONZE)]
    partitions = {low for _, low, high in bounds if isinstance(low, int) and low == high}
    if mixed := [file for file, low, high in bounds if low is None or low != high]:
        found = snapshot.rows('SELECT DISTINCT "partition" AS p FROM coinbase_raw_trades', {BRONZE: mixed})
        partitions |= set(found["p"].to_pylist())
    offsets = {p: taken for p in partitions if (taken := silver.position(f"bronze/{p}")) is not None}
    settled_us = min([own_us, *of_silver.values()])
    hours_us = of_bars.get(COMPLETENESS)
    if hours_us is not None and BARS in snapshot.tables and hours_us < _position(snapshot, BARS, "load"):
        # Completeness has consumed bars loaded until `hours_us`. Trades loaded well before that were in these bars.
        settled_us = min(settled_us, hours_us - _COMMIT_US)
    bars_us = of_bars.get(STATISTICS)
    # Coverage is written after quarantine.
    is_midway = of_silver.get(COVERAGE, own_us) < own_us
    return Progress(settled_us, bars_us, offsets, snapshot.opened_us, _heartbeats_until_us(snapshot), is_midway)


def _heartbeats_until_us(snapshot: LakeSnapshot) -> int:
    """Measured in stream time while bronze grows, as the stream may be far behind; otherwise by the clock."""
    if BRONZE not in snapshot.tables:
        return _NOTHING
    newest = snapshot.rows(
        "SELECT max(epoch_us(received_time)) AS received_us, max(epoch_us(bronze_ingestion_time)) AS ingested_us "
        "FROM coinbase_raw_trades",
        {BRONZE: snapshot.files(BRONZE)},
    ).to_pylist()[0]
    is_growing = (newest["ingested_us"] or 0) > snapshot.opened_us - PATIENCE_US
    return (newest["received_us"] if is_growing else snapshot.opened_us) - _HEARTBEAT_GRACE_US


def _position(snapshot: LakeSnapshot, name: str, source: str) -> int:
    found = snapshot.tables[name].position(source)
    return _NOTHING if found is None else found


def _report_behind(snapshot: LakeSnapshot, upstream: str, taken_in: Mapping[str, int]) -> None:
    """Reports each table that has not consumed upstream rows for longer than PATIENCE_US."""
    for name, position in taken_in.items():
        news = [file for file in snapshot.files(upstream) if file.latest_us("load_timestamp") + _STATS_US > position]
        if not news:
            continue
        plain = upstream.partition(".")[2]
        waiting = snapshot.rows(
            f"SELECT count(*) AS n, min(epoch_us(load_timestamp)) AS since_us FROM {plain} "
            f"WHERE epoch_us(load_timestamp) > {position} "
            f"AND epoch_us(load_timestamp) <= {snapshot.opened_us - PATIENCE_US}",
            {upstream: news},
        ).to_pylist()[0]
        if waiting["n"]:
            since = utc(waiting["since_us"])
            text = f"{name} is behind: {waiting['n']:,} rows of {upstream} since {moment(since)} are not in it yet"
            details = {"rows": waiting["n"], "since": since, "upstream": upstream}
            snapshot.report("behind", name, text, f"run `{snapshot.repairs.process}`", details=details)
