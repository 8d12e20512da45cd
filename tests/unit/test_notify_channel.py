"""The way out through apprise: what a receiver gets, what is said of a failure, and that no address is ever shown."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptopulse import logging_setup
from cryptopulse.errors import ConfigurationError
from cryptopulse.notify.channel import Channel, open_channels
from cryptopulse.notify.delivery import ledger_names
from cryptopulse.notify.episodes import Item, Known, Notification
from cryptopulse.notify.render import AlertMessage, message_of
from cryptopulse.settings import LoggingSettings, Settings, load_settings
from cryptopulse.settings.text import described
from support_notify import SECRET, Webhook, episode, target

NOTHING = Known(0, is_closed=False, last_trigger_us=0)
CRASH = message_of(Notification((Item(episode(rank=1), ("opened",), NOTHING),)))
TWO = message_of(Notification(tuple(Item(episode(n), ("opened",), NOTHING) for n in (100, 200))))


def channel(url: str) -> Channel:
    return Channel(1, target(url=url))


def test_a_json_webhook_gets_text_fields_and_a_key_to_know_repeats_by(webhook: Webhook) -> None:
    assert channel(webhook.url).send(CRASH) is None
    (post,) = webhook.accepted
    assert post.content["title"] == CRASH.title
    assert post.content["message"] == CRASH.body
    assert post.content["type"] == "warning"
    assert post.content["alerts"] == list(CRASH.alerts)
    assert (post.content["alert_id"], post.content["event"]) == (episode().alert_id, "opened")
    assert post.headers["Idempotency-Key"] == CRASH.key
    assert post.headers["X-Token"] == f"{SECRET}-header"
    assert post.path == f"/{SECRET}/hook"


def test_the_fields_of_one_message_are_not_left_in_the_next(webhook: Webhook) -> None:
    way = channel(f"{webhook.url}&:team=market")
    for message in (CRASH, TWO):
        assert way.send(message) is None
    first, second = (post.content for post in webhook.accepted)
    assert first["team"] == second["team"] == "market"
    assert "alert_id" not in second
    assert [alert["alert_id"] for alert in second["alerts"]] == [episode(n).alert_id for n in (100, 200)]


@pytest.mark.parametrize("scheme", ["form", "xml"])
def test_forms_and_xml_get_the_alert_id_as_a_field_too(webhook: Webhook, scheme: str) -> None:
    way = channel(f"{scheme}://127.0.0.1:{webhook.port}/")
    assert way.send(CRASH) is None
    assert way.send(TWO) is None
    one, two = (post.body.decode().replace("%3A", ":").replace("%2C", ",") for post in webhook.accepted)
    assert f"{episode().alert_id}" in one
    assert f"{episode(100).alert_id},{episode(200).alert_id}" in two


@pytest.mark.parametrize("code", [302, 403, 429, 500])
def test_an_answer_that_is_no_yes_is_a_failure_that_names_the_code(webhook: Webhook, code: int) -> None:
    webhook.answer = lambda _: code
    assert f"error={code}" in str(channel(webhook.url).send(CRASH))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """Our log as a user who looks for a fault has it; the logging of before afterwards."""
    handlers = logging.getLogger().handlers[:]
    file = tmp_path / "notifier.log"
    logging_setup.configure(LoggingSettings(level="DEBUG"), "notifier", logging_setup.BoundedFile(file))
    yield file
    logging.captureWarnings(capture=False)
    logging.getLogger().handlers[:] = handlers


def test_a_failure_says_nothing_that_the_address_is_made_of(
    webhook: Webhook, log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    way = channel(webhook.url)
    webhook.close()
    error = way.send(CRASH)
    assert error == "A Connection error occurred sending JSON notification to …."
    logging.getLogger("other").warning("said")
    captured = capfd.readouterr()
    assert "said" in log.read_text()
    for text in (log.read_text(), captured.out, captured.err, way.name):
        assert SECRET not in text
        assert "127.0.0.1" not in text


def test_an_error_that_a_service_raises_is_a_failure_without_the_address() -> None:
    class Broken:
        def notify(self, **_: Any) -> None:
            raise RuntimeError(f"can't reach host with {SECRET} and {SECRET}-password")

    way = channel(f"json://user:{SECRET}-password@127.0.0.1/{SECRET}")
    way._sender = Broken()
    assert way.send(CRASH) == "RuntimeError: can't reach host with … and …"


@pytest.mark.parametrize(
    "url", [f"nonsense://{SECRET}", f"slack://{SECRET}", SECRET, f"json://{SECRET}:pw@:x", "json:"]
)
def test_an_address_that_is_none_is_named_by_its_number_only(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError, match="target 2") as error:
        open_channels([target(), target(url=url)])
    captured = capfd.readouterr()
    assert SECRET not in f"{error.value} {captured.out} {captured.err}"
    assert error.value.__cause__ is None
    assert "\n" not in str(error.value)


def test_without_apprise_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'cryptopulse\[notify\]'"):
        channel("json://127.0.0.1")


def test_services_of_all_kinds_are_known_by_their_number_and_kind() -> None:
    urls = (
        "json://127.0.0.1",
        "slack://T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX",
        "discord://123456789012345678/abcdefghijklmnopqrstuvwxyz",
        "tgram://123456789:abcdefg_hijklmnop/12315544",
        "mailto://user:password@gmail.com",
    )
    names = [way.name for way in open_channels([target(url=url) for url in urls])]
    assert names == ["1 (JSON)", "2 (Slack)", "3 (Discord)", "4 (Telegram)", "5 (E-Mail)"]


def test_the_settings_never_show_an_address(webhook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRYPTOPULSE_NOTIFY__TARGETS", webhook.targets(severity="HIGH"))
    settings = load_settings()
    assert settings.notify.targets[0].url.get_secret_value() == webhook.url
    shown = {setting.name: setting.value for setting in described(settings)}["notify.targets"]
    assert shown[0]["severity"] == "HIGH"
    assert SECRET not in f"{json.dumps(shown)} {settings!r} {settings} {settings.notify.model_dump_json()}"
    for wrong in ('{"severity": "LOW"}', '{"on": ["opend"]}', '{"messages_per_minute_max": 1}', '{"ulr": 1}'):
        text = f'[{{"url": "{webhook.url}", {wrong[1:]}]'
        monkeypatch.setenv("CRYPTOPULSE_NOTIFY__TARGETS", text)
        with pytest.raises(ConfigurationError, match=r"notify\.targets\.0\.") as error:
            load_settings()
        assert SECRET not in str(error.value)
    monkeypatch.setenv("CRYPTOPULSE_NOTIFY__TARGETS", webhook.url)
    with pytest.raises(ConfigurationError, match="notify") as error:
        load_settings()
    assert SECRET not in str(error.value)


def test_what_is_handed_to_a_child_is_read_as_the_same_settings(
    webhook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRYPTOPULSE_NOTIFY__TARGETS", webhook.targets(severity="HIGH", products=["*-USD"]))
    settings: Settings = load_settings()
    monkeypatch.delenv("CRYPTOPULSE_NOTIFY__TARGETS")
    monkeypatch.setenv("CRYPTOPULSE_NOTIFY", settings.notify.in_clear_text())
    assert load_settings().notify == settings.notify


def test_a_target_is_known_to_the_ledger_by_its_address_wherever_it_stands_in_the_list() -> None:
    one, other = target(url=f"json://{SECRET}"), target(url="json://other")
    again = target(url=f"json://{SECRET}", severity="HIGH")
    first = ledger_names([one, other, again])
    assert ledger_names([other, one, again]) == [first[1], first[0], first[2]]
    assert len(set(first)) == 3
    assert SECRET not in "".join(first)


def test_the_message_of_many_reaches_a_webhook_whole(webhook: Webhook) -> None:
    rows = [Item(episode(n, symbol=f"P{n}-USD"), ("opened",), NOTHING) for n in range(500)]
    message: AlertMessage = message_of(Notification(tuple(rows)))
    assert channel(webhook.url).send(message) is None
    assert len(webhook.accepted[0].content["alerts"]) == 500
