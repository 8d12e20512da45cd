"""Keeps a lake up to date with Spark: `process --engine spark`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cryptopulse.engine.spark.alerts import AlertsStep
from cryptopulse.engine.spark.bronze import BronzeStep
from cryptopulse.engine.spark.prices import PricesStep
from cryptopulse.engine.spark.session import spark_session
from cryptopulse.engine.spark.silver import SilverStep
from cryptopulse.engine.spark.streams import Step, Stream
from cryptopulse.engine.spark.tables import SparkTables
from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.lock import LakeLock
from cryptopulse.lake.retention import check_let_go, let_go
from cryptopulse.lake.tables import (
    ABSENT,
    ALERTS,
    BARS,
    BRONZE,
    COMPLETENESS,
    COVERAGE,
    QUARANTINE,
    SILVER,
    STATS,
)
from cryptopulse.log import Log
from cryptopulse.log.kafka_address import kafka_address
from cryptopulse.settings import STEPS, Settings

_REPORT_S = 0.5
_PRICES_INTERVAL_S = 20.0  # three MERGEs: at once they would take the time of silver and alerts
_WRITTEN = {
    "bronze": (BRONZE,),
    "silver": (SILVER, QUARANTINE, ABSENT, COVERAGE),
    "alerts": (ALERTS,),
    "prices": (BARS, STATS, COMPLETENESS),
}
"""Step → the tables that only it writes."""

Report = Callable[[dict[str, object]], None]


def process(settings: Settings, log: Log, stop: threading.Event, report: Report, steps: Sequence[str] = STEPS) -> None:
    """Keeps the tables of `steps` up to date until `stop` is set; calls `report` with the state twice a second.

    Raises LakeBusy when the embedded engine works on the lake, Fenced when an embedded engine on another machine has
    taken the tables over or another driver works on the same checkpoints, ProcessFailed when a query keeps failing.
    """
    with _streams(settings, log, steps) as streams:
        for stream in streams:
            stream.start(to_the_end_only=False)
        while not stop.wait(_REPORT_S):
            for stream in streams:
                stream.watch()
            report(_state(streams))


def drain(settings: Settings, log: Log, steps: Sequence[str] = STEPS) -> dict[str, object]:
    """Brings the tables of `steps` up to the log's present end, upstream first; returns the counts of the status."""
    with _streams(settings, log, steps) as streams:
        for stream in streams:
            stream.start(to_the_end_only=True)
            stream.finish()
        return _state(streams)


@contextmanager
def _streams(settings: Settings, log: Log, steps: Sequence[str]) -> Iterator[list[Stream]]:
    address = kafka_address(settings.log)
    if address is None:
        raise ConfigurationError(
            "Spark reads Kafka or Azure Event Hubs: set log.url = kafka://host:port/topic, or "
            "EVENT_HUB_CONNECTION_STRING."
        )
    for table in () if settings.spark.catalog else (BRONZE, SILVER):
        check_let_go(
            let_go(settings.location, table), "Only the embedded engine goes on with a lake of which days are gone"
        )
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        raise ConfigurationError(f"There is no step {unknown[0]}; the steps are {', '.join(STEPS)}.")
    with LakeLock(settings.state_dir, settings.lake, is_shared=True):
        session = spark_session(settings)
        tables = SparkTables(settings)
        tables.create(session)
        files_max = settings.spark.files_per_batch_max
        made: dict[str, Callable[[], Step]] = {
            "bronze": lambda: BronzeStep(tables, address, log, settings),
            "silver": lambda: SilverStep(tables, files_max),
            "alerts": lambda: AlertsStep(tables, settings.alerts.rules, files_max),
            "prices": lambda: PricesStep(tables, files_max),
        }
        interval_s = settings.spark.trigger_interval_s
        streams = []
        for name, make in made.items():
            if name in steps:
                guard = tables.take_over(session, _WRITTEN[name])
                pace_s = max(interval_s, _PRICES_INTERVAL_S) if name == PricesStep.name else interval_s
                streams.append(Stream(session, make(), _checkpoint(settings, name), guard, pace_s))
        try:
            yield streams
        finally:
            for stream in streams:
                stream.stop()


def _checkpoint(settings: Settings, step: str) -> str:
    """URL of a step's own folder. A new epoch of the log has new offsets, so bronze needs a new checkpoint then."""
    epoch = settings.log.epoch if step == BronzeStep.name else 0
    return f"{checkpoints(settings)}/{step}" + (f"-epoch-{epoch}" if epoch else "")


def checkpoints(settings: Settings) -> str:
    """URL of the folder of all checkpoints.

    Raises ConfigurationError when the tables are in a catalog, which has no folder, and none is named.
    """
    if settings.spark.checkpoints:
        return settings.spark.checkpoints.rstrip("/")
    if settings.spark.catalog:
        raise ConfigurationError(
            "Set spark.checkpoints: tables of a catalog have no folder for checkpoints beside them."
        )
    return f"{settings.location.spark_url}/_cryptopulse/checkpoints"


def _state(streams: Sequence[Stream]) -> dict[str, object]:
    """The figures of the status file; those of the embedded engine are in `cryptopulse.telemetry`."""
    totals = {stream.step.name: stream.totals for stream in streams}
    silver = totals.get("silver", {})
    return {
        "engine": "spark",
        "messages_total": totals.get("bronze", {}).get("rows", 0),
        "messages_expired_total": totals.get("bronze", {}).get("messages_expired", 0),
        "trades_total": silver.get("trades", 0),
        "duplicates_total": silver.get("duplicates", 0),
        "quarantined_total": silver.get("quarantined", 0),
        "conflicts_total": silver.get("conflicts", 0),
        "batch_ms": {stream.step.name: stream.last_batch_ms for stream in streams},
    }
