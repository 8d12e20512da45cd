"""The settings of the dashboard and the HTTP API."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
"""Hosts that only this machine can reach."""


class ServeSettings(BaseModel):
    """The dashboard and the HTTP API; see docs/dashboard.md and docs/api.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    enabled: bool = True
    """Whether `run` starts them. `cryptopulse serve` starts them alone, on any machine that sees the lake."""
    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on. Any other than this machine's own (127.0.0.1, ::1) needs a `token`."""
    port: int = Field(default=8050, ge=0, le=65_535)
    """Port to listen on; 0: any that is free."""
    token: SecretStr | None = Field(default=None, min_length=16)
    """What a visitor must know: 16 characters or more. Better set as `CRYPTOPULSE_SERVE__TOKEN` than written into a
    file."""
    allowed_hosts: list[str] = []
    """Names by which browsers reach the server beside `host` itself, as behind a proxy: `["trades.example.org"]`."""
    poll_ms: int = Field(default=50, ge=10, le=60_000)
    """How often a local lake is looked at for news. On S3 and Azure, where looking is a request that is paid for, every
    two seconds at most."""
    query_timeout_s: float = Field(default=10.0, gt=0, le=600)
    """What a visitor asks is given up after this time."""
    queries_at_once: int = Field(default=4, ge=1, le=64)
    """So many questions of visitors are answered at the same time; four times as many wait, the rest are told to come
    back."""
    fresh_s: float = Field(default=120.0, gt=0)
    """`/readyz` says that the server is not ready when the newest trade was loaded longer ago than this."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if not self.is_local and self.token is None:
            raise ValueError(
                f"to listen on {self.host}, where others can reach it, set a token as well: "
                "CRYPTOPULSE_SERVE__TOKEN, 16 characters or more"
            )
        return self
