"""The settings of the dashboard and the HTTP API."""

from __future__ import annotations

import ipaddress
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

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
    """Token that clients must present: 16 characters or more. Better set as `CRYPTOPULSE_SERVE__TOKEN` than written
    into a file."""
    allowed_hosts: list[str] = []
    """Host names by which browsers reach the server, besides `host`: behind a proxy `["trades.example.org"]`."""
    proxies: list[str] = []
    """Addresses or networks of proxies in front of the server: `["127.0.0.1"]`. `X-Forwarded-For` and
    `X-Forwarded-Proto` are trusted only when they come from one of these."""
    connections_max: int = Field(default=2000, ge=16, le=100_000)
    """Connection limit; lower where the system allows fewer open files."""
    connections_per_address_max: int = Field(default=200, ge=8, le=100_000)
    """Connection limit per client address, or per IPv6 /64 network. This machine and proxies have no such limit."""
    poll_ms: int = Field(default=50, ge=10, le=60_000)
    """Time between two polls of the lake for new commits. On S3 and Azure, where each poll is a paid request, at least
    two seconds."""
    query_timeout_s: float = Field(default=10.0, gt=0, le=600)
    """Time limit of a query."""
    queries_at_once: int = Field(default=4, ge=1, le=64)
    """Queries that run at the same time; four times as many wait, others are refused with 503."""
    fresh_s: float = Field(default=120.0, gt=0)
    """`/readyz` says that the server is not ready when the newest trade was loaded longer ago than this."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK

    @field_validator("proxies")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        return [str(ipaddress.ip_network(one)) for one in value]

    @model_validator(mode="after")
    def _is_guarded(self) -> Self:
        if not self.is_local and self.token is None:
            raise ValueError(
                f"to listen on {self.host}, where others can reach it, set a token as well: "
                "CRYPTOPULSE_SERVE__TOKEN, 16 characters or more"
            )
        return self
