"""A rule tried from a form: refused in words when it can't be meant, else judged by the pipeline's judge."""

from __future__ import annotations

import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from structlog.testing import capture_logs

import dashboard_lake
from cryptopulse.engine.backtest import backtest
from cryptopulse.serve.dashboard import backtest_jobs
from cryptopulse.serve.dashboard.backtest_jobs import (
    BacktestJob,
    BacktestJobs,
    BacktestRequest,
    FormRejected,
    parse_form,
)
from cryptopulse.settings import AlertRule
from support import START, Lake

PATIENCE_S = 60.0
HELD = {"BTC-USD": 1000, "ETH-USD": 1000, "ETH-EUR": 10}
FORM = {"name": "mine", "threshold_pct": "0.5", "products": "*", "types": ["FLASH_CRASH", "PRICE_SURGE"]}


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    made = Lake(tmp_path_factory.mktemp("trial") / "lake")
    dashboard_lake.fill(made)
    yield made
    made.close()


@pytest.fixture
def trials(lake: Lake) -> Iterator[BacktestJobs]:
    made = BacktestJobs(lake.settings.location)
    yield made
    made.close()


def ended(trials: BacktestJobs, trial: BacktestJob) -> BacktestJob:
    deadline = time.monotonic() + PATIENCE_S
    while not trial.is_over:
        assert time.monotonic() < deadline
        trials.find(trial.id)
        time.sleep(0.02)
    return trial


def asked(threshold: str, *symbols: str) -> BacktestRequest:
    return BacktestRequest(AlertRule(threshold_pct=Decimal(threshold)), [symbols or ("BTC-USD", "ETH-USD")], None, None)


def test_a_form_becomes_a_rule_for_the_products_that_match() -> None:
    form = FORM | {"products": "*-USD", "lookback_s": "60", "cool_down_s": 30, "min_trades": "5", "min_volume": "0.1"}
    found = parse_form(form | {"start": START.timestamp() * 1000}, HELD)
    assert found.rule == AlertRule(
        name="mine",
        threshold_pct=Decimal("0.5"),
        products=["*-USD"],
        lookback_s=60,
        cool_down_s=30,
        min_trades=5,
        min_volume=Decimal("0.1"),
    )
    assert [symbol for part in found.parts for symbol in part] == ["BTC-USD", "ETH-USD"]
    assert (found.start, found.end) == (START, None)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"threshold_pct": "0"}, "threshold_pct", "above 0"),
        ({"threshold_pct": "-1"}, "threshold_pct", "above 0"),
        ({"threshold_pct": "much"}, "threshold_pct", "above 0"),
        ({"threshold_pct": ""}, "threshold_pct", "above 0"),
        ({"threshold_pct": "NaN"}, "threshold_pct", "above 0"),
        ({"lookback_s": "2h"}, "lookback_s", "whole seconds"),
        ({"lookback_s": "0"}, "lookback_s", "1 to 3600"),
        ({"cool_down_s": "-1"}, "cool_down_s", "0 to 86400"),
        ({"min_volume": "-1"}, "min_volume", "0 or more"),
        ({"min_trades": "1"}, "min_trades", "2 or more"),
        ({"name": "a b"}, "name", "without spaces"),
        ({"types": []}, "types", "one or more"),
        ({"types": ["SOMETHING"]}, "types", "one or more"),
        ({"types": ["FLASH_CRASH", "VOLATILITY"]}, "types", "FLASH_CRASH and VOLATILITY can't share a threshold"),
        ({"threshold_pct": "100"}, "threshold_pct", "Threshold: a price can't fall by 100 percent"),
        ({"products": "DOGE-USD"}, "products", "matches DOGE-USD"),
        ({"start": "then"}, "start", "a time"),
        ({"start": 1e300}, "start", "a time"),
        ({"start": 2_000_000.0, "end": 1_000_000.0}, "end", "later"),
    ],
)
def test_what_can_not_be_meant_is_refused_in_words_beside_its_field(
    changes: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(FormRejected) as refused:
        parse_form(FORM | changes, HELD)
    assert list(refused.value.faults) == [field]
    assert words in refused.value.faults[field]


def test_all_faults_of_a_form_are_told_at_once() -> None:
    with pytest.raises(FormRejected) as refused:
        parse_form(FORM | {"threshold_pct": "x", "lookback_s": "x", "end": "x"}, HELD)
    assert refused.value.faults.keys() == {"threshold_pct", "lookback_s", "end"}


def test_nothing_can_be_tried_on_an_empty_lake() -> None:
    with pytest.raises(FormRejected) as refused:
        parse_form(FORM, {})
    assert "empty" in refused.value.faults["products"]


def test_many_trades_are_judged_in_parts_with_every_product_in_one() -> None:
    held = {f"C{number}-USD": 100_000 for number in range(50)}
    parts = parse_form(FORM, held).parts
    assert 12 <= len(parts) <= 25
    assert [symbol for part in parts for symbol in part] == list(held)
    assert len(parse_form(FORM, HELD).parts) == 1


def test_a_trial_finds_what_the_judge_finds_and_a_lower_threshold_more(lake: Lake, trials: BacktestJobs) -> None:
    high, low = (ended(trials, trials.start(asked(threshold))) for threshold in ("3.05", "1"))
    for trial, threshold in ((high, "3.05"), (low, "1")):
        assert trial.state == "done", trial.message
        assert trial.done == trial.steps > 0
        assert trial.episodes is not None
        expected = backtest(lake.settings.location, [AlertRule(threshold_pct=Decimal(threshold))])
        assert sorted(trial.episodes["alert_id"].to_pylist()) == sorted(expected["alert_id"].to_pylist())
    assert high.episodes is not None
    assert low.episodes is not None
    assert 0 < high.episodes.num_rows < low.episodes.num_rows


def test_a_trial_ends_when_it_is_told_to(trials: BacktestJobs) -> None:
    first, second = (trials.start(asked("1")) for _ in range(2))
    trials.cancel(second.id)
    assert ended(trials, second).state == "cancelled"
    assert second.episodes is None
    assert ended(trials, first).state == "done"


def test_a_trial_that_nobody_looks_at_is_ended(trials: BacktestJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backtest_jobs, "UNSEEN_S", 0.0)
    trial = ended(trials, trials.start(asked("1")))
    assert (trial.state, trial.message) == ("cancelled", "Cancelled: the page was closed.")


def test_a_trial_that_takes_too_long_says_what_to_do(trials: BacktestJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backtest_jobs, "LONGEST_S", 0.0)
    trial = ended(trials, trials.start(asked("1")))
    assert trial.state == "cancelled"
    assert "shorter time" in str(trial.message)


def test_a_defect_in_a_trial_is_told_with_the_number_under_which_the_log_has_it(
    trials: BacktestJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(backtest_jobs, "backtest", fails)
    with capture_logs() as events:
        trial = ended(trials, trials.start(asked("1")))
    (event,) = [event for event in events if event["event"] == "unexpected_error"]
    assert (trial.state, event["number"] in str(trial.message)) == ("failed", True)
    assert isinstance(event["exc_info"], ZeroDivisionError)


def test_only_a_few_trials_wait(trials: BacktestJobs) -> None:
    started = [trials.start(asked("1")) for _ in range(5)]
    with pytest.raises(FormRejected, match="try again"):
        trials.start(asked("1"))
    for trial in started:
        trials.cancel(trial.id)
    for trial in started:
        ended(trials, trial)
    assert trials.start(asked("1")).id != started[0].id
