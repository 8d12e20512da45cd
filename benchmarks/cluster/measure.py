"""The measurements: the same for both engines, on topics of one broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.cluster.commits import (
    Follower,
    alert_latencies_ms,
    episodes,
    received_us,
    silver_latencies_ms,
)
from benchmarks.cluster.engines import Engine, Run, Use, watched
from benchmarks.cluster.feed import PacedFeed
from benchmarks.messages import message_batches
from benchmarks.processes import MeasurementError, Scratch
from benchmarks.startup import Say
from cryptopulse.lake.dataset import connect
from cryptopulse.lake.location import LakeLocation
from cryptopulse.lake.tables import ALERTS, BARS, SILVER, STATS
from cryptopulse.log.kafka import KafkaLog
from cryptopulse.log.kafka_address import kafka_address
from cryptopulse.settings import LogSettings

CRASH_EVERY_S = 3.0
"""While a live run is measured one product after the other crashes, so many seconds apart."""

_MARKET_RATE = 1_000.0  # trades a second of market time of the filled topic: how many windows they fall into
_APPEND_MESSAGES = 10_000
_ONCE_S = 3_600.0
_LEAD_S = 2.0  # trades that wait in the topic when the engine starts
_STEP_S = 0.005  # as long as the feed gathers messages for one append
_LOOK_S = 0.1
_CATCH_UP_S = 300.0
_CRASHES_MAX = 20  # each product once: a second crash within its look-back would belong to the first


@dataclass(frozen=True)
class CatchUp:
    """One engine on a filled topic."""

    trades: int
    idle_s: float
    """`process --once` on an empty topic: start, tables made, nothing to do, end."""
    seconds: float
    """The same command on the filled topic, from the start of the process to its end."""
    pss_peak_mb: float

    @property
    def trades_per_s(self) -> float:
        """Through gold, start-up included."""
        return self.trades / self.seconds

    @property
    def trades_per_s_started(self) -> float:
        """Through gold, without what the command takes anyhow."""
        return self.trades / max(self.seconds - self.idle_s, 1e-9)


@dataclass(frozen=True)
class Latency:
    """A distribution, ms."""

    p50: float
    p99: float
    max: float
    n: int

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> Latency:
        """Raises MeasurementError when there are no values."""
        if not len(values):
            raise MeasurementError("no trade was stored in the measured time")
        p50, p99 = np.percentile(values, [50, 99])
        return cls(float(p50), float(p99), float(values.max()), len(values))


@dataclass(frozen=True)
class Live:
    """One engine under a steady rate."""

    rate: float
    seconds: float
    first_trade_s: float
    """Start of the process, trades waiting → first commit to silver."""
    silver: Latency
    """Receipt → the trade's commit, of all trades received while measuring."""
    alert: Latency
    """Receipt of the trade that opens an episode → the alert's first commit, of all episodes."""
    behind_s: float
    """From the last trade's receipt to the commit after which none is missing: small when the rate was held."""
    cores: float
    pss_peak_mb: float


class Bench:
    """What the measurements share: a folder, a broker, someone to tell."""

    def __init__(self, scratch: Scratch, bootstrap: str, say: Say) -> None:
        """`bootstrap`: host:port of the broker."""
        self.scratch = scratch
        self.say = say
        self._bootstrap = bootstrap

    def url(self, topic: str) -> str:
        """The setting `log.url` for a topic."""
        return f"kafka://{self._bootstrap}/{topic}"

    @contextmanager
    def log(self, topic: str) -> Iterator[KafkaLog]:
        """A topic of one partition, made when it is not there."""
        address = kafka_address(LogSettings(url=self.url(topic)))
        assert address is not None
        with closing(KafkaLog(address)) as log:
            yield log


def fill(bench: Bench, topic: str, trades: int) -> None:
    """Puts `trades` messages of one market into `topic`."""
    bench.say(f"filling a topic with {trades:,} trades")
    with bench.log(topic) as log:
        for batch in message_batches(trades, _APPEND_MESSAGES, _MARKET_RATE) if trades else ():
            log.append(batch)


def catch_up(bench: Bench, engine: Engine, empty: str, filled: str, trades: int) -> CatchUp:
    """Works off an `empty` and a `filled` topic, each on a fresh lake. Raises MeasurementError if a trade is lost."""
    bench.say(f"{engine.title}: start on an empty topic")
    idle_s = Run(bench.scratch, engine, bench.url(empty), "idle", "--once").wait(_ONCE_S)
    bench.say(f"{engine.title}: catch-up of {trades:,} trades")
    run = Run(bench.scratch, engine, bench.url(filled), "catch-up", "--once")
    with watched(run.popen.pid) as use:
        seconds = run.wait(_ONCE_S)
    _check_whole(run, trades)
    return CatchUp(trades, idle_s, seconds, use.pss_peak_mb)


def _check_whole(run: Run, trades: int) -> None:
    """Every trade must be in silver, in a bar and in a window of statistics."""
    with connect(LakeLocation.of(run.lake)) as lake:
        counts = {
            SILVER: f"SELECT count(*) FROM {SILVER.qualified}",
            **{table: f"SELECT coalesce(sum(trade_count), 0) FROM {table.qualified}" for table in (BARS, STATS)},
        }
        for table, query in counts.items():
            found = lake.execute(query).fetchall()[0][0]
            if found != trades:
                raise MeasurementError(f"{table.qualified} has {found:,} of {trades:,} trades")


def live(bench: Bench, engine: Engine, rate: float, warm_up_s: float, seconds: float) -> Live:
    """Starts the engine while `rate` trades/s come in; measures those received from `warm_up_s` on for `seconds`.

    Raises MeasurementError when the engine stops or does not catch up afterwards.
    """
    bench.say(f"{engine.title}: {rate:,.0f} trades/s for {warm_up_s + seconds:g} s")
    crashes = min(max(int(seconds / CRASH_EVERY_S), 1), _CRASHES_MAX)
    times = [warm_up_s + seconds * (i + 0.5) / crashes for i in range(crashes)]
    topic = f"live-{engine.name}"
    with bench.log(topic) as log:
        feed = PacedFeed(log, rate, times)
        _play(feed, _LEAD_S, lambda: None)
        run = Run(bench.scratch, engine, bench.url(topic), "live")
        silver, alerts = Follower(run.lake, SILVER), Follower(run.lake, ALERTS)
        with watched(run.popen.pid) as use:

            def look() -> None:
                run.check()
                silver.look()
                alerts.look()
                if not silver.commits and feed.age_s > warm_up_s:
                    raise MeasurementError(f"no trade is stored {warm_up_s:g} s after the start; raise --warm-up")

            _play(feed, warm_up_s + seconds, look)
            ended_at = time.time()
            _await(lambda: silver.rows >= feed.sent, look, f"{feed.sent:,} trades in silver")
            _await(lambda: feed.crashing <= {s for s, _ in episodes(alerts.commits)}, look, "an alert for every crash")
            run.stop()
    return _summed_up(feed, (rate, warm_up_s, seconds, ended_at), run, (silver, alerts), use)


def _play(feed: PacedFeed, to_s: float, look: Callable[[], None]) -> None:
    """Feeds until the market is `to_s` old, and calls `look` ten times a second."""
    look_at_s = 0.0
    while (age_s := feed.age_s) < to_s:
        feed.step()
        if age_s >= look_at_s:
            look()
            look_at_s = age_s + _LOOK_S
        time.sleep(_STEP_S)


def _await(condition: Callable[[], bool], look: Callable[[], None], what: str) -> None:
    deadline = time.monotonic() + _CATCH_UP_S
    while not condition():
        if time.monotonic() > deadline:
            raise MeasurementError(f"not within {_CATCH_UP_S:g} s: {what}")
        time.sleep(_LOOK_S)
        look()


def _summed_up(
    feed: PacedFeed,
    plan: tuple[float, float, float, float],
    run: Run,
    followers: tuple[Follower, Follower],
    use: Use,
) -> Live:
    rate, warm_up_s, seconds, ended_at = plan
    silver, alerts = followers
    first_at = feed.started_us / 1e6 + warm_up_s
    first_us, last_us = int(first_at * 1e6), int((first_at + seconds) * 1e6)
    return Live(
        rate=rate,
        seconds=seconds,
        first_trade_s=silver.commits[0].at - run.started_at,
        silver=Latency.of(silver_latencies_ms(silver.commits, first_us, last_us)),
        alert=Latency.of(alert_latencies_ms(episodes(alerts.commits), received_us(silver.commits))),
        behind_s=max(silver.commits[-1].at - ended_at, 0.0),
        cores=use.cores(first_at, first_at + seconds),
        pss_peak_mb=use.pss_peak_mb,
    )
