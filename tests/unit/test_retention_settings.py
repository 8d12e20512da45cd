"""The settings of retention are checked at the start, in one line each."""

from __future__ import annotations

from typing import Any

import pytest

from cryptopulse.errors import ConfigurationError
from cryptopulse.lake.retention import runs_of, with_runs
from cryptopulse.settings import load_settings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bronze_days": 0}, "Setting retention.bronze_days: Input should be greater than or equal to 1"),
        ({"bronze_days": "a month"}, "Setting retention.bronze_days: Input should be a valid integer"),
        ({"silver_days": 1}, "Setting retention.silver_days: Input should be greater than or equal to 2"),
        ({"coverage_days": 3}, "Setting retention: there is no coverage_days; days can go from bronze (bronze_days), "),
        ({"quarantine_days": 3}, "Setting retention: quarantine_days must be at least bronze_days, which must be set"),
        ({"bronze_days": 4, "quarantine_days": 3}, "Setting retention: quarantine_days must be at least bronze_days"),
    ],
)
def test_a_wrong_setting_is_one_line(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        load_settings(retention=given)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_spark_refuses_it() -> None:
    with pytest.raises(ConfigurationError, match=r"retention.bronze_days needs processing.engine = embedded"):
        load_settings(retention={"bronze_days": 30}, processing={"engine": "spark"})


def test_days_without_a_hole_are_one_run_for_ever() -> None:
    positions: dict[str, int] = {}

    def position(source: str) -> int:
        return positions.get(source, -1)

    for more in ([(1, 45), (47, 80)], [(81, 120)], [(46, 46)], [(121, 160)], [(161, 200)]):
        positions |= with_runs(position, "BTC-USD", more)
    assert runs_of(position, "BTC-USD") == [(1, 45), (47, 120), (46, 46), (121, 200)]
    assert runs_of(position, "ETH-USD") == []
