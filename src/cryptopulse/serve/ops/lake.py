"""Metrics of the tables, from their Delta logs: they need no status file of the pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cryptopulse.errors import CryptoPulseError
from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.files import Files
from cryptopulse.lake.follower import NewestVersions
from cryptopulse.lake.tables import ALERTS, COMPLETENESS, QUARANTINE, SILVER, TABLES, Table
from cryptopulse.serve.live.history import newest_us
from cryptopulse.settings import AlertRule

_log = structlog.get_logger()

_IDS: dict[str, tuple[Any, str]] = {
    "held_ids": (CounterMetricFamily, "Trade ids that are held."),
    "healed_ids": (CounterMetricFamily, "Trades that came over REST: healed or backfilled."),
    "absent_ids": (GaugeMetricFamily, "Trade ids that the exchange does not have, as a page proved."),
    "missing_ids": (GaugeMetricFamily, "Trade ids that are neither held nor proved absent."),
}
_MILLION = 1_000_000
_THOUSAND = 1_000
_EPISODE = ("rule", "alert_type", "severity", "state")


@dataclass(frozen=True)
class TableFigures:
    """One table at its newest version."""

    version: int
    """-1: there is no table."""
    files: int
    rows: int
    size_bytes: int
    loaded_at_s: float | None
    """When its newest rows were loaded, seconds since 1970; None for an empty table. When its newest file was written,
    if the Delta log has no statistics of the load time."""
    happened_at_s: float | None
    """Time of the newest event or window that is not in the future, seconds since 1970; None without statistics in the
    Delta log. A row of the year 9999 must not hide how old the others are."""

    @classmethod
    def of(cls, files: Files) -> TableFigures:
        """Figures of the table with these `files`."""
        actions, column = files.actions, files.table.time
        loaded_us = _largest(actions, "max.load_timestamp")
        written_ms = _largest(actions, "modification_time")
        happened_us = newest_us(actions, column) if column else None
        loaded_at_s = loaded_us / _MILLION if loaded_us is not None else None
        if loaded_at_s is None and written_ms is not None:
            loaded_at_s = written_ms / _THOUSAND
        return cls(
            version=files.version,
            files=actions.num_rows,
            rows=max(0, int(files.counts.sum())),
            size_bytes=int(pc.sum(actions["size_bytes"]).as_py() or 0) if "size_bytes" in actions.column_names else 0,
            loaded_at_s=loaded_at_s,
            happened_at_s=None if happened_us is None else happened_us / _MILLION,
        )


def _largest(actions: pa.Table, name: str) -> int | None:
    """Largest value of a column of the add actions; None without the column."""
    if name not in actions.column_names:
        return None
    found: int | None = pc.max(actions[name].cast(pa.int64())).as_py()
    return found


class LakeCollector(Collector):
    """Reads the Delta logs at every scrape; alerts and completeness only when they have changed."""

    def __init__(self, lake: Lake, versions: NewestVersions, rules: Sequence[AlertRule]) -> None:
        """Reads nothing yet. `rules`: whose alerts are counted from 0 on; those of others from their first alert on."""
        self._lake = lake
        self._rules = rules
        self._versions = versions
        self._known: dict[str, tuple[int, pa.Table]] = {}

    def describe(self) -> list[Metric]:
        """Empty, so that registering it reads nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        found: list[Metric] = []
        try:
            found = list(self._families())
        except CryptoPulseError as error:
            _log.warning("metrics_without_lake", error=str(error))
        yield GaugeMetricFamily(
            "cryptopulse_lake_readable", "1 when the tables can be read, else 0.", value=bool(found)
        )
        yield from found

    def _families(self) -> Iterator[Metric]:
        figures = {table: TableFigures.of(self._versions.files(table)) for table in TABLES}
        there = {table: its for table, its in figures.items() if its.version >= 0}
        for name, documentation, of in _TABLE_METRICS:
            family = GaugeMetricFamily(f"cryptopulse_table_{name}", documentation, labels=["table"])
            for table, its in there.items():
                if (value := of(its)) is not None:
                    family.add_metric([table.qualified], value)
            yield family
        yield CounterMetricFamily("cryptopulse_trades", "Trades that silver holds.", value=figures[SILVER].rows)
        yield CounterMetricFamily(
            "cryptopulse_quarantined_messages", "Messages that could not be read.", value=figures[QUARANTINE].rows
        )
        if (newest := figures[SILVER].happened_at_s) is not None:
            yield GaugeMetricFamily(
                "cryptopulse_newest_trade_timestamp_seconds",
                "When the exchange matched the newest trade that silver holds.",
                value=newest,
            )

        rows = self._grouped(ALERTS, lambda: self._lake.alerts(columns=_EPISODE).arrow(), _EPISODE, ())
        episodes = GaugeMetricFamily(
            "cryptopulse_alert_episodes", "Alert episodes, of all time.", labels=["rule", "type", "severity", "state"]
        )
        # A counter that began with 1 would hide its first alert from every rate.
        totals = Counter({(rule.name, kind): 0 for rule in self._rules for kind in rule.types})
        for row in rows.to_pylist():
            episodes.add_metric([row[name] for name in _EPISODE], row["rows"])
            totals[row["rule"], row["alert_type"]] += row["rows"]
        raised = CounterMetricFamily("cryptopulse_alerts", "Alerts that were raised.", labels=["rule", "type"])
        for (rule, kind), count in totals.items():
            raised.add_metric([rule, kind], count)
        yield from (episodes, raised)

        rows = self._grouped(
            COMPLETENESS, lambda: self._lake.completeness(columns=("symbol", *_IDS)).arrow(), ("symbol",), tuple(_IDS)
        ).to_pylist()
        for name, (kind_of_family, documentation) in _IDS.items():
            metric = f"cryptopulse_trade_ids_{name.removesuffix('_ids')}"
            family = kind_of_family(metric, documentation, labels=["product"])
            for row in rows:
                family.add_metric([row["symbol"]], row[name])
            yield family

    def _grouped(self, table: Table, read: Callable[[], pa.Table], by: tuple[str, ...], sums: tuple[str, ...]) -> Any:
        """Number of rows (`rows`) and totals of `sums`, grouped `by`; read again only when `table` has changed."""
        version = self._versions.files(table).version
        known = self._known.get(table.qualified)
        if known is None or known[0] != version:
            wanted: list[Any] = [([], "count_all"), *((name, "sum") for name in sums)]
            found = read().group_by(list(by)).aggregate(wanted)
            renamed = {"count_all": "rows", **{f"{name}_sum": name for name in sums}}
            found = found.rename_columns([renamed.get(name, name) for name in found.column_names])
            known = self._known[table.qualified] = version, found
        return known[1]


_TABLE_METRICS: tuple[tuple[str, str, Callable[[TableFigures], float | None]], ...] = (
    ("version", "Newest version of the table: its number of commits.", lambda its: its.version),
    ("rows", "Rows of the table.", lambda its: its.rows),
    ("files", "Files that the table consists of.", lambda its: its.files),
    ("size_bytes", "Size of these files.", lambda its: its.size_bytes),
    ("last_load_timestamp_seconds", "When the newest rows were loaded.", lambda its: its.loaded_at_s),
)
