"""Brings recordings of raw messages into a lake, through the same log and the same processing as the live
feed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from cryptopulse import pipeline
from cryptopulse.feed.advanced import Advanced
from cryptopulse.feed.exchange import Exchange
from cryptopulse.feed.protocol import Unreadable
from cryptopulse.log import MESSAGE_SCHEMA, Log
from cryptopulse.recording import read_recording
from cryptopulse.settings import Settings

_DRAIN_EVERY = 2_000_000  # messages: about 1 GB in the log, so that a long recording stays within its bound

Progress = Callable[[int, int], None]


def replay(settings: Settings, log: Log, recording: Path, batch_messages: int, progress: Progress) -> dict[str, object]:
    """Appends `recording` to the log, `batch_messages` at a time, and processes the log through gold.

    Messages keep the receive time of the recording; without one they count as received now. Returns what
    `pipeline.drain` counts, over all of the recording. Raises ConfigurationError when the file can't be read,
    LakeBusy when a pipeline already works on the lake.
    """
    pipeline.drain(settings, log, progress)  # refuses a busy lake before the log grows
    totals: Counter[str] = Counter()
    waiting = 0
    for batch in _batches(recording, batch_messages):
        log.append(batch)
        waiting += batch.num_rows
        if waiting >= _DRAIN_EVERY:
            _add(totals, pipeline.drain(settings, log, progress))
            waiting = 0
    result = pipeline.drain(settings, log, progress)
    _add(totals, result)
    return {**result, **totals}


def _add(totals: Counter[str], result: dict[str, object]) -> None:
    for name in ("messages", "trades", "duplicates", "quarantined", "seconds"):
        totals[name] += result[name]  # type: ignore[operator]


def _batches(recording: Path, batch_messages: int) -> Iterator[pa.Table]:
    received: list[int] = []
    bodies: list[bytes] = []
    for received_ns, body in read_recording(recording):
        received.append((received_ns if received_ns is not None else time.time_ns()) // 1000)
        bodies.append(body)
        if len(bodies) >= batch_messages:
            yield _table(received, bodies)
            received, bodies = [], []
    if bodies:
        yield _table(received, bodies)


def _table(received_us: list[int], bodies: list[bytes]) -> pa.Table:
    return pa.table(
        [
            pa.array([_product(body) for body in bodies], pa.string()),
            pa.array(np.array(received_us), pa.timestamp("us", tz="UTC")),
            pa.array(["websocket"] * len(bodies), pa.string()),
            pa.array(bodies, pa.binary()),
        ],
        schema=MESSAGE_SCHEMA,
    )


_DIALECTS = (Exchange(), Advanced())


def _product(body: bytes) -> str:
    """The product that a message of either feed is about, "" for none or several."""
    for dialect in _DIALECTS:
        message = dialect.read(body)
        if not isinstance(message, Unreadable):
            return message.product
    return ""
