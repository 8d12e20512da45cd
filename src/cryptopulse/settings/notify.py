"""The settings of notifications: where alerts are sent, and which."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from cryptopulse.lake.alerts import Severity
from cryptopulse.lake.products import as_written

Event = Literal["opened", "escalated", "closed"]
"""Events of an episode that can be sent."""


class _NotifySection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NotifyTarget(_NotifySection):
    """One receiver of messages. Several targets may share an address and select different alerts."""

    url: SecretStr = Field(min_length=1)
    """Address as apprise writes it: `slack://…`, `discord://…`, `tgram://…`, `mailtos://…`, `jsons://…`. A secret: no
    log, no error and no command shows it."""
    rules: list[str] = ["*"]
    """Names of alert rules, or shell patterns."""
    products: list[str] = ["*"]
    """Product ids or shell patterns (`*-USD`)."""
    severity: Severity = "WARNING"
    """Lowest severity that is sent."""
    on: list[Event] = ["opened", "escalated", "closed"]
    """Which events of an episode are sent."""
    messages_per_minute_max: int = Field(default=20, ge=2, le=600)
    """Above this rate, several episodes share one message."""

    def watches(self, rule: str, symbol: str) -> bool:
        """Whether episodes of this rule and product are sent, if they are severe enough."""
        return any(fnmatchcase(rule, pattern) for pattern in self.rules) and any(
            fnmatchcase(symbol, as_written(pattern)) for pattern in self.products
        )


class NotifySettings(_NotifySection):
    """Who is notified of alerts; see docs/alerts.md."""

    first_lookback_s: int = Field(default=600, ge=0, le=86_400)
    """A new target gets episodes whose last trade over the threshold is at most this old, in seconds."""
    age_max_s: int = Field(default=86_400, ge=60, le=2_592_000)
    """A target gets no first message about an episode whose last trade over the threshold is older than this, in
    seconds, as after a long failure, a backfill or a rebuild."""
    poll_ms: int = Field(default=100, ge=10, le=60_000)
    """Time between two polls of the table of alerts. On S3 and Azure, where each poll is a paid request, at least two
    seconds."""
    targets: list[NotifyTarget] = []
    """Receivers of messages, as tables `[[notify.targets]]` in the configuration file. Without targets nothing is sent,
    and `run` starts no notifier process."""

    def in_clear_text(self) -> str:
        """The section as JSON, secrets included, for the environment of a child process."""
        targets = [{**target.model_dump(), "url": target.url.get_secret_value()} for target in self.targets]
        return json.dumps({**self.model_dump(), "targets": targets})
