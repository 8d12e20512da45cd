"""Figures of the tables: wherever the lake is, and whoever writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cryptopulse.errors import CryptoPulseError
from cryptopulse.lake.dataset import Lake
from cryptopulse.lake.newest import Newest
from cryptopulse.lake.tables import ALERTS, COMPLETENESS, QUARANTINE, SILVER, TABLES, Table
from cryptopulse.serve.figures import TableFigures

_log = structlog.get_logger()

_IDS = ("held_ids", "healed_ids", "absent_ids", "missing_ids")
_EPISODE = ("rule", "alert_type", "severity", "state")


class LakeCollector(Collector):
    """Reads the tables' logs at every scrape, and alerts and completeness when they have changed."""

    def __init__(self, lake: Lake, versions: Newest) -> None:
        """Reads nothing yet."""
        self._lake = lake
        self._versions = versions
        self._known: dict[str, tuple[int, pa.Table]] = {}

    def describe(self) -> list[Metric]:
        """Nothing: so nothing is read when it is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        found: list[Metric] = []
        try:
            found = [*self._tables(), *self._episodes(), *self._ids()]
        except CryptoPulseError as error:
            _log.warning("metrics_without_lake", error=str(error))
        yield GaugeMetricFamily(
            "cryptopulse_lake_readable", "1 when the tables can be read, else 0.", value=bool(found)
        )
        yield from found

    def _tables(self) -> Iterator[Metric]:
        figures = {table: TableFigures.of(self._versions.files(table)) for table in TABLES}
        there = {table: its for table, its in figures.items() if its.version >= 0}
        for name, said, of in _TABLE_METRICS:
            family = GaugeMetricFamily(f"cryptopulse_table_{name}", said, labels=["table"])
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

    def _episodes(self) -> Iterator[Metric]:
        rows = self._grouped(ALERTS, lambda: self._lake.alerts(columns=_EPISODE).arrow(), _EPISODE, ())
        episodes = GaugeMetricFamily(
            "cryptopulse_alert_episodes", "Alert episodes, of all time.", labels=["rule", "type", "severity", "state"]
        )
        totals: dict[tuple[str, str], int] = {}
        for row in rows.to_pylist():
            episodes.add_metric([row[name] for name in _EPISODE], row["rows"])
            key = row["rule"], row["alert_type"]
            totals[key] = totals.get(key, 0) + row["rows"]
        raised = CounterMetricFamily("cryptopulse_alerts", "Alerts that were raised.", labels=["rule", "type"])
        for (rule, kind), count in totals.items():
            raised.add_metric([rule, kind], count)
        yield from (episodes, raised)

    def _ids(self) -> Iterator[Metric]:
        rows = self._grouped(
            COMPLETENESS, lambda: self._lake.completeness(columns=("symbol", *_IDS)).arrow(), ("symbol",), _IDS
        )
        held, healed, absent, missing = (_id_family(name) for name in _IDS)
        for row in rows.to_pylist():
            for name, family in zip(_IDS, (held, healed, absent, missing), strict=True):
                family.add_metric([row["symbol"]], row[name])
        yield from (held, healed, absent, missing)

    def _grouped(self, table: Table, read: Callable[[], pa.Table], by: tuple[str, ...], sums: tuple[str, ...]) -> Any:
        """Rows counted (as `rows`), and `sums` added up, `by`; read again only when `table` has changed."""
        version = self._versions.files(table).version
        known = self._known.get(table.qualified)
        if known is None or known[0] != version:
            wanted: list[Any] = [([], "count_all"), *((name, "sum") for name in sums)]
            found = read().group_by(list(by)).aggregate(wanted)
            renamed = {"count_all": "rows", **{f"{name}_sum": name for name in sums}}
            found = found.rename_columns([renamed.get(name, name) for name in found.column_names])
            known = self._known[table.qualified] = version, found
        return known[1]


def _id_family(name: str) -> Any:
    kind, said = {
        "held_ids": (CounterMetricFamily, "Trade ids that are held."),
        "healed_ids": (CounterMetricFamily, "Trades that came over REST: healed or backfilled."),
        "absent_ids": (GaugeMetricFamily, "Trade ids that the exchange does not have, as a page proved."),
        "missing_ids": (GaugeMetricFamily, "Trade ids that are neither held nor proved absent."),
    }[name]
    return kind(f"cryptopulse_trade_ids_{name.removesuffix('_ids')}", said, labels=["product"])


_TABLE_METRICS: tuple[tuple[str, str, Callable[[TableFigures], float | None]], ...] = (
    ("version", "Newest version of the table: its number of commits.", lambda its: its.version),
    ("rows", "Rows of the table.", lambda its: its.rows),
    ("files", "Files that the table consists of.", lambda its: its.files),
    ("size_bytes", "Size of these files.", lambda its: its.size_bytes),
    ("last_load_timestamp_seconds", "When the newest rows were loaded.", lambda its: its.loaded_at_s),
)
