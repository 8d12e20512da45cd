"""Real processes for tests: started, watched, killed, and their tables compared with what the simulator sent.

Nothing here outlives a test: `Processes.close` ends by its id whatever was started, and whatever that started. When the
tests themselves are killed, the system kills what they started, and the processes of `run` end with that.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import psutil
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from cryptopulse.lake.tables import BRONZE, COVERAGE, SILVER, Table
from cryptopulse.status import ProcessStatus, read_status
from support import Trade

PROGRAM = (sys.executable, "-m", "cryptopulse")
_DYING_WITH_US = (
    *(sys.executable, "-I", "-S", "-c"),
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])",
)
"""Starts a program that Linux kills when the thread that started it ends, as when the tests are killed."""
PATIENCE_S = 120.0
"""How long to wait for what must happen; two busy cores are slow, and only a failure waits so long."""

Id = tuple[str, int]


def wait_until(condition: Callable[[], Any], what: str, within_s: float = PATIENCE_S) -> Any:
    """The first true answer of `condition`; AssertionError saying `what` did not happen within the time."""
    deadline = time.monotonic() + within_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(0.1)  # the answers cost time of the cores that the processes need
    return answer


class Command:
    """One started command; its standard error goes to a file."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, stderr: Path) -> None:
        self._stderr = stderr
        with stderr.open("ab") as file:
            self.popen = subprocess.Popen(
                [*(_DYING_WITH_US if sys.platform == "linux" else ()), *PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
                text=True,
            )

    @property
    def said(self) -> str:
        """All of its standard error so far."""
        return self._stderr.read_text(errors="replace")

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Its structured log, and that of the processes that it started."""
        lines = (json.loads(line) for line in self.said.splitlines() if line.startswith("{") and line.endswith("}"))
        return [event for event in lines if name is None or event["event"] == name]

    def child(self, name: str) -> int | None:
        """Process id of its child that runs the command `name`, if there is one now."""
        try:
            for child in psutil.Process(self.popen.pid).children():
                if name in child.cmdline():
                    return child.pid
        except psutil.Error:
            return None
        return None

    def kill(self) -> None:
        """kill -9, and waits for its end."""
        self.popen.kill()
        self.popen.wait()

    def stop(self, within_s: float = PATIENCE_S) -> int:
        """SIGTERM; the exit code."""
        self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(timeout=within_s)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"no end within {within_s:g} s; it said: {self.said[-5000:]}") from error


class Processes:
    """Starts commands in a folder of their own, under which all their files lie."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("CRYPTOPULSE_")}
        # Two cores have enough to do. The tests of faults take steps as fast as they can, as it is by default.
        self._environment["CRYPTOPULSE_SERVE__ENABLED"] = "false"
        self._environment["CRYPTOPULSE_PROCESSING__STEP_INTERVAL_MS"] = "100"
        self._started: list[Command] = []

    def start(self, *arguments: str, **environment: str) -> Command:
        """`environment`: settings, as in FEED__PRODUCTS="BTC-USD"."""
        stderr = self.folder / f"{len(self._started)}-{arguments[0]}.stderr"
        command = Command(arguments, self._with(environment), self.folder, stderr)
        self._started.append(command)
        return command

    def call(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return subprocess.run(
            [*PROGRAM, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=self._with(environment),
            cwd=self.folder,
        )

    def _with(self, environment: Mapping[str, str]) -> dict[str, str]:
        return self._environment | {f"CRYPTOPULSE_{name}": value for name, value in environment.items()}

    def close(self) -> None:
        """Kills what was started and what that started: every process whose command line names the folder."""
        for command in self._started:
            command.kill()
            assert command.popen.stdout is not None
            command.popen.stdout.close()
        wait_until(
            lambda: not any(_kill(process) for process in psutil.process_iter() if self._is_ours(process)), "end"
        )

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.pid != os.getpid() and any(str(self.folder) in part for part in process.cmdline())
        except psutil.Error:
            return False


def _kill(process: psutil.Process) -> bool:
    """Whether it was still there to be killed."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


class Exchange:
    """A simulated exchange in a process of its own."""

    def __init__(self, processes: Processes, *options: str, products: int, rate: float, port: int = 0) -> None:
        """`options` of the command `simulate` besides those named."""
        given = ("--products", str(products), "--rate", str(rate), "--port", str(port), "--json")
        self.command = processes.start("simulate", *given, *options)
        assert self.command.popen.stdout is not None
        line = self.command.popen.stdout.readline()
        assert line, self.command.said
        self._addresses = json.loads(line)
        self.products: list[str] = self._addresses["products"]
        # Without certificates, which take longer to load than the answers.
        self._client = httpx.Client(base_url=self._addresses["rest_url"], timeout=60, trust_env=False, verify=False)

    def feed(self, dialect: str = "exchange") -> dict[str, str]:
        """Settings that point a pipeline here."""
        return {
            "FEED__DIALECT": dialect,
            "FEED__PRODUCTS": ",".join(self.products),
            "FEED__WEBSOCKET_URL": self._addresses[f"{dialect}_url"],
            "FEED__REST_URL": self._addresses["rest_url"],
        }

    def ledger(self) -> dict[str, Any]:
        """What was published so far."""
        return self._ask("GET", "/simulator/ledger")

    def stop_trading(self) -> dict[str, Any]:
        """Ends the market; the final ledger."""
        return self._ask("POST", "/simulator/stop_trading")

    def faults(self, faults: str) -> None:
        """What goes wrong from now on, as in `drop=0.05,rest-500=0.1`; empty: nothing."""
        self._client.post("/simulator/faults", content=faults).raise_for_status()

    def orders(self, orders: bytes) -> None:
        """How REST answers from now on; see `support.orders`."""
        self._client.post("/simulator/rest", content=orders).raise_for_status()

    def published(self) -> dict[Id, Trade]:
        """Every trade that was published, as it must be stored."""
        found = {}
        for product, figures in self.ledger()["products"].items():
            for row in self.rows(product, figures["first_trade_id"], figures["last_trade_id"]):
                trade = Trade(
                    product,
                    int(row["trade_id"]),
                    datetime.fromisoformat(row["time"]),
                    row["price"],
                    row["size"],
                    "BUY" if row["side"].lower() == "sell" else "SELL",  # the maker's
                )
                found[product, trade.trade_id] = trade
        return found

    def rows(self, product: str, first: int, last: int) -> Iterator[dict[str, Any]]:
        """A product's trades as the exchange writes them; an answer has a part of them."""
        while first <= last and (rows := self._ask("GET", f"/simulator/trades/{product}?from={first}&to={last}")):
            yield from rows
            first = max(int(row["trade_id"]) for row in rows) + 1

    def _ask(self, method: str, path: str) -> Any:
        answer = self._client.request(method, path)
        answer.raise_for_status()
        return answer.json()


def stop_outside_of_writes(pid: int, log_path: Path) -> None:
    """SIGSTOP at a moment at which the process does not hold the log, so that others can go on."""

    def is_stopped_well() -> bool:
        os.kill(pid, signal.SIGSTOP)
        try:
            with closing(sqlite3.connect(log_path, timeout=0.05, isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                return True
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            return False

    wait_until(is_stopped_well, "stopped outside of a write")


class Tables:
    """A lake as its files say, read with nothing but deltalake's own query engine."""

    def __init__(self, lake: Path) -> None:
        self.lake = lake

    def read(self, table: Table, columns: str = "*") -> pa.Table:
        """All rows; without any when the table does not exist."""
        path = str(self.lake / table.schema / table.name)
        if not DeltaTable.is_deltatable(path):
            return table.arrow_schema.empty_table()
        # Not `to_pyarrow_table`: its threads abort a short-lived process now and then at its end.
        reader = QueryBuilder().register("t", DeltaTable(path)).execute(f"SELECT {columns} FROM t")
        rows = pa.table(reader.read_all())
        plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
        return rows.cast(pa.schema([field.with_type(plain.get(field.type, field.type)) for field in rows.schema]))

    def contents(self, table: Table, *without: str) -> list[dict[str, Any]]:
        """Rows in the order of the key, without the columns `without`."""
        rows = self.read(table).sort_by([(name, "ascending") for name in table.key])
        return rows.drop_columns([name for name in without if name in rows.column_names]).to_pylist()

    def ids(self) -> Counter[Id]:
        """How often each trade is stored."""
        rows = self.read(SILVER, "symbol, trade_id")
        return Counter(zip(rows["symbol"].to_pylist(), rows["trade_id"].to_pylist(), strict=True))

    def trades(self) -> list[Trade]:
        """What is stored."""
        return [
            Trade(
                row["symbol"],
                row["trade_id"],
                row["event_time"],
                plain(row["price"]),
                plain(row["trade_size"]),
                row["side"],
                row["source"],
            )
            for row in self.read(SILVER).to_pylist()
        ]

    def covered(self) -> set[Id]:
        """The ids that the coverage claims."""
        return set(_ids(tuple(row.values()) for row in self._coverage()))

    def holes(self) -> set[Id]:
        """The ids between a product's intervals of coverage."""
        missing: set[Id] = set()
        before: dict[str, int] = {}
        for row in self._coverage():
            symbol, first, last = row.values()
            if symbol in before:
                missing |= set(_ids([(symbol, before[symbol] + 1, first - 1)]))
            before[symbol] = last
        return missing

    def _coverage(self) -> list[dict[str, Any]]:
        rows = self.read(COVERAGE, "symbol, first_trade_id, last_trade_id").to_pylist()
        return sorted(rows, key=lambda row: (row["symbol"], row["first_trade_id"]))

    def reach(self, ledger: Mapping[str, Any]) -> bool:
        """Whether each product's newest published trade is stored."""
        rows = self.read(SILVER, "symbol, trade_id")
        newest: dict[str, int] = {}
        for symbol, trade_id in zip(rows["symbol"].to_pylist(), rows["trade_id"].to_pylist(), strict=True):
            newest[symbol] = max(trade_id, newest.get(symbol, 0))
        return all(newest.get(p, 0) >= figures["last_trade_id"] for p, figures in ledger["products"].items())

    def logged(self) -> set[Id]:
        """The trades in bronze's raw messages of either feed and of REST, read here without the pipeline's SQL."""
        found: set[Id] = set()
        for row in self.read(BRONZE, "body, source, partition_key").to_pylist():
            try:
                message = json.loads(row["body"])
            except ValueError:
                continue
            if row["source"] == "rest":
                found |= {(row["partition_key"], trade["trade_id"]) for trade in message}
                continue
            if message.get("type") in ("match", "last_match"):
                found.add((message["product_id"], message["trade_id"]))
            for event in message.get("events", ()):
                found |= {(trade["product_id"], int(trade["trade_id"])) for trade in event.get("trades", ())}
        return found

    def status(self, name: str) -> ProcessStatus:
        """What a process of the deployment says of itself."""
        return read_status(self.lake / "_cryptopulse", name)

    def figure(self, name: str, figure: str) -> float:
        """One of its figures; 0 when it has not said yet."""
        return float(str(self.status(name).report.get(figure) or 0))


def plain(number: Decimal | str) -> str:
    """A number as text without zeros at its end."""
    return f"{Decimal(number).normalize():f}"


def same_trades(stored: Iterable[Trade], published: Mapping[Id, Trade]) -> bool:
    """Whether each stored trade is the published one of its id in every field; numbers compared as numbers."""

    def content(trade: Trade) -> tuple[object, ...]:
        return (trade.time, Decimal(trade.price), Decimal(trade.size), trade.side)

    return all(content(trade) == content(published[trade.symbol, trade.trade_id]) for trade in stored)


def _ids(stretches: Iterable[Sequence[Any]]) -> Iterator[Id]:
    for symbol, first, last in stretches:
        yield from ((symbol, trade_id) for trade_id in range(first, last + 1))
