"""What several commands share: options, settings, output, progress, and the frame of a long-running
process."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cryptopulse.settings import Settings
    from cryptopulse.status import StatusFile

Lake = Annotated[
    str | None,
    typer.Option("--lake", metavar="PLACE", help="Where the tables are: folder, s3://… or abfss://… [default: ./lake]"),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file. [default: ./cryptopulse.toml]"),
]
Products = Annotated[
    str | None,
    typer.Option("--products", metavar="IDS", help='Products, as in BTC-USD,ETH-USD; "" for all of a currency.'),
]
Feed = Annotated[
    str | None, typer.Option("--feed", metavar="exchange|advanced|both", help="Which of Coinbase's public feeds.")
]
WebsocketUrl = Annotated[
    str | None,
    typer.Option("--websocket-url", metavar="URL", help="Another WebSocket address: a simulator's."),
]
RestUrl = Annotated[str | None, typer.Option("--rest-url", metavar="URL", help="Another REST address: a simulator's.")]
Dashboard = Annotated[bool, typer.Option("--dashboard/--no-dashboard", help="Show it in browsers as well.")]
Json = Annotated[bool, typer.Option("--json", help="For scripts: JSON on standard output.")]
Supervised = Annotated[int | None, typer.Option("--supervised", hidden=True)]
LogFile = Annotated[Path | None, typer.Option("--log-file", hidden=True)]

Progress = Callable[[int, int], None]


def settings_from(
    lake: str | None,
    config: Path | None,
    products: str | None = None,
    feed: str | None = None,
    engine: str | None = None,
    serve: Mapping[str, object] | None = None,
    **urls: str | None,
) -> Settings:
    """All settings, with the options that were given on top.

    `serve`: those of the section of that name. `urls`: `websocket_url` and `rest_url`. Raises ConfigurationError.
    """
    from cryptopulse.settings import load_settings

    feed_options = {"products": products, "dialect": feed, **urls}
    return load_settings(config, lake=lake, feed=feed_options, processing={"engine": engine}, serve=serve)


def require_lake(settings: Settings) -> None:
    """Raises ConfigurationError when there is no lake yet: for commands that make none."""
    from cryptopulse.lake.access import present

    present(settings.location)


def quiet(settings: Settings) -> None:
    """Logs only warnings: for commands whose summary is the news."""
    from cryptopulse import logging_setup

    level = "DEBUG" if settings.logging.level == "DEBUG" else "WARNING"
    logging_setup.configure(settings.logging.model_copy(update={"level": level}), "cryptopulse")


def print_json(value: object) -> None:
    """`value` on standard output as JSON, indented; times, decimals and bytes as text."""
    sys.stdout.write(json.dumps(value, indent=2, default=_json_text) + "\n")


def _json_text(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return cell_text(value)


def cell_text(value: object) -> str:
    """One value of a table for people: decimals without trailing zeros, bytes as the text that they are."""
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return "" if value is None else str(value)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], numbers: frozenset[str] = frozenset()
) -> None:
    """A table on standard output. `numbers`: the columns to align right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Into a file or pipe: nothing is folded, however wide.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell_text(value)) for value in row))
    with console.capture() as capture:
        console.print(table)
    sys.stdout.writelines(line.rstrip() + "\n" for line in capture.get().strip("\n").splitlines())


@contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """Gives a function to be called with (done, total); draws only on a terminal, on standard error."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def reported(
    settings: Settings, name: str, supervised: int | None, log_file: Path | None
) -> Iterator[Callable[..., None]]:
    """The frame of a long-running process: its logging, its status file, its end with the supervisor.

    Gives the function that takes the process's reports. An error is logged, noted in the status file, and
    raised; LakeBusy when the lake has such a process already.
    """
    from cryptopulse import logging_setup
    from cryptopulse.deployment import wait_until_free
    from cryptopulse.status import StatusFile
    from cryptopulse.supervisor import stop_with_parent

    file = logging_setup.BoundedFile(log_file, descriptor=2) if log_file else None
    logging_setup.configure(settings.logging, name, file)
    if supervised is not None:
        stop_with_parent()
    # Before our own file takes the place of the one that shows it.
    wait_until_free(settings.state_dir, settings.lake, [name])
    with _ending_in_order():
        yield from _with_status(StatusFile(settings.state_dir, name, supervised or 0), log_file)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Whoever sees the status of a process may end it, also before its work has begun and has handlers of its own."""
    if threading.current_thread() is not threading.main_thread():  # a job runner has the signals
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _with_status(status: StatusFile, log_file: Path | None) -> Iterator[Callable[..., None]]:
    import structlog

    from cryptopulse.errors import CryptoPulseError

    try:
        yield status.report
    except CryptoPulseError as error:
        status.close(error=str(error))
        raise
    except SystemExit:
        status.close()
        raise
    except Exception as error:
        what = f"unexpected error: {type(error).__name__}: {error}"
        status.close(error=what)
        if not log_file and sys.stderr.isatty():
            raise  # nobody wants a traceback among the events on the terminal
        structlog.get_logger().exception("unexpected_error", error=str(error))
        raise CryptoPulseError(f"{what}; details are in the log") from error
    status.close()
