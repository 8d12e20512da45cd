"""Alerts: their types, how severe an episode is, what it measured as text, and what its `alert_id` is made of."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Final, Literal, get_args

from cryptopulse.text import decimal_text

AlertType = Literal[
    "FLASH_CRASH",
    "PRICE_SURGE",
    "VOLUME_SURGE",
    "BUY_IMBALANCE",
    "SELL_IMBALANCE",
    "VOLATILITY",
    "DISLOCATION",
    "SILENCE",
    "CUSTOM",
]

Kind = Literal["price", "volume", "imbalance", "volatility", "dislocation", "silence", "custom"]

KINDS: Final[dict[AlertType, Kind]] = {
    "FLASH_CRASH": "price",
    "PRICE_SURGE": "price",
    "VOLUME_SURGE": "volume",
    "BUY_IMBALANCE": "imbalance",
    "SELL_IMBALANCE": "imbalance",
    "VOLATILITY": "volatility",
    "DISLOCATION": "dislocation",
    "SILENCE": "silence",
    "CUSTOM": "custom",
}
"""Alert type → what it measures."""

SHARED_KINDS: Final = frozenset[Kind](("dislocation", "custom"))
"""Judged by the trades of several products."""

TIMED_KINDS: Final = frozenset[Kind](("silence", "custom"))
"""Judged when a time has passed, not at a trade."""

Severity = Literal["WARNING", "HIGH", "CRITICAL"]

SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
"""The least severe first."""

THRESHOLDS: Final[dict[Severity, int]] = {"WARNING": 1, "HIGH": 2, "CRITICAL": 4}
"""Severity → multiple of the rule's threshold from which it applies."""


_USUAL: Final[dict[AlertType, str]] = {"VOLUME_SURGE": "volume", "SILENCE": "gap"}
"""Types that measure a multiple of something usual."""


def severity_of(thresholds: Fraction) -> Severity:
    """The severity of what was measured, given in multiples of the rule's threshold."""
    return max((name for name in SEVERITIES if thresholds >= THRESHOLDS[name]), key=SEVERITIES.index, default="WARNING")


def measured_text(alert_type: AlertType, percent: float) -> str:
    """What an episode measured: `−3.2 %`, `7.3× the usual volume`, `+85 %` net of the volume, `1.2 %` of volatility, or
    the value of a custom rule as a plain number.
    """
    digits = f"{abs(percent):,.2f}".rstrip("0").rstrip(".")
    if alert_type in _USUAL:
        return f"{percent / 100:,.1f}× the usual {_USUAL[alert_type]}"
    if alert_type == "CUSTOM":
        return f"−{digits}" if percent < 0 else digits
    sign = "" if alert_type == "VOLATILITY" else "−" if percent < 0 else "+"
    return f"{sign}{digits} %"


def threshold_text(alert_type: AlertType, threshold_pct: Decimal) -> str:
    """What a rule waits for: `1 %`, `5× the usual volume`."""
    if alert_type in _USUAL:
        return f"{decimal_text(threshold_pct / 100)}× the usual {_USUAL[alert_type]}"
    return decimal_text(threshold_pct) + ("" if alert_type == "CUSTOM" else " %")


def family_of(alert_id: str) -> str:
    """`rule:type:product` of an episode. Episodes of one family don't overlap."""
    return alert_id.rpartition(":")[0]


def trigger_of(alert_id: str) -> int:
    """Id of the trade that opened an episode; -1 when `alert_id` names none."""
    trigger = alert_id.rpartition(":")[2]
    return int(trigger) if trigger.isdecimal() else -1
