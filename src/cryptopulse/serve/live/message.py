"""The messages that subscribers get: a snapshot of a topic, and then its changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, eq=False)
class LiveMessage:
    """One message, made once for all subscribers."""

    topic: str
    """See `channels`, `charts.CHART_TOPIC` and `query_cache.ANSWER`."""
    kind: Literal["snapshot", "change"]
    data: dict[str, Any] = field(repr=False)
    """Plain values that JSON can hold; NaN becomes null in `text`."""

    @cached_property
    def text(self) -> str:
        """The message as JSON, encoded at first use."""
        return _encoder.encode({"topic": self.topic, "kind": self.kind, **self.data}).decode()
