"""Scripted moves of a price: crashes and surges that a market plays at a given time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.products import PRODUCT_ID

Kind = Literal["crash", "surge"]
Recovery = Literal["step", "v"]

_OPTION = re.compile(
    rf"(?P<kind>crash|surge):(?P<product>{PRODUCT_ID})@(?P<at>[0-9.]+)s?"
    r"(?::(?P<depth>[0-9.]+)%)?(?:/(?P<duration>[0-9.]+)s)?(?:/(?P<recovery>step|v))?"
)


@dataclass(frozen=True, slots=True)
class StagedEpisode:
    """One scripted move. Times are seconds of market time since the start of trading."""

    product: str
    at_s: float
    """When the move starts."""
    kind: Kind = "crash"
    depth_pct: float = 3.0
    """How far the price falls (rises), in percent of the price at the start."""
    duration_s: float = 8.0
    """How long it takes to get there."""
    recovery: Recovery = "step"
    """`step`: the price stays at its new level. `v`: it returns equally fast, which the alert rules rightly see as a
    second move in the other direction."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for invalid values."""
        if self.kind not in ("crash", "surge") or self.recovery not in ("step", "v"):
            raise ConfigurationError(f"Episode {self.kind}/{self.recovery}: use crash or surge, step or v.")
        if not self.at_s >= 0:
            raise ConfigurationError(f"Episode of {self.product}: it can't start before trading does.")
        if not 0 < self.depth_pct <= 90:
            raise ConfigurationError(f"Episode of {self.product}: the depth must be over 0 % and at most 90 %.")
        if not 0 < self.duration_s <= 86_400:
            raise ConfigurationError(f"Episode of {self.product}: the duration must be over 0 s, at most a day.")

    @property
    def end_s(self) -> float:
        """When the price has reached its new level (`step`) or is back (`v`)."""
        return self.at_s + self.duration_s * (2 if self.recovery == "v" else 1)

    def factor(self, time_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The factor of the product's price at each of the times `time_s`."""
        progress = np.maximum((time_s - self.at_s) / self.duration_s, 0.0)
        way = np.minimum(progress, 1.0)
        if self.recovery == "v":
            way = np.maximum(np.minimum(way, 2.0 - progress), 0.0)
        sign = -1.0 if self.kind == "crash" else 1.0
        return 1.0 + sign * self.depth_pct / 100.0 * way


def parse_episode(text: str) -> StagedEpisode:
    """An episode from its short form `crash:BTC-USD@20s:3%/8s/v`.

    Kind, product and start are required; depth (3 %), duration (8 s) and recovery (step) have defaults.
    Raises ConfigurationError, whose message shows the form, for anything else.
    """
    match = _OPTION.fullmatch(text.strip())
    if match is None:
        raise ConfigurationError(
            f"Episode {text!r} can't be read: write crash:BTC-USD@20s:3% or surge:ETH-USD@60s:2.5%/10s/v."
        )
    given = match.groupdict()
    try:
        return StagedEpisode(
            product=given["product"],
            at_s=float(given["at"]),
            kind=cast("Kind", given["kind"]),
            depth_pct=float(given["depth"] or 3.0),
            duration_s=float(given["duration"] or 8.0),
            recovery=cast("Recovery", given["recovery"] or "step"),
        )
    except ValueError as error:
        raise ConfigurationError(f"Episode {text!r} has a figure that is not a number: {error}.") from error


def check_products(episodes: Iterable[StagedEpisode], product_ids: Iterable[str]) -> None:
    """Raises ConfigurationError when the product of an episode is not traded."""
    traded = set(product_ids)
    for episode in episodes:
        if episode.product not in traded:
            raise ConfigurationError(f"Episode of {episode.product}: the simulated market does not trade it.")
