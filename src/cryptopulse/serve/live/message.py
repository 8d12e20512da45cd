"""What subscribers are sent: a snapshot of a topic, and then what changes in it."""

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
    """`lake`, `market`, `alerts`, or `candles/<product>/<grain>`."""
    kind: Literal["snapshot", "change"]
    data: dict[str, Any] = field(repr=False)
    """Plain values: what JSON can say. Not a number is None there."""

    @cached_property
    def text(self) -> str:
        """It as JSON, encoded at the first use."""
        return _encoder.encode({"topic": self.topic, "kind": self.kind, **self.data}).decode()
