"""The command `cryptopulse`: assembles the commands, and is the one place that shows errors.

An error is one line on standard error: what happened, to what, what to do. A traceback is never for the
user's mistake; for a fault of the program it goes to a file, and to standard error only with `--debug`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cryptopulse.commands import (
    alerts,
    audit,
    backfill,
    configuration,
    ddl,
    demo,
    history,
    look,
    pipeline,
    serve,
    simulate,
)
from cryptopulse.errors import ERROR_PREFIX, CryptoPulseError

_EPILOG = (
    "Example: cryptopulse demo --for 60s\n\n"
    "Exit codes: 0 done; 1 a fault of the program, a demo that lost or doubled a trade, or a test message that was not "
    "taken; 2 a setting, an option or a file is wrong; 3 the log or the lake's disk is full (`status`: not all is "
    "well); 4 the log or a table is damaged; 5 another pipeline works on this lake; 6 a supervised process died again "
    "and again; 7 the storage of the lake does not answer; 8 the audit found something missing or wrong; 130 ended by "
    "Ctrl-C."
)

app = typer.Typer(
    help="Every trade of Coinbase in Delta tables, a fraction of a second behind the exchange.",
    epilog=_EPILOG,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (demo, pipeline, serve, simulate, look, audit, alerts, history, backfill, configuration, ddl):
    module.register(app)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,  # noqa: ARG001 -- see `run`
) -> None:
    if version:
        from cryptopulse import __version__

        typer.echo(f"cryptopulse {__version__}")
        raise typer.Exit


def main() -> None:
    """The installed command."""
    if code := run(sys.argv[1:]):  # Databricks takes every SystemExit for a failure, even that with code 0
        sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Carries out one command line and returns its exit code; says errors on standard error."""
    debug = "--debug" in arguments
    try:
        return _call([text for text in arguments if text != "--debug"])
    except CryptoPulseError as error:
        return _fail(str(error), error.exit_code, debug)
    except typer.TyperException as error:
        return _fail(f"{error.format_message().rstrip('.')}. See `{_help_for(error)}`.", error.exit_code, debug)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:  # noqa: BLE001 -- the top: everything else is a fault of ours
        return _fail(f"unexpected error: {type(error).__name__}: {error}{_keep_details(debug)}", 1, debug)


def _call(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(arguments or ["--help"], prog_name="cryptopulse", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output had enough: `cryptopulse sql ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


def _fail(message: str, exit_code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    line = " ".join(message.split())
    sys.stderr.write(f"{ERROR_PREFIX}{line}\n")
    return exit_code


def _help_for(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'cryptopulse'} --help"


def _keep_details(debug: bool) -> str:
    """Puts the traceback of the current exception into a file and says where, for the end of the error's
    line."""
    if debug:
        return ""
    path = Path(tempfile.gettempdir()) / f"cryptopulse-error-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.txt"
    try:
        path.write_text(f"cryptopulse {' '.join(sys.argv[1:])}\n{traceback.format_exc()}")
    except OSError:
        return "; run it again with --debug for details"
    return f"; details are in {path}"
