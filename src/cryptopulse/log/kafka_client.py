"""What all Kafka clients here share: collecting trouble with brokers, and translating errors.

librdkafka reconnects and retries by itself, and reports trouble through callbacks. `BrokerMonitor` collects the
reports, logs them at most every 10 s, and translates them to `cryptopulse.errors` when a call has failed.
"""

from __future__ import annotations

import threading
import time
from typing import Any, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, ThrottleEvent
from confluent_kafka.admin import AdminClient

from cryptopulse.errors import ConfigurationError, CryptoPulseError, Disconnected, LogDamaged, MessageTooLarge
from cryptopulse.log.kafka_address import KafkaAddress

_WARN_EVERY_S = 10.0  # librdkafka repeats an error with every attempt to connect
_QUIET = 2  # syslog's "critical": librdkafka's own lines on standard error repeat what the callbacks report
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 1_000  # instead of 10 s: a broker that is back should not wait for us

_REFUSED = {
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.ILLEGAL_SASL_STATE,
}
_NO_TOPIC = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}
_DAMAGED = {KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG}
_VAGUE = {KafkaError._ALL_BROKERS_DOWN}  # follows the errors that say why
UNREACHABLE = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._UNKNOWN_PARTITION,  # a client loses its metadata with the last broker
}
"""Errors that mean an unreachable broker."""

_log = structlog.get_logger()


class BrokerMonitor:
    """Collects the trouble that one client reports about its brokers. Threads may share it."""

    def __init__(self, address: KafkaAddress) -> None:
        """`address`: for messages, and for the options of the client."""
        self.address = address
        self.throttled_at = 0.0
        """When a broker last throttled the client (monotonic seconds)."""
        self._trouble: KafkaError | None = None
        self._warned_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def options(self, base: dict[str, str | int]) -> dict[str, Any]:
        """`base` plus the callbacks and common options; `base` overrides the latter."""
        return {
            "client.id": "cryptopulse",
            "log_level": _QUIET,
            "socket.nagle.disable": True,
            "reconnect.backoff.ms": _RECONNECT_MS,
            "reconnect.backoff.max.ms": _RECONNECT_MAX_MS,
            **base,
            "error_cb": self.report,
            "throttle_cb": self._throttle,
        }

    @property
    def trouble(self) -> KafkaError | None:
        """The last error since the last call of `works`; None for none."""
        return self._trouble

    @property
    def refused(self) -> bool:
        """Whether the brokers refuse this user."""
        return self._trouble is not None and self._trouble.code() in _REFUSED

    def works(self) -> None:
        """Call after a broker's answer: earlier trouble is over."""
        self._trouble = None

    def report(self, error: KafkaError) -> None:
        """Records an error."""
        vague = UNREACHABLE if self.refused else _VAGUE  # a broker that refuses us also disconnects
        if self._trouble is None or error.code() not in vague:
            self._trouble = error

    def failed(self, error: KafkaException) -> None:
        """Records a call that failed, unless the reason was reported already."""
        if self._trouble is None:
            self._trouble = error.args[0]

    def warn_waiting(self, doing: str) -> None:
        """Logs, at most every 10 s, that Kafka does not answer."""
        reason = "no answer" if self._trouble is None else reason_of(self._trouble)
        self._warn("waiting_for_kafka", doing=doing, error=reason)

    def _throttle(self, event: ThrottleEvent) -> None:
        self.throttled_at = time.monotonic()
        self._warn("kafka_throttled", broker=event.broker_name, by_s=round(event.throttle_time, 3))

    def _warn(self, what: str, **values: object) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._warned_at.get(what, -_WARN_EVERY_S) < _WARN_EVERY_S:
                return
            self._warned_at[what] = now
        _log.warning(what, log=str(self.address), **values)

    def as_error(self, doing: str, error: KafkaError | KafkaException | None = None) -> CryptoPulseError:
        """Translates `error`, or the last reported trouble, to `cryptopulse.errors`. `doing`: "write to", "read"."""
        found: KafkaError | None = error.args[0] if isinstance(error, KafkaException) else error
        if found is None or found.code() in UNREACHABLE:
            found = self._trouble or found
        address, reason = self.address, "it does not answer" if found is None else reason_of(found)
        code = None if found is None else found.code()
        if code in _REFUSED:
            where = (
                address.set_by if address.is_event_hub else "log.kafka_username, log.kafka_password, the user's rights"
            )
            return ConfigurationError(f"The Kafka log {address} refuses us: {reason}. Check {where}.")
        if code in _NO_TOPIC:
            return ConfigurationError(
                f"The Kafka log {address} is gone: {reason}. If the topic is made again, raise log.epoch by one."
            )
        if code in _DAMAGED:
            return LogDamaged(
                f"The Kafka log {address} is damaged: {reason}. Nothing behind the record was read; look at the broker."
            )
        if code in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE):
            return MessageTooLarge(
                f"The Kafka log {address} refuses a message or batch for its size: {reason}. Compare the topic's "
                "max.message.bytes with message.max.bytes in log.kafka_options."
            )
        return Disconnected(
            f"Can't {doing} the Kafka log {address}: {reason}. Look at the brokers, or at {address.set_by}."
        )


def reason_of(error: KafkaError) -> str:
    """librdkafka's text on one line, without a final full stop."""
    return " ".join(str(error.str()).split()).rstrip(". ")


def number(options: dict[str, str | int], name: str, default: int) -> int:
    """An option as an int. Raises ConfigurationError for anything else."""
    try:
        return int(options.get(name, default))
    except ValueError as error:
        raise ConfigurationError(f"Setting log.kafka_options: {name} must be a whole number.") from error


_Client = TypeVar("_Client", Producer, Consumer, AdminClient)


def create_client(kind: type[_Client], options: dict[str, Any]) -> _Client:
    """A client of `kind`. Raises ConfigurationError for options that librdkafka refuses."""
    try:
        return kind(options)
    except KafkaException as error:
        raise ConfigurationError(
            f"Settings log.url and log.kafka_options: the Kafka client refuses them: {reason_of(error.args[0])}."
        ) from error
