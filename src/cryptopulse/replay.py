"""Brings files into a lake, through the same log and processing as the live feed: a recording of raw messages
(`replay`), or whatever holds trades (`Import`).
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from cryptopulse.errors import ConfigurationError
from cryptopulse.folders import cannot_use, make_folder, sync
from cryptopulse.log import MESSAGE_SCHEMA, Log, message_table
from cryptopulse.pipeline import Pipeline
from cryptopulse.recording import read_chunks
from cryptopulse.settings import Settings
from cryptopulse.telemetry import Telemetry
from cryptopulse.trade_files import TradeFile
from cryptopulse.venues.coinbase_advanced import AdvancedDialect
from cryptopulse.venues.imported import IMPORT
from cryptopulse.venues.registry import COINBASE

_BATCH_BYTES_MAX = 64 << 20  # an append is held in memory several times
_APPENDED_MAX = 2_000_000  # messages (about 1 GB) between trims of the log, so that a long recording does not fill it

Progress = Callable[[int, int], None]


def replay(
    settings: Settings, log: Log, recording: Path, batch_messages: int, progress: Progress, venue: str = COINBASE
) -> dict[str, object]:
    """Appends `recording`, of a venue's feed, to the log, `batch_messages` at a time, and processes it through gold.

    Messages keep the receive time of the recording; without one they count as received now. The whole recording is read
    before any message is kept, so a recording with a broken line can be repaired and replayed without duplicates.
    Returns `Telemetry.summary`. Raises ConfigurationError when the file can't be read, LakeBusy when a pipeline already
    works on the lake, LakeFull.
    """
    with (
        _staged(recording, settings.state_dir, venue) as (staged, count),
        Pipeline(settings, log) as lake,  # refuses a busy lake before the log grows
        ThreadPoolExecutor(1, thread_name_prefix="append") as pool,
    ):
        lake.drain(progress)  # so that the summary counts only the recording
        lake.telemetry = Telemetry(lake.engine)
        batches, stop = _batches(staged, batch_messages), threading.Event()
        try:
            for start in range(0, count, _APPENDED_MAX):
                coming = min(_APPENDED_MAX, count - start)
                lake.drain(progress, pool.submit(_append, log, batches, coming, stop), coming)
        finally:
            stop.set()
        return lake.telemetry.summary()


def _append(log: Log, batches: Iterator[pa.Table], messages: int, stop: threading.Event) -> None:
    """Appends at least `messages` messages, in whole batches, unless `stop` is set or there are no more."""
    while messages > 0 and not stop.is_set() and (batch := next(batches, None)) is not None:
        log.append(batch)
        messages -= batch.num_rows


@dataclass
class FileResult:
    """What an import did with a file."""

    file: TradeFile
    lines: int = 0
    """Messages that are in the log, or went through it: those of this import."""
    earlier: int = 0
    """Those that an earlier import brought in, and that were left out."""
    error: ConfigurationError | None = None
    """Why it could not be read to its end."""


class _Checkpoint(msgspec.Struct):
    """How far a file is imported, kept in a file of its own under its digest."""

    file: str
    lines: int = 0
    is_whole: bool = False
    log: dict[str, tuple[int, int]] = {}
    """Partition → the log's origin, and its end behind these lines: they are there while both hold them."""


class Import:
    """Brings files into one lake. What is done is kept beside the lake, so the same files can be given again."""

    def __init__(self, settings: Settings, log: Log, batch_messages: int) -> None:
        """Opens nothing yet. `batch_messages`: how many messages are appended to the log at a time."""
        self._settings = settings
        self._log = log
        self._batch_messages = batch_messages
        self.results: list[FileResult] = []
        """One for each file that was begun."""
        self.summary: dict[str, Any] = {}
        """`Telemetry.summary`, also of an import that was stopped."""

    def run(self, files: Sequence[TradeFile], progress: Progress, *, again: bool = False) -> None:
        """Appends the lines of `files` to the log, a batch at a time, and processes it through gold meanwhile.

        Lines that an earlier import of a file with the same content brought in are left out, unless `again`. A file
        that can't be read to its end is imported as far as it goes; its result says why. Raises LakeBusy when a
        pipeline already works on the lake, LakeFull, LogFull.
        """
        with Pipeline(self._settings, self._log) as lake, ThreadPoolExecutor(1, thread_name_prefix="append") as pool:
            lake.drain(lambda _done, _total: None)  # so that the summary counts only these files
            lake.telemetry = Telemetry(lake.engine)
            stop = threading.Event()
            share = _Share(len(files))
            batches = self._batches(lake, files, share, again=again)
            try:
                while not share.is_finished:
                    shown = partial(share.show, progress, share.lines)
                    lake.drain(shown, pool.submit(self._append, batches, share, stop), _APPENDED_MAX)
            finally:
                stop.set()
                self.summary = lake.telemetry.summary()

    def _append(
        self, batches: Iterator[tuple[FileResult, pa.Table, Path, _Checkpoint]], share: _Share, stop: threading.Event
    ) -> None:
        """Appends about `_APPENDED_MAX` messages, unless `stop` is set or there are no more."""
        left = _APPENDED_MAX
        while left > 0 and not stop.is_set():
            found = next(batches, None)
            if found is None:
                share.is_finished = True
                return
            result, messages, path, checkpoint = found
            if messages.num_rows:
                self._log.append(messages)
            result.lines += messages.num_rows
            share.lines += messages.num_rows
            left -= messages.num_rows
            checkpoint.lines += messages.num_rows
            checkpoint.log = {
                str(partition): (self._log.origin(partition), self._log.bounds(partition)[1])
                for partition in self._log.partitions()
            }
            _save(path, checkpoint)

    def _batches(
        self, lake: Pipeline, files: Sequence[TradeFile], share: _Share, *, again: bool
    ) -> Iterator[tuple[FileResult, pa.Table, Path, _Checkpoint]]:
        """The messages of all files (MESSAGE_SCHEMA) by batches, with what is to be noted once they are appended."""
        folder = self._settings.state_dir / "imports"
        for number, file in enumerate(files):
            self.results.append(result := FileResult(file))
            try:
                path = folder / f"{file.digest()}.json"
                checkpoint = _Checkpoint(str(file.path)) if again else self._checkpoint(lake, path, file)
                result.earlier = checkpoint.lines
                if not checkpoint.is_whole:
                    with self._messages(file, share) as messages:
                        whole = _until_error(_without_first(messages, checkpoint.lines), result)
                        for batch in _batches(whole, self._batch_messages):
                            yield result, batch, path, checkpoint
                    checkpoint.is_whole = result.error is None
                    yield result, MESSAGE_SCHEMA.empty_table(), path, checkpoint
            except ConfigurationError as error:
                result.error = error
            share.of_files = number + 1

    def _checkpoint(self, lake: Pipeline, path: Path, file: TradeFile) -> _Checkpoint:
        """How far the file is imported: not at all if the log or bronze lost what an earlier import brought in."""
        with suppress(OSError, msgspec.MsgspecError):
            checkpoint = msgspec.json.decode(path.read_bytes(), type=_Checkpoint)
            known = {str(partition): partition for partition in self._log.partitions()}
            if checkpoint.log and all(
                name in known
                and self._log.origin(known[name]) == origin
                # What bronze does not hold is still in the log.
                and lake.engine.stored_to(known[name]) + 1 >= min(self._log.bounds(known[name])[0], end)
                for name, (origin, end) in checkpoint.log.items()
            ):
                return checkpoint
        return _Checkpoint(str(file.path))

    @contextmanager
    def _messages(self, file: TradeFile, share: _Share) -> Iterator[Iterator[pa.RecordBatch]]:
        if file.kind == "recording":
            with _staged(file.path, self._settings.state_dir, file.venue) as (staged, _count):
                yield iter(staged)
        elif file.kind == "nothing":
            yield iter(())
        else:
            yield _received_now(file, share)


class _Share:
    """How much of all files has been appended, for a progress bar."""

    def __init__(self, files: int) -> None:
        self._files = files
        self.of_files = 0.0
        self.lines = 0
        self.is_finished = False

    def show(self, progress: Progress, before: int, done: int, _total: int) -> None:
        """Reports the messages stored, those `before` and `done` since, of as many as there seem to be."""
        share = self.of_files / self._files
        progress(before + done, max(round(self.lines / share) if share else 0, self.lines))


def _received_now(file: TradeFile, share: _Share) -> Iterator[pa.RecordBatch]:
    """The lines of a file as messages that are received as they are read."""
    before = share.of_files
    for lines in file.lines():
        rows = len(lines.bodies)
        now = pa.array(np.full(rows, time.time_ns() // 1000), MESSAGE_SCHEMA.field("received_time").type)
        columns = [lines.keys, now, pa.repeat(IMPORT, rows), lines.bodies]
        share.of_files = before + lines.share
        yield pa.RecordBatch.from_arrays(columns, schema=MESSAGE_SCHEMA)


def _until_error(messages: Iterator[pa.RecordBatch], result: FileResult) -> Iterator[pa.RecordBatch]:
    """The messages that can be read; notes why the others can't."""
    try:
        yield from messages
    except ConfigurationError as error:
        result.error = error


def _without_first(messages: Iterator[pa.RecordBatch], count: int) -> Iterator[pa.RecordBatch]:
    for batch in messages:
        if batch.num_rows > count:
            yield batch.slice(count)
        count = max(count - batch.num_rows, 0)


def _save(path: Path, checkpoint: _Checkpoint) -> None:
    """Writes how far a file is imported; it is on disk when this returns. What is lost of it is read again."""
    try:
        make_folder(path.parent)
        part = path.with_suffix(".part")
        part.write_bytes(msgspec.json.encode(checkpoint))
        sync(part)
        part.replace(path)
    except OSError as error:
        raise cannot_use(path.parent, error) from error


@contextmanager
def _staged(recording: Path, folder: Path, venue: str = COINBASE) -> Iterator[tuple[pa.RecordBatchReader, int]]:
    """The messages of a recording (MESSAGE_SCHEMA), all read and valid, and their number.

    They are kept in an unnamed temporary file in `folder`, as large as the recording: reading the recording twice would
    take three times as long, and a pipe can't be read twice.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            count = 0
            with pa.ipc.new_stream(file, MESSAGE_SCHEMA) as writer:
                for received_us, bodies in read_chunks(recording):
                    times = np.where(received_us < 0, time.time_ns() // 1000, received_us)
                    keys = _keys(bodies) if venue == COINBASE else [f"@{venue}"] * len(bodies)
                    writer.write_table(message_table(keys, times, "websocket", bodies))
                    count += len(bodies)
            file.seek(0)
            yield pa.ipc.open_stream(file), count
    except OSError as error:
        raise cannot_use(folder, error) from error


def _batches(messages: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """The same messages in tables of `size` rows; the last, and those with large messages, may have fewer."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in messages:
        waiting.append(batch)
        count += batch.num_rows
        is_large = count > 0 and sum(one.nbytes for one in waiting) >= _BATCH_BYTES_MAX
        if count >= size or is_large:
            together = pa.Table.from_batches(waiting)
            whole = count if is_large else count - count % size
            for start in range(0, whole, size):
                yield together.slice(start, size)
            waiting, count = together.slice(whole).to_batches(), count - whole
    if count:
        yield pa.Table.from_batches(waiting)


def _keys(bodies: Sequence[bytes | str]) -> list[str]:
    """`partition_key` of each message."""
    try:  # takes half the time if all bodies are JSON
        found = list(map(_product_fields.decode, bodies))
    except (ValueError, RecursionError):
        return list(map(partition_key, bodies))
    return [partition_key(bodies[place]) if one.channel else _own(one.product_id) for place, one in enumerate(found)]


class _ProductFields(msgspec.Struct, gc=False):
    """The members in which a message of either feed may name its product."""

    product_id: str = ""
    channel: str = ""


_product_fields = msgspec.json.Decoder(_ProductFields)
_advanced = AdvancedDialect()


def _own(product: str) -> str:
    """`product` as a key; "" for one that would say that the message is another venue's."""
    return "" if "@" in product else product


def partition_key(body: bytes | str) -> str:
    """The product that a message of either feed is about, "" for none or several."""
    try:
        found = _product_fields.decode(body)
    except (ValueError, RecursionError):  # msgspec's errors and bad UTF-8 are ValueErrors
        return ""
    if found.product_id or not found.channel:
        return _own(found.product_id)
    return _own(_advanced.read(body.encode() if isinstance(body, str) else body).product)
