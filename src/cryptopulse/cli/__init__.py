"""The command `cryptopulse`: assembles the commands. Errors are shown here and nowhere else.

An error is one line on standard error: what happened, to what, what to do. Tracebacks are shown only with
`--debug`; without it, the traceback of a fault of the program goes to a file.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cryptopulse.cli import (
    alerts,
    audit,
    backfill,
    certify,
    config,
    ddl,
    demo,
    export,
    imports,
    playback,
    processes,
    replay,
    serve,
    service,
    simulate,
    sql,
    status,
)
from cryptopulse.errors import ERROR_PREFIX, ConfigurationError, CryptoPulseError

_EPILOG = (
    "Example: cryptopulse demo --for 60s\n\n"
    "Exit codes: 0 done; 1 a fault of the program, a demo that lost or doubled a trade, or a test message that was not "
    "taken; 2 a setting, an option or a file is wrong; 3 the log or the lake's disk is full (`status`: not all is "
    "well); 4 the log or a table is damaged; 5 another pipeline works on this lake; 6 a supervised process died again "
    "and again; 7 the storage of the lake does not answer; 8 `audit` or `verify` found something missing or wrong; 9 "
    "the exchange gave nothing of use about a product of `backfill`; 130 ended by Ctrl-C."
)

# Nothing here multiplies matrices, and OpenBLAS would start a thread per core, which costs 40 ms.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Arrow's own allocator keeps more: with the system's the processing has 30 MB less at 1,000 trades/s, and catches up
# 7 % faster.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

# ASCII for the other characters in our texts, for terminals and files that are not UTF-8.
_PLAIN = {
    "…": "...",
    "→": "->",
    "≤": "<=",
    "±": "+-",
    **dict(zip("—–−·µ×“”▲▼●▁▂▃▄▅▆▇█", '---.ux""^vo__..::##', strict=True)),
}

app = typer.Typer(
    help="Every trade of Coinbase in Delta tables, a fraction of a second behind the exchange.",
    epilog=_EPILOG,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    demo,
    processes,
    serve,
    simulate,
    status,
    sql,
    export,
    playback,
    audit,
    certify,
    alerts,
    replay,
    imports,
    backfill,
    config,
    service,
    ddl,
):
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
    if "structlog" not in sys.modules:
        # It would import rich, for tracebacks in colour, and httpx its command line: 5 MB in each process.
        sys.modules["rich"] = sys.modules["httpx._main"] = None  # type: ignore[assignment]
        import structlog  # noqa: F401

        del sys.modules["rich"]


def main() -> None:
    """Entry point of the installed command."""

    def in_plain_letters(error: UnicodeError) -> tuple[str, int]:
        """Replaces characters that the output can't encode: by ASCII, else by escapes (`\\u65e5`)."""
        assert isinstance(error, UnicodeEncodeError)
        text = error.object[error.start : error.end]
        return "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text), error.end

    # A stream that the caller closed (`>&-`) becomes /dev/null; else the next opened file would get its number.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    codecs.register_error("plain", in_plain_letters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    if code := run(sys.argv[1:]):  # Databricks treats every SystemExit as a failure, even code 0
        sys.exit(code)


def run(arguments: Sequence[str]) -> int:  # noqa: PLR0911 - one for each kind of end
    """Runs one command line and returns its exit code; writes errors to standard error."""
    debug = "--debug" in arguments
    try:
        command = typer.main.get_command(app)
        given = [text for text in arguments if text != "--debug"] or ["--help"]
        code = command.main(given, prog_name="cryptopulse", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        _drop_output()  # the reader closed the pipe: `cryptopulse sql ... | head`. (Typer raises an exit from it.)
        return 0
    except CryptoPulseError as error:
        return _fail(str(error), error.exit_code, debug)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        program = context.command_path if context else "cryptopulse"
        return _fail(f"{error.format_message().rstrip('.')}. See `{program} --help`.", error.exit_code, debug)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:  # noqa: BLE001 -- the top: everything else is a fault of ours
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            _drop_output()
            return _fail("The disk is full to which the output, or a temporary file, is written.", 3, debug)
        package = (getattr(error, "name", None) or "cryptopulse").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package != "cryptopulse":  # only the core installed: Databricks
            text = f"This command needs the package {package}: pip install 'cryptopulse[all]'."
            return _fail(text, ConfigurationError.exit_code, debug)
        details = "" if debug else f"; {_save_details()}"
        return _fail(f"unexpected error: {type(error).__name__}: {error}{details}", 1, debug)


def _drop_output() -> None:
    """Sends the rest of standard output to /dev/null: Python would try to write it again at exit."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)


def _fail(message: str, exit_code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    line = " ".join(message.split())
    sys.stderr.write(f"{ERROR_PREFIX}{line}\n")
    return exit_code


def _save_details() -> str:
    """Writes the traceback of the current exception to a file; returns where, for the end of the error line."""
    path = Path(tempfile.gettempdir()) / f"cryptopulse-error-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.txt"
    text = f"cryptopulse {' '.join(sys.argv[1:])}\n{traceback.format_exc()}"
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError:
        return "run it again with --debug for details"
    return f"details are in {path}"
