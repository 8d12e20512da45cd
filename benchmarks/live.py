"""Live operation: real processes on loopback, at a given rate of trades or idle.

Latencies are what the processes measure of themselves: from the moment at which a message came off the socket to the
moment at which the commit that holds its trade had returned. They are read as windows of ten seconds, one after the
other, beginning after a warm-up.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processes import VENUES, Deployment, Exchange, MeasurementError, Scratch
from benchmarks.storage import Growth, LogStorage, Storage, log_storage, storage_of

_WINDOW_S = 10.0  # that of `cryptopulse.latency`: exact percentiles of the last ten seconds
_CRASHING = ("BTC-USD", "ETH-USD", "SOL-USD")
_CRASH = "3%/2s"
_CRASHES_FROM_RATE = 1_000.0  # below it their own trades would be a good part of the load
_LOOK_S = 2.0
_IDLE_AFTER_RATE = 50.0
_RULES = (
    (["FLASH_CRASH", "PRICE_SURGE"], 2.0),
    (["VOLUME_SURGE"], 1000.0),
    (["BUY_IMBALANCE", "SELL_IMBALANCE"], 80.0),
    (["VOLATILITY"], 2.0),
)
_LOOKBACKS_S = (10, 30, 60, 120, 200)
_STALE_NEVER = "[feed]\nheartbeats_missed_max = 1000000\n"


@dataclass(frozen=True)
class Hop:
    """The latency distribution of one hop in ms."""

    p50: float
    p99: float
    max: float | None
    n: int | None


@dataclass(frozen=True)
class Live:
    """What a run at one rate came to."""

    load: str
    """What came, in a word or two."""
    rate: float
    """Trades a second that were asked for, 0 when idle; the staged crashes come on top."""
    trades_per_s: float
    """Trades a second that were stored while measuring."""
    seconds: float
    windows: int
    hops: dict[str, Hop]
    """The worst window of each hop; see `worst_of`."""
    whole_run: dict[str, Hop]
    """The same from the start to the end, with start-up and warm-up; percentiles to 2.4 %."""
    detections_ms: dict[str, float]
    """Product whose crash was staged → time from the receipt of the trade that opened the episode to its commit."""
    lag_messages: int
    """What waited in the log at the end: small when the rate was held."""
    lost_messages: int
    cpu: dict[str, float]
    """Process → cores used (1.0: one core) while measuring; the simulator too."""
    pss_mb: dict[str, float]
    """Process → most memory seen at the end of a window. Shared pages count by share: the sum is what they take."""
    rss_mb: dict[str, float]
    written_mb: float
    """MB a minute that appear in files of the lake, its log and its state included (`benchmarks.storage.Growth`)."""
    written_files: float
    """Files a minute that appear there."""
    io_mb: float | None
    """MB a minute that the kernel counts as written by the processes, files that are gone again and places that are
    written twice included; None where it doesn't."""
    stop_s: float
    """Orderly end, everything brought to gold."""
    storage: Storage
    log: LogStorage

    @property
    def cpu_total(self) -> float:
        """Cores used by the whole: everything but the simulator."""
        return sum(cores for name, cores in self.cpu.items() if name != "simulator")

    @property
    def pss_total_mb(self) -> float:
        """Memory of the whole."""
        return sum(self.pss_mb.values())


def measure(folder: Path, rate: float, seconds: float, warm_up_s: float, rules: int = 0) -> Live:
    """Runs simulator and pipeline for `warm_up_s` + `seconds` under `folder`. From 1,000 trades/s on crashes are staged
    in between. `rules`: so many alert rules, each for all products, in the place of the default one.
    """
    with Scratch(folder) as scratch:
        crashes = _crashes(seconds, warm_up_s) if rate >= _CRASHES_FROM_RATE else []
        exchange = Exchange(scratch, rate, "all_subscribed", crashes)
        config = scratch.folder / "rules.toml"
        config.write_text(_rules_text(rules))
        deployment = _trading(scratch, exchange, ("--config", str(config)) if rules else ())
        time.sleep(warm_up_s)
        load = f"{rate:,.0f}/s, {rules:,} rules" if rules else f"{rate:,.0f}/s"
        return _observed(load, rate, exchange, deployment, seconds)


def measure_venues(folder: Path, rate: float, seconds: float, warm_up_s: float) -> Live:
    """The same with three venues that make `rate` trades a second together."""
    with Scratch(folder) as scratch:
        exchange = Exchange(scratch, rate / len(VENUES), "all_subscribed", _crashes(seconds, warm_up_s))
        config = scratch.folder / "venues.toml"
        config.write_text(exchange.venue_settings())
        deployment = _trading(scratch, exchange, ("--config", str(config)), is_coinbase=False)
        time.sleep(warm_up_s)
        return _observed(f"{rate:,.0f}/s, {len(VENUES)} venues", rate, exchange, deployment, seconds)


def _rules_text(count: int) -> str:
    """Rules of all types over five look-backs, with thresholds that rise from what a crash reaches: as TOML."""
    lines = []
    for number in range(count):
        types, threshold_pct = _RULES[number % len(_RULES)]
        lookback_s = _LOOKBACKS_S[number // len(_RULES) % len(_LOOKBACKS_S)]
        lines.append(
            f'[[alerts.rules]]\nname = "r{number}"\ntypes = {types}\nmin_trades = 50\nlookback_s = {lookback_s}\n'
            f"threshold_pct = {threshold_pct * (1 + number / 10_000):.4f}\n"
        )
    return "\n".join(lines)


def measure_idle(folder: Path, seconds: float, warm_up_s: float, *, heartbeats: bool) -> Live:
    """The same when no trade comes: the market has closed. Without `heartbeats` nothing comes at all."""
    with Scratch(folder) as scratch:
        exchange = Exchange(scratch, _IDLE_AFTER_RATE, "all_subscribed")
        config = scratch.folder / "patient.toml"
        config.write_text(_STALE_NEVER)
        deployment = _trading(scratch, exchange, () if heartbeats else ("--config", str(config)))
        time.sleep(warm_up_s)
        exchange.stop_trading()
        if not heartbeats:
            exchange.set_faults("silence=0s+24h")
        time.sleep(warm_up_s)  # what has come is brought to gold
        return _observed("heartbeats alone" if heartbeats else "nothing", 0.0, exchange, deployment, seconds)


def _trading(scratch: Scratch, exchange: Exchange, options: Sequence[str], *, is_coinbase: bool = True) -> Deployment:
    """A deployment that has stored a first trade."""
    deployment = Deployment(scratch, exchange, options=("--no-dashboard", *options), is_coinbase=is_coinbase)
    deployment.wait_for(lambda: bool(deployment.report("processing").get("trades_total")), "a first trade")
    return deployment


def _observed(load: str, rate: float, exchange: Exchange, deployment: Deployment, seconds: float) -> Live:
    """What a deployment comes to within `seconds`; it is ended afterwards."""
    observed = _Observer(deployment, {**deployment.pids(), "simulator": exchange.popen.pid})
    observed.watch(seconds)
    log = log_storage(deployment.state_dir / "log.db")
    stop_s = deployment.stop()
    end = deployment.report("processing")
    return Live(
        load=load,
        rate=rate,
        trades_per_s=observed.trades_per_s,
        seconds=seconds,
        windows=len(observed.windows),
        hops=worst_of(observed.windows),
        whole_run={name: hop for name, value in end["latency_total_ms"].items() if (hop := _hop(value))},
        detections_ms={
            alert["symbol"]: alert["latency_ms"]
            for alert in reversed(end["alerts"])
            if alert["alert_type"] == "FLASH_CRASH" and alert["latency_ms"] is not None
        },
        lag_messages=observed.lag_messages,
        lost_messages=int(deployment.report("producer")["lost_messages"]),
        cpu=observed.cpu,
        pss_mb=observed.pss_mb,
        rss_mb=observed.rss_mb,
        written_mb=round(observed.growth.bytes_written / 1e6 * 60 / observed.elapsed_s, 2),
        written_files=round(observed.growth.files * 60 / observed.elapsed_s, 1),
        io_mb=observed.io_mb,
        stop_s=round(stop_s, 2),
        storage=storage_of(deployment.lake),
        log=log,
    )


def _crashes(seconds: float, warm_up_s: float) -> list[str]:
    """One crash of each product, spread over the time in which is measured."""
    part = seconds / (len(_CRASHING) + 1)
    return [f"crash:{name}@{warm_up_s + part * (i + 0.5):.1f}s:{_CRASH}" for i, name in enumerate(_CRASHING)]


def worst_of(windows: Sequence[Mapping[str, Hop]]) -> dict[str, Hop]:
    """For each hop the largest p50, p99 and max of any window, and all values counted.

    A percentile of all windows together is at most the largest of theirs, so this never flatters.
    """
    worst: dict[str, Hop] = {}
    for name in dict.fromkeys(name for window in windows for name in window):
        hops = [window[name] for window in windows if name in window]
        most = [hop.max for hop in hops if hop.max is not None]
        counts = [hop.n for hop in hops if hop.n is not None]
        worst[name] = Hop(
            p50=max(hop.p50 for hop in hops),
            p99=max(hop.p99 for hop in hops),
            max=max(most) if most else None,
            n=sum(counts) if counts else None,
        )
    return worst


class _Observer:
    """Looks at a running deployment and notes what it sees."""

    def __init__(self, deployment: Deployment, pids: Mapping[str, int]) -> None:
        self._deployment = deployment
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.windows: list[dict[str, Hop]] = []
        self.cpu: dict[str, float] = {}
        self.pss_mb: dict[str, float] = {}
        self.rss_mb: dict[str, float] = {}
        self.growth = Growth(deployment.lake)
        self.io_mb: float | None = None
        self.elapsed_s = 0.0
        self.trades_per_s = 0.0
        self.lag_messages = 0

    def watch(self, seconds: float) -> None:
        """Measures for so long. Raises MeasurementError when a process ends meanwhile."""
        count = max(int(seconds // _WINDOW_S), 1)
        begun = time.monotonic()
        cpu_before, io_before = self._cpu_seconds(), self._io_bytes()
        trades_before = self._trades()
        windows_ended = 0
        while (now := time.monotonic()) < begun + seconds:
            window_ends = begun + min((windows_ended + 1) * _WINDOW_S, seconds)
            time.sleep(max(min(window_ends - now, _LOOK_S), 0))
            self.growth.look()
            if time.monotonic() < window_ends:
                continue
            windows_ended += 1
            if len(self.windows) < count:
                self.windows.append(self._window())
            self._note_memory()
        self.elapsed_s = time.monotonic() - begun
        self.cpu = {name: round((s - cpu_before[name]) / self.elapsed_s, 4) for name, s in self._cpu_seconds().items()}
        if io_before is not None and (io := self._io_bytes()) is not None:
            self.io_mb = round((io - io_before) / 1e6 * 60 / self.elapsed_s, 2)
        (at, trades), (before_at, before) = self._trades(), trades_before
        self.trades_per_s = round((trades - before) / max(at - before_at, 1e-9), 1)
        self.lag_messages = int(self._deployment.report("processing")["log_lag_messages"])

    def _window(self) -> dict[str, Hop]:
        report, producer = self._deployment.report("processing"), self._deployment.report("producer")
        hops = {name: hop for name, value in report["latency_ms"].items() if (hop := _hop(value))}
        p50, p99 = producer["logged_latency_p50_ms"], producer["logged_latency_p99_ms"]
        if p50 is None or p99 is None or not hops:
            return hops
        synced = Hop(round(p50, 2), round(p99, 2), None, None)
        # In the order of the way: what the log has taken is synced before bronze can have it.
        return {name: hop for key, value in hops.items() for name, hop in _with_synced(key, value, synced)}

    def _trades(self) -> tuple[float, int]:
        """Trades stored, and when the processing said so (seconds since 1970)."""
        status = self._deployment.status("processing")
        if status.updated_at is None:
            raise MeasurementError("the processing does not run")
        return status.updated_at.timestamp(), int(str(status.report["trades_total"]))

    def _cpu_seconds(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: time_.user + time_.system for name, time_ in times.items()}

    def _io_bytes(self) -> int | None:
        """Bytes that the whole has written, by the kernel; None where it does not count them."""
        try:
            return sum(int(p.io_counters().write_bytes) for name, p in self._processes.items() if name != "simulator")
        except AttributeError:
            return None

    def _note_memory(self) -> None:
        """Seldom: the kernel holds a process's memory map for some 10 ms to add up its shares."""
        for name, process in self._processes.items():
            if name == "simulator":
                continue
            memory = process.memory_full_info()
            pss_mb, rss_mb = getattr(memory, "pss", memory.rss) / 1e6, memory.rss / 1e6  # only Linux knows pss
            self.pss_mb[name] = round(max(self.pss_mb.get(name, 0.0), pss_mb), 1)
            self.rss_mb[name] = round(max(self.rss_mb.get(name, 0.0), rss_mb), 1)


def _with_synced(name: str, hop: Hop, synced: Hop) -> list[tuple[str, Hop]]:
    return [(name, hop), ("receive_to_log_synced", synced)] if name == "receive_to_log" else [(name, hop)]


def _hop(value: Mapping[str, Any]) -> Hop | None:
    """A distribution as the status file has it; None when it holds nothing."""
    return Hop(value["p50"], value["p99"], value["max"], value["n"]) if value["n"] else None
