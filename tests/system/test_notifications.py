"""Alerts on their way to people: the real notifier, a real webhook, and tables that the real pipeline makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptopulse import cli
from cryptopulse.settings import Settings
from cryptopulse.status import processes_of, read_status
from support import some
from support_notify import SECRET, Market, Post, Webhook
from support_processes import PATIENCE_S, Command, Exchange, Processes, Tables, wait_until


@pytest.fixture
def other() -> Iterator[Webhook]:
    made = Webhook()
    yield made
    made.close()


def start(processes: Processes, market: Market, *webhooks: Webhook, **settings: object) -> Command:
    targets = json.dumps([{"url": webhook.url, **settings} for webhook in webhooks])
    notifier = processes.start("notify", "--lake", str(market.lake.path), NOTIFY__TARGETS=targets)
    wait_until(lambda: notifier.events("notifier_started"), f"it runs: {notifier.said}")
    return notifier


def test_an_episode_is_told_when_it_opens_when_it_escalates_and_when_it_closes_once_each(
    processes: Processes, market: Market, webhook: Webhook
) -> None:
    notifier = start(processes, market, webhook)
    (alert_id,) = market.crash("BTC")
    wait_until(lambda: webhook.told == [(alert_id, "opened")], f"it is told: {notifier.said}")
    market.trade(BTC=97.5)
    wait_until(lambda: len(webhook.told) == 2, "it has escalated")
    market.trade(BTC=97.4)  # no other severity: no news
    market.trade(BTC=95)
    wait_until(lambda: len(webhook.told) == 3, "it has escalated again")
    market.calm_down()
    wait_until(lambda: len(webhook.told) == 4, "it is closed")
    assert notifier.stop() == 0
    assert webhook.told == [(alert_id, event) for event in ("opened", "escalated", "escalated", "closed")]
    assert [post.content["alerts"][0]["severity"] for post in webhook.posts] == ["WARNING", "HIGH", *["CRITICAL"] * 2]
    assert "FLASH_CRASH BTC-USD −1.5 % in 1 s (100.00 → 98.50), WARNING" in webhook.posts[0].content["title"]
    keys = {post.headers["Idempotency-Key"] for post in webhook.posts}
    assert len(keys) == 4

    again = start(processes, market, webhook)
    status = read_status(market.lake.settings.state_dir, "notifier")
    assert again.stop() == 0
    assert len(webhook.posts) == 4, status


def test_a_first_start_tells_of_the_last_minutes_and_not_of_history(
    processes: Processes, market: Market, webhook: Webhook
) -> None:
    market.crash("OLD")
    market.calm_down()
    market.wait(120)
    recent = market.crash("BTC")
    targets = webhook.targets()
    lookback_s = str(int(time.time() - market.seconds + 30))
    options = {"NOTIFY__TARGETS": targets, "NOTIFY__FIRST_LOOKBACK_S": lookback_s}
    notifier = processes.start("notify", "--lake", str(market.lake.path), **options)
    wait_until(lambda: webhook.told, f"it is told: {notifier.said}")
    assert notifier.stop() == 0
    assert webhook.told == [(recent[0], "opened")]


def test_what_happened_while_nobody_told_is_told_at_the_next_start(
    processes: Processes, market: Market, webhook: Webhook
) -> None:
    notifier = start(processes, market, webhook)
    (first,) = market.crash("BTC")
    wait_until(lambda: webhook.told, "the first is told")
    assert notifier.stop() == 0
    (second,) = market.crash("ETH")  # which also closes the first
    start(processes, market, webhook)
    wait_until(lambda: len(webhook.told) == 3, "all is told")
    assert webhook.told == [(first, "opened"), (first, "closed"), (second, "opened")]


def test_a_receiver_that_is_down_is_told_when_it_is_back_and_others_do_not_wait(
    processes: Processes, market: Market, webhook: Webhook, other: Webhook
) -> None:
    port = other.port
    other.close()
    notifier = start(processes, market, other, webhook)
    (alert_id,) = market.crash("BTC")
    wait_until(lambda: webhook.told, "the one that is up is told")
    market.trade(BTC=95)
    wait_until(lambda: len(webhook.told) == 2, "and of what follows")
    wait_until(lambda: notifier.events("notification_failed"), "the other is tried")
    told = ""

    def says_it() -> bool:  # the figures are a moment old
        nonlocal told
        told = processes.call("status", "--lake", str(market.lake.path), NOTIFY__TARGETS=webhook.targets()).stdout
        return "failed, 1 waiting; target 1 (JSON): A Connection error occurred" in told

    wait_until(says_it, "the status tells of it")
    back = Webhook(port=port)
    wait_until(lambda: back.told, "it is back and is told")
    assert back.told == [(alert_id, "opened")]
    assert back.accepted[0].content["alerts"][0]["severity"] == "CRITICAL"  # as things are by then
    assert notifier.stop() == 0
    back.close()
    assert SECRET not in notifier.said + told + str(read_status(market.lake.settings.state_dir, "notifier"))


@pytest.mark.parametrize("code", some(1, [429, 500]))
def test_a_receiver_that_refuses_gets_it_again_until_it_takes_it(
    processes: Processes, market: Market, webhook: Webhook, code: int
) -> None:
    webhook.answer = lambda _: code if len(webhook.posts) < 3 else 200
    notifier = start(processes, market, webhook)
    (alert_id,) = market.crash("BTC")
    wait_until(lambda: webhook.told, f"it is taken: {notifier.said}")
    assert len({post.headers["Idempotency-Key"] for post in webhook.posts}) == 1
    assert [event["error"][-4:-1] for event in notifier.events("notification_failed")] == [str(code)] * 2
    market.calm_down()
    wait_until(lambda: len(webhook.told) == 2, "it is closed")
    assert webhook.told == [(alert_id, "opened"), (alert_id, "closed")]


def test_a_slow_receiver_gets_each_message_once_and_keeps_nobody_waiting(
    processes: Processes, market: Market, webhook: Webhook, other: Webhook
) -> None:
    is_released = threading.Event()

    def slow(_: Post) -> int:
        time.sleep(6)  # longer than apprise would wait by itself
        is_released.wait(PATIENCE_S)
        return 200

    other.answer = slow
    notifier = start(processes, market, other, webhook)
    (alert_id,) = market.crash("BTC")
    wait_until(lambda: webhook.told, "the quick one is told")
    market.trade(BTC=95)
    wait_until(lambda: len(webhook.told) == 2, "and of what follows")
    assert other.accepted == []
    is_released.set()
    wait_until(lambda: len(other.posts) == 2, "the slow one has the first and is sent the second")
    assert notifier.stop() == 0  # in order: it waits for the answer
    assert other.told == [(alert_id, "opened"), (alert_id, "escalated")]
    assert len(other.posts) == 2


def test_a_burst_is_folded_and_leaves_nothing_out(processes: Processes, market: Market, webhook: Webhook) -> None:
    notifier = start(processes, market, webhook)
    alert_ids = market.crash(*(f"P{number}" for number in range(200)))
    wait_until(lambda: len(webhook.told) >= 200, f"all are told: {notifier.said[-2000:]}")
    assert Counter(webhook.told) == Counter({(alert_id, "opened"): 1 for alert_id in alert_ids})
    assert len(webhook.posts) <= 20
    assert webhook.posts[-1].content["title"].startswith("191 more episodes: 191 FLASH_CRASH")


def test_filters_choose_who_is_told_of_what(
    processes: Processes, market: Market, webhook: Webhook, other: Webhook
) -> None:
    targets = json.dumps(
        [
            {"url": webhook.url, "products": ["BTC-*"], "on": ["opened"]},
            {"url": other.url, "severity": "CRITICAL", "rules": ["mov?"]},
        ]
    )
    notifier = processes.start("notify", "--lake", str(market.lake.path), NOTIFY__TARGETS=targets)
    wait_until(lambda: notifier.events("notifier_started"), "it runs")
    bitcoin, ether = market.crash("BTC", "ETH")
    market.trade(BTC=99, ETH=95)
    market.calm_down()
    wait_until(lambda: len(other.told) == 2, f"the severe one is told: {notifier.said}")
    assert notifier.stop() == 0
    assert webhook.told == [(bitcoin, "opened")]
    assert other.told == [(ether, "opened"), (ether, "closed")]


Called = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """Carries out a command in this process, with these targets."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("CRYPTOPULSE_"):
            monkeypatch.delenv(name)

    def call(*arguments: str, targets: str = "[]") -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("CRYPTOPULSE_NOTIFY__TARGETS", targets)
        capsys.readouterr()
        code = cli.run(arguments)
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return call


def test_a_wrong_target_is_one_line_that_names_it_and_not_its_address(processes: Processes, call: Called) -> None:
    good, bad = {"url": f"json://127.0.0.1:9/{SECRET}"}, {"url": f"slack://{SECRET}"}
    targets = json.dumps([good, bad])
    run = ["run", "--no-view", "--websocket-url", "ws://127.0.0.1:9/", "--lake", "lake"]
    tried = [call(*command, "--lake", "lake", targets=targets) for command in (["notify"], ["alerts", "test-notify"])]
    for ended in (*tried, processes.call(*run, NOTIFY__TARGETS=targets)):
        assert ended.returncode == 2, ended.stderr
        assert "url of target 2" in ended.stderr
        assert SECRET not in ended.stderr + ended.stdout
    for command in (["notify"], ["alerts", "test-notify"]):
        ended = call(*command, "--lake", "lake")
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
        assert "No notification targets" in ended.stderr


def test_a_test_message_says_who_took_it(call: Called, webhook: Webhook, other: Webhook) -> None:
    other.answer = lambda _: 500
    targets = json.dumps([{"url": webhook.url}, {"url": other.url}])
    tried = call("alerts", "test-notify", targets=targets)
    assert (tried.returncode, tried.stderr) == (1, "")
    assert [line.split()[0] for line in tried.stdout.splitlines() if "JSON" in line] == ["1", "2"]
    assert "1 (JSON)   accepted" in tried.stdout
    assert "error=500" in tried.stdout
    assert SECRET not in tried.stdout
    assert len(webhook.accepted) == 1
    assert webhook.accepted[0].content["alerts"] == []
    one = call("alerts", "test-notify", "--target", "1", "--json", targets=targets)
    assert (one.returncode, json.loads(one.stdout)[0]["accepted"]) == (0, True)
    assert (len(webhook.posts), len(other.posts)) == (2, 1)
    wrong = call("alerts", "test-notify", "--target", "3", targets=targets)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_a_second_notifier_on_a_lake_is_refused(processes: Processes, market: Market, webhook: Webhook) -> None:
    start(processes, market, webhook)
    second = processes.call("notify", "--lake", str(market.lake.path), NOTIFY__TARGETS=webhook.targets())
    assert (second.returncode, second.stderr.count("\n")) == (5, 1), second.stderr


def test_the_pipeline_knows_nothing_of_notifications() -> None:
    """It can't wait for what it does not even load: they share a table, no lock, no queue and no process."""
    script = (
        "import sys, cryptopulse.pipeline, cryptopulse.engine.embedded, cryptopulse.store.maintenance\n"
        "import cryptopulse.telemetry, cryptopulse.producer\n"
        "print([name for name in sys.modules if name.startswith(('cryptopulse.serve', 'apprise'))])"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_a_crash_on_the_exchange_reaches_a_webhook_within_seconds_and_a_stuck_receiver_delays_no_trade(
    processes: Processes, webhook: Webhook, other: Webhook, tmp_path: Path
) -> None:
    is_over = threading.Event()

    def stuck(_: Post) -> int:
        is_over.wait(60)
        return 500

    other.answer = stuck
    lake = tmp_path / "lake"
    staged = ("--episode", "crash:BTC-USD@2s:3%/2s")
    exchange = Exchange(processes, "--start", "all_subscribed", *staged, products=3, rate=200)
    targets = json.dumps([{"url": other.url}, {"url": webhook.url}])
    settings = {**exchange.feed(), "NOTIFY__TARGETS": targets}
    run = processes.start("run", "--lake", str(lake), **settings)
    wait_until(lambda: webhook.told, f"the webhook is told: {run.said[-3000:]}")
    first = webhook.accepted[0].content["alerts"][0]
    assert (first["alert_type"], first["symbol"], first["event"]) == ("FLASH_CRASH", "BTC-USD", "opened")
    status = processes.call("status", "--lake", str(lake), "--json", **settings)
    assert status.returncode == 0, status.stdout
    shown = {process["name"]: process for process in json.loads(status.stdout)["processes"]}
    assert list(shown) == ["producer", "processing", "notifier"]
    assert shown["notifier"]["report"]["notifications_sent"] >= 1
    ledger = exchange.stop_trading()
    wait_until(lambda: Tables(lake).reach(ledger), "every trade is stored though a receiver is stuck")
    assert len(other.posts) == 1
    is_over.set()
    assert run.stop() == 0, run.said[-3000:]
    assert SECRET not in run.said + status.stdout
    stopped = [event["name"] for event in run.events("process_stopped")]
    assert stopped == ["producer", "processing", "notifier"]


def test_a_notifier_that_dies_is_started_again_and_never_ends_the_deployment(
    processes: Processes, webhook: Webhook, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"
    exchange = Exchange(processes, products=2, rate=50)
    run = processes.start("run", "--lake", str(lake), **exchange.feed(), NOTIFY__TARGETS=webhook.targets())
    killed: set[int] = set()
    for _ in range(6):  # one more than an essential process would be given
        pid = wait_until(lambda: {run.child("notify")} - {None} - killed, "it is there").pop()
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    assert run.popen.poll() is None
    wait_until(lambda: len(run.events("process_died")) == 6, "every death is said")
    assert {event["name"] for event in run.events("process_died")} == {"notifier"}
    assert run.stop() == 0


def test_a_deployment_without_targets_has_no_notifier() -> None:
    assert processes_of(Settings()) == ("producer", "processing", "dashboard")
