"""Where settings come from, which source wins, and what is said about a wrong one."""

from __future__ import annotations

import json
import os
import re
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cryptopulse.errors import ConfigurationError
from cryptopulse.settings import Settings, load_settings
from cryptopulse.settings.text import as_toml, described


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, and no variables of ours."""
    for name in list(os.environ):
        if name.startswith("CRYPTOPULSE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_source_wins_over_the_one_before(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().feed.quote_currency == "USD"
    (clean / "cryptopulse.toml").write_text('[feed]\nquote_currency = "EUR"')
    assert load_settings().feed.quote_currency == "EUR"
    monkeypatch.setenv("CRYPTOPULSE_FEED__QUOTE_CURRENCY", "GBP")
    assert load_settings().feed.quote_currency == "GBP"
    (clean / ".env").write_text("CRYPTOPULSE_FEED__QUOTE_CURRENCY=BTC")
    assert load_settings().feed.quote_currency == "BTC"
    assert load_settings(feed={"quote_currency": "USDC"}).feed.quote_currency == "USDC"


def test_an_option_leaves_the_other_settings_of_its_section_alone(clean: Path) -> None:
    (clean / "cryptopulse.toml").write_text('[feed]\ndialect = "advanced"')
    settings = load_settings(feed={"products": "ETH-USD", "websocket_url": None}, lake=None)
    assert (settings.feed.dialect, settings.feed.products) == ("advanced", ["ETH-USD"])


def test_a_named_configuration_file_is_read_instead_of_the_usual_one(clean: Path) -> None:
    (clean / "cryptopulse.toml").write_text('lake = "usual"')
    (clean / "other.toml").write_text('lake = "other"')
    assert load_settings(clean / "other.toml").lake == str(clean / "other")
    with pytest.raises(ConfigurationError, match="no configuration file"):
        load_settings(clean / "missing.toml")


@pytest.mark.parametrize("text", ['["btc-usd", "ETH-USD"]', "BTC-USD, ETH-USD", "btc-usd,ETH-USD,BTC-USD"])
def test_products_may_be_written_with_commas_or_as_json(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYPTOPULSE_FEED__PRODUCTS", text)
    assert load_settings().feed.products == ["BTC-USD", "ETH-USD"]


def test_a_rule_of_the_configuration_file_keeps_its_exact_decimals(clean: Path) -> None:
    (clean / "cryptopulse.toml").write_text('[[alerts.rules]]\nthreshold_pct = 0.7\nproducts = ["BTC-*"]')
    (rule,) = load_settings().alerts.rules
    assert rule.threshold_pct == Decimal("0.7")
    assert rule.applies_to("BTC-EUR")
    assert not rule.applies_to("ETH-EUR")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CRYPTOPULSE_FEED__PRODUCTS", "BTCUSD", "feed.products: Invalid product id 'BTCUSD'"),
        ("CRYPTOPULSE_FEED__PRODUCTS", '["BTC-USD"', "feed.products: "),
        ("CRYPTOPULSE_FEED__DIALECT", "kraken", "feed.dialect: "),
        ("CRYPTOPULSE_FEED__PRODUCT", "BTC-USD", "feed.product: there is no such setting"),
        ("CRYPTOPULSE_FED__PRODUCTS", "BTC-USD", "CRYPTOPULSE_FED__PRODUCTS: no such setting"),
        ("CRYPTOPULSE_HEALING__LOOK_INTERVAL_S", "60", "it is called healing.table_check_interval_s now"),
        ("CRYPTOPULSE_LOG__GROUP_COMMIT_MS", "0", "log.group_commit_ms: "),
        ("CRYPTOPULSE_ALERTS", "{", "can't be read"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=re.escape(message)) as error:
        load_settings()
    assert "\n" not in str(error.value)


_RULE = "alerts.rules.0."


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"threshold_pct": "100"}, "threshold_pct: a price can't fall by 100 percent"),
        ({"types": ["VOLUME_SURGE"]}, "threshold_pct: 100 percent is the usual volume"),
        ({"types": ["BUY_IMBALANCE"], "threshold_pct": "100.1"}, "threshold_pct: an imbalance is at most 100 percent"),
        ({"types": ["VOLATILITY"], "threshold_pct": "1e9"}, "threshold_pct: "),
        ({"types": ["SILENCE"]}, "threshold_pct: 100 percent is the usual gap: write more, as in 500 for five times"),
        ({"types": ["DISLOCATION"], "lookback_s": 1201}, "lookback_s: a dislocation is known by three times"),
        (
            {"types": ["SILENCE"], "threshold_pct": 300, "lookback_s": 600},
            "baseline_windows: (baseline_windows + 3) × lookback_s is at most 7200 seconds: write 9 or less",
        ),
        ({"types": ["CUSTOM"]}, 'sql: types = ["CUSTOM"] and sql belong together'),
        ({"sql": "SELECT 1"}, 'sql: types = ["CUSTOM"] and sql belong together'),
        ({"types": ["FLASH_CRASH", "VOLATILITY"]}, "types: FLASH_CRASH and VOLATILITY can't share a threshold"),
        ({"types": ["SILENT"]}, "types.0: "),
        (
            {"types": ["VOLUME_SURGE"], "threshold_pct": "500", "lookback_s": 600},
            "baseline_windows: (baseline_windows + 2) × lookback_s is at most 7200 seconds: write 10 or less",
        ),
        (
            {"types": ["VOLUME_SURGE"], "threshold_pct": "500", "lookback_s": 3600},
            "baseline_windows: (baseline_windows + 2) × lookback_s is at most 7200 seconds: lower lookback_s to 1440",
        ),
    ],
)
def test_a_rule_that_can_not_be_is_named_in_one_line(
    rule: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYPTOPULSE_ALERTS__RULES", json.dumps([rule]))
    with pytest.raises(ConfigurationError, match=re.escape(f"Setting {_RULE}{message}")) as error:
        load_settings()
    assert "\n" not in str(error.value)


def test_a_mistyped_name_in_a_file_is_an_error_and_other_programs_variables_are_not(clean: Path) -> None:
    (clean / ".env").write_text("DATABASE_URL=postgres://elsewhere\nCRYPTOPULSE_LAKE=here")
    assert load_settings().lake == str(clean / "here")
    (clean / ".env").write_text("CRYPTOPULSE_LAEK=here")
    with pytest.raises(ConfigurationError, match="no such setting"):
        load_settings()
    (clean / ".env").unlink()
    (clean / "cryptopulse.toml").write_text('laek = "here"')
    with pytest.raises(ConfigurationError, match="laek: there is no such setting"):
        load_settings()


def test_a_configuration_file_that_is_not_toml_is_the_users_error(clean: Path) -> None:
    (clean / "cryptopulse.toml").write_text("lake = [")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        load_settings()


def test_a_file_is_blamed_by_its_own_name(clean: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (clean / ".env").write_bytes(b"= what\n???\nCRYPTOPULSE_LAKE=here\n")
    assert load_settings().lake == str(clean / "here")
    (clean / ".env").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"^The file \.env can't be read"):
        load_settings()
    (clean / ".env").unlink()
    (clean / "cryptopulse.toml").write_bytes(b'\xef\xbb\xbflake = "here"\n')
    with pytest.raises(ConfigurationError, match=r"cryptopulse\.toml is not valid TOML: .* byte order mark"):
        load_settings()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("lake", ["", " ", "/", "file://", "file:///", "//"])
def test_a_lake_has_a_name(lake: str, clean: Path) -> None:
    with pytest.raises(ConfigurationError, match="lake: "):
        load_settings(lake=lake)
    (clean / "cryptopulse.toml").write_text("lake = 5")
    with pytest.raises(ConfigurationError, match="lake: "):
        load_settings()


def test_lakes_share_the_limit_of_the_exchange_and_not_that_of_a_simulator(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(clean / "state"))
    allowances = [load_settings(lake=lake).rest_allowance("https://api.exchange.coinbase.com") for lake in ("a", "b")]
    assert set(allowances) == {clean / "state" / "cryptopulse" / "rest-api.exchange.coinbase.com.allowance"}
    other = load_settings().rest_allowance("https://user:pw@[::1:x/../..")
    assert other.parent == allowances[0].parent
    assert "pw" not in other.name
    simulated = [load_settings(lake=lake).rest_allowance("http://127.0.0.1:1") for lake in "ab"]
    assert simulated == [clean / lake / "_cryptopulse" / "rest.allowance" for lake in "ab"]


def test_every_setting_says_what_it_means() -> None:
    undocumented = [setting.name for setting in described(Settings()) if len(setting.meaning) < 10]
    assert not undocumented


def test_the_written_configuration_file_states_the_defaults_and_nothing_else(clean: Path) -> None:
    """Every line of a default, taken out of its comment, leaves all settings as they are."""
    text = as_toml()
    (clean / "cryptopulse.toml").write_text(text)
    assert load_settings() == Settings.model_validate({})
    lines = [re.sub(r"^# (?=[a-z_]+ = |\[\[)", "", line) for line in text.splitlines() if "# not set" not in line]
    (clean / "cryptopulse.toml").write_text("\n".join(lines))
    assert load_settings() == Settings.model_validate({})
    written = tomllib.loads("\n".join(lines))
    for setting in described(Settings()):
        if setting.default is not None and setting.name != "alerts.rules":
            section, _, name = setting.name.rpartition(".")
            assert name in (written[section] if section else written), setting.name


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("kafka://user:p@ss/w:rd@broker:9092/trades", "kafka://user:**********@broker:9092/trades"),
        ("kafka://b:9092/t?sasl_password=secret&x=1", "kafka://b:9092/t?sasl_password=**********&x=1"),
        ("kafka://broker:9092/trades?security_protocol=SSL", "kafka://broker:9092/trades?security_protocol=SSL"),
        ("sqlite:/data/log.db", "sqlite:/data/log.db"),
    ],
)
def test_a_password_within_a_url_is_not_shown(clean: Path, url: str, shown: str) -> None:
    found = {setting.name: setting.value for setting in described(load_settings(log={"url": url}))}
    assert found["log.url"] == shown
