"""kill -9 of the notifier at the worst moments and at random ones: nothing is left out, and repeats can be known.

The moments come from a seed, which is printed; CRYPTOPULSE_TEST_SEED sets it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict

import pytest
from tally import TALLY

from support import some
from support_notify import Market, Post, Webhook
from support_processes import Command, Processes, wait_until

_SEED = os.environ.pop("CRYPTOPULSE_TEST_SEED", None)  # no setting of the program, which would refuse it


@pytest.fixture
def chance() -> random.Random:
    seed = time.time_ns() % 1_000_000 if _SEED is None else int(_SEED)
    print(f"CRYPTOPULSE_TEST_SEED={seed}")
    return random.Random(seed)


class Notifier:
    """The command `notify`, started again whenever it was killed."""

    def __init__(self, processes: Processes, market: Market, webhook: Webhook) -> None:
        self._processes, self._market, self._webhook = processes, market, webhook
        self.kills = 0
        self.command = self.start()

    def start(self) -> Command:
        lake = str(self._market.lake.path)
        return self._processes.start("notify", "--lake", lake, NOTIFY__TARGETS=self._webhook.targets())

    def kill(self) -> None:
        self.kills += 1
        TALLY["kills"] += 1
        self.command.kill()
        self.command = self.start()


def story(webhook: Webhook) -> dict[str, list[tuple[str, str]]]:
    """What the receiver makes of each episode when it leaves out what it has seen: event and severity."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for post in webhook.accepted:
        for alert in post.content["alerts"]:
            for event in alert["events"]:
                news = (event, alert["severity"])
                if news not in found[alert["alert_id"]]:
                    found[alert["alert_id"]].append(news)
    return found


def test_a_kill_between_the_receivers_yes_and_the_record_repeats_that_message_and_no_other(
    processes: Processes, market: Market, webhook: Webhook
) -> None:
    """The receiver itself kills the notifier, just before it would hear the answer, at each first message of a kind."""
    killed_at: set[str] = set()
    notifier = Notifier(processes, market, webhook)

    def take_and_kill(post: Post) -> int:
        key = post.headers["Idempotency-Key"]
        if key not in killed_at:
            killed_at.add(key)
            os.kill(notifier.command.popen.pid, signal.SIGKILL)
        return 200

    webhook.answer = take_and_kill
    (alert_id,) = market.crash("BTC")
    steps = (lambda: None, lambda: market.trade(BTC=97.5), market.calm_down)
    for number, step in enumerate(steps, 1):
        step()
        wait_until(lambda n=number: len(killed_at) == n, f"message {number} is there")
        notifier.kill()
        wait_until(lambda n=number: len(webhook.accepted) == 2 * n, f"message {number} is repeated")
    assert notifier.command.stop() == 0
    assert webhook.told == [(alert_id, event) for event in ("opened", "escalated", "closed") for _ in range(2)]
    firsts, repeats = webhook.accepted[::2], webhook.accepted[1::2]
    for first, repeat in zip(firsts, repeats, strict=True):
        assert first.headers["Idempotency-Key"] == repeat.headers["Idempotency-Key"]
        assert first.body == repeat.body


@pytest.mark.parametrize("waves", some(1, [3, 12]))
def test_kills_at_random_moments_leave_nothing_out_and_keep_the_order(
    processes: Processes, market: Market, webhook: Webhook, chance: random.Random, waves: int
) -> None:
    webhook.answer = lambda _: 500 if chance.random() < 0.1 else 200
    notifier = Notifier(processes, market, webhook)
    alert_ids = []
    for wave in range(waves):
        bases = [f"P{wave}X{number}" for number in range(chance.randint(1, 12))]
        alert_ids += market.crash(*bases)
        time.sleep(chance.uniform(0, 1.5))
        if chance.random() < 0.8:
            notifier.kill()
        market.trade(**dict.fromkeys(bases, 97.5))
        time.sleep(chance.uniform(0, 0.5))
    market.calm_down()

    def is_all_told() -> bool:
        told = story(webhook)
        return all(("closed", "HIGH") in told[alert_id] for alert_id in alert_ids)

    wait_until(is_all_told, f"all is told after {notifier.kills} kills: {notifier.command.said[-2000:]}")
    assert notifier.command.stop() == 0
    told = story(webhook)
    assert told.keys() == set(alert_ids)
    for alert_id in alert_ids:
        # Who was down may have missed how it was in between, but never the beginning or the end. The beginning comes
        # twice when it was repeated after a kill, as it is by then.
        events = [event for event, _ in told[alert_id]]
        assert events in (["opened", "escalated", "closed"], ["opened", "closed"], ["opened", "opened", "closed"])
