"""Sends messages to one target: the only module that uses apprise, and the only one that has addresses in clear text.

apprise writes addresses, or parts of them, into errors and log lines. So its log is discarded; its log lines about a
message become the reason of a failure, without any part of the address.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from cryptopulse.errors import ConfigurationError
from cryptopulse.notify.render import AlertMessage
from cryptopulse.settings.notify import NotifyTarget

_CONNECT_TIMEOUT_S = 10.0
# A slow service has usually taken the message, and giving up early would send it again. apprise's default is 4 s.
_ANSWER_TIMEOUT_S = 60.0
_WEBHOOKS = frozenset({"json", "jsons", "form", "forms", "xml", "xmls"})
_SHORTEST_SECRET = 3  # "of" is no secret, and hiding it would make every reason unreadable
_REASON_MAX = 300
_LIBRARIES = ("apprise", "urllib3", "requests")


class Channel:
    """Sends messages to one target. Use it from one thread at a time."""

    def __init__(self, number: int, target: NotifyTarget) -> None:
        """`number`: position of the target in `notify.targets`, from 1; part of its name in logs and messages.

        Raises ConfigurationError when apprise can't use the address or is not installed.
        """
        try:
            import apprise  # noqa: PLC0415 - takes a quarter of a second, and is not there everywhere
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != "apprise":
                raise
            raise ConfigurationError("Notifications need apprise: pip install 'cryptopulse[notify]'.") from error
        for name in _LIBRARIES:  # discard their logs
            library = logging.getLogger(name)
            library.propagate = False
            library.setLevel(logging.WARNING)  # lower levels log whole addresses
            library.addHandler(logging.NullHandler())
        url = target.url.get_secret_value().strip()
        self._secrets = _secrets(url)
        self._type = apprise.NotifyType
        self._text = apprise.NotifyFormat.TEXT
        asset = apprise.AppriseAsset(app_id="CryptoPulse", app_desc="CryptoPulse alerts", async_mode=False)
        service = _service(apprise, number, url, asset)
        self.name = f"{number} ({service.service_name})"
        """The target's name in logs and messages."""
        if "rto=" not in url:
            service.socket_read_timeout = _ANSWER_TIMEOUT_S
        if "cto=" not in url:
            service.socket_connect_timeout = _CONNECT_TIMEOUT_S
        service.retry, service.optional = 0, False  # `Delivery` retries and judges failures
        self._service = service
        self._sender = apprise.Apprise(service, asset=asset)
        self._is_webhook = bool(service.schemas() & _WEBHOOKS)
        if self._is_webhook:
            self._extras, self._headers = dict(service.payload_extras), dict(service.headers)

    def send(self, message: AlertMessage) -> str | None:
        """Sends and waits for the answer; returns None if it was accepted, else the reason, without secrets."""
        if self._is_webhook:  # the episodes as fields, and a header to recognize repeated messages
            fields: dict[str, Any] = {"alerts": list(message.alerts)}
            alert = message.alerts[0] if len(message.alerts) == 1 else {}
            if alert:
                fields |= {name: alert[name] for name in ("alert_id", "event")}
            if "json" not in self._service.schemas():  # forms and XML have only strings
                fields = {name: str(value) for name, value in alert.items() if value is not None}
                fields["alert_ids"] = ",".join(alert["alert_id"] for alert in message.alerts)
            self._service.payload_extras = self._extras | fields
            self._service.headers = self._headers | {"Idempotency-Key": message.key}
        try:
            result = self._sender.notify(
                title=message.title, body=message.body, notify_type=self._type(message.kind), body_format=self._text
            )
            if result:
                return None
            said = [entry.message for entry in result.logs()]
        except Exception as error:  # noqa: BLE001 - a service's fault must not end the process, nor show the address
            said = [f"{type(error).__name__}: {error}"]
        reason = said[-1] if said else "not accepted"
        for secret in self._secrets:
            reason = re.sub(re.escape(secret), "…", reason, flags=re.IGNORECASE)
        return " ".join(reason.split())[:_REASON_MAX]


def open_channels(targets: Sequence[NotifyTarget]) -> list[Channel]:
    """A channel for each target. Raises ConfigurationError with the number of the first invalid one."""
    return [Channel(number, target) for number, target in enumerate(targets, 1)]


def _service(apprise: Any, number: int, url: str, asset: Any) -> Any:
    try:
        service = apprise.Apprise.instantiate(url, asset=asset)
    except Exception:  # noqa: BLE001 - whatever it says has the address in it
        service = None
    if service is None:
        raise ConfigurationError(
            f"notify.targets: apprise can't use the url of target {number}. Its documentation says how addresses are "
            "written, as in slack://…, mailtos://… or jsons://…; `cryptopulse alerts test-notify` tries them."
        )
    return service


def _secrets(url: str) -> list[str]:
    """All parts of an address except its scheme, as written and percent-decoded, the longest first."""
    scheme, _, rest = url.partition("://")
    parts = {url, rest}
    for text in (rest, unquote(rest)):
        parts |= {text, *re.split(r"[/?&=@:#,+\s]+", text)}
    parts |= {unquote(part) for part in parts}
    return sorted((part for part in parts if len(part) >= _SHORTEST_SECRET and part != scheme), key=len, reverse=True)
