"""Serves a recording: each connection gets it from the beginning, once it has sent a message.

Messages are sent exactly as recorded, in the file's order, whatever products and channels are subscribed to. At the
end the connection stays open and silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from cryptopulse.recording import read_recording
from cryptopulse.simulator.session import ClientSession
from cryptopulse.simulator.venue import Batch, SimulatedVenue
from cryptopulse.simulator.wire import ServerConnection, frame

log = structlog.get_logger()

Timeline = list[tuple[float, bytes]]
"""Frames, each with its time in seconds after the first one."""

_TOGETHER_S = 0.005
"""Messages due within this time are sent together."""
_TOGETHER_MAX = 500


class _Stamp(msgspec.Struct):
    """The fields that have the time in the feeds' messages."""

    time: str | None = None
    timestamp: str | None = None


_stamp = msgspec.json.Decoder(_Stamp).decode


def load_timeline(path: Path) -> Timeline:
    """Reads a recording to be served.

    A message is due at its time of receipt, else at the time in the message, else with the previous one; never before
    an earlier message. Raises ConfigurationError when the file is broken.
    """
    frames: Timeline = []
    first: int | None = None
    due_s = 0.0
    for received_ns, message in read_recording(path):
        time_ns = received_ns
        if time_ns is None:
            with suppress(ValueError):  # no JSON, or no time in it
                stamp = _stamp(message)
                if text := stamp.time or stamp.timestamp:
                    moment = datetime.fromisoformat(text)
                    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                    time_ns = int(moment.timestamp() * 1e6) * 1000
        if time_ns is not None:
            first = time_ns if first is None else first
            due_s = max(due_s, (time_ns - first) / 1e9)
        frames.append((due_s, frame(message)))
    return frames


class RecordingSession(ClientSession):
    """A connection that gets a recording."""

    def __init__(
        self,
        socket: ServerConnection,
        venue: SimulatedVenue,
        number: int,
        changed: Callable[[ClientSession], None],
        frames: Timeline,
    ) -> None:
        """`frames`: the recording; for the rest see ClientSession."""
        super().__init__(socket, venue, number, changed)
        self._frames = frames
        self._playing: asyncio.Task[None] | None = None

    def on_message(self, message: bytes) -> None:  # noqa: ARG002  whatever is asked for, there is one recording
        """Starts the recording at the first message."""
        if self._playing is None:
            self.subscriptions_changed()
            self._playing = asyncio.ensure_future(self._play())

    def on_closed(self) -> None:
        """Stops the recording."""
        super().on_closed()
        if self._playing is not None:
            self._playing.cancel()

    async def _play(self) -> None:
        speed, frames = self.venue.options.speed, self._frames
        clock = asyncio.get_running_loop().time
        start, at = clock(), 0
        while at < len(frames) and not self.closed:
            due_s = (clock() - start + _TOGETHER_S / 2) * speed if speed else float("inf")
            end = at
            while end < len(frames) and end - at < _TOGETHER_MAX and frames[end][0] <= due_s:
                end += 1
            self.deliver([message for _, message in frames[at:end]])
            at = end
            await self.writable.wait()
            wait_s = frames[at][0] / speed - (clock() - start) if speed and at < len(frames) else 0.0
            await asyncio.sleep(max(wait_s, 0.0))
        self.release()
        log.info("simulator_recording_served", connection=self.number, messages=at)

    def publish(self, batch: Batch) -> None:
        """Does nothing: there is no market."""

    def flush(self) -> None:
        """Does nothing: nothing is batched."""

    def heartbeat(self, counter: int) -> None:
        """Does nothing: the recording has its own heartbeats."""
