"""The notifier process: polls the table of alerts, passes changes to the targets' threads, reports its state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from cryptopulse.errors import ConfigurationError, TransientError
from cryptopulse.notify.channel import Channel, open_channels
from cryptopulse.notify.delivery import Delivery, NotificationLedger, Outbox, ledger_names
from cryptopulse.notify.render import test_message
from cryptopulse.notify.table import AlertsTable
from cryptopulse.retry import Backoff
from cryptopulse.settings import Settings
from cryptopulse.settings.notify import NotifyTarget

_log = structlog.get_logger()

_REPORT_S = 0.5  # like the other processes
_PRUNE_S = 3600.0
_END_WITHIN_S = 10.0
"""Time for the last notifications at the end; the rest is sent at the next start."""

Report = Callable[[Mapping[str, object]], None]


def notify(settings: Settings, stop: threading.Event, report: Report) -> None:
    """Notifies the targets until `stop` is set; then sends the last changes of the table, for some seconds at most.

    Calls `report` with its figures every half second. Raises ConfigurationError for unusable targets, LakeBusy when
    another notifier uses the same state folder.
    """
    channels = open_channels(_targets(settings))
    age_max_us = settings.notify.age_max_s * 1_000_000
    with NotificationLedger(settings.state_dir) as ledger:
        now_us = time.time_ns() // 1000
        ledger.prune(now_us, age_max_us)
        deliveries = []
        for target, channel, name in zip(
            settings.notify.targets, channels, ledger_names(settings.notify.targets), strict=True
        ):
            since_us = ledger.since_us(name, now_us - settings.notify.first_lookback_s * 1_000_000)
            outbox = Outbox(target, ledger.known(name), since_us, age_max_us)
            deliveries.append(Delivery(channel, outbox, ledger, name))
        table = AlertsTable(settings.location)
        poll_s, backoff = table.poll_s(settings.notify.poll_ms / 1000), Backoff()
        for delivery in deliveries:
            delivery.start()
        _log.info("notifier_started", targets=[channel.name for channel in channels])

        def poll() -> float:
            """Passes changes to the deliveries; returns seconds until the next poll. Retries failed reads later."""
            try:
                if table.has_news():
                    episodes = table.read(min(delivery.oldest_us() for delivery in deliveries))
                    for delivery in deliveries:
                        delivery.take_in(episodes)
                    backoff.reset()
            except TransientError as error:
                pause_s = backoff.next_pause()
                _log.warning("waiting_for_alerts", error=str(error), retry_in_s=round(pause_s, 2))
                return pause_s
            return poll_s

        poll_at_s, report_at_s, prune_at_s = 0.0, 0.0, time.monotonic() + _PRUNE_S
        while not stop.wait(min(max(poll_at_s - time.monotonic(), 0.0), _REPORT_S)):
            for delivery in deliveries:
                delivery.check()
            if (now_s := time.monotonic()) >= poll_at_s:
                poll_at_s = now_s + poll()
            if now_s >= report_at_s:
                report_at_s = now_s + _REPORT_S
                report(_state(deliveries))
            if now_s >= prune_at_s:
                prune_at_s = now_s + _PRUNE_S
                ledger.prune(time.time_ns() // 1000, age_max_us)
                for delivery in deliveries:
                    delivery.prune()

        poll()
        for delivery in deliveries:
            delivery.end()
        deadline_s = time.monotonic() + _END_WITHIN_S
        for delivery in deliveries:
            delivery.join(max(deadline_s - time.monotonic(), 0.0))
        for delivery in deliveries:
            delivery.check()
        report(_state(deliveries))


def send_test(settings: Settings, number: int | None) -> list[tuple[str, str | None]]:
    """Sends a test message to each target, or only to target `number` (from 1).

    Returns (name, reason of the failure or None) of each. Raises ConfigurationError for unusable targets or number.
    """
    targets = _targets(settings)
    if number is not None and number > len(targets):
        raise ConfigurationError(f"Unknown target {number}: notify.targets has {len(targets)}.")
    channels = [channel for at, channel in enumerate(open_channels(targets), 1) if number in (None, at)]

    def tried(channel: Channel) -> tuple[str, str | None]:
        return channel.name, channel.send(test_message(channel.name, settings.lake))

    with ThreadPoolExecutor(len(channels)) as threads:
        return list(threads.map(tried, channels))


def _targets(settings: Settings) -> list[NotifyTarget]:
    if not settings.notify.targets:
        raise ConfigurationError(
            "No notification targets: add a table [[notify.targets]] with a url to cryptopulse.toml."
        )
    return settings.notify.targets


def _state(deliveries: Sequence[Delivery]) -> dict[str, object]:
    targets = [delivery.state() for delivery in deliveries]
    totals = {
        f"notifications_{name}": sum(int(str(target[name])) for target in targets)
        for name in ("sent", "failed", "waiting")
    }
    return {**totals, "targets": targets}
