"""kill -9 of Spark's driver and of the Kafka broker under load, and a second driver: nothing lost, nothing doubled.

The moments come from a seed, which is printed; CRYPTOPULSE_TEST_SEED sets it. CRYPTOPULSE_TEST_KILLS sets the rounds;
without it there are 4, as each takes about a minute.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from kafka_broker import KafkaBroker
from requirements import jars
from spark_session import spark_conf

from cryptopulse.lake.tables import BARS, BRONZE, COMPLETENESS
from cryptopulse.log import MESSAGE_SCHEMA
from cryptopulse.log.opening import open_log
from cryptopulse.settings import load_settings
from support import Trade, at, model_bars
from support_audit import audit
from support_processes import Command, Exchange, Id, Processes, Tables, same_trades, wait_until

pytestmark = pytest.mark.cluster

PRODUCTS = 6
RATE = 300.0
QUOTIENTS = ("vwap", "load_timestamp", "window_date", "rest_count")  # a hole may have been healed meanwhile
_SEED = os.environ.pop("CRYPTOPULSE_TEST_SEED", None)  # no settings of the program, which would refuse them
_KILLS = int(os.environ.pop("CRYPTOPULSE_TEST_KILLS", "4"))
_CATCH_UP_S = 600.0  # a driver starts again after each kill, beside another test on two cores


@pytest.fixture
def chance() -> random.Random:
    seed = time.time_ns() % 1_000_000 if _SEED is None else int(_SEED)
    print(f"CRYPTOPULSE_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    with KafkaBroker(tmp_path / "kafka", jars("kafka")) as started:
        started.create_topic("trades", partitions=2)
        yield started


class Driver:
    """`process --engine spark`, started again as its user would."""

    def __init__(self, processes: Processes, lake: Path, log_url: str) -> None:
        conf = json.dumps(spark_conf())
        self._start = lambda: processes.start(
            "process", "--lake", str(lake), "--engine", "spark", LOG__URL=log_url, SPARK__CONF=conf
        )
        self.command: Command = self._start()

    def kill(self) -> None:
        """kill -9 of Python's side and of Java's at once."""
        java = psutil.Process(self.command.popen.pid).children(recursive=True)
        self.command.kill()
        for process in java:
            with suppress(psutil.NoSuchProcess):  # Java ends by itself when it notices that Python has gone
                process.kill()
        psutil.wait_procs(java)
        self.command = self._start()


def test_kills_of_driver_and_broker_lose_and_double_nothing(
    processes: Processes, broker: KafkaBroker, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, log_url = processes.folder / "lake", f"kafka://{broker.bootstrap}/trades"
    tables = Tables(lake)
    exchange = Exchange(processes, "--start", "all_subscribed", products=PRODUCTS, rate=RATE)
    driver = Driver(processes, lake, log_url)
    producer = processes.start("produce", "--lake", str(lake), LOG__URL=log_url, **exchange.feed())
    wait_until(lambda: len({symbol for symbol, _ in tables.ids()}) == PRODUCTS, "each product is stored", _CATCH_UP_S)

    kills = {"driver": 0, "broker": 0}
    for number in range(_KILLS):
        version = _versions(tables)
        wait_until(lambda before=version: _versions(tables) > before, "Spark commits again", _CATCH_UP_S)
        time.sleep(chance.uniform(0, 4))
        if number % 2:
            broker.kill()
            time.sleep(chance.uniform(0, 3))
            broker.start()
        else:
            driver.kill()
        kills["broker" if number % 2 else "driver"] += 1

    ledger = exchange.stop_trading()
    wait_until(lambda: tables.reach(ledger), f"caught up: {driver.command.said[-3000:]}", _CATCH_UP_S)
    published = exchange.published()
    wait_until(lambda: _hours_hold(tables) == len(published), "gold has caught up", _CATCH_UP_S)
    assert producer.stop() == 0, producer.said[-3000:]
    assert driver.command.stop() == 0, driver.command.said[-3000:]

    agree_with(published, tables, kills)
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + 700 * 10**9)  # the audit lets what is new settle first
    found = audit(lake)
    assert (found.code, found.findings) == (0, [])
    assert all(check["skipped"] == 0 for check in found.json["checks"])


def agree_with(published: dict[Id, Trade], tables: Tables, kills: dict[str, int]) -> None:
    """The tables hold what the exchange has sent, once."""
    ids = tables.ids()
    lost, doubled = published.keys() - ids.keys(), [trade for trade, count in ids.items() if count > 1]
    print(f"{kills}: {len(published)} trades sent, {len(lost)} lost, {len(doubled)} doubled")
    assert (lost, doubled, ids.keys() - published.keys()) == (set(), [], set())
    assert same_trades(tables.trades(), published)
    places = tables.read(BRONZE, '"partition", "offset"').to_pylist()
    assert len({tuple(place.values()) for place in places}) == len(places)
    assert tables.contents(BARS, *QUOTIENTS) == [
        {name: value for name, value in bar.items() if name not in QUOTIENTS} for bar in model_bars(published.values())
    ]


def test_of_two_drivers_on_one_checkpoint_one_ends_and_nothing_is_doubled(
    processes: Processes, broker: KafkaBroker
) -> None:
    lake, log = processes.folder / "lake", {"url": f"kafka://{broker.bootstrap}/trades"}
    tables, kafka = Tables(lake), open_log(load_settings(lake=lake, log=log))
    environment = {"LOG__URL": log["url"], "SPARK__CONF": json.dumps(spark_conf())}
    # On one machine a lock keeps two of the same steps apart; these have bronze in common.
    words = ("process", "--lake", str(lake), "--engine", "spark", "--steps")
    sent = 0

    def places() -> list[tuple[int, int]]:
        return [tuple(place.values()) for place in tables.read(BRONZE, '"partition", "offset"').to_pylist()]

    def send() -> None:
        nonlocal sent
        rows = [Trade("BTC-USD", number, at(number)).match() for number in range(sent + 1, sent + 101)]
        kafka.append(pa.Table.from_pylist(rows, schema=MESSAGE_SCHEMA))
        sent += len(rows)

    drivers = [processes.start(*words, "bronze,silver", **environment)]
    send()
    wait_until(places, "the first driver stores", _CATCH_UP_S)
    drivers.append(processes.start(*words, "bronze,alerts", **environment))
    deadline = time.monotonic() + _CATCH_UP_S
    while all(driver.popen.poll() is None for driver in drivers):
        assert time.monotonic() < deadline, "both go on"
        send()
        time.sleep(0.3)
    (ended,) = [driver for driver in drivers if driver.popen.poll() is not None]
    assert ended.popen.returncode == 5, ended.said[-3000:]
    assert "Another driver works on" in ended.said or "Another pipeline has taken over" in ended.said
    (other,) = [driver for driver in drivers if driver is not ended]
    send()
    wait_until(lambda: len(set(places())) == sent, f"the other goes on: {other.said[-3000:]}", _CATCH_UP_S)
    assert other.stop() == 0, other.said[-3000:]
    kafka.close()
    assert len(places()) == sent


def _versions(tables: Tables) -> int:
    """Grows with every commit to silver."""
    return sum(1 for _ in (tables.lake / "silver" / "fact_crypto_trades" / "_delta_log").glob("*.json"))


def _hours_hold(tables: Tables) -> int:
    """How many ids the hours of completeness count, which a batch writes last."""
    return sum(tables.read(COMPLETENESS, "held_ids")["held_ids"].to_pylist())
