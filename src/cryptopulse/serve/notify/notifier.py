"""The process that tells of alerts: looks at the table, hands changes to the targets' threads, reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from cryptopulse.errors import ConfigurationError, TransientError
from cryptopulse.retry import Backoff
from cryptopulse.serve.notify.channel import Channel, open_channels
from cryptopulse.serve.notify.delivery import Delivery
from cryptopulse.serve.notify.ledger import Ledger, ledger_names
from cryptopulse.serve.notify.outbox import Outbox
from cryptopulse.serve.notify.table import AlertsTable
from cryptopulse.serve.notify.words import trial_message
from cryptopulse.settings import Settings
from cryptopulse.settings_notify import NotifyTarget

_log = structlog.get_logger()

_REPORT_S = 0.5  # as the other processes
_FORGET_S = 3600.0
_END_WITHIN_S = 10.0
"""What targets may take at the end for what is left; the rest is told at the next start."""

Report = Callable[[Mapping[str, object]], None]


def notify(settings: Settings, stop: threading.Event, report: Report) -> None:
    """Tells the targets of alerts until `stop` is set; then of what the table holds at that moment, within seconds.

    Calls `report` with its figures every half second. Raises ConfigurationError for targets that can't be used, and
    LakeBusy when another notifier works on this lake.
    """
    channels = open_channels(_required(settings))
    with Ledger(settings.state_dir) as ledger:
        deliveries = _deliveries(settings, channels, ledger)
        watch = _Watch(AlertsTable(settings.location), deliveries, settings.notify.poll_ms / 1000)
        for delivery in deliveries:
            delivery.start()
        _log.info("notifier_started", targets=[channel.name for channel in channels])
        _work(settings, watch, ledger, report, stop)
        watch.look_now()
        _end(deliveries)
        report(_state(deliveries))


def send_trial(settings: Settings, number: int | None) -> list[tuple[str, str | None]]:
    """Sends a test message to each target, or to the one of this `number`: its name, and why it was not accepted.

    Raises ConfigurationError as `notify`, and when there is no such target.
    """
    targets = _required(settings)
    if number is not None and number > len(targets):
        raise ConfigurationError(f"There is no target {number}: notify.targets has {len(targets)}.")
    channels = [channel for at, channel in enumerate(open_channels(targets), 1) if number in (None, at)]

    def tried(channel: Channel) -> tuple[str, str | None]:
        return channel.name, channel.send(trial_message(channel.name, settings.lake))

    with ThreadPoolExecutor(len(channels)) as threads:
        return list(threads.map(tried, channels))


def _required(settings: Settings) -> list[NotifyTarget]:
    if not settings.notify.targets:
        raise ConfigurationError(
            "There is nobody to notify: add a table [[notify.targets]] with a url to cryptopulse.toml."
        )
    return settings.notify.targets


def _deliveries(settings: Settings, channels: Sequence[Channel], ledger: Ledger) -> list[Delivery]:
    notify, now_us = settings.notify, time.time_ns() // 1000
    age_max_us = notify.age_max_s * 1_000_000
    ledger.forget(now_us, age_max_us)
    deliveries = []
    for target, channel, name in zip(notify.targets, channels, ledger_names(notify.targets), strict=True):
        since_us = ledger.since_us(name, now_us - notify.first_lookback_s * 1_000_000)
        outbox = Outbox(target, ledger.told(name), since_us, age_max_us)
        deliveries.append(Delivery(channel, outbox, ledger, name))
    return deliveries


def _work(settings: Settings, watch: _Watch, ledger: Ledger, report: Report, stop: threading.Event) -> None:
    """Looks and reports until `stop`."""
    report_at_s = forget_at_s = time.monotonic()
    while True:
        watch.look()
        now_s = time.monotonic()
        if now_s >= report_at_s:
            report_at_s = now_s + _REPORT_S
            report(_state(watch.deliveries))
        if now_s >= forget_at_s + _FORGET_S:
            forget_at_s = now_s
            ledger.forget(time.time_ns() // 1000, settings.notify.age_max_s * 1_000_000)
            for delivery in watch.deliveries:
                delivery.forget()
        if stop.wait(min(watch.wait_s, _REPORT_S)):
            return


class _Watch:
    """Looks at the table when that is due, however often it is asked to."""

    def __init__(self, table: AlertsTable, deliveries: Sequence[Delivery], poll_s: float) -> None:
        self.deliveries = deliveries
        self._table = table
        self._poll_s = table.poll_s(poll_s)
        self._backoff = Backoff()
        self._next_at_s = 0.0

    @property
    def wait_s(self) -> float:
        """Seconds until the next `look` is due."""
        return max(self._next_at_s - time.monotonic(), 0.0)

    def look(self) -> None:
        """Looks, if it is due. Raises what ended a target's thread."""
        for delivery in self.deliveries:
            delivery.check()
        if time.monotonic() >= self._next_at_s:
            self.look_now()

    def look_now(self) -> None:
        """Hands over what has changed. What can't be read now is read later."""
        now_s = time.monotonic()
        self._next_at_s = now_s + self._poll_s
        try:
            if not self._table.has_news():
                return
            episodes = self._table.read(min(delivery.oldest_us() for delivery in self.deliveries))
        except TransientError as error:
            pause_s = self._backoff.next_pause()
            self._next_at_s = now_s + pause_s
            _log.warning("waiting_for_alerts", error=str(error), retry_in_s=round(pause_s, 2))
            return
        self._backoff.reset()
        for delivery in self.deliveries:
            delivery.take_in(episodes)


def _end(deliveries: Sequence[Delivery]) -> None:
    for delivery in deliveries:
        delivery.end()
    deadline_s = time.monotonic() + _END_WITHIN_S
    for delivery in deliveries:
        delivery.join(max(deadline_s - time.monotonic(), 0.0))
    for delivery in deliveries:
        delivery.check()


def _state(deliveries: Sequence[Delivery]) -> dict[str, object]:
    targets = [delivery.state() for delivery in deliveries]
    totals = {
        f"notifications_{name}": sum(int(str(target[name])) for target in targets)
        for name in ("sent", "failed", "waiting")
    }
    return {**totals, "targets": targets}
