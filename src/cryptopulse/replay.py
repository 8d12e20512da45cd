"""Brings recordings of raw messages into a lake, through the same log and processing as the live feed."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from cryptopulse.folders import cannot_use
from cryptopulse.log import MESSAGE_SCHEMA, Log, message_table
from cryptopulse.pipeline import Pipeline
from cryptopulse.recording import read_chunks
from cryptopulse.settings import Settings
from cryptopulse.telemetry import Telemetry
from cryptopulse.venues.coinbase_advanced import AdvancedDialect

_APPENDED_MAX = 2_000_000  # messages (about 1 GB) between trims of the log, so that a long recording does not fill it

Progress = Callable[[int, int], None]


def replay(settings: Settings, log: Log, recording: Path, batch_messages: int, progress: Progress) -> dict[str, object]:
    """Appends `recording` to the log, `batch_messages` at a time, and processes the log through gold.

    Messages keep the receive time of the recording; without one they count as received now. The whole recording is read
    before any message is kept, so a recording with a broken line can be repaired and replayed without duplicates.
    Returns `Telemetry.summary`. Raises ConfigurationError when the file can't be read, LakeBusy when a pipeline already
    works on the lake, LakeFull.
    """
    with (
        _staged(recording, settings.state_dir) as (staged, count),
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


@contextmanager
def _staged(recording: Path, folder: Path) -> Iterator[tuple[pa.RecordBatchReader, int]]:
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
                    try:  # takes half the time if all bodies are JSON
                        found = list(map(_product_fields.decode, bodies))
                    except (ValueError, RecursionError):
                        keys = list(map(partition_key, bodies))
                    else:
                        keys = [
                            partition_key(bodies[place]) if one.channel else one.product_id
                            for place, one in enumerate(found)
                        ]
                    writer.write_table(message_table(keys, times, "websocket", bodies))
                    count += len(bodies)
            file.seek(0)
            yield pa.ipc.open_stream(file), count
    except OSError as error:
        raise cannot_use(folder, error) from error


def _batches(messages: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """The same messages in tables of `size` rows; the last may have fewer."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in messages:
        waiting.append(batch)
        count += batch.num_rows
        if count >= size:
            together = pa.Table.from_batches(waiting)
            whole = count - count % size
            for start in range(0, whole, size):
                yield together.slice(start, size)
            waiting, count = together.slice(whole).to_batches(), count - whole
    if count:
        yield pa.Table.from_batches(waiting)


class _ProductFields(msgspec.Struct, gc=False):
    """The members in which a message of either feed may name its product."""

    product_id: str = ""
    channel: str = ""


_product_fields = msgspec.json.Decoder(_ProductFields)
_advanced = AdvancedDialect()


def partition_key(body: bytes | str) -> str:
    """The product that a message of either feed is about, "" for none or several."""
    try:
        found = _product_fields.decode(body)
    except (ValueError, RecursionError):  # msgspec's errors and bad UTF-8 are ValueErrors
        return ""
    if found.product_id or not found.channel:
        return found.product_id
    return _advanced.read(body.encode() if isinstance(body, str) else body).product
