"""Figures as people read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.catchup import CatchUp
from benchmarks.commits import Mark, Soak
from benchmarks.crash_day import Replays
from benchmarks.dashboard import Dashboard
from benchmarks.live import Hop, Live
from benchmarks.machine import Machine
from benchmarks.reading import Reading
from benchmarks.results import Results, Target, targets_of
from benchmarks.startup import Startup
from benchmarks.storage import Storage


@dataclass(frozen=True)
class Table:
    """Rows of texts under headings; the first column is to the left, the others to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tables_of(results: Results) -> list[Table]:
    """All tables, the machine first and the targets last."""
    tables = [_machine(results.machine, results.quick)]
    if not results.storage_only:
        tables += [_latency(live) for live in results.live if live.rate]
        tables += [_resources(results.live)] if results.live else []
        tables += [_catchup(results.catchup)] if results.catchup else []
        tables += [_crash_day(results.crash_day, "Crash day", "replay")] if results.crash_day else []
        tables += [_crash_day(results.imported, "Import", "import")] if results.imported else []
    tables += [_reading(results.reading)] if results.reading else []
    tables += [_startup(results.startup)] if results.startup else []
    tables += [_dashboard(results.dashboard)] if results.dashboard else []
    tables += [_storage(results)] if results.live or results.catchup else []
    tables += [_soak(results.soak)] if results.soak else []
    targets = targets_of(results)
    return [*tables, _targets(targets)] if targets else tables


def _machine(machine: Machine, quick: bool) -> Table:
    rows = [
        ("CPU", machine.cpu),
        ("cores", str(machine.cores)),
        ("memory", f"{machine.memory_bytes / 1e9:.1f} GB"),
        ("kernel", machine.kernel),
        ("disk", f"{machine.filesystem} ({machine.folder})"),
        ("Python", machine.python),
        ("libraries", ", ".join(f"{name} {version}" for name, version in machine.libraries.items())),
        ("load before", f"{machine.load_before:.2f}"),
        ("measured at", machine.measured_at),
    ]
    notes = ["Quick: too short for figures to rely on."] if quick else []
    if machine.load_before > 0.3:
        notes.append("The machine was not idle when the benchmark began: figures are worse than they could be.")
    if machine.filesystem in ("tmpfs", "ramfs"):
        notes.append("The folder lies in memory: syncing to disk costs nothing here. Choose another with --dir.")
    return Table("Machine", ("", ""), rows, " ".join(notes))


def _latency(live: Live) -> Table:
    rows = []
    for name, hop in live.hops.items():
        whole = live.whole_run.get(name)
        rows.append((name.replace("_", " "), *_hop(hop), *(_hop(whole)[:3] if whole else ("", "", ""))))
    columns = ("hop (ms)", "p50", "p99", "max", "n", "run p50", "run p99", "run max")
    note = f"p50, p99, max: worst of {live.windows} window(s) of 10 s; run: from the start, with start-up."
    if live.detections_ms:
        detected = ", ".join(f"{symbol} {ms:.0f} ms" for symbol, ms in live.detections_ms.items())
        note += f" Staged crashes, trade that opens the episode → alert committed: {detected}."
    return Table(
        f"Latency at {live.load.replace('/s', ' trades/s')} ({live.trades_per_s:,.0f} stored)", columns, rows, note
    )


def _hop(hop: Hop) -> tuple[str, str, str, str]:
    most, count = "" if hop.max is None else f"{hop.max:.1f}", "" if hop.n is None else f"{hop.n:,}"
    return f"{hop.p50:.1f}", f"{hop.p99:.1f}", most, count


def _resources(lives: Sequence[Live]) -> Table:
    names = ("supervisor", "producer", "processing")
    lines: list[tuple[str, Callable[[Live], str]]] = [
        *((f"CPU {name}, % of a core", lambda live, n=name: _percent(live.cpu[n])) for name in names),
        ("CPU of the whole, % of a core", lambda live: _percent(live.cpu_total)),
        ("(CPU simulator, not part of it)", lambda live: _percent(live.cpu["simulator"])),
        *((f"memory {name}, MB (PSS)", lambda live, n=name: f"{live.pss_mb[n]:.0f}") for name in names),
        ("memory of the whole, MB (PSS)", lambda live: f"{live.pss_total_mb:.0f}"),
        ("memory of the whole, MB (RSS)", lambda live: f"{sum(live.rss_mb.values()):.0f}"),
        ("written, MB a minute", lambda live: f"{live.written_mb:.1f}"),
        ("written, files a minute", lambda live: f"{live.written_files:,.0f}"),
        ("(written by the kernel's count, MB a minute)", lambda live: _optional(live.io_mb)),
        ("messages waiting in the log at the end", lambda live: f"{live.lag_messages:,}"),
        ("messages lost", lambda live: f"{live.lost_messages:,}"),
        ("orderly end, s", lambda live: f"{live.stop_s:.1f}"),
    ]
    columns = ("live", *(live.load for live in lives))
    rows = [(label, *(text(live) for live in lives)) for label, text in lines]
    note = (
        "Memory: the largest at the end of a window; PSS counts shared pages once. Written: what appeared in the "
        "lake's folder, log and state included."
    )
    return Table("CPU, memory and disk", columns, rows, note)


def _percent(cores: float) -> str:
    return f"{cores * 100:.{0 if cores >= 0.1 else 1}f}"


def _optional(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _dashboard(dashboard: Dashboard) -> Table:
    columns = ("viewers", "commit → screen p50 (ms)", "p99", "max", "commits", "server CPU", "memory (MB)")
    rows = [
        (
            str(one.viewers),
            *("" if ms is None else f"{ms:.0f}" for ms in (one.p50_ms, one.p99_ms, one.max_ms)),
            str(one.commits or ""),
            f"{100 * one.cpu:.1f} %",
            f"{one.rss_mb:.0f}",
        )
        for one in dashboard.viewers
    ]
    note = (
        f"One viewer is Chromium, the others are sockets; each line took {dashboard.seconds:g} s. First rows "
        f"{dashboard.first_rows_s:.2f} s after the request, with an empty cache."
    )
    if dashboard.visits_mb is not None:
        note += f" After {dashboard.visits} more visits the server held {dashboard.visits_mb:+.1f} MB."
    return Table(f"Dashboard, {dashboard.products} products at {dashboard.rate:,.0f} trades/s", columns, rows, note)


def _catchup(catchup: CatchUp) -> Table:
    columns = ("log → gold", "trades/s", "seconds", "cores used", "CPU µs/trade", "peak RSS, MB", "reopening, s")
    rows = [
        (
            f"run {number}",
            f"{run.trades_per_s:,.0f}",
            f"{run.seconds:.2f}",
            f"{run.cpu_s / run.seconds:.2f}",
            f"{run.cpu_s / run.trades * 1e6:.2f}",
            f"{run.rss_peak_mb:,.0f}",
            f"{run.reopen_s:.2f}",
        )
        for number, run in enumerate(catchup.runs, start=1)
    ]
    note = f"The {catchup.messages:,} messages of the crash day in the log, {catchup.append_messages:,} an append."
    return Table("Catch-up", columns, rows, note)


def _crash_day(replays: Replays, title: str, command: str) -> Table:
    columns = (f"{command} → gold", "seconds", "trades/s", "cores used", "CPU µs/trade", "peak RSS, MB", "episodes")
    rows = [
        (
            f"run {number}",
            f"{run.seconds:.2f}",
            f"{replays.trades / run.seconds:,.0f}",
            f"{run.cpu_s / run.seconds:.2f}",
            f"{run.cpu_s / replays.trades * 1e6:.2f}",
            f"{run.rss_peak_mb:,.0f}",
            f"{run.episodes:,}",
        )
        for number, run in enumerate(replays.runs, start=1)
    ]
    lines = "messages" if command == "replay" else "lines"
    note = (
        f"`cryptopulse {command}` of {replays.messages:,} {lines} with {replays.trades:,} trades and "
        f"{replays.missing_ids:,} ids missing in {replays.holes:,} holes, from the start of the process to its end; "
        "every product's trades, the repeated ones, holes and missing ids were right."
    )
    return Table(title, columns, rows, note)


def _reading(readings: Sequence[Reading]) -> Table:
    rows = [
        (one.what, f"{one.rows:,}", f"{one.seconds:.2f}", f"{one.rows / one.seconds:,.0f}", f"{one.cpu_s:.2f}")
        for one in readings
    ]
    note = "Of a lake that holds the crash day; exports with the start and end of their process."
    return Table("Reading", ("", "rows or messages", "seconds", "a second", "CPU s"), rows, note)


def _startup(startup: Startup) -> Table:
    lines = (
        ("start → first trade in silver", startup.first_trade_s),
        ("start → first bar in gold", startup.first_bar_s),
        ("kill -9 of the processing → caught up", startup.recovery_s),
    )
    rows = [(what, f"{median(seconds):.2f}", f"{max(seconds):.2f}", str(len(seconds))) for what, seconds in lines]
    note = f"Under {startup.rate:,.0f} trades/s; killed after {startup.load_s:g} s; the supervisor's pause is included."
    return Table("Start and recovery", ("seconds", "median", "max", "rounds"), rows, note)


def _storage(results: Results) -> Table:
    lakes = [(f"live {live.load}", live.storage, live.log.per_message) for live in results.live if live.rate]
    if results.catchup:
        lakes.append(("catch-up", results.catchup.median.storage, results.catchup.log.per_message))
    rows: list[tuple[str, ...]] = [("trades stored", *(f"{storage.trades:,}" for _, storage, _ in lakes))]
    for schema in ("bronze", "silver", "gold"):
        rows.append((f"{schema}, live files", *(f"{s.live_per_trade(schema):.1f}" for _, s, _ in lakes)))
        rows.append((f"{schema}, all on disk", *(f"{s.all_per_trade(schema):.1f}" for _, s, _ in lakes)))
    rows.append(("tables together, live files", *(f"{_live(storage):.1f}" for _, storage, _ in lakes)))
    rows.append(("log, per message held", *(f"{per_message:.1f}" for _, _, per_message in lakes)))
    note = "On disk: with Delta logs and replaced files, which are deleted an hour later: most of it after a short run."
    return Table("Bytes per stored trade", ("", *(name for name, _, _ in lakes)), rows, note)


def _live(storage: Storage) -> float:
    return sum(storage.live_per_trade(schema) for schema in storage.schemas)


def _soak(soak: Soak) -> Table:
    first, last = soak.marks[0], soak.marks[-1]
    lines: list[tuple[str, Callable[[Mark], float], int]] = [
        ("CPU a step, ms", lambda mark: mark.cpu_ms, 1),
        ("step p50, ms", lambda mark: mark.p50_ms, 1),
        ("step p99, ms", lambda mark: mark.p99_ms, 1),
        ("step max, ms", lambda mark: mark.max_ms, 1),
        ("RSS, MB", lambda mark: mark.rss_mb, 0),
        ("live files of all tables", lambda mark: mark.tables.live_files, 0),
        ("files in the Delta logs", lambda mark: mark.tables.delta_log_files, 0),
        ("files on disk", lambda mark: mark.tables.disk_files, 0),
        ("MB on disk", lambda mark: mark.tables.disk_mb, 0),
        ("commits of all tables", lambda mark: mark.tables.delta_commits, 0),
        ("seconds so far", lambda mark: mark.seconds, 0),
    ]
    marks = [*soak.marks, soak.fresh]
    steps = (f"{mark.commits:,}" for mark in soak.marks)
    columns = ("after steps", *steps, "new lake then", "last / first", "last / new")
    rows = [
        (
            label,
            *(f"{value(mark):,.{decimals}f}" for mark in marks),
            *(f"{value(last) / value(one):.2f}" if value(one) else "" for one in (first, soak.fresh)),
        )
        for label, value, decimals in lines
    ]
    note = (
        "Steps of 100 messages, as fast as they go, gold and maintenance beside them; CPU and times over the 800 steps "
        f"before. The new lake, {soak.fresh.commits:,} steps in a process of its own, was measured after all marks. "
        f"Opening the long one again took {soak.reopening_s:.2f} s."
    )
    return Table("Many small commits", columns, rows, note)


def _targets(targets: Sequence[Target]) -> Table:
    rows = [
        (
            target.what,
            f"{'≥' if target.at_least else '≤'} {target.limit:,g} {target.unit}",
            f"{target.reached:,.{_decimals(target.reached)}f} {target.unit}",
            "met" if target.met else "MISSED",
        )
        for target in targets
    ]
    return Table("Targets", ("what", "target", "measured", ""), rows)


def _decimals(value: float) -> int:
    return 2 if value < 10 else 0
