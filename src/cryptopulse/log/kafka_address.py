"""Address and credentials of a Kafka log, made from the settings, and the options for its clients. Does no I/O.

The settings give either `log.url = kafka://host:port,…/topic?security_protocol=…` for any Kafka, or the connection
string of an Azure Event Hubs namespace, from which the Kafka endpoint follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import parse_qsl

from cryptopulse.errors import ConfigurationError
from cryptopulse.settings import LogSettings

SCHEME = "kafka://"

SecurityProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

_URL_FORM = "kafka://host:port/topic"
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SERVER = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::(?P<port>\d{1,5}))?")
_PARAMETERS = ("security_protocol", "sasl_mechanism", "ssl_ca_location")
_PORT = 9092

_HUB_FORM = "Endpoint=sb://NAMESPACE.servicebus.windows.net/;SharedAccessKeyName=NAME;SharedAccessKey=KEY"
_HUB_USER = "$ConnectionString"  # Event Hubs' fixed user name; the whole connection string is the password
_HUB_PORT = 9093
_HUB_IDLE_MS = 180_000  # Azure cuts idle connections after 240 s
_HUB_REQUEST_MS = 60_000  # Azure's guide: the service itself takes up to 60 s
_HUB_REQUEST_BYTES = 1_046_528  # a larger request closes the connection without an answer
_HUB_BATCH_BYTES = 1_000_000  # leaves 45 kB for the request's own framing and the headers that the client can't count
_KEEPALIVE: Mapping[str, str | int] = {"socket.keepalive.enable": "true"}
_HUB_CLIENT: Mapping[str, str | int] = {
    "connections.max.idle.ms": _HUB_IDLE_MS,
    "metadata.max.age.ms": _HUB_IDLE_MS,
    "topic.metadata.refresh.interval.ms": _HUB_IDLE_MS,
    "message.max.bytes": _HUB_BATCH_BYTES,
}
_HUB_SPARK: Mapping[str, str] = {
    "kafka.connections.max.idle.ms": str(_HUB_IDLE_MS),
    "kafka.metadata.max.age.ms": str(_HUB_IDLE_MS),
    "kafka.request.timeout.ms": str(_HUB_REQUEST_MS),
}
_LOGIN_MODULES: Mapping[str, str] = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}
_DATABRICKS_SHADE = "kafkashaded."  # Databricks Runtime carries Kafka's client under this package


@dataclass(frozen=True)
class KafkaAddress:
    """A topic, the servers that have it, and the credentials. Its text shows no secret."""

    servers: tuple[str, ...]
    """`host:port` of the bootstrap servers."""
    topic: str
    security_protocol: SecurityProtocol = "PLAINTEXT"
    sasl_mechanism: SaslMechanism | None = None
    ssl_ca_location: str | None = None
    """A file of certificates (PEM) to trust instead of the machine's."""
    is_event_hub: bool = False
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    extra: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further librdkafka options, from `log.kafka_options`."""

    @property
    def bootstrap_servers(self) -> str:
        """The servers as one text, separated by commas."""
        return ",".join(self.servers)

    @property
    def set_by(self) -> str:
        """Name of the setting that gives the address, for error messages."""
        return "EVENT_HUB_CONNECTION_STRING" if self.is_event_hub else "log.url"

    def __str__(self) -> str:
        """For messages: servers and topic."""
        return f"{SCHEME}{self.bootstrap_servers}/{self.topic}"

    def client_options(self) -> dict[str, str | int]:
        """Options of librdkafka for every kind of client, secrets included."""
        options: dict[str, str | int] = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            **_KEEPALIVE,
        }
        if self.is_event_hub:
            options |= _HUB_CLIENT
        if self.sasl_mechanism is not None:
            options |= {"sasl.mechanism": self.sasl_mechanism}
            options |= {"sasl.username": self.username or "", "sasl.password": self.password or ""}
        if self.ssl_ca_location is not None:
            options |= {"ssl.ca.location": self.ssl_ca_location}
        return options | dict(self.extra)

    def producer_options(self) -> dict[str, str | int]:
        """Options of librdkafka for a producer: `client_options` and producer-only ones."""
        options: dict[str, str | int] = {}
        if self.is_event_hub:  # gzip is the only compression that it takes
            options = {"compression.type": "gzip", "request.timeout.ms": _HUB_REQUEST_MS}
        return options | self.client_options()

    def spark_options(self, databricks: bool = False) -> dict[str, str]:
        """Options of Spark's Kafka source, secrets included, without those that say what to read.

        `databricks`: for its runtime, which renames the classes of Kafka's client. `log.kafka_options` are left out:
        they are librdkafka's.
        """
        options = {
            "kafka.bootstrap.servers": self.bootstrap_servers,
            "kafka.security.protocol": self.security_protocol,
        }
        if self.is_event_hub:
            options |= _HUB_SPARK
        if self.sasl_mechanism is not None:
            module = (_DATABRICKS_SHADE if databricks else "") + _LOGIN_MODULES[self.sasl_mechanism]
            user, password = _jaas_text(self.username or ""), _jaas_text(self.password or "")
            options["kafka.sasl.mechanism"] = self.sasl_mechanism
            options["kafka.sasl.jaas.config"] = f"{module} required username={user} password={password};"
        if self.ssl_ca_location is not None:
            options["kafka.ssl.truststore.type"] = "PEM"
            options["kafka.ssl.truststore.location"] = self.ssl_ca_location
        return options


def kafka_address(settings: LogSettings) -> KafkaAddress | None:
    """The Kafka address in the settings; None for the embedded log.

    `log.url` decides; without it, an Event Hubs connection string does. Raises ConfigurationError, without secrets
    in its text.
    """
    if settings.url is not None:
        return _from_url(settings) if settings.url.startswith(SCHEME) else None
    if settings.eventhub_connection_string is not None:
        return _from_connection_string(settings)
    return None


def _from_url(settings: LogSettings) -> KafkaAddress:
    place, _, query = (settings.url or "").removeprefix(SCHEME).partition("?")
    servers, _, topic = place.partition("/")
    if "@" in place + query:  # not shown: it may hold a password, with a / or ? in it
        raise ConfigurationError(
            "Setting log.url: user name and password don't belong into the URL; set log.kafka_username and "
            "log.kafka_password (CRYPTOPULSE_LOG__KAFKA_PASSWORD)."
        )
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    for name in parameters:
        if name not in _PARAMETERS:
            raise ConfigurationError(
                f"Setting log.url: there is no parameter {name!r}, only {', '.join(_PARAMETERS)}; other options of "
                "the client go to log.kafka_options, passwords to log.kafka_password."
            )
    username = settings.kafka_username
    protocol = parameters.get("security_protocol", "PLAINTEXT" if username is None else "SASL_SSL").upper()
    if protocol not in get_args(SecurityProtocol):
        raise ConfigurationError(
            f"Setting log.url: security_protocol {protocol!r} is none of {', '.join(get_args(SecurityProtocol))}."
        )
    mechanism = _mechanism(settings, protocol, parameters.get("sasl_mechanism"))
    return KafkaAddress(
        servers=tuple(_server(text.strip()) for text in servers.split(",")),
        topic=_topic(topic.rstrip("/"), f"Setting log.url: write {_URL_FORM}"),
        security_protocol=protocol,  # type: ignore[arg-type] # one of them, as was just checked
        sasl_mechanism=mechanism,
        ssl_ca_location=parameters.get("ssl_ca_location"),
        username=username if mechanism else None,
        password=settings.kafka_password.get_secret_value() if mechanism and settings.kafka_password else None,
        extra=_extra(settings),
    )


def _mechanism(settings: LogSettings, protocol: str, named: str | None) -> SaslMechanism | None:
    """The SASL mechanism, PLAIN unless named; None without SASL."""
    if not protocol.startswith("SASL_"):
        if named is not None or settings.kafka_username is not None:
            raise ConfigurationError(
                f"Setting log.url: security_protocol {protocol} has no user; use SASL_SSL, or leave sasl_mechanism "
                "and log.kafka_username away."
            )
        return None
    mechanism = (named or "PLAIN").upper()
    for known in get_args(SaslMechanism):
        if mechanism == known:
            if settings.kafka_username is None or settings.kafka_password is None:
                raise ConfigurationError(
                    f"Setting log.kafka_username: {protocol} needs log.kafka_username and log.kafka_password "
                    "(CRYPTOPULSE_LOG__KAFKA_USERNAME, CRYPTOPULSE_LOG__KAFKA_PASSWORD)."
                )
            return known  # type: ignore[no-any-return] # one of the literals
    raise ConfigurationError(
        f"Setting log.url: sasl_mechanism {mechanism!r} is none of {', '.join(get_args(SaslMechanism))}."
    )


def _server(text: str) -> str:
    found = _SERVER.fullmatch(text)
    port = int((found and found["port"]) or _PORT)
    if not found or not 0 < port < 65_536:
        raise ConfigurationError(f"Setting log.url: {text!r} is no server; write {_URL_FORM}.")
    return f"{found['host']}:{port}"


def _topic(name: str, instead: str) -> str:
    if not _TOPIC.fullmatch(name) or name in (".", ".."):
        raise ConfigurationError(f"{instead}; {name!r} is no topic (letters, digits, '.', '_' and '-').")
    return name


def _extra(settings: LogSettings) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in settings.kafka_options.items()}


def _from_connection_string(settings: LogSettings) -> KafkaAddress:
    assert settings.eventhub_connection_string is not None
    text = settings.eventhub_connection_string.get_secret_value().strip()
    parts = {}  # Name=value;…, names in lower case; a key may end with `=`
    for part in filter(None, (part.strip() for part in text.split(";"))):
        key, equals, value = part.partition("=")
        if not equals:
            raise _malformed("a part of it has no '='")
        parts[key.strip().lower()] = value.strip()
    emulator = parts.get("usedevelopmentemulator", "").lower() == "true"
    endpoint = re.fullmatch(r"sb://([A-Za-z0-9.-]+)(?::\d{1,5})?/?", parts.get("endpoint", ""), re.IGNORECASE)
    if not endpoint:
        raise _malformed("it has no Endpoint=sb://…")
    has_key = parts.get("sharedaccesskeyname") and parts.get("sharedaccesskey")
    if not has_key and not parts.get("sharedaccesssignature"):
        raise _malformed("it has no SharedAccessKeyName and SharedAccessKey")
    name = parts.get("entitypath") or settings.eventhub_name
    return KafkaAddress(
        servers=(f"{endpoint[1]}:{_PORT if emulator else _HUB_PORT}",),
        topic=_topic(name, "Setting log.eventhub_name: this can't be a hub's name"),
        security_protocol="SASL_PLAINTEXT" if emulator else "SASL_SSL",
        sasl_mechanism="PLAIN",
        is_event_hub=True,
        username=_HUB_USER,
        password=text,
        extra=_extra(settings),
    )


def _malformed(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"EVENT_HUB_CONNECTION_STRING (log.eventhub_connection_string) can't be read: {what}. It looks like "
        f"{_HUB_FORM}."
    )


def _jaas_text(text: str) -> str:
    """`text` quoted for JAAS."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
