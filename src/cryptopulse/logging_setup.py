"""Configures logging; nothing else does.

Events go to standard error: readable and coloured on a terminal, otherwise one JSON object per line. A process that
shares the terminal with a live view logs to a bounded file instead.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from cryptopulse.errors import ConfigurationError
from cryptopulse.settings import LoggingSettings

FILE_SIZE_MAX = 4 << 20
"""A log file of this many bytes is renamed to `<name>.1`, which replaces the previous one."""


class BoundedFile:
    """A text file that is rotated when it has grown to `size_max` bytes; one older file is kept."""

    def __init__(self, path: Path, descriptor: int | None = None, size_max: int = FILE_SIZE_MAX) -> None:
        """Opens `path` for appending, as file descriptor `descriptor` if one is given.

        With 2, everything else that the process writes to standard error (a fatal error of the interpreter, a native
        library) is in the same file. Raises ConfigurationError when the file can't be opened.
        """
        self._path = path
        self._descriptor = descriptor
        self._size_max = size_max
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise ConfigurationError(f"Can't write the log file {path}: {error.strerror}.") from error

    def write(self, text: str) -> int:
        """Appends `text` at once. On a full disk the text is lost and the process goes on."""
        data = text.encode("utf-8", "backslashreplace")
        with suppress(OSError):
            if self._size > self._size_max:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._open()
            assert self._descriptor is not None
            self._size += os.write(self._descriptor, data)
        return len(text)

    def flush(self) -> None:
        """Does nothing: `write` does not buffer."""

    def _open(self) -> None:
        opened = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        if self._descriptor is None:
            self._descriptor = opened
        else:
            os.dup2(opened, self._descriptor, inheritable=False)
            os.close(opened)
        self._size = os.fstat(self._descriptor).st_size


def configure(settings: LoggingSettings, process: str, file: BoundedFile | None = None) -> None:
    """Sets up logging for this process, once, at its start.

    `process`: its name, in every event. `file`: write there instead of to standard error (as JSON unless the settings
    say `human`).
    """
    human = settings.format == "human" or (settings.format == "auto" and not file and _is_terminal(sys.stderr))
    level = logging.getLevelNamesMapping()[settings.level]

    def name_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        name_process,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if human:
        processors.append(structlog.dev.ConsoleRenderer(colors=_is_terminal(sys.stderr)))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", file or sys.stderr)),
        cache_logger_on_first_use=False,  # there are few events, and cached loggers can't be configured again
    )
    logging.captureWarnings(capture=True)
    logging.basicConfig(handlers=[_ToStructlog()], level=max(level, logging.WARNING), force=True)


def configure_quiet(settings: LoggingSettings) -> None:
    """`configure` for commands that print a summary: shows only warnings and errors, unless the level is DEBUG."""
    level = "DEBUG" if settings.level == "DEBUG" else "WARNING"
    configure(settings.model_copy(update={"level": level}), "cryptopulse")


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class _ToStructlog(logging.Handler):
    """Forwards what libraries log through the standard library to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(record.levelno, "library_message", library=record.name, message=record.getMessage())
