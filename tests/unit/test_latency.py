"""Latencies: the last seconds exactly, the whole run to a few percent."""

from __future__ import annotations

import numpy as np
import pytest

from cryptopulse import latency as latency_module
from cryptopulse.latency import Latency


def test_percentiles_of_a_run_are_exact_to_a_few_percent() -> None:
    latency = Latency()
    latency.add(np.array([], dtype=np.float64))
    assert latency.overall() == latency.lately() == {"p50": None, "p99": None, "max": None, "n": 0}
    values = np.random.default_rng(1).lognormal(3, 1, 50_000)
    for part in np.array_split(values, 7):
        latency.add(part)
    for found in (latency.overall(), latency.lately()):
        assert found["n"] == 50_000
        assert abs(found["p50"] / np.percentile(values, 50) - 1) < 0.03
        assert abs(found["p99"] / np.percentile(values, 99) - 1) < 0.03
        assert found["max"] == round(values.max(), 2)


def test_negative_latencies_of_differing_clocks_are_counted() -> None:
    latency = Latency()
    latency.add(np.array([-5.0, -4.0, 1.0]))
    assert latency.overall()["n"] == 3
    assert latency.lately()["p50"] == -4.0


def test_what_left_the_window_still_counts_for_the_whole_run_and_no_more_for_the_last_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(latency_module.time, "monotonic", lambda: now_s)
    latency, values = Latency(), np.random.default_rng(2).lognormal(3, 1, 3_000)
    for part in np.array_split(values, 1_000):
        latency.add(part)
        now_s += 0.1
    lately, overall = latency.lately(), latency.overall()
    assert lately["n"] == 300
    assert lately["p50"] == round(np.percentile(values[-300:], 50), 2)
    assert overall["n"] == 3_000
    assert overall["max"] == round(values.max(), 2)
    assert abs(overall["p99"] / np.percentile(values, 99) - 1) < 0.03
    now_s += 60
    assert latency.lately() == {"p50": None, "p99": None, "max": None, "n": 0}
    assert latency.overall() == overall
